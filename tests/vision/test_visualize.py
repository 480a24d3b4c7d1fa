"""Pictures of a run: what stands where in them."""

import numpy as np
import pytest

from paradigm.dataset import Dataset
from paradigm.errors import UserError
from tests.vision import tiny
from vision.augment import no_views
from vision.data import ImageData
from vision.objectives import MAE, Classify, SimCLR
from vision.resnet import resnet
from vision.sheet import GAP, LINE, RIGHT, legend, sheet, titled
from vision.visualize import Neighbours, PatchPCA, Reconstructions, Views
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


def has_words(strip):
    return (strip < 100).any() and (strip == 255).any()


def cells(picture, rows, columns, captions=False):
    """[rows, columns, 8, 8]: a sheet of pictures of 8 pixels under headings, taken apart."""
    tall = 98 + LINE * captions
    assert picture.shape == (LINE + rows * tall, columns * 98, 3)
    assert all(has_words(picture[:LINE, k * 98 :][:, :98]) for k in range(columns)), "each column has a heading"
    below = picture[LINE:].reshape(rows, tall, columns, 98, 3)
    assert not captions or all(has_words(below[i, 98:, k]) for i in range(rows) for k in range(columns))
    return below[:, 6:96:12, :, 6:96:12, 0].transpose(0, 2, 1, 3)


def test_a_title_stands_above_and_is_never_cut():
    for picture in (np.zeros((20, 300, 3), np.uint8), np.zeros((20, 30), np.uint8)):
        shown = titled(picture, "views · MAE · step 1,200")
        above, width = len(shown) - 20, picture.shape[1]
        assert has_words(shown[:above]) and (shown[above:, :width] == 0).all()
        assert (shown[:, -2:] == 255).all() or width == 300
        assert shown.dtype == np.uint8 and shown.shape[2] == 3


def test_a_legend_has_every_colour_once_and_breaks_its_lines():
    colours = [(1.0, 0.0, 0.0), (0.0, 0.5, 1.0), (0.2, 0.2, 0.2)]
    entries = list(zip(colours, ("red", "a longer name", "grey")))
    for width, lines in ((400, 1), (160, 2), (20, 3)):
        shown = legend(entries, width)
        assert len(shown) == lines * LINE and shown.shape[1] >= width and shown.dtype == np.uint8
        for colour in colours:
            inside = (shown == np.round(255 * np.array(colour))).all(2)
            assert inside.sum() >= (LINE - 2 * GAP - 1) ** 2
        assert has_words(shown[:, LINE:])


def test_frames_and_captions_are_of_one_picture():
    black = np.zeros((96, 96, 3))
    shown = sheet([[black, black]], ("a", "b"), [["", "c"]], [[True, False]])
    frame = (shown == RIGHT).all(2)
    assert frame.sum() == 96**2 - 88**2 and not frame[:, 98:].any()
    assert (shown[LINE + 98 :, :98] == 255).all() and has_words(shown[LINE + 98 :, 98:])


def test_triptychs(run):
    _, [shown] = Reconstructions(4).run(*run)
    original, masked, made = cells(shown.value, 4, 3).swapaxes(0, 1)
    wanted = np.stack([run[2].records("valid")[i]["image"][..., 0] for i in range(4)])
    np.testing.assert_allclose(original, wanted, atol=1)
    hidden = masked == 128  # grey, where nothing was seen
    assert 0.7 < hidden.mean() < 0.85
    assert (made[~hidden] == original[~hidden]).all() and (made[hidden] != original[hidden]).any()


def test_views(run):
    """As many as the objective draws: MAE one."""
    objective, variables, data = run
    pair = SimCLR(encoder=objective.encoder, augment=no_views(8), host_image_size=8)
    for one, columns in (objective, 2), (pair, 3):
        _, [shown] = Views(3).run(one, variables, data)
        first, *views = cells(shown.value, 3, columns).swapaxes(0, 1)
        assert all((view == first).all() for view in views), "no_views changes nothing"


def test_neighbours_begin_with_the_query_itself_when_it_is_there(run):
    objective, variables, data = run

    class Same:
        records = staticmethod(lambda split: data.records("valid"))

    _, [shown] = Neighbours(queries=5, nearest=2, train_images=None).run(objective, variables, Same())
    query, nearest, second = cells(shown.value, 5, 3, captions=True).swapaxes(0, 1)
    inner = (..., slice(1, 7), slice(1, 7))
    assert (query[inner] == nearest[inner]).all() and (query != second).any()
    frames = (shown.value == RIGHT).all(2)
    assert not frames[:, :98].any() and frames[:, 98:196].sum() == 5 * (96**2 - 88**2)  # the query itself is right


def test_patches_have_colours(run):
    _, [shown] = PatchPCA(4).run(*run)
    assert shown.value.shape == (LINE + 4 * 98, 2 * 98, 3)
    maps = shown.value[LINE : LINE + 96, 98 : 98 + 96]
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
