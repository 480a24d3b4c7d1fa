"""Every shipped run file: as recorded, flat, and alive when shrunk to a toy (parse, init, one step, one evaluation)."""

import re

import pytest

from launch.run import loop, registry
from launch.run.experiment import abstract_params, bound
from tests.golden.update import dump, golden, runs

SHRINK = {
    "t5": "layers = 1, d_model = 16, heads = 2, head_dim = 8, d_ff = 32",
    "gpt": "layers = 1, d_model = 16, heads = 2, d_ff = 32",
    "SpanCorruption": "length = 32",
    "NextToken": "length = 32",
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
SIZE = (
    "clip_views",
    "siglip_views",
    "mae_views",
    "simclr_views",
    "moco_v1_views",
    "moco_v2_views",
    "moco_v3_views",
    "Augment",
)
SHRINK |= dict.fromkeys(SIZE, "size = 16")
SHRINK |= {n: f"host_image_size = 16, {SHRINK.get(n, '')}".rstrip(", ") for n in IMAGES}


def test_there_is_a_golden_for_each_run_and_no_other():
    assert {golden(run).name for run in runs()} == {path.name for path in golden("x").parent.glob("*.txt")}
    assert len(runs()) >= 7


@pytest.mark.parametrize("run", runs())
def test_resolved_settings_are_the_recorded_ones(run):
    assert dump(run) == golden(run).read_text(), "if the change is meant: python -m tests.golden.update"


@pytest.mark.parametrize("run", runs())
def test_the_operative_config_is_the_whole_run(run):
    one = registry.parse([run])
    assert registry.parse_text(registry.operative_config()) == one


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


# As t5_small_c4 or as a smoke run, once they are shrunk.
LIKE_OTHERS = ("t5_large_c4", "t5_xxl_c4", "imagenet", "b16", "runs/small/")
SAME_TOY = [r for r in runs() if any(part in r for part in LIKE_OTHERS)]


@pytest.mark.parametrize("run", [pytest.param(r, marks=[pytest.mark.slow] * (r in SAME_TOY)) for r in runs()])
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
    assert finished.step == 1 and finished.metrics["valid/loss"] > 0
