"""Span corruption: the objective of T5 (Raffel et al. 2020, "Exploring the Limits of Transfer Learning", 3.3.4).

A window of n tokens loses m = round(rate * n) of them in k = round(m / mean_span) spans. Kept and masked spans take
turns, kept first; all masks of that form are equally likely. The encoder reads the window with each masked span cut to
a sentinel of its own; the decoder writes each sentinel followed by what it hides:

    original   Thank you for inviting me to your party last week .
    inputs     Thank you <X> me to your party <Y> </s>                        n - m + k + 1 = length
    targets    <X> for inviting <Y> last week . </s>                          m + k + 1

    loss = 1/T sum_t [ -log p(targets[t] | inputs, targets[<t]) + z_loss log(Z_t)^2 ]   over all T targets

n is the largest window whose inputs fit, so they fill `length` exactly and nothing is padded (the reference code's
random_spans_helper): 568 tokens for 512 inputs and 114 targets at the paper's 15 % and mean span 3.
"""

import dataclasses
import functools
from typing import Any

from paradigm.capabilities import SpanFilling
from t5like.corrupt import SpanNoise
from t5like.models import EncoderDecoder
from t5like.objectives.base import Blanks, SequenceToSequence, TextObjective, scheduled_padding


@dataclasses.dataclass(frozen=True)
class SpanCorruption(Blanks, SequenceToSequence, SpanFilling, TextObjective):
    """Sequence-to-sequence denoising of masked spans.

    model: an EncoderDecoder. length: encoder inputs, eos included. rate: share of tokens masked; mean_span: mean tokens
    a span; each a float or a schedule of the step. z_loss: coefficient of log(Z)^2, 1e-4 in T5X.

    Raises UserError for settings that no window can satisfy and, once bound, for a vocabulary with too few sentinels.
    """

    model: Any
    length: int = 512
    rate: Any = 0.15
    mean_span: Any = 3.0
    z_loss: float = 1e-4

    architectures = (EncoderDecoder,)

    def __post_init__(self):
        _ = self._noise  # raises now rather than in a data worker
        self.check_kind("span_corruption")
        self.check_positions("span_corruption", max(self.length, self._noise.target_length))

    @functools.cached_property
    def _noise(self):
        return SpanNoise(self.vocabulary, self.length, self.rate, self.mean_span)

    def loss(self, params, extra, batch, ctx):
        loss = super().loss(params, extra, batch, ctx)
        empty = scheduled_padding(batch, (self.rate, self.mean_span), "", "encoder_")
        return loss.replace(metrics={**loss.metrics, **empty})
