"""Classifiers on frozen features: the nearest neighbours' vote, and softmax regression.

The protocol of what they are given and scored on is the evaluator's (vision/probe.py, t5like/probes.py).
"""

import jax
import jax.numpy as jnp
import numpy as np

from paradigm import rng

LEARNING_RATES = (0.01, 0.03, 0.1, 0.3, 1.0)
BATCH = 250  # rows at a time


def knn(x, y, x_test, y_test, classes, k=20, temperature=0.07):
    """Accuracy of the weighted vote of the k nearest; x float [N, D], y int [N]."""
    x, x_test = (jnp.asarray(a / (np.linalg.norm(a, axis=1, keepdims=True) + 1e-12)) for a in (x, x_test))
    k, votes = min(k, len(x)), jax.nn.one_hot(y, classes)

    @jax.jit
    def vote(rows):  # [T, D] -> [T]
        near, at = jax.lax.top_k(rows @ x.T, k)
        return jnp.argmax(jnp.einsum("tk,tkc->tc", jnp.exp(near / temperature), votes[at]), 1)

    guesses = [np.asarray(vote(x_test[i : i + BATCH])) for i in range(0, len(x_test), BATCH)]
    return float(np.mean(np.concatenate(guesses) == y_test))


def linear(x, y, x_test, y_test, classes, steps, seed=0, learning_rates=LEARNING_RATES):
    """Test accuracy of a softmax regression trained on x [N, D], y [N], at the rate that rows set apart chose."""
    center, scale = x.mean(0), x.std(0) + 1e-6
    x, x_test = (x - center) / scale, (x_test - center) / scale
    order = np.random.default_rng(seed).permutation(len(x))
    apart, kept = np.split(order, [max(1, len(x) // 10)])
    if len(learning_rates) > 1:
        heads = _regressions(x[kept], y[kept], classes, steps, seed, learning_rates)
        best = int(np.argmax([_accuracy(head, x[apart], y[apart]) for head in heads]))
        learning_rates = (learning_rates[best],)
    [head] = _regressions(x, y, classes, steps, seed, learning_rates)
    return _accuracy(head, x_test, y_test)


def _accuracy(head, x, y):
    kernel, bias = head
    return float(np.mean(np.argmax(x @ kernel + bias, 1) == y))


def _regressions(x, y, classes, steps, seed, learning_rates):
    """[(kernel [D, classes], bias [classes]) for each learning rate], trained side by side on the same batches."""
    batch = min(256, len(x))
    x, y = jnp.asarray(x), jnp.asarray(y)

    def nll(head, rows, labels):
        kernel, bias = head
        logs = jax.nn.log_softmax(rows @ kernel + bias)
        return -jnp.take_along_axis(logs, labels[:, None], 1).mean()

    def train(rate, x, y):
        def step(carry, i):
            head, momentum = carry
            at = jax.random.randint(rng.key(seed, "probe", i), (batch,), 0, len(x))
            grads = jax.grad(nll)(head, x[at], y[at])
            momentum = jax.tree.map(lambda m, g: 0.9 * m + g, momentum, grads)
            now = rate * 0.5 * (1 + jnp.cos(jnp.pi * i / steps))
            head = jax.tree.map(lambda w, m, g: w - now * (0.9 * m + g), head, momentum, grads)  # Nesterov's form
            return (head, momentum), None

        head = jnp.zeros((x.shape[1], classes)), jnp.zeros(classes)
        return jax.lax.scan(step, (head, head), jnp.arange(steps))[0][0]

    heads = jax.jit(jax.vmap(train, (0, None, None)))(jnp.asarray(learning_rates), x, y)
    kernels, biases = map(np.asarray, heads)
    return list(zip(kernels, biases))


def balanced(y, part, classes, seed=0):
    """Positions of a `part` of the rows, as many of each class that has so many, at least one of each."""
    if part >= 1:
        return np.arange(len(y))
    draw = np.random.default_rng(seed)
    each = max(1, round(part * len(y) / classes))
    return np.sort(np.concatenate([draw.permutation(np.flatnonzero(y == c))[:each] for c in np.unique(y)]))
