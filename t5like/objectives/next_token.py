"""Next-token prediction: the language model of Radford et al. 2018 ("Improving Language Understanding", section 3.1).

    loss = -1/T sum_t log p(x[t] | x[<t]) + z_loss log(Z_t)^2        over the T tokens of the windows

Windows of L tokens may hold several documents, told apart by `segments`. Each is read by itself: its first token is
predicted from the vocabulary's start id, its positions count from 0 and attention never leaves it.

With prefix=True this is the prefix language model (Raffel et al. 2020, sections 3.2.1 and 3.2.3): the first p tokens
of the window, p uniform over 1 .. n - 1, are read and not predicted. The p + 1 positions of the start id and of these
tokens see each other, the rest is causal, and the loss is over x[p:].
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from paradigm.capabilities import Generating
from paradigm.objective import MAIN, rows_spec
from t5like.corrupt import NextTokenWindows
from t5like.models import PARTITION_RULES, Decoder
from t5like.objectives.base import TextObjective, text_spec
from t5like.scoring import score_text


@dataclasses.dataclass(frozen=True)
class NextToken(Generating, TextObjective):
    """Left-to-right prediction of every token, or of those after a random prefix.

    model: a Decoder. length: tokens a window. prefix: prefix language modelling. z_loss: coefficient of log(Z)^2, 1e-4
    in PaLM and none in GPT.

    Raises UserError when the model has learned positions for fewer tokens.
    """

    model: Any
    length: int = 1024
    prefix: bool = False
    z_loss: float = 0.0

    architectures = (Decoder,)

    def __post_init__(self):
        self.check_kind("next_token")
        _ = NextTokenWindows(self.vocabulary, self.length)  # raises now rather than in a data worker
        self.check_positions("next_token")

    @functools.cached_property
    def preprocess(self):
        return NextTokenWindows(self.known, self.length, self.prefix)

    @property
    def raw_length(self):
        """Tokens a data window must hold."""
        return self.length

    def batch_spec(self, batch_size, phase=MAIN):
        prefix = {"prefix": jax.ShapeDtypeStruct((batch_size,), jnp.int32)} if self.prefix else {}
        return {
            **text_spec(batch_size, self.length),
            **prefix,
            **rows_spec(batch_size),
        }

    def modules(self):
        return {"model": (self.model, jnp.ones((1, 8), jnp.int32))}

    def loss(self, params, extra, batch, ctx):
        targets, weights, is_text = self.scored(batch)
        keys = ctx.keys("dropout", batch["index"]) if ctx.train else None
        visible = batch["prefix"] + 1 if self.prefix else None
        how = {"ctx": ctx, "method": "hidden"}
        variables = self.variables(params, extra)
        read = batch["inputs"], keys, batch["segments"], batch["positions"], visible
        hidden, _, _ = self.apply("model", variables, *read, **how)
        kernel = self.model.output_kernel(params["model"])
        text_bytes = batch["text_bytes"] * batch["mask"]
        return score_text(hidden, kernel, targets, weights, is_text, text_bytes, self.z_loss)

    @property
    def partition_rules(self):
        return PARTITION_RULES

    def throughput(self, batch_spec):
        return "tokens", batch_spec["targets"].size

    def forward_flops(self, batch_spec):
        return {"model": self.model.flops(*batch_spec["targets"].shape)}
