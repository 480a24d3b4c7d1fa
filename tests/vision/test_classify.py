"""Supervised classification: what every objective passes, the loss by loops, and labels that are not there."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradigm import trees
from paradigm.attentive import Attentive
from paradigm.errors import UserError
from paradigm.objective import Context
from paradigm.optim import SGD
from paradigm.step import init_state, make_train_step
from tests import contract
from tests.compiled import compiled
from tests.vision import tiny
from vision.objectives import MAE, Classify
from vision.resnet import resnet

BATCH = tiny.batch_of()
VIT = Classify(
    encoder=tiny.encoder(dropout=0.1), augment=tiny.views(), host_image_size=tiny.HOST_SIZE, classes=3, smoothing=0.1
)
ATTENTIVE = dataclasses.replace(VIT, pool=Attentive(2))
RESNET = dataclasses.replace(VIT, encoder=resnet("tiny", width=0.125, channels=3))


def unlabelled(step):
    """Of the batch after this one, the last rows masked and one row without a label."""
    batch = BATCH(step + 1)
    batch["mask"][6:] = 0
    batch["label"][2] = -1
    return batch


CASES = {
    "resnet": contract.Case(RESNET, BATCH, "BatchNorm", unlabelled, microbatches=1, parts=()),
    "vit": contract.Case(VIT, BATCH, "patches", unlabelled, microbatches=1),
    "attentive": contract.Case(ATTENTIVE, BATCH, "patches", unlabelled, microbatches=1, variant=True),
}
globals().update(contract.tests(CASES))


def test_batch_norm_takes_no_microbatches():
    with pytest.raises(UserError, match="couples the examples of a batch"):
        tiny.traced(RESNET, SGD(1e-2), microbatches=2)


def test_loss_by_loops():
    batch = unlabelled(3)
    params = tiny.params(VIT)
    loss = compiled(VIT.loss, params, {}, batch, Context(jnp.int32(0), 0, False))
    logits = np.asarray(compiled(VIT.logits, {"params": params}, compiled(VIT.view, batch)), np.float64)
    total = right = count = 0
    for row, label, mask in zip(logits, batch["label"], batch["mask"]):
        if mask and label >= 0:
            p = np.exp(row) / np.exp(row).sum()
            wanted = np.full(3, 0.1 / 3)
            wanted[label] += 0.9
            total -= np.sum(wanted * np.log(p))
            right, count = right + (np.argmax(row) == label), count + 1
    np.testing.assert_allclose(loss.terms["labels"].sum, total, rtol=1e-5)
    assert count == loss.terms["labels"].weight == 5
    assert loss.metrics["accuracy"][0] == right


def test_an_attentive_pool_reads_every_patch_and_no_class_token():
    params = tiny.params(ATTENTIVE)
    pooled, seen = np.ones((2, 16)), {"patches": np.random.default_rng(0).normal(size=(2, 4, 16))}

    def right(pooled, patches):
        scores = compiled(ATTENTIVE.scores, {"params": params}, pooled, {"patches": patches})
        return jnp.sum(scores**2)

    of_pooled, of_patches = jax.grad(right, (0, 1))(pooled, seen["patches"])
    assert not np.any(of_pooled) and (np.abs(of_patches).max(-1) > 0).all()
    assert {name for name in params} == {"encoder", "pool", "classifier"} == {*ATTENTIVE.heads, "encoder"}
    with pytest.raises(UserError, match="Classify.pool reads patches, and a ResNet has none: take a ViT"):
        dataclasses.replace(RESNET, pool=Attentive())


def test_running_statistics_follow_the_batch():
    step = jax.jit(make_train_step(RESNET, SGD(0.0)))
    start = jax.jit(lambda: init_state(RESNET, SGD(0.0), 0))()
    state, _ = step(start, BATCH(0))
    once, twice = (dict(trees.named_leaves(s.extra["batch_stats"])) for s in (state, step(state, BATCH(0))[0]))
    first = dict(trees.named_leaves(start.extra["batch_stats"]))
    for name in first:  # decay 0.9 towards the same moments
        np.testing.assert_allclose(twice[name] - once[name], 0.9 * (once[name] - first[name]), rtol=1e-3, atol=1e-6)


def test_the_encoder_of_an_mae():
    mae = MAE(
        encoder=VIT.encoder,
        augment=VIT.augment,
        host_image_size=tiny.HOST_SIZE,
        decoder_width=16,
        decoder_layers=1,
        decoder_heads=2,
    )
    params, report = trees.merge_partial(tiny.params(VIT), tiny.params(mae))
    contract.assert_trees_equal(params["encoder"], tiny.params(mae)["encoder"])
    assert {name.split("/")[0] for name in report.missing} == {"classifier"}
    assert {name.split("/")[0] for name in report.unexpected} == {"decoder"}
