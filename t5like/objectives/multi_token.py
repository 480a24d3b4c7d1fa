"""Multi-token prediction: Gloeckle et al. 2024 ("Better & Faster Large Language Models via Multi-token Prediction",
section 2).

A trunk f_s reads the text, and n heads of one layer each predict the next n tokens from it, through one output matrix:

    loss = sum_{i=1..n} -1/T_i sum_t log p_i(x[t + i - 1] | x[<t])        p_i = softmax(W f_i(f_s(x[<t])))

over the targets of the same document. The model is a Decoder whose last layer is the first head, so that it generates
as any other; the other heads begin at the trunk's output, the layer before. `nll` and `bits_per_byte` are the first
head's, HEAD/nll the others'.
"""

import dataclasses
import functools
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from paradigm.architecture import Architecture
from paradigm.attention import AttentionMask
from paradigm.errors import UserError
from paradigm.losses import chunked_cross_entropy
from paradigm.objective import Term
from paradigm.transformer import Stack
from t5like.corrupt import NextTokenWindows
from t5like.models import Decoder
from t5like.objectives.base import LeftToRight, TextObjective


class Head(Architecture, kw_only=True):
    """One causal layer and its last norm: [B, L, D] -> ([B, L, D], {})."""

    window: int | None = None

    @nn.compact
    def __call__(self, x, keys=None, segments=None, positions=None):
        mask = AttentionMask(True, None, segments, segments, 0, self.window)
        return Stack(**self.shared(layers=1), name="decoder")(x, mask, positions=positions, keys=keys)[0], {}


@dataclasses.dataclass(frozen=True)
class MultiToken(LeftToRight, TextObjective):
    """Prediction of the next n tokens at once.

    model: a Decoder of two layers or more. length: tokens a window. heads: n; 4 in the paper's best models of tokens.
    z_loss: coefficient of log(Z)^2.

    Raises UserError for fewer than two heads, and when the model has learned positions for fewer tokens.
    """

    model: Any
    length: int = 1024
    heads: int = 4
    z_loss: float = 0.0

    architectures = (Decoder,)

    def __post_init__(self):
        _ = NextTokenWindows(self.vocabulary, self.length)  # raises now rather than in a data worker
        self.check_kind("multi_token")
        self.check_positions("multi_token")
        if not 2 <= self.heads < self.length:
            raise UserError(f"multi_token: heads={self.heads} tokens ahead; use 2 or more, and fewer than the length")
        if self.model.layers < 2:
            raise UserError("multi_token: the model's last layer is its first head; give it 2 layers or more")

    @functools.cached_property
    def preprocess(self):
        return NextTokenWindows(self.known, self.length)

    @property
    def _further(self):
        """(name, tokens after the next one) of the heads beside the model's own."""
        return [(f"head_{i + 1}", i) for i in range(1, self.heads)]

    def modules(self):
        fields = self.model.shared(window=self.model.window)
        further = {name: (Head(**fields), jnp.ones((1, 8, self.model.d_model))) for name, _ in self._further}
        return {**super().modules(), **further}

    def loss(self, params, extra, batch, ctx):
        keys = ctx.keys("dropout", batch["index"]) if ctx.train else None
        variables, where = self.variables(params, extra), (keys, batch["segments"], batch["positions"])
        read = batch["inputs"], *where
        hidden, seen, _ = self.apply("model", variables, *read, ctx=ctx, method="hidden")
        loss, trunk = self.scores(params, batch, hidden), seen["layers"][-2]
        terms, metrics, kernel = dict(loss.terms), dict(loss.metrics), self.output_kernel(params)
        targets, weights, _ = self.scored(batch)
        for name, ahead in self._further:
            x, _, _ = self.apply(name, variables, trunk, *where, ctx=ctx)
            later = lambda a, ahead=ahead: jnp.pad(a[:, ahead:], ((0, 0), (0, ahead)))
            same = (later(batch["segments"]) == batch["segments"]).astype(jnp.float32)
            ce = chunked_cross_entropy(x, kernel, later(targets), later(weights) * same, z_loss=self.z_loss)
            count = (later(weights) * same).sum()
            terms[name] = Term(ce.total, count)
            metrics[f"{name}/nll"] = ((ce.nll * later(weights) * same).sum(), count)
        return loss.replace(terms=terms, metrics=metrics)

    def forward_flops(self, batch_spec):
        batch, length = batch_spec["targets"].shape
        stack = self.model.stack(layers=1, parent=None).flops(batch, length)
        head = stack + 2 * batch * length * self.model.d_model * self.model.vocab_size
        return {**super().forward_flops(batch_spec), **{name: head for name, _ in self._further}}
