"""What all decoding shares: a model that reads a prompt once and then a token a step, and rows of fixed shapes.

Lengths are rounded up to powers of two, so that few programs are compiled.
"""

import contextlib
import dataclasses
import math
import numbers
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from paradigm import progress
from paradigm.errors import UserError
from paradigm.objective import Objective
from paradigm.partition import BATCH

_LEAST = 16  # the shortest length that is compiled
_COMPILED = "/jax/core/compile/backend_compile_duration"  # what jax.monitoring tells of each program


@dataclasses.dataclass(frozen=True)
class ModelAlone(Objective):
    """A text model that no objective trains, for decoding: variables are {"params": {"model": its tree}}."""

    model: Any

    def modules(self):
        return {"model": (self.model, ())}

    def output_kernel(self, params):
        """As of a TextObjective."""
        return self.model.output_kernel(params["model"])


@dataclasses.dataclass(frozen=True)
class Reader:
    """A model and what of a batch it reads again at every step.

    segments: int32 [B, S] of the encoder's inputs, or None. visible: int32 [B], tokens that see each other, or None.
    encoder: whether the model has one, or is given what another has encoded. name: of the module that decodes.
    """

    objective: Any
    variables: Any
    encoder: bool
    segments: Any = None
    visible: Any = None
    name: str = "model"

    def __call__(self, tokens, cache, encoded=None):
        """int32 [B, L] -> (hidden [B, L, D], the next cache)."""
        how = {} if self.visible is None else {"prefix": self.visible}
        how |= {"input_segments": self.segments, "method": "decode"} if self.encoder else {"method": "hidden"}
        given = (encoded, tokens) if self.encoder else (tokens,)
        hidden, more, _ = self.objective.apply(self.name, self.variables, *given, **how, cache=cache)
        return hidden, more["cache"]

    def first(self, prompts, lengths, new, inputs=None, source=None):
        """Reads the prompts: (hidden [B, 1, D] at the last token of each, a cache with room for `new` tokens).

        source: [B, S, D], what is decoded from in place of encoded inputs.
        """
        rows, width = prompts.shape
        if self.encoder and source is None:
            source = self.objective.apply(self.name, self.variables, inputs, None, self.segments, method="encode")[0]
        hidden, cache = self(prompts, new_cache(self.objective, rows, width + new, self.name), source)
        # What a prompt's padding wrote will be written over before it is seen.
        cache = {**cache, "index": cache["index"] - width + lengths}
        return jnp.take_along_axis(hidden, lengths[:, None, None] - 1, axis=1), cache

    def logits(self, hidden):
        """[B, 1, D] -> float32 [B, V]."""
        return self.objective.apply(self.name, self.variables, hidden, method="score")[0][:, 0]


def batch_of(objective, vocabulary, prompts, new, inputs, name="model"):
    """(prompts int32 [B, P] with the start id, lengths int32 [B], inputs int32 [B, S] or None, segments likewise) of
    lists of rows; B is such that it divides over the mesh.

    Raises UserError when the prompt and what follows it pass the learned positions of the model.
    """
    check_count("max_new_tokens", new, "ask for")
    if not prompts:
        raise UserError("there is no prompt to go on from: give one or more")
    check_room(objective, max(map(len, prompts)), new, max(map(len, inputs)) if inputs else 0, name)
    rows = whole_rows(len(prompts))
    prompts = [np.r_[vocabulary.start, row] for row in prompts]
    width = lambda texts: min(rounded(max(map(len, texts))), room(objective, name))
    pad = lambda texts, filler=0: padded(texts, width(texts), rows, filler)
    lengths = np.resize([len(row) for row in prompts], rows).astype(np.int32)
    read, segments = None, None
    if inputs is not None:
        read, segments = pad(inputs, vocabulary.filler), pad([np.ones(len(row)) for row in inputs])
    return pad(prompts, vocabulary.filler), lengths, read, segments


def check_count(name, value, fix):
    """Raises UserError for what is no whole number of at least 1."""
    if not isinstance(value, numbers.Integral) or value < 1:
        raise UserError(f"{name}={value!r}: {fix} 1 or more")


def new_cache(objective, batch, length, name="model"):
    """An empty cache for the module of that name, with room for `length` tokens beside an adaptation's."""
    model, adapt = objective.modules()[name][0], objective.adapt
    return model.new_cache(batch, length) if adapt is None else adapt.new_cache(model, batch, length)


def room(objective, name="model"):
    """Tokens for which there are positions; soft tokens have the first of them."""
    model = objective.modules()[name][0]
    if model.positions != "learned":
        return math.inf
    return model.places - (0 if objective.adapt is None else objective.adapt.shift)


def check_room(objective, prompt, new, inputs=0, name="model"):
    """Raises UserError where so many tokens pass the learned positions of the model."""
    if max(prompt + new, inputs) > room(objective, name):
        raise UserError(
            f"a prompt of {inputs or prompt} tokens and max_new_tokens={new} do not fit into "
            f"max_length={room(objective, name)} positions"
        )


def rounded(n):
    return max(_LEAST, 1 << (n - 1).bit_length())


def whole_rows(count):
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


def fetched(program, rows, counted, *args):
    """What a jitted program gives, on the host. Counts its `decoded_tokens` by the clock, unless it was compiled first.

    rows: how many of its rows are no filling. counted: what it gives -> the tokens of each row, int [B].
    """
    with _compilations() as compiled:
        start = time.perf_counter()
        found = jax.device_get(program(*args))
        seconds = time.perf_counter() - start
    if not compiled:
        progress.took("decoded_tokens", int(counted(found)[:rows].sum()), seconds)
    return found


@contextlib.contextmanager
def _compilations():
    """A list that grows by one for each program that is compiled, or read from the cache on disk, meanwhile."""
    found = []

    def listen(event, seconds, **_):
        if event == _COMPILED:
            found.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def written(tokens, end):
    """int [...]: how many tokens of each row [..., n] were written: to its first end, which is one."""
    ended = tokens == end
    return np.where(ended.any(-1), ended.argmax(-1) + 1, tokens.shape[-1])


def until(tokens, end):
    """A row of ids up to its first end, without it."""
    ends = np.flatnonzero(tokens == end)
    return tokens[: ends[0]] if len(ends) else tokens
