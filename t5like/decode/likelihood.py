"""How probable given continuations are: what few-shot and multiple-choice evaluation ranks answers by."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from paradigm.errors import UserError
from paradigm.losses import chunked_cross_entropy
from t5like.decode.steps import batch_of
from t5like.models import Decoder, EncoderDecoder


class Score(NamedTuple):
    """log_likelihood: nats, of all tokens together. tokens: how many. greedy: whether each is the most probable."""

    log_likelihood: float
    tokens: int
    greedy: bool


@functools.partial(jax.jit, static_argnames=("objective", "prefix"))
def _scored(objective, variables, read, lengths, begins, ends, inputs, segments, prefix):
    """(nll [B, L], correct [B, L], weights [B, L]) of the tokens begins .. ends - 1 of rows that start with the start
    id."""
    places = jnp.arange(read.shape[1] - 1)
    weights = ((places >= begins[:, None] - 1) & (places < ends[:, None] - 1)).astype(jnp.float32)
    apply = functools.partial(objective.apply, "model", variables, method="hidden")
    if inputs is None:
        hidden = apply(read[:, :-1], prefix=begins if prefix else None)[0]
    else:
        real = (jnp.arange(read.shape[1] - 1) < lengths[:, None]).astype(jnp.int32)
        hidden = apply(inputs, read[:, :-1], input_segments=segments, target_segments=real)[0]
    kernel = objective.output_kernel(variables["params"])
    found = chunked_cross_entropy(hidden, kernel, read[:, 1:], weights)
    return found.nll, found.correct, weights


def score_rows(objective, variables, prompts, continuations, vocabulary, prefix=False):
    """`score` of ids: lists of int arrays, as many prompts as continuations. An EncoderDecoder's encoder reads the
    prompts, the vocabulary's end behind them."""
    if len(prompts) != len(continuations):
        raise UserError(f"score: {len(prompts)} prompts and {len(continuations)} continuations: give one for each")
    if short := [i for i, row in enumerate(continuations) if not len(row)]:
        raise UserError(f"score: continuation {short[0]} is empty: there is nothing to score")
    model, inputs = objective.model, None
    if not isinstance(model, Decoder | EncoderDecoder):
        raise UserError(f"score does not work with a {type(model).__name__}: a Decoder or an EncoderDecoder can")
    rows, skip = [np.r_[p, c].astype(np.int32) for p, c in zip(prompts, continuations)], [len(p) for p in prompts]
    if isinstance(model, EncoderDecoder):
        rows, skip = list(continuations), [0] * len(prompts)
        inputs = [np.r_[p, vocabulary.end].astype(np.int32) for p in prompts]
    # The last token is predicted and not read.
    read, lengths, source, segments = batch_of(objective, vocabulary, [row[:-1] for row in rows], 1, inputs)
    full = np.pad(read, ((0, 0), (0, 1)), constant_values=vocabulary.filler)
    count = len(full)
    for i, row in enumerate(full):
        row[lengths[i]] = rows[i % len(rows)][-1]
    begins = np.resize(skip, count).astype(np.int32) + 1
    found = _scored(objective, variables, full, lengths, begins, lengths + 1, source, segments, prefix)
    nll, correct, weights = (np.asarray(x)[: len(rows)] for x in jax.device_get(found))
    total, hits, tokens = (nll * weights).sum(1), (correct * weights).sum(1), weights.sum(1)
    return [Score(-float(t), int(n), bool(h == n)) for t, h, n in zip(total, hits, tokens)]


def score(objective, variables, tokenizer, prompts, continuations, prefix=False):
    """The log-likelihood of each continuation after its prompt.

    Args:
        objective: one with a Decoder or an EncoderDecoder. variables: of objective.apply. tokenizer: of its training.
        prompts, continuations: as many str of each. A space between them belongs to the continuation.
        prefix: for a Decoder trained as a prefix LM: the prompt is then seen both ways.

    Returns:
        list of Score.

    Raises:
        UserError: other counts, an empty continuation, a text longer than the model's positions.
    """
    ids = (tokenizer.encode_batch(texts) for texts in (prompts, continuations))
    return score_rows(objective, variables, *ids, tokenizer.vocabulary, prefix)
