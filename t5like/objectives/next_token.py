"""Next-token prediction: the language model of Radford et al. 2018 ("Improving Language Understanding", section 3.1).

    loss = -1/T sum_t log p(x[t] | x[<t]) + z_loss log(Z_t)^2        over the T tokens of the windows

Windows of L tokens may hold several documents, told apart by `segments`. Each is read by itself: its first token is
predicted from the start id 0, its positions count from 0 and attention never leaves it.

With prefix=True this is the prefix language model (Raffel et al. 2020, sections 3.2.1 and 3.2.3): the first p tokens
of the window, p uniform over 1 .. n - 1, are read and not predicted. The p + 1 positions of the start id and of these
tokens see each other, the rest is causal, and the loss is over x[p:].
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from paradigm.capabilities import Generating
from paradigm.errors import UserError
from paradigm.objective import MAIN, Objective, rows_spec
from t5like.corrupt import UNK, NextTokenWindows
from t5like.models import PARTITION_RULES
from t5like.scoring import score_text


@dataclasses.dataclass(frozen=True)
class NextToken(Generating, Objective):
    """Left-to-right prediction of every token, or of those after a random prefix.

    model: a Decoder. length: tokens a window. prefix: prefix language modelling. z_loss: coefficient of log(Z)^2, 1e-4
    in PaLM and none in GPT.

    Raises UserError when the model has learned positions for fewer tokens.
    """

    model: Any
    length: int = 1024
    prefix: bool = False
    z_loss: float = 0.0

    def __post_init__(self):
        if self.model.positions == "learned" and self.model.max_length < self.length:
            raise UserError(
                f"next_token: length {self.length} but the model has {self.model.max_length} learned positions; "
                f"lower the length or set the model's max_length to {self.length}"
            )
        _ = self.preprocess  # raises now rather than in a data worker

    @functools.cached_property
    def preprocess(self):
        return NextTokenWindows(self.length, self.prefix)

    @property
    def raw_length(self):
        """Tokens a data window must hold."""
        return self.length

    def batch_spec(self, batch_size, phase=MAIN):
        ints = lambda *shape: jax.ShapeDtypeStruct((batch_size, *shape), jnp.int32)
        return {
            "tokens": ints(self.length),
            "segments": ints(self.length),
            "text_bytes": jax.ShapeDtypeStruct((batch_size,), jnp.float32),
            **({"prefix": ints()} if self.prefix else {}),
            **rows_spec(batch_size),
        }

    def modules(self):
        return {"model": (self.model, jnp.ones((1, 8), jnp.int32))}

    def scored(self, batch):
        """(targets [B, L], weights float32 [B, L], is_text bool [B, L]) of a numpy or jax batch."""
        weights = (batch["segments"] > 0) * batch["mask"][:, None]
        if self.prefix:
            weights = weights * (np.arange(self.length) >= batch["prefix"][:, None])
        return batch["tokens"], weights, batch["tokens"] > UNK

    def loss(self, params, extra, batch, ctx):
        targets, weights, is_text = self.scored(batch)
        inputs, positions = shift_documents(targets, batch["segments"])
        keys = ctx.keys("dropout", batch["index"]) if ctx.train else None
        visible = batch["prefix"] + 1 if self.prefix else None
        how = {"ctx": ctx, "method": "hidden"}
        variables = self.variables(params, extra)
        hidden, _, _ = self.apply("model", variables, inputs, keys, batch["segments"], positions, visible, **how)
        kernel = self.model.output_kernel(params["model"])
        text_bytes = batch["text_bytes"] * batch["mask"]
        return score_text(hidden, kernel, targets, weights, is_text, text_bytes, self.z_loss)

    @property
    def partition_rules(self):
        return PARTITION_RULES

    def throughput(self, batch_spec):
        return "tokens", batch_spec["tokens"].size

    def forward_flops(self, batch_spec):
        return {"model": self.model.flops(*batch_spec["tokens"].shape)}


def shift_documents(tokens, segments):
    """(inputs, positions), int32 [B, L]: the token before in the same document, else 0; places counted by document."""
    starts = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    inputs = jnp.where(starts, 0, jnp.roll(tokens, 1, axis=1))
    places = jnp.arange(tokens.shape[1], dtype=jnp.int32)
    return inputs, places - jax.lax.cummax(jnp.where(starts, places, 0), axis=1)
