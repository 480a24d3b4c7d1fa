"""Optimizers: equal to optax on plain matrices, to their unrolled form on stacks, and to the step they are given."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from paradigm import optim, trees
from paradigm.errors import UserError
from paradigm.schedule import Linear

LR = Linear(peak=0.1, total_steps=40)
OPTIMIZERS = [
    optim.AdamW(LR, weight_decay=0.1),
    optim.Adafactor(LR, weight_decay=0.1, min_dim_size_to_factor=4),
    optim.Adafactor(LR, multiply_by_parameter_scale=False),
    optim.Lion(LR, weight_decay=0.1),
    optim.SGD(LR, weight_decay=0.1, nesterov=True),
    optim.SGD(LR, momentum=0.0),
    optim.LARS(LR, weight_decay=0.1),
    optim.Muon(LR, adam_learning_rate=0.01, weight_decay=0.1),
    optim.Muon(LR, consistent_rms=0.2, nesterov=False),
]
name_of = lambda o: type(o).__name__ if dataclasses.is_dataclass(o) else "optax"


def normal(seed, *shape, scale=1.0):
    return (np.random.default_rng(seed).normal(size=shape) * scale).astype(np.float32)


def layer(seed, scale=1.0):
    """One layer's leaves; sizes that Adafactor factors with min_dim_size_to_factor=4."""
    r = lambda k, *shape: normal((*np.atleast_1d(seed), k), *shape, scale=scale)
    return {
        "attention": {
            "query": {"kernel": r(0, 6, 2, 4), "bias": r(1, 2, 4)},
            "out": {"kernel": r(2, 2, 4, 6), "bias": r(3, 6)},
        },
        "mlp": {"up": {"kernel": r(4, 6, 10)}, "down": {"kernel": r(5, 10, 6)}},
        "mlp_norm": {"scale": r(6, 6)},
    }


def others(seed):
    r = lambda k, *shape: normal((seed, k), *shape)
    return {
        "embed": {"embedding": r(10, 12, 6)},
        "decoder": {"relative_bias": {"embedding": r(11, 8, 4)}, "norm": {"scale": r(12, 6)}},
        "logits": {"kernel": r(13, 6, 12)},
        "logit_scale": r(14),
    }


def stacked(layers, rest):
    return rest | {"decoder": rest["decoder"] | {"layers": trees.stack(layers)}}


def unrolled(layers, rest):
    return rest | {"decoder": rest["decoder"] | {f"layer_{i}": x for i, x in enumerate(layers)}}


def run(optimizer, params, grads):
    """Parameters and state after one update for each gradient, at steps 0, 1, ..."""
    state = jax.jit(optimizer.init)(params)
    update = jax.jit(optimizer.update)
    for step, g in enumerate(grads):
        updates, state = update(g, state, params, jnp.int32(step))
        params = optax.apply_updates(params, updates)
    return params, state


def assert_close(ours, theirs, rtol=1e-6):
    """Leaf by leaf, relative to the leaf's largest value."""
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for (name, a), b in zip(trees.named_leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * np.abs(b).max(), err_msg=name)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=name_of)
def test_scanned_equals_unrolled(optimizer):
    """Layers whose sizes and gradients differ a lot: a norm or a factor across the stack would show."""
    n, steps = 3, 4
    scales = [0.01, 1.0, 30.0]
    layers = [layer(i, scales[i]) for i in range(n)]
    slopes = [[layer((t + 1) * 100 + i, scales[-i - 1]) for i in range(n)] for t in range(steps)]
    rest = [others(t) for t in range(steps + 1)]
    a, a_state = run(optimizer, stacked(layers, rest[0]), [stacked(g, r) for g, r in zip(slopes, rest[1:])])
    b, b_state = run(optimizer, unrolled(layers, rest[0]), [unrolled(g, r) for g, r in zip(slopes, rest[1:])])
    tolerance = 1e-5 if isinstance(optimizer, optim.Muon) else 1e-6  # batched products round otherwise

    def restack(tree):
        tree = dict(tree)
        decoder = dict(tree["decoder"])
        one = [decoder.pop(f"layer_{i}") for i in range(n) if f"layer_{i}" in decoder]
        return tree | {"decoder": decoder | ({"layers": trees.stack(one)} if one else {})}

    assert_close(a, restack(b), tolerance)
    assert_close(a_state, {moment: restack(tree) for moment, tree in b_state.items()}, tolerance)


def plain(seed):
    """Matrices and vectors of one layer, nothing stacked and no kernel of three axes."""
    r = lambda k, *shape: normal((seed, k), *shape)
    return {
        "a": {"kernel": r(0, 6, 10), "bias": r(1, 10)},
        "b": {"kernel": r(2, 10, 6)},
        "c": {"kernel": r(4, 6, 6)},
        "norm": {"scale": r(3, 6)},
    }


MATRIX = lambda params: jax.tree.map(lambda p: p.ndim == 2, params)


@pytest.mark.parametrize(
    "ours, theirs",
    [
        (OPTIMIZERS[0], lambda p: optax.adamw(LR, 0.9, 0.999, 1e-8, weight_decay=0.1, mask=MATRIX)),
        (
            dataclasses.replace(OPTIMIZERS[1], weight_decay=0.0),
            lambda p: optax.adafactor(LR, min_dim_size_to_factor=4, weight_decay_rate=None),
        ),
        (OPTIMIZERS[2], lambda p: optax.adafactor(LR, multiply_by_parameter_scale=False)),
        (OPTIMIZERS[3], lambda p: optax.lion(LR, 0.9, 0.99, weight_decay=0.1, mask=MATRIX)),
        (
            OPTIMIZERS[4],
            lambda p: optax.chain(optax.add_decayed_weights(0.1, MATRIX), optax.sgd(LR, momentum=0.9, nesterov=True)),
        ),
        (OPTIMIZERS[5], lambda p: optax.sgd(LR)),
        (OPTIMIZERS[6], lambda p: optax.lars(LR, 0.1, MATRIX, trust_ratio_mask=MATRIX, momentum=0.9)),
    ],
    ids=name_of,
)
def test_equals_optax_on_plain_matrices(ours, theirs):
    params, grads = plain(0), [plain(t) for t in range(1, 6)]
    tx = theirs(params)
    expected, state = params, tx.init(params)
    update = jax.jit(tx.update)
    for g in grads:
        updates, state = update(g, state, expected)
        expected = optax.apply_updates(expected, updates)
    assert_close(run(ours, params, grads)[0], expected)


@pytest.mark.parametrize("optimizer", [OPTIMIZERS[1], OPTIMIZERS[7]], ids=name_of)
def test_a_kernel_of_three_axes_is_its_matrix(optimizer):
    flat = lambda t: {
        "x": {"kernel": t["attention"]["query"]["kernel"].reshape(6, 8)},
        "y": {"kernel": t["attention"]["out"]["kernel"].reshape(8, 6)},
        "z": {"bias": t["attention"]["query"]["bias"].reshape(8)},
    }
    grads = [layer(t) for t in range(1, 4)]
    ours, _ = run(optimizer, layer(0), grads)
    theirs, _ = run(optimizer, flat(layer(0)), [flat(g) for g in grads])
    assert_close(flat(ours), theirs)


@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_is_the_original(nesterov):
    """muon.py of github.com/KellerJordan/Muon, step by step: `muon_update`, `adam_update` and what is done with them.

    Its matrices are [outputs, inputs], and its bfloat16 is float32 here.
    """

    def newton_schulz(g):
        x = g.T if g.shape[0] > g.shape[1] else g
        x = x / (np.linalg.norm(x) + 1e-7)
        for _ in range(5):
            a = x @ x.T
            x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
        return x.T if g.shape[0] > g.shape[1] else x

    params, grads = plain(0), [plain(t) for t in range(1, 6)]
    grads[0] = jax.tree.map(lambda x: 1e-3 * x, grads[0])  # a correction of the first steps would show
    ours, _ = run(optim.Muon(LR, adam_learning_rate=0.01, weight_decay=0.1, nesterov=nesterov), params, grads)
    for name in "abc":
        p, momentum = params[name]["kernel"].T.astype(np.float64), 0.0
        for t, g in enumerate(grads):
            g = g[name]["kernel"].T
            momentum = 0.95 * momentum + 0.05 * g
            update = newton_schulz(0.05 * g + 0.95 * momentum if nesterov else momentum)
            p = p * (1 - LR(t) * 0.1) - LR(t) * max(1, p.shape[0] / p.shape[1]) ** 0.5 * update
        np.testing.assert_allclose(ours[name]["kernel"], p.T, atol=2e-5)
    p, first, second = params["norm"]["scale"], 0.0, 0.0
    for t, g in enumerate(g["norm"]["scale"] for g in grads):
        first, second = 0.9 * first + 0.1 * g, 0.95 * second + 0.05 * g * g
        p = p - 0.01 * first / (1 - 0.9 ** (t + 1)) / (np.sqrt(second / (1 - 0.95 ** (t + 1))) + 1e-10)
    np.testing.assert_allclose(ours["norm"]["scale"], p, rtol=1e-5)


def test_muon_makes_every_layer_orthogonal():
    """Singular values of a first step are near sqrt(max(1, columns / rows)), layer by layer, heads flattened."""
    n = 3
    big = lambda seed: {
        "layers": {
            "query": {"kernel": normal(seed, n, 32, 4, 16)},
            "out": {"kernel": normal(seed + 1, n, 4, 16, 32)},
            "up": {"kernel": normal(seed + 2, n, 32, 96) * np.array([1e-3, 1.0, 1e3], np.float32)[:, None, None]},
        }
    }
    optimizer = optim.Muon(1.0)
    updates, state = jax.jit(optimizer.update)(big(5), optimizer.init(big(0)), big(0), 0)
    for name, shape in [("query", (32, 64)), ("out", (64, 32)), ("up", (32, 96))]:
        u = np.asarray(updates["layers"][name]["kernel"]).reshape(n, *shape)
        values = np.linalg.svd(u, compute_uv=False) / max(1, shape[1] / shape[0]) ** 0.5
        assert 0.6 < values.min() and values.max() < 1.25, (name, values.min(), values.max())
    assert set(state) == {"mu"}


def test_muon_leaves_embeddings_heads_and_vectors_to_adam():
    params = stacked([layer(0), layer(1)], others(0))
    has_nu = {name[3:] for name, _ in trees.named_leaves(optim.Muon().init(params)) if name.startswith("nu/")}
    hidden = {n for n, _ in trees.named_leaves(params) if re.search("layers/.*kernel$", n)}
    assert has_nu == {name for name, _ in trees.named_leaves(params)} - hidden
    own = optim.Muon(adam=(("up/", True), ("logits/", False)))
    has_nu = {name[3:] for name, _ in trees.named_leaves(own.init(params)) if name.startswith("nu/")}
    assert "decoder/layers/mlp/up/kernel" in has_nu and "logits/kernel" not in has_nu


@pytest.mark.parametrize("name, shape, adam", [
    ("encoder/class_token", (1, 1, 8), True), ("image_head/pool/probe", (1, 1, 8), True),
    ("pools/caption/query", (1, 4, 8), True), ("classifier/pool/queries", (1, 1, 8), True),
    ("classifier/output/kernel", (8, 3), True),
    ("encoder/predict/kernel", (8, 3), True), ("predictor/fc0/kernel", (8, 3), False),
    ("pools/caption/attention/query/kernel", (8, 2, 4), False),
])  # fmt: skip
def test_muon_takes_tokens_for_vectors_and_knows_heads(name, shape, adam):
    """As a matrix of one row, a class token would be moved by sqrt(columns) times the rate, whatever its gradient."""
    assert ("nu" in optim.Muon().init(trees.nested({name: jnp.zeros(shape)}))) == adam


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=name_of)
def test_the_step_is_the_one_given(optimizer):
    """Nothing is counted: a state taken at step 2 goes on at step 20 with that step's rate and corrections."""
    params, grads = plain(0), [plain(t) for t in (1, 2, 3)]
    tx_params, state = run(optimizer, params, grads[:2])
    assert not any(x.dtype != jnp.float32 or name.endswith("count") for name, x in trees.named_leaves(state))
    assert optimizer.learning_rate_at(20) == np.float32(0.05)
    updates, _ = jax.jit(optimizer.update)(grads[2], state, tx_params, jnp.int32(20))
    twice = dataclasses.replace(optimizer, learning_rate=Linear(peak=0.2, total_steps=40))
    if isinstance(optimizer, optim.AdamW):
        b1, b2 = optimizer.b1, optimizer.b2
        mu = nu = 0
        for g in (g["norm"]["scale"] for g in grads):
            mu, nu = b1 * mu + (1 - b1) * g, b2 * nu + (1 - b2) * g * g
        expected = -0.05 * (mu / (1 - b1**21)) / (np.sqrt(nu / (1 - b2**21)) + 1e-8)
        np.testing.assert_allclose(updates["norm"]["scale"], expected, rtol=1e-5)
    if not isinstance(optimizer, (optim.LARS, optim.Muon)):
        doubled, _ = jax.jit(twice.update)(grads[2], state, tx_params, 20)
        assert_close(doubled, jax.tree.map(lambda x: 2 * x, updates))


def test_adafactor_second_moment_follows_the_step():
    """decay 1 - (t + 1)^-0.8 (section 7.2 of the paper), from the step given."""
    params, g = {"norm": {"scale": np.ones(5, np.float32)}}, {"norm": {"scale": np.full(5, 2.0, np.float32)}}
    optimizer = optim.Adafactor(0.1)
    _, state = optimizer.update(g, optimizer.init(params), params, 9)
    np.testing.assert_allclose(state["v"]["norm"]["scale"], (1 - (1 - 10**-0.8)) * 4.0, rtol=1e-6)


def test_lars_is_that_of_simclr():
    """trust ratio per layer on matrices, none on biases; decay inside; learning rate inside the momentum."""
    params = {"layers": {"kernel": normal(0, 2, 4, 5), "bias": normal(1, 2, 5)}}
    grads = [{"layers": {"kernel": normal(2 + t, 2, 4, 5), "bias": normal(4 + t, 2, 5)}} for t in range(2)]
    optimizer = optim.LARS(LR, weight_decay=0.5)
    ours, _ = run(optimizer, params, grads)
    for i in range(2):
        w, b, vw, vb = params["layers"]["kernel"][i], params["layers"]["bias"][i], 0, 0
        for t, g in enumerate(grads):
            d = g["layers"]["kernel"][i] + 0.5 * w
            vw = 0.9 * vw + LR(t) * 1e-3 * np.linalg.norm(w) / np.linalg.norm(d) * d
            vb = 0.9 * vb + LR(t) * g["layers"]["bias"][i]
            w, b = w - vw, b - vb
        np.testing.assert_allclose(ours["layers"]["kernel"][i], w, rtol=1e-5)
        np.testing.assert_allclose(ours["layers"]["bias"][i], b, rtol=1e-5)


def test_what_decays_by_default():
    params = stacked([layer(0), layer(1)], others(0))
    decays = {leaf.name for leaf in optim.AdamW(0.1).leaves(params) if leaf.decay}
    assert decays == {
        "embed/embedding",
        "logits/kernel",
        *(f"decoder/layers/{n}/kernel" for n in ("attention/query", "attention/out", "mlp/up", "mlp/down")),
    }


def test_tables_first_match_wins():
    params = stacked([layer(0), layer(1)], others(0))
    zero = jax.tree.map(jnp.zeros_like, params)
    optimizer = optim.AdamW(
        0.1,
        weight_decay=1.0,
        decay=(("query/bias$", 0.5), ("query/", 0.25), ("logits", 0)),
        lr_scale=(("embed/", 0.1), ("mlp/", 2.0)),
    )
    updates, _ = jax.jit(optimizer.update)(zero, optimizer.init(params), params, 0)
    share = jax.tree.map(lambda u, p: float((u / p).ravel()[0]), updates, params)
    expected = {
        "decoder/layers/attention/query/bias": 0.05,
        "decoder/layers/attention/query/kernel": 0.025,
        "logits/kernel": 0.0,
        "embed/embedding": 0.01,
        "decoder/layers/mlp/up/kernel": 0.2,
        "decoder/layers/attention/out/kernel": 0.1,
        "decoder/norm/scale": 0.0,
    }
    found = dict(trees.named_leaves(share))
    np.testing.assert_allclose([found[n] for n in expected], [-x for x in expected.values()], rtol=1e-6)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=name_of)
def test_lr_scale_reaches_every_leaf(optimizer):
    """Any first step is linear in the learning rate, decay included."""
    half = dataclasses.replace(optimizer, lr_scale=(("", 0.5),))
    first = lambda o: jax.jit(lambda p, g: o.update(g, o.init(p), p, 0)[0])(plain(0), plain(1))
    assert_close(first(half), jax.tree.map(lambda u: u / 2, first(optimizer)))


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=name_of)
def test_layer_decay_is_a_table_of_unrolled_layers(optimizer):
    n, steps = 3, 3
    grads = [([layer((t, i)) for i in range(n)], others(t)) for t in range(1, steps + 1)]
    by_layer = dataclasses.replace(optimizer, layer_decay=optim.LayerDecay(0.5), lr_scale=(("mlp/", 2.0),))
    a, a_state = run(by_layer, stacked([layer(i) for i in range(n)], others(0)), [stacked(*g) for g in grads])
    # By hand: layer i of 3 at 0.5 ** (3 - i), the embedding one below; the shared bias, the last norm, the logits at 1.
    table = [(f"layer_{i}/mlp/", 2 * 0.5 ** (n - i)) for i in range(n)]
    table += [(f"layer_{i}/", 0.5 ** (n - i)) for i in range(n)] + [("^embed/", 0.5 ** (n + 1))]
    by_hand = dataclasses.replace(optimizer, lr_scale=tuple(table))
    b, _ = run(by_hand, unrolled([layer(i) for i in range(n)], others(0)), [unrolled(*g) for g in grads])
    decoder = b["decoder"] | {"layers": trees.stack([b["decoder"].pop(f"layer_{i}") for i in range(n)])}
    decoder = {k: v for k, v in decoder.items() if not k.startswith("layer_")}
    assert_close(a, b | {"decoder": decoder}, 2e-5 if isinstance(optimizer, optim.Muon) else 2e-6)
    shapes = lambda tree: jax.tree.map(lambda x: x.shape, tree)
    plain_state = optimizer.init(stacked([layer(i) for i in range(n)], others(0)))
    assert shapes(a_state) == shapes(plain_state)


def test_layer_decay_takes_all_that_texts_are_embedded_by():
    """ELECTRA's get_layer_lrs: /embeddings/, which has the token types, and /embeddings_project/ have the depth 0."""
    before = "embed/embedding", "token_types/embedding", "decoder_positions/embedding", "encoder/project/kernel"
    names = {f"model/{name}": (4, 4) for name in (*before, "head/dense/kernel")}
    names |= {"image_head/project/kernel": (4, 4), "model/encoder/layers/mlp/up/kernel": (3, 4, 4)}
    factors = optim.LayerDecay(0.5).factors([(name, np.zeros(shape)) for name, shape in names.items()])
    assert {name for name, x in factors.items() if x == 0.5**4} == {f"model/{name}" for name in before}


def test_layer_decay_in_a_tree_of_modules():
    """Each module's embeddings go by its own depth; what has no layers beside it is a head."""
    x = lambda *shape: np.zeros(shape, np.float32)
    tower = lambda n: {
        "embed": {"kernel": x(4, 4)},
        "class_token": x(1, 1, 4),
        "positions": {"embedding": x(3, 4)},
        "relative_bias": {"embedding": x(n, 5, 2) if n == 3 else x(5, 2)},
        "blocks": {"layers": {"mlp": {"up": {"kernel": x(n, 4, 4)}}}, "norm": {"scale": x(4)}},
    }
    params = {"encoder": tower(3), "text": tower(2), "classifier": {"output": {"kernel": x(4, 2), "bias": x(2)}}}
    scale = {leaf.name: leaf.lr_scale for leaf in optim.AdamW(0.1, layer_decay=optim.LayerDecay(0.5)).leaves(params)}
    assert scale == {
        "classifier/output/bias": 1.0,
        "classifier/output/kernel": 1.0,
        **{f"encoder/{name}": 0.5**4 for name in ("class_token", "embed/kernel", "positions/embedding")},
        **{f"text/{name}": 0.5**3 for name in ("class_token", "embed/kernel", "positions/embedding")},
        "encoder/blocks/layers/mlp/up/kernel": (0.125, 0.25, 0.5),
        "text/blocks/layers/mlp/up/kernel": (0.25, 0.5),
        "encoder/blocks/norm/scale": 1.0,
        "text/blocks/norm/scale": 1.0,
        # BEiT's get_num_layer_for_vit: blocks.i.attn.relative_position_bias_table is of layer i, rel_pos_bias of none.
        "encoder/relative_bias/embedding": (0.125, 0.25, 0.5),
        "text/relative_bias/embedding": 1.0,
    }


@pytest.mark.parametrize("optimizer", [o for o in OPTIMIZERS if o.weight_decay], ids=name_of)
def test_a_scheduled_weight_decay_is_that_of_its_step(optimizer):
    params, g = stacked([layer(0), layer(1)], others(0)), stacked([layer(2), layer(3)], others(1))
    rising = dataclasses.replace(optimizer, weight_decay=Linear(peak=0.0, final=0.4, total_steps=20))
    fixed = dataclasses.replace(optimizer, weight_decay=0.1)
    first = lambda o, step: jax.jit(o.update)(g, o.init(params), params, jnp.int32(step))[0]
    assert_close(first(rising, 5), first(fixed, 5), 1e-5)
    none = first(dataclasses.replace(optimizer, weight_decay=0.0), 0)
    assert_close(first(rising, 0), none, 1e-6)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=name_of)
def test_state_mirrors_the_parameters_paths(optimizer):
    params = jax.eval_shape(lambda: stacked([layer(0), layer(1)], others(0)))
    shapes = {n: x.shape for n, x in trees.named_leaves(params)}
    state = jax.eval_shape(optimizer.init, params)
    for name, x in trees.named_leaves(state):
        moment, _, path = name.partition("/")
        if moment in ("v_row", "v_col"):
            assert x.ndim == 1 + trees.is_stacked(path) and x.shape[0] == (2 if "layers" in path else x.size)
        else:
            assert x.shape == shapes[path]
    if optimizer is OPTIMIZERS[1]:
        query = "decoder/layers/attention/query/kernel"
        moments = {n.split("/", 1)[0]: x.shape for n, x in trees.named_leaves(state) if n.endswith(query)}
        assert moments == {"v_row": (2, 6), "v_col": (2, 8)}
    updates, after = jax.eval_shape(optimizer.update, params, state, params, 0)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), updates) == jax.tree.map(lambda x: (x.shape, x.dtype), params)


@pytest.mark.parametrize(
    "make, text",
    [
        (
            lambda: optim.AdamW(0.1, lr_scale=(("encodr/", 0.1),)),
            r"AdamW.lr_scale: 'encodr/' matches no parameter \(such as a/bias",
        ),
        (lambda: optim.Muon(adam=(("encodr/", True),)), r"Muon.adam: 'encodr/' matches no parameter"),
        (
            lambda: optim.SGD(0.1, lr_scale=(("(", 2.0),)),
            r"SGD.lr_scale: \('\(', 2.0\) is not \(regular expression, a number\)",
        ),
        (
            lambda: optim.SGD(0.1, layer_decay=optim.LayerDecay(0.5)),
            r"LayerDecay: no parameter lies in a stack of layers",
        ),
        (lambda: optim.LayerDecay(0.0), r"LayerDecay.rate=0.0 must lie above 0 and not above 1"),
        (lambda: optim.SGD(0.1, decay=("bias",)), r"SGD.decay: 'bias' is not \(regular expression, a number\)"),
        (lambda: optim.SGD(0.1, decay=(("bias", "0"),)), r"SGD.decay: .* is not .regular expression, a number"),
        (lambda: optim.SGD(0.1, lr_scale=(("", True),)), r"SGD.lr_scale: .* is not .regular expression, a number"),
        (lambda: optim.SGD(0.1, matrices=(("", 1.5),)), r"SGD.matrices: .* is not .regular expression, a whole number"),
        (lambda: optim.Muon(adam=(("bias", 1),)), r"Muon.adam: .* is not .regular expression, True or False"),
        (lambda: optim.LayerDecay(0.5, ("(",)), r"LayerDecay.embeddings: '\(' is no regular expression"),
    ],
)
def test_bad_tables(make, text):
    with pytest.raises(UserError, match=text):
        make().init(plain(0))
