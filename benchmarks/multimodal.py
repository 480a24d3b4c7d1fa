"""Compare CLIP and SigLIP on small pairs: train, test, tabulate. It goes on where it was stopped.

    python -m benchmarks.multimodal --emoji=DIR --workdir=/tmp/pairs

--emoji holds emoji.tsv and a zip of drawings for each of three designers. The towers are trained on two of them, and
tested on concepts held out whole, and on the third designer's drawings of those and of the concepts trained on. The
drawn scenes of `shapes` ask for pairs of colour and shape that no training scene has. Each run is an ordinary one:
`launch.train`, then `launch.evaluate` with multimodal/zero_shot.py. Writes docs/results/multimodal.md and the picture
beside it.
"""

import json
import time

from absl import flags

from benchmarks.compare import cell, curves, evaluate, table, there, train
from benchmarks.machine import processor
from launch.run import cli
from paradigm.storage import expand

RUNS = ("clip", "siglip")
SPLITS = {
    "valid": "Designers trained on, concepts held out",
    "test": "Third designer, concepts trained on",
    "test_unseen": "Third designer, concepts held out",
}
METRICS = {
    "zero_shot": "zero-shot, image → text R@1",  # names are the captions: the two are one
    "image_to_text@10": "R@10",
    "text_to_image@1": "text → image R@1",
    "text_to_image@10": "R@10",
}
APART = tuple(  # each colour and each shape is seen, never these together
    f"{colour} {shape}"
    for colour, shape in zip(
        ("red", "green", "blue", "yellow", "purple"), ("circle", "square", "triangle", "star", "ring")
    )
)
SCENES = (
    "PairData.source = 'shapes'",
    "PairData.label = 'pair'",
    "PairData.tokenizer = 'sentencepiece:340'",
    "PairData.shapes = @Shapes()",
    "Shapes.size = 32",
    f"Shapes.exclude = {APART}",
)
WHOLE = ("{run}_text.length = 64", "{run}_views.scale = (0.9, 1.0)", "{run}_views.jitter = 0.0")  # captions name all


def main(argv):
    del argv
    root, start, found = expand(WORKDIR.value).resolve(), time.time(), {}
    source = there(EMOJI.value) / "emoji.tsv"
    place = lambda data, run, seed: root / data / run / str(seed)
    tell = lambda *what: print(" · ".join(map(str, what)), f"· {time.time() - start:.0f} s", flush=True)
    for seed in range(SEEDS.value):
        for run in RUNS:
            tell("emoji", run, f"seed {seed}")
            own = (f"PairData.source = 'tsv:{source}'", f"Experiment.seed = {seed}", *GIN_PARAM.value)
            train(run, place("emoji", run, seed), own)
            found["emoji", run, seed] = evaluate(place("emoji", run, seed), "scores", emoji_tests(seed))
            tell("shapes", run, f"seed {seed}")
            own = (*SCENES, *(line.format(run=run) for line in WHOLE), f"Experiment.seed = {seed}", *GIN_PARAM.value)
            train(run, place("shapes", run, seed), own)
            found["shapes", run, seed] = evaluate(place("shapes", run, seed), "scores", shapes_tests(seed))
    out = expand(OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    directories = {run: [place("emoji", run, seed) for seed in range(SEEDS.value)] for run in RUNS}
    what = "image → text R@10 (%), concepts held out"
    labels = {"xlabel": "step (128 pairs each)", "ylabel": what, "title": "Drawings, names and tags"}
    curves(directories, "image_to_text@10", labels, out / "multimodal.png")
    (out / "multimodal.md").write_text(report(found))
    print(json.dumps({"wrote": str(out / "multimodal.md"), "seconds": round(time.time() - start)}))


def emoji_tests(seed):
    """Bindings: retrieval, and classification among the names of the concepts that a split shows."""
    each = [f"@{split}/{name}()" for split in SPLITS for name in ("Retrieval", "ZeroShot")]
    bindings = [f"Experiment.evaluators = ({', '.join(each)})", "PairData.label = 'name'"]
    for split in SPLITS:
        bindings += [f"{split}/Retrieval.split = '{split}'", f"{split}/Retrieval.seed = {seed}"]
        bindings += [f"{split}/Retrieval.random = True", f"{split}/ZeroShot.split = '{split}'"]
        bindings += [f"{split}/ZeroShot.name = '{prefix(split)}zero_shot'", f"{split}/ZeroShot.seed = {seed}"]
        bindings += [f"{split}/ZeroShot.present = True", f"{split}/ZeroShot.templates = ('plain',)"]
    return bindings


def prefix(split):
    """Of the names of a split's metrics."""
    return "" if split == "valid" else f"{split}/"


def shapes_tests(seed):
    """Bindings: of which colour and shape the largest thing is, in scenes of known pairs and of held-out ones."""
    bindings = ["Experiment.evaluators = (@valid/ZeroShot(), @test/ZeroShot())"]
    for split in ("valid", "test"):
        bindings += [f"{split}/ZeroShot.split = '{split}'", f"{split}/ZeroShot.name = '{split}/zero_shot'"]
        bindings += [f"{split}/ZeroShot.templates = ('shapes',)", f"{split}/ZeroShot.seed = {seed}"]
    return bindings


def values(found, data, run, key):
    """A number of every seed of a run; 'chance' and 'random init' are CLIP's towers' (SigLIP's are alike)."""
    if run in ("chance", "random init"):
        run, key = "clip", f"{run.split()[0]}/{key}"
    return [found[data, run, seed][key] for seed in range(SEEDS.value) if key in found[data, run, seed]]


def report(found):
    """The page, as markdown."""
    steps = next((int(b.split("=")[1]) for b in GIN_PARAM.value if b.startswith("Experiment.total_steps")), 800)
    rows = ("chance", "random init", *RUNS)
    lines = [
        "# Image and text: CLIP and SigLIP at equal pairs seen",
        "",
        f"Every run saw {128 * steps:,} pairs ({steps} steps of 128) at 32 x 32 pixels. Percent; mean and",
        f"standard deviation over {SEEDS.value} seeds. A ViT of 3 layers of width 96, a text tower of 2 layers of",
        "width 64; random init is the same towers untrained. Run files: gin_configs/runs/small.",
        "",
        "    python -m benchmarks.multimodal --emoji=DIR --workdir=DIR"
        + "".join(f' --gin_param="{b}"' for b in GIN_PARAM.value),
        "",
        f"Hardware: {processor()}, 2 cores, float32.",
        "",
        "## Drawings of one concept by three designers",
        "",
        "Trained on the drawings, names and tags of two designers, with a tenth of the concepts (and all their skin",
        "tones) held out. Zero-shot: which of all names in the split a drawing has; R@10: whether it is among ten.",
        "An unseen concept in a style that was seen shares parts with seen ones (a role, a skin tone, a stripe).",
        "Another designer's style is another matter after 5,908 drawings: look at R@10 beside chance.",
        "",
    ]
    for split, title in SPLITS.items():
        row = lambda run, s=split: [run, *(cell(values(found, "emoji", run, prefix(s) + key)) for key in METRICS)]
        lines += [f"### {title}", "", *table(["", *METRICS.values()], [row(run) for run in rows])]
    known = {"valid/zero_shot": "pairs trained on", "test/zero_shot": "pairs held out"}
    row = lambda run: [run, *(cell(values(found, "shapes", run, key)) for key in known)]
    lines += [
        "## Scenes: colours and shapes that never met",
        "",
        "Zero-shot among all 72 pairs of colour and shape, for the largest thing of a scene. Held out of training:",
        f"{', '.join(APART)}.",
        "Their colours and outlines are among the plainest: compare a column with chance, not with the other.",
        "",
        *table(["", *known.values()], [row(run) for run in rows]),
    ]
    return "\n".join([*lines, "![retrieval while training](multimodal.png)", ""])


if __name__ == "__main__":
    EMOJI = flags.DEFINE_string("emoji", None, "Where emoji.tsv and the designers' zips are.", required=True)
    WORKDIR = flags.DEFINE_string("workdir", None, "Where the runs go and stay.", required=True)
    SEEDS = flags.DEFINE_integer("seeds", 3, "Seeds.", lower_bound=1)
    GIN_PARAM = flags.DEFINE_multi_string("gin_param", [], "A binding for every run: 'Experiment.total_steps = 1200'.")
    OUT = flags.DEFINE_string("out", "docs/results", "Where the table and the picture go.")
    cli.run(main)
