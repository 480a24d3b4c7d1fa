"""Compare the objectives on small pictures: train, probe, tabulate. It goes on where it was stopped.

    python -m benchmarks.vision --photos=FILE.zip --workdir=DIR                           every objective, one seed
    python -m benchmarks.vision --photos=FILE.zip --workdir=DIR --only=mae,dino --seeds=3 two more of these
    python -m benchmarks.vision --photos=FILE.zip --workdir=DIR --part=studies            the smaller questions

--photos holds train/ and test/ folders by class (EuroSAT), --images the four idx files of Fashion-MNIST, for a second
and shorter table. Each run is an ordinary one: `launch.train` on runs/small/NAME.gin, then `launch.evaluate` with the
probes of vision/probe.py; what is done is not done again. docs/results/vision.md and the picture beside it are written
after every run, of all that is there by then.
"""

import dataclasses
import functools
import json
import re
import statistics
import time

from absl import flags

from benchmarks.compare import cell, chosen, curves, evaluate, save, table, there, train
from benchmarks.machine import processor
from benchmarks.vision_studies import FLOPS, STUDIES, UNIT, variant
from launch.run import cli, registry
from launch.run.experiment import bound
from paradigm.storage import expand

HIDDEN = ("mae", "simmim", "beit", "maskfeat", "data2vec", "i_jepa", "aim")
JOINT = ("simclr", "moco_v3", "byol", "barlow_twins", "vicreg", "swav", "dino", "ibot", "dinov2")
PROBES = {"knn": "k-NN", "linear": "linear", "linear_10pct": "10 % of labels", "linear_1pct": "1 %"}
WHOLE = ("Probes.train_images = None", "Probes.test_images = None")
GREY = ("size = 28", "patch = 7", "channels = 1", "mean = (0.286,)", "std = (0.353,)")  # of its training pictures
PATCHES_OF_7 = {  # what is a multiple of a patch, or divides it
    "maskfeat": ("MaskFeat.cell = 7", "MaskFeat.window = 7"),
    "swav": ("swav_views.local_size = 14",),
    **dict.fromkeys(("dino", "ibot", "dinov2"), ("dino_views.local_size = 14",)),
}
CLASSES = 10  # of land, and of clothes
UNTRAINED = "untrained "  # before the name of a run: its backbone as it was drawn
STUDIED = dict.fromkeys(run.removeprefix(UNTRAINED) for study in STUDIES for run in study.rows.values())
TUNED = ("supervised", *HIDDEN, *JOINT, *(run for study in STUDIES if study.finetune for run in study.rows.values()))


@dataclasses.dataclass(frozen=True)
class Data:
    """A data set of the comparison. source: as ImageData's. runs: which. bindings: what its runs have else."""

    name: str
    title: str
    source: str
    runs: tuple
    bindings: tuple = ()


def main(argv):
    del argv
    start, root = time.time(), expand(WORKDIR.value).resolve()
    sets = [Data("eurosat", "EuroSAT", f"zip:{there(PHOTOS.value)}", ("supervised", *HIDDEN, *JOINT))]
    if IMAGES.value:
        sets.append(Data("fashion", "Fashion-MNIST", f"idx:{there(IMAGES.value)}", (*sets[0].runs, "moco_v2"), GREY))
    asked = {data: [*(data.runs if "objectives" in PART.value else ())] for data in sets}
    asked[sets[0]] += STUDIED if "studies" in PART.value else ()
    only = chosen(ONLY.value, tuple(dict.fromkeys(run for runs in asked.values() for run in runs)))
    tell = lambda *what: print(" · ".join(map(str, what)), f"· {time.time() - start:.0f} s", flush=True)
    for seed in range(SEEDS.value):
        for data in sets:
            for run in (run for run in only if run in asked[data]):
                tell(data.name, run, f"seed {seed}")
                probe(root, data, run, seed)
                write(root, sets)
                if data is sets[0] and TUNE.value and run in TUNED:
                    tell("fine-tune", run, f"seed {seed}")
                    finetune(root, data, run, seed)
                    write(root, sets)
    print(json.dumps({"wrote": str(write(root, sets)), "seconds": round(time.time() - start)}))


def place(root, data, run, seed):
    return root / data.name / run / str(seed)


def trained(root, data, run, seed):
    """Where a run is, trained; what it begins with before it."""
    kind, workdir = variant(run), place(root, data, run, seed)
    own = [f"ImageData.source = {data.source!r}", f"Experiment.seed = {seed}", *bindings(data, run)]
    own += GIN_PARAM.value
    if kind.reads:
        own.append(f"Init.path = '{trained(root, data, kind.reads, seed)}'")
    train(kind.run, workdir, own)
    return workdir


def probe(root, data, run, seed):
    """Trains a run and probes it, unless that is done already."""
    workdir = place(root, data, run, seed)
    if not (workdir / "scores.json").exists():
        trained(root, data, run, seed)
    random = run in ("supervised", "supervised_resnet")  # an untrained backbone, which all share, once a seed
    how = (f"Probes.methods = {tuple(PROBES)}", f"Probes.seed = {seed}", f"Probes.random = {random}")
    evaluate(workdir, "scores", (*WHOLE, *how))
    if run == "supervised":  # as the curves are measured
        evaluate(workdir, "start", ("Probes.random = True", f"Probes.seed = {seed}"))


def finetune(root, data, run, seed):
    """Trains all of a run's network on labels, for as many pictures as it saw in the run."""
    experiment = setting(data, run)
    long = (f"Probes.finetune_steps = {experiment.total_steps}", f"Probes.finetune_batch = {experiment.batch_size}")
    how = ("Probes.methods = ('finetune',)", f"Probes.seed = {seed}", f"Probes.random = {run == 'supervised'}")
    evaluate(place(root, data, run, seed), "finetune", (*WHOLE, *how, *long))


def found(root, data, run, name, *seeds):
    """[what is kept as NAME.json] of the seeds that have it; of all without any named."""
    files = [place(root, data, run, seed) / f"{name}.json" for seed in seeds or range(100)]
    return [json.loads(file.read_text()) for file in files if file.exists()]


def values(root, data, run, key):
    """A number of every seed that has it."""
    if run.startswith(UNTRAINED):
        run, key = run.removeprefix(UNTRAINED), f"random/{key}"
    return [row[key] for name in ("scores", "finetune") for row in found(root, data, run, name) if key in row]


def bindings(data, run):
    """What a run sets beside its file on these data."""
    own = [*data.bindings, *variant(run).bindings, *(PATCHES_OF_7.get(run, ()) if data.bindings is GREY else ())]
    if run.endswith(FLOPS):
        base = run.removesuffix(FLOPS)
        steps = round(setting(data, UNIT).total_steps * cost(data, UNIT)[1] / cost(data, base)[1])
        own += [f"Experiment.total_steps = {steps}"]
    return own


@functools.cache
def setting(data, run):
    """The Experiment of a run."""
    own = [*bindings(data, run), *GIN_PARAM.value]
    return bound(registry.parse([f"runs/small/{variant(run).run}.gin"], own), classes=range(CLASSES))


@functools.cache
def cost(data, run, unit=1.0):
    """(its views of a picture, in words; model FLOPs of all its steps, as a share of `unit`)."""
    experiment = setting(data, run)
    objective, size = experiment.objective, experiment.objective.encoder.image_size
    small = sum(view.size < size for view in objective.views)
    views = f"{len(objective.views) - small}" + (f" + {small} small" if small else "")
    frozen = [name for name in objective.modules() if any(re.match(at, f"{name}/") for at, _ in experiment.freeze)]
    spec = objective.batch_spec(experiment.batch_size)
    return views, experiment.total_steps * objective.flops(spec, frozen) / unit


def write(root, sets):
    """Writes the page of all that is there, and its picture; returns the page's path."""
    out = expand(OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    data = sets[0]
    done = lambda run: [file.parent for file in sorted((root / data.name / run).glob("*/scores.json"))]
    groups = {"hidden parts to be found": HIDDEN, "views that agree": JOINT}
    groups = {t: {r: done(r) for r in ("supervised", *runs) if done(r)} for t, runs in groups.items()}
    groups = {title: runs for title, runs in groups.items() if runs}
    what = {"xlabel": "step", "ylabel": "k-NN accuracy (%), 4,000 searched"}
    if groups:
        start = [100 * row["random/knn"] for row in found(root, data, "supervised", "start")]
        curves(groups, "knn", what, out / "vision.png", {"random init": statistics.mean(start)} if start else {})
    page = out / "vision.md"
    save(page, report(root, sets))
    return page


def report(root, sets):
    """The page, as markdown."""
    experiment = setting(sets[0], "supervised")
    steps, batch = experiment.total_steps, experiment.batch_size
    flags_given = "".join(f' --gin_param="{b}"' for b in GIN_PARAM.value)
    lines = [
        "# What a small encoder knows after each objective",
        "",
        f"Every run saw {steps * batch:,} pictures ({steps} steps of {batch}), each counted once however many views",
        "were drawn of it. `compute` is the model's FLOPs of the whole run, supervised training as 1: equal pictures",
        "are not equal compute. Accuracy in percent on the test pictures after the last step; `n` seeds, the mean and",
        "the standard deviation where there are several. One backbone for all, a ViT of 3 layers of width 96, AdamW,",
        "cosine; recipes are the papers' scaled down (gin_configs/runs/small). Random init is that backbone untrained,",
        "under the same probes.",
        "vision/probe.py is their protocol; the test pictures choose nothing.",
        "",
        f"    python -m benchmarks.vision --photos=FILE.zip --images=DIR --workdir=DIR{flags_given}",
        "",
        "makes one seed of everything; `--only=mae,dino --seeds=3` adds to these rows, `--part=studies` makes the last",
        "tables alone. A row's run by itself is",
        "`python -m launch.train --gin_file=runs/small/NAME.gin`, as the header of that file says.",
        "",
        f"Hardware: {processor()}, 2 cores, float32.",
        "",
    ]
    for data in sets:
        keys = PROBES | ({"finetune": "fine-tune"} if data is sets[0] else {})
        rows = {"random init": f"{UNTRAINED}supervised", **{run: run for run in data.runs}}
        if shown := compared(root, data, "objective", rows, keys):
            lines += [f"## {data.title}", "", *INTRODUCTIONS[data.name], "", *shown]
            if data is sets[0]:
                lines += ["![k-NN accuracy while training](vision.png)", "", *ranks(root, data)]
    for study in STUDIES:
        keys = PROBES | ({"finetune": "fine-tune"} if study.finetune else {})
        if shown := compared(root, sets[0], study.first, study.rows, keys, least=2):
            lines += [f"### {study.title}", "", *study.text, "", *shown]
    return "\n".join(lines)


def compared(root, data, first, rows, keys, least=1):
    """A table of the runs that are there: {first cell: run}. keys: {score: its column}. [] of fewer than `least`."""
    _, unit = cost(data, "supervised")
    lines = []
    for title, run in rows.items():
        if count := len(values(root, data, run, "knn")):
            views, share = ("", 0) if run.startswith(UNTRAINED) else cost(data, run, unit)
            cells = [cell(values(root, data, run, key)) for key in keys]
            lines.append([title, str(count), views, f"{share:.2g}", *cells])
    return table([first, "n", "views", "compute", *keys.values()], lines) if len(lines) >= least else []


def ranks(root, data):
    """A paragraph on whether two ways of asking put the objectives in one order."""
    from scipy.stats import spearmanr

    scores = {run: [values(root, data, run, key) for key in ("linear", "finetune")] for run in data.runs}
    both = {run: [*map(statistics.mean, found)] for run, found in scores.items() if all(found) and run != "supervised"}
    if len(both) < 4:
        return []
    linear, tuned = zip(*both.values())
    found = f"{spearmanr(linear, tuned).statistic:.2f}"
    text = (
        f"The linear probe and fine-tuning put these {len(both)} in orders whose correlation (Spearman's) is {found}:"
    )
    return [text, f"{', '.join(both)}.", ""]


INTRODUCTIONS = {
    "eurosat": [
        "Satellite photographs of 10 classes of land, 64 pixels, read at 40 in 25 patches: 8,000 to learn from,",
        "2,000 to be tested on. BEiT's tokenizer (`vq`) saw as many pictures again, not counted in its compute.",
        "Fine-tune: everything trained on all labels, as many pictures again; so is its random-init row, from scratch.",
    ],
    "fashion": [
        "Grey pictures of 28 pixels in 16 patches, 60,000 to learn from, 10,000 to be tested on; the same run files.",
    ],
}


if __name__ == "__main__":
    PHOTOS = flags.DEFINE_string("photos", None, "A zip of EuroSAT: train/ and test/ by class.", required=True)
    IMAGES = flags.DEFINE_string("images", None, "Where Fashion-MNIST's idx files are; left out when not given.")
    WORKDIR = flags.DEFINE_string("workdir", None, "Where the runs go and stay.", required=True)
    SEEDS = flags.DEFINE_integer("seeds", 1, "Seeds.", lower_bound=1)
    PART = flags.DEFINE_multi_enum("part", ["objectives", "studies"], ["objectives", "studies"], "What is run.")
    ONLY = flags.DEFINE_list("only", None, "These objectives alone, in this order; what the others reached is kept.")
    TUNE = flags.DEFINE_boolean("finetune", True, "Fine-tune the encoders of the photographs too.")
    GIN_PARAM = flags.DEFINE_multi_string("gin_param", [], "A binding for every run: 'Experiment.total_steps = 500'.")
    OUT = flags.DEFINE_string("out", "docs/results", "Where the table and the picture go.")
    cli.run(main)
