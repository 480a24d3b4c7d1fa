"""The codebook's picture: which codes and whose patches it shows."""

import jax
import numpy as np

from tests.compiled import compiled
from tests.vision import tiny
from tests.vision.test_tokenizer import vq, vq_kd
from vision.codebook import Codebook
from vision.patches import patchify
from vision.visualize import Reconstructions

DATA = tiny.Opened(None, batch={name: np.asarray(x) for name, x in tiny.batch_of()(0).items()})


def shown(objective, **settings):
    params = tiny.params(objective)
    variables = objective.variables(params, compiled(objective.init_extra, params, jax.random.key(1)))
    numbers, (picture,) = Codebook(images=4, **settings).run(objective, variables, DATA)
    assert numbers == {} and picture.name == "codebook"
    return variables, picture.value


def test_the_most_used_codes_are_shown_with_their_patches():
    """Three rows; the first patch of the first is the first of the pictures' that has the most frequent id."""
    objective = vq()
    variables, picture = shown(objective, count=3, patches=2)
    images = compiled(objective.view, {name: x[:4] for name, x in tiny.batch_of()(0).items()})
    ids = np.asarray(compiled(objective.ids, variables, images)).reshape(-1)
    used = np.bincount(ids, minlength=8)
    rows = min(3, (used > 0).sum())
    cell = 96 + 2  # a patch of 4 pixels, each 24 wide, and a gap
    assert picture.shape == (15 + rows * (cell + 15), 3 * cell, 3)
    first = np.asarray(patchify(objective.views[0].undo(images), 4)).reshape(len(ids), 4, 4, 3)
    wanted = np.round(255 * np.clip(first[np.argmax(ids == np.argmax(used))], 0, 1))
    found = picture[15 : 15 + 96 : 24, cell : cell + 96 : 24]
    np.testing.assert_allclose(found, wanted, atol=1)


def test_without_pixels_there_are_patches_alone():
    objective = vq_kd()
    variables, picture = shown(objective, count=2, patches=3)
    assert picture.shape[1] == 3 * 98
    _, (sheet,) = Reconstructions(count=2).run(objective, variables, DATA)
    assert sheet.value.shape[1] < 2 * 98 + 10, "originals alone"
