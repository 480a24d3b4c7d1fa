"""The attentive probe by loops over queries, heads and tokens, and what padding may say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradigm import trees
from paradigm.attentive import Attentive
from paradigm.errors import UserError
from tests.compiled import compiled
from vision.vit import vit

WIDTH, HEADS = 8, 2
ENCODER = vit("tiny", 8, 4, d_model=WIDTH, heads=HEADS, d_ff=16, layers=1)
X = np.random.default_rng(0).normal(size=(2, 5, WIDTH)).astype(np.float32)


def made(probe):
    """(module, parameters drawn so that nothing is 0 or 1)."""
    module = probe.module(ENCODER)
    shapes = jax.eval_shape(module.init, jax.random.key(0), X)["params"]
    draw = lambda name, x: np.random.default_rng(len(name)).normal(size=x.shape).astype(np.float32) / 2
    return module, trees.named_map(draw, shapes)


def norm(p, x):
    x = x - x.mean()
    return x / np.sqrt(np.mean(x**2) + 1e-6) * p["scale"] + p["bias"]


def gelu(x):
    return np.asarray(jax.nn.gelu(x, approximate=False))


@pytest.mark.parametrize("queries, block", [(1, True), (3, False), (2, True)])
def test_by_loops(queries, block):
    module, p = made(Attentive(queries, block))
    segments = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    found = np.asarray(compiled(module.apply, {"params": p}, X, segments)[0])
    attention, wanted = p["attention"], np.zeros((2, WIDTH))
    project = lambda name, x: np.einsum("d,dhk->hk", x, attention[name]["kernel"]) + attention[name]["bias"]
    for b in range(2):
        tokens = [norm(p["norm"], X[b, i]) for i in range(5) if segments[b, i]]
        for query in p["queries"][0]:
            z = attention["out"]["bias"].copy()
            for h in range(HEADS):
                q = project("query", query)[h]
                weights = np.exp([q @ project("key", x)[h] / (WIDTH / HEADS) ** 0.5 for x in tokens])
                values = [project("value", x)[h] for x in tokens]
                y = sum(w * v for w, v in zip(weights / weights.sum(), values))
                z += y @ attention["out"]["kernel"][h]
            if block:
                z = z + query
                up = norm(p["mlp_norm"], z) @ p["mlp"]["up"]["kernel"] + p["mlp"]["up"]["bias"]
                z = z + gelu(up) @ p["mlp"]["down"]["kernel"] + p["mlp"]["down"]["bias"]
            wanted[b] += z / queries
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_padding_says_nothing():
    module, p = made(Attentive(2))
    segments = np.array([[1, 1, 0, 1, 0], [1, 0, 0, 0, 0]])
    to = jax.jit(jax.grad(lambda x: jnp.sum(jnp.sin(module.apply({"params": p}, x, segments)[0]))))(X)
    assert ((np.abs(to).max(-1) > 0) == (segments > 0))[0].all() and not np.any(to[1, 1:])


def test_it_begins_as_the_official_code_does():
    """Deviation 0.02, but for what ends a branch, and biases of 0."""
    module = Attentive(block=True).module(vit("tiny", 8, 4, d_model=128, heads=4))
    params = compiled(module.init, jax.random.key(0), np.zeros((1, 1, 128), np.float32))["params"]
    for name, x in trees.named_leaves(params):
        if name.endswith(("kernel", "queries")):
            last = name in ("attention/out/kernel", "mlp/down/kernel")
            assert np.std(x) == pytest.approx(0.02 / 2**0.5 if last else 0.02, rel=0.25 if name == "queries" else 0.05)
        else:
            assert np.all(np.asarray(x) == name.endswith("scale"))


def test_flops():
    for queries, block in ((1, True), (3, False)):
        module, _ = made(Attentive(queries, block))
        per_query = 2 * 2 * WIDTH * WIDTH + block * 2 * 2 * WIDTH * 4 * WIDTH
        per_token = 2 * 2 * WIDTH * WIDTH + queries * 2 * 2 * WIDTH
        assert module.flops(3, 5) == 3 * (queries * per_query + 5 * per_token)


def test_no_query_is_refused():
    with pytest.raises(UserError, match="Attentive.queries=0: at least 1"):
        Attentive(0)
