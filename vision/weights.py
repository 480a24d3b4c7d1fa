"""Weights in the transformers library's format, config.json and safetensors, read and written.

    modules, params = weights.read("vit-mae-base")
    pooled, named = modules["encoder"].apply({"params": params["encoder"]}, images)
    weights.write("exported", modules, params)

ViT and ViT-MAE; `vision.layouts` has their tables. Modules and parameters are dicts by name, as in an objective's tree:
`encoder`, and for ViT-MAE `decoder`. Tensors pass one at a time. Reading is strict: a tensor that is missing, left over
or of another shape is an error; the library's poolers and classifiers, which no encoder of ours has, are left aside.
"""

import contextlib
import json
import math
import os
import pathlib
import re
import struct

import jax
import jax.numpy as jnp
import numpy as np

from paradigm import trees
from paradigm.errors import UserError, choose
from vision.layouts import FAMILIES, config_of, differences, family_of

CONFIG, TENSORS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
_DTYPES = ("F32", "F16", "BF16")  # read as float32; F32 is written
_FIXED = 4e-3  # how far fixed positions in a file may be from the formula: bfloat16's rounding


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
    config = _json(path / CONFIG)
    family = choose(f"model_type in {path / CONFIG}", config.get("model_type"), FAMILIES)
    try:
        found = family.modules(config)
    except KeyError as error:
        raise UserError(f"{path / CONFIG} lacks {error}, which a {family.title} needs") from None
    modules = found if modules is None else modules
    if family_of(modules) is not family:
        raise UserError(f"{path} holds a {family.title}, and the modules are a {family_of(modules).title}")
    for field, ours, theirs in differences(modules, found):
        raise UserError(f"{path} holds a {family.title} with {field}={theirs!r}; the model has {field}={ours!r}")
    with contextlib.ExitStack() as stack:
        return modules, _params(modules, family, _tensors(path, family, stack), path)


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
    path = pathlib.Path(path)
    config, abstract = config_of(modules) | entries, _abstract(modules)
    params = dict(trees.named_leaves(trees.merge_strict(abstract, params, "params")))
    for name in (CONFIG, TENSORS, INDEX):
        if (path / name).exists():
            raise UserError(f"{path / name} exists and is not written over: choose another directory")
    shapes, family = dict(trees.named_leaves(abstract)), family_of(modules)

    def tensor(leaf):  # called when its turn has come: a slice of a jax array is a copy
        if leaf.path is None:
            return leaf.constant
        return leaf.pack(np.asarray(params[leaf.path] if leaf.layer is None else params[leaf.path][leaf.layer]))

    whole = family.model_type != "vit"  # a bare encoder's names have no prefix
    leaves = family.leaves(modules)
    header = [(x.name if whole else x.name.removeprefix(family.prefix), x.shape(_shape(x, shapes))) for x in leaves]
    try:
        path.mkdir(parents=True, exist_ok=True)
        _save(path / TENSORS, header, (tensor(leaf) for leaf in leaves))
        (path / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None


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


def _shape(leaf, abstract):
    return None if leaf.path is None else abstract[leaf.path].shape[leaf.layer is not None :]


def _params(modules, family, tensors, path):
    """The parameter trees, filled tensor by tensor."""
    abstract, leaves = dict(trees.named_leaves(_abstract(modules))), family.leaves(modules)
    stored = {leaf: next((n for n in (leaf.name, *leaf.aliases) if n in tensors), None) for leaf in leaves}
    _check(stored, tensors, abstract, path)
    out = {name: np.empty(x.shape, np.float32) for name, x in abstract.items()}
    for leaf, name in stored.items():
        tensor = np.asarray(tensors[name][0].get_tensor(tensors[name][1]), np.float32)
        if leaf.path is not None:
            out[leaf.path][... if leaf.layer is None else leaf.layer] = leaf.unpack(tensor, _shape(leaf, abstract))
        elif np.abs(tensor - leaf.constant).max() > _FIXED:
            raise UserError(
                f"{path}: {name} is not the table of fixed sine and cosine positions that the model has: "
                "for the encoder, give one with positions='learned'"
            )
    return trees.nested(out)


def _check(stored, tensors, abstract, path):
    """Raises UserError unless the file's tensors are the model's, each of its shape."""
    problems, shape = [], {}
    for name, (handle, key) in tensors.items():
        part = handle.get_slice(key)
        shape[name] = tuple(part.get_shape())
        if part.get_dtype() not in _DTYPES:
            problems.append(f"{name}: wanted {' or '.join(_DTYPES)}, found {part.get_dtype()}")
    for leaf, name in stored.items():
        wanted = leaf.shape(_shape(leaf, abstract))
        if name is None:
            problems.append(f"{leaf.name}: wanted {wanted}, found nothing")
        elif shape[name] != wanted:
            problems.append(f"{name}: wanted {wanted}, found {shape[name]}")
    known = set(stored.values())
    problems += [f"{name}: wanted nothing, found {shape[name]}" for name in tensors if name not in known]
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise UserError(f"{path} does not fit the model: " + "; ".join(problems[:5]) + more)


# ---- Files -----------------------------------------------------------------------------------------------------------


def _json(path):
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} is missing: name a directory that save_pretrained wrote") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def _tensors(path, family, stack):
    """name -> (open file, name in it) over all shards, in the family's names."""
    try:
        import safetensors
    except ImportError:
        raise UserError('reading weights needs safetensors: pip install -e ".[weights]" in the checkout') from None
    files = [TENSORS]
    if (path / INDEX).exists():
        files = sorted(set(_json(path / INDEX)["weight_map"].values()))
    elif not (path / TENSORS).exists() and (path / "pytorch_model.bin").exists():
        raise UserError(f"{path} holds a pickle, pytorch_model.bin, which is not loaded: save it again as safetensors")
    tensors = {}
    for file in files:
        try:
            handle = stack.enter_context(safetensors.safe_open(path / file, framework="numpy"))
        except (OSError, safetensors.SafetensorError) as error:
            raise UserError(f"{path / file} cannot be read as safetensors: {error}") from None
        for key in handle.keys():
            bare = key.startswith(("embeddings.", "encoder.", "layernorm.", "pooler."))
            tensors[family.prefix + key if bare else key] = (handle, key)
    return {name: place for name, place in tensors.items() if not re.fullmatch(family.ignored, name)}


def _save(path, tensors, arrays):
    """A safetensors file: a header made from [(name, shape)], then the arrays, taken one after another.

    The safetensors library wants all arrays at once, which would hold the parameters twice.
    """
    header, end = {"__metadata__": {"format": "pt"}}, 0  # the transformers library refuses a file without `format`
    for name, shape in tensors:
        start, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data begins aligned
    unfinished = path.with_name(path.name + ".tmp")
    with open(unfinished, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for array in arrays:
            file.write(np.ascontiguousarray(array, dtype="<f4").data)
        file.flush()
        os.fsync(file.fileno())
    unfinished.rename(path)
