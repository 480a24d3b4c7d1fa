"""What all decoding shares: a model that reads a prompt once and then a token a step, and rows of fixed shapes.

Lengths are rounded up to powers of two, so that few programs are compiled.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from paradigm.errors import UserError
from paradigm.objective import Objective
from paradigm.partition import BATCH

_LEAST = 16  # the shortest length that is compiled


@dataclasses.dataclass(frozen=True)
class ModelAlone(Objective):
    """A text model that no objective trains, for decoding: variables are {"params": {"model": its tree}}."""

    model: Any

    def modules(self):
        return {"model": (self.model, ())}


@dataclasses.dataclass(frozen=True)
class Reader:
    """A model and what of a batch it reads again at every step.

    segments: int32 [B, S] of the encoder's inputs, or None. visible: int32 [B], tokens that see each other, or None.
    encoder: whether the model has one.
    """

    objective: Any
    variables: Any
    encoder: bool
    segments: Any = None
    visible: Any = None

    def __call__(self, tokens, cache, encoded=None):
        """int32 [B, L] -> (hidden [B, L, D], the next cache)."""
        how = {"input_segments": self.segments, "method": "decode"} if self.encoder else {"prefix": self.visible}
        given = (encoded, tokens) if self.encoder else (tokens,)
        hidden, more, _ = self.objective.apply(
            "model", self.variables, *given, **{"method": "hidden"} | how, cache=cache
        )
        return hidden, more["cache"]

    def first(self, prompts, lengths, new, inputs=None):
        """Reads the prompts: (hidden [B, 1, D] at the last token of each, a cache with room for `new` tokens)."""
        apply, rows = self.objective.apply, prompts.shape
        encoded = None
        if self.encoder:
            encoded = apply("model", self.variables, inputs, None, self.segments, method="encode")[0]
        hidden, cache = self(prompts, self.objective.model.new_cache(rows[0], rows[1] + new), encoded)
        cache = {**cache, "index": lengths}  # what a prompt's padding wrote will be written over before it is seen
        return jnp.take_along_axis(hidden, lengths[:, None, None] - 1, axis=1), cache

    def logits(self, hidden):
        """[B, 1, D] -> float32 [B, V]."""
        return self.objective.apply("model", self.variables, hidden, method="score")[0][:, 0]


def batch_of(model, vocabulary, prompts, new, inputs):
    """(prompts int32 [B, P] with the start id, lengths int32 [B], inputs int32 [B, S] or None, segments likewise) of
    lists of rows; B is such that it divides over the mesh.

    Raises UserError when the prompt and what follows it pass the learned positions of the model.
    """
    if new < 1:
        raise UserError(f"max_new_tokens={new}: ask for 1 or more")
    if not prompts:
        raise UserError("there is no prompt to go on from: give one or more")
    check_room(model, max(map(len, prompts)), new, max(map(len, inputs)) if inputs else 0)
    rows = _whole_rows(len(prompts))
    prompts = [np.r_[vocabulary.start, row] for row in prompts]
    width = lambda texts: min(_rounded(max(map(len, texts))), _room(model))
    pad = lambda texts, filler=0: padded(texts, width(texts), rows, filler)
    lengths = np.resize([len(row) for row in prompts], rows).astype(np.int32)
    read, segments = None, None
    if inputs is not None:
        read, segments = pad(inputs, vocabulary.filler), pad([np.ones(len(row)) for row in inputs])
    return pad(prompts, vocabulary.filler), lengths, read, segments


def _room(model):
    return model.places if model.positions == "learned" else math.inf


def check_room(model, prompt, new, inputs=0):
    """Raises UserError where so many tokens pass the learned positions of the model."""
    if max(prompt + new, inputs) > _room(model):
        raise UserError(
            f"a prompt of {inputs or prompt} tokens and max_new_tokens={new} do not fit into "
            f"max_length={_room(model)} positions"
        )


def _rounded(n):
    return max(_LEAST, 1 << (n - 1).bit_length())


def _whole_rows(count):
    """How many rows to compute so that they divide over the mesh, when there is one."""
    mesh = jax.sharding.get_abstract_mesh()
    ways = int(np.prod([size for axis, size in mesh.shape.items() if axis in BATCH])) if not mesh.empty else 1
    return -(-count // ways) * ways


def padded(rows, width, count, filler=0):
    """int32 [count, width] from rows of any lengths, filled up; the first rows again where there are too few."""
    out = np.full((count, width), filler, np.int32)
    for i in range(count):
        row = rows[i % len(rows)]
        out[i, : len(row)] = row
    return out


def until(tokens, end):
    """A row of ids up to its first end, without it."""
    ends = np.flatnonzero(tokens == end)
    return tokens[: ends[0]] if len(ends) else tokens
