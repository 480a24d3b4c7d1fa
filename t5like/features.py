"""Hidden states of texts, as probes and notebooks read them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from paradigm.errors import UserError, choose
from t5like.heads import pooled
from t5like.models import Decoder, Encoder, EncoderDecoder

BATCH = 64


def ends(objective):
    """(ids before a text, ids behind it) of one that the objective's model reads by itself."""
    v, model = objective.known, objective.model
    if isinstance(model, Decoder):
        return [v.start], []
    return tuple([i for i in (x,) if i is not None] if isinstance(model, Encoder) else [] for x in (v.cls, v.sep))


def check_pool(model, pool, name):
    """Raises UserError for an unknown pool, and for the first place of a Decoder."""
    choose(name, pool, dict.fromkeys(("mean", "cls")))
    if pool == "cls" and isinstance(model, Decoder):
        raise UserError(f"{name}='cls': a Decoder's first place has seen nothing of the text: set 'mean'")


def read(objective, variables, ids, length, pool="mean", layer=None):
    """Hidden states of texts that are cut to `length` tokens, the ends included.

    Args:
        objective: TextFeatures. variables: of objective.apply. ids: a list of lists of ids.
        pool: mean over a text's tokens or cls, its first; None for all tokens. layer: whose output, from 0, negative
        from the end; None: the model's last, normed.

    Returns:
        (float32 [N, D], or [N, L, D] without a pool; segments int32 [N, L], 0 for padding).
    """
    front, back = ends(objective)
    found = []
    for at in range(0, len(ids), BATCH):
        tokens = np.full((BATCH, length), objective.known.filler, np.int32)
        segments = np.zeros((BATCH, length), np.int32)
        for row, text in enumerate(ids[at : at + BATCH]):
            whole = [*front, *text[: length - len(front) - len(back)], *back]
            tokens[row, : len(whole)], segments[row, : len(whole)] = whole, 1
        x, real = _encode(objective, layer, pool, variables, tokens, segments), len(ids[at : at + BATCH])
        found.append((np.asarray(x)[:real], segments[:real]))
    return tuple(map(np.concatenate, zip(*found)))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _encode(objective, layer, pool, variables, tokens, segments):
    """[B, L] -> float32 [B, D], or [B, L, D] without a pool."""
    model = objective.model
    if isinstance(model, EncoderDecoder):
        x, more, _ = objective.apply("model", variables, tokens, None, segments, method="encode")
    else:
        x, more, _ = objective.apply("model", variables, tokens, None, segments, method="hidden")
        x = more.get("encoded", x)  # before an encoder's head
    x = x if layer is None else more["layers"][layer]
    return (x if pool is None else pooled(x, segments, pool)).astype(jnp.float32)


def check_layer(model, layer, setting):
    """Raises UserError unless a layer, None for the last one's output, is one of the model's."""
    if layer is not None and not (type(layer) is int and -model.layers <= layer < model.layers):
        raise UserError(f"{setting}={layer!r}: the model has layers 0 to {model.layers - 1}")


def embed(objective, variables, tokenizer, texts, pool="mean", layer=None):
    """Vectors of texts, float32 [n, D]; of one, [D]. pool, layer: as of `read`.

    Raises:
        UserError: what is no text, a text of more tokens than the model has positions or of none, or a pool that the
            model has not.
    """
    if isinstance(texts, str):
        return embed(objective, variables, tokenizer, [texts], pool, layer)[0]
    if not (isinstance(texts, (list, tuple)) and all(isinstance(text, str) for text in texts)):
        raise UserError("embed: this run reads texts: give a text, or a list of them")
    check_pool(objective.model, pool, "embed: pool")
    check_layer(objective.model, layer, "embed: layer")
    model, ids = objective.model, tokenizer.encode_batch(texts)
    more = sum(map(len, ends(objective)))
    lengths = [len(text) + more for text in ids]
    for text, length in zip(texts, lengths):
        if not length:
            raise UserError(f"embed: {text!r} has no token: leave it out")
        if model.positions == "learned" and length > model.places:
            said = f"{text[:40]!r}... is of {length} tokens, and the model has {model.places} positions"
            raise UserError(f"embed: {said}: cut it, or give its parts")
    if not ids:
        return np.zeros((0, model.d_model), np.float32)
    length = 1 << (max(lengths) - 1).bit_length()  # few shapes, few programs
    length = min(length, model.places) if model.positions == "learned" else length
    return read(objective, variables, ids, length, pool, layer)[0]
