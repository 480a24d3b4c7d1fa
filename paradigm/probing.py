"""Classifiers on frozen features: the nearest neighbours' vote, softmax regression, and attention by a learned query.

The protocol of what they are given and scored on is the evaluator's (vision/probe.py, t5like/probes.py).
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from paradigm import rng

LEARNING_RATES = (0.01, 0.03, 0.1, 0.3, 1.0)
# facebookresearch/jepa, configs/evals/vitl16_in1k.yaml has 1e-3; narrow encoders and few steps need the other.
ATTENTIVE_RATES = (1e-3, 1e-2)
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


class AttentiveHead(nn.Module):
    """Logits [B, classes] of hidden states [B, L, D] and their segments, 0 for padding; pool: an AttentivePool."""

    pool: nn.Module
    classes: int

    @nn.compact
    def __call__(self, x, segments):
        return nn.Dense(self.classes, kernel_init=nn.initializers.zeros, name="classifier")(self.pool(x, segments)[0])


def attentive(x, y, x_test, y_test, classes, pool, steps, seed=0, rates=ATTENTIVE_RATES, batch=128):
    """Test accuracy of an attentive probe (paradigm/attentive.py), trained on tokens that stay as they are.

    AdamW, cosine to 0, weight decay 0.001 on matrices, as V-JEPA's, at the rate that rows set apart chose.

    Args:
        x, x_test: (hidden states float32 [N, L, D], segments int32 [N, L]). pool: an AttentivePool.
    """
    order = np.random.default_rng(seed).permutation(len(y))
    apart, kept = np.split(order, [max(1, len(y) // 10)])
    rows, y, batch = np.concatenate([kept, apart]), np.asarray(y), min(batch, len(y))
    hidden, segments, labels = (jnp.asarray(a[rows]) for a in (*x, y))
    head = AttentiveHead(pool, classes)
    logits = jax.jit(head.apply)

    @jax.jit
    def train(rate, count, hidden, segments, labels):  # on the first `count` rows
        matrices = lambda tree: jax.tree.map(lambda w: w.ndim > 1, tree)
        optimizer = optax.adamw(optax.cosine_decay_schedule(rate, steps), weight_decay=0.001, mask=matrices)

        def step(carry, i):
            params, state = carry
            at = jax.random.randint(rng.key(seed, "attentive", i), (batch,), 0, count)

            def nll(params):
                logs = jax.nn.log_softmax(head.apply(params, hidden[at], segments[at]))
                return -jnp.take_along_axis(logs, labels[at][:, None], 1).mean()

            updates, state = optimizer.update(jax.grad(nll)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        params = head.init(rng.key(seed, "attentive"), hidden[:1], segments[:1])
        return jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(steps))[0][0]

    def accuracy(rate, count, x, y):
        params, right = train(rate, count, hidden, segments, labels), 0
        for at in range(0, len(y), batch):
            some = [np.concatenate([a[at : at + batch], np.repeat(a[:1], max(0, at + batch - len(y)), 0)]) for a in x]
            right += np.sum(np.argmax(logits(params, *some), 1)[: len(y) - at] == y[at : at + batch])
        return float(right / len(y))

    beside = [a[apart] for a in x]
    best = max(rates, key=lambda rate: accuracy(rate, len(kept), beside, y[apart])) if len(rates) > 1 else rates[0]
    return accuracy(best, len(rows), x_test, np.asarray(y_test))


def balanced(y, part, classes, seed=0):
    """Positions of a `part` of the rows, as many of each class that has so many, at least one of each."""
    if part >= 1:
        return np.arange(len(y))
    draw = np.random.default_rng(seed)
    each = max(1, round(part * len(y) / classes))
    return np.sort(np.concatenate([draw.permutation(np.flatnonzero(y == c))[:each] for c in np.unique(y)]))
