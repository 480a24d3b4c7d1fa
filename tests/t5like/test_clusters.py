"""Cluster-based random token substitution: the draws, the counts that steer them, and the loss on what was drawn."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradigm.errors import UserError
from t5like.clusters import Clusters
from tests.compiled import compiled
from tests.t5like.test_masked_lm import FRAMED, VOCAB, make_batch
from tests.t5like.test_masked_next_token import DETECTS, EVALUATION, slow_detection

OF = tuple(0 if i < 5 else (0, 0, 0, 1, 2)[i % 5] for i in range(VOCAB))  # sizes 33, 11, 11
OBJECTIVE = dataclasses.replace(DETECTS, clusters=OF, beta=3.0)
COUNTS = jnp.array([[1, 7, 3], [4, 4, 4], [-5, 0, 5]], jnp.int32)


def test_fakes_are_drawn_from_the_clusters_that_are_missed_most():
    clusters, n = Clusters(FRAMED, OF), 4000
    draw = jax.jit(lambda *args: clusters.draw(*args, 3.0))
    for token, scaled in ((5, (0, 1, 1 / 3)), (8, (0, 0, 0)), (9, (0, 0.5, 1))):
        targets = jnp.full((n, 1), token, jnp.int32)
        fakes = np.asarray(draw(COUNTS, targets, jax.random.split(jax.random.key(token), n))).ravel()
        assert fakes.min() >= 5 and fakes.max() < VOCAB  # no id but text
        p = np.exp(3.0 * np.array(scaled))
        p /= p.sum()
        for cluster, size in enumerate((33, 11, 11)):
            members = [i for i in range(5, VOCAB) if OF[i] == cluster]
            assert len(members) == size
            shares = np.bincount(fakes, minlength=VOCAB)[members] / n
            assert abs(shares.sum() - p[cluster]) < 5 * np.sqrt(p[cluster] / n)
            assert (np.abs(shares - p[cluster] / size) < 5 * np.sqrt(p[cluster] / size / n) + 1e-3).all()


def test_the_loss_is_of_what_was_drawn_and_the_counts_follow_what_was_missed():
    batch, extra = make_batch(OBJECTIVE), {"counts": COUNTS}
    params = jax.jit(OBJECTIVE.init)(jax.random.key(0))
    run = lambda p: (lambda loss: (loss.value(), loss))(OBJECTIVE.loss(p, extra, batch, EVALUATION))
    (value, loss), grads = jax.jit(jax.value_and_grad(run, has_aux=True))(params)
    fakes, read = np.asarray(loss.rows["fakes"]), np.array(batch["encoder_inputs"])
    for b, p in np.argwhere(np.asarray(batch["weights"]) > 0):
        read[b, batch["positions"][b, p]] = fakes[b, p]
    drawn = {**batch, "encoder_inputs": jnp.array(read)}
    expected, slow = jax.value_and_grad(slow_detection)(params, drawn)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-5, rtol=1e-3), grads, slow)

    counts = np.array(COUNTS)
    variables, seen = {"params": params}, (drawn["encoder_inputs"], None, batch["encoder_segments"])
    hidden, _, _ = compiled(OBJECTIVE.apply, "model", variables, *seen, method="hidden")
    logits = compiled(OBJECTIVE.apply, "detector", variables, hidden)[0][..., 0]
    for b in range(3):  # the fourth row is padding of the batch
        for p in np.flatnonzero(batch["weights"][b]):
            target, fake = int(batch["targets"][b, p]), int(fakes[b, p])
            if fake != target:
                counts[OF[target], OF[fake]] += 1 if logits[b, batch["positions"][b, p]] <= 0 else -1
    found = OBJECTIVE.update_extra(extra, params, loss, EVALUATION)["counts"]
    np.testing.assert_array_equal(found, counts)
    assert (counts != np.asarray(COUNTS)).any()
    np.testing.assert_array_equal(OBJECTIVE.init_extra(params, jax.random.key(0))["counts"], np.ones((3, 3)))


def test_a_number_of_clusters_is_so_many_ranges_of_ids():
    clusters = Clusters(FRAMED, 11)
    assert clusters.count == 11 and set(np.bincount(clusters.of[5:])) == {5}
    assert (np.diff(clusters.of[5:]) >= 0).all()


@pytest.mark.parametrize(
    "clusters, text",
    [
        (1, "clusters=1: 55 tokens fall into 2 clusters or more, and at most 55"),
        (56, "clusters=56: 55 tokens"),
        ((0, 1), "clusters: 2 ids have one, and the vocabulary has 60 ids"),
        ((*[0] * 59, 2), "no token that spells text is of cluster 1"),
    ],
)
def test_bad_clusters(clusters, text):
    with pytest.raises(UserError, match=text):
        dataclasses.replace(DETECTS, clusters=clusters)
