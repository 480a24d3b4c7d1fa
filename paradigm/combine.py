"""Combinators: objectives made of objectives. A paper that mixes known things is a gin file.

Parts meet in one parameter tree. A path that two parts both have is one shared parameter (shapes must agree), so
`Alternate` over one model trains one set of weights. Extra state and batches stay apart, under the part's name.
"""

import dataclasses
from typing import Any

import jax

from paradigm import trees
from paradigm.errors import UserError
from paradigm.objective import MAIN, Loss, Objective, checked_loss, rows_spec
from paradigm.schedule import as_schedule


@dataclasses.dataclass(frozen=True)
class PreprocessParts:
    """Runs the preprocess of each part named, on the same example, under 'part/key', each with random draws of its own.

    What they draw by rng.shared(name) is one draw for all of them (see paradigm.dataset.ExampleRng).
    """

    parts: tuple  # ((name, preprocess), ...)
    choose: Any = None  # step -> names of the parts that are read; None: all

    def __call__(self, example, rng, step, train):
        names = None if self.choose is None else self.choose(step)
        out = {}
        for name, preprocess in self.parts:
            if names is None or name in names:
                out.update({f"{name}/{k}": v for k, v in preprocess(example, rng.part(name), step, train).items()})
        return out


@dataclasses.dataclass(frozen=True)
class Combined(Objective):
    """What the combinators share: parts = ((name, objective), ...)."""

    parts: tuple = ()

    def __post_init__(self):
        pairs = [part for part in self.parts if isinstance(part, tuple | list) and len(part) == 2]
        if len(pairs) != len(self.parts) or not all(isinstance(part, Objective) for _, part in pairs):
            raise UserError(f"{type(self).__name__}.parts must be (name, objective) pairs, as in (('a', @MAE()), ...)")
        names = [name for name, _ in self.parts]
        if not names or len(set(names)) != len(names):
            raise UserError(
                f"{type(self).__name__}.parts must be (name, objective) pairs with distinct names, got {names}"
            )
        if "ema" in names:
            raise UserError(f"{type(self).__name__}: no part may be named 'ema', as the average of weights is")
        for name, part in self.parts:
            if set(part.phases()) != {MAIN}:
                own, inner = type(self).__name__, type(part).__name__
                raise UserError(
                    f"{own}: its part {name!r} is {inner}, which has phases of its own, and a step has one phase: let "
                    f"{inner} stand outside, and {own} in it"
                )
        if any(part.adapt != self.adapt for _, part in self.parts):
            raise UserError(
                f"{type(self).__name__}: its parts share parameters, so that they have one adaptation: set "
                "Experiment.adapt, which gives it to all, or adapted(adapt)"
            )

    def adapted(self, adapt):
        parts = tuple((name, part.adapted(adapt)) for name, part in self.parts)
        return dataclasses.replace(self, parts=parts, adapt=adapt)

    def bind(self, vocabulary):
        return dataclasses.replace(self, parts=tuple((name, part.bind(vocabulary)) for name, part in self.parts))

    @property
    def lacks_classes(self):
        return any(part.lacks_classes for _, part in self.parts)

    def bind_classes(self, count):
        return dataclasses.replace(self, parts=tuple((name, part.bind_classes(count)) for name, part in self.parts))

    def check_data(self, prepared):
        return [line for _, part in self.parts for line in part.check_data(prepared)]

    @property
    def given(self):
        return tuple(dict.fromkeys(name for _, part in self.parts for name in part.given))

    @property
    def new_modules(self):
        return tuple(dict.fromkeys(name for _, part in self.parts for name in part.new_modules))

    @property
    def data_vocabulary(self):
        return next((v for _, part in self.parts if (v := part.data_vocabulary) is not None), None)

    @property
    def full_batch(self):
        return any(part.full_batch for _, part in self.parts)

    def has_batch_norm(self, frozen=()):
        return any(part.has_batch_norm(frozen) for _, part in self.parts)

    @property
    def raw_length(self):
        return max((part.raw_length or 0 for _, part in self.parts), default=0) or None

    def paired(self, batch):
        present = [(name, part) for name, part in self.parts if any(k.startswith(name + "/") for k in batch)]
        own = {name: part.paired(part_batch(batch, name)) for name, part in present}
        return {f"{name}/{k}": x for name, entries in own.items() for k, x in entries.items()}

    def modules(self):
        return {name: pair for _, part in self.parts for name, pair in part.modules().items()}

    @property
    def partition_rules(self):
        return tuple(dict.fromkeys(rule for _, part in self.parts for rule in part.all_partition_rules))

    def init(self, key):
        params = {}
        for name, part in self.parts:
            params = _union(params, part.init(key), name)
        return params

    def init_extra(self, params, key):
        return {name: part.init_extra(params, jax.random.fold_in(key, i)) for i, (name, part) in enumerate(self.parts)}

    def variables(self, params, extra, which="online"):
        """{"params": of all parts, "batch_stats": {part's name: its own}}; `part_variables` takes a part's out of them.

        A name that some parts add (`teacher`): the parameters are those of the first of them.
        """
        averaged = {"ema": extra["ema"]} if "ema" in extra else {}
        found = {}
        for name, part in self.parts:
            try:
                found[name] = part.variables(params, {**extra.get(name, {}), **averaged}, which)
            except KeyError:
                continue
        if not found:
            raise KeyError(f"no part of {type(self).__name__} has variables {which!r}")
        stats = {name: one["batch_stats"] for name, one in found.items() if "batch_stats" in one}
        params = next(iter(found.values()))["params"]
        return {"params": params, **({"batch_stats": stats} if stats else {})}

    def _active(self, phase):
        return self.parts

    def batch_spec(self, batch_size, phase=None):
        phase = self.phase(0) if phase is None else phase
        spec = rows_spec(batch_size)
        for name, part in self._active(phase):
            inner = part.batch_spec(batch_size)
            spec.update({f"{name}/{k}": v for k, v in inner.items() if k not in ("index", "mask")})
        return spec

    def flops(self, batch_spec, frozen=()):
        return sum(part.flops(spec, frozen) for part, spec in self._present(batch_spec))

    def throughput(self, batch_spec):
        counts = [part.throughput(spec) for part, spec in self._present(batch_spec)]
        if len({unit for unit, _ in counts}) > 1:
            return super().throughput(batch_spec)
        return counts[0][0], sum(number for _, number in counts)

    def _present(self, batch_spec):
        """(part, its batch spec) of the parts that this batch has entries for."""
        has = lambda name: any(key.startswith(name + "/") for key in batch_spec)
        return [(part, part_batch(batch_spec, name)) for name, part in self.parts if has(name)]


@dataclasses.dataclass(frozen=True)
class Sum(Combined):
    """sum over parts of coefficient(step) * loss, every step (CoCa, ELECTRA).

    coefficients: one float or Schedule for each part; () means 1 for all.
    """

    coefficients: tuple = ()

    def __post_init__(self):
        super().__post_init__()
        for scale in self.coefficients:
            if not callable(scale) and not isinstance(scale, int | float):
                raise UserError(f"Sum.coefficients={self.coefficients}: {scale!r} is neither a number nor a schedule")
        if self.coefficients and len(self.coefficients) != len(self.parts):
            raise UserError(
                f"Sum.coefficients has {len(self.coefficients)} entries for {len(self.parts)} parts: give one each"
            )

    @property
    def preprocess(self):
        return PreprocessParts(tuple((name, part.preprocess) for name, part in self.parts))

    def _weighted(self, ctx):
        scales = self.coefficients or (1.0,) * len(self.parts)
        return [(name, part, as_schedule(scale)(ctx.step)) for (name, part), scale in zip(self.parts, scales)]

    def encode(self, params, extra, batch, ctx):
        embeddings, loss = {}, Loss()
        for name, part, scale in self._weighted(ctx):
            embeddings[name], one = part.encode(params, extra[name], part_batch(batch, name), ctx)
            loss = loss.join(checked_loss(part, one).prefixed(name, scale))
        return embeddings, loss

    def full_batch_loss(self, params, extra, embeddings, batch, ctx):
        loss = Loss()
        for name, part, scale in self._weighted(ctx):
            if part.full_batch:
                one = part.full_batch_loss(params, extra[name], embeddings[name], part_batch(batch, name), ctx)
                loss = loss.join(one.prefixed(name, scale))
        return loss

    def loss(self, params, extra, batch, ctx):
        embeddings, decomposes = self.encode(params, extra, batch, ctx)
        return decomposes.join(self.full_batch_loss(params, extra, embeddings, batch, ctx))

    def update_extra(self, extra, params, loss, ctx):
        return {name: part.update_extra(extra[name], params, loss.unprefixed(name), ctx) for name, part in self.parts}


@dataclasses.dataclass(frozen=True)
class _OneAtATime(Combined):
    """Base of the combinators in which each step belongs to one part, whose name is the phase."""

    @property
    def preprocess(self):
        return PreprocessParts(tuple((name, part.preprocess) for name, part in self.parts), _Chosen(self._timetable()))

    def preprocess_for(self, phase):
        return PreprocessParts(tuple((name, part.preprocess) for name, part in self._active(phase)))

    def phase(self, step):
        return self._timetable()(int(step))

    def phases(self):
        table = self._timetable()
        return {name: table.first(name) for name, _ in self.parts}

    def _active(self, phase):
        found = tuple((name, part) for name, part in self.parts if name == phase)
        if not found:
            raise KeyError(f"no phase {phase!r}: there are {[name for name, _ in self.parts]}")
        return found

    def loss(self, params, extra, batch, ctx):
        ((name, part),) = self._active(ctx.phase)
        return checked_loss(part, part.loss(params, extra[name], part_batch(batch, name), ctx)).prefixed(name)

    def encode(self, params, extra, batch, ctx):
        ((name, part),) = self._active(ctx.phase)
        embeddings, loss = part.encode(params, extra[name], part_batch(batch, name), ctx)
        return embeddings, loss.prefixed(name)

    def full_batch_loss(self, params, extra, embeddings, batch, ctx):
        ((name, part),) = self._active(ctx.phase)
        return part.full_batch_loss(params, extra[name], embeddings, part_batch(batch, name), ctx).prefixed(name)

    def update_extra(self, extra, params, loss, ctx):
        ((name, part),) = self._active(ctx.phase)
        return {**extra, name: part.update_extra(extra[name], params, loss.unprefixed(name), ctx)}


@dataclasses.dataclass(frozen=True)
class Alternate(_OneAtATime):
    """The parts in turn by a repeating pattern of their names, one a step (AntLM): pattern=('a', 'a', 'b')."""

    pattern: tuple = ()

    def __post_init__(self):
        super().__post_init__()
        if set(self.pattern) != {name for name, _ in self.parts}:
            raise UserError(
                f"Alternate.pattern {self.pattern} must name each of {[n for n, _ in self.parts]} at least once"
            )

    def _timetable(self):
        return Pattern(self.pattern)


@dataclasses.dataclass(frozen=True)
class Stages(_OneAtATime):
    """One part after the other (SpacTor): part i runs until step boundaries[i], the last one to the end."""

    boundaries: tuple = ()

    def __post_init__(self):
        super().__post_init__()
        rising = all(a < b for a, b in zip((0,) + tuple(self.boundaries), self.boundaries))
        if len(self.boundaries) != len(self.parts) - 1 or not rising:
            raise UserError(
                f"Stages.boundaries {self.boundaries} must be {len(self.parts) - 1} rising steps "
                f"for {len(self.parts)} parts"
            )

    def _timetable(self):
        return Boundaries(tuple(name for name, _ in self.parts), tuple(self.boundaries))


@dataclasses.dataclass(frozen=True)
class Pattern:
    """step -> name, repeating."""

    names: tuple

    def __call__(self, step):
        return self.names[step % len(self.names)]

    def first(self, name):
        return self.names.index(name)


@dataclasses.dataclass(frozen=True)
class Boundaries:
    """step -> name, by the first boundary that lies beyond the step."""

    names: tuple
    boundaries: tuple

    def __call__(self, step):
        return next((n for n, b in zip(self.names, self.boundaries) if step < b), self.names[-1])

    def first(self, name):
        return ((0,) + self.boundaries)[self.names.index(name)]


@dataclasses.dataclass(frozen=True)
class _Chosen:
    """step -> the one name that a timetable gives, as a tuple (picklable, for data workers)."""

    timetable: Any

    def __call__(self, step):
        return (self.timetable(step),)


def part_batch(batch, name):
    """The batch that part `name` sees: its own entries, and whose rows they are."""
    own = {k[len(name) + 1 :]: v for k, v in batch.items() if k.startswith(name + "/")}
    return {**own, "index": batch["index"], "mask": batch["mask"]}


def part_variables(variables, name):
    """The variables of part `name`: the parameters of all, and its own batch statistics."""
    stats = variables.get("batch_stats", {})
    return {"params": variables["params"], **({"batch_stats": stats[name]} if name in stats else {})}


def _union(ours, theirs, part):
    """Both trees in one; a path in both must be the same shape, and is then one shared parameter (ours)."""
    have = dict(trees.named_leaves(ours))
    for name, leaf in trees.named_leaves(theirs):
        if name in have and have[name].shape != leaf.shape:
            raise UserError(
                f"part {part!r} has {name} of shape {tuple(leaf.shape)}, "
                f"another part has it as {tuple(have[name].shape)}: "
                "parts share a parameter by its path, so give one of the modules another name"
            )
    return trees.merge(theirs, ours)
