"""The contract of a pre-training objective: settings and modules in a frozen dataclass, and pure functions.

An objective knows no device, no file, no flag and no clock. The step, the loop, the checkpoints, the pod compiler and
the evaluators know objectives only through what stands here.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from paradigm import rng

MAIN = "main"  # the phase of an objective that has only one


@struct.dataclass
class Term:
    """One term of a loss, as a sum and a weight that are divided once, when all of the batch has been seen.

    sum: [] float32. weight: [] float32, a function of the batch and never of the parameters (tokens, patches, pairs).
    coefficient: [] the term's share in the objective; may be scheduled by step.
    """

    sum: jax.Array
    weight: jax.Array
    coefficient: jax.Array | float = 1.0


@struct.dataclass
class Loss:
    """What a loss returns. Parts of a batch merge exactly: sums add, rows concatenate, stats average.

    terms: name -> Term. The step minimises sum over terms of coefficient * sum / weight.
    metrics: name -> (sum, weight), reported and not minimised.
    rows: name -> [B, ...] arrays, one row an example, in the batch's order (keys for a queue).
    stats: name -> arrays averaged over the batch's rows (moments for batch statistics).
    """

    terms: Mapping[str, Term] = struct.field(default_factory=dict)
    metrics: Mapping[str, Any] = struct.field(default_factory=dict)
    rows: Mapping[str, jax.Array] = struct.field(default_factory=dict)
    stats: Mapping[str, jax.Array] = struct.field(default_factory=dict)

    def value(self, weights=None):
        """[] float32: sum of coefficient * sum / weight, by these weights (of the whole batch) or by its own."""
        weights = self.weights if weights is None else weights
        return sum((t.coefficient * divide(t.sum, weights[n]) for n, t in self.terms.items()), jnp.float32(0.0))

    @property
    def weights(self):
        return {name: term.weight for name, term in self.terms.items()}

    def prefixed(self, name, coefficient=1.0):
        """The same loss with every name under `name/` and every coefficient multiplied."""
        named = lambda d: {f"{name}/{k}": v for k, v in d.items()}
        terms = {k: t.replace(coefficient=coefficient * t.coefficient) for k, t in self.terms.items()}
        return Loss(named(terms), named(self.metrics), named(self.rows), named(self.stats))

    def unprefixed(self, name):
        """The part that `prefixed(name)` made (coefficients stay multiplied)."""
        part = lambda d: {k[len(name) + 1 :]: v for k, v in d.items() if k.startswith(name + "/")}
        return Loss(part(self.terms), part(self.metrics), part(self.rows), part(self.stats))

    def join(self, other):
        """The union of two losses on the same rows; a name that both use is an error."""
        pairs = [(getattr(self, f.name), getattr(other, f.name)) for f in dataclasses.fields(self)]
        for a, b in pairs:
            if set(a) & set(b):
                raise ValueError(f"two losses use the names {sorted(set(a) & set(b))}: prefix one of them")
        return Loss(*({**a, **b} for a, b in pairs))


def divide(total, weight):
    """total / weight, and 0 where the weight is 0 (a batch in which nothing is scored)."""
    return jnp.where(weight > 0, total / jnp.where(weight > 0, weight, 1.0), 0.0)


@struct.dataclass
class Context:
    """What a loss may know beside its arguments.

    step: int32 [], traced: batches consumed so far. seed: the run's. train: dropout and augmentation on. phase: which
    executable this is.
    """

    step: jax.Array
    seed: int = struct.field(pytree_node=False, default=0)
    train: bool = struct.field(pytree_node=False, default=True)
    phase: str = struct.field(pytree_node=False, default=MAIN)

    def keys(self, name, index):
        """Keys [B], one for each example by its global index [B, 2]: on any mesh, however the batch is cut."""
        return rng.per_example(rng.key(self.seed, name), index)

    def key(self, name):
        """A key [] of (seed, name, step), for what is drawn once a step."""
        return rng.key(self.seed, name, self.step)


@dataclasses.dataclass(frozen=True)
class Objective:
    """Base of all objectives. A subclass gives `preprocess`, `batch_spec`, `init` and `loss`; the rest has defaults."""

    # True when `loss` is a composition of `encode` and `full_batch_loss`: the step then accumulates cached embeddings.
    full_batch = False
    # True when BatchNorm makes an example's part of `loss` (or `encode`) depend on the others: the batch can't be cut.
    has_batch_norm = False
    # The (name, objective) pairs that a combinator is made of; paradigm.capabilities looks through them.
    parts = ()
    # Tokens that a window of text must hold for `preprocess`; None where records are taken as they come.
    raw_length = None
    # Names of the parameter trees that stay as they were loaded: a run that begins without them is refused.
    locked = ()

    @property
    def preprocess(self):
        """On the host: a picklable, numpy-only object, preprocess(example, rng, step, train) -> dict
        of arrays of fixed shapes.

        step is index // global batch; train=False asks for the fixed validation settings. It runs in data workers,
        where no jax backend may start.
        """
        raise NotImplementedError

    def preprocess_for(self, phase):
        """What prepares the evaluation batches of a phase, which is read at the step FINAL whatever the phase."""
        del phase
        return self.preprocess

    def phases(self):
        """name -> a step at which that phase is current. One executable is compiled for each."""
        return {MAIN: 0}

    def phase(self, step):
        """The phase's name at this step (host int)."""
        del step
        return MAIN

    def batch_spec(self, batch_size, phase=MAIN):
        """name -> ShapeDtypeStruct of a batch; holds `index` uint32 [B, 2] and `mask` float32 [B] (see `rows_spec`)."""
        raise NotImplementedError

    def init(self, key):
        """The parameter tree."""
        raise NotImplementedError

    def adopt(self, params):
        """The parameters of another objective's run by the names that this one has for them, for a partial load."""
        return params

    def init_extra(self, params, key):
        """State that is not trained by gradients: a teacher, a queue, batch statistics. Saved, sharded and donated."""
        del params, key
        return {}

    def loss(self, params, extra, batch, ctx):
        """The objective on a batch, as a Loss."""
        if not self.full_batch:
            raise NotImplementedError
        embeddings, decomposes = self.encode(params, extra, batch, ctx)
        return decomposes.join(self.full_batch_loss(params, extra, embeddings, batch, ctx))

    def encode(self, params, extra, batch, ctx):
        """(embeddings: a tree of [B, ...] arrays, Loss of the terms that decompose over examples)."""
        return {}, self.loss(params, extra, batch, ctx)

    def full_batch_loss(self, params, extra, embeddings, batch, ctx):
        """The Loss that needs all embeddings of the batch at once; heads and their BatchNorm belong here."""
        del params, extra, embeddings, batch, ctx
        return Loss()

    def update_extra(self, extra, params, loss, ctx):
        """The next extra: after the optimizer, from the NEW params and the whole batch's Loss."""
        del params, loss, ctx
        return extra

    def variables(self, params, extra, which="online"):
        """Variables for apply: `online`, `ema`, or a name the objective adds (`teacher`)."""
        if which not in ("online", "ema") or which == "ema" and "ema" not in extra:
            raise KeyError(f"{type(self).__name__} has no variables {which!r} here")
        params = extra["ema"] if which == "ema" else params
        return {"params": params, **({"batch_stats": extra["batch_stats"]} if "batch_stats" in extra else {})}

    @property
    def partition_rules(self):
        """Ordered (regex on 'a/b/kernel', mesh axes of the trailing dims), for params and extra."""
        raise NotImplementedError

    def flops(self, batch_spec):
        """Model FLOPs of a step, forward and backward, by formula."""
        raise NotImplementedError

    def throughput(self, batch_spec):
        """(unit, number) of what a batch of this spec is counted in when speed is told: "tokens" for text."""
        return "examples", batch_spec["mask"].size


def rows_spec(batch_size):
    """The two entries that every batch holds: whose example a row is, and whether it is a real one."""
    return {
        "index": jax.ShapeDtypeStruct((batch_size, 2), jnp.uint32),
        "mask": jax.ShapeDtypeStruct((batch_size,), jnp.float32),
    }
