"""Weights of CLIP and SigLIP in the transformers library's format, config.json and safetensors, read and written.

    clip, params = weights.read("clip-vit-base-patch32")
    image = clip.embed_images({"params": params}, clip.view(batch))
    text = clip.embed_texts({"params": params}, clip.tokenize(["a photo of a cat"]))
    probabilities = jax.nn.softmax(clip.logits(params, image, text))
    weights.write("exported", clip, params)

`multimodal.layouts` has the tables. Tensors pass one at a time. Reading is strict: a tensor that is missing, left over
or of another shape is an error.
"""

import contextlib
import dataclasses
import json
import pathlib

import jax
import numpy as np

from multimodal import tokenizers
from multimodal.layouts import FAMILIES, config_of, differences, family_of
from paradigm import trees
from paradigm.errors import UserError, choose
from vision import weights as files

CONFIG, TENSORS, INDEX = files.CONFIG, files.TENSORS, files.INDEX


def read(path, tokenizer=None, **changes):
    """An objective and its parameters, from a directory that the transformers library's save_pretrained wrote.

    Args:
        path: directory with config.json and model.safetensors, or its shards and their index.
        tokenizer: of the captions; None is the one whose files lie there too, and without them ids alone can be read.
        changes: fields of the objective in place of what config.json says: augment, canvas, locked ...

    Returns:
        (CLIP or SigLIP, params): params a nested dict of float32 numpy arrays, layers stacked.

    Raises:
        UserError: files missing or damaged; an architecture that is not ours; changes that compute something else; a
            tensor that is missing, left over, or of another shape: its name, the shape wanted and the shape found.
    """
    path = pathlib.Path(path)
    config = files._json(path / CONFIG)
    family = choose(f"model_type in {path / CONFIG}", config.get("model_type"), FAMILIES)
    tokenizer = tokenizer or tokenizers.beside(path, family.model_type)
    try:
        found = family.model(config, tokenizer)
    except KeyError as error:
        raise UserError(f"{path / CONFIG} lacks {error}, which a {family.title} needs") from None
    objective = dataclasses.replace(found, **changes)
    for field, ours, theirs in differences(objective, found):
        raise UserError(f"{path} holds a {family.title} with {field}={theirs!r}; the model has {field}={ours!r}")
    with contextlib.ExitStack() as stack:
        return objective, _params(objective, family, files._tensors(path, family, stack), path)


def write(path, objective, params, **entries):
    """Writes config.json and model.safetensors, in float32, into a directory, which is made.

    Args:
        path: the directory. What is in it is not written over.
        objective: a CLIP with a ClipViT and a causal text tower, or a SigLIP with attention pooling.
        params: its parameters, numpy or jax arrays, in any sharding of this process.
        entries: of config.json, in place of what the objective says.

    Raises:
        UserError: the library cannot say what the objective computes; the parameters are not its own; a file is there
            already or cannot be written.
    """
    path = pathlib.Path(path)
    config, abstract = config_of(objective) | entries, _abstract(objective)
    params = dict(trees.named_leaves(trees.merge_strict(abstract, params, "params")))
    for name in (CONFIG, TENSORS, INDEX):
        if (path / name).exists():
            raise UserError(f"{path / name} exists and is not written over: choose another directory")
    shapes, leaves = dict(trees.named_leaves(abstract)), family_of(objective).leaves(objective)

    def tensor(leaf):  # called when its turn has come: a slice of a jax array is a copy
        return leaf.pack([np.asarray(params[p] if leaf.layer is None else params[p][leaf.layer]) for p in leaf.paths])

    header = [(leaf.name, leaf.shape(_shapes(leaf, shapes))) for leaf in leaves]
    try:
        path.mkdir(parents=True, exist_ok=True)
        files._save(path / TENSORS, header, (tensor(leaf) for leaf in leaves))
        (path / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None


def _abstract(objective):
    """Our parameter tree as ShapeDtypeStructs."""
    return jax.eval_shape(objective.init, jax.random.key(0))


def _shapes(leaf, abstract):
    return [abstract[path].shape[leaf.layer is not None :] for path in leaf.paths]


def _params(objective, family, tensors, path):
    """The parameter tree, filled tensor by tensor."""
    abstract, leaves = dict(trees.named_leaves(_abstract(objective))), family.leaves(objective)
    _check(leaves, tensors, abstract, path)
    out = {name: np.empty(x.shape, np.float32) for name, x in abstract.items()}
    for leaf in leaves:
        handle, key = tensors[leaf.name]
        parts = leaf.unpack(np.asarray(handle.get_tensor(key), np.float32), _shapes(leaf, abstract))
        for name, part in zip(leaf.paths, parts, strict=True):
            out[name][... if leaf.layer is None else leaf.layer] = part
    return trees.nested(out)


def _check(leaves, tensors, abstract, path):
    """Raises UserError unless the file's tensors are the model's, each of its shape."""
    problems, shape = [], {}
    for name, (handle, key) in tensors.items():
        part = handle.get_slice(key)
        shape[name] = tuple(part.get_shape())
        if part.get_dtype() not in files._DTYPES:
            problems.append(f"{name}: wanted {' or '.join(files._DTYPES)}, found {part.get_dtype()}")
    for leaf in leaves:
        wanted, found = leaf.shape(_shapes(leaf, abstract)), shape.get(leaf.name, "nothing")
        if wanted != found:
            problems.append(f"{leaf.name}: wanted {wanted}, found {found}")
    known = {leaf.name for leaf in leaves}
    problems += [f"{name}: wanted nothing, found {shape[name]}" for name in tensors if name not in known]
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise UserError(f"{path} does not fit the model: " + "; ".join(problems[:5]) + more)
