"""Segmentation: what every objective passes, the loss by loops, maps of classes that follow their picture."""

import dataclasses
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from paradigm.errors import UserError
from paradigm.objective import Context
from tests import contract
from tests.compiled import compiled
from tests.vision import tiny
from tests.vision.pictures import encoded, folder, opened, pixels, records, zipped
from vision import ask, segments
from vision.decode_image import class_map
from vision.objectives import Segmentation
from vision.preprocess import PreprocessRegions
from vision.resnet import resnet
from vision.segments import Segments, iou
from vision.sheet import legend
from vision.synthetic_scenes import COLOURS, Shapes

ENCODER = tiny.encoder(d_model=8, d_ff=16, layers=1, dropout=0.1)
OBJECTIVE = Segmentation(encoder=ENCODER, augment=tiny.views(), classes=3, host_image_size=tiny.HOST_SIZE)


def batch_of(step):
    """Some pixels unlabelled, the last rows padding."""
    batch = tiny.masked(step)
    draw = np.random.default_rng(step + 100)
    regions = draw.integers(0, 3, (8, 5, 5)).repeat(4, 1).repeat(4, 2)
    regions[:, :6] = np.where(draw.random((8, 6, 20)) < 0.5, 255, regions[:, :6])
    return {**batch, "regions": np.uint8(regions)}


def segmented(variables, batch):
    """(found, true) of a batch."""
    return np.asarray(OBJECTIVE.segment(variables, OBJECTIVE.view(batch))), np.asarray(OBJECTIVE.regions(batch))


CASES = {"segmentation": contract.Case(OBJECTIVE, batch_of, "patches")}
globals().update(contract.tests(CASES))


def test_loss_by_loops():
    batch, params = batch_of(3), tiny.params(OBJECTIVE)
    loss = compiled(OBJECTIVE.loss, params, {}, batch, Context(jnp.int32(0), 0, False))
    _, seen = compiled(OBJECTIVE.features, {"params": params}, compiled(OBJECTIVE.view, batch))
    head, patches = params["segmenter"]["output"], np.asarray(seen["patches"])
    small = (patches @ head["kernel"] + head["bias"]).reshape(8, 4, 4, 3)
    true = np.asarray(compiled(OBJECTIVE.regions, batch))
    assert (true == -1).any() and set(np.unique(true)) == {-1, 0, 1, 2}
    total = count = right = 0.0
    for row in range(6):
        for y in range(16):
            for x in range(16):
                if true[row, y, x] >= 0:
                    logits = np.zeros(3)
                    for at_y, share_y in between(y):
                        for at_x, share_x in between(x):
                            logits += share_y * share_x * np.asarray(small[row, at_y, at_x])
                    logs = logits - np.log(np.exp(logits).sum())
                    total, count = total - logs[true[row, y, x]], count + 1
                    right += np.argmax(logits) == true[row, y, x]
    term = loss.terms["pixels"]
    np.testing.assert_allclose(term.sum, total, rtol=1e-5)
    assert term.weight == count and abs(float(loss.metrics["accuracy"][0]) - right) <= 1


def test_asked_in_a_notebook():
    variables = {"params": tiny.params(OBJECTIVE)}
    images = [np.uint8(x) for x in batch_of(0)["image"][:2]]
    found = ask.segment(OBJECTIVE, variables, images)
    wanted, _ = segmented(variables, {**batch_of(0), "aspect": np.ones(8, np.float32)})
    np.testing.assert_array_equal(found, wanted[:2])
    np.testing.assert_array_equal(ask.segment(OBJECTIVE, variables, images[1]), wanted[1])


def between(pixel):
    """[(patch, share)] of the two patches, 4 pixels wide, between whose centres a pixel lies; at the border one."""
    place = (pixel + 0.5) / 4 - 0.5
    low = int(np.floor(place))
    return [(min(max(low, 0), 3), 1 - (place - low)), (min(max(low + 1, 0), 3), place - low)]


def test_regions_follow_their_picture_into_a_random_view():
    """The classes are the picture's own greys: in every view a pixel's class is that of its grey."""
    objective = dataclasses.replace(OBJECTIVE, augment=tiny.views(filter="bicubic", jitter=1.0))
    batch = batch_of(0)
    batch["regions"] = np.uint8(np.random.default_rng(0).integers(0, 2, (8, 2, 2))).repeat(10, 1).repeat(10, 2)
    batch["image"] = np.uint8(100 * batch["regions"])[..., None].repeat(3, -1)
    keys = jax.random.split(jax.random.key(0), 8)
    view = objective.views[0]
    grey = np.asarray(compiled(view.undo, view(batch["image"], batch["aspect"], keys)))[..., 0] * 2.55
    found = np.asarray(compiled(objective.regions, batch, keys))
    inside = np.abs(grey - np.round(grey)) < 0.02  # away from the borders, which are blended
    assert inside.mean() > 0.5 and (found[inside] == np.round(grey[inside])).all()
    assert (found != np.asarray(compiled(objective.regions, batch))).mean() > 0.05


def test_intersection_over_union_by_loops_and_on_a_run(monkeypatch):
    draw = np.random.default_rng(0)
    true, found = draw.integers(0, 3, 200), draw.integers(0, 3, 200)
    table = np.zeros((4, 4), int)
    np.add.at(table, (true, found), 1)
    wanted = [((true == c) & (found == c)).sum() / ((true == c) | (found == c)).sum() for c in range(3)]
    np.testing.assert_allclose(iou(table), [*wanted, np.nan])

    class Data:
        def batches(self, phase):
            return iter([batch_of(0), batch_of(1)])

        def examples(self, count, phase):
            return batch_of(0)

    named = dataclasses.replace(OBJECTIVE, names=("ground", "cat", "dog"))
    variables = {"params": tiny.params(OBJECTIVE)}
    numbers, [artefact] = Segments().run(named, variables, Data())
    union = right = np.zeros(3)
    for step in (0, 1):
        found, true = (x[:6] for x in segmented(variables, batch_of(step)))
        pairs = [((found == c), (true == c)) for c in range(3)]
        right = right + [(a & b).sum() for a, b in pairs]
        union = union + [((a | b) & (true >= 0)).sum() for a, b in pairs]
    np.testing.assert_allclose(numbers["mean_iou"], np.mean(right / union))
    np.testing.assert_allclose([numbers[f"iou/{n}"] for n in named.names], right / union)
    assert artefact.name == "segments" and artefact.value.ndim == 3
    asked = []
    monkeypatch.setattr(segments, "legend", lambda entries, width: asked.append(entries) or legend(entries, width))
    for objective, words in ((named, named.names), (OBJECTIVE, ("class 0", "class 1", "class 2"))):
        Segments().run(objective, variables, Data())
        found, true = segmented(variables, batch_of(0))
        seen = [c for c in (0, 1, 2, -1) if (found == c).any() or (true == c).any()]
        assert [text for _, text in asked.pop()] == [(*words, "not labelled")[c] for c in seen] and len(seen) == 4


@pytest.mark.parametrize("way", ["images/{split}/{name}.jpg", "{split}/images/{name}.jpg", "{split}/{name}.jpg"])
@pytest.mark.parametrize("pack", ["folder", "zip"])
def test_maps_beside_pictures(way, pack, tmp_path):
    files, wanted = {}, {}
    for i, split in enumerate(("train", "train", "valid")):
        name = way.format(split=split, name=f"p{i}")
        files[name] = encoded(pixels(i), "JPEG")
        number = np.full((6, 9), 3 * i, np.uint8)
        number[0, 0] = 255
        if "images" in way:
            place = name.replace("images", "masks").replace(".jpg", ".png")
        else:
            place = f"{split}/masks/p{i}.png"
        picture = Image.fromarray(number)
        if i == 1:  # as annotation tools save them
            picture = Image.frombytes("P", picture.size, picture.tobytes())
            picture.putpalette([9, 9, 9] * 256)
        files[place] = encoded(picture)
        wanted.setdefault(split, []).append(number)
    files[way.format(split="train", name="alone")] = encoded(pixels(9), "JPEG")
    files[next(n for n in files if "masks" in n).replace("p0", "nobody")] = encoded(np.zeros((6, 9), np.uint8))
    source = folder(tmp_path / "set", files) if pack == "folder" else zipped(tmp_path / "set.zip", files)
    prepared = opened(source, regions="masks")
    for split, numbers in wanted.items():
        found = records(prepared, split)
        assert len(found) == len(numbers) and all((r["regions"] == n).all() for r, n in zip(found, numbers))
    assert "1 pictures without a map are left out (" in prepared.described and prepared.classes is None
    assert "maps of classes in masks; " in prepared.described and "1 maps without a picture" in prepared.described
    before = prepared.fingerprint
    changed = {**files, next(n for n in files if "masks" in n): encoded(np.ones((6, 9), np.uint8))}
    other = folder(tmp_path / "b", changed) if pack == "folder" else zipped(tmp_path / "b.zip", changed)
    assert opened(other, regions="masks").fingerprint != before


def test_bad_maps(tmp_path):
    files = {"images/a.png": pixels(0), "images/b.png": pixels(1), "masks/a.png": np.zeros((6, 9), np.uint8)}
    root = folder(tmp_path / "a", files)
    with pytest.raises(UserError, match="regions='mask': .* holds no folder of this name; it holds images, masks"):
        opened(root, regions="mask")
    with pytest.raises(UserError, match="regions='masks': .* holds no folder of this name; it holds none$"):
        opened(root / "images", regions="masks")
    other = folder(tmp_path / "b", {"images/a.png": pixels(0), "masks/c.png": np.zeros((6, 9), np.uint8)})
    with pytest.raises(
        UserError, match="none of the maps in masks is of a picture, such as masks/c.png: name each like"
    ):
        opened(other, regions="masks")
    for bad, match in ((pixels(0), "grey or palette numbers, and this one is RGB"),
                       (encoded(np.zeros((6, 9), np.uint8), "JPEG"), "as JPEG, which blends the numbers of neighbours"),
                       (np.zeros((9, 6), np.uint8), "the map has 6 x 9 pixels, its picture 9 x 6")):  # fmt: skip
        broken = {**files, "masks/a.png": bad, "masks/b.png": np.zeros((6, 9), np.uint8)}
        with pytest.raises(UserError, match=match):
            prepared = opened(
                folder(tmp_path / f"c{len(match)}", broken), regions="masks", on_broken="refuse", valid=0.5
            )
            [records(prepared, split) for split in ("train", "valid")]
    with pytest.raises(
        UserError, match="maps of classes are read beside pictures in folders, zips and tars, not in digits"
    ):
        opened("digits", regions="masks")
    with pytest.raises(UserError, match="regions of shapes"):
        opened("shapes", regions="size")


def test_a_map_that_lies_on_its_side_is_turned_upright():
    number, file, exif = np.arange(54, dtype=np.uint8).reshape(6, 9), io.BytesIO(), Image.Exif()
    exif[0x0112] = 6  # EXIF's orientation: the row on top is the right-hand side
    Image.fromarray(number).save(file, "PNG", exif=exif)
    np.testing.assert_array_equal(class_map(file.getvalue(), (9, 6)), np.rot90(number, -1))


def test_masks_in_black_and_white_are_refused(tmp_path):
    def prepared(name, *values):
        files = {f"images/{i}.png": pixels(i) for i in range(4)}
        maps = {f"masks/{i}.png": np.resize(np.uint8(values), (6, 9)) for i in range(4)}
        return opened(folder(tmp_path / name, {**files, **maps}), regions="masks", valid=0.25)

    with pytest.raises(UserError, match=r"\(3 looked at\) hold 0 and 255 alone, and 255 is of pixels that are not lab"):
        OBJECTIVE.check_data(prepared("bw", 0, 255))
    assert "looked at) hold no class but 0" in OBJECTIVE.check_data(prepared("black", 0))[0]
    assert not OBJECTIVE.check_data(prepared("good", 0, 1, 255))
    with pytest.raises(UserError, match=r"\(3 looked at\) hold the class 4, and Segmentation.classes=3: raise it"):
        OBJECTIVE.check_data(prepared("many", 0, 4, 255))


def test_regions_of_scenes_are_where_their_colours_are():
    shapes = Shapes(size=48, objects=3)
    seen = set()
    for i in range(6):
        record = shapes.record(i, "colour")
        regions, image = record["regions"], record["image"].astype(int)
        colours = [t.colour for t in shapes.scene(i).things]
        for name in [t.colour for t in shapes.scene(i).things if t.texture == "solid"]:
            if colours.count(name) == 1:
                exact = np.abs(image - COLOURS[name]).max(-1) < 3
                assert (regions[exact] == 1 + list(COLOURS).index(name)).all() and exact.sum() > 5
                seen.add(name)
        assert (regions > 0).mean() < 0.6
    assert len(seen) > 2
    assert set(np.unique(shapes.record(0, "shape")["regions"])) <= set(range(9))


def test_what_it_refuses():
    with pytest.raises(UserError, match="Segmentation reads patches, and a ResNet has none: take a ViT"):
        dataclasses.replace(OBJECTIVE, encoder=resnet("tiny"))
    with pytest.raises(UserError, match="classes=1: give 2 to 255, the background too"):
        dataclasses.replace(OBJECTIVE, classes=1)
    with pytest.raises(UserError, match="names are 1, and its classes 3: name each"):
        dataclasses.replace(OBJECTIVE, names=("a",))
    read = PreprocessRegions(8, 3, 3)
    with pytest.raises(UserError, match="without maps of classes: set ImageData.regions to the folder"):
        read({"image": pixels(0)}, None, 0, True)
    with pytest.raises(UserError, match="a region has the class 3, and Segmentation.classes=3: raise it"):
        read({"image": pixels(0), "regions": np.full((6, 9), 3, np.uint8)}, None, 0, True)
    assert read({"image": pixels(0), "regions": np.full((6, 9), 255, np.uint8)}, None, 0, True)["regions"].min() == 255
