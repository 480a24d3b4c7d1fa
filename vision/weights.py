"""Weights in the transformers library's format, config.json and safetensors, read and written.

    modules, params = weights.read("vit-mae-base")
    pooled, named = modules["encoder"].apply({"params": params["encoder"]}, images)
    weights.write("exported", modules, params)

ViT and ViT-MAE; `vision.layouts` has their tables. Modules and parameters are dicts by name, as in an objective's tree:
`encoder`, and for ViT-MAE `decoder`. Tensors pass one at a time. Reading is strict: a tensor that is missing, left over
or of another shape is an error; the library's poolers and classifiers, which no encoder of ours has, are left aside.
"""

import contextlib
import math
import pathlib

import jax
import jax.numpy as jnp

from paradigm import tensor_files
from paradigm.errors import UserError, choose
from vision.layouts import FAMILIES, config_of, differences, family_of

BARE = ("embeddings.", "encoder.", "layernorm.", "pooler.")  # how an encoder's names begin where it is alone


def read(path, modules=None):
    """Modules and their parameters, from a directory that the transformers library's save_pretrained wrote.

    Args:
        path: directory with config.json and model.safetensors, or its shards and their index.
        modules: ours by name, whose dtype, pool and so on are to be kept; None makes them from config.json, a ViT with
            learned positions and a ViT-MAE with fixed ones.

    Returns:
        (modules, params): dicts by module name; params nested dicts of float32 numpy arrays, layers stacked.

    Raises:
        UserError: files missing or damaged; an architecture that is not ours; modules that compute something else; a
            tensor that is missing, left over, or of another shape: its name, the shape wanted and the shape found.
    """
    path = pathlib.Path(path)
    config = tensor_files.read_json(path / tensor_files.CONFIG)
    family = choose(f"model_type in {path / tensor_files.CONFIG}", config.get("model_type"), FAMILIES)
    try:
        found = family.modules(config)
    except KeyError as error:
        raise UserError(f"{path / tensor_files.CONFIG} lacks {error}, which a {family.title} needs") from None
    modules = found if modules is None else modules
    if family_of(modules) is not family:
        raise UserError(f"{path} holds a {family.title}, and the modules are a {family_of(modules).title}")
    for field, ours, theirs in differences(modules, found):
        raise UserError(f"{path} holds a {family.title} with {field}={theirs!r}; the model has {field}={ours!r}")
    rename = lambda name: family.prefix + name if name.startswith(BARE) else name
    with contextlib.ExitStack() as stack:
        tensors = tensor_files.open_tensors(path, stack, rename, family.ignored)
        return modules, tensor_files.load(path, family.leaves(modules), _abstract(modules), tensors)


def write(path, modules, params, **entries):
    """Writes config.json and model.safetensors, in float32, into a directory, which is made.

    Args:
        path: the directory. What is in it is not written over.
        modules: {"encoder": ViT} or {"encoder": ViT, "decoder": MAE's Decoder}.
        params: their parameters by the same names, numpy or jax arrays, in any sharding of this process.
        entries: of config.json, in place of what the modules say: mask_ratio, norm_pix_loss and the like.

    Raises:
        UserError: the library cannot say what the modules compute; the parameters are not theirs; a file is there
            already or cannot be written.
    """
    config, family = config_of(modules) | entries, family_of(modules)
    whole = family.model_type != "vit"  # a bare encoder's names have no prefix
    rename = lambda name: name if whole else name.removeprefix(family.prefix)
    tensor_files.save(pathlib.Path(path), config, family.leaves(modules), _abstract(modules), params, rename)


def _abstract(modules):
    """Our parameter trees by module as ShapeDtypeStructs."""
    vit = modules["encoder"]
    patches = math.prod(vit.grid)
    inputs = {
        "encoder": (jnp.zeros((1, vit.image_size, vit.image_size, vit.channels)),),
        "decoder": (jnp.zeros((1, 2, vit.d_model)), jnp.arange(patches)[None]),
    }
    made = lambda name: jax.eval_shape(modules[name].init, jax.random.key(0), *inputs[name])["params"]
    return {name: made(name) for name in modules}
