"""Weights in the transformers library's files: config.json and safetensors, read and written one tensor at a time.

A layout says which tensor is which of our parameters, as a list of leaves with

    name, aliases            the tensor's, and others that released files have for it
    paths, layer             our parameters that it holds, and their index on the stacked axis or None
    constant                 what the tensor must be where no parameter of ours holds it (paths is then empty), or None
    shape(shapes)            the tensor's shape, from the shapes of ours without the layer axis
    pack(arrays)             our arrays -> the tensor
    unpack(tensor, shapes)   its inverse

Reading is strict: a tensor that is missing, left over or of another shape is an error. Nothing is unpickled.
"""

import json
import math
import os
import re
import struct

import numpy as np

from paradigm import trees
from paradigm.errors import UserError

CONFIG, TENSORS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
DTYPES = ("F32", "F16", "BF16")  # read as float32; F32 is written
ROUNDING = 4e-3  # how far a constant may be from its formula: bfloat16's rounding


def read_json(path):
    """The object in a JSON file. Raises UserError."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} is missing: name a directory that save_pretrained wrote") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def open_tensors(path, stack, rename=lambda name: name, ignored=r"$^"):
    """name -> (open file, name in it) over all shards of a directory.

    Args:
        stack: an ExitStack that closes the files.
        rename: name in the file -> name in the layout.
        ignored: regex of the layout's names that no model of ours reads.

    Raises:
        UserError: the library is not installed, a file is missing or damaged, or it is a pickle.
    """
    try:
        import safetensors
    except ImportError:
        raise UserError('reading weights needs safetensors: pip install -e ".[weights]" in the checkout') from None
    files = [TENSORS]
    if (path / INDEX).exists():
        files = sorted(set(read_json(path / INDEX)["weight_map"].values()))
    elif not (path / TENSORS).exists() and (path / "pytorch_model.bin").exists():
        raise UserError(f"{path} holds a pickle, pytorch_model.bin, which is not loaded: save it again as safetensors")
    tensors = {}
    for file in files:
        try:
            handle = stack.enter_context(safetensors.safe_open(path / file, framework="numpy"))
        except (OSError, safetensors.SafetensorError) as error:
            raise UserError(f"{path / file} cannot be read as safetensors: {error}") from None
        tensors |= {rename(key): (handle, key) for key in handle.keys()}
    return {name: place for name, place in tensors.items() if not re.fullmatch(ignored, name)}


def load(path, leaves, abstract, tensors):
    """Our parameter tree, float32 numpy arrays, filled tensor by tensor.

    Args:
        path: for error texts. leaves: of the layout. abstract: our tree of ShapeDtypeStructs.
        tensors: from `open_tensors`.

    Raises:
        UserError: a tensor that is missing, left over, or of another shape (its name, the shape wanted, the shape
            found); two names of one tensor that differ; one that is not the constant that it must be.
    """
    abstract = dict(trees.named_leaves(abstract))
    stored = {leaf: [name for name in (leaf.name, *leaf.aliases) if name in tensors] for leaf in leaves}
    _check(stored, tensors, abstract, path)
    read = lambda name: tensors[name][0].get_tensor(tensors[name][1])
    out = {name: np.empty(x.shape, np.float32) for name, x in abstract.items()}
    for leaf, (first, *others) in stored.items():
        tensor = np.asarray(read(first), np.float32)
        for other in others:
            if not np.array_equal(tensor, np.asarray(read(other), np.float32)):
                raise UserError(f"{path}: {first} and {other} differ, but the model has one matrix for both")
        if leaf.constant is not None and np.abs(tensor - leaf.constant).max() > ROUNDING:
            raise UserError(
                f"{path}: {first} is not the table of fixed sine and cosine positions that the model has: "
                "for the encoder, give one with positions='learned'"
            )
        for name, part in zip(leaf.paths, leaf.unpack(tensor, _shapes(leaf, abstract)), strict=True):
            out[name][... if leaf.layer is None else leaf.layer] = part
    return trees.nested(out)


def save(path, config, leaves, abstract, params, rename=lambda name: name):
    """Writes config.json and model.safetensors, in float32, into a directory, which is made.

    Args:
        path: the directory; what is in it is not written over. config: dict. leaves: of the layout.
        abstract: our tree of ShapeDtypeStructs. params: the same of numpy or jax arrays, in any sharding of this
            process. rename: name in the layout -> name in the file.

    Raises:
        UserError: the parameters are not the model's; a file is there already or cannot be written.
    """
    params = dict(trees.named_leaves(trees.merge_strict(abstract, params, "params")))
    abstract = dict(trees.named_leaves(abstract))
    for name in (CONFIG, TENSORS, INDEX):
        if (path / name).exists():
            raise UserError(f"{path / name} exists and is not written over: choose another directory")

    def tensor(leaf):  # called when its turn has come: a slice of a jax array is a copy
        if leaf.constant is not None:
            return leaf.constant
        return leaf.pack([np.asarray(params[p] if leaf.layer is None else params[p][leaf.layer]) for p in leaf.paths])

    header = [(rename(leaf.name), leaf.shape(_shapes(leaf, abstract))) for leaf in leaves]
    try:
        path.mkdir(parents=True, exist_ok=True)
        _write(path / TENSORS, header, (tensor(leaf) for leaf in leaves))
        (path / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None


def _shapes(leaf, abstract):
    return [abstract[path].shape[leaf.layer is not None :] for path in leaf.paths]


def _check(stored, tensors, abstract, path):
    """Raises UserError unless the file's tensors are the model's, each of its shape."""
    problems, shape = [], {}
    for name, (handle, key) in tensors.items():
        part = handle.get_slice(key)
        shape[name] = tuple(part.get_shape())
        if part.get_dtype() not in DTYPES:
            problems.append(f"{name}: wanted {' or '.join(DTYPES)}, found {part.get_dtype()}")
    for leaf, names in stored.items():
        wanted = leaf.shape(_shapes(leaf, abstract))
        if not names:
            problems.append(f"{leaf.name}: wanted {wanted}, found nothing")
        problems += [f"{n}: wanted {wanted}, found {shape[n]}" for n in names if shape[n] != wanted]
    known = {name for names in stored.values() for name in names}
    problems += [f"{name}: wanted nothing, found {shape[name]}" for name in tensors if name not in known]
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise UserError(f"{path} does not fit the model: " + "; ".join(problems[:5]) + more)


def _write(path, header, arrays):
    """A safetensors file: a header made from [(name, shape)], then the arrays, taken one after another.

    The safetensors library wants all arrays at once, which would hold the parameters twice.
    """
    entries, end = {"__metadata__": {"format": "pt"}}, 0  # the transformers library refuses a file without `format`
    for name, shape in header:
        start, end = end, end + 4 * math.prod(shape)
        entries[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data begins aligned
    unfinished = path.with_name(path.name + ".tmp")
    with open(unfinished, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for array in arrays:
            file.write(np.ascontiguousarray(array, dtype="<f4").data)
        file.flush()
        os.fsync(file.fileno())
    unfinished.rename(path)
