"""BEiT, data2vec, I-JEPA and AIM: what every objective passes, each loss by loops over patches, who sees what."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradigm.errors import UserError
from paradigm.objective import Context
from tests import contract
from tests.compiled import compiled
from tests.vision import tiny
from vision.augment import Augment
from vision.masked_views import beit_views
from vision.objectives import AIM, IJEPA, VQ, BEiT, Data2Vec
from vision.patches import patchify

BATCH = tiny.batch_of()
HOST = {"augment": tiny.views(), "host_image_size": tiny.HOST_SIZE}


def tokenizer(**changes):
    fields = {"encoder": tiny.encoder(d_model=8).clone(image_size=8, patch=2), "augment": Augment(8)}
    sizes = {"codes": 8, "code_width": 4, "decoder_width": 16, "decoder_layers": 1, "decoder_heads": 2}
    return VQ(**fields | sizes | {"host_image_size": tiny.HOST_SIZE} | changes)


def beit(**changes):
    encoder = tiny.encoder(mask_token=True, grid_bias="shared", positions="none", layer_scale=0.1, drop_path=0.2)
    fields = {"encoder": encoder, "tokenizer": tokenizer(), "augment": beit_views(16, 8), "block_smallest": 2}
    return BEiT(**HOST | fields | changes)


def beit_v2(**changes):
    return beit(aggregate_from=1, aggregate_layers=1, **changes)


def data2vec(**changes):
    fields = {"encoder": tiny.encoder(mask_token=True), "top": 2, "block_smallest": 2, "momentum": 0.9, "beta": 0.5}
    return Data2Vec(**HOST | fields | changes)


PATCHES = {"class_token": False, "pool": "mean"}


def i_jepa(**changes):
    fields = {"encoder": tiny.encoder(**PATCHES), "momentum": 0.9, "beta": 0.5}
    fields |= {"predictor_width": 16, "predictor_layers": 1, "predictor_heads": 2}
    return IJEPA(**HOST | fields | changes)


def aim(**changes):
    return AIM(**HOST | {"encoder": tiny.encoder(**PATCHES), "head_width": 16, "head_layers": 2} | changes)


CASES = {
    "beit": contract.Case(beit(), BATCH, "frozen module", tiny.masked),
    "beit_v2": contract.Case(beit_v2(), BATCH, "frozen module", tiny.masked),
    "data2vec": contract.Case(data2vec(), BATCH, "teacher", tiny.masked),
    "i_jepa": contract.Case(i_jepa(), BATCH, "teacher", tiny.masked),
    "aim": contract.Case(aim(), BATCH, "patches", tiny.masked),
}
globals().update(contract.tests(CASES))


def start(objective, teacher=False):
    """(params, extra), the teacher another network than the encoder."""
    params = tiny.params(objective)
    extra = jax.jit(objective.init_extra)(params, jax.random.key(2))
    if teacher:
        other = jax.jit(objective.init)(jax.random.key(9))
        extra["teacher"] = {"params": {"encoder": other["encoder"]}}
    return params, extra


CTX = Context(jnp.int32(0), 0, False)


def loss_of(objective, params, extra, batch):
    return jax.jit(lambda p, e: objective.loss(p, e, batch, CTX))(params, extra)


def smooth(x, beta):
    return 0.5 * x * x / beta if abs(x) <= beta else abs(x) - beta / 2


def normed(x):
    x = np.float64(x)
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)


@contract.one_by_one("make", [beit, beit_v2])
def test_beits_loss_is_the_papers(make):
    objective, batch = make(), tiny.masked(3)
    params, extra = start(objective)
    loss = loss_of(objective, params, extra, batch)
    big, small = compiled(objective.draw, batch, CTX)
    assert big.shape[1] == 16 and small.shape[1] == 8
    mask = np.asarray(compiled(objective.mask, CTX.keys("mask", batch["index"])))
    ids = compiled(objective.apply, "tokenizer", objective.variables(params, extra), small)[0]
    _, seen, _ = compiled(objective.apply, "encoder", {"params": params}, big, mask=jnp.asarray(mask))
    head = jax.tree.map(np.float64, params["decoder"]["predict"])
    outputs = {"tokens": seen["patches"]}
    if make is beit_v2:
        early, last = seen["layers"][0][:, 1:], seen["layers"][1][:, 0]
        outputs["aggregated"] = compiled(objective.apply, "aggregator", {"params": params}, last, early)[0]
    assert set(outputs) == set(loss.terms)
    for name, x in outputs.items():
        total = count = right = 0
        for b in range(6):
            for n in np.flatnonzero(mask[b]):
                logits = np.float64(x[b, n]) @ head["kernel"] + head["bias"]
                total += np.log(np.exp(logits).sum()) - logits[int(ids[b, n])]
                right += logits.argmax() == int(ids[b, n])
                count += 1
        np.testing.assert_allclose([loss.terms[name].sum, loss.terms[name].weight], [total, count], rtol=1e-4)
        if name == "tokens":
            np.testing.assert_allclose(loss.metrics["accuracy"], [right, count])


def test_the_tokenizer_has_no_gradient_and_its_view_is_the_same_crop():
    objective, batch = beit(), BATCH(0)
    params, extra = start(objective)
    ctx = Context(jnp.int32(0), 0, True)
    slope = jax.jit(jax.grad(lambda p: objective.loss(p, extra, batch, ctx).value()))(params)
    assert all(not np.any(x) for x in jax.tree.leaves(slope["tokenizer"]))
    assert np.any(slope["encoder"]["mask_token"])
    big, small = compiled(objective.draw, batch, ctx)
    half = np.asarray(big).reshape(8, 8, 2, 8, 2, 3).mean((2, 4))
    each = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(half, np.asarray(small))]
    assert min(each) > 0.9


def test_reconstruct_is_the_tokenizers_picture():
    objective = beit()
    params, extra = start(objective)
    images, keys = compiled(objective.view, BATCH(0)), jax.random.split(jax.random.key(2), 8)
    shown = jax.jit(objective.reconstruct)(objective.variables(params, extra), images, keys)
    hidden = np.asarray(shown["masked"] == 0).all(-1)
    assert 0 < hidden.mean() < 0.5 and shown["reconstructed"].shape == images.shape
    kd = beit(tokenizer=tokenizer(target=tiny.encoder().clone(image_size=8, patch=2)))
    assert set(compiled(kd.reconstruct, kd.variables(*start(kd)), images, keys)) == {"masked"}


def test_data2vecs_loss_is_the_papers():
    objective, batch = data2vec(), tiny.masked(3)
    params, extra = start(objective, teacher=True)
    term = loss_of(objective, params, extra, batch).terms["patches"]
    images, mask = (
        compiled(objective.view, batch),
        np.asarray(compiled(objective.mask, CTX.keys("mask", batch["index"]))),
    )
    layers = compiled(objective.apply, "encoder", extra["teacher"], images)[1]["layers"][:, :, 1:]
    target = normed((normed(layers[0]) + normed(layers[1])) / 2)
    _, seen, _ = compiled(objective.apply, "encoder", {"params": params}, images, mask=jnp.asarray(mask))
    head = params["decoder"]["predict"]
    found = np.float64(seen["patches"]) @ np.float64(head["kernel"]) + np.float64(head["bias"])
    hidden = [(b, n) for b in range(6) for n in np.flatnonzero(mask[b])]
    total = sum(np.mean([smooth(x, 0.5) for x in found[b, n] - target[b, n]]) for b, n in hidden)
    np.testing.assert_allclose([term.sum, term.weight], [total, len(hidden)], rtol=1e-4)


def test_i_jepas_loss_is_the_papers():
    """One block at a time, with no padding: the patches of the context and of the block alone."""
    objective, batch = i_jepa(), tiny.batch_of(4)(3)
    batch["mask"][3:] = 0
    params, extra = start(objective, teacher=True)
    term = loss_of(objective, params, extra, batch).terms["patches"]
    images = compiled(objective.view, batch)
    context, targets = map(np.asarray, compiled(objective.draw_blocks, CTX.keys("blocks", batch["index"])))
    whole = normed(compiled(objective.apply, "encoder", extra["teacher"], images)[1]["patches"])
    variables, total, count = {"params": params}, 0, 0
    real = lambda x: jnp.ones(x.shape, bool)

    @jax.jit
    def guesses(image, keep, places):
        seen = objective.apply("encoder", variables, image, keep=keep)[1]["patches"]
        return objective.apply("decoder", variables, seen, keep, real(keep), places, real(places))[0][0]

    for b in range(3):
        keep = np.flatnonzero(context[b])[None]
        for block in targets[b]:
            places = np.flatnonzero(block)[None]
            for guess, n in zip(np.float64(guesses(images[b : b + 1], keep, places)), places[0]):
                total += np.mean([smooth(x, 0.5) for x in guess - whole[b, n]])
                count += 1
    np.testing.assert_allclose([term.sum, term.weight], [total, count], rtol=1e-4)


def test_blocks_are_the_official_ones():
    objective = IJEPA(encoder=tiny.encoder(**PATCHES).clone(image_size=56), augment=Augment(56), predictor_width=16)
    context, targets = map(np.asarray, jax.jit(objective.draw_blocks)(jax.random.split(jax.random.key(0), 300)))
    assert not (context[:, None] & targets).any() and context.any(1).all() and targets.any(2).all()
    shapes = set()
    for mask in targets.reshape(-1, 14, 14):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert mask.sum() == height * width  # a rectangle
        shapes.add((int(height), int(width)))
    # int(196 s) and round(sqrt(area r)) at both ends: 29 of ratio 0.75, 39 of ratio 1.5.
    assert {(5, 6), (8, 5)} <= shapes and max(h * w for h, w in shapes) == objective.largest
    assert context.sum(1).max() <= objective.read == 169


def test_the_context_is_all_that_the_predictor_sees():
    objective = i_jepa()
    params, images = tiny.params(objective), jax.random.normal(jax.random.key(3), (2, 16, 16, 3))
    context, targets = compiled(objective.draw_blocks, jax.random.split(jax.random.key(1), 2))

    def total(x):
        found, _, wanted = compiled(objective.predict, {"params": params}, x, context, targets)
        return jnp.sum(jnp.square(found) * wanted[..., None])

    moved = np.abs(jax.jit(jax.grad(total))(images)).reshape(2, 4, 4, 4, 4, 3).max((2, 4, 5)).reshape(2, 16) > 0
    np.testing.assert_array_equal(moved, context)


def test_aims_loss_is_the_papers():
    objective, batch = aim(), tiny.masked(3)
    params, _ = start(objective)
    term = loss_of(objective, params, {}, batch).terms["pixels"]
    images, prefix = (
        compiled(objective.view, batch),
        np.asarray(compiled(objective.prefixes, CTX.keys("prefix", batch["index"]))),
    )
    assert len(set(prefix)) > 2 and prefix.min() >= 1 and prefix.max() <= 15
    predicted = np.float64(compiled(objective.predict, {"params": params}, images, jnp.asarray(prefix)))
    pixels, total, count = np.float64(patchify(images, 4)), 0, 0
    for b in range(6):
        for k in range(prefix[b], 16):
            x = pixels[b, k]
            x = (x - x.mean()) / np.sqrt(x.var(ddof=1) + 1e-6)
            total += np.mean((predicted[b, k - 1] - x) ** 2)
            count += 1
    np.testing.assert_allclose([term.sum, term.weight], [total, count], rtol=1e-4)


def test_aim_sees_what_came_before():
    objective = aim(encoder=tiny.encoder(**PATCHES, layers=1))
    params, images = tiny.params(objective), jax.random.normal(jax.random.key(3), (2, 16, 16, 3))
    prefix = jnp.array([5, 1])
    along = lambda x: jnp.sum(objective.predict({"params": params}, x, prefix) @ jnp.arange(1.0, 49.0), 0)  # [N - 1]
    slope = jax.jit(jax.jacobian(along))(images)  # of one picture's places in its own pixels alone
    seen = np.abs(slope).reshape(15, 2, 4, 4, 4, 4, 3).max((3, 5, 6)).reshape(15, 2, 16) > 0
    for b, first in enumerate(prefix):
        wanted = np.tri(15, 16, dtype=bool)
        wanted[:, : int(first)] = True
        np.testing.assert_array_equal(seen[:, b], wanted)


def test_mistakes():
    with pytest.raises(UserError, match="BEiT: the tokenizer has 2 x 2 patches and the encoder 4 x 4"):
        beit(tokenizer=tokenizer(encoder=tiny.encoder().clone(image_size=8, patch=4)))
    with pytest.raises(
        UserError, match="BEiT: the tokenizer reads 8 pixels, and its view has 16: set beit_views.token"
    ):
        beit(augment=tiny.views())
    with pytest.raises(UserError, match="BEiT.aggregate_from=2 is no block before the last of 2"):
        beit(aggregate_from=2)
    with pytest.raises(UserError, match="Data2Vec.top=3 of 2 blocks"):
        data2vec(top=3)
    with pytest.raises(UserError, match="IJEPA reads patches alone: set the encoder's class_token=False"):
        i_jepa(encoder=tiny.encoder())
    with pytest.raises(
        UserError, match="IJEPA: a context of 1 patches and targets of up to 4, of a grid of 4 x 4, leave"
    ):
        i_jepa(context_scale=(0.1, 0.1))
    with pytest.raises(UserError, match="AIM reads patches alone"):
        aim(encoder=tiny.encoder())
