"""How probable given tokens are: of sentences, which what ranks sentences asks for, and of continuations of a prompt,
which few-shot and multiple-choice evaluation ranks answers by.

Everything scored is a Row: what a model reads once, and the tokens that are to be predicted at some places of it. How
an objective's model is asked for the tokens of a sentence is the objective's to say (capabilities.SentenceScoring):

    causal      log p(x[t] | x[<t])                        their sum is the log-likelihood of the sentence
    hidden      log p(x[t] | x with t alone hidden)        their sum is its pseudo-log-likelihood

(Salazar et al. 2020, "Masked Language Model Scoring", sections 2.1 and 2.3). What compares sentences by the sum
compares models of all kinds by one protocol.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from paradigm.errors import UserError
from paradigm.losses import chunked_cross_entropy
from t5like.decode.steps import check_room, padded, room, rounded, whole_rows
from t5like.models import Decoder, Encoder, EncoderDecoder

TOKENS = 4096  # in a batch


class Row(NamedTuple):
    """read: ids that the Decoder or the Encoder reads, or the decoder of an EncoderDecoder. places: of `read`, at which
    `targets` are to be predicted. inputs: of the encoder of an EncoderDecoder. visible: of a Decoder, how many of the
    first tokens see each other."""

    read: Any
    places: Any
    targets: Any
    inputs: Any = ()
    visible: int = 0

    def at(self, place, target, visible=0):
        """The same row, of which one token is scored."""
        return self._replace(places=[place], targets=[target], visible=visible)


def longest_of(row):
    """Positions that a Row takes, of the encoder or the decoder."""
    return max(len(row.read), len(row.inputs))


def causal_row(ids, vocabulary, inputs=()):
    """A text from left to right, each token from those before it (and from `inputs`)."""
    return Row([vocabulary.start, *ids[:-1]], range(len(ids)), ids, inputs)


def joined_row(prompt, ids, vocabulary, prefix=False):
    """A text behind its prompt in one row, as a Decoder reads them; `prefix`: the prompt is seen both ways."""
    whole, skip = causal_row([*prompt, *ids], vocabulary), len(prompt)
    return Row(whole.read, whole.places[skip:], ids, visible=(skip + 1) if prefix else 0)


def hidden_rows(ids, hider):
    """A text once for each of its tokens, hidden by the id `hider`: [(ids, place)]."""
    return [([*ids[:t], hider, *ids[t + 1 :]], t) for t in range(len(ids))]


def mask_of(vocabulary):
    """Raises UserError for a vocabulary without a mask."""
    if vocabulary.mask is None:
        raise UserError("a masked model scores a token by hiding it, and the tokenizer has no mask: give it specials")
    return vocabulary.mask


def log_probs(objective, variables, sentences):
    """[float32 [n] of each sentence]: of each of its tokens.

    Args:
        objective: of SentenceScoring. variables: of objective.apply.
        sentences: lists of ids, without cls, sep or start.

    Raises:
        UserError: a vocabulary without what hides a token, or a sentence longer than the positions.
    """
    check_longest(objective, sentences)
    rows = [objective.sentence(list(ids)) for ids in sentences]
    found = iter(scores(objective, variables, [row for asked in rows for row in asked], objective.known))
    each = [[-next(found)[0] for _ in asked] for asked in rows]
    return [np.concatenate([np.zeros(0, np.float32), *parts]) for parts in each]


def check_longest(objective, sentences):
    """Raises UserError where the model cannot be asked for all of these, as `log_probs` does."""
    ids = max(sentences, key=len, default=())
    if max(map(longest_of, objective.sentence(list(ids))), default=0) > (most := room(objective)):
        raise UserError(f"a sentence of {len(ids)} tokens, and the model has {most} learned positions")


def scores(objective, variables, rows, vocabulary):
    """[(nll float32 [m], correct bool [m]) of each Row]: of its targets, over the ids of the vocabulary."""
    wide = lambda lengths: min(rounded(max(lengths)), room(objective))
    order, found, start = sorted(range(len(rows)), key=lambda i: longest_of(rows[i])), [None] * len(rows), 0
    while start < len(rows):  # neighbours are of a length
        length, left = wide([longest_of(rows[order[start]])]), len(rows) - start
        count = min(max(1, TOKENS // length), 1 << (left - 1).bit_length())
        some = [i for i in order[start : start + count] if longest_of(rows[i]) <= length]
        start, asked = start + len(some), [rows[i] for i in some]
        arrays = _arrays(asked, whole_rows(count), wide, isinstance(objective.model, EncoderDecoder))
        nll, correct = jax.device_get(_scored(objective, variables, vocabulary.size, **arrays))
        for n, i in enumerate(some):
            found[i] = nll[n, : len(rows[i].places)], correct[n, : len(rows[i].places)]
    return found


def _arrays(rows, count, wide, encoder):
    """Rows of fixed shapes, `count` of them."""
    fill = lambda texts, width: padded(texts, width, count)
    real = lambda texts, width: fill([np.ones(len(text)) for text in texts], width)
    read, places, targets, inputs, visible = ([row[k] for row in rows] for k in range(5))
    width = wide(map(len, read))
    each = 1 if max(map(len, places)) == 1 else width
    found = {"read": fill(read, width), "segments": real(read, width)}
    found |= {"places": fill(places, each), "targets": fill(targets, each), "inputs": None, "visible": None}
    if encoder:
        width = wide(map(len, inputs))
        found["inputs"] = fill(inputs, width), real(inputs, width)
    if any(visible):
        found["visible"] = np.resize(visible, count).astype(np.int32)
    return found


@functools.partial(jax.jit, static_argnames=("objective", "size"))
def _scored(objective, variables, size, read, segments, places, targets, inputs, visible):
    """(nll [B, P], correct [B, P]) of targets int32 [B, P]."""
    apply = functools.partial(objective.apply, "model", variables, method="hidden")
    if isinstance(objective.model, Encoder):
        hidden = apply(read, None, segments, places)[0]
    else:
        if inputs is None:
            hidden = apply(read, None, segments, prefix=visible)[0]
        else:
            hidden = apply(inputs[0], read, input_segments=inputs[1], target_segments=segments)[0]
        hidden = jnp.take_along_axis(hidden, places[..., None], axis=1)
    kernel = objective.output_kernel(variables["params"])[:, :size]
    found = chunked_cross_entropy(hidden, kernel, targets, jnp.ones(targets.shape, jnp.float32))
    return found.nll, found.correct


class Score(NamedTuple):
    """log_likelihood: nats, of all tokens together. tokens: how many. greedy: whether each is the most probable."""

    log_likelihood: float
    tokens: int
    greedy: bool


def score_rows(objective, variables, prompts, continuations, vocabulary, prefix=False):
    """`score` of ids: lists of int arrays, as many prompts as continuations. An EncoderDecoder's encoder reads the
    prompts, the vocabulary's end behind them."""
    if len(prompts) != len(continuations):
        raise UserError(f"score: {len(prompts)} prompts and {len(continuations)} continuations: give one for each")
    if short := [i for i, row in enumerate(continuations) if not len(row)]:
        raise UserError(f"score: continuation {short[0]} is empty: there is nothing to score")
    if not prompts:
        raise UserError("there is no prompt to go on from: give one or more")
    if not isinstance(objective.model, Decoder | EncoderDecoder):
        kind = type(objective.model).__name__
        raise UserError(f"score does not work with a {kind}: a Decoder or an EncoderDecoder can")
    encoder = isinstance(objective.model, EncoderDecoder)
    longest = max(len(c) - 1 + (0 if encoder else len(p)) for p, c in zip(prompts, continuations))
    check_room(objective, longest, 1, max(map(len, prompts)) + 1 if encoder else 0)

    def row(prompt, text):
        if encoder:
            return causal_row([*text], vocabulary, [*prompt, vocabulary.end])
        return joined_row(prompt, text, vocabulary, prefix)

    return totals(objective, variables, [row(p, c) for p, c in zip(prompts, continuations)], vocabulary)


def totals(objective, variables, rows, vocabulary):
    """The Score of each Row."""
    found = scores(objective, variables, rows, vocabulary)
    return [Score(-float(nll.sum()), len(nll), bool(correct.all())) for nll, correct in found]


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
    fresh, joined = tokenizer.encode_batch, isinstance(objective.model, Decoder)
    behind = lambda n: joined and any(prompts[n : n + 1])
    ids = [(tokenizer.encode_behind if behind(n) else fresh)([text])[0] for n, text in enumerate(continuations)]
    return score_rows(objective, variables, fresh(prompts), ids, tokenizer.vocabulary, prefix)
