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
import pathlib

import jax

from multimodal.layouts import FAMILIES, config_of, differences, family_of
from paradigm import tensor_files
from paradigm.errors import UserError, choose
from t5like import tokenizers


def read(path, tokenizer=None, **changes):
    """An objective and its parameters, from a directory that the transformers library's save_pretrained wrote.

    Args:
        path: directory with config.json and model.safetensors, or its shards and their index.
        tokenizer: of the captions; None is the one whose files lie there too, and without them ids alone can be read.
        changes: fields of the objective in place of what config.json says: augment, host_image_size, locked ...

    Returns:
        (CLIP or SigLIP, params): params a nested dict of float32 numpy arrays, layers stacked.

    Raises:
        UserError: files missing or damaged; an architecture that is not ours; changes that compute something else; a
            tensor that is missing, left over, or of another shape: its name, the shape wanted and the shape found.
    """
    path = pathlib.Path(path)
    config = tensor_files.read_json(path / tensor_files.CONFIG)
    family = choose(f"model_type in {path / tensor_files.CONFIG}", config.get("model_type"), FAMILIES)
    tokenizer = tokenizer or tokenizers.beside(path, family.model_type)
    try:
        found = family.model(config, tokenizer)
    except TypeError as error:
        raise UserError(f"{path / tensor_files.CONFIG} describes no {family.title} ({error})") from None
    objective = dataclasses.replace(found, **changes)
    for field, ours, theirs in differences(objective, found):
        raise UserError(f"{path} holds a {family.title} with {field}={theirs!r}; the model has {field}={ours!r}")
    with contextlib.ExitStack() as stack:
        tensors = tensor_files.open_tensors(path, stack, ignored=family.ignored)
        return objective, tensor_files.load(path, family.leaves(objective), _abstract(objective), tensors)


def write(path, objective, params, **entries):
    """Writes config.json and model.safetensors, in float32, into a directory, which is made.

    The tokenizer goes beside them if it is CLIP's or SigLIP's own; of another the library knows nothing.

    Args:
        path: the directory. What is in it is not written over.
        objective: a CLIP with a ClipViT and a causal text tower, or a SigLIP with attention pooling.
        params: its parameters, numpy or jax arrays, in any sharding of this process.
        entries: of config.json, in place of what the objective says.

    Raises:
        UserError: the library cannot say what the objective computes; the parameters are not its own; a file is there
            already or cannot be written.
    """
    path, family, tokenizer = pathlib.Path(path), family_of(objective), objective.tokenizer
    own = isinstance(tokenizer, (tokenizers.ClipTokenizer, tokenizers.SigLipTokenizer))
    if own and tokenizers.beside(path, family.model_type):
        raise UserError(f"{path} holds a tokenizer and it is not written over: choose another directory")
    config, leaves = config_of(objective) | entries, family.leaves(objective)
    tensor_files.save(path, config, leaves, _abstract(objective), params)
    if own:
        tokenizer.save(path)


def _abstract(objective):
    """Our parameter tree as ShapeDtypeStructs."""
    return jax.eval_shape(objective.init, jax.random.key(0))
