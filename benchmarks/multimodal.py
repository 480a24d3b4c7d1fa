"""Compare the objectives on image and text on small pairs: train, test, tabulate. It goes on where it was stopped.

    python -m benchmarks.multimodal --emoji=DIR --books=DIR --workdir=DIR       every objective, one seed
    ... --only=clip,siglip --seeds=3                                            two more of these

--emoji holds emoji.tsv and a zip of drawings for each of three designers. Models are trained on two of them, and tested
on concepts held out whole, and on the third designer's drawings of those and of the concepts trained on. --books holds
openstax/openstax.tsv and openstax2/openstax2.tsv, each with a zip of pictures of its name beside: figures of textbooks
with their alternative text and caption, some of which are held out. The drawn scenes of `shapes` ask for pairs of
colour and shape that no training scene has. Each run is an ordinary one:
`launch.train`, then `launch.evaluate` with retrieval and classification (multimodal/zero_shot.py) of what embeds both,
captions (multimodal/captions.py) of what writes them, and a linear probe of the scenes' encoders. What is done is not
done again. docs/results/multimodal.md and the pictures beside it are written after every run, of all that is there by
then.
"""

import json
import statistics
import time

from absl import flags

from benchmarks.compare import cell, chosen, curves, evaluate, save, table, there, train
from benchmarks.machine import processor
from launch.run import cli, registry
from paradigm.storage import expand

TOWERS = {
    "clip": "clip_text",
    "siglip": "siglip_text",
    "flip": "clip_text",
    "slip": "clip_text",
    "silc": "clip_text",
    "coca": "coca_text",
}
CAPTIONERS = {"coca": "coca_text", "simvlm": "single_stream", "cappa": "cappa_text"}
READERS = TOWERS | CAPTIONERS  # which of a run's configurables has the captions' length
VIEWS = {"siglip": "siglip_views", "cappa": "siglip_views", "silc": "dino_views"}  # the others have clip_views
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
BOOKS = (
    "Experiment.data = @PairMixture()",
    "PairMixture.parts = (@first/PairData(), @second/PairData())",
    "PairMixture.tokenizer = 'sentencepiece:2048'",
    "PairData.image = 'file'",
    "PairData.image_suffix = ''",
    "PairData.images = ()",
    "PairData.test_images = ()",
    "PairData.text = ('alt', 'caption')",
    "PairData.separator = ''",
    "PairData.group = ''",
    "PairData.label = ''",
    "{reader}.length = 64",
)
SCENES = (
    "PairData.source = 'shapes'",
    "PairData.label = 'pair'",
    "PairData.text = ('caption',)",
    "PairData.tokenizer = 'sentencepiece:340'",
    "PairData.shapes = @Shapes()",
    "Shapes.size = 40",
    f"Shapes.exclude = {APART}",
)
WHOLE = ("{reader}.length = 64", "{views}.scale = (0.9, 1.0)", "{views}.jitter = 0.0")  # captions name all


def main(argv):
    del argv
    root, start = expand(WORKDIR.value).resolve(), time.time()
    sets = {"emoji": ([f"PairData.source = 'tsv:{there(EMOJI.value) / 'emoji.tsv'}'"], emoji_tests)}
    if BOOKS_AT.value:
        two = zip(("first", "second"), ("openstax", "openstax2"))
        places = [f"{k}/PairData.source = 'tsv:{there(BOOKS_AT.value) / name / name}.tsv'" for k, name in two]
        sets["books"] = [*BOOKS, *places], books_tests
    sets["shapes"] = [*SCENES, *WHOLE], shapes_tests
    only = chosen(ONLY.value, tuple(READERS))
    for seed in range(SEEDS.value):
        for data in chosen(DATA.value, tuple(sets), "data"):
            bindings, tests = sets[data]
            for run in only:
                print(f"{data} · {run} · seed {seed} · {time.time() - start:.0f} s", flush=True)
                workdir = root / data / run / str(seed)
                views = VIEWS.get(run, "clip_views")
                own = [line.replace("{reader}", READERS[run]).replace("{views}", views) for line in bindings]
                if not (workdir / "scores.json").exists():
                    train(run, workdir, [*own, f"Experiment.seed = {seed}", *GIN_PARAM.value])
                evaluate(workdir, "scores", tests(run, seed))
                write(root)
    print(json.dumps({"wrote": str(write(root)), "seconds": round(time.time() - start)}))


def emoji_tests(run, seed):
    """Bindings: retrieval, and classification among the names of the concepts that a split shows; captions."""
    tests = []
    for split in SPLITS:
        if run in TOWERS:
            how = {"seed": seed, "random": run == "clip"}  # SigLIP's and CoCa's towers are alike
            tests.append(evaluator("Retrieval", split, **how))
            name = f"{prefix(split)}zero_shot"
            tests.append(evaluator("ZeroShot", split, **how, name=name, present=True, templates=("plain",)))
        if run in CAPTIONERS:
            tests.append(evaluator("Captions", split, seed=seed, images=300))
    return [*together(run, tests), "PairData.label = 'name'"]


def books_tests(run, seed):
    """Bindings: retrieval among the second set's test pictures, and captions of them."""
    tests = []
    if run in TOWERS:
        tests.append(evaluator("Retrieval", "test", seed=seed, random=run == "clip"))
    if run in CAPTIONERS:
        tests.append(evaluator("Captions", "test", seed=seed, images=None))
    return together(run, tests)


def evaluator(kind, split, **settings):
    """(an evaluator of a split, its bindings)."""
    settings = {"split": split, **settings}
    return f"@{split}/{kind}()", [f"{split}/{kind}.{key} = {value!r}" for key, value in settings.items()]


def together(run, tests):
    """Bindings: all of these tests, and bigrams where captions are written."""
    evaluators = [name for name, _ in tests] + ["@BigramCaptions()"] * (run in CAPTIONERS)
    bindings = [binding for _, own in tests for binding in own]
    return [f"Experiment.evaluators = ({', '.join(evaluators)},)", "Experiment.eval_batches = 1000", *bindings]


def prefix(split):
    """Of the names of a split's metrics."""
    return "" if split == "valid" else f"{split}/"


def shapes_tests(run, seed):
    """Bindings: colour and shape of the largest thing, in scenes of known pairs and of held-out ones; captions."""
    tests, random = [], run == "clip"
    for split in ("valid", "test"):
        if run in TOWERS:
            name = f"{prefix(split)}zero_shot"
            tests.append(evaluator("ZeroShot", split, name=name, templates=("shapes",), seed=seed, random=random))
        if run in CAPTIONERS:
            tests.append(evaluator("Captions", split, seed=seed, images=300))
    probes = {"methods": ("linear",), "train_images": 5000, "seed": seed, "random": random}
    return together(run, [*tests, ("@Probes()", [f"Probes.{key} = {value!r}" for key, value in probes.items()])])


def values(root, data, run, key):
    """A number of every seed that has it; 'chance' and 'random init' are CLIP's, 'bigrams' and 'others' CoCa's."""
    standing = {"chance": ("clip", "chance/"), "random init": ("clip", "random/")}
    standing |= {"bigrams": ("coca", "bigram/"), "captions of other pictures": ("coca", "chance/")}
    run, before = standing.get(run, (run, ""))
    rows = [json.loads(file.read_text()) for file in sorted((root / data / run).glob("*/scores.json"))]
    return [row[before + key] for row in rows if before + key in row]


def figure(numbers):
    """A score that is no share: the mean, and the standard deviation over seeds."""
    if not numbers:
        return ""
    spread = f" ± {statistics.stdev(numbers):.2f}" if len(numbers) > 1 else ""
    return f"{statistics.mean(numbers):.2f}{spread}"


def rows(root, data, names, keys, show):
    """[name, seeds, cells...] of those that have been run."""
    found = []
    for name in names:
        each = [values(root, data, name, key) for key in keys]
        if any(each):
            found.append([name, str(max(map(len, each))), *map(show, each)])
    return found


def write(root):
    """Writes the page of all that is there, and its pictures; returns the page's path."""
    out = expand(OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    done = lambda names: {
        run: paths
        for run in names
        if (paths := [f.parent for f in sorted((root / "emoji" / run).glob("*/scores.json"))])
    }
    pictures = (
        ("multimodal", TOWERS, "image_to_text@10", "image → text R@10 (%), concepts held out", 100.0),
        ("captions", CAPTIONERS, "caption_nll", "nats a token of a caption, concepts held out", 1.0),
    )
    shown = []
    for name, runs, key, what, unit in pictures:
        if runs := done(runs):
            labels = {"xlabel": "step", "ylabel": what}
            curves({"Drawings, names and tags": runs}, key, labels, out / f"{name}.png", unit=unit)
            shown.append(f"![{what}]({name}.png)")
    page = out / "multimodal.md"
    save(page, report(root, shown))
    return page


def report(root, pictures):
    """The page, as markdown."""
    experiment = registry.parse(["runs/small/clip.gin"], GIN_PARAM.value)
    steps, batch = experiment.total_steps, experiment.batch_size
    lines = [
        "# Image and text: the objectives at equal pairs seen",
        "",
        f"Every run saw {steps * batch:,} pairs ({steps} steps of {batch}) at 40 x 40 pixels in patches of 8; SLIP",
        "sees two more views of each picture, SILC two large and four small ones, FLIP half of its patches. Percent,",
        "where nothing else is said; `n` seeds, the mean and the standard deviation where there are several. A ViT of",
        "3 layers of width 96, a text tower or decoder of 2 layers of width 64 (CoCa 2 + 2; SimVLM is one transformer",
        "of 3 layers). Run files:",
        "gin_configs/runs/small.",
        "",
        "    python -m benchmarks.multimodal --emoji=DIR --books=DIR --workdir=DIR"
        + "".join(f' --gin_param="{b}"' for b in GIN_PARAM.value),
        "",
        "makes one seed of everything; `--only=clip,siglip --seeds=3` adds to these rows. A row's run by itself is",
        "`python -m launch.train --gin_file=runs/small/NAME.gin`, as the header of that file says.",
        "",
        f"Hardware: {processor()}, 2 cores, float32.",
        "",
        "## Drawings of one concept by three designers",
        "",
        "Trained on the drawings, names and tags of two designers, with a tenth of the concepts (and all their skin",
        "tones) held out. Zero-shot: which of all names in the split a drawing has; R@10: whether it is among ten.",
        "An unseen concept in a style that was seen shares parts with seen ones (a role, a skin tone, a stripe).",
        "Another designer's style is another matter after so few drawings: look at R@10 beside chance.",
        "",
    ]
    for split, title in SPLITS.items():
        keys = [prefix(split) + key for key in METRICS]
        found = rows(root, "emoji", ("chance", "random init", *TOWERS), keys, cell)
        if found:
            lines += [f"### {title}", "", *table(["", "n", *METRICS.values()], found)]
    keys = [
        "caption_nll",
        *(prefix(split) + name for split in ("valid", "test_unseen") for name in ("cider", "rouge_l")),
    ]
    found = rows(root, "emoji", ("bigrams", "captions of other pictures", *CAPTIONERS), keys, figure)
    if found:
        lines += [
            "### Captions of concepts held out",
            "",
            "A name, or name and tags, written by the model (greedy); nats a token are of the drawings' own captions,",
            "for CapPa of those that are predicted from left to right.",
            "",
            *table(["", "n", "nats", "CIDEr", "ROUGE-L", "CIDEr, third designer", "ROUGE-L"], found),
        ]
    ways = {"test/image_to_text@1": "image → text R@1", **{f"test/{key}": METRICS[key] for key in list(METRICS)[1:]}}
    scores = {"caption_nll": "nats", "test/cider": "CIDEr", "test/rouge_l": "ROUGE-L"}
    found = rows(root, "books", ("chance", "random init", *TOWERS), ways, cell)
    told = rows(root, "books", ("bigrams", "captions of other pictures", *CAPTIONERS), scores, figure)
    if found or told:
        lines += [
            "## Figures of textbooks",
            "",
            "Photographs, paintings, maps and drawings of 18 books, 1,963 to learn from and 184 to be tested on, with",
            "their alternative text and their caption, of which training draws one, its first 64 tokens; each is seen",
            f"{steps * batch / 1963:.0f} times. Tests take the alternative text; nats a token are of those of 218",
            "others that were held out.",
            "",
        ]
        lines += table(["", "n", *ways.values()], found) if found else []
        lines += table(["", "n", *scores.values()], told) if told else []
    known = {"zero_shot": "pairs trained on", "test/zero_shot": "pairs held out"}
    zero = rows(root, "shapes", ("chance", "random init", *TOWERS), known, cell)
    written = {"cider": "CIDEr, pairs trained on", "test/cider": "pairs held out"}
    captions = rows(root, "shapes", ("captions of other pictures", *CAPTIONERS), written, figure)
    probes = rows(root, "shapes", ("random init", *READERS), ["linear"], cell)
    if zero or captions:
        lines += [
            "## Scenes: colours and shapes that never met",
            "",
            "Zero-shot among all 72 pairs of colour and shape, for the largest thing of a scene; captions name all.",
            f"Held out of training: {', '.join(APART)}.",
            "Their colours and outlines are among the plainest: compare a column with chance, not with the other.",
            "",
        ]
        lines += table(["", "n", *known.values()], zero) if zero else []
        lines += table(["", "n", *written.values()], captions) if captions else []
        lines += table(["", "n", "linear probe of 5,000 scenes, pairs trained on"], probes) if probes else []
    return "\n".join([*lines, *pictures, ""])


if __name__ == "__main__":
    EMOJI = flags.DEFINE_string("emoji", None, "Where emoji.tsv and the designers' zips are.", required=True)
    BOOKS_AT = flags.DEFINE_string("books", None, "Where openstax and openstax2 are; left out when not given.")
    WORKDIR = flags.DEFINE_string("workdir", None, "Where the runs go and stay.", required=True)
    SEEDS = flags.DEFINE_integer("seeds", 1, "Seeds.", lower_bound=1)
    ONLY = flags.DEFINE_list("only", None, "These objectives alone, in this order; what the others reached is kept.")
    DATA = flags.DEFINE_list("data", None, "Of emoji, books and shapes these alone.")
    GIN_PARAM = flags.DEFINE_multi_string("gin_param", [], "A binding for every run: 'Experiment.total_steps = 1200'.")
    OUT = flags.DEFINE_string("out", "docs/results", "Where the tables and the pictures go.")
    cli.run(main)
