"""SimCLR: what every objective passes, the official loss written as loops, and gradients through cached embeddings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradigm.errors import UserError
from paradigm.objective import Context
from paradigm.optim import LARS
from tests import contract
from tests.compiled import compiled
from tests.vision import tiny
from vision.augment import mae_views
from vision.objectives import MAE, SimCLR

BATCH = tiny.batch_of()
CTX = Context(jnp.int32(0), 0, True)
VIEWS = tiny.views(jitter=0.8, strength=(0.4, 0.4, 0.4, 0.1))


def simclr(**changes):
    # Without LayerNorm's last bias, whose gradient is nothing but rounding: the head's BatchNorm takes it off again.
    # It takes off what all views have in common too, and leaves its rounding: these are cut small, to be unlike.
    fields = {
        "encoder": tiny.encoder(norm="rms"),
        "augment": tiny.views(scale=(0.1, 1.0)),
        "host_image_size": tiny.HOST_SIZE,
        "output": 16,
    }
    return SimCLR(**fields | changes)


CASES = {"simclr": contract.Case(simclr(), BATCH, "views that are compared", tiny.masked)}
globals().update(contract.tests(CASES))


@pytest.mark.slow
def test_sharding_with_batch_norm_in_the_encoder():
    # Larger cuts: small ones are nearly flat, and its norms divide by what contrast is left.
    contract.check_sharding(simclr(encoder=tiny.small_resnet(), augment=tiny.views()), tiny.masked)


def test_batch_norm_in_the_encoder_takes_no_microbatches():
    with pytest.raises(UserError, match="SimCLR couples the examples of a batch"):
        tiny.traced(simclr(encoder=tiny.small_resnet()), LARS(0.1), microbatches=2)


def reference(a, b, temperature):
    """Official add_contrastive_loss, a similarity at a time: (loss, accuracy of both directions)."""
    n, total, right = len(a), 0.0, 0
    for own, other in ((a, b), (b, a)):
        for i in range(n):
            logits = [own[i] @ other[j] / temperature for j in range(n)]
            logits += [own[i] @ own[j] / temperature for j in range(n) if j != i]
            total += np.log(np.sum(np.exp(logits))) - logits[i]
            right += int(np.argmax(logits) == i)
    return total / n, right / (2 * n)


@pytest.mark.parametrize("rows", [8, 6])
def test_the_loss_and_its_gradient_are_the_official_ones(rows):
    objective, batch = simclr(temperature=0.3), BATCH(0) if rows == 8 else tiny.masked(0)
    params = tiny.params(objective)
    extra = compiled(objective.init_extra, params, jax.random.key(0))
    pooled = np.random.default_rng(1).normal(size=(8, 2, 16)).astype(np.float32)

    def value(x):
        loss = compiled(objective.full_batch_loss, params, extra, x, batch, CTX)
        return loss.value(), loss

    (got, loss), slope = jax.value_and_grad(value, has_aux=True)(pooled)

    def by_loops(x):
        """The head in float64, both views in one BatchNorm."""
        p = jax.tree.map(np.float64, params["projector"])
        h = np.float64(x).reshape(-1, 16) @ p["fc0"]["kernel"]
        h = (h - h.mean(0)) / np.sqrt(h.var(0) + 1e-5) * p["norm0"]["scale"] + p["norm0"]["bias"]
        h = np.maximum(h, 0) @ p["fc1"]["kernel"]
        h = (h - h.mean(0)) / np.sqrt(h.var(0) + 1e-5) * p["norm1"]["scale"]
        z = (h / np.linalg.norm(h, axis=-1, keepdims=True)).reshape(8, 2, 16)[:rows]
        return reference(z[:, 0], z[:, 1], 0.3)

    wanted, accuracy = by_loops(pooled)
    np.testing.assert_allclose(got, wanted, rtol=1e-4)
    np.testing.assert_allclose(np.divide(*loss.metrics["contrast_accuracy"]), accuracy, rtol=1e-6)
    for at in ((0, 0, 3), (2, 1, 7), (5, 0, 0)):
        nudge = np.zeros(pooled.shape)
        nudge[at] = 1e-4
        step = (by_loops(pooled + nudge)[0] - by_loops(pooled - nudge)[0]) / 2e-4
        np.testing.assert_allclose(slope[at], step, rtol=2e-3, atol=1e-4)


def test_running_statistics_follow_both_views():
    objective = simclr(encoder=tiny.small_resnet())
    state, _ = contract.run(objective, LARS(0.0), BATCH, 0, 1)
    assert set(state.extra["batch_stats"]) == {"encoder", "projector"}
    params = jax.tree.map(jnp.asarray, state.params)  # a learning rate of 0 left them as they were
    a, b = compiled(objective.augment_views, BATCH(0), CTX)
    variables = {"params": params["encoder"], "batch_stats": state.extra["batch_stats"]["encoder"]}
    _, seen = compiled(objective.encoder.apply, variables, jnp.concatenate([a, b]), train=True, mutable=["moments"])
    got = state.extra["batch_stats"]["encoder"]["stem"]["norm"]
    np.testing.assert_allclose(got["mean"], 0.1 * seen["moments"]["stem"]["norm"]["mean"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(got["var"], 0.9 + 0.1 * seen["moments"]["stem"]["norm"]["var"], rtol=1e-4)


def test_evaluation_draws_views_and_keeps_running_statistics():
    objective, batch = simclr(augment=VIEWS), BATCH(0)
    params = tiny.params(objective)
    extra = compiled(objective.init_extra, params, jax.random.key(0))
    a, b = compiled(objective.augment_views, batch, CTX.replace(train=False))
    assert np.abs(a - b).max((1, 2, 3)).min() > 0.1
    loss = compiled(objective.loss, params, extra, batch, CTX.replace(train=False))
    assert not loss.stats and np.isfinite(loss.value())


def test_a_temperature_of_zero():
    with pytest.raises(UserError, match="SimCLR.temperature=0 must be positive"):
        simclr(temperature=0)


def test_it_contrasts_the_examples_of_a_batch():
    assert simclr().contrasts and not MAE(encoder=tiny.encoder(), augment=mae_views(tiny.SIZE)).contrasts
