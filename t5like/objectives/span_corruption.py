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

from paradigm.capabilities import Infilling, TextScoring
from paradigm.errors import UserError
from paradigm.objective import MAIN, Objective, rows_spec
from t5like.corrupt import PAD, UNK, SpanNoise
from t5like.models import PARTITION_RULES
from t5like.scoring import score_text


@dataclasses.dataclass(frozen=True)
class SpanCorruption(Infilling, TextScoring, Objective):
    """Sequence-to-sequence denoising of masked spans.

    model: an EncoderDecoder. vocab_size: the tokenizer's, sentinels included; extra_ids: how many sentinels it has.
    length: encoder inputs, eos included. rate: share of tokens masked; mean_span: mean tokens a span; each a float or a
    schedule of the step. z_loss: coefficient of log(Z)^2, 1e-4 in T5X.

    Raises UserError for settings that no window can satisfy, and for a vocabulary too small for the sentinels.
    """

    model: Any
    vocab_size: int
    length: int = 512
    rate: Any = 0.15
    mean_span: Any = 3.0
    extra_ids: int = 100
    z_loss: float = 1e-4

    def __post_init__(self):
        if self.model.vocab_size < self.vocab_size:
            raise UserError(
                f"span corruption: the tokenizer has {self.vocab_size} ids but the model only {self.model.vocab_size}; "
                f"set the model's vocab_size to {self.vocab_size} or more"
            )
        _ = self.preprocess  # raises now rather than in a data worker

    @functools.cached_property
    def preprocess(self):
        return SpanNoise(self.vocab_size, self.extra_ids, self.length, self.rate, self.mean_span)

    @property
    def raw_length(self):
        """Tokens a data window must hold."""
        return self.preprocess.raw_length

    def batch_spec(self, batch_size, phase=MAIN):
        ints = lambda length: jax.ShapeDtypeStruct((batch_size, length), jnp.int32)
        return {
            "inputs": ints(self.length),
            "targets": ints(self.preprocess.target_length),
            "text_bytes": jax.ShapeDtypeStruct((batch_size,), jnp.float32),
            **rows_spec(batch_size),
        }

    def modules(self):
        return {"model": (self.model, (jnp.ones((1, 8), jnp.int32), jnp.ones((1, 8), jnp.int32)))}

    def scored(self, batch):
        """(targets [B, L], weights float32 [B, L], is_text bool [B, L]) of a numpy or jax batch."""
        targets = batch["targets"]
        is_text = (targets > UNK) & (targets < self.vocab_size - self.extra_ids)
        return targets, (targets != PAD) * batch["mask"][:, None], is_text

    def loss(self, params, extra, batch, ctx):
        targets, weights, is_text = self.scored(batch)
        decoder_inputs = jnp.pad(targets[:, :-1], ((0, 0), (1, 0)))  # id 0 starts the decoder
        keys = ctx.keys("dropout", batch["index"]) if ctx.train else None
        variables, how = self.variables(params, extra), {"ctx": ctx, "method": "hidden"}
        hidden, _, _ = self.apply("model", variables, batch["inputs"], decoder_inputs, keys, **how)
        kernel = self.model.output_kernel(params["model"])
        text_bytes = batch["text_bytes"] * batch["mask"]
        return score_text(hidden, kernel, targets, weights, is_text, text_bytes, self.z_loss)

    @property
    def partition_rules(self):
        return PARTITION_RULES

    def throughput(self, batch_spec):
        return "tokens", batch_spec["inputs"].size + batch_spec["targets"].size

    def forward_flops(self, batch_spec):
        (batch, source), (_, length) = batch_spec["inputs"].shape, batch_spec["targets"].shape
        return {"model": self.model.flops(batch, source, length)}
