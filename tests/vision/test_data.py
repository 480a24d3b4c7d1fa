import contextlib
import dataclasses
import io
import os
import pickle

import numpy as np
import pytest

from launch.run.loader import batches
from paradigm.dataset import Dataset
from paradigm.errors import UserError
from tests.vision.pictures import encoded, folder, npz, opened, pixels, records, zipped
from vision.data import ImageData
from vision.preprocess import PreprocessImage
from vision.synthetic_scenes import SHAPES, Shapes


def test_digits_need_no_download():
    prepared = opened("digits", channels=1)
    train, valid = records(prepared), records(prepared, "valid")
    assert len(train) == 1618 and len(valid) == 179 and prepared.classes == tuple("0123456789")
    assert prepared.channels == 1 and train[0]["image"].shape == (8, 8, 1) and train[0]["image"].dtype == np.uint8
    values = np.stack([r["image"] for r in train + valid])
    assert values.min() == 0 and values.max() == 255 and len(np.unique(values)) == 17
    counts = np.bincount([r["label"] for r in valid])
    assert counts.min() >= 17 and counts.max() <= 18, "every class has its share"
    from sklearn.datasets import load_digits

    mean = {label: values[[r["label"] == label for r in train + valid]].mean((0, 3)) for label in range(10)}
    found = load_digits()
    for label in range(10):
        assert np.abs(mean[label] / 255 * 16 - found.images[found.target == label].mean(0)).max() < 0.1
    assert {r["image"].tobytes() for r in train}.isdisjoint(r["image"].tobytes() for r in valid)
    assert prepared.described == "digits: 1,618 train, 179 valid pictures, 10 classes"


def test_shapes_need_no_download():
    prepared = opened("shapes", shapes=Shapes(seed=5, size=32, scenes=50, valid_scenes=20, exclude=["red star"]))
    assert [len(prepared.source(s)) for s in ("train", "valid", "test")] == [50, 20, 20] and prepared.classes == SHAPES
    seen = [r["image"].tobytes() for s in ("train", "valid", "test") for r in records(prepared, s)]
    assert len(set(seen)) == 90, "splits share no scene"
    record = prepared.source("train")[7]
    assert record["image"].shape == (32, 32, 3) and isinstance(record["caption"], str)
    assert record["labels"]["shape"] == record["label"]
    assert all(r["labels"]["colour"] == 0 and r["label"] == SHAPES.index("star") for r in records(prepared, "test"))
    assert "test" not in opened("shapes", shapes=Shapes(scenes=5)).splits
    grey = opened("shapes", channels=1, labels=False, shapes=Shapes(scenes=5)).source("train")[0]
    assert grey["image"].shape == (64, 64, 1) and grey["label"] == -1
    names = [prepared.source(s).name(7) for s in ("train", "valid", "test")]
    assert names == [f"scene {i} of seed 5" for i in (7, 57, 77)]


def test_what_is_held_out_depends_on_the_records_alone(tmp_path):
    images = np.stack([pixels(i // 2) for i in range(200)])  # each of them twice
    labels = np.arange(200) // 2 % 4
    order = np.random.default_rng(0).permutation(200)
    one = opened(npz(tmp_path / "a.npz", images=images, labels=labels), valid=0.2)
    other = opened(npz(tmp_path / "b.npz", images=images[order], labels=labels[order]), valid=0.2)
    held = [{r["image"].tobytes() for r in records(p, "valid")} for p in (one, other)]
    assert held[0] == held[1] and len(records(one, "valid")) == 40
    assert held[0].isdisjoint(r["image"].tobytes() for r in records(one)), "copies stay on one side"
    assert [r["label"] for r in records(one, "valid")].count(2) == 10
    more = {f"{i}.png": pixels(i) for i in range(60)}
    first = opened(folder(tmp_path / "f", more), valid=0.25)
    more = {**more, "new.png": pixels(99)}
    second = opened(zipped(tmp_path / "f.zip", more), valid=0.25)
    names = [
        {p.source("valid").name(i).rstrip(")").split("/")[-1].split("(")[-1] for i in range(15)}
        for p in (first, second)
    ]
    assert len(names[0] & names[1]) >= 14, "one more picture moves at most one"
    assert names[0] != {f"{i}.png" for i in range(15)}
    assert len(opened(folder(tmp_path / "two", {"a.png": pixels(0), "b.png": pixels(1)})).source("valid")) == 1


BROKEN = {7: b"no picture", 21: encoded(pixels(21, 40, 40), "JPEG")[:-300], 22: b""}


@pytest.fixture
def damaged(tmp_path):
    files = {f"{s}/c/{i:02d}.png": BROKEN.get(i, pixels(i)) for s, part in
             (("train", range(20)), ("valid", range(20, 30))) for i in part}  # fmt: skip
    return folder(tmp_path / "d", files)


def test_broken_pictures_are_counted_named_and_replaced(damaged):
    source = opened(damaged).source("train")
    data = Dataset(source, PreprocessImage(6, 3), 5)
    found = [data.read(step) for step in range(8)]  # two epochs
    again = [Dataset(pickle.loads(pickle.dumps(source)), PreprocessImage(6, 3), 5).read(step) for step in range(8)]
    problems = [p for _, part in found for p in part]
    assert len(problems) >= 2 and {p.record for p in problems} == {str(damaged / "train/c/07.png")}
    assert all(p.error == "cannot identify image file" for p in problems)
    for (a, p), (b, q) in zip(found, again):
        assert p == q and a["mask"].all() and (a["image"] == b["image"]).all()
    heard = io.StringIO()
    with contextlib.redirect_stderr(heard), batches(data) as stream:
        for _ in range(8):
            next(stream)
    assert stream.problems >= 2 and "train/c/07.png is broken and left out (cannot identify image" in heard.getvalue()


def test_broken_pictures_are_left_out_of_evaluation(damaged):
    data = Dataset(opened(damaged).source("valid"), PreprocessImage(6, 3), 4, train=False)
    masks = np.concatenate([data.batch(step)["mask"] for step in range(len(data))])
    assert masks.tolist() == [1, 0, 0] + [1] * 7 + [0, 0]
    problems = [p for step in range(len(data)) for p in data.read(step)[1]]
    assert [os.path.basename(p.record) for p in problems] == ["21.png", "22.png"]
    assert "truncated" in problems[0].error


def test_broken_pictures_are_refused(damaged):
    data = Dataset(opened(damaged, on_broken="refuse").source("train"), PreprocessImage(6, 3), 5)
    with pytest.raises(
        UserError, match=r"train/c/07.png is broken \(cannot identify image file\): mend or remove it, or"
    ):
        [data.batch(step) for step in range(4)]
    (damaged / "train/c/07.png").unlink()
    gone = opened(damaged, on_broken="refuse")
    (damaged / "train/c/03.png").unlink()
    with pytest.raises(UserError, match=r"03.png is broken \(.*No such file"):
        gone.source("train")[3]


def test_the_fingerprint_changes_with_the_records(tmp_path):
    seen = [opened("digits").fingerprint]

    def changed(source, **settings):
        found = opened(source, **settings).fingerprint
        assert found == opened(source, **settings).fingerprint and found not in seen
        seen.append(found)

    for settings in ({"channels": 1}, {"valid": 0.2}, {"labels": False}):
        changed("digits", **settings)
    for settings in ({}, {"seed": 1}, {"size": 32}, {"exclude": ("red star",)}, {"scenes": 9}, {"label": "colour"}):
        changed("shapes", shapes=Shapes(**settings))
    files = {f"{'ab'[i % 2]}/{i}.bmp": encoded(pixels(i), "BMP") for i in range(4)}
    place, archive = folder(tmp_path / "d", files), tmp_path / "d.zip"
    changed(place)
    changed(zipped(archive, files))
    changed(place, labels=False)
    files["a/0.bmp"] = encoded(pixels(9), "BMP")  # as long as before
    (place / "a/0.bmp").write_bytes(files["a/0.bmp"])
    changed(place)
    changed(zipped(archive, files))
    (place / "b/1.bmp").rename(place / "a/1.bmp")
    changed(place)
    images, labels = np.stack([pixels(i) for i in range(6)]), np.array([0, 1, 0, 1, 0, 1])
    changed(npz(tmp_path / "a.npz", images=images, labels=labels))
    changed(npz(tmp_path / "a.npz", images=images[::-1], labels=labels))
    changed(npz(tmp_path / "a.npz", images=images[::-1], labels=1 - labels))
    changed(tmp_path / "a.npz", classes=("x", "y"))
    prepared = opened("digits")
    assert prepared.source("train").fingerprint != prepared.source("valid").fingerprint


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"channels": 4}, r"^ImageData.channels=4: choose 3 \(colour\) or 1 \(grey\)$"),
        ({"valid": 0.0}, r"^ImageData.valid=0.0: the held-out share of train must lie in \(0, 1\)$"),
        ({"on_broken": "refsue"}, r"^unknown ImageData.on_broken 'refsue': did you mean 'refuse'\?"),
        ({"max_pixels": 10**9}, r"ImageData.max_pixels=1000000000: it must lie in 1 .. 178,956,970"),
        (
            {"classes": ("a",)},
            r"ImageData.classes names numbered labels, of idx, npz and Parquet; digits has names of its own",
        ),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(UserError, match=message) as error:
        ImageData(**settings).build(progress=False)
    assert "\n" not in str(error.value)


def test_too_few_names_for_the_classes(tmp_path):
    place = npz(tmp_path / "a.npz", images=np.stack([pixels(i) for i in range(6)]), labels=np.arange(6) % 3)
    with pytest.raises(UserError, match=r"ImageData.classes names 2 classes and .*a.npz has 3: name all"):
        opened(place, classes=["x", "y"])
    assert opened(place, classes=["x", "y", "z"]).source("valid").classes == ("x", "y", "z")


def test_splits_that_are_not_there(tmp_path, capsys):
    prepared = ImageData().build(tmp_path / "unused", window=None)
    assert capsys.readouterr().err == prepared.described + "\n" and not (tmp_path / "unused").exists()
    with pytest.raises(UserError, match=r"^digits has no test split, only train, valid$"):
        prepared.source("test")
    with pytest.raises(UserError, match=r"^unknown split 'tset': did you mean 'test'\?"):
        prepared.source("tset")
    assert hash(ImageData()) == hash(ImageData()) != hash(dataclasses.replace(ImageData(), labels=False))
