"""What every objective must pass, written once: for ours and, imported from here, for objectives of other repositories.

    from paradigm.testing import check_microbatches, check_resume, check_sharding

Each takes an objective, an optimizer where one is needed, and `batch_of(step)`, which gives the numpy batch of a step
(paradigm.dataset.Dataset(...).batch), and raises AssertionError where the contract does not hold. `check_sharding` and
`check_abstract` need eight devices; a CPU has them with DEVICES in the environment before jax is imported.

Nearly all of the time goes into compiling, so a step is compiled once for all the checks that run it: with
`UnitStep()` as the optimizer and no settings, `check_resume` runs the step of `check_microbatches` and `check_abstract`
reads the program of `check_sharding` (of as many microbatches), as long as an objective's checks come one after the
other. `check_batches`, `check_shapes` and `check_weights` compile no step.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from paradigm import partition, trees
from paradigm.errors import UserError
from paradigm.step import init_state, make_train_step

# Collectives between virtual devices deadlock where XLA has fewer threads than about twice as many.
DEVICES = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "PJRT_NPROC": "32"}
MESHES = {
    "mixed": (2, 2, 2),
    "data": (8, 1, 1),
    "fsdp": (1, 8, 1),
    "tensor": (4, 1, 2),
}  # "mixed" cuts along every axis
CONTEXTS = {"context": (1, 2, 1, 4), "context, mixed": (1, 2, 2, 2)}  # for objectives with a context_length


def mesh_of(kind):
    """A mesh of eight devices. Raises UserError where there are fewer."""
    if len(jax.devices()) < 8:
        words = " ".join(f"{name}={value}" for name, value in DEVICES.items())
        raise UserError(f"this check needs 8 devices and there are {len(jax.devices())}: start with {words}")
    shape = {**MESHES, **CONTEXTS}[kind]
    names = (*partition.AXES, partition.CONTEXT)[: len(shape)]
    devices = np.array(jax.devices()[:8]).reshape(shape)
    return jax.sharding.Mesh(devices, names, axis_types=(jax.sharding.AxisType.Auto,) * len(shape))


def run(objective, optimizer, batch_of, first, last, state=None, **settings):
    """(state, metrics of each step) after the steps first..last-1, each by the executable of its phase."""
    if state is None:
        state = _start(objective, optimizer, settings.get("ema"))
    rows = []
    for i in range(first, last):
        state, metrics = _step(objective, optimizer, phase=objective.phase(i), **settings)(state, batch_of(i))
        rows.append(jax.device_get(metrics))
    return jax.device_get(state), rows


@functools.lru_cache(maxsize=8)
def _step(objective, optimizer, **settings):
    return jax.jit(make_train_step(objective, optimizer, **settings))


@functools.lru_cache(maxsize=8)
def _start(objective, optimizer, ema=None):
    return jax.device_get(jax.jit(lambda: init_state(objective, optimizer, 0, ema))())


def assert_trees_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def assert_trees_close(a, b, relative):
    """Close relative to each leaf's largest entry: small entries are differences of large ones.

    Softmax does not see what is added to all keys: the gradient of their bias is rounding, told from the query's size.
    """
    wanted = dict(trees.named_leaves(b))
    for (name, x), y in zip(trees.named_leaves(a), wanted.values()):
        measure = wanted[name.replace("key/bias", "query/bias")]
        scale = max(np.abs(np.asarray(measure, np.float64)).max(initial=0.0), 1e-8)
        gap = np.abs(np.asarray(x, np.float64) - np.asarray(y, np.float64)).max(initial=0.0)
        assert gap <= relative * scale, f"{name}: {gap:.3g} of {scale:.3g}"


def check_resume(objective, optimizer, batch_of, **settings):
    """n + m steps equal n steps, a round trip through host memory, and m steps, bit for bit, in state and metrics."""
    whole, rows = run(objective, optimizer, batch_of, 0, 5, **settings)
    half, before = run(objective, optimizer, batch_of, 0, 2, **settings)
    resumed, after = run(objective, optimizer, batch_of, 2, 5, jax.tree.map(jnp.asarray, half), **settings)
    assert_trees_equal(whole, resumed)
    assert_trees_equal(rows, before + after)
    moved = [np.any(np.asarray(a) != np.asarray(b)) for a, b in zip(*map(jax.tree.leaves, (whole.params, half.params)))]
    assert any(moved), "nothing was trained"
    assert not any(row["bad_step"][0] for row in rows), "a loss or gradient is not finite"


def gradients(objective, batch_of, phase, microbatches=1, mesh=None):
    """(loss, gradient tree) of a phase's first step, through the train step itself."""
    first = objective.phases()[phase]
    start = _start(objective, UnitStep()).replace(step=jnp.int32(first))
    batch = batch_of(first)
    settings = {"phase": phase, **({"microbatches": microbatches} if microbatches > 1 else {})}
    if mesh is None:
        state, metrics = _step(objective, UnitStep(), **settings)(start, batch)
    else:
        compiled, shardings = _meshed(objective, UnitStep(), mesh, len(batch["index"]), **settings)
        state, metrics = compiled(*jax.device_put((start, batch), shardings))
    return jax.device_get((metrics, state.extra, state.opt_state))


@functools.lru_cache(maxsize=4)
def _meshed(objective, optimizer, mesh, batch_size, *, phase, ema=None, **settings):
    """(a phase's step compiled from shapes alone, the shardings of state and batch) on a mesh."""
    state = jax.eval_shape(lambda: init_state(objective, optimizer, 0, ema))
    layout = partition.state_shardings(state, objective.all_partition_rules, mesh)
    spec = objective.batch_spec(batch_size, phase)
    shardings = layout, partition.batch_shardings(spec, mesh, objective.context_length)
    with jax.set_mesh(mesh):
        step = make_train_step(objective, optimizer, phase=phase, ema=ema, **settings)
        whole = {"donate_argnums": 0, "keep_unused": True}
        compiled = jax.jit(step, in_shardings=shardings, out_shardings=(layout, None), **whole)
        return compiled.lower(state, spec).compile(), shardings


@dataclasses.dataclass(frozen=True)
class UnitStep:
    """An optimizer whose state is the last gradient: it lets a test read what the step computed. It moves a little."""

    def init(self, params):
        return jax.tree.map(jnp.zeros_like, params)

    def update(self, grads, state, params, step):
        return jax.tree.map(lambda g: -0.01 * g, grads), grads

    def learning_rate_at(self, step):
        return jnp.float32(0.01)


def check_microbatches(objective, batch_of, parts=(4,), relative=1e-5):
    """Loss, metrics, gradient and the next extra do not depend on how the batch is cut."""
    for phase in objective.phases():
        whole = gradients(objective, batch_of, phase)
        for n in parts:
            assert_trees_close(gradients(objective, batch_of, phase, n), whole, relative)


def check_sharding(objective, batch_of, mesh="mixed", relative=1e-5, microbatches=1):
    """Loss, metrics, gradient and extra on eight devices, in microbatches there, equal the whole batch's on one."""
    for phase in objective.phases():
        whole = gradients(objective, batch_of, phase)
        assert_trees_close(gradients(objective, batch_of, phase, microbatches, mesh_of(mesh)), whole, relative)


def check_batches(objective, batch_of):
    """What `check_shapes` needs no trace for: batches are as batch_spec says, and twice the rows are twice the work."""
    _specs(objective, batch_of)


def check_shapes(objective, batch_of, mesh="mixed"):
    """What of `check_abstract` needs no compiler: batches are as batch_spec says, rules lay out every matrix on a mesh,
    and each phase's step traces there."""
    state = jax.eval_shape(lambda: init_state(objective, UnitStep(), 0))
    partition.state_shardings(state, objective.all_partition_rules, mesh_of(mesh))
    for phase, spec in _specs(objective, batch_of).items():
        with jax.set_mesh(mesh_of(mesh)):
            jax.eval_shape(make_train_step(objective, UnitStep(), phase=phase), state, spec)


def check_abstract(objective, optimizer, batch_of, batch_size, **settings):
    """Every phase compiles from ShapeDtypeStructs alone, and those are the shapes of the batches that come."""
    state = jax.eval_shape(lambda: init_state(objective, optimizer, 0, settings.get("ema")))
    for phase, spec in _specs(objective, batch_of).items():
        compiled, shardings = _meshed(objective, optimizer, mesh_of("mixed"), batch_size, phase=phase, **settings)
        shares = jax.tree.map(_bytes_of_a_device, (state, spec), shardings)
        assert compiled.memory_analysis().argument_size_in_bytes == sum(jax.tree.leaves(shares))


def _specs(objective, batch_of):
    """{phase: what batch_spec says}, where that is what the batches are and twice the rows are twice the work."""
    specs = {}
    for phase, first in objective.phases().items():
        assert objective.phase(first) == phase
        batch = batch_of(first)
        specs[phase] = spec = objective.batch_spec(len(batch["index"]), phase)
        assert {k: (v.shape, v.dtype) for k, v in spec.items()} == {k: (v.shape, v.dtype) for k, v in batch.items()}
        # Twice the rows take twice the products of matrices; a loss over pairs of rows up to four times.
        twice = objective.batch_spec(2 * len(batch["index"]), phase)
        assert 2.0 <= objective.flops(twice) / objective.flops(spec) < 3.0
    return specs


def _bytes_of_a_device(leaf, sharding):
    return math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def check_weights(objective, batch_of):
    """A term's weight may depend on the batch and never on the parameters: the step takes it as known in advance."""
    from paradigm.objective import Context

    params, extra = _drawn(objective)
    for phase, first in objective.phases().items():
        ctx = Context(jnp.int32(first), 0, True, phase)
        batch = jax.tree.map(jnp.asarray, batch_of(first))
        batch = {**batch, **objective.paired(batch)}
        weights = jax.jit(lambda params, extra: objective.loss(params, extra, batch, ctx).weights)
        one, two = (weights(jax.tree.map(lambda x, s=s: s * x, params), extra) for s in (1.0, 1.7))
        assert_trees_equal(one, two)


def _drawn(objective):
    """Any (params, extra) of the objective's shapes, by numpy: no program has to be compiled that draws good ones."""
    shapes = jax.eval_shape(lambda: init_state(objective, UnitStep(), 0))
    random = np.random.default_rng(0)

    def draw(x):
        whole = not jnp.issubdtype(x.dtype, jnp.floating)
        return np.zeros(x.shape, x.dtype) if whole else np.abs(0.1 * random.normal(size=x.shape)).astype(x.dtype)

    return jax.tree.map(draw, (shapes.params, shapes.extra))
