"""Every shipped run file: as recorded, flat, and alive when shrunk to a toy (parse, init, one step, one evaluation)."""

import importlib
import itertools
import math
import re

import pytest

from launch.run import loop, registry
from launch.run.experiment import abstract_params, bound
from paradigm.objective import Objective
from tests.golden.update import HERE, goldens, objective_of, runs
from tests.launch.test_docs import undocumented_in

SHRINK = {
    "t5": "layers = 1, d_model = 16, heads = 2, head_dim = 8, d_ff = 32",
    "gpt": "layers = 2, d_model = 16, heads = 2, d_ff = 32",
    "SpanCorruption": "length = 32",
    "NextToken": "length = 32",
    "PrefixLM": "length = 32",
    "bart": "layers = 1, d_model = 16, heads = 2, d_ff = 32",
    "Bart": "length = 32",
    "UL2": "length = 32",
    "MultiToken": "length = 32",
    "Pegasus": "length = 64, target_length = 32",
    "TextData": "tokenizer = 'bytes', valid = 0.5",
    "vit": "layers = 1, d_model = 16, heads = 2, d_ff = 32, image_size = 16, patch = 8",
    "resnet": "depth = 'tiny', stem = 'small', image_size = 16",
    "MAE": "decoder_width = 16, decoder_layers = 1, decoder_heads = 2, mask_ratio = 0.5",
    "MoCoV1": "queue = 16",
    "MoCoV2": "queue = 16",
    "MoCoV3": "hidden = 16, output = 8",
    "ImageData": "source = 'digits'",
    "Probes": "train_images = 40, test_images = 20, methods = ('knn',), random = False",
    "Neighbours": "train_images = 40",
    "Experiment": "total_steps = 1, batch_size = 8, eval_batches = 1, mesh = 'data:2,fsdp:2,tensor:2', workers = 0",
}
SHRINK |= {
    "clip_vit": SHRINK["vit"],
    "clip_text": "layers = 1, d_model = 16, heads = 2, d_ff = 32, length = 16",
    "siglip_text": "layers = 1, d_model = 16, heads = 2, d_ff = 32, length = 16",
    "CLIP": "width = 16",
    "SigLIP": "width = 16",
    "PairData": "source = 'shapes', tokenizer = 'bytes', label = 'pair'",
    "Retrieval": "pairs = 20, random = False",
    "ZeroShot": "images = 20, random = False",
    "Retrieved": "pairs = 20",
}
IMAGES = ("CLIP", "SigLIP", "MAE", "SimCLR", "MoCoV1", "MoCoV2", "MoCoV3", "Classify")
SHRINK |= {n: f"host_image_size = 16, {SHRINK.get(n, '')}".rstrip(", ") for n in IMAGES}


def test_every_objective_has_a_run():
    packages = ("t5like", "vision", "multimodal")
    own = [vars(importlib.import_module(f"{name}.objectives")).values() for name in packages]
    objectives = {v.__name__ for v in itertools.chain(*own) if isinstance(v, type) and issubclass(v, Objective)}
    assert {objective_of(run) for run in runs()} == objectives - {"Objective"}


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


@pytest.mark.parametrize("name", COUNTS)
def test_the_paper_sizes_have_the_paper_counts(name):
    import jax

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
    "Classify": math.log(10),
    "CLIP": math.log(8),
    "SimCLR": 2 * math.log(15),
    "MoCoV1": math.log(17) / 3,  # less, for the teacher is still the encoder: a key is like its query
    "MoCoV2": math.log(17) / 2,
    "MoCoV3": 4 * 0.2 * math.log(8),
    "MAE": 1.0,
    "SigLIP": 7.0,  # between the biases of 10 and of 5 that it starts from
}


@pytest.mark.parametrize("run", [pytest.param(r, marks=[pytest.mark.slow] * (r not in FIRST.values())) for r in runs()])
def test_a_toy_of_it_trains_and_evaluates(run, tmp_path):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for i in range(8):
        (corpus / f"{i}.txt").write_text(f"The {i}th small cat sat on the mat and looked at the dog. " * 30)
    used = registry.parse([run]) and set(re.findall(r"^(\w+)\.\w+ =", registry.operative_config(), re.MULTILINE))
    params = [f"{name}.{line}" for name in SHRINK if name in used for line in re.split(r", (?=\w+ =)", SHRINK[name])]
    text = [f"TextData.source = '{corpus}'"] if "TextData" in used else []
    toy = registry.parse([run], params + text)
    finished = loop.train(toy, tmp_path / "run", config=registry.operative_config())
    assert finished.step == 1
    assert not undocumented_in(tmp_path / "run" / "metrics.jsonl")
    assert finished.metrics["valid/loss"] == pytest.approx(CHANCE[type(toy.objective).__name__], rel=0.5)
