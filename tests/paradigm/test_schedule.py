"""Schedules: the papers' formulas, the same values from numpy and from a trace, and no jax on the host side."""

import dataclasses
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from paradigm.errors import UserError
from paradigm.schedule import WSD, Constant, Cosine, Linear, Rsqrt, Steps, as_schedule, for_run, warnings

ALL = [
    Constant(0.3),
    Constant(0.3, warmup_steps=10),
    Linear(peak=2.0, total_steps=100, warmup_steps=20, final=0.5),
    Linear(peak=0.15, total_steps=100, final=0.5),
    Cosine(peak=2.0, total_steps=100, warmup_steps=20, final=0.5),
    Cosine(peak=0.996, total_steps=100, final=1.0),
    Rsqrt(),
    Rsqrt(peak=0.5, warmup_steps=40, linear_warmup=True),
    WSD(peak=2.0, total_steps=100, cooldown_steps=30, warmup_steps=10, final=0.2),
    WSD(peak=2.0, total_steps=100, cooldown_steps=30, warmup_steps=10, cooldown="sqrt"),
    Steps(peak=2.0, boundaries=[40, 75], warmup_steps=20),
    Steps(peak=2.0, boundaries=(), factor=0.5),
]
STEPS = np.arange(0, 140)


@pytest.mark.parametrize("schedule", ALL, ids=str)
def test_numpy_int_and_traced_agree(schedule):
    host = schedule(STEPS)
    assert host.dtype == np.float32 and type(host) is np.ndarray
    one = schedule(17)
    assert isinstance(one, np.float32) and one == host[17] == schedule(np.int64(17))
    traced = jax.jit(schedule)(jnp.asarray(STEPS))
    assert traced.dtype == jnp.float32
    np.testing.assert_allclose(traced, host, rtol=3e-7, atol=1e-7)
    np.testing.assert_allclose(
        [jax.jit(schedule)(jnp.int32(n)) for n in (0, 3, 99)], host[[0, 3, 99]], rtol=3e-7, atol=1e-7
    )


@pytest.mark.parametrize("schedule", ALL, ids=str)
def test_extremes_are_those_of_every_step(schedule):
    for total in (0, 5, 20, 75, 139):
        values = schedule(np.arange(total + 1))
        assert schedule.extremes(total) == (values.min(), values.max())
    values = schedule(np.arange(200_000))
    low, high = schedule.extremes()
    assert high == values.max() and 0 <= low <= values.min()
    if not isinstance(schedule, Rsqrt):
        assert low == values.min()


def test_steps_equal_optax():
    optaxs = optax.piecewise_constant_schedule(2.0, {40: 0.1, 75: 0.1})
    ours = Steps(peak=2.0, boundaries=(40, 75))
    assert ours(39) == 2.0 and ours(40) == np.float32(0.2)
    np.testing.assert_allclose(ours(STEPS), [optaxs(n) for n in STEPS], rtol=1e-6)


def test_linear_and_cosine_equal_optax():
    cosine = optax.warmup_cosine_decay_schedule(0.0, 2.0, 20, 100, 0.5)
    linear = optax.join_schedules([optax.linear_schedule(0, 2.0, 20), optax.linear_schedule(2.0, 0.5, 80)], [20])
    for ours, theirs in [(ALL[4], cosine), (ALL[2], linear)]:
        np.testing.assert_allclose(ours(STEPS), [theirs(n) for n in STEPS], rtol=1e-5)


def test_rsqrt_is_that_of_the_papers():
    steps = np.array([0, 1, 9_999, 10_000, 10_001, 40_000, 2**19])
    np.testing.assert_allclose(Rsqrt()(steps), 1 / np.sqrt(np.maximum(steps, 10_000)), rtol=1e-6)
    n = np.arange(1, 20_000, 7.0)  # d_model^-0.5 min(n^-0.5, n warmup^-1.5), d_model 512, warmup 4000
    vaswani = Rsqrt(peak=(512 * 4000) ** -0.5, warmup_steps=4000, linear_warmup=True)
    np.testing.assert_allclose(vaswani(n), 512**-0.5 * np.minimum(n**-0.5, n * 4000**-1.5), rtol=1e-6)


def test_wsd_is_that_of_the_papers():
    linear, root = ALL[8], ALL[9]
    assert linear(5) == 1.0 and linear(10) == linear(70) == 2.0 and linear(100) == linear(139) == np.float32(0.2)
    np.testing.assert_allclose(linear(85), 1.1, rtol=1e-6)
    np.testing.assert_allclose(root(85), 2 * (1 - np.sqrt(0.5)), rtol=1e-6)
    assert root(70) == 2.0 and root(100) == 0.0


def test_as_schedule():
    assert as_schedule(3) == Constant(3.0) and as_schedule(ALL[2]) is ALL[2]
    assert len({*ALL, *ALL}) == len(ALL)  # hashable values


def test_the_host_side_needs_no_jax():
    code = "import sys; from paradigm.schedule import Cosine; Cosine(1.0, 10)(3); sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    "make, text",
    [
        (
            lambda: Cosine(1.0, total_steps=10, warmup_steps=11),
            "Cosine.warmup_steps=11 do not fit into Cosine.total_steps=10",
        ),
        (
            lambda: WSD(1.0, total_steps=10, cooldown_steps=6, warmup_steps=5),
            "WSD.warmup_steps=5 and WSD.cooldown_steps=6 do not fit into WSD.total_steps=10: make them shorter",
        ),
        (lambda: Constant(1.0, warmup_steps=-1), "Constant.warmup_steps=-1 must not be negative"),
        (
            lambda: Steps(1.0, (40, 30)),
            r"Steps.boundaries=\(40, 30\) must be steps that ascend, after Steps.warmup_steps=0",
        ),
        (lambda: Steps(1.0, (5, 30), warmup_steps=5), r"must be steps that ascend, after Steps.warmup_steps=5"),
        (lambda: Steps(1.0, (5,), factor=10), "Steps.factor=10 must lie above 0 and not above 1: the rate falls"),
        (
            lambda: WSD(1.0, total_steps=10, cooldown_steps=2, cooldown="cosine"),
            "WSD.cooldown='cosine' must be 'linear' or 'sqrt'",
        ),
    ],
)
def test_what_makes_no_schedule(make, text):
    with pytest.raises(UserError, match=text):
        make()


# --- a run's length --------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Holder:
    rate: object
    parts: tuple = ()
    name: str = "x"


def test_a_schedule_without_a_length_takes_the_run_s():
    held = Holder(Cosine(2.0, warmup_steps=2), ((Linear(1.0), 3), WSD(1.0, cooldown_steps=5), Linear(1.0, 7)))
    wanted = Holder(Cosine(2.0, 20, 2), ((Linear(1.0, 20), 3), WSD(1.0, 5, 20), Linear(1.0, 7)))
    assert for_run(held, 20) == wanted and for_run(wanted, 30) is wanted
    assert for_run(wanted.rate, 20)(15) == wanted.rate(15)
    assert Cosine(2.0, final=0.5, warmup_steps=3).extremes() == Cosine(2.0, 10, final=0.5, warmup_steps=3).extremes()
    with pytest.raises(UserError, match="Cosine.total_steps is not set: an Experiment gives it the run's"):
        held.rate(0)


def test_schedules_that_a_run_outlasts_or_cuts_short_are_told():
    held = Holder(Cosine(2.0, 20, 2, final=0.5), ((Constant(1.0, warmup_steps=50), 3), Rsqrt(warmup_steps=50)))
    assert list(warnings(held, 20, "optimizer")) == [
        "optimizer.parts[0][0]: Constant warms up for 50 steps and the run has 20: it never reaches its peak"
    ]
    assert list(warnings(held, 50, "optimizer")) == [
        "optimizer.rate: Cosine ends at step 20 of 50 and stays at 0.5: leave its total_steps out, and it lasts as "
        "long as the run"
    ]
    assert list(warnings(Steps(1.0, (10, 40)), 40, "rate")) == [
        "rate: Steps changes at step 40 and the run has 40: it never does"
    ]
    short = for_run(Linear(1.0, warmup_steps=8), 4)  # a trial of a few steps goes on
    assert [float(short(n)) for n in (0, 2, 4)] == [0.0, 0.25, 0.5] and len(list(warnings(short, 4))) == 1
