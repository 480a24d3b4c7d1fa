"""Random token substitution: ELECTRA's task without its generator (Di Liello et al. 2022, "Effective Pretraining
Objectives for Transformer-based Autoencoders", section 3, RTS and C-RTS).

15 % of the tokens are other ones, and the encoder tells at every place whether the token is the original:

    loss = E_t[ cross-entropy of D(x_fake, t) and (x_fake[t] != x[t]) ]

RTS draws them from the vocabulary alike. With `clusters` it is C-RTS: they come from the clusters whose tokens D has
missed most often in the place of such a token (t5like/clusters.py), so that the task becomes harder as D learns.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from paradigm.errors import UserError
from t5like import heads
from t5like.clusters import Clusters
from t5like.masking import Masking
from t5like.models import PARTITION_RULES, Encoder
from t5like.objectives.base import HiddenTokens, OnText
from t5like.scoring import score_detection


@dataclasses.dataclass(frozen=True)
class ReplacedTokens(HiddenTokens, OnText):
    """Finds the tokens that do not belong.

    model: an Encoder without head. length: tokens it reads. rate: share of the tokens that are replaced, a float or a
    schedule. unit: see t5like/masking.py. clusters: how many, or a cluster for each id (see t5like/clusters.py); None
    for RTS. beta: how much likelier fakes are from the cluster that is missed most (2.0 in the authors' code).

    Raises UserError for a model with a head or of another kind, and what Masking and Clusters refuse.
    """

    model: Any
    length: int = 512
    rate: Any = 0.15
    unit: str = "token"
    clusters: int | tuple | None = None
    beta: float = 2.0

    architectures = (Encoder,)

    def __post_init__(self):
        self.check_kind("replaced_tokens")
        if self.model.head:
            raise UserError("replaced_tokens: the model has no output over the vocabulary: set its head=False")
        _ = self._masking, self._clusters  # raise now rather than in a data worker or a trace
        self.check_positions("replaced_tokens")

    @functools.cached_property
    def _masking(self):
        return Masking(self.vocabulary, self.length, self.rate, self.unit, 0.0, 1.0, "replaced_tokens")

    @functools.cached_property
    def _clusters(self):
        known = self.clusters is not None and self.vocabulary is not None
        return Clusters(self.vocabulary, self.clusters) if known else None

    @property
    def detector(self):
        """What tells originals by the model's hidden states: [B, L, D] -> [B, L, 1]."""
        return heads.token_head(self.model)

    def modules(self):
        head = self.detector, jnp.zeros((1, self.model.d_model))
        return {"model": (self.model, jnp.ones((1, 8), jnp.int32)), "detector": head}

    def init_extra(self, params, key):
        extra = super().init_extra(params, key)
        if self.clusters is None:
            return extra
        return {**extra, "counts": jnp.ones((self._clusters.count,) * 2, jnp.int32)}

    def loss(self, params, extra, batch, ctx):
        keys = ctx.keys("dropout", batch["index"]) if ctx.train else None
        variables, segments = self.variables(params, extra), batch["encoder_segments"]
        tokens, fakes, targets = batch["encoder_inputs"], batch["inputs"], batch["targets"]
        hidden_places = jnp.where(batch["weights"] > 0, batch["positions"], self.length)  # padding is written nowhere
        put = jax.vmap(lambda row, places, values: row.at[places].set(values, mode="drop"))
        if self.clusters is not None:
            fakes = self._clusters.draw(extra["counts"], targets, ctx.keys("clusters", batch["index"]), self.beta)
            tokens = put(tokens, hidden_places, fakes)
        hidden, _, _ = self.apply("model", variables, tokens, keys, segments, ctx=ctx, method="hidden")
        logits, _, _ = self.apply("detector", variables, hidden, ctx=ctx)
        replaced = put(jnp.zeros(segments.shape, bool), hidden_places, fakes != targets)
        loss = score_detection(logits[..., 0], replaced, (segments > 0) * batch["mask"][:, None])
        if self.clusters is None:
            return loss
        found = jnp.take_along_axis(logits[..., 0], batch["positions"], axis=1) > 0
        counted = (batch["weights"] > 0) & (fakes != targets) & (batch["mask"][:, None] > 0)
        missed = jnp.where(counted, jnp.where(found, -1, 1), 0)
        return loss.replace(rows={"targets": targets, "fakes": fakes, "missed": missed})

    def update_extra(self, extra, params, loss, ctx):
        extra = super().update_extra(extra, params, loss, ctx)
        if self.clusters is None:
            return extra
        return {**extra, "counts": self._clusters.updated(extra["counts"], **loss.rows)}

    @property
    def partition_rules(self):
        counts = ((r"(^|/)counts$", (None, None)),)
        return (*(counts if self.clusters is not None else ()), *heads.PARTITION_RULES, *PARTITION_RULES)

    def forward_flops(self, batch_spec):
        batch, length = batch_spec["encoder_inputs"].shape
        return {"model": self.model.flops(batch, length, 0), "detector": self.detector.flops(batch * length)}
