"""Filling masks: what an encoder that was trained by masked language modelling puts in the place of <mask>."""

import functools
import numbers
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from paradigm.errors import UserError
from t5like.models import Encoder
from t5like.tokenizers.base import check_texts

_MASK = re.compile(r"( ?)(?:<mask>|\[MASK\])")
ROUNDED = 64  # texts are padded to a multiple, so that few lengths are compiled


class Filled(NamedTuple):
    """text: with each mask's likeliest token. choices: of each mask, ((piece, probability), ...), likeliest first."""

    text: str
    choices: tuple

    def __str__(self):
        return self.text


def fill_mask(objective, variables, tokenizer, text, top=5):
    """What may stand at each <mask> (or [MASK]) of a text, each by itself: one token a mask.

    A space before a mask belongs to it, but where every byte is a token of its own.

    Args:
        objective: one with an Encoder. variables: of objective.apply. tokenizer: the one that it was trained with.
        top: choices a mask.

    Returns:
        Filled.

    Raises:
        UserError: no mask in the text, or more tokens than the model has positions; another kind of model; a tokenizer
            without a mask.
    """
    model, v = objective.model, tokenizer.vocabulary
    if not isinstance(model, Encoder):
        raise UserError(f"fill_mask asks an Encoder, and the model is a {type(model).__name__}: use infill or generate")
    if v.mask is None:
        raise UserError("fill_mask: the tokenizer has no mask; take the one that the model was trained with")
    check_texts("fill_mask", [text], "a text is wanted")
    if not _MASK.search(text):
        raise UserError("fill_mask: there is no mask in the text; write <mask> where a token is to be found")
    if not isinstance(top, numbers.Integral) or not 1 <= top <= v.text_ids:
        raise UserError(f"fill_mask: top={top} of {v.text_ids} tokens that spell text; choose 1 or more, and no more")
    parts = [part for n, part in enumerate(_MASK.split(text)) if n % 2 == 0]
    if tokenizer.kind == "bytes":
        parts = [part + space for part, space in zip(parts, [*_MASK.findall(text), ""])]
    ids = tokenizer.encode(parts[0]).tolist() if parts[0] else []
    for part, behind in zip(parts[1:], tokenizer.encode_behind(parts[1:])):
        ids += [v.mask, *(behind.tolist() if part else [])]
    ids = np.array([i for i in (v.cls, *ids, v.sep) if i is not None], np.int32)
    if model.positions == "learned" and len(ids) > model.places:
        raise UserError(f"fill_mask: a text of {len(ids)} tokens, and the model has {model.places} learned positions")
    width = -(-len(ids) // ROUNDED) * ROUNDED
    width = min(width, model.places) if model.positions == "learned" else width
    pad = lambda row, filler: jnp.asarray(np.pad(row, (0, width - len(row)), constant_values=filler)[None], jnp.int32)
    logits = _logits(objective, variables, pad(ids, v.filler), pad(np.ones(len(ids), int), 0))[0]
    places = np.flatnonzero(ids == v.mask)
    scores = jnp.where(v.is_text(np.arange(logits.shape[-1])), logits, -jnp.inf)
    chances, found = map(np.asarray, jax.lax.top_k(jax.nn.softmax(scores[places]), top))
    choices = [[(tokenizer.decode([i]), float(p)) for i, p in zip(*row)] for row in zip(found, chances)]
    ids[places] = found[:, 0]
    return Filled(tokenizer.decode(ids), tuple(map(tuple, choices)))


@functools.partial(jax.jit, static_argnums=0)
def _logits(objective, variables, tokens, segments):
    return objective.apply("model", variables, tokens, None, segments)[0]
