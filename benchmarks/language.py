"""Compare the text objectives at equal text: train, test, tabulate. It goes on where it was stopped.

    python -m benchmarks.language --text=novels.zip --blimp=blimp.zip --clinc=DIR --workdir=/tmp/language

--text is a corpus whose names begin with train/, valid/ or test/, --blimp a zip of BLiMP's files, --clinc holds
CLINC150's data_full.json. The corpus is prepared once, with one vocabulary for all. Each run is an ordinary one:
`launch.train` on runs/small/text_NAME.gin, then `launch.evaluate` with minimal pairs and probes. The page and the
picture beside it are written anew after each run, of what has run so far; --part=none writes them alone.

Each part stands alone: objectives; masking, how much masked_lm hides; compute, those of MATCHED for as many steps as
cost what next_token costs. With --seeds=3 all that is there stays, and what is missing of three seeds is run: of the
main objectives and of the parts, while the others have one.
"""

import dataclasses
import functools
import json
import math
import statistics
import textwrap
import time

from absl import flags

from benchmarks.compare import cell, command, curve, evaluate, save, table, there, train
from benchmarks.machine import processor
from launch.results import runs as results
from launch.run import cli
from paradigm.capabilities import HasModel, ask
from paradigm.errors import choose
from paradigm.storage import expand

PREPARED = ("--tokenizer=sentencepiece:4096", "--specials=mask,nlu,nlg,s2s", "--window=128")
SPLITS = ("--valid_glob=valid/*", "--exclude=test/*")
PAIRS = 20  # of each of BLiMP's paradigms
TEXTS = 7500  # of CLINC150's training texts, half; all 4,500 test texts
PARTS = ("objectives", "masking", "compute")


@dataclasses.dataclass(frozen=True)
class Run:
    """A row. name: of runs/small/text_NAME.gin. model: whose kind it is. baseline: of its bits, by counting. bits:
    metrics, each with what it is of. pairs: whether it ranks minimal pairs. main: whether it has all the seeds."""

    name: str
    model: str
    baseline: str = "unigram"
    bits: tuple = (("bits_per_byte", ""),)
    pairs: bool = False
    main: bool = False


DECODER, ENCODER, BOTH = "Decoder", "Encoder", "EncoderDecoder"
RUNS = (
    Run("next_token", DECODER, "bigram", (("bits_per_byte", "all"),), True, True),
    Run("prefix_lm", DECODER, "bigram", (("bits_per_byte", "behind a prefix"),), True, True),
    Run("masked_lm", ENCODER, "unigram", (("bits_per_byte", "hidden"),), True, True),
    Run("span_corruption", BOTH, "unigram", (("bits_per_byte", "hidden spans"),), True, True),
    Run("bart", BOTH, "unigram", (("bits_per_byte", "all, most of it read"),), True, True),
    Run("ul2", BOTH, "unigram", (("bits_per_byte", "hidden spans"),), True, True),
    Run("electra", ENCODER, "unigram", (("generator/bits_per_byte", "hidden, its generator"),), False, True),
    Run("antlm", DECODER, "unigram", (("causal/bits_per_byte", "all"), ("masked/bits_per_byte", "hidden")), True),
    Run("mntp", DECODER, "unigram", (("bits_per_byte", "hidden"),), True),
    Run("gpt_bert", DECODER, "unigram", (("bits_per_byte", "all and hidden, half each"),), True),
    Run("multi_token", DECODER, "bigram", (("bits_per_byte", "all"),), True),
    Run("mutor", DECODER, "bigram", (("bits_per_byte", "all"),), True),
    Run("goldfish", DECODER, "bigram", (("bits_per_byte", "all"),), True),
    Run("slm", ENCODER, "unigram", (("bits_per_byte", "replaced"),), True),
    Run("rts", ENCODER, "", (), False),
    Run("c_rts", ENCODER, "", (), False),
    Run("position_prediction", ENCODER, "", (), False),
    Run("spactor", BOTH, "unigram", (("spans/bits_per_byte", "hidden spans"),), True),
    Run("pegasus", BOTH, "unigram", (("bits_per_byte", "sentences taken out"),), True),
)
MASKING = {  # name -> (title, bindings) of masked_lm
    "masked_lm": ("15 %", ()),
    "masked_lm_30": ("30 %", ("MaskedLM.rate = 0.3",)),
    "masked_lm_30_15": (
        "30 % falling to 15 %",
        ("MaskedLM.rate = @rate/Linear()", "rate/Linear.peak = 0.3", "rate/Linear.final = 0.15"),
    ),
}
MATCHED = {f"{name}_flops": name for name in ("masked_lm", "span_corruption", "electra", "spactor")}
UNTRAINED = {DECODER: "next_token", ENCODER: "masked_lm", BOTH: "span_corruption"}  # whose probe of it stands for all


def main(argv):
    del argv
    root, start, names = expand(WORKDIR.value).resolve(), time.time(), {run.name: run for run in RUNS}
    chosen = [choose("--objectives", name, names) for name in OBJECTIVES.value]
    prepared, out = root / "text", expand(OUT.value)
    command("launch.prepare", f"--source={there(TEXT.value)}", f"--out={prepared}", *PREPARED, *SPLITS)
    out.mkdir(parents=True, exist_ok=True)

    def do(run, name, seed, bindings=()):
        place = root / name / str(seed)
        if (place / "scores.json").exists():
            return
        print(f"{name} · seed {seed} · {time.time() - start:.0f} s", flush=True)
        own = (f"TextData.source = '{prepared}'", f"Experiment.seed = {seed}", *GIN_PARAM.value)
        train(f"text_{run.name}", place, (*own, *bindings))
        evaluate(place, "scores", tests(run, name, seed))
        write(out, root)

    for seed in range(SEEDS.value):
        for run in chosen if "objectives" in PART.value else ():
            if run.main or not seed:
                do(run, run.name, seed)
        for name, (_, more) in MASKING.items() if "masking" in PART.value else ():
            do(names["masked_lm"], name, seed, more)
        for name, base in MATCHED.items() if "compute" in PART.value else ():
            for needed in ("next_token", base):
                do(names[needed], needed, seed)
            given, own = (results.read(root / which / str(seed)) for which in ("next_token", base))
            steps = round(own.total_steps * flops(given) / flops(own))
            do(names[base], name, seed, (f"Experiment.total_steps = {steps}",))
    write(out, root)
    print(json.dumps({"wrote": str(out / "language.md"), "seconds": round(time.time() - start)}))


def tests(run, name, seed):
    """Bindings of a run's evaluation. name: of its directory."""
    random = UNTRAINED[run.model] == name
    each = [*([f"@{run.baseline.title()}Baseline()"] if run.baseline else []), "@TextProbes()"]
    bindings = [f"TextProbes.source = '{there(CLINC.value) / 'data_full.json'}'", f"TextProbes.random = {random}"]
    bindings += [f"TextProbes.texts = {TEXTS}", "TextProbes.methods = ('linear',)", f"TextProbes.seed = {seed}"]
    if run.pairs:
        each += ["@MinimalPairs()"]
        bindings += [f"MinimalPairs.path = '{there(BLIMP.value)}'", f"MinimalPairs.pairs = {PAIRS}"]
    if name.startswith("masked_lm"):
        bindings += ["MaskedLM.rate = 0.15"]  # what is hidden from all of them alike
    return (*bindings, f"Experiment.evaluators = ({', '.join(each)},)")


# ---- The page --------------------------------------------------------------------------------------------------------


SETTING = """
Every run read {tokens:.2f} million tokens, {steps} steps of {batch} windows of 128, of 23 British novels (28 MB; *Hard
Times* is held out), in one SentencePiece vocabulary of 4,096 ids. All models are of one kind (layers x width stand
beside them): rotary positions, RMSNorm, gated SiLU, one table for tokens and output; encoders norm what they embed, as
BERT's do. All have one optimizer and one schedule: Muon, a cosine from 0.02, which next_token and masked_lm chose in
short runs at 0.02 and 0.04. What differs is the objective, and with it what of the text is predicted (a masked model:
15 %) and the model FLOPs of a run, three times those of the forward products, as the step itself counts them. Run
files: gin_configs/runs/small/text_*.gin.
"""
HARDWARE = """
Hardware: {processor}, 2 cores, float32. Minutes are those of the training steps alone, on a machine that others used
too: compare FLOPs.
"""
MEANING = """
Bits per byte are of the held-out bytes that the objective predicts: only those that predict the same compare. Beside
them is what counting words (unigram) or pairs of words (bigram) in the training text reaches on the same bytes. BLiMP:
of {pairs} pairs of each of its 67 paradigms, percent whose good sentence the model finds likelier (chance 50;
the standard error of 1,340 pairs is 1.4), a causal one by likelihood, a masked one by pseudo-likelihood, as one that
writes what is hidden, with each token hidden in turn (pegasus writes the whole sentence); empty where a model gives
sentences none. CLINC150: accuracy in percent of a linear probe of the mean of the tokens' last hidden states,
{texts:,} training texts, all 4,500 test texts, 150 intents (chance 0.7).
"""


def write(out, root):
    """language.md and language.png of all that has ended."""
    found = {name: ended(root, name) for name in (*(run.name for run in RUNS), *MASKING, *MATCHED)}
    save(out / "language.md", "\n".join(report(found)))
    picture(found, out / "language.png")


def picture(found, path):
    """Bits per byte while training, a panel for those that read from the left and one for the others."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(13, 4.5), layout="constrained")
    for axis, title, decoders in zip(axes, ("Decoders", "Encoders and EncoderDecoders"), (True, False)):
        shown = [run for run in RUNS if run.bits and found[run.name] and (run.model == DECODER) == decoders]
        for i, run in enumerate(shown):
            places = [one.path for one, _ in found[run.name]]
            curve(axis, places, run.bits[0][0], label=f"{run.name}: {run.bits[0][1]}", color=f"C{i}")
        axis.set(xlabel="step", ylabel="bits per byte of what is predicted, held out", title=title)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))  # beside the curves, not on them
    figure.savefig(path, dpi=110)


def ended(root, name):
    """[(Run of launch.results, its scores)] of the seeds that have been trained and tested."""
    places = [root / name / str(seed) for seed in range(SEEDS.value)]
    return [
        (results.read(p), json.loads((p / "scores.json").read_text())) for p in places if (p / "scores.json").exists()
    ]


def experiment(one):
    """The Experiment of a Run of launch.results, its objective bound to the text's vocabulary."""
    from launch.run import registry
    from launch.run.data import vocabulary_of_run
    from launch.run.experiment import bound

    config = one.path / "config.gin"
    return bound(registry.parse_text(config.read_text("utf-8"), (), str(config)), vocabulary_of_run(one.path))


def flops(one):
    """Model FLOPs of all steps of a Run of launch.results."""
    e = experiment(one)
    each = {phase: e.objective.flops(e.objective.batch_spec(e.batch_size, phase)) for phase in e.objective.phases()}
    return sum(each[e.objective.phase(step)] for step in range(e.total_steps))


def size(one):
    """As in 'Decoder, 4 x 128': the kind of its model, layers and width."""
    model = ask(HasModel, experiment(one).objective, "the page").objective.model
    kind = type(model).__name__
    return f"{kind}, {f'{model.layers} + ' if kind == BOTH else ''}{model.layers} x {model.d_model}"


plain = functools.partial(cell, scale=1.0, digits=2)  # of bits, nats and minutes


def of(found, key):
    return [scores[key] for _, scores in found if key in scores]


def own_loss(run, found):
    """(cells of its loss, of its baseline, of what that is of)."""
    if run.name == "position_prediction":  # nats a place, beside those of pointing at all places alike
        chance = plain(of(found, "position_chance"), digits=3)
        return f"{plain(of(found, 'loss'), digits=3)} nats", f"{chance} nats", "places of shuffled tokens"
    if run.name in ("rts", "c_rts"):  # nats a token, beside those of knowing the share of replaced tokens alone
        base = [-p * math.log(p) - (1 - p) * math.log(1 - p) for p in of(found, "replaced")]
        return f"{plain(of(found, 'loss'), digits=3)} nats", f"{plain(base, digits=3)} nats", "replaced or not, all"
    losses = [plain(of(found, key)) for key, _ in run.bits]
    return ", ".join(losses), plain(of(found, f"{run.baseline}/bits_per_byte")), ", ".join(what for _, what in run.bits)


def row(run, found):
    first = found[0][0]
    loss, baseline, what = own_loss(run, found)
    minutes = [one.step_seconds * one.total_steps / 60 for one, _ in found]
    return [
        f"`{run.name}`",
        size(first),
        str(len(found)),
        f"{first.parameters['all'] / 1e6:.2f}",
        f"{flops(first) / 1e12:.1f}",
        plain(minutes, digits=1),
        what,
        loss,
        f"{run.baseline} {baseline}" if run.baseline else baseline,
        cell(of(found, "minimal_pairs")),
        cell(of(found, "probe/linear")),
    ]


def report(found):
    """The page's lines. found: name -> as `ended` gives it."""
    done = [run for run in RUNS if found[run.name]]
    if not done:
        return ["# What each text objective is worth at equal text", "", "No run has ended yet.", ""]
    first = found[done[0].name][0][0]
    steps, batch = first.total_steps, int(first.setting("batch_size"))
    given = "".join(f' --gin_param="{b}"' for b in GIN_PARAM.value)
    head = ["objective", "model", "seeds", "M parameters", "TFLOPs", "minutes", "bits of", "bits per byte"]
    head += ["by counting", "BLiMP", "CLINC150"]
    known = {model: of(found[name], "probe/random/linear") for model, name in UNTRAINED.items()}
    facts = {"tokens": steps * batch * 128 / 1e6, "steps": steps, "batch": batch}
    facts |= {"pairs": PAIRS, "texts": TEXTS, "processor": processor()}
    setting, hardware, meaning = (" ".join(text.format(**facts).split()) for text in (SETTING, HARDWARE, MEANING))
    untrained = [f"{model} {cell(numbers)}" for model, numbers in known.items() if numbers]
    command_line = "python -m benchmarks.language --text=novels.zip --blimp=blimp.zip --clinc=DIR --workdir=DIR"
    return [
        "# What each text objective is worth at equal text",
        "",
        *paragraph(setting),
        f"    {command_line} --seeds={SEEDS.value}{given}",
        "",
        *paragraph(hardware),
        "## Objectives",
        "",
        *table(head, [row(run, found[run.name]) for run in done]),
        *paragraph(
            f"{meaning} The same probe of an untrained model: {', '.join(untrained)}{above(done, found, known)}."
        ),
        *paragraph(state(done, found)),
        "![bits per byte while training](language.png)",
        "",
        *masking(found),
        *antlm(found),
        *compute(found),
    ]


def above(done, found, known):
    """Which objectives' probes are above that of their untrained model."""
    mean = lambda numbers: statistics.mean(numbers) if numbers else math.nan
    better = [r.name for r in done if mean(of(found[r.name], "probe/linear")) > mean(known[r.model])]
    return f"; above it: {', '.join(better) or 'none, after so little text'}"


def state(done, found):
    """What the reader should not read into the table."""
    single = all(len(found[run.name]) == 1 for run in done)
    missing = ", ".join(run.name for run in RUNS if run not in done)
    lines = ["One seed a row says nothing of the spread over seeds."] if single else []
    return " ".join([*lines, *([f"Not run yet: {missing}."] if missing else [])])


def paragraph(text):
    """Lines of it, and an empty one; none of an empty text."""
    return [*textwrap.wrap(text, 120, break_long_words=False, break_on_hyphens=False), ""] if text else []


def masking(found):
    """The part on the share of hidden tokens."""
    rows = [
        [title, str(len(found[name])), *(shown(of(found[name], key)) for key, shown in MASKING_METRICS)]
        for name, (title, _) in MASKING.items()
        if found[name]
    ]
    if len(rows) < 2:
        return []
    head = ["hidden in training", "seeds", "bits per byte at 15 %", "BLiMP", "CLINC150"]
    return ["## How much to hide: masked_lm", "", *table(head, rows)]


MASKING_METRICS = (("bits_per_byte", plain), ("minimal_pairs", cell), ("probe/linear", cell))


def antlm(found):
    """The part on turns of causal and masked steps."""
    wanted = {"next_token": ("bits_per_byte", None), "mntp": (None, "bits_per_byte")}
    wanted |= {"antlm": ("causal/bits_per_byte", "masked/bits_per_byte")}
    if not all(found[name] for name in wanted):
        return []
    head = [
        "steps",
        "seeds",
        "bits per byte of all, from the left",
        "of what is hidden, both sides",
        "BLiMP",
        "CLINC150",
    ]
    titles = {"next_token": "causal alone", "mntp": "masked alone", "antlm": "by turns, half of each"}
    cells = lambda name: [plain(of(found[name], key)) if key else "" for key in wanted[name]]
    last = lambda name: [cell(of(found[name], key)) for key in ("minimal_pairs", "probe/linear")]
    rows = [[titles[name], str(len(found[name])), *cells(name), *last(name)] for name in wanted]
    return ["## Causal and masked by turns, on one Decoder: antlm", "", *table(head, rows)]


def compute(found):
    """The part on equal model FLOPs."""
    pairs = [(base, name) for name, base in MATCHED.items() if found[base] and found[name]]
    if not pairs or not found["next_token"]:
        return []
    kinds = {run.name: run for run in RUNS}
    rows = []
    for base, name in [("next_token", "next_token"), *pairs]:
        loss, _, what = own_loss(kinds[base], found[name])
        last = [cell(of(found[name], key)) for key in ("minimal_pairs", "probe/linear")]
        one = found[name][0][0]
        rows.append(
            [f"`{base}`", str(len(found[name])), str(one.total_steps), f"{flops(one) / 1e12:.1f}", what, loss, *last]
        )
    head = ["objective", "seeds", "steps", "TFLOPs", "bits of", "bits per byte", "BLiMP", "CLINC150"]
    return ["## At equal model FLOPs: more steps for what costs less", "", *table(head, rows)]


if __name__ == "__main__":
    TEXT = flags.DEFINE_string("text", None, "The corpus, with train/, valid/ and test/.", required=True)
    BLIMP = flags.DEFINE_string("blimp", None, "BLiMP's files in a zip or a folder.", required=True)
    CLINC = flags.DEFINE_string("clinc", None, "Where CLINC150's data_full.json is.", required=True)
    WORKDIR = flags.DEFINE_string("workdir", None, "Where the runs go and stay.", required=True)
    SEEDS = flags.DEFINE_integer("seeds", 1, "Seeds of the main objectives and of the parts.", lower_bound=1)
    PART = flags.DEFINE_multi_enum("part", list(PARTS), [*PARTS, "none"], "What to run; none writes the page alone.")
    OBJECTIVES = flags.DEFINE_list("objectives", [run.name for run in RUNS], "Those of the part `objectives`.")
    GIN_PARAM = flags.DEFINE_multi_string("gin_param", [], "A binding for every run: 'Experiment.total_steps = 4000'.")
    OUT = flags.DEFINE_string("out", "docs/results", "Where the table and the picture go.")
    cli.run(main)
