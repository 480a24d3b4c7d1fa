"""The contract of a pre-training objective: settings and modules in a frozen dataclass, and pure functions.

An objective knows no device, no file, no flag and no clock. The step, the loop, the checkpoints, the pod compiler and
the evaluators know objectives only through what stands here.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from paradigm import rng, teacher, trees
from paradigm.errors import UserError
from paradigm.schedule import FINAL

MAIN = "main"  # the phase of an objective that has only one
BODIES = ("model", "encoder", "text")  # what the modules are called that are pre-trained and adapted
REQUIRED = ("preprocess", "batch_spec", "modules", "partition_rules", "forward_flops")  # that have no default


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


def checked_loss(objective, loss):
    """The Loss that an objective gave, as it is.

    Raises UserError for anything else, and for terms and metrics that are no scalars, which would not add up over the
    parts of a batch.
    """
    owner = f"{type(objective).__name__}.loss"
    if not isinstance(loss, Loss):
        raise UserError(
            f"{owner} gives a {type(loss).__name__}: return a Loss, as in Loss({{'nll': Term(sum, weight)}})"
        )
    for name, term in loss.terms.items():
        if not isinstance(term, Term):
            raise UserError(f"{owner}: its term {name!r} is a {type(term).__name__}: write Term(sum, weight)")
    for name, pair in loss.metrics.items():
        if not (isinstance(pair, tuple | list) and len(pair) == 2):
            raise UserError(f"{owner}: its metric {name!r} is no (sum, weight) of two scalars")
    pairs = {**{name: (term.sum, term.weight) for name, term in loss.terms.items()}, **loss.metrics}
    for name, pair in pairs.items():
        for what, x in zip(("sum", "weight"), pair):
            if jnp.shape(x):
                raise UserError(
                    f"{owner}: the {what} of {name!r} has the shape {list(jnp.shape(x))} and must be a scalar: add up "
                    "over the rows of the batch, those of padding (batch['mask'] 0) left out"
                )
    return loss


def divide(total, weight):
    """total / weight, and 0 where the weight is 0 (a batch in which nothing is scored)."""
    return jnp.where(weight > 0, total / jnp.where(weight > 0, weight, 1.0), 0.0)


@struct.dataclass
class Context:
    """What a loss may know beside its arguments.

    step: int32 [], traced: batches consumed so far. seed: the run's. train: dropout and augmentation on. phase: which
    executable this is. frozen: names of the modules that are not trained at all: their BatchNorm is in evaluation mode.
    """

    step: jax.Array
    seed: int = struct.field(pytree_node=False, default=0)
    train: bool = struct.field(pytree_node=False, default=True)
    phase: str = struct.field(pytree_node=False, default=MAIN)
    frozen: tuple[str, ...] = struct.field(pytree_node=False, default=())

    def keys(self, name, index):
        """Keys [B], one for each example by its global index [B, 2]: on any mesh, however the batch is cut."""
        return rng.per_example(rng.key(self.seed, name), index)

    def key(self, name):
        """A key [] of (seed, name, step), for what is drawn once a step."""
        return rng.key(self.seed, name, self.step)


EVALUATION = Context(FINAL, train=False)


@dataclasses.dataclass(frozen=True)
class Objective:
    """Base of all objectives. A subclass gives the members of REQUIRED, and `loss`; the rest has defaults.

    Parameters are {module's name: its tree, scalar's name: its value}. `modules` is the one door to them: `init`,
    `apply`, batch statistics and the teacher derive from it.

    adapt: a paradigm.adapt.Adaptation, which may add leaves beside those of the modules and says what is trained, or
        None. It is entered in `apply` and `init`, and nowhere else, and never in a head, which is trained whole.
    """

    adapt: Any = dataclasses.field(default=None, kw_only=True)

    # True when `loss` is a composition of `encode` and `full_batch_loss`: the step then accumulates cached embeddings.
    full_batch = False
    # The Vocabulary by which the ids in the data are read; None for data without ids, and before `bind`.
    data_vocabulary = None
    # The (name, objective) pairs that a combinator is made of; paradigm.capabilities looks through them.
    parts = ()
    # Tokens that a window of text must hold for `preprocess`; None where records are taken as they come.
    raw_length = None
    # Tokens of the rows that a mesh's `context` axis may cut along their length; None where it can cut none.
    context_length = None
    # Names of modules that come trained from another run (Experiment.init) and stay as they are (Experiment.freeze).
    given = ()
    # A paradigm.teacher.Teacher, whose variables are in extra['teacher'] and follow the parameters; None for none.
    teacher = None
    # Names of the modules that a pre-trained model need not have: heads, drawn where Experiment.init has none.
    new_modules = ()

    @property
    def contrasts(self):
        """Whether examples of one batch are each other's negatives: a copy in the batch would then be a wrong one."""
        return self.full_batch or any(part.contrasts for _, part in self.parts)

    @property
    def preprocess(self):
        """On the host: a picklable, numpy-only object, preprocess(example, rng, step, train) -> dict
        of arrays of fixed shapes. rng: a paradigm.dataset.ExampleRng.

        step is index // global batch; train=False asks for the fixed validation settings. It runs in data workers,
        where no jax backend may start.
        """
        raise NotImplementedError

    def bind(self, vocabulary):
        """The objective for data of this vocabulary (t5like.vocabulary.Vocabulary): with its ids, and a model of as
        many rows. Itself where there is no text. Binding to one vocabulary twice changes nothing."""
        del vocabulary
        return self

    # Whether the data are still to say how many classes there are; see `bind_classes`.
    lacks_classes = False

    def bind_classes(self, count):
        """The objective for labels of `count` classes; itself where it knows how many, or has none."""
        del count
        return self

    def check_data(self, prepared):
        """Lines to tell of the data that a recipe has built, such as how many texts are cut, before the first step.

        Raises UserError for data that this objective cannot be trained on.
        """
        del prepared
        return ()

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

    def modules(self):
        """name -> (module, an example of its input, or a tuple of inputs): all that has parameters.

        A module gives (output, intermediates). One with BatchNorm inside has has_batch_norm = True and takes `train`.
        """
        raise NotImplementedError

    @property
    def heads(self):
        """Names of the modules that an adaptation takes for new: not the bodies, by the names that they have here."""
        return tuple(name for name in self.modules() if name not in BODIES)

    def adapted(self, adapt):
        """The same objective under this adaptation, or under none."""
        return dataclasses.replace(self, adapt=adapt)

    def freeze_table(self, freeze=()):
        """((regex, bool), ...) of what is not trained: an experiment's table, and below it the adaptation's."""
        return (*freeze, *(() if self.adapt is None else self.adapt.freeze(self.heads)))

    def draws(self, module):
        """Whether a call of this module in training draws anything from its keys."""
        return module.is_random or (self.adapt is not None and self.adapt.is_random)

    @property
    def scalars(self):
        """name -> first value of the parameters beside the modules, such as a learned temperature."""
        return {}

    def init(self, key):
        """The parameter tree: {name: tree} of the modules, and the scalars."""
        modules = {name: first["params"] for name, first in self._first(key).items() if "params" in first}
        if self.adapt is not None:
            self.adapt.check(type(self).__name__, modules, self.heads)
        if both := modules.keys() & self.scalars.keys():
            raise UserError(f"{type(self).__name__}: a module and a scalar are both called {min(both)!r}: rename one")
        return {**modules, **{name: jnp.float32(x) for name, x in self.scalars.items()}}

    def init_extra(self, params, key):
        """State that is not trained by gradients: batch statistics, a teacher, a queue. Saved, sharded and donated."""
        stats = {name: first["batch_stats"] for name, first in self._first(key).items() if "batch_stats" in first}
        extra = {"batch_stats": stats} if stats else {}
        return extra if self.teacher is None else {**extra, "teacher": self.teacher.init(params, stats)}

    def _first(self, key):
        """name -> the module's first variables."""
        if not isinstance(key, jax.core.Tracer):
            return self._draw(key)
        try:
            hash(self)
        except TypeError:  # settings that gin gave as lists
            return self._draw(key)
        return _traced_first(self, key)

    def _draw(self, key):
        def first(name, module, inputs):
            make = lambda: module.init(rng.fold(key, name), *(inputs if isinstance(inputs, tuple) else (inputs,)))
            if not self._adapts(name):
                return make()
            with self._adapted(name):
                more = make()
            return trees.merge(more, make())  # the added leaves must not change what the others begin with

        modules = self.modules()
        pairs = modules.values() if isinstance(modules, Mapping) else (None,)
        if not all(isinstance(p, tuple) and len(p) == 2 and isinstance(p[0], nn.Module) for p in pairs):
            raise UserError(f"{type(self).__name__}.modules must give {{name: (Flax module, an example of its input)}}")
        return {name: first(name, *pair) for name, pair in modules.items()}

    def _adapted(self, name):
        """The place where an adaptation enters the call of a module."""
        return nn.intercept_methods(self.adapt.interceptor(name)) if self._adapts(name) else contextlib.nullcontext()

    def _adapts(self, name):
        return self.adapt is not None and self.adapt.adds and name not in self.heads

    def apply(self, name, variables, *inputs, ctx=EVALUATION, method=None, **how):
        """(output, intermediates, moments) of one of the modules: the only call of a module that there is.

        Args:
            variables: {"params": {module's name: tree}, "batch_stats": ...}, see `variables`; the teacher's, perhaps.
            inputs, how: the module's own arguments, `keys` for dropout among them.
            ctx: whether this is training, and which modules are frozen.
            method: of the module; None calls it. What gives no intermediates gives {}.

        Returns:
            moments: {"NAME/.../mean": array} of this batch's BatchNorm for Loss.stats; {} in evaluation or frozen.
        """
        modules = self.modules()
        if name not in modules:
            raise UserError(f"{type(self).__name__} applies {name!r}, and its modules are {', '.join(modules)}")
        module, own = modules[name][0], {kind: tree[name] for kind, tree in variables.items() if name in tree}
        with self._adapted(name):
            if ctx.train and name not in ctx.frozen and "batch_stats" in own:
                (output, more), seen = module.apply(own, *inputs, train=True, mutable=["moments"], method=method, **how)
                return output, more, {f"{name}/{path}": x for path, x in trees.named_leaves(seen["moments"])}
            output = module.apply(own, *inputs, method=method, **how)
        return (*output, {}) if isinstance(output, tuple) else (output, {}, {})

    def has_batch_norm(self, frozen=()):
        """Whether an example's part of `loss` (or `encode`) depends on others in its batch, which then can't be cut.

        frozen: names of modules whose BatchNorm is in evaluation mode.
        """
        modules = {name: module for name, (module, _) in self.modules().items() if name not in frozen}
        return any(getattr(module, "has_batch_norm", False) for module in modules.values())

    def paired(self, batch):
        """Entries [B, ...] that the step adds to a whole batch in training, before it is cut into microbatches: what a
        row needs of another one of its batch, as mixup does."""
        del batch
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
        """The next extra: after the optimizer, from the NEW params and the whole batch's Loss.

        Batch statistics move towards Loss.stats, those of 'teacher/...' the teacher's, and the teacher follows.
        """
        extra, own = dict(extra), {k: v for k, v in loss.stats.items() if not k.startswith(teacher.PREFIX)}
        if own:
            extra["batch_stats"] = teacher.update_batch_stats(extra["batch_stats"], own)
        if self.teacher is not None:
            seen = {k.removeprefix(teacher.PREFIX): v for k, v in loss.stats.items() if k not in own}
            extra["teacher"] = self.teacher.update(extra["teacher"], params, seen, ctx.step)
        return extra

    def variables(self, params, extra, which="online"):
        """Variables for `apply`: `online`, `ema` (where weights are averaged) or `teacher` (where there is one)."""
        if which == "teacher" and self.teacher is not None:
            return extra["teacher"]
        if which not in ("online", "ema") or which == "ema" and "ema" not in extra:
            raise KeyError(f"{type(self).__name__} has no variables {which!r} here")
        params = trees.merge(params, extra["ema"]) if which == "ema" else params
        return {"params": params, **({"batch_stats": extra["batch_stats"]} if "batch_stats" in extra else {})}

    @property
    def partition_rules(self):
        """Ordered (regex on 'a/b/kernel', mesh axes of the trailing dims), for params and extra."""
        raise NotImplementedError

    @property
    def all_partition_rules(self):
        """`partition_rules`, after those of an adaptation."""
        return (*(() if self.adapt is None else self.adapt.partition_rules), *self.partition_rules)

    def forward_flops(self, batch_spec):
        """{part's name: model FLOPs of one step's forward pass}, by formula; a module's under its own name."""
        raise NotImplementedError

    def flops(self, batch_spec, frozen=()):
        """Model FLOPs of a step: two products backward for each forward one, but forward alone in what is frozen or a
        teacher, and one where a body's kernels are frozen by an adaptation (whose own products are not counted)."""
        parts = self.forward_flops(batch_spec)
        inside = 3.0 if self.adapt is None or self.adapt.trains_kernels else 2.0
        times = lambda name: 1.0 if name in frozen else inside if name in BODIES else 3.0
        total = sum(x * times(name) for name, x in parts.items())
        return total + (
            0.0 if self.teacher is None else sum(parts.get(name, 0.0) for name in self.teacher.names(parts))
        )

    def throughput(self, batch_spec):
        """(unit, number) of what a batch of this spec is counted in when speed is told: "tokens" for text."""
        return "examples", batch_spec["mask"].size


@functools.partial(jax.jit, static_argnums=0, inline=True)
def _traced_first(objective, key):
    """Traced once, though a run asks five times before its first step: for shapes, twice, and numbers, and in `init`
    and `init_extra` each."""
    return objective._draw(key)


def rows_spec(batch_size):
    """The two entries that every batch holds: whose example a row is, and whether it is a real one."""
    return {
        "index": jax.ShapeDtypeStruct((batch_size, 2), jnp.uint32),
        "mask": jax.ShapeDtypeStruct((batch_size,), jnp.float32),
    }
