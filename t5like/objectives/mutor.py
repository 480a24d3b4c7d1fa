"""MuToR: multi-token prediction by registers (Gerontopoulos et al. 2025, "Multi-Token Prediction Needs Registers",
section 3).

Behind each token stands a register, which predicts the token d places on; d is drawn from 1 .. d_max for each text:

    read        x1  r  x2  r  x3  r          d = 3
    predicts    x2 x4  x3 x5  x4 x6

    loss = (1 - a) E_t[ -log p(x[t+1] | x[<=t]) + z_loss log(Z)^2 ] + a E_t[ -log p(x[t+d] | x[<=t], r) ]

A register sees the tokens before it and itself, and nobody sees it: the tokens' predictions are those of a next-token
model, and registers are left out when it writes. A register's position is that from which its target is predicted
otherwise, x[t+d-1]'s, so that it knows d. All registers are one special token, as in the authors' code
(nasosger/MuToR, finetune.py): here the vocabulary's mask. Rows are twice as long as the text.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from paradigm.errors import UserError
from paradigm.losses import chunked_cross_entropy
from paradigm.objective import MAIN, Term
from t5like.corrupt import NextTokenWindows
from t5like.models import Decoder
from t5like.objectives.base import LeftToRight, TextObjective
from t5like.vocabulary import need


@dataclasses.dataclass(frozen=True)
class Ahead:
    """What a data worker makes of a window: `windows`, and `ahead` int32 [], how far its registers look: 1 .. most."""

    windows: NextTokenWindows
    most: int

    def __call__(self, example, rng, step, train):
        return {**self.windows(example, rng, step, train), "ahead": np.int32(rng.integers(1, self.most + 1))}


@dataclasses.dataclass(frozen=True)
class MuToR(LeftToRight, TextObjective):
    """Prediction of the next token, and by registers of one further on.

    model: a Decoder. length: tokens a window, without registers. most: d_max. weight: a. (4 and 0.3 are what the
    authors recommend, mutor_lm_doc.md.) z_loss: coefficient of log(Z)^2.

    Raises UserError for a model whose positions or window count places of a row, which registers share with tokens,
    and, once bound, for a vocabulary without a mask.
    """

    model: Any
    length: int = 1024
    most: int = 4
    weight: float = 0.3
    z_loss: float = 0.0

    architectures = (Decoder,)

    def __post_init__(self):
        _ = NextTokenWindows(self.vocabulary, self.length)  # raises now rather than in a data worker
        self.check_kind("mutor")
        self.check_positions("mutor")
        if not 1 <= self.most < self.length:
            raise UserError(f"mutor: most={self.most} tokens ahead; use 1 or more, and fewer than the length")
        if not 0 < self.weight < 1:
            raise UserError(f"mutor: weight={self.weight:g} is the registers' share of the loss, between 0 and 1")
        if self.model.positions not in ("rope", "learned") or self.model.window is not None:
            raise UserError(
                f"mutor gives registers positions of their own; positions={self.model.positions!r} and "
                f"window={self.model.window} go by the place in a row: choose rope or learned positions, and no window"
            )
        if self.vocabulary is not None:
            need(self.vocabulary, "mutor", "mask")

    @property
    def preprocess(self):
        return Ahead(NextTokenWindows(self.known, self.length), self.most)

    def batch_spec(self, batch_size, phase=MAIN):
        return {**super().batch_spec(batch_size, phase), "ahead": jax.ShapeDtypeStruct((batch_size,), jnp.int32)}

    def loss(self, params, extra, batch, ctx):
        ahead, segments, places = batch["ahead"][:, None], batch["segments"], jnp.arange(self.length)
        at = jnp.minimum(places + ahead - 1, self.length - 1)  # where the register's target is
        later = lambda name: jnp.take_along_axis(batch[name], at, axis=1)
        within = (places + ahead <= self.length) & (later("segments") == segments)
        positions = jnp.where(within, later("positions"), batch["positions"])

        by_turns = lambda tokens, registers: jnp.stack([tokens, registers], -1).reshape(len(tokens), -1)
        read = by_turns(batch["inputs"], jnp.full_like(batch["inputs"], self.known.mask))
        keys = ctx.keys("dropout", batch["index"]) if ctx.train else None
        where = keys, by_turns(segments, segments), by_turns(batch["positions"], positions)
        alone = (jnp.arange(2 * self.length) % 2 == 1)[None]
        variables = self.variables(params, extra)
        hidden, _, _ = self.apply("model", variables, read, *where, alone=alone, ctx=ctx, method="hidden")

        loss = self.scores(params, batch, hidden[:, ::2])
        weights = later("weights") * within * batch["mask"][:, None]
        ce = chunked_cross_entropy(hidden[:, 1::2], self.output_kernel(params), later("targets"), weights)
        terms = {name: term.replace(coefficient=1 - self.weight) for name, term in loss.terms.items()}
        terms["registers"] = Term(ce.total, weights.sum(), self.weight)
        metrics = {"registers/nll": ((ce.nll * weights).sum(), weights.sum())}
        return loss.replace(terms=terms, metrics={**loss.metrics, **metrics})

    def forward_flops(self, batch_spec):
        batch, length = batch_spec["targets"].shape
        return {"model": self.model.flops(batch, 2 * length)}
