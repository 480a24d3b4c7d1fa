"""A tiny model of each architecture with an objective on it, and the methods that it can carry."""

import dataclasses
import functools

import jax

from paradigm.adapt import IA3, BitFit, BottleneckAdapter, Full, LinearProbe, LoRA, PromptTuning
from paradigm.dataset import Dataset
from t5like.models import bert, gpt, t5
from t5like.objectives import MaskedLM, NextToken, PrefixLM, SpanCorruption
from t5like.tokenizers import ByteTokenizer
from tests.multimodal import tiny as pairs
from tests.t5like.windows import Windows
from tests.vision import tiny
from vision.objectives import Classify

B, LENGTH = 8, 16
SIZE = {"d_model": 16, "heads": 2, "d_ff": 32, "layers": 2}


def _text(kind, model, **how):
    specials = ("mask", "cls", "sep") if kind is MaskedLM else ()
    return kind(model, LENGTH, **how).bind(ByteTokenizer(specials=specials).vocabulary)


def _classify(encoder):
    return Classify(encoder=encoder, classes=3, augment=tiny.views(), host_image_size=tiny.HOST_SIZE)


OBJECTIVES = {
    "gpt2": _text(NextToken, gpt("tiny", style="gpt2", max_length=24, dropout=0.1, **SIZE)),
    "llama": _text(PrefixLM, gpt("tiny", kv_heads=2, **{**SIZE, "heads": 4})),
    "bert": _text(MaskedLM, bert("tiny", max_length=24, **SIZE), rate=0.3),
    "t5": _text(SpanCorruption, t5("tiny", head_dim=8, **SIZE)),
    "vit": _classify(tiny.encoder()),
    "resnet": _classify(tiny.small_resnet()),
    "clip": pairs.clip(),
}
LORA = LoRA(rank=4)
EVERYWHERE = LoRA(rank=2, targets=("/kernel$", "embed/embedding$"), ranks=(("mlp/", 3),), alphas=(("mlp/", 2.0),))
METHODS = {
    "full": Full(),
    "probe": LinearProbe(),
    "bitfit": BitFit(),
    "lora": LORA,
    "dora": LoRA(rank=2, dora=True, rank_stabilized=True, targets=("attention/", "mlp/"), dropout=0.1),
    "houlsby": BottleneckAdapter(width=4, cross=True),
    "pfeiffer": BottleneckAdapter(style="pfeiffer", width=4),
    "parallel": BottleneckAdapter(style="parallel", width=4),
    "prompt": PromptTuning(length=5),
    "vpt_deep": PromptTuning(length=5, place="layers"),
    "prefix": PromptTuning(length=5, place="attention"),
    "ia3": IA3(),
}
IMAGES = ("vit", "resnet", "clip")


def refused(method, name):
    """Whether the method has nothing to hold on to there."""
    if name == "resnet":
        return method not in ("full", "probe", "bitfit")
    if method == "probe":
        return name not in IMAGES
    return (method, name) in (("bitfit", "t5"), ("bitfit", "llama")) or (
        method == "vpt_deep" and name in ("llama", "t5")
    )


PAIRS = [(method, name) for method in METHODS for name in OBJECTIVES if not refused(method, name)]


@functools.cache
def adapted(method, name):
    """The objective of this architecture under this method."""
    method = METHODS[method] if isinstance(method, str) else method
    if name == "clip" and method.shift:  # captions fill the text tower's positions
        method = dataclasses.replace(method, where="^encoder/")
    return OBJECTIVES[name].adapted(method)


@functools.cache
def batch_of(name):
    """step -> the numpy batch of that step."""
    if name == "clip":
        return pairs.batch_of()
    if name in IMAGES:
        return tiny.batch_of()
    objective = OBJECTIVES[name]
    return functools.cache(Dataset(Windows(objective.raw_length), objective.preprocess, B, seed=1).batch)


@functools.cache
def first(objective):
    """(params, extra) at first."""
    made = jax.jit(lambda: (p := objective.init(jax.random.key(0)), objective.init_extra(p, jax.random.key(1))))()
    return jax.device_get(made)
