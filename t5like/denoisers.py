"""UL2's mixture of denoisers: each window is corrupted by one of several, drawn anew. Pure numpy, in data workers.

A denoiser hides a share of the tokens, in spans of some mean length (T5's span corruption, t5like/corrupt.py) or, with
no mean, as one span at the end, which no sentinel stands for (T5's prefix language modelling). A token of its mode
stands in front of what is read.
"""

import dataclasses
import functools
from typing import NamedTuple

import numpy as np

from paradigm.errors import UserError
from t5like.corrupt import SpanPlan, filled, plan_spans, shifted, span_mask, spans_to_sentinels, window
from t5like.vocabulary import MODES, Vocabulary, need


class Denoiser(NamedTuple):
    """name: of its metrics. mode: nlu, nlg, s2s, or None for no token. mean_span: in tokens; None: one span at the end.
    rate: share of the tokens hidden. share: of the examples, in proportion to the others'."""

    name: str
    mode: str | None
    mean_span: float | None
    rate: float
    share: float = 1.0


# Tay et al. 2022, table 1: mean span and rate of the seven, R, S (a quarter, at the end) and X, mixed evenly. Modes as
# the released google/ul2's card gives them: [NLU] for R, [S2S] for S, [NLG] for X.
PUBLISHED = (
    Denoiser("r3", "nlu", 3.0, 0.15),
    Denoiser("r8", "nlu", 8.0, 0.15),
    Denoiser("s", "s2s", None, 0.25),
    Denoiser("x3", "nlg", 3.0, 0.5),
    Denoiser("x8", "nlg", 8.0, 0.5),
    Denoiser("x64_15", "nlg", 64.0, 0.15),
    Denoiser("x64", "nlg", 64.0, 0.5),
)


@dataclasses.dataclass(frozen=True)
class Mixture:
    """A window of text as one of the denoisers hides parts of it.

    vocabulary: of the text, with sentinels, an end and the modes; None for lengths alone. raw_length: tokens of text
    read. denoisers: tuples as Denoiser. joined: whether one row holds what is read and what is predicted, for a Decoder
    that sees the first both ways.

    Raises UserError for denoisers that no window can satisfy, and for a vocabulary that lacks modes or sentinels.
    """

    vocabulary: Vocabulary | None
    raw_length: int
    denoisers: tuple = PUBLISHED
    joined: bool = False

    def __post_init__(self):
        object.__setattr__(self, "denoisers", tuple(Denoiser(*d) for d in self.denoisers))
        names = [d.name for d in self.denoisers]
        if not names or len(set(names)) < len(names):
            raise UserError(f"ul2: denoisers need distinct names, got {names}")
        for d in self.denoisers:
            if d.mode not in (None, *MODES):
                raise UserError(f"ul2: denoiser {d.name} has mode {d.mode!r}; choose among {', '.join(MODES)} and None")
            if not 0 < d.rate < 1:
                raise UserError(f"ul2: denoiser {d.name}: rate must lie strictly between 0 and 1, not {d.rate:g}")
            if d.mean_span is not None and d.mean_span < 1:
                raise UserError(f"ul2: denoiser {d.name}: mean_span is at least 1 token, not {d.mean_span:g}")
            if not d.share > 0:
                raise UserError(f"ul2: denoiser {d.name}: share must be above 0, not {d.share:g}")
            plan = self._plan(d, self.raw_length)
            if self.raw_length < 4 or plan.spans > min(plan.noise, plan.raw - plan.noise):
                raise UserError(
                    f"ul2: denoiser {d.name} needs {plan.spans} spans in {plan.raw} tokens, {plan.noise} of them "
                    "hidden; raise its mean_span or the length"
                )
        if (v := self.vocabulary) is not None:
            need(v, "ul2", *dict.fromkeys(d.mode for d in self.denoisers if d.mode))
            spans = max(plan.spans for plan in self._plans)
            if spans > len(v.sentinels):
                raise UserError(
                    f"ul2: length {self.raw_length} needs {spans} sentinels but the tokenizer has {len(v.sentinels)}; "
                    f"set its extra_ids to at least {spans}, or lower the length"
                )

    @staticmethod
    def _plan(denoiser, tokens):
        """The SpanPlan of so many tokens."""
        if denoiser.mean_span is None:
            return SpanPlan(tokens, min(max(round(tokens * denoiser.rate), 1), tokens - 1), 0)
        return plan_spans(tokens, denoiser.rate, denoiser.mean_span)

    @property
    def _plans(self):
        return [self._plan(d, self.raw_length) for d in self.denoisers]

    @functools.cached_property
    def length(self):
        """Tokens that the encoder reads, at most: the mode, text and sentinels, and the end."""
        return max(plan.inputs + (d.mode is not None) for d, plan in zip(self.denoisers, self._plans))

    @functools.cached_property
    def target_length(self):
        """Tokens in a row of targets, at most; of what is read too when `joined`, which has one end."""
        if not self.joined:
            return max(plan.targets for plan in self._plans)
        return max(
            plan.inputs + plan.targets - 1 + (d.mode is not None) for d, plan in zip(self.denoisers, self._plans)
        )

    def __call__(self, example, rng, step, train):
        """One window: the batch of t5like/corrupt.py, and denoiser int32 [], its place among the denoisers; when
        `joined`, prefix int32 [], and no encoder_inputs."""
        del step
        v, read = self.vocabulary, window(example, self.raw_length, rng, train)
        shares = np.array([d.share for d in self.denoisers])
        which = int(rng.choice(len(shares), p=shares / shares.sum()))
        denoiser = self.denoisers[which]
        text = max(np.count_nonzero(example["segments"][read]), 2)  # the last window of a corpus ends in padding
        plan, tokens = self._plan(denoiser, text), example["tokens"][read][:text].astype(np.int32)
        if denoiser.mean_span is None:
            hidden = np.arange(text) >= text - plan.noise
            given, wanted = tokens[~hidden], tokens[hidden]
        else:
            hidden, sentinels = span_mask(rng, plan.fitted), np.asarray(v.sentinels)
            given, wanted = (spans_to_sentinels(tokens, m, sentinels) for m in (hidden, ~hidden))
        given = given if denoiser.mode is None else np.r_[getattr(v, denoiser.mode), given]
        common = {
            "denoiser": np.int32(which),
            "text_bytes": example["byte_lengths"][tokens[hidden]].sum(dtype=np.float32),
        }
        if self.joined:
            targets, segments = filled([*given, *wanted, v.end], self.target_length, v.filler)
            weights = (segments > 0) & (np.arange(self.target_length) >= len(given))
            batch = {**shifted(targets, segments, v.start), "prefix": np.int32(len(given))}
            return {**common, **batch, "weights": weights.astype(np.float32)}
        inputs, encoder_segments = filled([*given, v.end], self.length, v.filler)
        targets, segments = filled([*wanted, v.end], self.target_length, v.filler)
        batch = {**shifted(targets, segments, v.start), "weights": segments.astype(np.float32)}
        return {**common, **batch, "encoder_inputs": inputs, "encoder_segments": encoder_segments}
