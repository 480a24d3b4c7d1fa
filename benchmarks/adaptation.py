"""Compare adaptations of small pre-trained text models: adapt, score, tabulate. It goes on where it was stopped.

    python -m benchmarks.adaptation --clinc=DIR --wnut=DIR --bases=DIR --workdir=/tmp/adaptation

--clinc holds CLINC150's data_full.json, --wnut WNUT-17's train.conll, dev.conll and test.conll. --bases is the workdir
of benchmarks.language, whose masked language model (an encoder), causal one (a decoder) and span corruption (an
encoder-decoder) are adapted. Each run is an ordinary one: `launch.train` on runs/small/clinc150.gin or wnut17.gin with
a file of gin_configs/adapt. A method's rate is the better of its two on CLINC150's validation split with 10 % of the
labels; scores are of the test splits. docs/results/adaptation.md and the picture beside it are written anew after each
run, of what has run so far; --part=none writes them alone.
"""

import dataclasses
import itertools
import json
import statistics
import time

from absl import flags

from benchmarks.compare import cell, command, evaluate, save, table, there
from benchmarks.machine import processor
from launch.run import cli
from paradigm.storage import expand


@dataclasses.dataclass(frozen=True)
class Method:
    """A row. file: of gin_configs/adapt, "" for a model from scratch. rates: that are tried. biases: whether the model
    is given biases of 0 that its base does not have."""

    name: str
    file: str
    rates: tuple[float, ...]
    biases: bool = False


METHODS = (
    Method("from scratch", "", (1e-3, 3e-3)),
    Method("full fine-tuning", "full", (1e-3, 3e-3)),
    Method("linear probe", "linear_probe", (5e-2, 2e-1)),
    Method("BitFit on new biases", "bitfit", (2e-2, 5e-2), biases=True),
    Method("LoRA", "lora", (1e-2, 3e-2)),
    Method("adapters (Pfeiffer)", "pfeiffer", (1e-2, 3e-2)),
    Method("prefix tuning", "prefix", (2e-2, 1e-1)),
)


@dataclasses.dataclass(frozen=True)
class Model:
    """A pre-trained model. base: its run below --bases. build: the function of gin that makes it. file, pool: what the
    task's run file has in place of its own; None where it is that."""

    name: str
    base: str
    build: str
    file: str | None = None
    pool: str | None = None


ENCODER = Model("encoder", "masked_lm", "bert")
MODELS = (
    ENCODER,
    Model("decoder", "next_token", "gpt", "models/gpt_small_text.gin", "last"),
    Model("encoder-decoder", "span_corruption", "t5", "models/t5_small_text.gin", "mean"),
)
PARTS = ("labels", "models", "entities")
SHARES = (0.01, 0.1, 1.0)
TUNED = 0.1  # of the labels, for the rate and for the table of architectures


@dataclasses.dataclass(frozen=True)
class Task:
    """What is adapted to. run: of runs/small, and the folder of its records. metric: in percent on the page."""

    name: str
    run: str
    metric: str


INTENTS = Task("CLINC150", "clinc150", "accuracy")
ENTITIES = Task("WNUT-17", "wnut17", "entity_f1")


def main(argv):
    del argv
    start, bases = time.time(), there(BASES.value)
    work = Work(expand(WORKDIR.value).resolve(), bases, start)
    write_intents(there(CLINC.value) / "data_full.json", work.root / "data")
    write_entities(there(WNUT.value), work.root / "data")
    rates, found = {}, {}
    for method in METHODS:
        rates[method] = best_rate(work, method)
    cells = {
        "labels": [(INTENTS, ENCODER, share) for share in SHARES],
        "models": [(INTENTS, model, TUNED) for model in MODELS],
        "entities": [(ENTITIES, ENCODER, 1.0)],
    }
    for part in PARTS:
        for seed in range(SEEDS.value):
            for method, (task, model, share) in itertools.product(METHODS, cells[part]):
                run = work.run(task, model, method, rates[method], share, seed, train=part in PART.value)
                found[task, model, method, share, seed] = run
                if part in PART.value:
                    write_page(work, found, rates)
    write_page(work, found, rates)
    print(json.dumps({"wrote": f"{OUT.value}/adaptation.md", "seconds": round(time.time() - start)}))


@dataclasses.dataclass(frozen=True)
class Work:
    """root: of all runs. bases: the pre-trained ones. start: of the clock."""

    root: object
    bases: object
    start: float

    def run(self, task, model, method, rate, share, seed, split="test", train=True):
        """launch.results' Run of one adaptation, trained unless that is done already; None where it is not to be."""
        from launch.results import runs

        name = f"{task.run}-{model.name}-{method.name}-{rate:g}-{share:g}-{seed}-{split}".replace(" ", "_")
        place = self.root / name
        if (done := runs.read(place)) is not None and done.ended:
            return done
        if not train:
            return None
        data, base = self.root / "data" / split / task.run, there(self.bases / model.base / "0")
        print(f"{name} · {time.time() - self.start:.0f} s", flush=True)
        files, bindings = [f"runs/small/{task.run}.gin"], []
        if model.file:
            files.append(model.file)
            bindings += [f"TextClassification.model = @{model.build}()", f"TextClassification.pool = {model.pool!r}"]
        if method.file:
            files.append(f"adapt/{method.file}.gin")
        if method.biases:
            bindings.append(f"{model.build}.bias = True")
        bindings += [f"TextRecords.source = {str(data)!r}", f"TextRecords.tokenizer = {str(base)!r}"]
        bindings += [f"TextRecords.fraction = {share}", f"TextRecords.fraction_seed = {seed}"]
        bindings += [f"Cosine.peak = {rate}", f"Experiment.seed = {seed}", *GIN_PARAM.value]
        begin = [f"--init_{'partly_' if method.biases else ''}from={base}"] if method.file else []
        flags = [*(f"--gin_file={file}" for file in files), f"--workdir={place}", *begin]
        command("launch.train", *flags, bindings=bindings)
        return runs.read(place)

    def forgotten(self, run, model, method):
        """How much more bits a byte of pre-training's held-out text takes with the adapted model than with the base, as
        a part of 1; None where it has not been measured, and is not to be. Kept in the run."""
        kept, base = run.path / "forgotten.json", there(self.bases / model.base / "0")
        if not kept.exists():
            if "none" in PART.value:
                return None
            alone = ["Experiment.evaluators = ()"]
            before = evaluate(base, "held_out", alone)["bits_per_byte"]
            biases = [f"{model.build}.bias = True"] if method.biases else []
            how = f"--workdir={base}", f"--adapted={run.path}"
            after = json.loads(command("launch.evaluate", *how, bindings=[*alone, *biases]))["valid/bits_per_byte"]
            kept.write_text(json.dumps({"before": before, "after": after}))
        bits = json.loads(kept.read_text())
        return bits["after"] / bits["before"] - 1


def best_rate(work, method):
    """The rate with the best accuracy on the validation split, of those that have run where nothing is to be run."""
    train = "none" not in PART.value
    tried = {rate: work.run(INTENTS, ENCODER, method, rate, TUNED, 0, "valid", train) for rate in method.rates}
    done = {rate: run.last(f"valid/{INTENTS.metric}") for rate, run in tried.items() if run is not None}
    return max(done, key=done.get, default=method.rates[0])


# --- data ------------------------------------------------------------------------------------------------------------


def write(root, name, train, splits):
    """Two folders of records, for tuning and for the page: `valid` of the one is the validation split, of the other
    the test split."""
    for split, rows in splits.items():
        folder = root / split / name
        folder.mkdir(parents=True, exist_ok=True)
        for file, lines in (("train", train), ("valid", rows)):
            (folder / f"{file}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_intents(path, root):
    """CLINC150 without what is out of its scope: [text, intent] pairs as records."""
    records = {
        split: [{"text": text, "label": label} for text, label in rows]
        for split, rows in json.loads(there(path).read_text()).items()
    }
    write(root, INTENTS.run, records["train"], {"valid": records["val"], "test": records["test"]})


def write_entities(folder, root):
    """WNUT-17: lines of a word and its tag, an empty line between sentences, as records."""
    splits = {}
    for split in ("train", "dev", "test"):
        sentences = [[]]
        for line in there(folder / f"{split}.conll").read_text().splitlines():
            if line.strip():
                sentences[-1].append(line.split("\t"))
            else:
                sentences.append([])
        splits[split] = [{"words": [w for w, _ in s], "tags": [t for _, t in s]} for s in sentences if s]
    write(root, ENTITIES.run, splits["train"], {"valid": splits["dev"], "test": splits["test"]})


# --- the page --------------------------------------------------------------------------------------------------------


def scores(found, task, model, method, share):
    """The task's metric of every seed."""
    chosen = [found.get((task, model, method, share, seed)) for seed in range(SEEDS.value)]
    return [run.last(f"valid/{task.metric}") for run in chosen if run is not None]


def write_page(work, found, rates):
    runs = {method: found.get((INTENTS, ENCODER, method, TUNED, 0)) for method in METHODS if method.file}
    forgets = {method: work.forgotten(run, ENCODER, method) for method, run in runs.items() if run is not None}
    out = expand(OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    picture(found, out / "adaptation.png")
    save(out / "adaptation.md", report(found, rates, forgets))


def report(found, rates, forgets):
    """The page, as markdown."""
    seeds = "one seed" if SEEDS.value == 1 else f"{SEEDS.value} seeds"
    percent = lambda share: f"{100 * share:g} %"
    intents, entities = [], []
    for method in METHODS:
        run, costs = found.get((INTENTS, ENCODER, method, TUNED, 0)), ["", ""]
        if run is not None:
            costs = [f"{run.trained_percent:.3g} %", f"{run.peak_memory:.0f} MiB"]
        costs.append("" if forgets.get(method) is None else f"{100 * forgets[method]:+.1f} %")
        costs.append(f"{rates[method]:g}")
        rows = [cell(scores(found, INTENTS, ENCODER, method, share)) for share in SHARES]
        intents.append([method.name, *rows, *costs])
        others = [cell(scores(found, INTENTS, model, method, TUNED)) for model in MODELS]
        entities.append([method.name, *others, cell(scores(found, ENTITIES, ENCODER, method, 1.0))])
    lines = [
        "# What an adaptation keeps of a pre-trained model, and what it costs",
        "",
        "Small models pre-trained on novels (runs of [language.md](language.md): masked language modelling, next",
        "token, span corruption; the notes say for how long), adapted for 300 steps by one method after the other.",
        "From scratch is the same model, drawn. A row's rate is the better of two by CLINC150's validation split with",
        "a tenth of the labels, on the encoder; it is used in every column. Scores are of the test splits (of",
        f"CLINC150's a fixed sample of 1,280), in percent: {seeds}, the mean and the standard deviation of several.",
        "These models have no biases: for BitFit they are given some, 0 at first, with which they compute the same.",
        "",
        "    python -m benchmarks.adaptation --clinc=DIR --wnut=DIR --bases=DIR --workdir=DIR"
        + "".join(f' --gin_param="{b}"' for b in GIN_PARAM.value),
        "",
        f"Hardware: {processor()}, 2 cores, float32.",
        "",
        "## Intents of requests, by labels seen",
        "",
        "CLINC150, 150 classes without those out of scope: accuracy with 1, 10 and 100 of 100 labels a class, on the",
        "encoder. Memory is what a device holds at most in a step, as compiled. Forgotten is by how much the loss of",
        f"pre-training on its held-out text has grown, with the model as adapted to {percent(TUNED)} of the labels.",
        "",
        *table(["", *(f"{percent(s)} of labels" for s in SHARES), "trained", "memory", "forgotten", "rate"], intents),
        "## Three architectures, and entities",
        "",
        f"CLINC150 with {percent(TUNED)} of the labels, on three models of one size, pre-trained on as many tokens (a",
        "mean over tokens, the last token, a mean over the encoder's); and entity F1 of WNUT-17, on the encoder.",
        "",
        *table(["", *(f"CLINC150, {model.name}" for model in MODELS), "WNUT-17, encoder"], entities),
    ]
    return "\n".join([*lines, "![accuracy by labels seen](adaptation.png)", ""])


def picture(found, path):
    """Accuracy by the share of labels, a line a method."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for i, method in enumerate(METHODS):
        rows = {share: scores(found, INTENTS, ENCODER, method, share) for share in SHARES}
        rows = {share: 100 * statistics.mean(row) for share, row in rows.items() if row}
        style = {"color": "black", "linestyle": "--"} if not method.file else {"color": f"C{i}"}
        axis.plot(rows.keys(), rows.values(), marker="o", label=method.name, **style)
    axis.set(xscale="log", xlabel="share of the labels", ylabel="accuracy (%)", title="CLINC150, encoder")
    axis.set_xticks(SHARES, [f"{100 * share:g} %" for share in SHARES])
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    CLINC = flags.DEFINE_string("clinc", None, "Where CLINC150's data_full.json is.", required=True)
    WNUT = flags.DEFINE_string("wnut", None, "Where WNUT-17's .conll files are.", required=True)
    BASES = flags.DEFINE_string("bases", None, "The workdir of benchmarks.language.", required=True)
    WORKDIR = flags.DEFINE_string("workdir", None, "Where the runs go and stay.", required=True)
    PART = flags.DEFINE_multi_enum("part", PARTS, (*PARTS, "none"), "What is run; none writes the page alone.")
    SEEDS = flags.DEFINE_integer("seeds", 1, "Seeds.", lower_bound=1)
    GIN_PARAM = flags.DEFINE_multi_string("gin_param", [], "A binding for every run: 'Experiment.total_steps = 300'.")
    OUT = flags.DEFINE_string("out", "docs/results", "Where the table and the picture go.")
    cli.run(main)
