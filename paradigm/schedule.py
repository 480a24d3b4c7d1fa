"""Values that follow the step: learning rates, momenta, coefficients, corruption rates.

A schedule is a frozen dataclass, called with a step. A host int or a numpy array gives numpy float32 (data workers,
where jax is never imported); a jax array, traced or not, gives jax float32. `step` counts batches from 0. All of them
may begin with a linear warm-up from 0, the peak being reached at step `warmup_steps`.

A schedule whose total_steps is None lasts as long as the run: an Experiment tells it (`for_run`).
"""

import copy
import dataclasses
import math
import sys

import numpy as np

from paradigm.errors import UserError

FINAL = 2**31 - 1  # the step of every evaluation: schedules are at their end, on the host as on the device


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Base: value(step) = warm-up factor * shape(step), both float32."""

    def __call__(self, step):
        """The value at `step`, an int or an array of ints; float32 of the same shape, of the same library."""
        jax = sys.modules.get("jax")
        xp = jax.numpy if jax and isinstance(step, jax.Array) else np
        if getattr(self, "total_steps", 0) is None:
            name = type(self).__name__
            raise UserError(f"{name}.total_steps is not set: an Experiment gives it the run's, elsewhere set it")
        n = xp.asarray(step, xp.float32)
        value = xp.asarray(self._shape(xp, n), xp.float32)
        if warmup := self._rise():
            value = value * xp.minimum(n / warmup, 1)
        return value if xp is not np else value[()]

    def extremes(self, total=None):
        """(smallest, largest) value over steps 0 to `total`, or over all steps: what fixed shapes must hold."""
        last = FINAL if total is None else total
        self = for_run(self, last)
        values = [float(self(n)) for n in (0, min(self.warmup_steps, last), last)]  # monotone in between
        return min(values), max(values)

    def _shape(self, xp, n):
        """The value without warm-up at n, float32 of the array library xp."""
        raise NotImplementedError

    def _rise(self):
        """Steps of linear warm-up."""
        return self.warmup_steps

    def _progress(self, xp, n, begin, end):
        """0 until `begin`, 1 from `end` on, linear between."""
        return xp.clip((n - begin) / max(end - begin, 1), 0, 1)

    def __post_init__(self):
        values = dataclasses.asdict(self)
        name = type(self).__name__
        for field, value in values.items():
            if field.endswith("_steps") and value is not None and value < 0:
                raise UserError(f"{name}.{field}={value} must not be negative")
        warmup, total = values.get("warmup_steps", 0), values.get("total_steps", math.inf)
        if total is not None and warmup + values.get("cooldown_steps", 0) > total:
            parts = f"{name}.warmup_steps={warmup}"
            if "cooldown_steps" in values:
                parts += f" and {name}.cooldown_steps={values['cooldown_steps']}"
            raise UserError(f"{parts} do not fit into {name}.total_steps={total}: make them shorter")


@dataclasses.dataclass(frozen=True)
class Constant(Schedule):
    """`value` at every step, after the warm-up if there is one."""

    value: float
    warmup_steps: int = 0

    def _shape(self, xp, n):
        return xp.full_like(n, self.value)


@dataclasses.dataclass(frozen=True)
class Linear(Schedule):
    """From `peak` at step warmup_steps on a straight line to `final` at step total_steps, and `final` from there on.

    As a curriculum it may rise: Linear(peak=0.15, final=0.5, total_steps=10_000). total_steps: None is the run's.
    """

    peak: float
    total_steps: int | None = None
    warmup_steps: int = 0
    final: float = 0.0

    def _shape(self, xp, n):
        return self.peak + (self.final - self.peak) * self._progress(xp, n, self.warmup_steps, self.total_steps)


@dataclasses.dataclass(frozen=True)
class Cosine(Schedule):
    """From `peak` at step warmup_steps along half a cosine to `final` at step total_steps, and `final` from there on.

    SGDR, Loshchilov and Hutter, arXiv:1608.03983, equation 5, one period. As a teacher's momentum it rises:
    Cosine(peak=0.996, final=1.0) (BYOL, arXiv:2006.07733). total_steps: None is the run's.
    """

    peak: float
    total_steps: int | None = None
    warmup_steps: int = 0
    final: float = 0.0

    def _shape(self, xp, n):
        left = (1 + xp.cos(math.pi * self._progress(xp, n, self.warmup_steps, self.total_steps))) / 2
        return self.final + (self.peak - self.final) * left


@dataclasses.dataclass(frozen=True)
class Steps(Schedule):
    """`peak`, and from each step of `boundaries` on `factor` times what it was.

    He et al. 2016, arXiv:1512.03385, section 3.4: the rate of ResNets on ImageNet.
    """

    peak: float
    boundaries: tuple[int, ...]
    factor: float = 0.1
    warmup_steps: int = 0

    def __post_init__(self):
        object.__setattr__(self, "boundaries", tuple(self.boundaries))  # gin gives lists
        super().__post_init__()
        if list(self.boundaries) != sorted({n for n in self.boundaries if n > self.warmup_steps}):
            raise UserError(
                f"Steps.boundaries={self.boundaries} must be steps that ascend, after Steps.warmup_steps="
                f"{self.warmup_steps}"
            )
        if not 0 < self.factor <= 1:
            raise UserError(f"Steps.factor={self.factor} must lie above 0 and not above 1: the rate falls")

    def _shape(self, xp, n):
        passed = (n[..., None] >= xp.asarray(self.boundaries, xp.float32)).sum(-1)
        return self.peak * xp.asarray(self.factor, xp.float32) ** passed


@dataclasses.dataclass(frozen=True)
class Rsqrt(Schedule):
    """peak * sqrt(warmup_steps / max(step, warmup_steps)).

    The defaults are T5's pre-training, 1 / sqrt(max(step, 10^4)): flat at 0.01, then falling (Raffel et al.,
    arXiv:1910.10683, section 3.1.2). linear_warmup=True rises from 0 instead of starting flat (Vaswani et al.,
    arXiv:1706.03762, section 5.3).
    """

    peak: float = 0.01
    warmup_steps: int = 10_000
    linear_warmup: bool = False

    def _shape(self, xp, n):
        start = max(self.warmup_steps, 1)
        return self.peak * xp.sqrt(start / xp.maximum(n, start))

    def _rise(self):
        return self.warmup_steps if self.linear_warmup else 0


@dataclasses.dataclass(frozen=True)
class WSD(Schedule):
    """Warm-up, stable, decay: `peak` until the last cooldown_steps, in which it falls to `final` at step total_steps.

    Hu et al. (MiniCPM), arXiv:2404.06395, section 4. The cooldown is 'linear', or 'sqrt': peak * (1 - sqrt(progress)),
    which Hägele et al., arXiv:2405.18392, found the better one. total_steps: None is the run's.
    """

    peak: float
    cooldown_steps: int
    total_steps: int | None = None
    warmup_steps: int = 0
    final: float = 0.0
    cooldown: str = "linear"

    def __post_init__(self):
        super().__post_init__()
        if self.cooldown not in ("linear", "sqrt"):
            raise UserError(f"WSD.cooldown='{self.cooldown}' must be 'linear' or 'sqrt'")

    def _shape(self, xp, n):
        progress = self._progress(xp, n, self.total_steps - self.cooldown_steps, self.total_steps)
        left = 1 - (xp.sqrt(progress) if self.cooldown == "sqrt" else progress)
        return self.final + (self.peak - self.final) * left


def as_schedule(value):
    """A Schedule as it is; a number as Constant(number)."""
    return value if callable(value) else Constant(float(value))


def for_run(value, total):
    """`value`, whose schedules without total_steps, at any depth of dataclasses and tuples, last `total` steps.

    A warm-up or a cooldown longer than a run is no error here: `warnings` tells of it, and a short trial goes on.
    """
    if isinstance(value, Schedule):
        if getattr(value, "total_steps", 0) is not None:
            return value
        value = copy.copy(value)
        object.__setattr__(value, "total_steps", total)
        return value
    changed = {}
    for name, inner in _settings(value):
        if (new := for_run(inner, total)) is not inner:
            changed[name] = new
    if not changed:
        return value
    if isinstance(value, tuple):
        return tuple(changed.get(i, inner) for i, inner in enumerate(value))
    return dataclasses.replace(value, **changed)


def warnings(value, total, path=""):
    """What a person should hear of the schedules in `value` in a run of `total` steps: a line each, with its path."""
    if isinstance(value, Schedule):
        name, end, rise = type(value).__name__, getattr(value, "total_steps", total), value._rise()
        if end < total:
            stays = f"ends at step {end} of {total} and stays at {value(end):g}"
            yield f"{path}: {name} {stays}: leave its total_steps out, and it lasts as long as the run"
        if beyond := [n for n in getattr(value, "boundaries", ()) if n >= total]:
            yield f"{path}: {name} changes at step {beyond[0]} and the run has {total}: it never does"
        if rise > total:
            yield f"{path}: {name} warms up for {rise} steps and the run has {total}: it never reaches its peak"
    for name, inner in _settings(value):
        yield from warnings(inner, total, f"{path}.{name}" if isinstance(name, str) else f"{path}[{name}]")


def _settings(value):
    """(name, value) of the fields of a dataclass, (index, value) of a tuple; of a Flax module nothing."""
    if isinstance(value, tuple):
        return list(enumerate(value))
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return []
    names = [f.name for f in dataclasses.fields(value) if f.init]
    return [] if "parent" in names else [(name, getattr(value, name)) for name in names]
