"""MoCo v1 and v2: what every objective passes, the official loss as loops, one push a step, the teacher's weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradigm.errors import UserError
from paradigm.objective import Context
from paradigm.optim import SGD
from paradigm.schedule import Linear
from paradigm.step import init_state, make_train_step
from tests import contract
from tests.compiled import compiled
from tests.vision import tiny
from vision.objectives import MoCoV1, MoCoV2

BATCH = tiny.batch_of()
CTX = Context(jnp.int32(0), 0, True)


def moco(version=MoCoV2, **changes):
    fields = {
        "encoder": tiny.encoder(),
        "augment": tiny.views(),
        "host_image_size": tiny.HOST_SIZE,
        "output": 16,
        "queue": 32,
    }
    return version(**fields | changes)


CASES = {"moco": contract.Case(moco(), BATCH, "teacher and queue", tiny.masked, parts=(2,))}
globals().update(contract.tests(CASES))


@pytest.mark.slow
def test_sharding_with_batch_norm():
    contract.check_sharding(moco(encoder=tiny.small_resnet()), tiny.masked)


def embedded(objective, params, view, layers):
    """Unit vectors [B, output] in float64 of a view, by the encoder and a head of these layers."""
    x = np.float64(compiled(objective.features, {"params": params}, view)[0])
    for i in range(layers):
        fc = jax.tree.map(np.float64, params["projector"][f"fc{i}"])
        x = x @ fc["kernel"] + fc["bias"]
        x = np.maximum(x, 0) if i < layers - 1 else x
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.mark.parametrize("version, layers, temperature", [(MoCoV1, 1, 0.07), (MoCoV2, 2, 0.2)])
def test_the_loss_is_the_official_one(version, layers, temperature):
    objective, batch = moco(version), tiny.masked(0)
    params = tiny.params(objective)
    extra = compiled(objective.init_extra, params, jax.random.key(3))
    extra["teacher"]["params"] = jax.tree.map(lambda x: 0.9 * x + 0.01, params)
    loss = jax.jit(objective.loss)(params, extra, batch, CTX)
    query, key = compiled(objective.augment_views, batch, CTX)
    q, k = (
        embedded(objective, tree, view, layers) for tree, view in ((params, query), (extra["teacher"]["params"], key))
    )
    queue, total, right = np.float64(extra["queue"]), 0.0, 0
    for i in range(6):
        logits = np.array([q[i] @ k[i]] + [q[i] @ old for old in queue]) / temperature
        total += np.log(np.exp(logits).sum()) - logits[0]
        right += int(np.argmax(logits) == 0)
    np.testing.assert_allclose(loss.value(), total / 6, rtol=1e-4)
    assert loss.metrics["contrast_accuracy"] == (right, 6)
    np.testing.assert_allclose(loss.rows["keys"], k, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(queue, axis=1), 1, rtol=1e-6)
    deviation = queue.std(0).mean() * 4  # sqrt(16)
    np.testing.assert_allclose(np.divide(*loss.metrics["embedding_std"]), deviation, rtol=1e-5)


def test_the_gradient_is_the_official_one():
    """By finite differences of the loops in the head, the encoder's output held as it is."""
    objective, batch = moco(), BATCH(0)
    params = tiny.params(objective)
    extra = compiled(objective.init_extra, params, jax.random.key(3))
    grads = jax.jit(jax.grad(lambda p: objective.loss(p, extra, batch, CTX).value()))(params)
    query, key = compiled(objective.augment_views, batch, CTX)
    k, queue = embedded(objective, extra["teacher"]["params"], key, 2), np.float64(extra["queue"])
    pooled = np.float64(compiled(objective.features, {"params": params}, query)[0])

    def by_hand(head):
        x = np.maximum(pooled @ head["fc0"]["kernel"] + head["fc0"]["bias"], 0)
        x = x @ head["fc1"]["kernel"] + head["fc1"]["bias"]
        q = x / np.linalg.norm(x, axis=-1, keepdims=True)
        logits = np.concatenate([np.sum(q * k, -1, keepdims=True), q @ queue.T], 1) / 0.2
        return np.mean(np.log(np.exp(logits).sum(1)) - logits[:, 0])

    for name, at in (("fc0", (3, 5)), ("fc1", (2, 11)), ("fc1", (7, 0))):
        values = []
        for sign in (1, -1):
            head = jax.tree.map(np.float64, params["projector"])
            head[name]["kernel"] = head[name]["kernel"].copy()
            head[name]["kernel"][at] += sign * 1e-5
            values.append(by_hand(head))
        slope = (values[0] - values[1]) / 2e-5
        np.testing.assert_allclose(grads["projector"][name]["kernel"][at], slope, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("microbatches", [1, 2])
def test_a_step_pushes_once_and_the_teacher_follows_the_new_weights(microbatches):
    objective = moco(momentum=Linear(peak=0.75, final=0.25, total_steps=4))
    state = jax.jit(lambda: init_state(objective, SGD(0.5), 0))()
    first = jax.device_get(state)
    step = jax.jit(make_train_step(objective, SGD(0.5), microbatches=microbatches))
    state, _ = step(state, BATCH(0))
    assert state.extra["cursor"] == 8
    np.testing.assert_array_equal(state.extra["queue"][8:], first.extra["queue"][8:])
    assert np.abs(state.extra["queue"][:8] - first.extra["queue"][:8]).max(1).min() > 0.1
    keys = compiled(objective.loss, first.params, first.extra, BATCH(0), CTX).rows["keys"]
    np.testing.assert_allclose(state.extra["queue"][:8], keys, atol=1e-4)  # in the batch's order, however it is cut
    wanted = jax.tree.map(lambda old, new: 0.75 * old + 0.25 * new, first.extra["teacher"]["params"], state.params)
    contract.assert_trees_close(state.extra["teacher"]["params"], wanted, 1e-6)
    gap = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), state.params, first.params)
    assert max(jax.tree.leaves(gap)) > 1e-2  # new weights are not the old ones
    for i in range(1, 4):
        before = jax.device_get(state.extra["teacher"]["params"])
        state, _ = step(state, BATCH(i))
        m = 0.75 - 0.125 * i  # of this step
        wanted = jax.tree.map(lambda old, new: m * old + (1 - m) * new, before, state.params)
        contract.assert_trees_close(state.extra["teacher"]["params"], wanted, 1e-6)
    assert state.extra["cursor"] == 0


def test_batch_norm_of_the_teacher_is_its_own():
    """Each encoder has the moments of its own view, and running statistics of its own."""
    objective = moco(encoder=tiny.small_resnet())
    state, _ = contract.run(objective, SGD(0.0), BATCH, 0, 1)
    student, teacher = state.extra["batch_stats"], state.extra["teacher"]
    for view, stats in zip(compiled(objective.augment_views, BATCH(0), CTX), (student, teacher["batch_stats"])):
        variables = {"params": state.params["encoder"], "batch_stats": stats["encoder"]}
        _, seen = compiled(objective.encoder.apply, variables, view, train=True, mutable=["moments"])
        wanted = 0.1 * seen["moments"]["stem"]["norm"]["mean"]
        np.testing.assert_allclose(variables["batch_stats"]["stem"]["norm"]["mean"], wanted, rtol=1e-4, atol=1e-6)
    assert set(student) == set(teacher["batch_stats"]) == {"encoder"}
    assert set(teacher["params"]) == {"encoder", "projector"}
    assert objective.variables(state.params, state.extra, "teacher") is teacher


def test_what_a_person_can_set_wrong():
    text = r"MoCoV2.queue=36 is not a multiple of the batch of 8.*: set MoCoV2.queue = 32"
    with pytest.raises(UserError, match=text):
        moco(queue=36).batch_spec(8)
    with pytest.raises(UserError, match=r"MoCoV1.queue=4 .*: set MoCoV1.queue = 8"):
        moco(MoCoV1, queue=4).batch_spec(8)
    with pytest.raises(UserError, match="MoCoV1.temperature=-1 must be positive"):
        moco(MoCoV1, temperature=-1)
    with pytest.raises(UserError, match="MoCoV2 couples the examples of a batch"):
        tiny.traced(moco(encoder=tiny.small_resnet()), SGD(0.1), microbatches=2)
