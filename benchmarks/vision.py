"""Compare the objectives on small pictures: train, probe, tabulate. It goes on where it was stopped.

    python -m benchmarks.vision --images=DIR --clothing=FILE.zip --workdir=/tmp/vision

--images holds Fashion-MNIST's four idx files, --clothing a zip of train/, validation/ and test/ folders by class. Each
run is an ordinary one: `launch.train` on runs/small/NAME.gin, then `launch.evaluate` with the probes of
vision/probe.py. Writes docs/results/vision.md and the picture beside it.
"""

import dataclasses
import json
import statistics
import time

from absl import flags

from benchmarks.compare import cell, curves, evaluate, table, there, train
from benchmarks.machine import processor
from launch.run import cli
from paradigm.storage import expand

RUNS = ("supervised", "mae", "simclr", "moco_v2", "moco_v3")
PROBES = {"knn": "k-NN", "linear": "linear", "linear_1pct": "1 % of labels"}
WHOLE = ("Probes.train_images = None", "Probes.test_images = None")
PHOTOS = ("channels = 3",)  # there are few of them; as many are seen, with repeats


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
    root, start, found = expand(WORKDIR.value).resolve(), time.time(), {}
    sets = [Data("fashion", "Fashion-MNIST", f"idx:{there(IMAGES.value)}", SEEDS.value)]
    if CLOTHING.value:
        sets.append(Data("clothing", "Clothing photographs", f"zip:{there(CLOTHING.value)}", 1, PHOTOS))
    place = lambda data, run, seed: root / data.name / run / str(seed)
    tell = lambda *what: print(" · ".join(map(str, what)), f"· {time.time() - start:.0f} s", flush=True)
    for data in sets:
        for seed in range(data.seeds):
            for run in RUNS:
                tell(data.name, run, f"seed {seed}")
                found[data.name, run, seed] = scores(data, run, seed, place(data, run, seed))
    fashion = sets[0]
    middle = lambda run: statistics.mean(values(found, fashion, run, "linear"))
    second, best = sorted(RUNS[1:], key=middle)[-2:]
    for run in (best, second):
        for seed in range(fashion.seeds):
            tell("fine-tune", run, f"seed {seed}")
            how = ("Probes.methods = ('finetune',)", f"Probes.seed = {seed}", f"Probes.random = {run == best}")
            tuned = evaluate(place(fashion, run, seed), "finetune", (*WHOLE, *how))
            found[fashion.name, run, seed]["finetune"] = tuned["finetune"]
            if run == best:
                found[fashion.name, "supervised", seed]["random/finetune"] = tuned["random/finetune"]
    out = expand(OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    directories = {run: [place(fashion, run, seed) for seed in range(fashion.seeds)] for run in RUNS}
    what = "k-NN accuracy (%), 5,000 searched"
    labels = {"xlabel": "step (125 pictures each)", "ylabel": what, "title": fashion.title}
    curves(directories, "knn", labels, out / "vision.png")
    (out / "vision.md").write_text(report(sets, found))
    print(json.dumps({"wrote": str(out / "vision.md"), "seconds": round(time.time() - start)}))


def scores(data, run, seed, workdir):
    """{probe: accuracy} of a run, trained and probed unless that is done already."""
    if not (workdir / "scores.json").exists():
        own = (f"ImageData.source = {data.source!r}", f"Experiment.seed = {seed}")
        train(run, workdir, (*own, *data.bindings, *GIN_PARAM.value))
    random = run == "supervised"  # the untrained backbone, which all share, is measured once a seed
    how = (f"Probes.methods = {tuple(PROBES)}", f"Probes.seed = {seed}", f"Probes.random = {random}")
    return evaluate(workdir, "scores", (*WHOLE, *how))


def values(found, data, run, key):
    """A number of every seed of a run; of the untrained backbone for the name 'random init'."""
    if run == "random init":
        run, key = "supervised", f"random/{key}"
    rows = [found[data.name, run, seed] for seed in range(data.seeds)]
    return [row[key] for row in rows if key in row]


def report(sets, found):
    """The page, as markdown."""
    steps = next((int(b.split("=")[1]) for b in GIN_PARAM.value if b.startswith("Experiment.total_steps")), 1200)
    lines = [
        "# What a small encoder knows after each objective",
        "",
        f"Every run saw {125 * steps:,} pictures ({steps} steps of 125), each view of one counted once. Accuracy in",
        "percent on the test pictures; mean and standard deviation over seeds. Random init is the same backbone",
        "untrained, under the same probes; vision/probe.py is their protocol. All have one backbone, a ViT of 3 layers",
        "of width 96 in patches of 7; photographs are read at 28 x 28. Run files: gin_configs/runs/small.",
        "",
        "Fine-tune is 500 steps of 128 labelled pictures under the objective's own first view: short, and under",
        "contrastive views hard, so that it stays below a linear probe; its random-init row is the same from scratch.",
        "",
        "    python -m benchmarks.vision --images=DIR --clothing=FILE.zip --workdir=DIR"
        + "".join(f' --gin_param="{b}"' for b in GIN_PARAM.value),
        "",
        f"Hardware: {processor()}, 2 cores, float32.",
        "",
    ]
    for data in sets:
        keys = PROBES | ({"finetune": "fine-tune"} if data is sets[0] else {})
        lines += [f"## {data.title}, {'one seed' if data.seeds == 1 else f'{data.seeds} seeds'}", ""]
        row = lambda run, data=data, keys=keys: [run, *(cell(values(found, data, run, key)) for key in keys)]
        lines += table(["objective", *keys.values()], [row(run) for run in ("random init", *RUNS)])
    return "\n".join([*lines, "![k-NN accuracy while training](vision.png)", ""])


if __name__ == "__main__":
    IMAGES = flags.DEFINE_string("images", None, "Where Fashion-MNIST's idx files are.", required=True)
    CLOTHING = flags.DEFINE_string("clothing", None, "A zip of clothing photographs; left out when not given.")
    WORKDIR = flags.DEFINE_string("workdir", None, "Where the runs go and stay.", required=True)
    SEEDS = flags.DEFINE_integer("seeds", 3, "Seeds on Fashion-MNIST; the photographs have one.", lower_bound=1)
    GIN_PARAM = flags.DEFINE_multi_string("gin_param", [], "A binding for every run: 'Experiment.total_steps = 1200'.")
    OUT = flags.DEFINE_string("out", "docs/results", "Where the table and the picture go.")
    cli.run(main)
