"""Masked language modelling: the objective of BERT (Devlin et al. 2019, "BERT", section 3.1, task 1).

A share of the tokens of a window is hidden, drawn anew each time the window is read (RoBERTa's dynamic masking, Liu et
al. 2019, section 4.1); an encoder that sees both sides predicts them:

    loss = -1/|M| sum_{t in M} log p(x[t] | x without M)        M the hidden places

Only hidden places go through the output: its cost is the rate's share of a next-token model's. The rate may be a
schedule (Ankner et al. 2024, "Dynamic Masking Rate Schedules for MLM Pretraining": linear from 0.3 to 0.15).
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from paradigm.capabilities import FillingMasks
from paradigm.objective import MAIN, rows_spec
from t5like.masking import Masking
from t5like.models import PARTITION_RULES, Encoder
from t5like.objectives.base import TextObjective, text_spec
from t5like.scoring import score_text


@dataclasses.dataclass(frozen=True)
class MaskedLM(FillingMasks, TextObjective):
    """Hidden tokens from those on both sides.

    model: an Encoder. length: tokens it reads, the vocabulary's cls and sep among them. rate, unit, masked, random: see
    t5like/masking.py. z_loss: coefficient of log(Z)^2.

    Raises UserError when the model has learned positions for fewer tokens, and for what Masking refuses.
    """

    model: Any
    length: int = 512
    rate: Any = 0.15
    unit: str = "token"
    masked: float = 0.8
    random: float = 0.1
    z_loss: float = 0.0

    architectures = (Encoder,)

    def __post_init__(self):
        self.check_kind("masked_lm")
        _ = self._masking  # raises now rather than in a data worker
        self.check_positions("masked_lm")

    @functools.cached_property
    def _masking(self):
        return Masking(self.vocabulary, self.length, self.rate, self.unit, self.masked, self.random)

    @property
    def preprocess(self):
        return self.known and self._masking

    @property
    def raw_length(self):
        """Tokens a data window must hold."""
        return self._masking.raw_length

    def batch_spec(self, batch_size, phase=MAIN):
        read = jax.ShapeDtypeStruct((batch_size, self.length), jnp.int32)
        return {
            "encoder_inputs": read,
            "encoder_segments": read,
            **text_spec(batch_size, self._masking.target_length),
            **rows_spec(batch_size),
        }

    def modules(self):
        return {"model": (self.model, jnp.ones((1, 8), jnp.int32))}

    def loss(self, params, extra, batch, ctx):
        targets, weights, is_text = self.scored(batch)
        keys = ctx.keys("dropout", batch["index"]) if ctx.train else None
        variables, how = self.variables(params, extra), {"ctx": ctx, "method": "hidden"}
        read = batch["encoder_inputs"], keys, batch["encoder_segments"], batch["positions"]
        hidden, _, _ = self.apply("model", variables, *read, **how)
        kernel = self.output_kernel(params)
        return score_text(hidden, kernel, targets, weights, is_text, batch["text_bytes"] * batch["mask"], self.z_loss)

    @property
    def partition_rules(self):
        return PARTITION_RULES

    def throughput(self, batch_spec):
        return "tokens", batch_spec["encoder_inputs"].size

    def forward_flops(self, batch_spec):
        return {"model": self.model.flops(*batch_spec["encoder_inputs"].shape, batch_spec["targets"].shape[1])}
