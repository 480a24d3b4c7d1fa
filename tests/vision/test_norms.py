"""BatchNorm: moments of the whole batch, the gradient spelled out, running statistics, settings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradigm import partition, trees
from paradigm.cpu_gradients import normalise
from paradigm.teacher import update_batch_stats
from tests import contract
from tests.compiled import compiled
from vision.norms import BatchNorm


def inputs(*shape, seed=0):
    return 3.0 + 2.0 * jax.random.normal(jax.random.key(seed), shape or (8, 3, 3, 5))


def run(module, x, **how):
    variables = compiled(module.init, jax.random.key(0), x)
    y, seen = compiled(module.apply, variables, x, train=True, mutable=["moments"], **how)
    return variables, y, seen["moments"]


@pytest.mark.parametrize("shape", [(8, 3, 3, 5), (16, 4)])
def test_training_normalises_by_the_batch(shape):
    x = inputs(*shape)
    variables, y, moments = run(BatchNorm(), x)
    rows = np.asarray(x, np.float64).reshape(-1, shape[-1])
    np.testing.assert_allclose(moments["mean"], rows.mean(0), rtol=1e-5)
    np.testing.assert_allclose(moments["var"], rows.var(0), rtol=1e-5)  # biased: n - 1 would be 1 to 7 % more
    wanted = (rows - rows.mean(0)) / np.sqrt(rows.var(0) + 1e-5)
    np.testing.assert_allclose(np.asarray(y).reshape(rows.shape), wanted, atol=1e-5)
    assert jax.tree.structure(moments) == jax.tree.structure(variables["batch_stats"])


def test_the_gradient_is_that_of_the_formula():
    x, g = inputs(), inputs(seed=1)
    scale, bias = jnp.linspace(0.5, 2.0, 5), jnp.linspace(-1.0, 1.0, 5)

    def plain(x, scale, bias):
        mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
        return jnp.sum(jnp.sin(g * ((x - mean) / jnp.sqrt(var + 1e-5) * scale + bias)))

    ours = lambda x, scale, bias: jnp.sum(jnp.sin(g * normalise(x, scale, bias, 1e-5)[0]))
    wanted = jax.jit(jax.grad(plain, (0, 1, 2)))(x, scale, bias)
    found = jax.jit(jax.grad(ours, (0, 1, 2)))(x, scale, bias)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=2e-5), found, wanted)


def test_moments_pass_no_gradient_on():
    of = lambda x: sum(jnp.sum(m) for m in run(BatchNorm(), x)[2].values())
    assert not np.abs(jax.grad(of)(inputs())).max()


def test_evaluation_uses_running_statistics():
    """Each example by itself; and statistics moved all the way to a batch's moments give training's output on it."""
    module, x = BatchNorm(), inputs()
    variables, y, moments = run(module, x)
    wanted = x / np.sqrt(1 + 1e-5)  # mean 0, variance 1
    np.testing.assert_allclose(compiled(module.apply, variables, x), wanted, rtol=1e-5)
    named = dict(trees.named_leaves(moments))
    moved = {**variables, "batch_stats": update_batch_stats(variables["batch_stats"], named, decay=0.0)}
    np.testing.assert_allclose(compiled(module.apply, moved, x), y, atol=1e-5)
    np.testing.assert_allclose(compiled(module.apply, moved, x[:1]), y[:1], atol=1e-5)
    tenth = update_batch_stats(variables["batch_stats"], named)
    np.testing.assert_allclose(tenth["var"], 0.9 + 0.1 * moments["var"], rtol=1e-6)


def test_settings():
    x = inputs()
    params = lambda module: module.init(jax.random.key(0), x).get("params", {})
    assert set(params(BatchNorm())) == {"scale", "bias"}
    assert set(params(BatchNorm(bias=False))) == {"scale"} and not params(BatchNorm(bias=False, scale=False))
    assert not np.asarray(params(BatchNorm(zero=True))["scale"]).any()
    _, y, moments = run(BatchNorm(dtype=jnp.bfloat16), x.astype(jnp.bfloat16))
    assert y.dtype == jnp.bfloat16 and moments["mean"].dtype == jnp.float32


@contract.every_mesh
def test_moments_are_those_of_the_global_batch(mesh):
    """Rows of different means on every device: a device's own moments would differ much from the batch's."""
    x = inputs(16, 2, 2, 8) * jnp.arange(16.0)[:, None, None, None]
    module, mesh = BatchNorm(), contract.mesh_of(mesh)
    variables, y, moments = run(module, x)
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(partition.BATCH))
    with jax.set_mesh(mesh):
        step = jax.jit(lambda v, x: module.apply(v, x, train=True, mutable=["moments"]), in_shardings=(None, rows))
        found, seen = step(variables, jax.device_put(x, rows))
    np.testing.assert_allclose(found, y, atol=1e-5)
    for name in moments:
        np.testing.assert_allclose(seen["moments"][name], moments[name], rtol=1e-5)
