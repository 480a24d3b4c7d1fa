"""Masked autoencoding: what every objective passes, the paper's loss written as loops, and what may be seen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradigm import rng
from paradigm.errors import UserError
from paradigm.objective import Context
from tests import contract
from tests.compiled import compiled
from tests.vision import tiny
from vision.augment import Augment
from vision.objectives import MAE

BATCH = tiny.batch_of()


def mae(**changes):
    fields = {"encoder": tiny.encoder(), "augment": tiny.views(), "host_image_size": tiny.HOST_SIZE}
    return MAE(**fields | {"decoder_width": 16, "decoder_layers": 1, "decoder_heads": 2} | changes)


def masked(step):
    batch = BATCH(step)
    batch["mask"][5:] = 0
    return batch


CASES = {"mae": contract.Case(mae(), BATCH, "patches", masked)}
globals().update(contract.tests(CASES))


def reference(images, ids_shuffle, kept, predicted, norm):
    """forward_loss of the official code for one image, by loops; `predicted` are the patches ids_shuffle[kept:]."""
    total, side = 0.0, images.shape[0] // 4
    for guess, place in zip(predicted, ids_shuffle[kept:]):
        row, column = divmod(int(place), side)
        patch = np.float64(images[4 * row : 4 * row + 4, 4 * column : 4 * column + 4]).reshape(-1)
        if norm:
            patch = (patch - patch.mean()) / np.sqrt(patch.var(ddof=1) + 1e-6)
        total += np.mean((np.float64(guess) - patch) ** 2)
    return total / len(predicted)


@pytest.mark.parametrize("norm", [True, False])
def test_loss_is_the_papers(norm):
    objective, batch = mae(norm_pixels=norm), masked(3)
    params = tiny.params(objective)
    ctx = Context(jnp.int32(0), 0, False)
    loss = compiled(objective.loss, params, {}, batch, ctx)
    images = np.asarray(compiled(objective.view, batch))
    ids_shuffle = compiled(objective.shuffle, ctx.keys("mask", batch["index"]))
    predicted = compiled(objective.predict, {"params": params}, images, ids_shuffle)
    each = [reference(x, p, objective.kept, g, norm) for x, p, g in zip(images, np.asarray(ids_shuffle), predicted)]
    term = loss.terms["pixels"]
    np.testing.assert_allclose(term.sum, np.sum(each[:5]), rtol=1e-5)
    assert term.weight == 5


def test_only_kept_patches_are_seen():
    """The gradient of what is predicted is zero at every pixel of a masked patch, and at no kept patch."""
    objective = mae()
    params = tiny.params(objective)
    ids_shuffle = compiled(objective.shuffle, jax.random.split(jax.random.key(2), 2))
    images = jax.random.normal(jax.random.key(3), (2, 16, 16, 3))
    total = lambda x: jnp.sum(jnp.square(objective.predict({"params": params}, x, ids_shuffle)))
    slope = jax.jit(jax.grad(total))(images)
    for i in range(2):
        moved = {
            int(p): np.abs(slope[i, 4 * (p // 4) : 4 * (p // 4) + 4, 4 * (p % 4) : 4 * (p % 4) + 4]).max()
            for p in ids_shuffle[i]
        }
        kept = set(map(int, ids_shuffle[i, : objective.kept]))
        assert len(kept) == 4 and all((moved[p] > 0) == (p in kept) for p in moved)


def test_masks_are_by_example_and_uniform():
    objective = mae()
    index = np.stack([np.zeros(4000), np.arange(4000)], 1).astype(np.uint32)
    ids_shuffle = np.asarray(objective.shuffle(rng.per_example(rng.key(0, "mask"), index)))
    assert (np.sort(ids_shuffle) == np.arange(16)).all()
    kept = np.bincount(ids_shuffle[:, :4].reshape(-1), minlength=16)
    assert np.abs(kept - 1000).max() < 5 * np.sqrt(1000 * 0.75)
    again = objective.shuffle(rng.per_example(rng.key(0, "mask"), index[17:18]))
    np.testing.assert_array_equal(again[0], ids_shuffle[17])


def test_reconstruct_undoes_the_normalisation():
    """Kept patches come back as they are; a perfect prediction of the normalised pixels would give the picture."""
    objective = mae()
    params = tiny.params(objective)
    images, keys = jax.random.normal(jax.random.key(3), (2, 16, 16, 3)), jax.random.split(jax.random.key(2), 2)
    ids_shuffle = compiled(objective.shuffle, keys)
    target, _, _ = objective.target(images, ids_shuffle)
    perfect = type("Perfect", (MAE,), {"predict": lambda self, variables, images, ids: target})(**vars(objective))
    np.testing.assert_allclose(compiled(perfect.reconstruct, {}, images, keys)["reconstructed"], images, atol=1e-5)
    shown = compiled(objective.reconstruct, {"params": params}, images, keys)
    hidden = np.asarray(shown["masked"] == 0).all(-1)
    np.testing.assert_array_equal(np.asarray(shown["reconstructed"])[~hidden], np.asarray(images)[~hidden])
    assert hidden.mean() == 0.75


def test_flops_are_those_of_the_visible():
    """Forward and backward products of the compiled unrolled step, within what they leave out (norms, softmax)."""
    objective = mae(encoder=tiny.encoder(scan=False, d_model=64, d_ff=256), decoder_width=64)
    spec = objective.batch_spec(8)
    batch, params = BATCH(0), tiny.params(objective)
    value = lambda p: objective.loss(p, {}, batch, Context(jnp.int32(0), 0, False)).value()
    counted = jax.jit(jax.grad(value)).lower(params).compile().cost_analysis()["flops"]
    assert objective.flops(spec) == pytest.approx(counted, rel=0.2)


def test_impossible_ratios_and_sizes():
    for ratio, kept in ((0.97, 0), (0.0, 16)):
        with pytest.raises(UserError, match=f"MAE.mask_ratio={ratio} keeps {kept} of 16 patches: choose it so that"):
            mae(mask_ratio=ratio)
    with pytest.raises(UserError, match="MAE: an image of 18 x 18 does not divide .* an image_size such as 16"):
        mae(augment=Augment(18), encoder=tiny.encoder().clone(image_size=18))
    with pytest.raises(UserError, match="MAE: a crop of 16 pixels is larger than the pictures of 12: make the crop"):
        mae(host_image_size=12).batch_spec(8)
    with pytest.raises(UserError, match="MAE: views of 8 pixels, but the encoder reads 16"):
        mae(augment=Augment(8))
