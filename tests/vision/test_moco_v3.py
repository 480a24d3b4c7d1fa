"""MoCo v3: what every objective passes, the official loss as loops, a teacher of new weights by a schedule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch.run import registry
from paradigm import trees
from paradigm.errors import UserError
from paradigm.objective import Context
from paradigm.optim import AdamW
from paradigm.schedule import Cosine
from paradigm.step import init_state, make_train_step
from tests import contract
from tests.compiled import compiled
from tests.vision import tiny
from vision.objectives import MoCoV3

BATCH = tiny.batch_of()
CTX = Context(jnp.int32(0), 0, True)
FREEZE = (("^encoder/embed/", True),)


class Centred(MoCoV3):
    """Without a running mean that is nothing but rounding: the projector's last norm centres the predictor's input."""

    def update_extra(self, extra, params, loss, ctx):
        extra = super().update_extra(extra, params, loss, ctx)
        extra["batch_stats"]["predictor"]["norm0"]["mean"] *= 0.0
        return extra


def moco(**changes):
    # Without LayerNorm's last bias, whose gradient is nothing but rounding: the head's BatchNorm takes it off again.
    encoder = tiny.encoder(norm="rms")
    fields = {
        "encoder": encoder,
        "augment": tiny.views(),
        "host_image_size": tiny.HOST_SIZE,
        "hidden": 16,
        "output": 16,
        "momentum": Cosine(0.9, total_steps=5, final=1.0),
    }
    return Centred(**fields | changes)


CASES = {"moco_v3": contract.Case(moco(), BATCH, "teacher and comparison", tiny.masked, parts=(2,))}
globals().update(contract.tests(CASES))


@pytest.mark.slow
def test_sharding_with_batch_norm_in_the_encoder():
    contract.check_sharding(moco(encoder=tiny.small_resnet()), tiny.masked)


def head(params, x, layers, last_norm=True):
    """A Head in float64, its BatchNorm by this batch's moments."""
    params = jax.tree.map(np.float64, params)
    for i in range(layers):
        x = x @ params[f"fc{i}"]["kernel"]
        if i < layers - 1 or last_norm:
            x = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
        if i < layers - 1:
            x = np.maximum(x * params[f"norm{i}"]["scale"] + params[f"norm{i}"]["bias"], 0)
    return x


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def contrastive_loss(q, k, temperature):
    """The official function of that name, a similarity at a time."""
    total = 0.0
    for i in range(len(q)):
        logits = np.array([q[i] @ other for other in k]) / temperature
        total += np.log(np.exp(logits).sum()) - logits[i]
    return total / len(q) * 2 * temperature


@pytest.mark.parametrize("predictor_norm, rows", [(True, 8), (False, 6)])
def test_the_loss_and_its_gradient_are_the_official_ones(predictor_norm, rows):
    objective = moco(predictor_norm=predictor_norm, temperature=0.3)
    batch = BATCH(0) if rows == 8 else tiny.masked(0)
    params = tiny.params(objective)
    extra = compiled(objective.init_extra, params, jax.random.key(0))
    teacher = extra["teacher"]["params"] = jax.tree.map(lambda x: 0.7 * x + 0.05, extra["teacher"]["params"])
    draw = np.random.default_rng(1)
    pooled = {name: draw.normal(size=(8, 2, 16)).astype(np.float32) for name in ("online", "teacher")}

    value = lambda z: objective.full_batch_loss(params, extra, z, batch, CTX).value()
    got, slopes = jax.jit(jax.value_and_grad(value))(pooled)
    np.testing.assert_array_equal(slopes["teacher"], 0)

    def by_loops(online):
        q, k = [], []
        for view in (0, 1):
            z = head(params["projector"], np.float64(online[:, view]), 3)
            q.append(unit(head(params["predictor"], z, 2, predictor_norm))[:rows])
            k.append(unit(head(teacher["projector"], np.float64(pooled["teacher"][:, view]), 3))[:rows])
        return contrastive_loss(q[0], k[1], 0.3) + contrastive_loss(q[1], k[0], 0.3)

    np.testing.assert_allclose(got, by_loops(pooled["online"]), rtol=1e-4)
    for at in ((0, 0, 3), (2, 1, 7), (5, 0, 0)):
        nudge = np.zeros((8, 2, 16))
        nudge[at] = 1e-4
        step = (by_loops(pooled["online"] + nudge) - by_loops(pooled["online"] - nudge)) / 2e-4
        np.testing.assert_allclose(slopes["online"][at], step, rtol=2e-3, atol=1e-4)


def test_either_view_is_asked_for_the_other_of_the_teacher():
    objective, batch = moco(), BATCH(0)
    params = tiny.params(objective)
    extra = compiled(objective.init_extra, params, jax.random.key(0))
    teacher = jax.tree.map(lambda x: 0.7 * x + 0.05, extra["teacher"]["params"])  # at the start it is the student
    extra["teacher"]["params"] = teacher
    seen, _ = compiled(objective.encode, params, extra, batch, CTX)
    for name, tree in (("online", params), ("teacher", teacher)):
        for i, view in enumerate(compiled(objective.augment_views, batch, CTX)):
            wanted, _ = compiled(objective.features, {"params": tree}, view)
            np.testing.assert_allclose(seen[name][:, i], wanted, atol=1e-5)
    assert np.abs(seen["teacher"] - seen["online"]).max() > 0.1


def test_the_frozen_patch_projection_stays_as_it_was_drawn():
    """As the paper's runs have it: no gradient and no decay, of the teacher either; all else is trained."""
    runs = ("smoke/moco_v3", "small/moco_v3", "moco_v3_vitb_imagenet")
    assert {registry.parse([f"runs/{name}.gin"]).freeze for name in runs} == {FREEZE}
    objective, optimizer = moco(), AdamW(1e-2, weight_decay=0.1)
    start = jax.jit(lambda: init_state(objective, optimizer, 0, freeze=FREEZE))()
    patches = {"encoder/embed/kernel", "encoder/embed/bias"}
    assert {name for name, _ in trees.named_leaves(start.frozen)} == patches
    assert not any(name.endswith(tuple(patches)) for name, _ in trees.named_leaves(start.opt_state))
    state, _ = contract.run(objective, optimizer, BATCH, 0, 2, start)
    contract.assert_trees_equal(state.frozen, start.frozen)
    teachers = [s.extra["teacher"]["params"]["encoder"]["embed"]["kernel"] for s in (start, state)]
    np.testing.assert_allclose(*teachers, rtol=1e-6)
    for (name, new), old in zip(trees.named_leaves(state.params), jax.tree.leaves(start.params)):
        assert np.any(new != old), name


def test_the_others_have_the_gradient_that_they_had():
    objective = moco()
    _, _, whole = contract.gradients(objective, BATCH, "main")
    assert np.any(whole["encoder"]["embed"]["kernel"]), "it would be trained if it were not frozen"
    frozen = jax.jit(lambda: init_state(objective, contract.UnitStep(), 0, freeze=FREEZE))()
    state, _ = contract.run(objective, contract.UnitStep(), BATCH, 0, 1, frozen)
    del whole["encoder"]["embed"]
    assert jax.tree.structure(state.opt_state) == jax.tree.structure(whole)
    contract.assert_trees_close(state.opt_state, whole, 1e-5)


def test_the_teacher_follows_the_new_weights_by_the_schedule():
    momentum = Cosine(peak=0.5, final=1.0, total_steps=4)
    objective = moco(momentum=momentum)
    state = jax.jit(lambda: init_state(objective, AdamW(1e-2), 0))()
    step = jax.jit(make_train_step(objective, AdamW(1e-2)))
    for i in range(3):
        before = jax.device_get(state)
        state, _ = step(state, BATCH(i))
        # Official: m of step t + 1 = 1 - 0.5 (1 + cos(pi (t + 1) / total)) (1 - 0.5), before the keys of that step.
        m = 1 - 0.5 * (1 + np.cos(np.pi * (i + 1) / 4)) * 0.5
        follow = lambda old, new: m * old + (1 - m) * new
        wanted = {name: jax.tree.map(follow, before.extra["teacher"]["params"][name], state.params[name])
                  for name in ("encoder", "projector")}  # fmt: skip
        contract.assert_trees_close(state.extra["teacher"]["params"], wanted, 1e-5)
    assert set(state.extra["teacher"]["params"]) == {"encoder", "projector"}


def test_running_statistics_of_student_and_teacher():
    objective = moco(encoder=tiny.small_resnet(), momentum=0.0)
    state, _ = contract.run(objective, AdamW(0.0), BATCH, 0, 1)
    a, b = compiled(objective.augment_views, BATCH(0), CTX)
    variables = {"params": state.params["encoder"], "batch_stats": state.extra["batch_stats"]["encoder"]}
    moments = [
        compiled(objective.encoder.apply, variables, x, train=True, mutable=["moments"])[1]["moments"] for x in (a, b)
    ]
    wanted = 0.1 * sum(m["stem"]["norm"]["mean"] for m in moments) / 2
    student, teacher = state.extra["batch_stats"], state.extra["teacher"]
    for stats in (student, teacher["batch_stats"]):
        np.testing.assert_allclose(stats["encoder"]["stem"]["norm"]["mean"], wanted, rtol=1e-4, atol=1e-6)
    assert set(student) == {"encoder", "projector", "predictor"}
    assert set(teacher["batch_stats"]) == {"encoder", "projector"}
    assert objective.variables(state.params, state.extra, "teacher") is teacher


def test_what_a_person_can_set_wrong():
    with pytest.raises(UserError, match="MoCoV3.temperature=0 must be positive"):
        moco(temperature=0)
    with pytest.raises(UserError, match="couples the examples of a batch"):
        tiny.traced(moco(encoder=tiny.small_resnet()), AdamW(0.1), microbatches=2)
