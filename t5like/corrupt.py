"""Pure numpy noising of token windows: what turns plain text into a denoising problem, on the host.

The definitions are those of T5 (Raffel et al. 2020, section 3.1.4 and 3.3.4) and its reference code
(google-research/text-to-text-transfer-transformer, t5/data/preprocessors.py). No jax: this runs in data workers.
"""

import dataclasses
import functools
from typing import Any

import numpy as np

from paradigm.errors import UserError
from paradigm.schedule import FINAL

PAD, EOS, UNK = 0, 1, 2


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


def _plan(raw, rate, mean_span):
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
    while _plan(raw + 1, rate, mean_span).inputs <= length:
        raw += 1
    plan = _plan(raw, rate, mean_span)
    # The reference drops one noise token here so that both sides of a symmetric split have the same length.
    if rate == 0.5 and plan.targets > plan.inputs:
        plan = _plan(raw - 1, rate, mean_span)
    while max_targets is not None and plan.targets > max_targets:
        plan = _plan(plan.raw - 1, rate, mean_span)
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


def spans_to_sentinels(tokens, mask, first_sentinel):
    """Replaces each run of True by one sentinel, counting down from `first_sentinel`.

    With the noise mask this makes the inputs, with its complement the targets: `noise_span_to_unique_sentinel` and
    `nonnoise_span_to_unique_sentinel` of the reference.

    Args:
        tokens: int [L].
        mask: bool [L].
        first_sentinel: id of the sentinel of the first run; the next runs have the ids below.

    Returns:
        int32 [L - masked + runs].
    """
    first = mask.copy()
    first[1:] &= ~mask[:-1]
    starts = first.nonzero()[0]
    replaced = tokens.astype(np.int32)  # stored ids may be too narrow for the sentinels
    replaced[starts] = np.arange(first_sentinel, first_sentinel - len(starts), -1)
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

    vocab_size: the tokenizer's, sentinels included (sentinel i is vocab_size - 1 - i). extra_ids: how many sentinels.
    length: encoder inputs. rate, mean_span: floats, or schedules of the step; shapes are those of the schedules'
    extremes, the rest is padding, and validation uses the schedules' final values.
    """

    vocab_size: int
    extra_ids: int
    length: int
    rate: Any = 0.15
    mean_span: Any = 3.0

    def __post_init__(self):
        if self.vocab_size < self.extra_ids + UNK + 2:
            raise UserError(
                f"span corruption: a vocabulary of {self.vocab_size} has no room for {self.extra_ids} sentinels beside "
                f"pad, eos, unk and text; raise the vocabulary above {self.extra_ids + UNK + 1} or lower extra_ids"
            )
        # Between the extremes of a scheduled mean span, rounding may add one to the spans of the corners.
        spans = max(plan.spans for plan in self._corners) + callable(self.mean_span)
        if spans > self.extra_ids:
            raise UserError(
                f"span corruption: length {self.length} at rate {extremes(self.rate)[1]:g} and mean_span "
                f"{extremes(self.mean_span)[0]:g} needs {spans} sentinels but the tokenizer has {self.extra_ids}; "
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
            inputs int32 [length], targets int32 [target_length], text_bytes float32 []: bytes of the masked text.
        """
        plan = self.plan(step, train)
        read = window(example, plan.raw, rng, train)
        text = np.count_nonzero(example["segments"][read])
        if text < plan.raw:  # the last window of a corpus: its padding is not text to be masked
            plan = _plan(max(text, 2), plan.noise / plan.raw, plan.noise / plan.spans)
        tokens = example["tokens"][read][: plan.raw]
        mask = span_mask(rng, plan)
        inputs = np.zeros(self.length, np.int32)
        inputs[: plan.inputs - 1] = spans_to_sentinels(tokens, mask, self.vocab_size - 1)
        inputs[plan.inputs - 1] = EOS
        targets = np.zeros(self.target_length, np.int32)
        targets[: plan.targets - 1] = spans_to_sentinels(tokens, ~mask, self.vocab_size - 1)
        targets[plan.targets - 1] = EOS
        text_bytes = example["byte_lengths"][tokens[mask]].sum(dtype=np.float32)
        return {"inputs": inputs, "targets": targets, "text_bytes": text_bytes}


@dataclasses.dataclass(frozen=True)
class NextTokenWindows:
    """Windows for next-token prediction, as a data worker cuts them.

    length: tokens a window. prefix: draw a prefix length for each example, uniform over 1 .. text tokens - 1, so that
    at least one token is read and one is predicted (T5's prefix language modelling; `random_prefix_noise_mask`).
    """

    length: int
    prefix: bool = False

    def __post_init__(self):
        if self.length < 2:
            raise UserError(f"next_token: length must be at least 2 tokens, not {self.length}")

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
            tokens int32 [length], segments int32 [length], text_bytes float32 []: bytes of the tokens to be predicted;
            in prefix mode also prefix int32 [].
        """
        del step
        read = window(example, self.length, rng, train)
        tokens = example["tokens"][read].astype(np.int32)
        segments = example["segments"][read].astype(np.int32)
        prefix = int(rng.integers(1, max(np.count_nonzero(segments), 2))) if self.prefix else 0
        text_bytes = example["byte_lengths"][tokens[prefix:]].sum(dtype=np.float32)
        batch = {"tokens": tokens, "segments": segments, "text_bytes": text_bytes}
        return {**batch, "prefix": np.int32(prefix)} if self.prefix else batch
