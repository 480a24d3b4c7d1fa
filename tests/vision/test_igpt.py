"""iGPT and palettes: what every objective passes, the loss by a loop, sampling with a cache, who sees what."""

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
from vision.objectives import IGPT, VQ
from vision.objectives.igpt import image_gpt
from vision.palette import Palette, kmeans
from vision.visualize import GeneratedImages

BATCH = tiny.batch_of(channels=1)
SIZE = {"d_model": 16, "heads": 2, "d_ff": 32, "layers": 2, "image_size": 4, "channels": 1}


def igpt(**changes):
    fields = {"encoder": image_gpt(codes=8, **SIZE), "augment": Augment(4), "host_image_size": tiny.HOST_SIZE}
    return IGPT(**fields | {"source": Palette(1, 8)} | changes)


def with_tokenizer():
    encoder = tiny.encoder(channels=1).clone(image_size=8)
    sizes = {"codes": 8, "code_width": 4, "decoder_width": 16, "decoder_layers": 1, "decoder_heads": 2}
    source = VQ(encoder=encoder, augment=Augment(8), **sizes)
    return igpt(encoder=image_gpt(codes=8, **SIZE | {"image_size": 8, "patch": 4}), augment=Augment(8), source=source)


def masked(step):
    batch = BATCH(step)
    batch["mask"][6:] = 0
    return batch


CASES = {
    "igpt": contract.Case(igpt(), BATCH, "patches", masked),
    "with_tokenizer": contract.Case(with_tokenizer(), BATCH, "frozen module", masked, variant=True),
}
globals().update(contract.tests(CASES))


def test_loss_is_the_papers():
    """Each id from a picture that ends before it: what comes later cannot matter."""
    objective, batch = igpt(), masked(3)
    params = tiny.params(objective)
    term = jax.jit(lambda p: objective.loss(p, {}, batch, Context(jnp.int32(0), 0, False)))(params).terms["ids"]
    pixels = np.asarray(compiled(objective.views[0].undo, compiled(objective.view, batch))).reshape(8, 16)
    ids = np.abs(pixels[..., None] - np.linspace(0, 1, 8)).argmin(-1)
    read = jax.jit(lambda ids: objective.apply("encoder", {"params": params}, ids)[0])
    total = 0
    for t in range(16):
        cut = np.where(np.arange(16) < t, ids, 0)
        logits = np.float64(read(jnp.asarray(cut)))[:, t]
        total += sum(np.log(np.exp(logits[b]).sum()) - logits[b, ids[b, t]] for b in range(6))
    np.testing.assert_allclose([term.sum, term.weight], [total, 6 * 16], rtol=1e-5)


def test_sampling_with_a_cache_is_sampling_from_whole_pictures():
    objective = igpt()
    variables = {"params": tiny.params(objective)}
    ids, keys = jax.random.randint(jax.random.key(3), (3, 16), 0, 8), jax.random.split(jax.random.key(4), 3)
    drawn = np.asarray(jax.jit(objective.generate)(variables, ids, 5, keys))
    read = jax.jit(lambda ids: objective.apply("encoder", variables, ids)[0])
    wanted = np.array(ids)
    for t in range(5, 16):
        logits = read(jnp.asarray(wanted))[:, t]
        for b in range(3):
            wanted[b, t] = jax.random.categorical(jax.random.fold_in(keys[b], t), logits[b])
    np.testing.assert_array_equal(drawn, wanted)
    assert (drawn[:, 5:] != np.asarray(ids)[:, 5:]).any()


def test_palettes():
    palette = Palette(3, 2)
    assert palette.codes == 8 and palette.table.shape == (8, 3)
    pixels = jnp.asarray([[[[0.1, 0.9, 0.2], [0.6, 0.4, 0.9]]]])
    ids = compiled(palette.ids, pixels)
    np.testing.assert_array_equal(palette.table[ids[0]], [[0, 1, 0], [1, 0, 1]])
    near = np.random.default_rng(0).normal(size=(3, 40, 3)) * 0.01 + np.array([0.2, 0.5, 0.8])[:, None, None]
    found = kmeans(near.reshape(-1, 3), 3)
    np.testing.assert_allclose(sorted(found.colours), near.mean(1), atol=1e-6)
    with pytest.raises(UserError, match="kmeans: 3 clusters of fewer different colours"):
        kmeans(np.zeros((9, 3)), 3)
    with pytest.raises(UserError, match="Palette.colours has .* which is not of 3 channels"):
        Palette(3, colours=((0.5,),))


def test_ids_become_pictures_and_features():
    for objective in (igpt(), with_tokenizer()):
        params = tiny.params(objective)
        variables = objective.variables(params, jax.jit(objective.init_extra)(params, jax.random.key(0)))
        images = compiled(objective.view, BATCH(0))
        ids = compiled(objective.ids, variables, images)
        shown = compiled(objective.pictures, variables, ids)
        assert shown.shape == images.shape and ids.shape == (8, objective.encoder.length)
        pooled, more = compiled(objective.features, variables, images)
        np.testing.assert_allclose(pooled, more["layers"][1].mean(1), atol=1e-6)
    one = igpt()
    shown = compiled(lambda batch: one.pictures({}, one.ids({}, one.view(batch))), BATCH(0))
    assert np.abs(shown - 0.5).max() <= 0.5


def test_mistakes():
    with pytest.raises(UserError, match="^GeneratedImages.temperature=0.0: what is drawn needs one above 0$"):
        GeneratedImages(temperature=0.0).check(igpt(), None)
    with pytest.raises(UserError, match="IGPT: the encoder has 8 ids and its source 4: set codes alike"):
        igpt(source=Palette(1, 4))
    with pytest.raises(UserError, match="IGPT: the encoder has 2 x 2 places and its source 4 x 4"):
        igpt(encoder=image_gpt(codes=8, **SIZE | {"patch": 2}))
    with pytest.raises(UserError, match="IGPT: views of 8 pixels, but the encoder reads 4"):
        igpt(augment=Augment(8))
    with pytest.raises(UserError, match="unknown ImageGPT size 'xl'"):
        image_gpt("xl")
