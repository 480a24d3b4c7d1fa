"""The Stack's settings: each against a slow form, scanned as unrolled, by example, and with an effect of its own."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradigm import rng, trees
from paradigm.attention import AttentionMask, alibi, attend
from paradigm.errors import UserError
from paradigm.partition import shardings
from paradigm.rope import LinearScaling, rope_angles
from paradigm.transformer import MLP, PARTITION_RULES, Attention, Stack
from tests.compiled import compiled

LENGTH, WIDTH, HEADS = 7, 16, 4
CAUSAL = AttentionMask(causal=True)


def stack(**fields):
    return Stack(**{"d_model": WIDTH, "heads": HEADS, "d_ff": 24, "layers": 3, **fields})


def stream(batch=3):
    return jax.random.normal(jax.random.key(0), (batch, LENGTH, WIDTH))


def keys(batch=3):
    rows = jnp.arange(batch, dtype=jnp.uint32)
    return rng.per_example(jax.random.key(4), jnp.stack([jnp.zeros_like(rows), rows], 1))


def params_of(module):
    """First parameters with every leaf made random, so that no scale of 1 and no bias of 0 hides anything."""
    params = jax.eval_shape(lambda: module.init(jax.random.key(1), stream(), CAUSAL))["params"]
    draw = lambda i, x: np.random.default_rng(i).normal(size=x.shape).astype(np.float32) * 0.4
    leaves, tree = jax.tree.flatten(params)
    return jax.tree.unflatten(tree, [draw(i, x) for i, x in enumerate(leaves)])


@functools.partial(jax.jit, static_argnums=0)
def _outputs(module, params, x, keys, mask):
    return module.apply({"params": params}, x, mask, keys=keys)[0]


def outputs(module, params, x=None, keys=None, mask=CAUSAL):
    return _outputs(module, params, stream() if x is None else x, keys, mask)


SETTINGS = {
    "kv_heads": dict(kv_heads=2),
    "qk_norm": dict(qk_norm=True),
    "qkv_bias": dict(qkv_bias=True),
    "out_bias": dict(bias=True, out_bias=False),
    "rope_theta": dict(positions="rope", rope_theta=50.0),
    "rope_scaling": dict(positions="rope", rope_scaling=LinearScaling(3.0)),
    "norm_place": dict(norm_place="post"),
    "input_norm": dict(input_norm=True),
    "layer_scale": dict(layer_scale=0.1),
    "attention_dropout": dict(dropout=0.2, attention_dropout=0.6),
    "drop_path": dict(drop_path=0.6),
    "relative_per_layer": dict(positions="relative_per_layer"),
    "silu": dict(activation="silu"),
    "gated_gelu_exact": dict(activation="gated_gelu_exact"),
}


TOGETHER = [
    ("kv_heads", "qk_norm", "qkv_bias", "rope_scaling", "norm_place", "layer_scale", "drop_path", "silu"),
    ("out_bias", "relative_per_layer", "input_norm", "attention_dropout", "gated_gelu_exact"),
]


@pytest.mark.parametrize("names", TOGETHER, ids=("first", "second"))
def test_scanned_is_unrolled(names):
    fields = {k: v for name in names for k, v in SETTINGS[name].items()}
    scanned, unrolled = stack(**fields), stack(**fields, scan=False)
    params = params_of(scanned)

    def run(module):
        loss = lambda p, x: jnp.sum(jnp.sin(outputs(module, p, x, keys())))
        return jax.tree.leaves(jax.jit(jax.value_and_grad(loss, (0, 1)))(params, stream()))

    for a, b in zip(run(scanned), run(unrolled), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5 * max(1.0, float(jnp.abs(b).max())))


@pytest.mark.parametrize("name", SETTINGS)
def test_the_setting_switches(name):
    assert name == "rope_theta" or any(name in names for names in TOGETHER)
    module = stack(**SETTINGS[name], layers=2)
    plain = stack(**{k: v for k, v in SETTINGS[name].items() if v in ("rope", 0.2)}, layers=2)
    shapes = lambda m: [(n, x.shape) for n, x in trees.named_leaves(params_of(m))]
    if shapes(module) == shapes(plain):  # else the tree shows it already
        params, drawn = params_of(module), keys() if module.is_random else None
        assert np.abs(outputs(module, params, keys=drawn) - outputs(plain, params, keys=drawn)).max() > 1e-4


def test_first_parameters_of_the_settings():
    params = stack(layer_scale=0.1, qk_norm=True).init(jax.random.key(1), stream(), CAUSAL)["params"]["layers"]
    for site in ("attention", "mlp"):
        assert params[f"{site}_layer_scale"].shape == (3, WIDTH) and (params[f"{site}_layer_scale"] == 0.1).all()
    assert (params["attention"]["query_norm"]["scale"] == 1).all()
    assert params["attention"]["key_norm"]["scale"].shape == (3, WIDTH // HEADS)


# ---- against a slow form ----


def rms(x, scale):
    return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + 1e-6) * scale


def slow_attention(p, x, theta=None, table=None):
    """One row [L, D], head by head; head h of G reads key and value head h // (H / G). table: of exact distances."""
    heads, width = p["query"]["kernel"].shape[1:]
    groups, out = p["key"]["kernel"].shape[1], 0.0

    def rotated(y):
        if theta is None:
            return y
        a, b = np.split(y, 2, -1)
        angle = np.arange(len(x))[:, None] * theta ** (-2 * np.arange(width // 2) / width)
        return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], -1)

    for h in range(heads):
        g = h // (heads // groups)
        q, k, v = (x @ p[n]["kernel"][:, i] for n, i in (("query", h), ("key", g), ("value", g)))
        if "query_norm" in p:
            q, k = rms(q, p["query_norm"]["scale"]), rms(k, p["key_norm"]["scale"])
        q, k = rotated(q), rotated(k)
        for t in range(len(x)):
            bias = 0.0 if table is None else table[t - np.arange(t + 1), h]
            e = np.exp(q[t] @ k[: t + 1].T / np.sqrt(width) + bias)
            row = np.zeros((len(x), x.shape[1]))
            row[t] = (e / e.sum()) @ v[: t + 1] @ p["out"]["kernel"][h]
            out = out + row
    return out


def slow(params, x, post, theta=None):
    """One row [L, D] through blocks with ReLU, with a norm before or after each branch."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    x = np.asarray(x, np.float64)
    tables = params["layers"].get("relative_bias", {"embedding": None})["embedding"]
    if "pre_norm" in params:
        x = rms(x, params["pre_norm"]["scale"])
    for i in range(3):
        p = jax.tree.map(lambda leaf: leaf[i], params["layers"])
        mlp = lambda y: np.maximum(y @ p["mlp"]["up"]["kernel"], 0) @ p["mlp"]["down"]["kernel"]
        table = None if tables is None else tables[i]
        for site, f in (("attention", lambda y: slow_attention(p["attention"], y, theta, table)), ("mlp", mlp)):
            norm = lambda y: rms(y, p[f"{site}_norm"]["scale"])
            gain = p.get(f"{site}_layer_scale", 1.0)
            x = norm(x + gain * f(x)) if post else x + gain * f(norm(x))
    return x if post else rms(x, params["norm"]["scale"])


@pytest.mark.parametrize("place", ["pre", "post"])
@pytest.mark.parametrize(
    "name", ["layer_scale", "kv_heads", "qk_norm", "rope_theta", "input_norm", "relative_per_layer"]
)
def test_a_slow_form_agrees(name, place):
    module = stack(activation="relu", **SETTINGS[name], norm_place=place)
    params = params_of(module)
    assert ("norm" in params) == (place == "pre")
    wanted = np.stack([slow(params, x, place == "post", SETTINGS[name].get("rope_theta")) for x in stream()])
    np.testing.assert_allclose(outputs(module, params), wanted, atol=2e-5)


def test_gated_exact_gelu_and_silu():
    x, params = stream(1), params_of(stack(activation="gated_gelu_exact", layers=1))
    one = {k: np.asarray(v["kernel"])[0] for k, v in params["layers"]["mlp"].items()}
    mlp = lambda activation, tree: MLP(d_model=WIDTH, heads=HEADS, d_ff=24, activation=activation).apply(
        {"params": {k: {"kernel": v} for k, v in tree.items()}}, x
    )
    gate, up = x @ one["gate"], x @ one["up"]
    exact = np.vectorize(lambda a: a * (1 + math.erf(a / math.sqrt(2))) / 2)(np.asarray(gate))
    np.testing.assert_allclose(mlp("gated_gelu_exact", one), exact * up @ one["down"], atol=2e-5)
    plain = {k: one[k] for k in ("up", "down")}
    np.testing.assert_allclose(mlp("silu", plain), up / (1 + np.exp(-up)) @ one["down"], atol=2e-5)


# ---- key and value heads ----


def test_grouped_heads_are_repeated_heads():
    grouped, full = stack(kv_heads=2, positions="rope", bias=True), stack(positions="rope", bias=True)
    params = params_of(grouped)
    many = jax.tree.map(lambda x: x, params)
    for name in ("key", "value"):  # [n, D, G, K] and [n, G, K]: each head twice, beside itself
        many["layers"]["attention"][name] = {
            k: np.repeat(x, 2, axis=-2) for k, x in params["layers"]["attention"][name].items()
        }
    assert params["layers"]["attention"]["key"]["kernel"].shape == (3, WIDTH, 2, 4)
    np.testing.assert_allclose(outputs(grouped, params), outputs(full, many), atol=1e-5)

    cache = grouped.new_cache(3, LENGTH)
    assert cache["self"]["key"].shape == (3, 3, 2, LENGTH, 4)
    steps = []
    for t in range(LENGTH):  # token by token, from a cache of two heads
        mask = AttentionMask(True, offset=jnp.full(3, t))
        y, intermediates = grouped.apply({"params": params}, stream()[:, t : t + 1], mask, cache=cache)
        cache = intermediates["cache"]
        steps.append(y)
    np.testing.assert_allclose(jnp.concatenate(steps, 1), outputs(grouped, params), atol=1e-5)


@pytest.mark.parametrize("block", [1024, 4])
def test_keys_are_not_repeated_on_the_way(block):
    q, k, v = (jax.random.normal(jax.random.key(i), (2, n, s, 8)) for i, (n, s) in enumerate([(6, 12), (2, 9), (2, 9)]))
    bias = jax.random.normal(jax.random.key(3), (1, 6, 12, 9))
    mask = AttentionMask(keys=jnp.array([[1] * 9, [1] * 5 + [0] * 4]))
    run = lambda q, k, v: attend(q, k, v, mask, bias, 0.5, lambda p, start: p * jnp.arange(9) / 9, block)
    with_repeats = lambda q, k, v: run(q, jnp.repeat(k, 3, 1), jnp.repeat(v, 3, 1))
    grads = lambda f: jax.jit(jax.grad(lambda *a: jnp.sum(jnp.sin(f(*a))), (0, 1, 2)))(q, k, v)
    for a, b in zip((run(q, k, v), *grads(run)), (with_repeats(q, k, v), *grads(with_repeats))):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert "[2,6,9,8]" in str(jax.make_jaxpr(with_repeats)(q, k, v))  # keys for all heads
    assert "[2,6,9,8]" not in str(jax.make_jaxpr(run)(q, k, v))


def test_sharded_grouped_heads():
    module = stack(kv_heads=2, qk_norm=True, layer_scale=0.5, norm_place="post")
    params, x = params_of(module), stream(4)
    loss = lambda p: jnp.sum(jnp.sin(outputs(module, p, x)))
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), (jax.sharding.AxisType.Auto,) * 3)
    with jax.set_mesh(mesh):
        cut = jax.jit(jax.grad(loss))(jax.device_put(params, shardings(params, PARTITION_RULES, mesh)))
    for a, b in zip(jax.tree.leaves(cut), jax.tree.leaves(jax.jit(jax.grad(loss))(params)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * max(1.0, float(np.abs(b).max())))


def test_fewer_heads_than_a_mesh_axis():
    params = params_of(stack(kv_heads=2))
    mesh = jax.sharding.AbstractMesh((1, 2, 4), ("data", "fsdp", "tensor"))
    with pytest.raises(UserError, match=r"layers/attention/key/kernel of shape \(3, 16, 2, 4\): dim 2 does not divide"):
        shardings(params, PARTITION_RULES, mesh)


def test_flops_count_the_key_heads():
    full, grouped = stack(), stack(kv_heads=1)
    saved = 2 * (5 * LENGTH) * WIDTH * (WIDTH - WIDTH // HEADS) * 2 * 3  # keys and values of three layers
    assert full.flops(5, LENGTH) - grouped.flops(5, LENGTH) == saved


# ---- window ----


@pytest.mark.parametrize("causal", [True, False])
def test_window_by_gradient(causal):
    module, x = stack(layers=1), stream()
    params, mask = params_of(module), AttentionMask(causal=causal, window=3)
    direction = jax.random.normal(jax.random.key(2), (WIDTH,))
    outs = lambda x0: outputs(module, params, x.at[0].set(x0), mask=mask)[0] @ direction
    slope = jax.jit(jax.jacobian(outs))(x[0])
    distance = np.arange(LENGTH)[:, None] - np.arange(LENGTH)
    wanted = (distance < 3) & (distance >= 0) if causal else np.abs(distance) < 3
    assert ((np.abs(np.asarray(slope)).max(-1) > 0) == wanted).all()


def test_window_in_blocks_and_behind_a_cache():
    q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 4, 12, 8))
    mask = AttentionMask(True, window=4)
    whole = attend(q, k, v, mask)
    np.testing.assert_allclose(attend(q, k, v, mask, block=4), whole, atol=1e-6)
    last = attend(q[:, :, 9:], k, v, mask.replace(offset=jnp.array([9, 9])))
    np.testing.assert_allclose(last, whole[:, :, 9:], atol=1e-6)


# ---- what is drawn ----


def test_drop_path_leaves_out_branches_of_examples_at_a_rising_rate():
    module, n = stack(drop_path=0.6, kv_heads=2), 600
    params, x = params_of(module), jnp.broadcast_to(stream(1), (n, LENGTH, WIDTH))
    params["layers"]["mlp"]["down"]["kernel"] *= 0  # one branch is left
    layers = jax.jit(lambda x, keys: module.apply({"params": params}, x, CAUSAL, keys=keys)[1]["layers"])
    random, still = layers(x, keys(n)), layers(x, None)
    np.testing.assert_array_equal(random[0], still[0])  # rate 0
    whole, order = random[:, :20], jnp.arange(20)[::-1]
    np.testing.assert_allclose(layers(x[:20], keys(n)[:20][order]), whole[:, order], atol=1e-5)
    for layer, rate in ((1, 0.3), (2, 0.6)):
        moved = random[layer] - random[layer - 1]
        left = (moved == 0).all((1, 2))
        assert ((moved == 0).any((1, 2)) == left).all()  # an example's branch as a whole
        assert abs(left.mean() - rate) < 4 * (rate * (1 - rate) / n) ** 0.5
    assert np.abs(random[1].mean(0) - still[1][0]).max() < 0.2 * np.abs(still[1] - still[0]).max()  # unbiased
    kept = (random[1] != random[0]).any((1, 2))
    np.testing.assert_allclose(random[1][kept][0] - random[0][0], (still[1] - still[0])[0] / 0.7, atol=1e-5)


def test_drop_path_draws_each_branch_by_itself():
    module, n = stack(drop_path=0.5, layers=2), 200
    params, x = params_of(module), jnp.broadcast_to(stream(1), (n, LENGTH, WIDTH))
    layers = jax.jit(lambda x: module.apply({"params": params}, x, CAUSAL, keys=keys(n))[1]["layers"][1])(x)
    kinds = {x.tobytes() for x in np.round(np.asarray(layers), 3) + 0.0}
    assert len(kinds) == 4  # attention kept or not, MLP kept or not


def test_drop_path_keeps_the_arithmetic():
    module = stack(drop_path=0.5, dtype=jnp.bfloat16)
    assert outputs(module, params_of(module), keys=keys()).dtype == jnp.bfloat16


@pytest.mark.parametrize("hidden, weights, drops", [(0.5, None, True), (0.5, 0.0, False), (0.0, 0.5, True)])
def test_dropouts_may_differ(hidden, weights, drops):
    fields = dict(dropout=hidden, attention_dropout=weights)
    module = Attention(d_model=WIDTH, heads=HEADS, d_ff=24, **fields)
    params = jax.tree.map(lambda x: x[0], params_of(stack())["layers"]["attention"])
    run = lambda keys: _outputs(module, params, stream(), keys, CAUSAL)
    assert (np.abs(run(keys()) - run(None)).max() > 0.01) == drops
    assert stack(**fields).is_random and stack(drop_path=0.1).is_random and not stack().is_random


def test_rope_theta_reaches_the_angles():
    cos, _ = rope_angles(jnp.array([[3]]), 4, 100.0)
    np.testing.assert_allclose(cos[0, 0, 0], np.cos([3.0, 0.3]), atol=1e-6)


LOCAL = dict(layers=4, positions="rope", rope_theta=160.0, local_theta=10.0, global_every=3)


@pytest.mark.parametrize("batch", [1, 3])
def test_layers_alternate_between_local_and_global(batch):
    """Each layer as one of its own with a window and theta, or with neither, scanned and unrolled."""
    x, mask = stream(batch), AttentionMask(window=2)
    params = params_of(stack(layers=4))
    got = outputs(stack(**LOCAL), params, x, mask=mask)
    np.testing.assert_allclose(got, outputs(stack(**LOCAL, scan=False), params, x, mask=mask), rtol=1e-5, atol=1e-5)
    y = x
    for n in range(4):
        whole = n % 3 == 0
        one = Stack(
            d_model=WIDTH, heads=HEADS, d_ff=24, layers=1, positions="rope", rope_theta=160.0 if whole else 10.0
        )
        tree = jax.tree.map(lambda leaf, n=n: leaf[n : n + 1], params["layers"])
        seen = AttentionMask(window=None if whole else 2)
        _, more = compiled(one.apply, {"params": {"layers": tree, "norm": params["norm"]}}, y, seen)
        y = more["layers"][0]
    scale = params["norm"]["scale"]
    y = y / jnp.sqrt(jnp.mean(y**2, -1, keepdims=True) + 1e-6) * scale
    np.testing.assert_allclose(got, y, rtol=1e-4, atol=1e-4)


def test_alternating_needs_a_window_and_a_rhythm():
    with pytest.raises(UserError, match="set both"):
        outputs(stack(**LOCAL), params_of(stack()), mask=AttentionMask())
    with pytest.raises(UserError, match="at least 1"):
        outputs(stack(**{**LOCAL, "global_every": 0}), params_of(stack()), mask=AttentionMask(window=2))


SLOPES = {4: [2**-2, 2**-4, 2**-6, 2**-8], 6: [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3]}


@pytest.mark.parametrize("heads, slopes", SLOPES.items())
def test_alibi_by_a_loop(heads, slopes):
    """Slopes as the paper's code gives them, and a distance to both sides; a cached query counts from its place."""
    got = np.asarray(alibi(heads, jnp.array([[2, 3]]), 5))
    for h, slope in enumerate(slopes):
        for i, place in enumerate((2, 3)):
            for j in range(5):
                assert got[0, h, i, j] == -slope * abs(place - j)


def test_alibi_reaches_attention_scanned_or_not():
    params = params_of(stack())
    fields = dict(positions="alibi"), dict(positions="alibi", scan=False), {}
    a, b, none = (outputs(stack(**f), params) for f in fields)
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    assert np.abs(a - none).max() > 1e-2


def test_the_first_norm_may_be_left_out():
    params = params_of(stack())
    first_scale = "layers/attention_norm/scale"
    moved = trees.named_map(lambda n, x: jnp.asarray(x).at[0].multiply(3.0) if n == first_scale else x, params)
    for first, same in ((True, False), (False, True)):
        a, b = (outputs(stack(first_norm=first), p) for p in (params, moved))
        assert np.array_equal(a, b) == same
