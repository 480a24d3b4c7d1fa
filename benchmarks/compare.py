"""What comparisons of objectives share: ordinary runs by the command line, kept results, cells of tables, curves."""

import json
import statistics
import subprocess
import sys

from paradigm.errors import UserError
from paradigm.storage import expand


def there(path):
    """The absolute path of something that must exist."""
    path = expand(path).resolve()
    if not path.exists():
        raise UserError(f"{path} is not there: give the place of the data")
    return path


def command(module, *arguments, bindings=()):
    """Runs an entry point of the project, its output shown as it comes; returns its last line."""
    line = [sys.executable, "-m", module, *arguments, *(f"--gin_param={b}" for b in bindings)]
    last = ""
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as process:
        for text in process.stdout:
            print(text, end="", flush=True)
            last = text.strip() or last
    if process.returncode:
        raise UserError(f"{' '.join(line)} ended with {process.returncode}: mend that and give this command again")
    return last


def train(run, workdir, bindings):
    """Trains `runs/small/RUN.gin` to its end, or goes on with it."""
    command("launch.train", f"--gin_file=runs/small/{run}.gin", f"--workdir={workdir}", bindings=bindings)


def evaluate(workdir, name, bindings):
    """{metric: value} of the newest checkpoint under these bindings; kept in the run as NAME.json."""
    kept = workdir / f"{name}.json"
    if not kept.exists():
        found = json.loads(command("launch.evaluate", f"--workdir={workdir}", bindings=bindings))
        kept.write_text(json.dumps({key.removeprefix("valid/"): value for key, value in found.items()}))
    return json.loads(kept.read_text())


def cell(numbers):
    """Percent: the mean, and the standard deviation over seeds where there are several; nothing of nothing."""
    if not numbers:
        return ""
    mean = f"{100 * statistics.mean(numbers):.1f}"
    return mean if len(numbers) == 1 else f"{mean} ± {100 * statistics.stdev(numbers):.1f}"


def table(header, rows):
    """Lines of markdown."""
    line = lambda cells: f"| {' | '.join(cells)} |"
    return [line(header), "|" + "---|" * len(header), *map(line, rows), ""]


def curves(runs, key, labels, path):
    """A picture of a validation metric in percent by step, a `curve` for each run.

    runs: name -> the directories of its seeds. labels: of matplotlib's axis.set.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for i, (name, workdirs) in enumerate(runs.items()):
        curve(axis, workdirs, key, 100, label=name, color=f"C{i}")
    axis.set(**labels)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def curve(axis, workdirs, key, scale=1, *, label, color):
    """A validation metric, times `scale`, by step: mean over seeds, shaded between the least and the best."""
    by_step = {}
    for workdir in workdirs:
        for row in map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines()):
            if f"valid/{key}" in row:
                by_step.setdefault(row["step"], []).append(scale * row[f"valid/{key}"])
    steps = sorted(by_step)
    axis.plot(steps, [statistics.mean(by_step[s]) for s in steps], marker="o", markersize=3, color=color, label=label)
    low, high = ([pick(by_step[s]) for s in steps] for pick in (min, max))
    axis.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)
