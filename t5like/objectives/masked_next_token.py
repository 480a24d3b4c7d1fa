"""Masked next-token prediction on a Decoder that sees both sides (BehnamGhader et al. 2024, "LLM2Vec", section 2.1),
and its mixture with next-token prediction (Charpentier and Samuel 2024, "GPT or BERT: why not both?", section 2).

A hidden token is predicted where the token before it is read, as in a causal model, so that one output serves both:

    masked    t in M: -log p(x[t] | x without M), from the hidden state at x[t - 1]      all tokens see each other
    causal    all t:  -log p(x[t] | x[<t]), from the same hidden state                   each sees those before it

Each example is of one kind, drawn with the share `causal`, and the loss is the mean over all targets of the batch.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from paradigm.capabilities import Generating
from paradigm.errors import UserError
from paradigm.objective import MAIN, rows_spec
from t5like.corrupt import NextTokenWindows, shifted
from t5like.decode.likelihood import causal_row, hidden_rows, joined_row, mask_of
from t5like.masking import Masking
from t5like.models import PARTITION_RULES, Decoder
from t5like.objectives.base import TextObjective, text_spec
from t5like.scoring import score_text


@dataclasses.dataclass(frozen=True)
class Shifted:
    """What a data worker makes of a window: `masking`, moved by one place, or with the share `causal` the plain text.

    masking: a Masking without cls and sep. Rows are those of next_token, and `prefix` int32 []: 0, or the length where
    all tokens see each other.
    """

    masking: Masking
    causal: float

    def __call__(self, example, rng, step, train):
        v, length = self.masking.vocabulary, self.masking.length
        if rng.random() < self.causal:
            return {**NextTokenWindows(v, length)(example, rng, step, train), "prefix": np.int32(0)}
        row = self.masking(example, rng, step, train)
        count = int(row["weights"].sum())
        places = row["positions"][:count]
        targets, weights = row["encoder_inputs"].copy(), np.zeros(length, np.float32)
        targets[places], weights[places] = row["targets"][:count], 1.0
        moved = shifted(row["encoder_inputs"], row["encoder_segments"], v.start)
        return {
            **moved,
            "targets": targets,
            "weights": weights,
            "text_bytes": row["text_bytes"],
            "prefix": np.int32(length),
        }


@dataclasses.dataclass(frozen=True)
class MaskedNextToken(Generating, TextObjective):
    """Hidden tokens by a Decoder from both sides; in the share `causal` of the examples every token from the left.

    model: a Decoder. length: tokens a window. rate, unit, masked, random: see t5like/masking.py. causal: share of the
    examples that are read from left to right; 0 is LLM2Vec, GPT-BERT has any. z_loss: coefficient of log(Z)^2.

    Raises UserError for a model of another kind, a share outside [0, 1), and what Masking refuses.
    """

    model: Any
    length: int = 512
    rate: Any = 0.15
    unit: str = "token"
    masked: float = 0.8
    random: float = 0.1
    causal: float = 0.0
    z_loss: float = 0.0

    architectures = (Decoder,)
    prefix = False  # a text is continued from left to right

    @property
    def context_length(self):
        return self.length

    def __post_init__(self):
        self.check_kind("masked_next_token")
        if not 0 <= self.causal < 1:
            raise UserError(f"masked_next_token: causal={self.causal:g} is a share from 0 to below 1: 1 is next_token")
        _ = self._masking  # raises now rather than in a data worker
        self.check_positions("masked_next_token")

    @property
    def _masking(self):
        bare = self.vocabulary and dataclasses.replace(self.vocabulary, cls=None, sep=None)
        return Masking(bare, self.length, self.rate, self.unit, self.masked, self.random, "masked_next_token")

    @property
    def preprocess(self):
        return self.known and Shifted(self._masking, self.causal)

    @property
    def raw_length(self):
        """Tokens a data window must hold."""
        return self.length

    def batch_spec(self, batch_size, phase=MAIN):
        prefix = jax.ShapeDtypeStruct((batch_size,), jnp.int32)
        return {**text_spec(batch_size, self.length), "prefix": prefix, **rows_spec(batch_size)}

    def modules(self):
        return {"model": (self.model, jnp.ones((1, 8), jnp.int32))}

    def loss(self, params, extra, batch, ctx):
        targets, weights, is_text = self.scored(batch)
        keys = ctx.keys("dropout", batch["index"]) if ctx.train else None
        read = batch["inputs"], keys, batch["segments"], batch["positions"], batch["prefix"]
        hidden, _, _ = self.apply("model", self.variables(params, extra), *read, ctx=ctx, method="hidden")
        kernel = self.output_kernel(params)
        return score_text(hidden, kernel, targets, weights, is_text, batch["text_bytes"] * batch["mask"], self.z_loss)

    def sentence(self, ids):
        v = self.known
        if self.causal:
            return [causal_row(ids, v)]
        return [causal_row(text, v).at(t, ids[t], len(ids)) for text, t in hidden_rows(ids, mask_of(v))]

    def continued(self, prompt, ids):
        return joined_row(prompt, ids, self.known)

    @property
    def partition_rules(self):
        return PARTITION_RULES

    def throughput(self, batch_spec):
        return "tokens", batch_spec["targets"].size

    def forward_flops(self, batch_spec):
        return {"model": self.model.flops(*batch_spec["targets"].shape)}
