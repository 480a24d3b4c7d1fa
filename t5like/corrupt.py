"""Pure numpy noising of token windows: what turns plain text into a denoising problem, on the host.

What they make is the batch of every text objective, a row of it (L tokens that are predicted):

    inputs     int32   [L]   what a decoder reads: the target before in the same document, or the vocabulary's start
    targets    int32   [L]   what it predicts
    weights    float32 [L]   of each target in the loss; 0 where nothing is predicted
    segments   int32   [L]   1, 2 .. the documents of the window, 0 padding
    positions  int32   [L]   places counted by document
    text_bytes float32 []    bytes of text that the predicted targets spell

and, of an objective with an encoder, encoder_inputs and encoder_segments int32 [S]. Where there is no decoder,
`positions` are the targets' places among encoder_inputs, and `inputs` what stands there (masking.py).

The definitions are those of T5 (Raffel et al. 2020, section 3.1.4 and 3.3.4) and its reference code
(google-research/text-to-text-transfer-transformer, t5/data/preprocessors.py). No jax: this runs in data workers.
"""

import dataclasses
import functools
from typing import Any

import numpy as np

from paradigm.errors import UserError
from paradigm.schedule import FINAL
from t5like.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class SpanPlan:
    """How a window is cut, in tokens; all of it follows from the length, the rate and the mean span.

    raw: text tokens read. noise: of these, the masked ones. spans: runs they form. inputs, targets: lengths with
    sentinels and eos.
    """

    raw: int
    noise: int
    spans: int

    @property
    def inputs(self):
        return self.raw - self.noise + self.spans + 1

    @property
    def targets(self):
        return self.noise + self.spans + 1

    @property
    def fitted(self):
        """With no more spans than there are tokens of either kind, as rounding may ask for in a short text."""
        return dataclasses.replace(self, spans=min(self.spans, self.noise, self.raw - self.noise))


def plan_spans(raw, rate, mean_span):
    """The SpanPlan of so many tokens."""
    # Python's round and the reference's tf.round both send halves to the even neighbour.
    noise = min(max(round(raw * rate), 1), raw - 1)
    return SpanPlan(raw, noise, max(round(noise / mean_span), 1))


@functools.lru_cache(maxsize=4096)
def span_plan(length, rate, mean_span, max_targets=None):
    """The longest raw window whose corrupted inputs fill `length` tokens: `random_spans_helper` of the reference.

    Args:
        length: encoder input tokens, eos included.
        rate: share of the raw tokens to mask, in (0, 1).
        mean_span: mean number of tokens in a masked span, at least 1.
        max_targets: an upper bound on the targets, for a scheduled mean span that rounds past the extremes' by one.

    Returns:
        SpanPlan with inputs == length; one less at rate 0.5, as in the reference, when its last span goes, and where
        max_targets binds.

    Raises:
        UserError: when no such corruption exists.
    """
    if not 0.0 < rate < 1.0:
        raise UserError(f"span corruption: rate must lie strictly between 0 and 1, not {rate:g}")
    if mean_span < 1.0:
        raise UserError(f"span corruption: mean_span is a number of tokens, at least 1, not {mean_span:g}")
    if length < 4:
        raise UserError(f"span corruption: length {length} cannot hold a kept token, a sentinel and eos; use 4 or more")
    raw = length - 1
    while plan_spans(raw + 1, rate, mean_span).inputs <= length:
        raw += 1
    plan = plan_spans(raw, rate, mean_span)
    # The reference drops one noise token here so that both sides of a symmetric split have the same length.
    if rate == 0.5 and plan.targets > plan.inputs:
        plan = plan_spans(raw - 1, rate, mean_span)
    while max_targets is not None and plan.targets > max_targets:
        plan = plan_spans(plan.raw - 1, rate, mean_span)
    kept = plan.raw - plan.noise
    if plan.spans > min(plan.noise, kept):
        raise UserError(
            f"span corruption: rate {rate:g} with mean_span {mean_span:g} needs {plan.spans} spans in {plan.raw} "
            f"tokens but leaves {kept} kept and {plan.noise} masked; raise mean_span or lower rate"
        )
    return plan


def random_segmentation(rng, items, segments):
    """Cuts `items` into `segments` positive lengths, every such cut equally likely: int64 [segments]."""
    cuts = np.empty(segments + 1, np.int64)
    cuts[0], cuts[-1] = 0, items
    cuts[1:-1] = rng.choice(items - 1, segments - 1, replace=False, shuffle=False) + 1
    cuts.sort()
    return cuts[1:] - cuts[:-1]


def span_mask(rng, plan):
    """Bool [raw], True where noise: spans alternate, kept text first (`random_spans_noise_mask` of the reference)."""
    lengths = np.empty((plan.spans, 2), np.int64)
    lengths[:, 0] = random_segmentation(rng, plan.raw - plan.noise, plan.spans)
    lengths[:, 1] = random_segmentation(rng, plan.noise, plan.spans)
    return np.repeat(np.arange(2 * plan.spans) % 2 == 1, lengths.ravel())


def spans_to_sentinels(tokens, mask, sentinels):
    """Replaces each run of True by a sentinel of its own.

    With the noise mask this makes the inputs, with its complement the targets: `noise_span_to_unique_sentinel` and
    `nonnoise_span_to_unique_sentinel` of the reference.

    Args:
        tokens: int [L].
        mask: bool [L].
        sentinels: int [n], the ids of the first run's, the second's and so on.

    Returns:
        int32 [L - masked + runs].
    """
    first = mask.copy()
    first[1:] &= ~mask[:-1]
    starts = first.nonzero()[0]
    replaced = tokens.astype(np.int32)  # stored ids may be too narrow for the sentinels
    replaced[starts] = sentinels[: len(starts)]
    return replaced[first | ~mask]


def at(setting, step):
    """The value of a float or a schedule at this step, as a float."""
    return float(setting(step)) if callable(setting) else float(setting)


def extremes(setting):
    """(smallest, largest) value of a float or a schedule."""
    return tuple(map(float, setting.extremes())) if callable(setting) else (float(setting), float(setting))


def window(example, length, rng, train):
    """The slice of the example to read: all of it when it has just `length` tokens, else a random place in training."""
    have = len(example["tokens"])
    if have < length:
        raise UserError(
            f"a window holds {have} tokens but the objective reads {length}: prepare the data with window={length}"
        )
    start = int(rng.integers(have - length + 1)) if train and have > length else 0
    return slice(start, start + length)


@dataclasses.dataclass(frozen=True)
class SpanNoise:
    """Span corruption of a window of text, as a data worker does it.

    "We hold these truths to be self evident" becomes inputs "We hold <X> to be <Y>" and targets "<X> these truths <Y>
    self evident", both closed by eos.

    vocabulary: of the text, with sentinels and an id that ends it; None for lengths alone. length: encoder inputs.
    rate, mean_span: floats, or schedules of the step; shapes are those of the schedules' extremes, the rest is padding,
    and validation uses the schedules' final values."""

    vocabulary: Vocabulary | None
    length: int
    rate: Any = 0.15
    mean_span: Any = 3.0

    def __post_init__(self):
        # Between the extremes of a scheduled mean span, rounding may add one to the spans of the corners.
        spans = max(plan.spans for plan in self._corners) + callable(self.mean_span)
        if self.vocabulary is None:
            return
        have = len(self.vocabulary.sentinels)
        if not self.vocabulary.text_ids:
            raise UserError(
                f"span corruption: a vocabulary of {self.vocabulary.size} has no room for text beside {have} sentinels "
                "and its special ids: choose a larger one, or fewer sentinels"
            )
        if spans > have:
            raise UserError(
                f"span corruption: length {self.length} at rate {extremes(self.rate)[1]:g} and mean_span "
                f"{extremes(self.mean_span)[0]:g} needs {spans} sentinels but the tokenizer has {have}; "
                f"set its extra_ids to at least {spans}, or raise mean_span"
            )

    @property
    def _corners(self):
        return [span_plan(self.length, r, m) for r in extremes(self.rate) for m in extremes(self.mean_span)]

    @functools.cached_property
    def raw_length(self):
        """Tokens a data window must hold."""
        return max(plan.raw for plan in self._corners)

    @functools.cached_property
    def target_length(self):
        """Decoder length: the longest targets of the schedules' extremes."""
        return max(plan.targets for plan in self._corners)

    def plan(self, step, train=True):
        """The SpanPlan in force at this step."""
        step = step if train else FINAL
        return span_plan(self.length, at(self.rate, step), at(self.mean_span, step), self.target_length)

    def __call__(self, example, rng, step, train):
        """One corrupted example.

        Args:
            example: {"tokens": int [W], "segments": int [W], "byte_lengths": float32 [vocab_size]}, W >= raw_length;
                segments are 0 on padding, which may only follow the text.
            rng: numpy Generator of this example.
            step: the training step that the example belongs to.
            train: False for the fixed validation settings.

        Returns:
            encoder_inputs and encoder_segments [length]; inputs, targets, weights, segments and positions
            [target_length]; text_bytes: bytes of the masked text. See the top of this file.
        """
        plan = self.plan(step, train)
        read = window(example, plan.raw, rng, train)
        text = np.count_nonzero(example["segments"][read])
        if text < plan.raw:  # the last window of a corpus: its padding is not text to be masked
            plan = plan_spans(max(text, 2), plan.noise / plan.raw, plan.noise / plan.spans).fitted
        tokens = example["tokens"][read][: plan.raw]
        mask = span_mask(rng, plan)
        v, sentinels = self.vocabulary, np.asarray(self.vocabulary.sentinels)
        ended = lambda kept, length: filled([*spans_to_sentinels(tokens, kept, sentinels), v.end], length, v.filler)
        read_by_encoder, encoder_segments = ended(mask, self.length)
        targets, segments = ended(~mask, self.target_length)
        return {
            "encoder_inputs": read_by_encoder,
            "encoder_segments": encoder_segments,
            **shifted(targets, segments, v.start),
            "weights": segments.astype(np.float32),
            "text_bytes": example["byte_lengths"][tokens[mask]].sum(dtype=np.float32),
        }


def filled(ids, length, filler):
    """(int32 [length]: ids, then the filler; int32 [length]: 1 on the ids)."""
    row, segments = np.full(length, filler, np.int32), np.zeros(length, np.int32)
    row[: len(ids)] = ids
    segments[: len(ids)] = 1
    return row, segments


def shifted(targets, segments, start):
    """{"inputs", "targets", "segments", "positions"}, int32 [L]: what is read where each target is to be predicted.

    start: the id that stands before the first token of each document.
    """
    begins = np.ones(len(targets), bool)
    begins[1:] = segments[1:] != segments[:-1]
    places = np.arange(len(targets), dtype=np.int32)
    return {
        "inputs": np.where(begins, start, np.roll(targets, 1)).astype(np.int32),
        "targets": targets,
        "segments": segments,
        "positions": places - np.maximum.accumulate(np.where(begins, places, 0)).astype(np.int32),
    }


@dataclasses.dataclass(frozen=True)
class NextTokenWindows:
    """Windows for next-token prediction, as a data worker cuts them.

    vocabulary: of the text. length: tokens a window. prefix: draw a prefix length for each example, uniform over 1 ..
    text tokens - 1, so that at least one token is read and one is predicted (T5's prefix language modelling;
    `random_prefix_noise_mask`). goldfish: one target in so many is left out in training, or None; goldfish_context:
    tokens before it that decide (see `dropped`).
    """

    vocabulary: Vocabulary
    length: int
    prefix: bool = False
    goldfish: int | None = None
    goldfish_context: int = 13

    def __post_init__(self):
        if self.length < 2:
            raise UserError(f"next_token: length must be at least 2 tokens, not {self.length}")
        if self.goldfish is not None and self.goldfish < 2:
            raise UserError(f"next_token: goldfish leaves out one target in {self.goldfish}; use 2 or more, or None")
        if self.goldfish_context < 1:
            raise UserError(
                f"next_token: goldfish_context={self.goldfish_context} tokens decide nothing; use 1 or more"
            )

    @property
    def raw_length(self):
        """Tokens a data window must hold."""
        return self.length

    def __call__(self, example, rng, step, train):
        """One window.

        Args:
            example: {"tokens": int [W], "segments": int [W], "byte_lengths": float32 [vocab_size]} with W >= length;
                segments are 0 on padding, which may only follow the text, and 1, 2 .. on the documents of the window.
            rng: numpy Generator of this example.
            step, train: as in SpanNoise; the step changes nothing here.

        Returns:
            inputs, targets, weights, segments and positions [length], text_bytes (see the top of this file); in prefix
            mode also prefix int32 [], the number of tokens that are read and not predicted.
        """
        del step
        read = window(example, self.length, rng, train)
        tokens = example["tokens"][read].astype(np.int32)
        segments = example["segments"][read].astype(np.int32)
        prefix = int(rng.integers(1, max(np.count_nonzero(segments), 2))) if self.prefix else 0
        predicted = (segments > 0) & (np.arange(self.length) >= prefix)
        if self.goldfish is not None and train:
            predicted &= ~dropped(tokens, segments, self.goldfish, self.goldfish_context)
        batch = {
            **shifted(tokens, segments, self.vocabulary.start),
            "weights": predicted.astype(np.float32),
            "text_bytes": example["byte_lengths"][tokens[predicted]].sum(dtype=np.float32),
        }
        return {**batch, "prefix": np.int32(prefix)} if self.prefix else batch


def dropped(tokens, segments, one_in, context):
    """bool [L]: targets that the goldfish loss leaves out, one in so many: a hash of the `context` tokens before each
    decides, whatever comes before and after. A document's first `context` tokens are never left out.

    The hash is polynomial, its bits mixed by SplitMix64's last steps (Steele et al. 2014); the authors' is a table of
    random numbers (ahans30/goldfish-loss).
    """
    out = np.zeros(len(tokens), bool)
    if len(tokens) <= context:
        return out
    mixed = np.zeros(len(tokens) - context, np.uint64)
    for i in range(context):
        mixed = mixed * np.uint64(0x100000001B3) + tokens[i : i - context].astype(np.uint64) + np.uint64(1)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    out[context:] = (mixed < np.uint64(2**64 // one_in)) & (segments[context:] == segments[:-context])
    return out
