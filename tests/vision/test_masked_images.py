"""Masks, HOG, SimMIM and MaskFeat: what every objective passes, and each loss by loops over patches."""

import functools
import math

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
from vision.hog import hog
from vision.masking import block_mask, grid_mask, random_mask
from vision.objectives import MAE, MaskFeat, SimMIM

BATCH = tiny.batch_of()


def simmim(**changes):
    fields = {"encoder": tiny.encoder(mask_token=True, grid_bias="shared", positions="none")}
    fields |= {"augment": tiny.views(), "host_image_size": tiny.HOST_SIZE}
    return SimMIM(**fields | changes)


def maskfeat(**changes):
    fields = {"encoder": tiny.encoder(mask_token=True, drop_path=0.3), "augment": tiny.views()}
    fields |= {"host_image_size": tiny.HOST_SIZE, "cell": 2, "window": 4, "block_smallest": 2}
    return MaskFeat(**fields | changes)


def noise(step):
    """Pictures without edges along the axes: these have HOG's angles right between two bins, as rounding has it."""
    batch = tiny.masked(step)
    batch["image"] = np.random.default_rng(step).integers(0, 256, batch["image"].shape).astype(np.uint8)
    return batch


CASES = {
    "simmim": contract.Case(simmim(), BATCH, "patches", noise),
    "maskfeat": contract.Case(maskfeat(), BATCH, "patches", noise),
}
globals().update(contract.tests(CASES))


# ---- Masks -----------------------------------------------------------------------------------------------------------


@functools.cache
def drawn(how, grid, count, n=400, **settings):
    keys = rng.per_example(rng.key(0, "mask"), np.stack([np.zeros(n), np.arange(n)], 1).astype(np.uint32))
    draw = {"random": random_mask, "block": block_mask, "grid": grid_mask}[how]
    return np.asarray(jax.jit(jax.vmap(lambda key: draw(key, grid, count, **settings)))(keys)).reshape(n, *grid)


def test_random_masks_are_whole_squares_anywhere():
    masks = drawn("random", (6, 4), 3, unit=2)
    assert (masks.sum((1, 2)) == 12).all()
    squares = masks.reshape(-1, 3, 2, 2, 2).transpose(0, 1, 3, 2, 4).reshape(-1, 6, 4)
    assert (squares.all(-1) == squares.any(-1)).all()
    assert np.abs(squares.all(-1).sum(0) - 200).max() < 5 * math.sqrt(100)


def test_blocks_are_beits():
    """Never more than asked for, mostly about as many; neighbours are hidden together; everywhere."""
    masks = drawn("block", (14, 14), 75)
    counts = masks.sum((1, 2))
    assert counts.max() <= 75 and counts.mean() > 70
    together = (masks[:, 1:] & masks[:, :-1]).sum() / masks[:, 1:].sum()
    assert together > 0.75  # of patches hidden one by one it would be 0.38
    assert masks.any(0).all()
    single = drawn("block", (14, 14), 75, smallest=70, largest=75, aspect=0.999)
    rows, columns = (single.any(axis).sum(1) for axis in (2, 1))
    assert set(rows[single.sum((1, 2)) == 64]) == {8} == set(columns[single.sum((1, 2)) == 64])


def test_grids_leave_one_of_four():
    masks = drawn("grid", (4, 6), None)
    blocks = (~masks).reshape(-1, 2, 2, 3, 2).transpose(0, 1, 3, 2, 4).reshape(-1, 6, 4)
    assert (blocks.sum(2) == 1).all() and (blocks == blocks[:, :1]).all()
    assert np.abs(blocks[:, 0].sum(0) - 100).max() < 45


@pytest.mark.parametrize("masking", ["block", "grid"])
def test_mae_hides_blocks_and_grids(masking):
    objective = MAE(
        encoder=tiny.encoder().clone(image_size=32), augment=Augment(32), masking=masking, block_smallest=4,
        decoder_width=16,
        mask_ratio=0.75 if masking == "grid" else 0.5,
    )  # fmt: skip
    shuffled = np.asarray(compiled(objective.shuffle, jax.random.split(jax.random.key(0), 64)))
    assert (np.sort(shuffled) == np.arange(64)).all()
    hidden = np.ones((64, 64), bool)
    np.put_along_axis(hidden, shuffled[:, : objective.kept], False, 1)
    hidden = hidden.reshape(64, 8, 8)
    if masking == "grid":
        assert ((~hidden).reshape(64, 4, 2, 4, 2).sum((2, 4)) == 1).all()
    else:
        assert (hidden.sum((1, 2)) == 32).all() and (hidden[:, 1:] & hidden[:, :-1]).sum() / hidden[:, 1:].sum() > 0.65


# ---- Losses ----------------------------------------------------------------------------------------------------------


def slow_hog(image, cell, bins, window):
    """The official HOGLayerC for one channel [H, W], pixel by pixel."""
    n = len(image)
    x = np.pad(np.float64(image), 1, mode="reflect")
    weights = np.exp(-0.5 * ((np.arange(window) - (window - 1) / 2) / (window // 2)) ** 2)
    total = np.outer(weights, weights).sum()
    out = np.zeros((n // cell, n // cell, bins))
    for r in range(n):
        for c in range(n):
            p = x[r : r + 3, c : c + 3]
            gx = (p[:, 0] - p[:, 2]) @ [1, 2, 1]
            gy = (p[0] - p[2]) @ [1, 2, 1]
            bin = math.floor(math.atan2(gx, gy) / math.pi * bins) % bins
            out[r // cell, c // cell, bin] += math.hypot(gx, gy) * weights[r % window] * weights[c % window] / total
    return out / np.maximum(np.linalg.norm(out, axis=-1, keepdims=True), 1e-12)


def test_hog_is_the_official_layers():
    image = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
    found = np.asarray(hog(jnp.asarray(image), 4, 9, 8))
    assert found.shape == (2, 4, 4, 3, 9)
    for b in range(2):
        for c in range(3):
            np.testing.assert_allclose(found[b, :, :, c], slow_hog(image[b, :, :, c], 4, 9, 8), atol=1e-5)


def targets_of(objective, image):
    """[N, outputs] of one picture, by loops."""
    patches = []
    for r in range(4):
        for c in range(4):
            patch = image[4 * r : 4 * r + 4, 4 * c : 4 * c + 4]
            if isinstance(objective, MaskFeat):
                cells = np.stack([slow_hog(image[..., k], 2, 9, 4) for k in range(3)], 2)  # [8, 8, 3, 9]
                patch = cells[2 * r : 2 * r + 2, 2 * c : 2 * c + 2]
            patches.append(patch.reshape(-1))
    return np.float64(patches)


@pytest.mark.parametrize("make", [simmim, maskfeat])
def test_loss_is_the_papers(make):
    objective, batch = make(), tiny.masked(3)
    # Where a picture is flat, the direction of its gradient is rounding.
    batch["image"] = np.random.default_rng(4).integers(0, 256, batch["image"].shape, np.uint8)
    params = tiny.params(objective)
    ctx = Context(jnp.int32(0), 0, False)
    term = jax.jit(lambda p: objective.loss(p, {}, batch, ctx))(params).terms["patches"]
    images, mask = (
        compiled(objective.view, batch),
        np.asarray(compiled(objective.mask, ctx.keys("mask", batch["index"]))),
    )
    _, seen, _ = compiled(objective.apply, "encoder", {"params": params}, images, mask=jnp.asarray(mask))
    head = params["decoder"]["predict"]
    predicted = np.float64(seen["patches"]) @ np.float64(head["kernel"]) + np.float64(head["bias"])
    total = count = 0
    for b in range(6):
        target = targets_of(objective, np.asarray(images)[b])
        for n in np.flatnonzero(mask[b]):
            difference = predicted[b, n] - target[n]
            total += np.mean(difference**2 if make is maskfeat else np.abs(difference))
            count += 1
    np.testing.assert_allclose([term.sum, term.weight], [total, count], rtol=2e-4)


def test_hidden_pixels_are_not_seen():
    objective = simmim()
    params, images = tiny.params(objective), jax.random.normal(jax.random.key(3), (2, 16, 16, 3))
    mask = compiled(objective.mask, jax.random.split(jax.random.key(2), 2))
    slope = jax.jit(jax.grad(lambda x: jnp.sum(objective.predict({"params": params}, x, mask)[0] ** 2)))(images)
    moved = np.abs(slope).reshape(2, 4, 4, 4, 4, 3).max((2, 4, 5)).reshape(2, 16) > 0
    np.testing.assert_array_equal(moved, ~np.asarray(mask))


def test_reconstruct_shows_what_is_hidden():
    objective = simmim()
    images, keys = jax.random.normal(jax.random.key(3), (2, 16, 16, 3)), jax.random.split(jax.random.key(2), 2)
    shown = jax.jit(objective.reconstruct)({"params": tiny.params(objective)}, images, keys)
    hidden = np.asarray(shown["masked"] == 0).all(-1)
    assert hidden.mean() == 0.75  # 3 of 4 squares: 60 % rounded up
    np.testing.assert_array_equal(np.asarray(shown["reconstructed"])[~hidden], np.asarray(images)[~hidden])
    assert np.abs(np.asarray(shown["reconstructed"] - images))[hidden].min() > 0


def test_mistakes():
    with pytest.raises(UserError, match="SimMIM hides patches behind a mask token: set the encoder's mask_token=True"):
        simmim(encoder=tiny.encoder())
    with pytest.raises(UserError, match="SimMIM.mask_unit=3 does not divide a grid of 4 x 4"):
        simmim(mask_unit=3)
    with pytest.raises(UserError, match="SimMIM.mask_ratio=1.0 hides 16 of 16 patches: choose it so that at least one"):
        simmim(mask_ratio=1.0)
    with pytest.raises(UserError, match="MaskFeat.cell=3 does not divide a patch of 4"):
        maskfeat(cell=3)
    with pytest.raises(UserError, match="MaskFeat.window=5 does not divide an image_size of 16"):
        maskfeat(window=5)
    with pytest.raises(UserError, match="MaskFeat.block_smallest=16, and 6 patches are hidden: choose at most as many"):
        maskfeat(block_smallest=16)
    with pytest.raises(UserError, match="SimMIM: ResNet has no patches to hide: take a ViT as encoder"):
        simmim(encoder=tiny.small_resnet())
