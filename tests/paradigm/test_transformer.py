"""The stack: who sees whom by gradient; scanned, unrolled and recomputed alike; dropout by example; its parts."""

import re
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from paradigm import rng, trees
from paradigm.architecture import Architecture
from paradigm.attention import MASKED, AttentionMask, RelativeBias, attend, relative_buckets
from paradigm.cpu_gradients import gated_gelu, gelu, product
from paradigm.errors import UserError, choose
from paradigm.layers import lookup
from paradigm.partition import BATCH, constrain
from paradigm.transformer import MLP, Stack
from tests import contract
from tests.compiled import compiled

LENGTH, WIDTH = 10, 16


def stack(**fields):
    return Stack(**{"d_model": WIDTH, "heads": 4, "d_ff": 24, "layers": 3, "positions": "relative", **fields})


def stream(batch=3, length=LENGTH, seed=0):
    return jax.random.normal(jax.random.key(seed), (batch, length, WIDTH))


def seen(mask, **fields):
    """bool [L, S]: whether the output at t depends on the input at s, read off the gradient for row 0."""
    module, x = stack(**fields), stream()
    params = jax.jit(module.init)(jax.random.key(1), x, mask)
    # Each output position is a random direction, so that no dependence cancels (a norm's outputs sum to little).
    direction = jax.random.normal(jax.random.key(2), (WIDTH,))
    outputs = lambda x0: module.apply(params, x.at[0].set(x0), mask)[0][0] @ direction
    return np.abs(np.asarray(jax.jit(jax.jacobian(outputs))(x[0]))).max(-1) > 0


@pytest.mark.parametrize("positions", ["relative", "rope", "none"])
def test_causal_by_gradient(positions):
    assert (seen(AttentionMask(causal=True), positions=positions) == np.tri(LENGTH, dtype=bool)).all()


def test_everything_visible_without_causal():
    assert seen(AttentionMask()).all()


def test_prefix_by_gradient():
    got = seen(AttentionMask(causal=True, prefix=jnp.array([4, 2, 7])))
    wanted = np.tri(LENGTH, dtype=bool)
    wanted[:, :4] = True
    assert (got == wanted).all()


@pytest.mark.parametrize("causal", [True, False])
def test_packing_by_gradient(causal):
    segments = jnp.array([[1, 1, 1, 2, 2, 2, 2, 3, 0, 0]] * 3)
    got = seen(AttentionMask(causal=causal, queries=segments, keys=segments))
    wanted = np.asarray(segments[0][:, None] == segments[0][None])
    assert (got == (wanted & np.tri(LENGTH, dtype=bool) if causal else wanted)).all()


def test_key_padding_by_gradient():
    keys = jnp.array([[5, 7, 7, 7, 9, 9, 9, 0, 0, 0]] * 3)
    wanted = np.eye(LENGTH, dtype=bool) | np.asarray(keys[0] > 0)[None]  # the residual stream keeps the token itself
    assert (seen(AttentionMask(keys=keys)) == wanted).all()


def test_keys_that_one_query_sees_by_gradient():
    alone = jnp.arange(LENGTH)[None] % 3 == 1
    wanted = np.tri(LENGTH, dtype=bool) & (~np.asarray(alone) | np.eye(LENGTH, dtype=bool))
    assert (seen(AttentionMask(causal=True, alone=alone)) == wanted).all()
    behind = AttentionMask(causal=True, alone=alone).after(2).expand(LENGTH + 2, LENGTH + 2)[0, 0]
    assert (behind[2:, 2:] == wanted).all() and behind[2:, :2].all() and not behind[:2, 2:].any()


def test_no_visible_key_is_finite():
    q = stream(2)[:, None]
    y = attend(q, q, q, AttentionMask(queries=jnp.ones((2, LENGTH), int), keys=jnp.full((2, LENGTH), 2)))
    assert np.isfinite(y).all() and MASKED < -1e8


# ---- one set of parameters, several programs ----


def value_and_grads(module, params, keys=None):
    def f(params, x):
        y, intermediates = module.apply({"params": params}, x, AttentionMask(causal=True), keys=keys)
        return jnp.sum(jnp.square(y)) + jnp.sum(intermediates["layers"][1]), y

    (_, y), grads = jax.jit(jax.value_and_grad(f, argnums=(0, 1), has_aux=True))(params, stream())
    return y, grads


def params_of(module):
    return jax.jit(module.init)(jax.random.key(1), stream(), AttentionMask(causal=True))["params"]


def assert_same(a, b, tolerance=2e-5):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance * max(1.0, float(jnp.abs(y).max())))


def loops(module):
    """How many scans over the layers are in the traced program."""
    params = params_of(module)
    text = str(jax.make_jaxpr(lambda p: module.apply({"params": p}, stream(), AttentionMask(causal=True))[0])(params))
    return text.count(" scan["), text


def test_scanned_is_unrolled():
    scanned, unrolled = stack(), stack(scan=False)
    params = params_of(scanned)
    assert_same(params, params_of(unrolled), 0)
    assert all(x.shape[0] == 3 for x in jax.tree.leaves(params["layers"]))
    assert_same(value_and_grads(scanned, params), value_and_grads(unrolled, params))
    assert "unroll=1\n" in loops(scanned)[1] and "unroll=3\n" in loops(unrolled)[1]  # and the switch really switches


def test_unrolled_compiles_to_no_loop():
    x, mask = stream(), AttentionMask(causal=True)
    lowered = lambda m: jax.jit(lambda p: m.apply({"params": p}, x, mask)[0]).lower(params_of(m)).as_text()
    assert "stablehlo.while" in lowered(stack()) and "stablehlo.while" not in lowered(stack(scan=False))


@pytest.mark.parametrize(
    "remat, scan",
    [("full", True), ("dots", False), *(pytest.param(*case, marks=pytest.mark.slow) for case in (("full", False),
                                                                                               ("dots", True)))],
)  # fmt: skip
def test_remat_changes_nothing_but_what_is_kept(remat, scan):
    plain, again = stack(scan=scan, dropout=0.2), stack(scan=scan, remat=remat, dropout=0.2)
    params, keys = params_of(plain), rng.per_example(jax.random.key(4), jnp.zeros((3, 2), jnp.uint32))
    assert_same(value_and_grads(plain, params, keys), value_and_grads(again, params, keys))
    traced = lambda m: str(jax.make_jaxpr(lambda p: value_and_grads(m, p))(params))
    assert len(traced(again)) != len(traced(plain))


def test_remat_full_keeps_least():
    def kept(remat):
        module = stack(layers=8, remat=remat)
        params, x = params_of(module), stream(8, 64)
        f = jax.grad(lambda p: jnp.sum(module.apply({"params": p}, x, AttentionMask(causal=True))[0] ** 2))
        return jax.jit(f).lower(params).compile().memory_analysis().temp_size_in_bytes

    none, dots, full = kept("none"), kept("dots"), kept("full")
    assert full < dots < none


def test_blocks_of_queries_are_the_whole():
    q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 4, 12, 8))
    bias = jax.random.normal(jax.random.key(1), (1, 4, 12, 12))
    segments = jnp.array([[1] * 5 + [2] * 7, [1] * 12])
    mask = AttentionMask(True, jnp.array([3, 0]), segments, segments)

    def run(block):
        f = lambda q, k, v, bias: attend(q, k, v, mask, bias, 0.5, block=block)
        y, vjp = jax.vjp(f, q, k, v, bias)
        return y, vjp(jnp.cos(y))

    assert_same(run(4), run(1024))


def test_attend_is_softmax():
    q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 4, 6, 8))
    bias = jax.random.normal(jax.random.key(1), (1, 4, 6, 6))

    def slow(q, k, v, bias):
        logits = np.tri(6) * (0.5 * q @ k.swapaxes(2, 3) + bias) + (1 - np.tri(6)) * -1e9
        return jax.nn.softmax(logits) @ v

    f = lambda *a: attend(*a[:3], AttentionMask(causal=True), a[3], 0.5)
    (y, vjp), (y_slow, vjp_slow) = jax.vjp(f, q, k, v, bias), jax.vjp(slow, q, k, v, bias)
    assert_same((y, vjp(y)), (y_slow, vjp_slow(y)))


# ---- dropout ----


@pytest.mark.parametrize("style", ["t5", "gpt2"])
def test_dropout_belongs_to_the_example(style):
    module = stack(dropout=0.3, dropout_style=style)
    params, x = params_of(module), stream(4)
    keys = rng.per_example(jax.random.key(4), jnp.stack([jnp.zeros(4, jnp.uint32), jnp.arange(4, dtype=jnp.uint32)], 1))
    run = jax.jit(
        lambda rows: module.apply({"params": params}, x[rows], AttentionMask(causal=True), keys=keys[rows])[0]
    )
    whole, order = run(jnp.arange(4)), jnp.array([2, 0, 3, 1])
    np.testing.assert_allclose(run(order), whole[order], atol=1e-5)
    np.testing.assert_allclose(run(jnp.array([3])), whole[3:], atol=1e-5)
    still = compiled(module.apply, {"params": params}, x, AttentionMask(causal=True))[0]
    assert np.abs(whole - still).max() > 0.1
    same = compiled(module.apply, {"params": params}, x, AttentionMask(causal=True), keys=keys[jnp.zeros(4, int)])[0]
    assert np.abs(same[1] - whole[1]).max() > 0.1  # other keys, another mask


def test_layers_draw_different_masks():
    """Without attention a layer adds the MLP's output alone, which is 0 at the same units of all positions: dropped."""
    module = stack(dropout=0.5, layers=3, scan=False)
    params = trees.named_map(lambda name, x: 0 * x if "attention/out" in name else x, params_of(module))
    keys = rng.per_example(jax.random.key(4), jnp.zeros((3, 2), jnp.uint32))
    _, intermediates = compiled(module.apply, {"params": params}, stream(), AttentionMask(), keys=keys)
    added = np.diff(intermediates["layers"], axis=0)[:, 0]  # [2, L, D], of the second and the third
    dropped = np.isclose(added, 0).all(1)
    assert (dropped[0] != dropped[1]).any() and 0.2 < np.mean(dropped) < 0.8


# ---- parts ----


def test_gelu_is_the_tanh_form():
    x = jnp.concatenate([jnp.linspace(-6, 6, 101), jnp.array([-1e3, 1e3, -40.0])])
    wanted = lambda x: jax.nn.gelu(x, approximate=True)
    np.testing.assert_allclose(gelu(x), wanted(x), atol=2e-6)
    np.testing.assert_allclose(jax.vmap(jax.grad(gelu))(x), jax.vmap(jax.grad(wanted))(x), atol=5e-6)
    b = jnp.cos(x)
    (y, vjp), (y_slow, vjp_slow) = jax.vjp(gated_gelu, x, b), jax.vjp(lambda x, b: wanted(x) * b, x, b)
    assert_same((y[:-3], vjp(b)), (y_slow[:-3], vjp_slow(b)))


@pytest.mark.parametrize("inputs, kernel", [(1, (6, 2, 3)), (1, (6, 20)), (2, (2, 3, 6)), (2, (2, 3, 4)), (1, (6, 2))])
def test_product_and_its_gradients(inputs, kernel):
    x = jax.random.normal(jax.random.key(0), (5, 4, *kernel[:inputs]))
    w = jax.random.normal(jax.random.key(1), kernel)
    plain = lambda x, w: jnp.tensordot(x, w, inputs)
    (y, vjp), (y_plain, vjp_plain) = jax.vjp(lambda x, w: product(x, w, inputs), x, w), jax.vjp(plain, x, w)
    assert_same((y, vjp(jnp.cos(y))), (y_plain, vjp_plain(jnp.cos(y))))


def test_relative_buckets_by_the_paper():
    """Raffel et al. 2020, section 2.1: exact at first, then logarithmic up to 128, beyond which all share one."""

    def far(n, buckets):
        exact = buckets // 2
        return exact + int(np.log(n / exact) / np.log(128 / exact) * (buckets - exact))

    for distance in range(-200, 201):
        both, causal = (int(relative_buckets(jnp.array(distance), b)) for b in (True, False))
        n = abs(distance)
        wanted = (16 if distance > 0 else 0) + (n if n < 8 else min(far(n, 16), 15))
        assert both == wanted, distance
        assert causal == (0 if distance >= 0 else n if n < 16 else min(far(n, 32), 31)), distance


@pytest.mark.parametrize(("length", "source", "offset"), [(5, 5, 0), (7, 3, 0), (1, 9, [3, 4]), (4, 6, [2, 0])])
def test_relative_bias_is_a_lookup_by_pair(length, source, offset):
    positions = jnp.reshape(jnp.array(offset), (-1, 1)) + jnp.arange(length)
    bias = RelativeBias(3)
    variables = bias.init(jax.random.key(0), positions, source, True)
    table = variables["params"]["embedding"]

    def by_pair(table):
        pairs = relative_buckets(jnp.arange(source) - positions[..., None], True)
        return jnp.moveaxis(table[pairs], -1, 1)

    own = lambda table: bias.apply({"params": {"embedding": table}}, positions, source, True).expand()
    np.testing.assert_array_equal(own(table), by_pair(table))
    slope = lambda f: jax.jit(jax.grad(lambda table: jnp.sin(f(table)).sum()))(table)
    np.testing.assert_allclose(slope(own), slope(by_pair), rtol=1e-5, atol=1e-6)


def test_relative_bias_scatters_no_pairs():
    """A scatter of all pairs into 32 buckets took seven eighths of a T5 step on a GPU."""
    positions, bias = jnp.arange(64)[None], RelativeBias(3)
    variables = bias.init(jax.random.key(0), positions, 64, True)
    program = jax.make_jaxpr(jax.grad(lambda v: bias.apply(v, positions, 64, True).expand().sum()))(variables)
    scatters = [e for e in equations(program.jaxpr) if e.primitive.name.startswith("scatter")]
    assert scatters and max(e.invars[2].aval.size for e in scatters) <= 3 * 127


def equations(jaxpr):
    """Those of a program and of what it calls."""
    for equation in jaxpr.eqns:
        yield equation
        for part in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "jaxpr")):
            if hasattr(part, "jaxpr"):
                yield from equations(part.jaxpr)


def test_a_frequent_token_s_gradient_is_summed_in_float32():
    """In bfloat16 the sum of 1000 ones stops at 256. A CPU adds in float32 all the same: look at the program."""
    total = lambda table: lookup(table, jnp.ones(1000, jnp.int32), jnp.bfloat16).astype(jnp.float32).sum()
    np.testing.assert_array_equal(jax.grad(total)(jnp.zeros((3, 2))), [[0, 0], [1000, 1000], [0, 0]])
    program = equations(jax.make_jaxpr(jax.grad(total))(jnp.zeros((3, 2))).jaxpr)
    assert [e.outvars[0].aval.dtype for e in program if e.primitive.name == "scatter-add"] == [jnp.float32]


@pytest.mark.parametrize("count", [20, 4000])
def test_a_table_cut_by_columns_is_gathered_where_that_is_less(count):
    """Its rows are then looked up for a device's own tokens: no array has those of all devices in a few columns."""
    mesh = contract.mesh_of("fsdp")
    ways, width, shape = mesh.shape["fsdp"], 32, (8, 4)
    table = jax.random.normal(jax.random.key(0), (count, width))
    ids, g = (
        jax.random.randint(jax.random.key(1), shape, 0, count),
        jax.random.normal(jax.random.key(2), (*shape, width)),
    )
    both = lambda table, ids, g: jax.vjp(
        lambda table: constrain(lookup(table, ids, "float32"), BATCH, None, None), table
    )
    value = lambda table, ids, g: (lambda y, back: (y, *back(g)))(*both(table, ids, g))
    columns, rows = (NamedSharding(mesh, spec) for spec in (P(None, "fsdp"), P(BATCH)))
    with jax.set_mesh(mesh):
        step = jax.jit(value, in_shardings=(columns, rows, rows), out_shardings=(rows, columns))
        step = step.lower(table, ids, g).compile()
        found = step(*(jax.device_put(x, s) for x, s in zip((table, ids, g), (columns, rows, rows))))
    for ours, alone in zip(found, value(table, ids, g)):
        np.testing.assert_allclose(ours, alone, rtol=1e-6)
    spread = re.search(rf"f32\[({ids.size}|{ids.size},1|8,4),{width // ways}\]", step.as_text())
    assert (spread is None) == (count == 20)


def test_compute_dtype():
    module = stack(dtype=jnp.bfloat16)
    params = params_of(module)
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    y, _ = compiled(module.apply, {"params": params}, stream(), AttentionMask(causal=True))
    full, _ = compiled(stack().apply, {"params": params}, stream(), AttentionMask(causal=True))
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(jnp.float32), full, atol=0.15)


def test_interceptor_sees_every_dense_with_its_path():
    """What adaptation stands on: each Dense and its path, inside the scan too."""
    paths, module = set(), stack(positions="none")
    params = params_of(module)

    def note(call, args, kwargs, context):
        if type(context.module).__name__ == "Dense" and context.method_name == "__call__":
            paths.add("/".join(context.module.path))
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        module.apply({"params": params}, stream(), AttentionMask())
    names = ("attention/query", "attention/key", "attention/value", "attention/out", "mlp/gate", "mlp/up", "mlp/down")
    assert paths == {f"layers/{name}" for name in names}


@pytest.mark.parametrize(
    "fields, text",
    [
        ({"heads": 3}, "3 heads do not divide d_model=16: choose a divisor"),
        ({"head_dim": 5, "positions": "rope"}, "rope rotates pairs, and head_dim=5 is odd"),
        ({"activation": "gated_gelo"}, "unknown activation 'gated_gelo': did you mean 'gated_gelu'?"),
        ({"norm": "rmss"}, "unknown norm 'rmss': did you mean 'rms'?"),
        ({"remat": "ful"}, "unknown remat 'ful': did you mean 'full'?"),
        ({"positions": "rotary"}, "unknown positions 'rotary': choose from"),
        ({"dropout_style": "t6"}, "unknown dropout_style 't6': choose from t5, gpt2"),
        ({"kv_heads": 3}, "kv_heads=3 does not divide 4 heads: choose a divisor"),
        ({"kv_heads": 0}, "kv_heads=0 does not divide 4 heads"),
        ({"norm_place": "past"}, "unknown norm_place 'past': did you mean 'post'?"),
        ({"drop_path": 1.0}, "drop_path=1.0 must lie in [0, 1)"),
    ],
)
def test_errors_name_the_mistake(fields, text):
    with pytest.raises(UserError, match=re.escape(text)):
        params_of(stack(**fields))


def test_choose_without_a_near_name():
    with pytest.raises(UserError, match="^unknown size 'zzz': choose from a, b$"):
        choose("size", "zzz", {"a": 1, "b": 2})


def test_settings_are_shared_while_another_thread_makes_a_class():
    """As a scan or a remat does, in which Flax takes fields out of the classes above and puts them back."""
    module, before, failed, done = MLP(d_model=4, heads=1, d_ff=8), sys.getswitchinterval(), [], threading.Event()

    def share():
        while not done.is_set():
            try:
                module.shared()
            except RuntimeError as error:
                failed.append(error)

    thread = threading.Thread(target=share)
    sys.setswitchinterval(1e-6)
    thread.start()
    try:
        for _ in range(500):
            type("Below", (Architecture,), {"__annotations__": {}, "__module__": __name__})
    finally:
        done.set()
        thread.join()
        sys.setswitchinterval(before)
    assert not failed
