"""Weights in the transformers library's format, config.json and safetensors, read and written.

    model, params = weights.read("flan-t5-small")
    logits, named = model.apply({"params": params}, inputs, decoder_inputs)
    weights.write("exported", model, params)

T5 v1.0 and v1.1, GPT-2 and Llama; `t5like.layouts` has their tables. Tensors pass one at a time, so that the host holds
the parameters once and one tensor more. Reading is strict: a tensor that is missing, left over or of another shape is
an error.
"""

import contextlib
import pathlib

import jax
import jax.numpy as jnp

from paradigm import tensor_files
from paradigm.errors import UserError, choose
from t5like.layouts import FAMILIES, config_of, differences, family_of
from t5like.models import EncoderDecoder


def read(path, model=None):
    """A model and its parameters, from a directory that the transformers library's save_pretrained wrote.

    Args:
        path: directory with config.json and model.safetensors, or its shards and their index.
        model: one of ours whose dtype, remat and so on are to be kept; None makes one from config.json.

    Returns:
        (model, params): params a nested dict of float32 numpy arrays, layers stacked.

    Raises:
        UserError: files missing or damaged; an architecture that is not ours; a `model` that computes something else;
            a tensor that is missing, left over, or of another shape: its name, the shape wanted and the shape found.
    """
    path = pathlib.Path(path)
    config = tensor_files.read_json(path / tensor_files.CONFIG)
    family = choose(
        f"model_type in {path / tensor_files.CONFIG}", config.get("model_type"), {f.model_type: f for f in FAMILIES}
    )

    def rename(name):  # some files leave the prefix of all names out
        return name if name.startswith((family.prefix, "lm_head.")) else family.prefix + name

    with contextlib.ExitStack() as stack:
        tensors = tensor_files.open_tensors(path, stack, rename, family.ignored)
        try:
            found = family.model(config, tensors)
        except KeyError as error:
            raise UserError(f"{path / tensor_files.CONFIG} lacks {error}, which a {family.title} needs") from None
        model = found if model is None else model
        if type(model) is not family.kind:
            raise UserError(f"{path} holds a {family.title}, and the model is a {type(model).__name__}")
        for field, ours, theirs in differences(model, found):
            raise UserError(f"{path} holds a {family.title} with {field}={theirs!r}; the model has {field}={ours!r}")
        return model, tensor_files.load(path, family.leaves(model), _abstract(model), tensors)


def write(path, model, params, **entries):
    """Writes config.json and model.safetensors, in float32, into a directory, which is made.

    Args:
        path: the directory. What is in it is not written over.
        model: an EncoderDecoder or a Decoder.
        params: its parameters, numpy or jax arrays, in any sharding of this process.
        entries: of config.json, in place of what the model says: eos_token_id and the like.

    Raises:
        UserError: the library cannot say what the model computes; the parameters are not the model's; a file is there
            already or cannot be written.
    """
    config, leaves = config_of(model) | entries, family_of(model).leaves(model)
    tensor_files.save(pathlib.Path(path), config, leaves, _abstract(model), params)


def _abstract(model):
    """Our parameter tree as ShapeDtypeStructs."""
    tokens = jnp.zeros((1, 1), jnp.int32)
    arguments = (tokens, tokens) if isinstance(model, EncoderDecoder) else (tokens,)
    return jax.eval_shape(model.init, jax.random.key(0), *arguments)["params"]
