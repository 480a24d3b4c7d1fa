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


def curves(runs, keys, labels, path, scale=100, legend=1):
    """A picture of a validation metric by step: mean over seeds, shaded between the least and the best.

    runs: name -> the directories of its seeds. keys: the metric, or name -> its own. labels: of matplotlib's axis.set.
    scale: of the metric; 100 makes percent of shares. legend: its columns.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for i, (name, workdirs) in enumerate(runs.items()):
        by_step, key = {}, f"valid/{keys if isinstance(keys, str) else keys[name]}"
        for workdir in workdirs:
            for row in map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines()):
                if key in row:
                    by_step.setdefault(row["step"], []).append(scale * row[key])
        steps = sorted(by_step)
        middle = [statistics.mean(by_step[s]) for s in steps]
        style = ("-", "--")[i // 10 % 2]  # there are ten colours
        axis.plot(steps, middle, style, marker="o", markersize=3, color=f"C{i}", label=name)
        low, high = ([pick(by_step[s]) for s in steps] for pick in (min, max))
        axis.fill_between(steps, low, high, color=f"C{i}", alpha=0.15, linewidth=0)
    axis.set(**labels)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, ncols=legend)
    figure.savefig(path, dpi=110)
