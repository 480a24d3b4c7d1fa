"""What the families of text models share: one module, named `model`."""

import functools
import re

import jax.numpy as jnp

from paradigm.hf import Family
from t5like.models import EncoderDecoder

OUTPUT = "lm_head.weight"
# Of files that were tuned to a task, whose heads no model of ours has: they stay behind.
TASKS = ("classifier.", "qa_outputs.", "score.", "classification_head.", "multiple_choice_head.")
ACTIVATIONS = {"gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "gelu": "gelu_exact", "relu": "relu", "silu": "silu",
               "swish": "silu", "quick_gelu": "quick_gelu"}  # fmt: skip


def decoder_layers(model):
    return model.layers if model.decoder_layers is None else model.decoder_layers


def _inputs(modules):
    tokens = jnp.zeros((1, 1), jnp.int32)
    return {"model": (tokens, tokens) if isinstance(modules["model"], EncoderDecoder) else (tokens,)}


def text_family(title, model_type, kind, positions, model, config, leaves, ignored=r"$^", **how):
    """A Family of one module. model: (Config, Tensors) -> ours. config: ours -> dict. leaves: ours -> [Leaf] of paths
    below `model`. positions: by which families of one kind are told apart. ignored: as a Family's, beside TASKS."""
    return Family(
        title,
        model_type,
        kinds={"model": kind},
        modules=lambda config, tensors: {"model": model(config, tensors)},
        config=lambda modules: config(modules["model"]),
        leaves=lambda modules: leaves(modules["model"]),
        inputs=_inputs,
        when=lambda modules: modules["model"].positions == positions,
        root="model/",
        ignored=rf"{ignored}|({'|'.join(map(re.escape, TASKS))}).*",
        **{"free": frozenset({"max_length"}), "meaning": {"decoder_layers": decoder_layers}} | how,
    )


def prefixed(prefix, *beside):
    """name -> the same below a prefix that some files leave out. beside: names that have none."""
    return functools.partial(_prefixed, prefix, beside)


def _prefixed(prefix, beside, name):
    return name if name.startswith((prefix, "lm_head.", *TASKS, *beside)) else prefix + name
