"""What benchmarks.adaptation compares: methods, pre-trained models, tasks, and which of them meet."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Method:
    """A row. file: of gin_configs/adapt, "" for a model from scratch. rates: that are tried. biases: whether a text
    model is given biases of 0 that its base does not have. pictures: the file for a vision transformer, if another.
    head: whether it trains a new head alone, which a task that writes does not have."""

    name: str
    file: str
    rates: tuple[float, ...]
    biases: bool = False
    pictures: str | None = None
    head: bool = False


METHODS = (
    Method("from scratch", "", (1e-3, 3e-3)),
    Method("full fine-tuning", "full", (3e-4, 1e-3, 3e-3)),
    Method("linear probe", "linear_probe", (5e-3, 2e-2), head=True),
    Method("BitFit", "bitfit", (5e-3, 2e-2, 5e-2), biases=True),
    Method("LoRA", "lora", (3e-3, 1e-2, 3e-2)),
    Method("adapters (Pfeiffer)", "pfeiffer", (3e-3, 1e-2, 3e-2)),
    Method("prefix tuning, VPT", "prefix", (1e-2, 3e-2, 1e-1), pictures="vpt_deep"),
)


@dataclasses.dataclass(frozen=True)
class Model:
    """A pre-trained model. base: its run below --bases. build: the function of gin that makes it. pool: of text
    classification; None is the run file's."""

    name: str
    base: str
    build: str
    pool: str | None = None


ENCODER = Model("encoder", "masked_lm", "bert")
DECODER = Model("decoder", "next_token", "gpt", "last")
BOTH = Model("encoder-decoder", "span_corruption", "t5", "mean")
MODELS = (ENCODER, DECODER, BOTH)
PICTURES = tuple(Model(name, f"eurosat/{name}", "vit") for name in ("mae", "moco_v3", "simclr", "supervised"))


@dataclasses.dataclass(frozen=True)
class Task:
    """What is adapted to. run: of runs/small. folder: of its records, below those of a split; "" where they are read
    where they lie. objective: whose model it is, in a text task. metrics: name on the page -> (metric, its unit)."""

    name: str
    run: str
    folder: str
    objective: str
    metrics: tuple[tuple[str, str, float], ...]


INTENTS = Task("CLINC150", "clinc150", "clinc150", "TextClassification", (("", "accuracy", 100.0),))
ENTITIES = Task("WNUT-17", "wnut17", "wnut17", "TokenTagging", (("", "entity_f1", 100.0),))
REQUESTS = Task("SNIPS", "clinc150", "snips", "TextClassification", (("", "accuracy", 100.0),))
TRANSLATION = Task("Tatoeba", "tatoeba", "tatoeba", "TextToText", (("BLEU", "bleu", 1.0), ("chrF", "chrf", 1.0)))
SUMMARIES = Task(
    "SciTLDR", "scitldr", "scitldr", "TextToText", (("ROUGE-1", "rouge1", 100.0), ("ROUGE-L", "rougeL", 100.0))
)
LAND = Task("EuroSAT", "supervised", "", "Classify", (("", "accuracy", 100.0),))

SHARES = (0.01, 0.1, 1.0)
TUNED = 0.1  # of the labels, for the rate and for the table of architectures
CELLS = {  # a part: (task, model, share of the labels) of its columns
    "labels": [(INTENTS, ENCODER, share) for share in SHARES],
    "models": [(INTENTS, model, TUNED) for model in MODELS],
    "entities": [(ENTITIES, ENCODER, 1.0)],
    "requests": [(REQUESTS, DECODER, 0.01)],
    "written": [(task, BOTH, 1.0) for task in (TRANSLATION, SUMMARIES)],
    "pictures": [(LAND, model, share) for share in SHARES for model in PICTURES],
}
