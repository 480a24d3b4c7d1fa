"""Parameters and moments in bfloat16: rounding that is right on the average, and steps that do as in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradigm import partition, precision, trees
from paradigm.errors import UserError
from paradigm.optim import AdamW
from paradigm.step import init_state, make_train_step
from paradigm.testing import mesh_of
from tests import contract
from tests.t5like.test_contract import OBJECTIVES, batch_of

BOTH = {"param_dtype": "bfloat16", "moment_dtype": "bfloat16"}


def test_rounding_takes_a_neighbour_and_is_right_on_the_average():
    x = jnp.float32([1.0, 1.001, -3.3e-5, 1e30, 0.0, 257.25])
    keys = jax.random.split(jax.random.key(0), 20_000)
    drawn = np.asarray(jax.vmap(lambda key: precision.stochastic_round(x, key))(keys), np.float64)
    near = np.asarray(x.astype(jnp.bfloat16), np.float64)
    gap = np.maximum(np.abs(np.asarray(x)), 1e-30) * 2.0**-7  # between neighbours, at most
    assert (np.abs(drawn - np.asarray(x, np.float64)) < gap).all()
    assert all(len(np.unique(column)) == (1 if value == kept else 2) for column, value, kept in zip(drawn.T, x, near))
    np.testing.assert_array_less(np.abs(drawn.mean(0) - x), gap * 4 * 0.5 / 20_000**0.5 + 1e-30)


def started(objective, **how):
    return jax.jit(lambda: init_state(objective, AdamW(1e-4), 0, 0.9, **how))()


def test_matrices_are_stored_in_half_and_all_else_is_not():
    state = started(OBJECTIVES["next_token"], **BOTH)
    for tree in (state.params, state.opt_state["mu"], state.opt_state["nu"]):
        dtypes = {name: x.dtype for name, x in trees.named_leaves(tree)}
        assert {str(d) for name, d in dtypes.items() if name.endswith(("kernel", "embedding"))} == {"bfloat16"}
        assert {str(d) for name, d in dtypes.items() if name.endswith(("scale", "bias"))} == {"float32"}
    assert {str(x.dtype) for x in jax.tree.leaves(state.extra["ema"])} == {"float32"}


@pytest.mark.parametrize("parts", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_a_step_from_bfloat16_is_that_from_float32(parts):
    """From the same values: loss and norm of the gradient to bfloat16's rounding of gradients, new parameters within a
    neighbour, and the same bits each time."""
    objective, batch = OBJECTIVES["next_token"], batch_of("next_token")(0)
    half = started(objective, **BOTH)
    whole = half.replace(params=precision.full(half.params), opt_state=precision.full(half.opt_state))
    step = jax.jit(make_train_step(objective, AdamW(1e-4), microbatches=parts, ema=0.9))
    (a, told), (b, wanted), (again, _) = step(half, batch), step(whole, batch), step(half, batch)
    assert float(told["loss"][0]) == pytest.approx(float(wanted["loss"][0]), rel=1e-6)
    assert float(told["grad_norm"][0]) == pytest.approx(float(wanted["grad_norm"][0]), rel=5e-3)
    contract.assert_trees_equal(jax.device_get(a), jax.device_get(again))
    assert [x.dtype for x in jax.tree.leaves(a)] == [x.dtype for x in jax.tree.leaves(half)]
    for x, y in zip(jax.tree.leaves(a.params), jax.tree.leaves(b.params)):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        assert (np.abs(x - y) <= 2.0**-7 * np.abs(y) + 2.1e-4).all()


def test_eight_devices_round_as_one_does():
    """A parameter is rounded by the same draw wherever it lies; what may differ is what a sum in another order takes
    over the edge between two neighbours."""
    objective, batch = OBJECTIVES["next_token"], batch_of("next_token")(0)
    state, mesh = started(objective, **BOTH), mesh_of("mixed")
    step = make_train_step(objective, AdamW(1e-4), ema=0.9)
    one, _ = jax.jit(step)(state, batch)
    layout = partition.state_shardings(state, objective.all_partition_rules, mesh)
    shardings = layout, partition.batch_shardings(objective.batch_spec(len(batch["index"])), mesh)
    with jax.set_mesh(mesh):
        run = jax.jit(step, in_shardings=shardings, out_shardings=(layout, None))
        eight, _ = run(*jax.device_put((state, batch), shardings))
    for (name, x), y in zip(trees.named_leaves(eight.params), jax.tree.leaves(one.params)):
        assert x.dtype == y.dtype
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        assert (np.abs(x - y) <= 2.0**-7 * np.abs(y) + 2.1e-4).all(), name
        if name.endswith(("kernel", "embedding")):
            assert (x != y).mean() < 0.01, name


@pytest.mark.slow
def test_a_long_run_does_not_drift():
    """3,000 small steps of a language model: stored in bfloat16 it learns as in float32; to the nearest it does not."""
    objective, batches = OBJECTIVES["next_token"], batch_of("next_token")

    def last(nearest=False, **how):
        state = jax.jit(lambda: init_state(objective, AdamW(1e-4, b2=0.999), 0, **how))()
        with pytest.MonkeyPatch.context() as patch:
            if nearest:
                patch.setattr(precision, "stochastic_round", lambda x, key: x.astype(jnp.bfloat16))
            step = jax.jit(make_train_step(objective, AdamW(1e-4, b2=0.999)), donate_argnums=0)
            losses = []
            for i in range(3000):
                state, metrics = step(state, batches(i % 50))
                losses.append(metrics["loss"][0])
        return float(np.mean(jax.device_get(losses[-200:])))

    whole, half, nearest = last(), last(**BOTH), last(True, **BOTH)
    print(f"float32 {whole:.4f}, bfloat16 {half:.4f}, to the nearest {nearest:.4f}")
    assert abs(half - whole) < 0.02 * whole
    assert nearest > whole + 5 * abs(half - whole)


def test_another_dtype_is_refused():
    with pytest.raises(UserError, match="unknown dtype 'float16'"):
        started(OBJECTIVES["next_token"], param_dtype="float16")
