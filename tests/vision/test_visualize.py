"""Pictures of a run: what stands where in them."""

import numpy as np
import pytest

from paradigm.dataset import Dataset
from paradigm.errors import UserError
from tests.vision import tiny
from vision.augment import no_views
from vision.data import ImageData
from vision.objectives import MAE, Classify
from vision.resnet import resnet
from vision.visualize import GAP, Neighbours, PatchPCA, Reconstructions, Views, sheet
from vision.vit import vit


@pytest.fixture(scope="module")
def run():
    encoder = vit("tiny", 8, 2, d_model=16, heads=2, d_ff=32, layers=1, channels=1)
    decoder = {"decoder_width": 16, "decoder_layers": 1, "decoder_heads": 2}
    objective = MAE(encoder=encoder, augment=no_views(8), host_image_size=8, **decoder)
    prepared = ImageData("digits", channels=1).build(progress=False)
    batch = Dataset(prepared.source("valid"), objective.preprocess, 6, train=False).batch(0)
    return objective, {"params": tiny.params(objective)}, tiny.Opened(prepared.source, batch=batch)


def test_sheet_enlarges_and_separates():
    black, white = np.zeros((8, 8, 1)), np.ones((8, 8, 3))
    picture = sheet([[black, white, black], [white]])
    side = 96 + GAP
    assert picture.shape == (2 * side, 3 * side, 3) and picture.dtype == np.uint8
    assert (picture[:96, :96] == 0).all() and (picture[:96, side : side + 96] == 255).all()
    assert (picture[:96, 96:side] == 255).all() and (picture[side:] == 255).all()


def cells(picture, rows, columns):
    """[rows, columns, 8, 8]: a sheet of pictures of 8 pixels, taken apart."""
    assert picture.shape == (rows * 98, columns * 98, 3)
    return picture.reshape(rows, 98, columns, 98, 3)[:, 6:96:12, :, 6:96:12, 0].transpose(0, 2, 1, 3)


def test_triptychs(run):
    _, [shown] = Reconstructions(4).run(*run)
    masked, made, original = cells(shown.value, 4, 3).swapaxes(0, 1)
    wanted = np.stack([run[2].records("valid")[i]["image"][..., 0] for i in range(4)])
    np.testing.assert_allclose(original, wanted, atol=1)
    hidden = masked == 128  # grey, where nothing was seen
    assert 0.7 < hidden.mean() < 0.85
    assert (made[~hidden] == original[~hidden]).all() and (made[hidden] != original[hidden]).any()


def test_views(run):
    _, [shown] = Views(3).run(*run)
    first, *views = cells(shown.value, 3, 3).swapaxes(0, 1)
    assert all((view == first).all() for view in views), "no_views changes nothing"


def test_neighbours_begin_with_the_query_itself_when_it_is_there(run):
    objective, variables, data = run

    class Same:
        records = staticmethod(lambda split: data.records("valid"))

    _, [shown] = Neighbours(queries=5, nearest=2, train_images=None).run(objective, variables, Same())
    query, nearest, second = cells(shown.value, 5, 3).swapaxes(0, 1)
    assert (query == nearest).all() and (query != second).any()


def test_patches_have_colours(run):
    _, [shown] = PatchPCA(4).run(*run)
    assert shown.value.shape == (2 * 98, 4 * 98, 3)
    maps = shown.value[98 : 98 + 96, :96]
    assert (maps[::24, ::24] == maps[5::24, 5::24]).all(), "a patch has one colour"
    assert len(np.unique(maps.reshape(-1, 3), axis=0)) > 4
    assert (maps[..., 0] != maps[..., 1]).any()


def test_pictures_that_cannot_be_had(run):
    objective = Classify(encoder=resnet("tiny", channels=1), augment=no_views(8), host_image_size=8, classes=10)
    with pytest.raises(
        UserError, match="^Reconstructions: Classify cannot reconstruct pictures, .*MAE.* can: take Recon"
    ):
        Reconstructions().run(objective, {}, run[2])
    with pytest.raises(UserError, match="PatchPCA: ResNet has no patches; leave it out"):
        PatchPCA().run(objective, {}, run[2])
