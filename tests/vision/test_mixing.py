"""DeiT's regularisers: what mixing and erasing do to pictures and labels, on any mesh and however a batch is cut."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradigm.combine import Sum
from paradigm.errors import UserError
from paradigm.objective import Context
from tests import contract
from tests.compiled import compiled
from tests.vision import tiny
from vision.mixing import erase, mix, pair
from vision.objectives import Classify

DEIT = Classify(
    encoder=tiny.encoder(), augment=tiny.views(), host_image_size=tiny.HOST_SIZE, classes=3, smoothing=0.1,
    mixup=0.8, cutmix=1.0, erasing=0.25,
)  # fmt: skip


def unlabelled(step):
    batch = tiny.masked(step)
    batch["label"][2] = -1
    return batch


CASES = {"deit": contract.Case(DEIT, tiny.batch_of(), "rows that are mixed", unlabelled)}
globals().update(contract.tests(CASES))


def test_mixup_and_cutmix():
    keys = jax.random.split(jax.random.key(0), 400)
    x, other = jnp.ones((400, 8, 12, 1)), jnp.zeros((400, 8, 12, 1))
    up, share = map(np.asarray, jax.jit(lambda: mix(keys, x, other, 1.0, 0.0))())
    np.testing.assert_allclose(up.reshape(400, -1), np.repeat(share[:, None], 96, 1), rtol=1e-6)
    assert abs(share.mean() - 0.5) < 0.05 and abs(share.std() - 12**-0.5) < 0.03  # Beta(1, 1) is uniform
    cut, share = map(np.asarray, jax.jit(lambda: mix(keys, x, other, 0.0, 1.0))())
    assert set(np.unique(cut)) == {0, 1}
    np.testing.assert_allclose(cut.mean((1, 2, 3)), share, atol=1e-6)
    for picture in cut[:50, :, :, 0]:
        rows, columns = (picture == 0).any(1), (picture == 0).any(0)
        assert (picture == 0).sum() == rows.sum() * columns.sum()
    both, _ = jax.jit(lambda: mix(keys, x, other, 1.0, 1.0))()
    whole = np.isin(np.asarray(both), (0, 1)).all((1, 2, 3)).mean()
    assert 0.4 < whole < 0.6


def test_erasing():
    keys = jax.random.split(jax.random.key(0), 400)
    x = np.asarray(jax.jit(lambda: erase(keys, jnp.full((400, 16, 16, 2), 9.0), 0.25))())
    gone = (x != 9).all(-1)
    assert ((x != 9).any(-1) == gone).all()
    part = gone.mean((1, 2))
    assert 0.18 < (part > 0).mean() < 0.32 and part.max() <= 0.36 and part[part > 0].min() > 0.01


def test_the_loss_is_of_both_labels():
    """A row's picture and label are a mean of its own and of the row's that mirrors it; one without a label is left."""
    params, ctx, batch = tiny.params(DEIT), Context(jnp.int32(0), 0, True), unlabelled(3)
    batch |= {name: np.asarray(x) for name, x in pair({k: jnp.asarray(v) for k, v in batch.items()}).items()}
    np.testing.assert_array_equal(batch["partner_label"], batch["label"][::-1])
    loss = jax.jit(lambda p: DEIT.loss(p, {}, batch, ctx))(params)
    views = compiled(DEIT.random_view, {k: jnp.asarray(v) for k, v in batch.items()}, ctx)
    mixed, share = compiled(mix, ctx.keys("mix", batch["index"]), views, views[::-1], 0.8, 1.0)
    read = jax.jit(lambda x: DEIT.logits({"params": params}, x))
    total = 0
    for b in (0, 1, 3, 4, 5):
        partner = 7 - b
        good = partner < 6 and partner != 2
        picture, part = (mixed[b], float(share[b])) if good else (views[b], 1.0)
        logits = np.float64(read(picture[None])[0])
        logs = logits - np.log(np.exp(logits).sum())
        truth = np.full(3, 0.1 / 3)
        truth[batch["label"][b]] += 0.9 * part
        if good:
            truth[batch["label"][partner]] += 0.9 * (1 - part)
        total -= truth @ logs
    np.testing.assert_allclose([loss.terms["labels"].sum, loss.terms["labels"].weight], [total, 5], rtol=1e-4)


def test_a_combinator_pairs_its_parts():
    both = Sum(parts=(("one", DEIT), ("two", dataclasses.replace(DEIT, mixup=0.0, cutmix=0.0))))
    batch = unlabelled(0)
    shared = {k: batch[k] for k in ("index", "mask")}
    entries = {f"{name}/{k}": v for name in ("one", "two") for k, v in batch.items() if k not in shared} | shared
    found = both.paired({k: jnp.asarray(v) for k, v in entries.items()})
    assert set(found) == {f"one/partner_{k}" for k in ("image", "aspect", "label", "index", "mask")}


def test_mistakes():
    with pytest.raises(UserError, match="Classify.mixup and cutmix must be 0 or more, and erasing a probability"):
        dataclasses.replace(DEIT, erasing=1.5)
