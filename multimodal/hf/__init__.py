"""CLIP and SigLIP, as the transformers library writes them, and CoCa, as open_clip does: modules and parameters, and
objectives.

clip, params = hf.read_objective("clip-vit-base-patch32")
image = clip.embed_images({"params": params}, clip.view(batch))
text = clip.embed_texts({"params": params}, clip.tokenize(["a photo of a cat"]))
probabilities = jax.nn.softmax(clip.logits(params, image, text))
hf.write_objective("exported", clip, params)
"""

import dataclasses
import functools
import pathlib

from multimodal import objectives
from multimodal.hf.clip import CLIP
from multimodal.hf.coca import COCA
from multimodal.hf.siglip import SIGLIP
from multimodal.views import clip_views, siglip_views
from paradigm import hf
from paradigm.capabilities import PairEmbedding, parts
from paradigm.errors import UserError
from paradigm.storage import expand
from t5like import tokenizers
from t5like.vocabulary import Vocabulary
from vision.hf import pixels

FAMILIES = (CLIP, SIGLIP, COCA)
read = functools.partial(hf.read, families=FAMILIES)
write = functools.partial(hf.write, families=FAMILIES)
_OBJECTIVES = {"clip": (objectives.CLIP, clip_views), "siglip": (objectives.SigLIP, siglip_views)}


@dataclasses.dataclass(frozen=True)
class Absent:
    """The place of a tokenizer that did not come with the weights: what is known of its ids."""

    vocab_size: int
    eos_id: int = 1
    pad_id: int = 1
    bos_id: int | None = None

    @property
    def vocabulary(self):
        return Vocabulary(self.vocab_size, pad=self.pad_id, eos=self.eos_id, bos=self.bos_id)

    def encode(self, text):
        raise UserError("these weights came without a tokenizer: give one to the objective that reads texts")


def read_objective(path, tokenizer=None, **changes):
    """An objective and its parameters, from a directory that the transformers library's save_pretrained wrote, or that
    holds open_clip_config.json and open_clip_model.safetensors. Pictures are normalised as its files say, if they do.

    Args:
        path: as `paradigm.hf.read`.
        tokenizer: of the captions; None is the one whose files lie there too, and without them ids alone can be read.
        changes: fields of the objective in place of what the files say: augment, host_image_size ...

    Returns:
        (CLIP, SigLIP or CoCa, params): params a nested dict of float32 numpy arrays, layers stacked.

    Raises:
        UserError: as `paradigm.hf.read`; changes that compute something else.
    """
    modules, params = read(path)
    [family] = hf.family_of(modules, FAMILIES)
    channels = modules["encoder"].channels
    said, _ = hf.moments(expand(path), channels)
    if not said and channels != 3:  # of which the families' are
        said = {"mean": (), "std": ()}
    if family is COCA:
        tokenizer = tokenizer or tokenizers.beside(path, "clip")
        objective = objectives.CoCa(**_coca(modules, tokenizer, said) | changes)
        return _same(objective, family, modules, path), params
    kind, views = _OBJECTIVES[family.model_type]
    encoder, text, image_head = modules["encoder"], modules["text"], modules["image_head"]
    tokenizer = tokenizer or tokenizers.beside(path, family.model_type)
    fields = {
        "encoder": encoder,
        "text": text,
        "width": image_head.width,
        "image_pool": "encoder" if image_head.tower is None else "map",
        "image_projection": image_head.projection,
        "text_projection": modules["text_head"].projection,
        "augment": views(encoder.image_size, **said),
        "host_image_size": encoder.image_size,
        "tokenizer": tokenizer or Absent(text.vocab_size, 1 if text.end_id is None else text.end_id),
    }
    return _same(kind(**fields | changes), family, modules, path), params


def _coca(modules, tokenizer, said):
    """Fields of a CoCa. Without a tokenizer its ids are CLIP's: the last two begin and end a text."""
    encoder, text, pools = modules["encoder"], modules["text"], modules["pools"]
    last = text.vocab_size - 1
    return {
        "encoder": encoder,
        "text": text,
        "width": modules["image_head"].width,
        "queries": pools.queries,
        "image_pool": "one",
        "pool_width": pools.d_model,
        "pool_heads": pools.heads,
        "augment": clip_views(encoder.image_size, **said),
        "host_image_size": encoder.image_size,
        "tokenizer": tokenizer or Absent(text.vocab_size, last, 0, last - 1),
    }


def _same(objective, family, modules, path):
    """The objective. Raises UserError where it computes something else than what was read."""
    for field, ours, theirs in hf.differences(family, _modules(objective), modules):
        raise UserError(f"{path} holds a {family.title} with {field}={theirs!r}; the model has {field}={ours!r}")
    return objective


def write_objective(path, objective, params):
    """Writes config.json, model.safetensors, how pictures are read and the tokenizer, if it is CLIP's or SigLIP's own,
    into a directory.

    Args: as `paradigm.hf.write`. objective: a CLIP with a ClipViT and a causal text tower, a SigLIP with attention
        pooling, or a CoCa with open_clip's settings (objectives/coca_open_clip.gin), whose files are open_clip's; or a
        combination with one of them in it (SLIP).

    Raises:
        UserError: as `paradigm.hf.write`; a tokenizer, or how pictures are read, is there already.
    """
    objective, left = _towers(objective)
    params, tokenizer = {name: x for name, x in params.items() if name not in left}, objective.tokenizer
    own = isinstance(tokenizer, (tokenizers.ClipTokenizer, tokenizers.SigLipTokenizer))
    if own and any(tokenizers.beside(path, kind) for kind in _OBJECTIVES):
        raise UserError(f"{path} holds a tokenizer and it is not written over: choose another directory")
    view, channels = objective.views[0], objective.encoder.channels
    if isinstance(objective, objectives.CoCa):
        how = {"resize_mode": "squash" if objective.ignore_aspect else "shortest", "interpolation": view.filter}
        left += write(path, _modules(objective), params, preprocess_cfg=how | pixels.moments(view, channels))
    else:
        write_pixels = pixels.writer(path, view, channels, objective.ignore_aspect)
        left += write(path, _modules(objective), params, text_config=_ids(objective))
        write_pixels()
    if own:
        tokenizer.save(pathlib.Path(path))
    return left


def texts_end(objective):
    """True: captions end with eos, as the run's tokenizer, which goes along, is to have it; None: it has its own."""
    return True if _towers(objective)[0].tokenizer is None else None


def _towers(objective):
    """(the part of an objective that has two towers, itself where there is none; names of modules of others alone)."""
    found = next((part.objective for part in parts(objective) if isinstance(part.objective, PairEmbedding)), objective)
    return found, [name for name in objective.modules() if name not in found.modules()]


def _ids(objective):
    """What an objective knows for config.json beside its modules: the ids of its tokenizer."""
    ids = {
        "bos_token_id": objective.vocabulary.bos,
        "eos_token_id": objective.vocabulary.end,
        "pad_token_id": objective.vocabulary.filler,
    }
    if objective.text.pool != "last":
        del ids["eos_token_id"]  # where the tower is pooled, which it knows
    return ids


def _modules(objective):
    return {name: module for name, (module, _) in objective.modules().items()}
