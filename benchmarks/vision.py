"""Compare the objectives on small pictures: train, probe, tabulate. It goes on where it was stopped.

    python -m benchmarks.vision --images=DIR --clothing=FILE.zip --workdir=/tmp/vision

--images holds Fashion-MNIST's four idx files, --clothing a zip of train/, validation/ and test/ folders by class. Each
run is an ordinary one: `launch.train` on runs/small/NAME.gin, then `launch.evaluate` with the probes of
vision/probe.py. Writes docs/results/vision.md and the picture beside it.
"""

import dataclasses
import json
import pathlib
import platform
import statistics
import subprocess
import sys
import time

from absl import flags

from benchmarks.machine import processor
from launch import cli
from paradigm.errors import UserError

IMAGES = flags.DEFINE_string("images", None, "Where Fashion-MNIST's idx files are.", required=True)
CLOTHING = flags.DEFINE_string("clothing", None, "A zip of clothing photographs; left out when not given.")
WORKDIR = flags.DEFINE_string("workdir", None, "Where the runs go and stay.", required=True)
SEEDS = flags.DEFINE_integer("seeds", 3, "Seeds on Fashion-MNIST; the photographs have one.", lower_bound=1)
GIN_PARAM = flags.DEFINE_multi_string("gin_param", [], "A binding for every run, as in 'total_steps = 1200'.")
OUT = flags.DEFINE_string("out", "docs/results", "Where the table and the picture go.")

RUNS = ("supervised", "mae", "simclr", "moco_v2", "moco_v3")
PROBES = ("knn", "linear", "linear_1pct")
TITLES = {"knn": "k-NN", "linear": "linear", "linear_1pct": "1 % of labels", "finetune": "fine-tune"}
WHOLE = ("Probes.train_images = None", "Probes.test_images = None")
PHOTOS = ("size = 32", "channels = 3")  # there are few and they are larger; as many are seen, with repeats


@dataclasses.dataclass(frozen=True)
class Data:
    """A data set of the comparison. source: as ImageData's. seeds: how many. bindings: what its runs have else."""

    name: str
    title: str
    source: str
    seeds: int
    bindings: tuple = ()


def main(argv):
    del argv
    workdir = pathlib.Path(WORKDIR.value).expanduser().resolve()
    sets = [Data("fashion", "Fashion-MNIST", f"idx:{_there(IMAGES.value)}", SEEDS.value)]
    if CLOTHING.value:
        sets.append(Data("clothing", "Clothing photographs", f"zip:{_there(CLOTHING.value)}", 1, PHOTOS))
    start, found = time.time(), {}
    for data in sets:
        for seed in range(data.seeds):
            for name in RUNS:
                print(f"{data.name} · {name} · seed {seed} · {time.time() - start:.0f} s", flush=True)
                found[data.name, name, seed] = scores(data, name, seed, workdir / data.name / name / str(seed))
        best = sorted(RUNS[1:], key=lambda n: -middle(found, data, n, "linear"))[:2]
        for name in best if data is sets[0] else ():
            for seed in range(data.seeds):
                print(f"{data.name} · fine-tune {name} · seed {seed} · {time.time() - start:.0f} s", flush=True)
                scored = finetuned(data, seed, workdir / data.name / name / str(seed))
                found[data.name, name, seed]["finetune"] = scored["finetune"]
                found[data.name, "supervised", seed]["random/finetune"] = scored["random/finetune"]
    out = pathlib.Path(OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    curves(sets[0], workdir, out / "vision.png")
    (out / "vision.md").write_text(report(sets, found))
    print(json.dumps({"wrote": str(out / "vision.md"), "seconds": round(time.time() - start)}))


def _there(path):
    path = pathlib.Path(path).expanduser().resolve()
    if not path.exists():
        raise UserError(f"{path} is not there: give the place of the pictures")
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


def scores(data, name, seed, workdir):
    """{probe: accuracy} of a run, trained and probed unless that is done already."""
    done = workdir / "scores.json"
    if done.exists():
        return json.loads(done.read_text())
    bindings = (f"ImageData.source = {data.source!r}", f"Experiment.seed = {seed}", *data.bindings, *GIN_PARAM.value)
    command("launch.train", f"--gin_file=runs/small/{name}.gin", f"--workdir={workdir}", bindings=bindings)
    random = name == "supervised"  # the untrained backbone, which all share, is measured once a seed
    how = (*WHOLE, f"Probes.methods = {PROBES}", f"Probes.seed = {seed}", f"Probes.random = {random}")
    found = json.loads(command("launch.evaluate", f"--workdir={workdir}", bindings=how))
    found = {key.removeprefix("valid/"): value for key, value in found.items()}
    done.write_text(json.dumps(found))
    return found


def finetuned(data, seed, workdir):
    """{"finetune", "random/finetune"} of a run, unless that is done already."""
    done = workdir / "finetune.json"
    if not done.exists():
        how = (*WHOLE, "Probes.methods = ('finetune',)", f"Probes.seed = {seed}")
        found = json.loads(command("launch.evaluate", f"--workdir={workdir}", bindings=how))
        done.write_text(json.dumps({key: found[f"valid/{key}"] for key in ("finetune", "random/finetune")}))
    return json.loads(done.read_text())


def values(found, data, name, key):
    """A number of every seed of a run; of the untrained backbone for the name 'random init'."""
    if name == "random init":
        name, key = "supervised", f"random/{key}"
    rows = [found[data.name, name, seed] for seed in range(data.seeds)]
    return [row[key] for row in rows if key in row]


def middle(found, data, name, key):
    return statistics.mean(values(found, data, name, key))


def cell(numbers):
    """Percent: mean, and the standard deviation over seeds where there are several."""
    if not numbers:
        return ""
    mean = f"{100 * statistics.mean(numbers):.1f}"
    return mean if len(numbers) == 1 else f"{mean} ± {100 * statistics.stdev(numbers):.1f}"


def report(sets, found):
    """The page, as markdown."""
    steps = next((b.split("=")[1].strip() for b in GIN_PARAM.value if b.startswith("total_steps")), "400")
    seen = int(steps) * 125
    lines = [
        "# What small encoders know after each objective",
        "",
        f"Every run saw {seen:,} pictures ({steps} steps of 125), each view of one counted once. Accuracy in",
        "percent on the test pictures; mean and standard deviation over seeds. Random init is the same backbone",
        "untrained, under the same probes; vision/probe.py is their protocol. All have one backbone, a ViT of 3 layers",
        "of width 96 in patches of 4; photographs are read at 32 x 32. Run files: gin_configs/runs/small.",
        "",
        "    python -m benchmarks.vision --images=DIR --clothing=FILE.zip --workdir=DIR"
        + "".join(f' --gin_param="{b}"' for b in GIN_PARAM.value),
        "",
        f"Hardware: {processor()}, {platform.machine()}, 2 cores, float32.",
        "",
    ]
    for data in sets:
        keys = [*PROBES, *(["finetune"] if data is sets[0] else [])]
        seeds = "one seed" if data.seeds == 1 else f"{data.seeds} seeds"
        lines += [f"## {data.title}, {seeds}", ""]
        lines += [f"| objective | {' | '.join(TITLES[k] for k in keys)} |"]
        lines += ["|---" * (len(keys) + 1) + "|"]
        for name in ("random init", *RUNS):
            lines.append(f"| {name} | {' | '.join(cell(values(found, data, name, key)) for key in keys)} |")
        lines.append("")
    lines += ["![k-NN accuracy while training](vision.png)", ""]
    return "\n".join(lines)


def curves(data, workdir, path):
    """k-NN accuracy during training: mean over seeds, and the spread between the least and the best."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for i, name in enumerate(RUNS):
        by_step = {}
        for seed in range(data.seeds):
            text = (workdir / data.name / name / str(seed) / "metrics.jsonl").read_text()
            for row in map(json.loads, text.splitlines()):
                if "valid/knn" in row:
                    by_step.setdefault(row["step"], []).append(100 * row["valid/knn"])
        steps = sorted(by_step)
        middle_line = [statistics.mean(by_step[s]) for s in steps]
        axis.plot(steps, middle_line, marker="o", markersize=3, color=f"C{i}", label=name)
        low, high = ([pick(by_step[s]) for s in steps] for pick in (min, max))
        axis.fill_between(steps, low, high, color=f"C{i}", alpha=0.15, linewidth=0)
    axis.set(xlabel="step (125 pictures each)", ylabel="k-NN accuracy (%), 5,000 and 2,000 pictures", title=data.title)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    cli.run(main)
