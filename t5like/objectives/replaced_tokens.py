"""Random token substitution: ELECTRA's task without its generator (Di Liello et al. 2022, "Effective Pretraining
Objectives for Transformer-based Autoencoders", section 3, RTS).

15 % of the tokens are other ones, drawn from the vocabulary alike, and the encoder tells at every place whether the
token is the original:

    loss = E_t[ cross-entropy of D(x_fake, t) and (x_fake[t] != x[t]) ]
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from paradigm.capabilities import HasModel
from paradigm.errors import UserError
from t5like import heads
from t5like.masking import Masking
from t5like.models import PARTITION_RULES, Encoder
from t5like.objectives.base import HiddenTokens, OnText
from t5like.scoring import score_detection


@dataclasses.dataclass(frozen=True)
class ReplacedTokens(HiddenTokens, HasModel, OnText):
    """Finds the tokens that do not belong.

    model: an Encoder without head. length: tokens it reads. rate: share of the tokens that are replaced, a float or a
    schedule. unit: see t5like/masking.py.

    Raises UserError for a model with a head or of another kind, and what Masking refuses.
    """

    model: Any
    length: int = 512
    rate: Any = 0.15
    unit: str = "token"

    architectures = (Encoder,)

    def __post_init__(self):
        self.check_kind("replaced_tokens")
        if self.model.head:
            raise UserError("replaced_tokens: the model has no output over the vocabulary: set its head=False")
        _ = self._masking  # raises now rather than in a data worker
        self.check_positions("replaced_tokens")

    @functools.cached_property
    def _masking(self):
        return Masking(self.vocabulary, self.length, self.rate, self.unit, 0.0, 1.0, "replaced_tokens")

    @property
    def detector(self):
        """What tells originals by the model's hidden states: [B, L, D] -> [B, L, 1]."""
        return heads.token_head(self.model)

    def modules(self):
        head = self.detector, jnp.zeros((1, self.model.d_model))
        return {"model": (self.model, jnp.ones((1, 8), jnp.int32)), "detector": head}

    def loss(self, params, extra, batch, ctx):
        keys = ctx.keys("dropout", batch["index"]) if ctx.train else None
        variables, segments = self.variables(params, extra), batch["encoder_segments"]
        read = batch["encoder_inputs"], keys, segments
        hidden, _, _ = self.apply("model", variables, *read, ctx=ctx, method="hidden")
        logits, _, _ = self.apply("detector", variables, hidden, ctx=ctx)
        other = (batch["inputs"] != batch["targets"]) & (batch["weights"] > 0)
        mark = lambda row, places, values: row.at[places].max(values)  # places of padding are 0 and say nothing
        replaced = jax.vmap(mark)(jnp.zeros(segments.shape, bool), batch["positions"], other)
        return score_detection(logits[..., 0], replaced, (segments > 0) * batch["mask"][:, None])

    @property
    def partition_rules(self):
        return (*heads.PARTITION_RULES, *PARTITION_RULES)

    def forward_flops(self, batch_spec):
        batch, length = batch_spec["encoder_inputs"].shape
        return {"model": self.model.flops(batch, length, 0), "detector": self.detector.flops(batch * length)}
