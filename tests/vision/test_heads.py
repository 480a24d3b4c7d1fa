"""Heads by hand; what surrounds a contrast."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.compiled import compiled
from vision.heads import Head, Prototypes, embedding_std, l2_normalize

X = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)


@pytest.mark.parametrize("last", ["none", "scale", "plain"])
def test_batch_norm_stands_before_each_relu(last):
    head = Head((5, 3), last_norm=last)
    variables = compiled(head.init, jax.random.key(0), X)
    params = jax.tree.map(lambda x: x + 0.3, variables["params"])
    assert set(params["fc0"]) == {"kernel"} and set(params["norm0"]) == {"scale", "bias"}
    assert set(params.get("norm1", ())) == ({"scale"} if last == "scale" else set())
    (got, intermediates), seen = compiled(
        head.apply, {**variables, "params": params}, X, train=True, mutable=["moments"]
    )
    h = X @ params["fc0"]["kernel"]
    np.testing.assert_allclose(seen["moments"]["norm0"]["mean"], h.mean(0), rtol=1e-4, atol=1e-6)
    h = (h - h.mean(0)) / np.sqrt(h.var(0) + 1e-5) * params["norm0"]["scale"] + params["norm0"]["bias"]
    h = np.maximum(h, 0) @ params["fc1"]["kernel"]
    if last != "none":
        h = (h - h.mean(0)) / np.sqrt(h.var(0) + 1e-5) * (params["norm1"]["scale"] if last == "scale" else 1.0)
    np.testing.assert_allclose(got, h, rtol=1e-4, atol=1e-5)
    assert intermediates == {} and ("norm1" in seen["moments"]) == (last != "none")


def test_without_norms_there_are_biases():
    head = Head((5, 3), norm=False)
    variables = compiled(head.init, jax.random.key(0), X)
    assert set(variables) == {"params"} and set(variables["params"]["fc1"]) == {"kernel", "bias"}
    params = jax.tree.map(lambda x: x + 0.3, variables["params"])
    h = np.maximum(X @ params["fc0"]["kernel"] + params["fc0"]["bias"], 0)
    got, _ = compiled(head.apply, {"params": params}, X, train=True)
    np.testing.assert_allclose(got, h @ params["fc1"]["kernel"] + params["fc1"]["bias"], rtol=1e-4)
    assert head.flops(7, 4) == 2 * 7 * (4 * 5 + 5 * 3)


def test_unit_vectors():
    np.testing.assert_allclose(l2_normalize(X), X / np.linalg.norm(X, axis=-1, keepdims=True), rtol=1e-6)
    at_zero = jax.jacobian(l2_normalize)(jnp.zeros((1, 4)))
    assert np.isfinite(at_zero).all() and l2_normalize(jnp.ones((1, 4), jnp.bfloat16)).dtype == jnp.float32


def test_shorter_prototypes_give_the_same_scores_and_turn_faster():
    short, long = Prototypes(5, std=0.1), Prototypes(5)
    variables = [compiled(head.init, jax.random.key(0), X) for head in (short, long)]
    np.testing.assert_allclose(variables[0]["params"]["kernel"], 0.1 * variables[1]["params"]["kernel"], rtol=1e-5)
    score = lambda head, own: compiled(head.apply, own, X)[0]
    np.testing.assert_allclose(score(short, variables[0]), score(long, variables[1]), atol=1e-5)
    turn = lambda head, own: jax.grad(lambda own: head.apply(own, X)[0][0, 0])(own)["params"]["kernel"]
    np.testing.assert_allclose(turn(short, variables[0]), 10 * turn(long, variables[1]), rtol=1e-3, atol=1e-6)


def test_spread_is_zero_for_a_collapse_and_one_for_the_sphere():
    sphere = l2_normalize(np.random.default_rng(0).normal(size=(4000, 8)).astype(np.float32))
    np.testing.assert_allclose(embedding_std(sphere), 1.0, atol=0.02)
    assert embedding_std(jnp.ones((5, 8)) / 8**0.5) < 1e-6
    mask = np.array([1, 1, 1, 1, 0, 0], np.float32)
    np.testing.assert_allclose(embedding_std(l2_normalize(X), mask), embedding_std(l2_normalize(X[:4])), rtol=1e-5)
