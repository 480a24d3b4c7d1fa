"""Weights in the transformers library's format, config.json and safetensors, read and written.

    model, params = weights.read("flan-t5-small")
    logits, named = model.apply({"params": params}, inputs, decoder_inputs)
    weights.write("exported", model, params)

T5 v1.0 and v1.1, GPT-2 and Llama; `t5like.layouts` has their tables. Tensors pass one at a time, so that the host holds
the parameters once and one tensor more. Reading is strict: a tensor that is missing, left over or of another shape is
an error.
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
from t5like.layouts import FAMILIES, config_of, differences, family_of
from t5like.models import EncoderDecoder

CONFIG, TENSORS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
_DTYPES = ("F32", "F16", "BF16")  # read as float32; F32 is written


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
    config = _json(path / CONFIG)
    family = choose(f"model_type in {path / CONFIG}", config.get("model_type"), {f.model_type: f for f in FAMILIES})
    with contextlib.ExitStack() as stack:
        tensors = _tensors(path, family, stack)
        try:
            found = family.model(config, tensors)
        except KeyError as error:
            raise UserError(f"{path / CONFIG} lacks {error}, which a {family.title} needs") from None
        model = found if model is None else model
        if type(model) is not family.kind:
            raise UserError(f"{path} holds a {family.title}, and the model is a {type(model).__name__}")
        for field, ours, theirs in differences(model, found):
            raise UserError(f"{path} holds a {family.title} with {field}={theirs!r}; the model has {field}={ours!r}")
        return model, _params(model, family, tensors, path)


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
    path = pathlib.Path(path)
    config, abstract = config_of(model) | entries, _abstract(model)
    params = dict(trees.named_leaves(trees.merge_strict(abstract, params, "params")))
    for name in (CONFIG, TENSORS, INDEX):
        if (path / name).exists():
            raise UserError(f"{path / name} exists and is not written over: choose another directory")
    shapes = dict(trees.named_leaves(abstract))

    def tensor(leaf):  # called when its turn has come: a slice of a jax array is a copy
        return leaf.pack([np.asarray(params[p] if leaf.layer is None else params[p][leaf.layer]) for p in leaf.paths])

    tensors = [(leaf, leaf.shape(_shapes(leaf, shapes))) for leaf in family_of(model).leaves(model)]
    try:
        path.mkdir(parents=True, exist_ok=True)
        _save(path / TENSORS, [(leaf.name, shape) for leaf, shape in tensors], (tensor(leaf) for leaf, _ in tensors))
        (path / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None


def _abstract(model):
    """Our parameter tree as ShapeDtypeStructs."""
    tokens = jnp.zeros((1, 1), jnp.int32)
    arguments = (tokens, tokens) if isinstance(model, EncoderDecoder) else (tokens,)
    return jax.eval_shape(model.init, jax.random.key(0), *arguments)["params"]


def _shapes(leaf, abstract):
    return [abstract[path].shape[leaf.layer is not None :] for path in leaf.paths]


def _json(path):
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} is missing: name a directory that save_pretrained wrote") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def _safetensors():
    try:
        import safetensors
    except ImportError:
        raise UserError('reading weights needs safetensors: pip install -e ".[weights]" in the checkout') from None
    return safetensors


def _tensors(path, family, stack):
    """name -> (open file, name in it) over all shards, in the family's names."""
    safetensors = _safetensors()
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
            bare = not key.startswith((family.prefix, "lm_head."))
            tensors[family.prefix + key if bare else key] = (handle, key)
    return {name: place for name, place in tensors.items() if not re.fullmatch(family.ignored, name)}


def _params(model, family, tensors, path):
    """The parameter tree, filled tensor by tensor."""
    abstract = dict(trees.named_leaves(_abstract(model)))
    leaves = family.leaves(model)
    stored = {leaf: [name for name in (leaf.name, *leaf.aliases) if name in tensors] for leaf in leaves}
    _check(leaves, stored, tensors, abstract, path)
    load = lambda name: tensors[name][0].get_tensor(tensors[name][1])
    out = {name: np.empty(x.shape, np.float32) for name, x in abstract.items()}
    for leaf in leaves:
        first, *others = stored[leaf]
        tensor = load(first)
        for other in others:
            if not np.array_equal(tensor, load(other)):
                raise UserError(f"{path}: {first} and {other} differ, but the model has one matrix for both")
        for name, part in zip(leaf.paths, leaf.unpack(tensor, _shapes(leaf, abstract)), strict=True):
            out[name][... if leaf.layer is None else leaf.layer] = part
    return trees.nested(out)


def _check(leaves, stored, tensors, abstract, path):
    """Raises UserError unless the file's tensors are the model's, each of its shape."""
    problems, shape = [], {}
    for name, (handle, key) in tensors.items():
        part = handle.get_slice(key)
        shape[name] = tuple(part.get_shape())
        if part.get_dtype() not in _DTYPES:
            problems.append(f"{name}: wanted {' or '.join(_DTYPES)}, found {part.get_dtype()}")
    for leaf in leaves:
        wanted = leaf.shape(_shapes(leaf, abstract))
        if not stored[leaf]:
            problems.append(f"{leaf.name}: wanted {wanted}, found nothing")
        problems += [f"{n}: wanted {wanted}, found {shape[n]}" for n in stored[leaf] if shape[n] != wanted]
    known = {name for names in stored.values() for name in names}
    problems += [f"{name}: wanted nothing, found {shape[name]}" for name in tensors if name not in known]
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise UserError(f"{path} does not fit the model: " + "; ".join(problems[:5]) + more)


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
