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

import jax
import jax.numpy as jnp

from paradigm.capabilities import Infilling
from paradigm.objective import MAIN, rows_spec
from t5like.corrupt import SpanNoise
from t5like.models import PARTITION_RULES
from t5like.objectives.base import TextObjective, text_spec
from t5like.scoring import score_text


@dataclasses.dataclass(frozen=True)
class SpanCorruption(Infilling, TextObjective):
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

    def __post_init__(self):
        _ = self._noise  # raises now rather than in a data worker

    @functools.cached_property
    def _noise(self):
        return SpanNoise(self.vocabulary, self.length, self.rate, self.mean_span)

    @property
    def preprocess(self):
        return self.known and self._noise

    @property
    def raw_length(self):
        """Tokens a data window must hold."""
        return self._noise.raw_length

    def batch_spec(self, batch_size, phase=MAIN):
        ints = lambda length: jax.ShapeDtypeStruct((batch_size, length), jnp.int32)
        return {
            "encoder_inputs": ints(self.length),
            "encoder_segments": ints(self.length),
            **text_spec(batch_size, self._noise.target_length),
            **rows_spec(batch_size),
        }

    def modules(self):
        return {"model": (self.model, (jnp.ones((1, 8), jnp.int32), jnp.ones((1, 8), jnp.int32)))}

    def loss(self, params, extra, batch, ctx):
        targets, weights, is_text = self.scored(batch)
        keys = ctx.keys("dropout", batch["index"]) if ctx.train else None
        variables, how = self.variables(params, extra), {"ctx": ctx, "method": "hidden"}
        read = batch["encoder_inputs"], batch["inputs"], keys, batch["encoder_segments"]
        hidden, _, _ = self.apply("model", variables, *read, **how)
        kernel = self.output_kernel(params)
        text_bytes = batch["text_bytes"] * batch["mask"]
        return score_text(hidden, kernel, targets, weights, is_text, text_bytes, self.z_loss)

    @property
    def partition_rules(self):
        return PARTITION_RULES

    def throughput(self, batch_spec):
        return "tokens", batch_spec["encoder_inputs"].size + batch_spec["targets"].size

    def forward_flops(self, batch_spec):
        (batch, source), (_, length) = batch_spec["encoder_inputs"].shape, batch_spec["targets"].shape
        return {"model": self.model.flops(batch, source, length)}
