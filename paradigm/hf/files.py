"""The files themselves: config.json and safetensors, read and written one tensor at a time, nothing unpickled."""

import json
import math
import re
import struct

import numpy as np

from paradigm import storage, trees
from paradigm.errors import UserError
from paradigm.hf.leaves import Absent, Constant
from paradigm.names import few

CONFIG, TENSORS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
OPEN_CLIP = ("open_clip_config.json", "open_clip_model.safetensors")  # the same of open_clip, whose settings lie deeper
PICKLES = {
    TENSORS: "pytorch_model.bin",
    OPEN_CLIP[1]: "open_clip_pytorch_model.bin",
    "adapter_model.safetensors": "adapter_model.bin",
}
DTYPES = ("F32", "F16", "BF16")  # read as float32; F32 is written
# Files that say how pictures are read, what in them, and what mean and deviation are called there. The first counts:
# version 5 of the library writes a pair's processors into one file.
PIXELS = (
    ("processor_config.json", "image_processor", ("image_mean", "image_std")),
    ("preprocessor_config.json", None, ("image_mean", "image_std")),
    (OPEN_CLIP[0], "preprocess_cfg", ("mean", "std")),
)
ROUNDING = 1e-5  # how far a constant may be from its formula: float32's rounding, where it was computed another way


def described(path):
    """(the path of a directory's config.json or open_clip_config.json, its entries, the name of its tensors' file).

    open_clip's entries are those of its `model_cfg`, of model_type "open_clip". Raises UserError.
    """
    where, tensors = path / CONFIG, TENSORS
    if not where.exists() and (path / OPEN_CLIP[0]).exists():
        where, tensors = path / OPEN_CLIP[0], OPEN_CLIP[1]
    entries = read_json(where)
    if tensors != TENSORS:
        found = entries.get("model_cfg") if isinstance(entries, dict) else None
        if not isinstance(found, dict):
            raise UserError(f"{where} has no model_cfg: it is not one that open_clip wrote")
        entries = {"model_type": "open_clip", **found}
    return where, entries, tensors


def read_json(path):
    """The object in a JSON file. Raises UserError."""
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: name a directory that save_pretrained wrote") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def moments(path, channels):
    """({"mean", "std"}: a tuple [channels] of each, by which a directory's pictures, from 0 to 1, are normalised; the
    file that says so), or ({}, None) where none does. Raises UserError."""
    for name, inside, names in PIXELS:
        found = read_json(path / name) if (path / name).is_file() else None
        said = found.get(inside) if inside and isinstance(found, dict) else found
        said = said if isinstance(said, dict) else {}
        normalised = said.get("do_normalize", True)
        if not normalised or all(said.get(n) is not None for n in names):
            break
    else:
        return {}, None
    both = [said[n] for n in names] if normalised else [0, 1]
    factor = said.get("rescale_factor") or 1 / 255
    try:
        white = 255 * float(factor) if said.get("do_rescale", True) else 255.0
        mean, std = (np.broadcast_to(np.asarray(x, np.float64) / white, channels).tolist() for x in both)
    except (TypeError, ValueError):
        mean, std = (), (0,)
    if not (np.isfinite([*mean, *std]).all() and min(std) > 0):
        raise UserError(
            f"{path / name} has {names[0]}={both[0]!r}, {names[1]}={both[1]!r} and rescale_factor={factor!r}, and the "
            f"model reads {channels} channels: give a number for each, deviations above 0"
        )
    return {"mean": tuple(mean), "std": tuple(std)}, path / name


def _listed(path):
    """{tensor: its file} of an index of shards. Raises UserError."""
    index = read_json(path)
    listed = index.get("weight_map") if isinstance(index, dict) else None
    if not (isinstance(listed, dict) and listed and all(isinstance(file, str) for file in listed.values())):
        raise UserError(f"{path} has no weight_map, which says the file of each tensor: copy it again")
    return listed


def _without(path, file):
    """What is wrong with a directory that lacks its tensors."""
    if (path / PICKLES[file]).exists():
        return f"{path} holds a pickle, {PICKLES[file]}, which is not loaded: save it again as safetensors"
    if found := sorted(p.name for p in path.glob("*.safetensors")):
        return f"{path} holds {few(found, 2)} and no {INDEX}, which says what is in them: copy it too"
    return f"{path / file} cannot be read as safetensors: there is no such file"


class Tensors:
    """The tensors of a directory, over all its shards: name -> shape, kind and, when asked for, the array.

    Args:
        stack: an ExitStack that closes the files.
        rename: name in the file -> name in the family's table.
        ignored: regex of the table's names that no model of ours reads.

    Raises:
        UserError: the library is not installed, a file is missing or damaged, or it is a pickle.
    """

    def __init__(self, path, stack, rename, ignored, file=TENSORS):
        try:
            import safetensors
        except ImportError:
            raise UserError('reading weights needs safetensors: pip install -e ".[weights]" in the checkout') from None
        listed = _listed(path / INDEX) if (path / INDEX).exists() else {}
        if not listed and not (path / file).exists():
            raise UserError(_without(path, file))
        self._places = {}
        for shard in sorted({*listed.values()} or {file}):
            if not (path / shard).exists():
                raise UserError(f"{path / shard} cannot be read as safetensors: it is missing, and {INDEX} names it")
            try:
                handle = stack.enter_context(safetensors.safe_open(path / shard, framework="numpy"))
            except (OSError, safetensors.SafetensorError) as error:
                raise UserError(f"{path / shard} cannot be read as safetensors: {error}") from None
            found = {rename(key): (handle, key) for key in handle.keys()}
            for name, (_, key) in found.items():
                if name in self._places and listed.get(key) != shard:  # as the library does, which asks the index
                    found[name] = self._places[name]
            self._places |= found
        self._places = {name: place for name, place in self._places.items() if not re.fullmatch(ignored, name)}

    def __contains__(self, name):
        return name in self._places

    def __iter__(self):
        return iter(self._places)

    def described(self, name):
        """(shape, kind) without reading it."""
        handle, key = self._places[name]
        part = handle.get_slice(key)
        return tuple(part.get_shape()), part.get_dtype()

    def read(self, name):
        """The array, float32."""
        handle, key = self._places[name]
        return np.asarray(handle.get_tensor(key), np.float32)


def load(path, leaves, abstract, tensors):
    """Our parameter tree, float32 numpy arrays, filled tensor by tensor.

    Args:
        path: for error texts. leaves: [Leaf]. abstract: our tree of ShapeDtypeStructs.
        tensors: Tensors.

    Raises:
        UserError: a tensor that is missing, left over, or of another shape (its name, the shape wanted, the shape
            found); two names of one tensor that differ; one that is not finite, or not the constant that it must be.
    """
    abstract = dict(trees.named_leaves(abstract))
    named = {leaf: [name for name in (leaf.name, *leaf.aliases) if name in tensors] for leaf in leaves}
    constant = {leaf: leaf.how.value for leaf in leaves if isinstance(leaf.how, Absent)}
    constant |= {leaf: leaf.missing for leaf in leaves if leaf.missing is not None and not named[leaf]}
    stored = {leaf: names for leaf, names in named.items() if leaf not in constant}
    _check(stored, tensors, abstract, path)
    out = {name: np.empty(x.shape, np.float32) for name, x in abstract.items()}
    for leaf, value in constant.items():
        for name in leaf.paths:
            out[name][... if leaf.layer is None else leaf.layer] = value
    for leaf, (first, *others) in stored.items():
        tensor = tensors.read(first)
        if not np.isfinite(tensor).all():
            raise UserError(f"{path}: {first} holds {'NaN' if np.isnan(tensor).any() else 'infinity'}: write it again")
        for other in others:
            if not np.array_equal(tensor, tensors.read(other)):
                raise UserError(f"{path}: {first} and {other} differ, but the model has one matrix for both")
        if isinstance(leaf.how, Constant) and not np.allclose(tensor, leaf.how.value, rtol=0, atol=ROUNDING):
            raise UserError(f"{path}: {first} is not {leaf.how.what}")
        for name, part in zip(leaf.paths, leaf.how.unpack(tensor, _shapes(leaf, abstract)), strict=True):
            out[name][... if leaf.layer is None else leaf.layer] = part
    return trees.nested(out)


def save(path, config, leaves, abstract, params, rename):
    """Writes config.json and model.safetensors, in float32, into a directory, which is made; open_clip's files where
    that is the config's model_type.

    Args:
        path: the directory; what is in it is not written over. config: dict. leaves: [Leaf].
        abstract: our tree of ShapeDtypeStructs. params: the same of numpy or jax arrays, in any sharding of this
            process. rename: name in the table -> name in the file.

    Raises:
        UserError: the parameters are not the model's; a file is there already or cannot be written.
    """
    params = dict(trees.named_leaves(trees.merge_strict(abstract, params, "params")))
    abstract = dict(trees.named_leaves(abstract))
    leaves = [leaf for leaf in leaves if not isinstance(leaf.how, Absent)]
    place, file = CONFIG, TENSORS
    if config.get("model_type") == "open_clip":
        (place, file), beside = OPEN_CLIP, ("model_type", "preprocess_cfg")
        shown = {"preprocess_cfg": config["preprocess_cfg"]} if "preprocess_cfg" in config else {}
        config = {"model_cfg": {k: v for k, v in config.items() if k not in beside}, **shown}
    for name in (CONFIG, TENSORS, INDEX, *OPEN_CLIP):
        if (path / name).exists():
            raise UserError(f"{path / name} exists and is not written over: choose another directory")

    def tensor(leaf):  # called when its turn has come: a slice of a jax array is a copy
        return leaf.how.pack(
            [np.asarray(params[p] if leaf.layer is None else params[p][leaf.layer]) for p in leaf.paths]
        )

    header = [(rename(leaf.name), leaf.how.shape(_shapes(leaf, abstract))) for leaf in leaves]
    try:
        path.mkdir(parents=True, exist_ok=True)
        _write(path / file, header, (tensor(leaf) for leaf in leaves))
        (path / place).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None


def write_tensors(path, tensors):
    """A safetensors file of {name: float32 array}."""
    _write(path, [(name, x.shape) for name, x in tensors.items()], tensors.values())


def _shapes(leaf, abstract):
    return [abstract[path].shape[leaf.layer is not None :] for path in leaf.paths]


def _check(stored, tensors, abstract, path):
    """Raises UserError unless the file's tensors are the model's, each of its shape."""
    problems, shape = [], {}
    for name in tensors:
        shape[name], kind = tensors.described(name)
        if kind not in DTYPES:
            problems.append(f"{name}: wanted {' or '.join(DTYPES)}, found {kind}")
    for leaf, names in stored.items():
        wanted = leaf.how.shape(_shapes(leaf, abstract))
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
    with storage.replacing(path) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for array in arrays:
            file.write(np.ascontiguousarray(array, dtype="<f4").data)
