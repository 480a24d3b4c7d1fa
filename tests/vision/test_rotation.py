"""Rotation prediction: what every objective passes, and the paper's loss by a loop."""

import jax
import jax.numpy as jnp
import numpy as np

from paradigm.objective import Context
from tests import contract
from tests.compiled import compiled
from tests.vision import tiny
from vision.objectives import Rotation

BATCH = tiny.batch_of()


def rotation():
    return Rotation(encoder=tiny.encoder(), augment=tiny.views(), host_image_size=tiny.HOST_SIZE)


CASES = {"rotation": contract.Case(rotation(), BATCH, "patches", tiny.masked)}
globals().update(contract.tests(CASES))


def test_loss_is_the_papers():
    objective, batch = rotation(), tiny.masked(3)
    params = tiny.params(objective)
    loss = jax.jit(lambda p: objective.loss(p, {}, batch, Context(jnp.int32(0), 0, False)))(params)
    images, head = np.asarray(compiled(objective.view, batch)), params["classifier"]["output"]
    read = jax.jit(lambda x: objective.apply("encoder", {"params": params}, x)[0])
    total = right = 0
    for k in range(4):
        turned = np.stack([np.rot90(x, k) for x in images])
        pooled = read(turned)
        logits = np.float64(pooled) @ np.float64(head["kernel"]) + np.float64(head["bias"])
        total += sum(np.log(np.exp(row).sum()) - row[k] for row in logits[:6])
        right += sum(row.argmax() == k for row in logits[:6])
    np.testing.assert_allclose([loss.terms["turns"].sum, loss.terms["turns"].weight], [total, 24], rtol=1e-5)
    np.testing.assert_allclose(loss.metrics["accuracy"], [right, 24])
