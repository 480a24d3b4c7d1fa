"""Every shipped run file: as recorded, flat, and alive when shrunk to a toy (parse, init, one step, one evaluation)."""

import dataclasses
import functools
import importlib
import itertools
import math
import re

import jax
import pytest

from launch.run import loop, registry
from launch.run.data import Data, build
from launch.run.evaluation import Evaluation
from launch.run.experiment import abstract_params, bound, completed, validate
from launch.run.mesh import make_mesh
from launch.run.program import Program
from paradigm.capabilities import parts
from paradigm.evaluator import Evaluator
from paradigm.objective import Objective
from paradigm.step import make_train_step
from t5like import stdlib_records
from tests.golden.update import HERE, goldens, objective_of, runs
from tests.launch.test_docs import undocumented, undocumented_in

SHRINK = {
    "t5": "layers = 1, d_model = 16, heads = 2, head_dim = 8, d_ff = 32",
    "gpt": "layers = 2, d_model = 16, heads = 2, d_ff = 32, kv_heads = None, vocab_size = None",
    "SpanCorruption": "length = 32",
    "NextToken": "length = 32",
    "PrefixLM": "length = 32",
    "bart": "layers = 1, d_model = 16, heads = 2, d_ff = 32",
    "Bart": "length = 32",
    "UL2": "length = 32",
    "MaskedLM": "length = 32",
    "MaskedNextToken": "length = 32",
    "ELECTRA": "length = 32, generator_width = 1.0",
    "ReplacedTokens": "length = 32",
    "PositionPrediction": "length = 32",
    "SpacTor": "length = 32",
    "Stages": "boundaries = (1,)",
    "MuToR": "length = 32",
    "SimCSE": "length = 16, raw = 32, shortest = 4",
    "bert": "layers = 1, d_model = 16, heads = 2, d_ff = 32",
    "MultiToken": "length = 32",
    "Pegasus": "length = 64, target_length = 32",
    "TextToText": "length = 32, target_length = 16",
    "TextData": "tokenizer = 'bytes', valid = 0.5, valid_glob = '', exclude = ''",
    "vit": "layers = 2, d_model = 16, heads = 2, d_ff = 32, image_size = 16, patch = 4",
    "resnet": "depth = 'tiny', stem = 'small', image_size = 16",
    "MAE": "decoder_width = 16, decoder_layers = 1, decoder_heads = 2, mask_ratio = 0.5",
    "Data2Vec": "top = 1",
    **dict.fromkeys(("VQ", "DVAE"), "decoder_width = 16, decoder_heads = 2"),
    "IJEPA": "predictor_width = 16, predictor_layers = 1, predictor_heads = 2",
    "beit_views": "token_size = 16",
    "image_gpt": "layers = 1, d_model = 16, heads = 2, d_ff = 32",
    "MoCoV1": "queue = 16",
    "MoCoV2": "queue = 16",
    "MoCoV3": "hidden = 16, output = 8",
    "BYOL": "hidden = 16, output = 64",
    "SimSiam": "hidden = 16, output = 64",
    "BarlowTwins": "widths = (16, 8)",
    "VICReg": "widths = (16, 8)",
    "SwAV": "prototypes = 16, hidden = 16, output = 256, queue = 16",
    "NNCLR": "queue = 16, projector_widths = (16, 64), hidden = 16",
    "DINO": "prototypes = 16, hidden = 16, bottleneck = 256",
    "IBOT": "prototypes = 16, hidden = 16, bottleneck = 256",
    "DINOv2": "prototypes = 16, hidden = 16, bottleneck = 256",
    "dino_views": "local_size = 8, local = 2",
    "swav_views": "local_size = 8, local = 2",
    "ImageData": "source = 'digits'",
    "Probes": "train_images = 40, test_images = 20, methods = ('knn',), random = False",
    "Neighbours": "train_images = 40",
    "LinearProbe": "train = ('',)",
    "LoRA": "train = ('',)",  # a toy has no base, and what is drawn may not stay frozen
    "Experiment": "total_steps = 1, batch_size = 8, eval_batches = 1, mesh = 'data:2,fsdp:2,tensor:2', workers = 0",
}
SHRINK |= {
    "bert": "layers = 1, d_model = 16, heads = 2, d_ff = 32",
    "TextRecords": "tokenizer = 'bytes', specials = ('cls','sep')",
    "TextScores": "count = 2, references = ''",
    "MultipleChoice": "count = 4",
    "clip_vit": SHRINK["vit"].replace("patch = 4", "patch = 8"),
    "clip_text": "layers = 1, d_model = 16, heads = 2, d_ff = 32, length = 16",
    "siglip_text": "layers = 1, d_model = 16, heads = 2, d_ff = 32, length = 16",
    "coca_text": "layers = 1, multimodal_layers = 1, d_model = 16, heads = 2, d_ff = 32, length = 16",
    "cappa_text": "layers = 1, d_model = 16, heads = 2, d_ff = 32, length = 16",
    "single_stream": f"{SHRINK['vit']}, length = 16",
    "CoCa": "width = 16, queries = 4",
    "Magma": "length = 16",
    "Captions": "images = 8",
    "CLIP": "width = 16",
    "SigLIP": "width = 16",
    "SILC": "width = 16, prototypes = 8, hidden = 16, bottleneck = 16",
    "SILCSigmoid": "width = 16, prototypes = 8, hidden = 16, bottleneck = 16",
    "PairData": "source = 'shapes', tokenizer = 'bytes', label = 'pair', text = ('caption',)",
    "Retrieval": "pairs = 20, random = False",
    "ZeroShot": "images = 20, random = False",
    "Retrieved": "pairs = 20",
    "TwoPictures": "pairs = 20, random = False",
}
IMAGES = ("CLIP", "SigLIP", "SILC", "SILCSigmoid", "CoCa", "CapPa", "SimVLM", "Magma", "NLVR", "UnifiedVLP", "ViLT")
IMAGES += ("MAE", "SimCLR", "MoCoV1", "MoCoV2", "MoCoV3", "Classify")
IMAGES += ("BYOL", "SimSiam", "BarlowTwins", "VICReg", "SwAV", "NNCLR", "DINO", "IBOT", "DINOv2")
IMAGES += ("SimMIM", "MaskFeat", "VQ", "DVAE", "BEiT", "Data2Vec", "IJEPA", "AIM", "IGPT", "Rotation", "Segmentation")
IMAGES += ("PatchPositions",)
SHRINK |= {n: f"host_image_size = 16, {SHRINK.get(n, '')}".rstrip(", ") for n in IMAGES}


def test_every_objective_has_a_run():
    packages = ("t5like.objectives", "t5like.tasks", "vision.objectives", "multimodal.objectives")
    own = [vars(importlib.import_module(name)).values() for name in packages]
    objectives = {v.__name__ for v in itertools.chain(*own) if isinstance(v, type) and issubclass(v, Objective)}
    combined = {"Sum", "Alternate", "Stages"}
    used = {type(part.objective).__name__ for run in runs() for part in parts(registry.parse([run]).objective)}
    assert used - combined == objectives - {"Objective"}


def test_resolved_settings_are_the_recorded_ones():
    wanted = goldens()
    assert {path.name for path in wanted} == {path.name for path in HERE.glob("*.txt")}
    for path, text in wanted.items():
        assert path.read_text() == text, f"{path.name}: if the change is meant: python -m tests.golden.update"


@pytest.mark.parametrize("run", runs())
def test_the_operative_config_is_the_whole_run(run):
    one = registry.parse([run])
    assert registry.parse_text(registry.operative_config()) == one


# Where a run's pictures have their size, and the objective's field.
SIZES = {
    "runs/smoke/mae.gin": "vit.image_size",
    "runs/smoke/simclr.gin": "resnet.image_size",
    "runs/smoke/moco_v3.gin": "vit.image_size",
    "runs/small/supervised.gin": "size",
    "runs/smoke/clip.gin": "size",
    "runs/smoke/simvlm.gin": "size",
    "runs/small/siglip.gin": "size",
}


@pytest.mark.parametrize("run", SIZES)
def test_a_pictures_size_is_written_once(run):
    """One binding changes the encoder, the views and what the host hands over."""
    objective = registry.parse([run], [f"{SIZES[run]} = 56"]).objective
    assert {objective.encoder.image_size, objective.host_image_size, *(view.size for view in objective.views)} == {56}
    image = objective.batch_spec(64)["image"]
    assert image.shape[1:3] == (56, 56)


@pytest.mark.parametrize("path", sorted(registry.SHIPPED.rglob("*.gin")), ids=lambda p: p.stem)
def test_files_are_flat(path):
    text = path.read_text()
    includes = re.findall(r"^include '(.*)'$", text, re.MULTILINE)
    assert all("\ninclude" not in "\n" + (registry.SHIPPED / name).read_text() for name in includes)
    assert "__main__" not in text and "import" not in re.findall(r"^\w+", text, re.MULTILINE)
    assert not re.search(r"^\w+/\w+/", text, re.MULTILINE), "scopes go one deep"
    if path.is_relative_to(registry.SHIPPED / "runs"):
        header = text[: text.index("\ninclude")]
        assert path.relative_to(registry.SHIPPED).as_posix() in header, "the header gives the command"
        assert re.search(r"\b[Tt]ime\b", header), "the header gives the time and the number to expect"


# Embeddings, logits and all; released checkpoints have these counts (t5.1.1: 77M, 783M, 11.1B).
COUNTS = {"t5_small_c4": 76_961_152, "t5_large_c4": 783_150_080, "t5_xxl_c4": 11_135_332_352}
COUNTS |= {  # with the rows that a table is rounded up by: of an embedding and a bias
    "bert_large": 336_226_108 + 70 * 1025,
    "roberta_large": 355_412_057 + 39 * 1025 - 1024,  # and without the one token type, whose row is added to all
    "modernbert_base": 149_655_232 + 64 * 769 + 768,  # and the first layer's norm, which is not read
    "bart_large": 406_291_456 + 39 * 1024 + 50304,  # whose bias the library does not count
}
COUNTS["llama_8b_lora"] = 8_030_261_248 + 41_943_040  # and what the peft library prints for this rank on all kernels


@pytest.mark.parametrize("name", COUNTS)
def test_the_paper_sizes_have_the_paper_counts(name):
    leaves = jax.tree.leaves(abstract_params(bound(registry.parse([f"runs/{name}.gin"])).objective))
    assert sum(leaf.size for leaf in leaves) == COUNTS[name]


# One toy for each objective: its first smoke run. The others are as these once they are shrunk.
FIRST = {objective_of(run): run for run in reversed(sorted(runs(), key=lambda run: "smoke" not in run))}
# What the loss of a model that knows nothing is about, in nats: even odds over ids or over the batch of eight.
CHANCE = {
    "SpanCorruption": math.log(360),
    "NextToken": math.log(360),
    "PrefixLM": math.log(360),
    "Bart": math.log(360),
    "UL2": math.log(362),
    "MultiToken": 4 * math.log(360),
    "Pegasus": math.log(360),
    "MaskedLM": math.log(361),
    "ELECTRA": math.log(361) + 50 * math.log(2),
    "ReplacedTokens": math.log(2),
    "PositionPrediction": math.log(32),
    "MaskedNextToken": math.log(361),
    "MuToR": math.log(361),
    "Stages": 12 * math.log(361) + 10 * math.log(2),
    "Alternate": 2 * math.log(361),
    "SimCSE": math.log(8),
    "Classify": math.log(10),
    "TextClassification": math.log(12),
    "TokenTagging": math.log(6),
    "SpanQA": math.log(64),
    "TextToText": math.log(360),
    "CLIP": math.log(8),
    "SimMIM": 0.74,
    "MaskFeat": 0.81,
    "VQ": 2.5,
    "AIM": 2.5,
    "DVAE": 2.1,
    "BEiT": math.log(64),
    "Data2Vec": 0.26,
    "IJEPA": 0.5,
    "IGPT": math.log(9),
    "Rotation": math.log(4),
    "PatchPositions": math.log(16),
    "Segmentation": math.log(10),
    "SimCLR": 2 * math.log(15),
    "MoCoV1": math.log(17) / 3,  # less, for the teacher is still the encoder: a key is like its query
    "MoCoV2": math.log(17) / 2,
    "MoCoV3": 4 * 0.2 * math.log(8),
    "BYOL": 4.0,  # two distances of unrelated unit vectors
    "SimSiam": pytest.approx(0.0, abs=0.5),  # a cosine
    "BarlowTwins": 10.0,  # eight dims, (1 - c)^2 each, c about 0 and below it where a view is inverted
    "VICReg": 25.0,  # nothing varies yet
    "SwAV": math.log(16),
    "NNCLR": math.log(8),
    "DINO": math.log(16),
    "IBOT": 1.3 * math.log(16),  # of the large views half have hidden patches
    "DINOv2": 1.5 * math.log(16),
    "MAE": 1.5,  # pixels of variance 1, and a first prediction of variance 16 * 2 / (16 + 48)
    "CoCa": math.log(8) + 2 * math.log(384),
    "CapPa": math.log(384),
    "SimVLM": math.log(384),
    "Magma": math.log(384),
    "NLVR": math.log(2),
    "UnifiedVLP": math.log(384),
    "ViLT": math.log(384) + math.log(2),
    "Sum": math.log(8) + 2 * math.log(15),  # of SLIP
    "SILC": 2 * math.log(8),  # of pairs and of prototypes
    "SILCSigmoid": 7.0 + math.log(8),
    "SigLIP": 7.0,  # between the biases of 10 and of 5 that it starts from
}
CHANCE_OF_RUN = {
    "runs/small/simmim.gin": 2.3,  # this and the next: digits in the mean and deviation of photographs
    **dict.fromkeys(("runs/small/vq.gin", "runs/small/dvae.gin"), 7.0),
    "runs/small/data2vec.gin": 0.5,  # a first prediction of variance 1, as the target's: (1 + 1) / (2 beta)
}


RECORDS = {  # (source, input, label, target) in place of a folder that a person has
    "runs/small/clinc150.gin": ("stdlib:modules", "{code}", "module"),
    "runs/small/wnut17.gin": ("stdlib:tokens", "{tokens}", "tags"),
    **dict.fromkeys(
        ("runs/small/tatoeba.gin", "runs/small/scitldr.gin"), ("stdlib:summaries", "{code}", "", "{summary}")
    ),
    "runs/llama_8b_lora.gin": ("stdlib:summaries", "{code}", "", "{summary}"),
}

# In `make test` these are whole; of the others one device draws a state and evaluates it, the first with an evaluator
# by that too.
WHOLE = [f"runs/smoke/{name}.gin" for name in ("span_corruption", "mae", "clip")]


@functools.cache
def first_with(evaluator):
    """The first of the toys, the whole ones before the others, that this class of evaluators looks at."""
    has = lambda run: evaluator in map(type, registry.parse([run]).evaluators)
    return next(run for run in (*WHOLE, *FIRST.values()) if has(run))


@dataclasses.dataclass(frozen=True)
class OnlyChecked(Evaluator):
    """Says before the first step whether the evaluator can work with objective and data, and measures nothing."""

    evaluator: Evaluator

    def check(self, objective, data):
        self.evaluator.check(objective, data)

    def run(self, objective, variables, data):
        return {}, []


@pytest.fixture(autouse=True)
def little_to_read(monkeypatch):
    """Records come from one file of Python's standard library, of about 10 kB, for each of twelve modules: reading all
    took more than half of the time of a toy."""
    every, root = stdlib_records.files, stdlib_records.root()

    def few(kind):
        chosen = {}
        for path in sorted(every(kind), key=lambda path: abs(path.stat().st_size - 10_000)):
            chosen.setdefault(path.relative_to(root).parts[0], path)
        return sorted(list(chosen.values())[:12])

    monkeypatch.setattr(stdlib_records, "files", few)


def toy_of(run, tmp_path):
    """(experiment, its text): the run on little text or few pictures, with a small model."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for i in range(8):
        (corpus / f"{i}.txt").write_text(f"The {i}th small cat sat on the mat and looked at the dog. " * 30)
    whole = registry.parse([run])
    used = set(re.findall(r"^(\w+)\.\w+ =", registry.operative_config(), re.MULTILINE))
    params = [f"{name}.{line}" for name in SHRINK if name in used for line in re.split(r", (?=\w+ =)", SHRINK[name])]
    text = [f"TextData.source = '{corpus}'"] if "TextData" in used else []
    text += ["Experiment.microbatches = 2"] if whole.microbatches > 2 else []  # of eight rows on four devices
    if (
        "TextData" in used and "'wordpiece:" in registry.operative_config()
    ):  # which has these by itself; a toy's text is of bytes
        text += ["TextData.specials = ('mask', 'cls', 'sep')"]
    records = zip(("source", "input", "label", "target"), RECORDS.get(run, ()))
    text += [f"TextRecords.{name} = {value!r}" for name, value in records]
    text += ["ImageData.source = 'shapes'"] if "Segmentation" in used else []  # digits have no maps of classes
    if "Magma" in used:  # whose language model is of another run
        words = [f"{name}.{line}" for name in ("NextToken", "Experiment", "gpt") for line in SHRINK[name].split(", ")]
        words += [f"TextData.source = '{corpus}'", "TextData.valid = 0.5", "Experiment.mesh = 'data:2,fsdp:2,tensor:2'"]
        loop.train(registry.parse(["runs/smoke/next_token.gin"], words), tmp_path / "words")
        text += [f"Init.path = '{tmp_path / 'words'}'", f"PairData.tokenizer = '{tmp_path / 'words' / 'tokenizer'}'"]
    if "NLVR" in used:
        text += ["PairData.label = 'truth'", "Experiment.init = ()"]
    if "PairMixture" in used:
        text += ["PairMixture.tokenizer = 'bytes'"]
    return registry.parse([run], params + text), registry.operative_config()


def knows_nothing(run, objective, metrics):
    chance = CHANCE_OF_RUN.get(run, CHANCE[type(objective).__name__])
    chance = pytest.approx(chance, rel=0.5) if isinstance(chance, float) else chance
    assert metrics["valid/loss"] == chance


@pytest.mark.parametrize("run", [pytest.param(r, marks=[pytest.mark.slow] * (r not in WHOLE)) for r in runs()])
def test_a_toy_of_it_trains_and_evaluates(run, tmp_path):
    toy, config = toy_of(run, tmp_path)
    if type(toy.objective).__name__ == "BEiT":  # whose tokenizer is of another run
        (tmp_path / "vq").mkdir()
        loop.train(toy_of(run.replace("beit", "vq"), tmp_path / "vq")[0], tmp_path / "tokenizer")
        toy = dataclasses.replace(toy, init=(dataclasses.replace(toy.init[0], path=str(tmp_path / "tokenizer")),))
    finished = loop.train(toy, tmp_path / "run", config=config)
    assert finished.step == 1
    assert not undocumented_in(tmp_path / "run" / "metrics.jsonl")
    knows_nothing(run, toy.objective, finished.metrics)


@pytest.mark.parametrize("run", [run for run in FIRST.values() if run not in WHOLE])
def test_a_toy_of_each_objective_starts_at_chance(run, tmp_path, monkeypatch):
    """As its command makes it, up to the first step, which is traced alone, on a mesh: tests/contract.py compiles one
    of a kind. The state is drawn and evaluated by one device."""
    toy, _ = toy_of(run, tmp_path)
    for moco in ("MoCoV1", "MoCoV2"):  # the teacher is the encoder: a key is like its query
        monkeypatch.setitem(CHANCE, moco, pytest.approx(0.0, abs=0.5))
    evaluators = (e if first_with(type(e)) == run else OnlyChecked(e) for e in toy.evaluators)
    prepared = build(toy, tmp_path / "data")
    e = completed(bound(dataclasses.replace(toy, evaluators=tuple(evaluators))), prepared)
    validate(e, len(jax.devices()))
    program = Program(e, make_mesh(e.mesh))
    names = set()
    with program.context():
        for phase, batch in program.batch.items():
            step = make_train_step(
                e.objective, e.optimizer, phase=phase, microbatches=e.microbatches, clip=e.clip, ema=e.ema
            )
            names |= {f"train/{name}" for name in jax.eval_shape(step, program.state, batch)[1]}
    devices = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: devices)
    e = dataclasses.replace(e, mesh="data:1")
    program = Program(e, make_mesh(e.mesh))
    metrics, _ = Evaluation(program, Data(e, tmp_path / "data", prepared)).run(program.init())
    assert not undocumented(names - {"train/bad_step"} | set(metrics))  # which is written as bad_steps
    knows_nothing(run, e.objective, metrics)
