import gzip
import io
import os
import pickle
import shutil
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from paradigm import tfds as prepared_tfds
from paradigm.errors import UserError
from tests.vision.pictures import encoded, folder, npz, opened, pixels, records, tarred, zipped

# ------------------------------------------------------------------------------------------------- folders and archives


SPLIT = {
    **{f"train/{c}/{i}.png": pixels(i) for i, c in enumerate("aabbb")},
    **{f"validation/{c}/{i}.png": pixels(10 + i) for i, c in enumerate("ab")},
    **{f"test/{c}/deep/{i}.PNG": pixels(20 + i) for i, c in enumerate("aab")},
}
OTHERS = {
    "README.txt": b"x",
    ".hidden/z.png": b"x",
    "train/.thumbs/z.png": b"x",
    "train/a/._0.png": b"x",
    "train/a/Thumbs.db": b"x",
}


@pytest.mark.parametrize("make", ["folder", "zip", "wrapped", "tar", "tar.gz", "tar.xz"])
def test_splits_and_classes_are_folders(tmp_path, make):
    if make == "folder":
        place = folder(tmp_path / "d", {**SPLIT, **OTHERS})
    elif make.startswith("tar"):
        place = tarred(tmp_path / f"d.{make}", {**SPLIT, **OTHERS, "__MACOSX/p.png": b"x"})
    else:
        top = "data-1.0/" if make == "wrapped" else ""
        place = zipped(
            tmp_path / "d.zip", {f"{top}{k}": v for k, v in {**SPLIT, **OTHERS, "__MACOSX/p.png": b"x"}.items()}
        )
    prepared = opened(place)
    assert prepared.classes == ("a", "b") and prepared.source("test").classes == ("a", "b")
    for split, start, labels in (("train", 0, [0, 0, 1, 1, 1]), ("valid", 10, [0, 1]), ("test", 20, [0, 0, 1])):
        found = records(prepared, split)
        assert [r["label"] for r in found] == labels
        assert all((r["image"] == pixels(start + i)).all() for i, r in enumerate(found))
    name = prepared.source("test").name(2)
    assert str(place) in name and "test/b/deep/2.PNG" in name
    copy = pickle.loads(pickle.dumps(prepared.source("train")))
    assert (copy[4]["image"] == pixels(4)).all()
    assert (
        opened(f"{'zip' if make == 'wrapped' else make[:6].split('.')[0]}:{place}").fingerprint == prepared.fingerprint
    )
    assert all(r["label"] == -1 for r in records(opened(place, labels=False)))


def test_classes_without_splits_and_pictures_without_classes(tmp_path):
    classes = folder(tmp_path / "c", {f"{'xy'[i % 2]}/{i}.png": pixels(i) for i in range(40)})
    prepared = opened(classes, valid=0.2)
    held = records(prepared, "valid")
    assert prepared.classes == ("x", "y") and sorted(r["label"] for r in held) == [0] * 4 + [1] * 4
    assert len(records(prepared)) == 32
    assert "test" not in prepared.splits
    flat = folder(tmp_path / "f", {f"{i}.png": pixels(i) for i in range(20)})
    prepared = opened(flat)
    assert prepared.classes is None and len(prepared.source("train")) == 18
    assert {r["label"] for r in records(prepared)} == {-1}
    assert "18 train, 2 valid pictures, no labels" in prepared.described
    one = opened(folder(tmp_path / "o", {f"only/{i}.png": pixels(i) for i in range(4)}))
    assert one.classes is None and {r["label"] for r in records(one)} == {
        -1
    }  # as of a zip that was packed with its folder
    assert "no labels; all inside of only" in one.described


def test_labels_that_are_not_of_train_or_not_there_are_told(tmp_path):
    x = np.stack([pixels(i) for i in range(8)])
    np.savez(tmp_path / "a.npz", images=x, labels=np.arange(8) % 3 - 1)
    assert "2 classes; 3 of train without a label" in opened(tmp_path / "a.npz").described
    np.savez(tmp_path / "b.npz", x_train=x, y_train=np.arange(8) % 2, x_test=x, y_test=np.arange(8) % 4)
    with pytest.raises(UserError, match=r"b.npz: test has labels up to 3, train up to 1: number the classes of all al"):
        opened(tmp_path / "b.npz")
    assert len(opened(tmp_path / "b.npz", classes=list("abcd")).classes) == 4


def test_a_number_for_each_picture_is_no_class(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.stack([pixels(i) for i in range(24)]), labels=np.arange(24))
    with pytest.raises(UserError, match=r"labels of train holds 24 distinct values in 24 records, .*: give one number"):
        opened(tmp_path / "a.npz")
    assert opened(tmp_path / "a.npz", labels=False).classes is None
    assert opened("digits", labels=False).classes is None, "there are no classes where no picture has one"


@pytest.mark.parametrize("setting", ["image_field", "label_field"])
def test_a_setting_that_says_nothing_of_a_source_is_refused(setting, tmp_path):
    folder(tmp_path, {f"{'ab'[i % 2]}/{i}.png": pixels(i) for i in range(6)})
    for source in (tmp_path, "digits", "shapes"):
        with pytest.raises(UserError, match=rf"ImageData.{setting}='x' says nothing of .*, only of parquet, tfds: lea"):
            opened(source, **{setting: "x"})


@pytest.mark.parametrize(
    "name, fix",
    [
        ("a.npy", "nor a .tar: save its arrays by numpy.savez"),
        ("a.csv", "nor a .tar: write its pictures to files in a folder for each class"),
    ],
)
def test_files_that_are_no_source_say_what_to_do(name, fix, tmp_path):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UserError, match=fix):
        opened(tmp_path / name)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.zip").write_bytes(b"x")
    with pytest.raises(UserError, match=r"holds no pictures .* it holds .zip: name the .zip itself, or unpack it"):
        opened(tmp_path / "in")


def test_pictures_of_several_modes_are_converted_and_counted(tmp_path):
    grey, clear = pixels(1)[:, :, 0], pixels(2, channels=4)
    files = {"0.png": pixels(0), "1.png": grey, "2.png": clear, "3.png": grey, "4.png": b"x"}
    place = folder(tmp_path / "e", {f"{part}/{k}": v for k, v in files.items() for part in ("train", "valid")})
    (place / "other").mkdir()
    (place / "other" / "9.png").write_bytes(b"")
    wanted = "1 outside of train, valid and test are left out (other/); of 5 looked at 2 L, 1 RGBA, 1 broken; all are r"
    assert wanted in opened(place).described
    assert "of 5 looked at 1 RGB, 1 RGBA, 1 broken; all are read with 1 channels" in opened(place, channels=1).described
    found = [opened(place).source("train")[i]["image"].shape for i in range(4)]
    assert found == [(6, 9, 3)] * 4
    assert opened(folder(tmp_path / "f", {f"{i}.png": pixels(i) for i in range(200)})).note == ""


def test_an_archive_is_read_by_each_process_and_never_unpacked(tmp_path, monkeypatch):
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    place = zipped(tmp_path / "a" / "b" / "d.zip", {f"../../{'ab'[i % 2]}/{i}.png": pixels(i) for i in range(6)})
    prepared = opened(place)
    assert prepared.classes == ("a", "b")
    source = prepared.source("train")
    source[0]
    archive = source.records.source.files
    assert archive._opened[0] is not None and pickle.loads(pickle.dumps(archive))._opened == (None, None)
    mine = archive._opened[1]
    archive._opened = (1, mine)  # as a forked process would find it
    source[1]
    assert archive._opened[1] is not mine
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["d.zip"]


def test_the_file_system_s_order_decides_nothing(tmp_path, monkeypatch):
    """Not even by which of two names a linked folder is known."""
    place = folder(tmp_path / "d", {f"{c}/{i}.png": pixels(i) for i, c in enumerate("abcb")})
    (place / "z").symlink_to(place / "a")
    seen = lambda: [(r["label"], r["image"].tobytes()) for r in records(opened(place), "train")]
    before, walk = (opened(place).fingerprint, seen()), os.walk

    def backwards(*args, **kw):
        for top, folders, files in walk(*args, **kw):
            folders.sort(reverse=True)
            yield top, folders, sorted(files, reverse=True)

    monkeypatch.setattr(os, "walk", backwards)
    assert (opened(place).fingerprint, seen()) == before
    assert opened(place).classes == ("a", "b", "c")  # the first of the two names


def test_links_that_go_round_in_circles(tmp_path):
    place = folder(tmp_path / "d", {f"a/{i}.png": pixels(i) for i in range(3)})
    (place / "a" / "loop").symlink_to(place)
    (place / "a" / "again").symlink_to(place)
    (place / "b").symlink_to(folder(tmp_path / "elsewhere", {"9.png": pixels(9), "8.png": pixels(8)}))
    (place / "a" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    prepared = opened(place)
    assert prepared.classes == ("a", "b")
    assert sum(len(prepared.source(s)) for s in ("train", "valid")) == 5


def cut(path, by):
    path.write_bytes(path.read_bytes()[:-by])


@pytest.mark.parametrize(
    "files, message",
    [
        ({}, r"holds no pictures \(.jpg .*\); it holds nothing"),
        ({"a/notes.txt": b"x"}, r"holds no pictures .*; it holds .txt"),
        ({"train/a/1.png": b"", "train/b/1.png": b"", "test/a/1.png": b"", "test/c/1.png": b""},
         r"the class folders of train and test differ \(b only in train; c only in test\): rename or complete them"),
        ({"train/a/1.png": b"", "val/a/1.png": b"", "val/b/1.png": b""},
         r"the class folders of train and valid differ \(b only in valid\)"),
        ({"a/1.png": b"", "2.png": b""}, r"pictures in class folders and others beside them \(2.png\): move those"),
        ({"a/1.png": b"", "a/2.png": b"x"}, r"none of 2 pictures looked at can be read, such as .*a/1.png"),
        ({"test/a/1.png": b"", "val/a/1.png": b""}, r"holds test and val and no folder train: add it"),
        ({"a/1.png": pixels(0)}, r"has 1 picture, none of which can be held out: add some"),
        ({f"{i}/1.png": pixels(i) for i in range(9)}, r"has 9 pictures, .*: each is alone in its class, so add some"),
    ],
)  # fmt: skip
def test_bad_folders(tmp_path, files, message):
    (tmp_path / "d").mkdir()
    for place in (folder(tmp_path / "d", files), zipped(tmp_path / "d.zip", files)):
        with pytest.raises(UserError, match=message) as error:
            opened(f"{'zip' if place.suffix else 'folder'}:{place}")
        assert "\n" not in str(error.value) and str(place) in str(error.value)


# ------------------------------------------------------------------------------------------------------------------ idx


def idx_bytes(array):
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


IMAGES, LABELS = pixels(5, 30, 4 * 5, 1).reshape(30, 4, 5), (np.arange(30) % 3).astype(np.uint8)


@pytest.fixture
def idx(tmp_path):
    root = tmp_path / "idx"
    root.mkdir()
    (root / "train-images-idx3-ubyte").write_bytes(idx_bytes(IMAGES[:20]))
    (root / "train-labels.idx1-ubyte").write_bytes(idx_bytes(LABELS[:20]))
    (root / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(IMAGES[20:])))
    (root / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(LABELS[20:])))
    return root


def test_idx(idx):
    prepared = opened(idx, channels=1, classes=("p", "q", "r"))
    assert prepared.classes == ("p", "q", "r")
    for split, rows in (("train", slice(0, 20)), ("valid", slice(20, 30)), ("test", slice(20, 30))):
        found = records(prepared, split)
        assert (np.stack([r["image"] for r in found])[..., 0] == IMAGES[rows]).all()
        assert [r["label"] for r in found] == LABELS[rows].tolist()
    assert prepared.source("valid").name(3) == f"{idx / 't10k-images-idx3-ubyte.gz'} picture 3"
    assert "20 train, 10 valid (the test split) pictures, 3 classes" in prepared.described
    before = opened(idx).fingerprint
    (idx / "t10k-labels-idx1-ubyte.gz").write_bytes(idx_bytes(LABELS[:10]))
    assert opened(idx).fingerprint != before
    assert records(opened(f"idx:{idx}"))[0]["image"].shape == (4, 5, 3)
    apart = opened(idx, hold_out=True)
    assert [len(apart.source(s)) for s in ("train", "valid", "test")] == [17, 3, 10]
    assert len(pickle.dumps(prepared.source("train"))) < 2000, "workers read the file for themselves"


def test_a_fraction_is_balanced_nested_and_of_the_seed(tmp_path):
    labels = np.array([0] * 5 + [1] * 15 + [2] * 40, np.uint8)
    images = np.arange(60, dtype=np.uint8).reshape(60, 1, 1).repeat(2, 1).repeat(2, 2)
    source = npz(tmp_path / "a.npz", x_train=images, y_train=labels, x_test=images[::9], y_test=labels[::9])
    chosen = {}
    for share, seed in ((0.2, 0), (0.6, 0), (0.2, 1), (0.01, 0)):
        prepared = opened(source, fraction=share, fraction_seed=seed)
        found = records(prepared)
        assert np.bincount([r["label"] for r in found]).tolist() == [max(1, round(share * n)) for n in (5, 15, 40)]
        chosen[share, seed] = {int(r["image"][0, 0, 0]) for r in found}
        assert len(prepared.source("valid")) == 7 and f"{len(found)} train" in prepared.described
        assert prepared.fingerprint != opened(source).fingerprint
    assert chosen[0.01, 0] < chosen[0.2, 0] < chosen[0.6, 0] and chosen[0.2, 0] != chosen[0.2, 1]
    held = opened(source, fraction=0.5, hold_out=True)  # of what is left after holding out
    assert np.bincount([r["label"] for r in records(held)]).tolist() == [2, 6, 18]  # round(6.5) is 6
    with pytest.raises(UserError, match=r"ImageData.fraction=0.0: a share of the training pictures lies in \(0, 1\]"):
        opened(source, fraction=0.0)


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("train-images-idx3-ubyte", lambda b: None, r"holds no train-images-idx3-ubyte or .gz of it: name the dir"),
        ("train-images-idx3-ubyte", lambda b: b[:-7], r"ubyte is cut short: it holds 393 of the 400 bytes that its"),
        ("train-images-idx3-ubyte", lambda b: b[:9], r"ubyte is cut short"),
        ("train-images-idx3-ubyte", lambda b: b + b"x", r"ubyte is too long: it holds over"),
        ("train-images-idx3-ubyte", lambda b: b"<html>", r"is no idx file of bytes in 3 or 4 dimensions \(it begins"),
        ("train-images-idx3-ubyte", lambda b: b"", r"is no idx file .* \(it begins with nothing\): fetch it again"),
        ("t10k-images-idx3-ubyte.gz", lambda b: b[:-20], r"t10k-images-idx3-ubyte.gz is cut short or damaged \("),
        ("t10k-images-idx3-ubyte.gz", lambda b: gzip.compress(gzip.decompress(b)[:-9]), r"cut short: it holds 191"),
        ("train-labels.idx1-ubyte", lambda b: None, r"train-images-idx3-ubyte has no labels beside it \(train-labels"),
        ("train-labels.idx1-ubyte", lambda b: idx_bytes(LABELS[:19]), r"19 labels for the 20 pictures of .*train"),
        ("t10k-labels-idx1-ubyte.gz", lambda b: idx_bytes(IMAGES), r"is no idx file of bytes in 1 dimensions"),
        ("t10k-images-idx3-ubyte.gz", lambda b: idx_bytes(np.stack([IMAGES[20:]] * 3, -1)),
         r"pictures of train have 1 channels, those of test 3: save them alike"),
    ],
)  # fmt: skip
def test_bad_idx(idx, name, change, message):
    content = change((idx / name).read_bytes())
    (idx / name).unlink()
    if content is not None:
        (idx / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        opened(f"idx:{idx}")
    assert "\n" not in str(error.value) and str(idx) in str(error.value)
    if "label" in name:
        assert {r["label"] for r in records(opened(f"idx:{idx}", labels=False))} == {-1}


# ------------------------------------------------------------------------------------------------------------------ npz


def test_npz(tmp_path):
    colour = np.stack([pixels(i) for i in range(12)])
    place = npz(tmp_path / "d.npz", x_train=colour[:8], y_train=np.arange(8)[:, None] % 4, x_test=colour[8:],
                y_test=np.zeros(4, np.int64))  # fmt: skip
    prepared = opened(place)
    assert [r["label"] for r in records(prepared)] == [0, 1, 2, 3] * 2 and prepared.classes == ("0", "1", "2", "3")
    assert (np.stack([r["image"] for r in records(prepared, "test")]) == colour[8:]).all()
    assert records(opened(f"npz:{place}", channels=1))[0]["image"].shape == (6, 9, 1)
    medical = npz(tmp_path / "m.npz", train_images=IMAGES[:9], train_labels=LABELS[:9], val_images=IMAGES[9:12],
                  val_labels=LABELS[9:12], test_images=IMAGES[12:], test_labels=LABELS[12:])  # fmt: skip
    assert [len(opened(medical).source(s)) for s in ("train", "valid", "test")] == [9, 3, 18]
    other = npz(
        tmp_path / "o.npz", X_Train=IMAGES[:9], Y_train=LABELS[:9], X_dev=IMAGES[9:], labels_dev=LABELS[9:], z=LABELS
    )
    assert {split: len(s) for split, s in opened(other).splits.items()} == {"train": 9, "valid": 21}
    assert opened(other).described.endswith("; arrays left out: z")
    for words in (np.array(["dog", "cat", "emu"]), np.array([b"dog", b"cat", b"emu"])):
        named = npz(tmp_path / "w.npz", x_train=IMAGES[:9], y_train=words[LABELS[:9]], x_test=IMAGES[9:],
                    y_test=words[LABELS[9:]])  # fmt: skip
        assert opened(named).classes == ("cat", "dog", "emu")
        assert [r["label"] for r in records(opened(named))] == [1, 0, 2] * 3
        assert [r["label"] for r in records(opened(named, classes=["dog", "cat", "emu"]), "test")] == [0, 1, 2] * 7
        with pytest.raises(UserError, match=r"y_train holds 'dog', which ImageData.classes does not name: name all"):
            opened(named, classes=["cat", "emu"])
    alone = opened(npz(tmp_path / "a.npz", images=IMAGES), labels=False)
    assert len(alone.source("train")) == 27 and alone.classes is None


@pytest.mark.parametrize(
    "arrays, message",
    [
        ({"x_train": IMAGES, "y_train": np.array([{}] * 30)}, r"y_train holds pickled objects, which are never loaded"),
        ({"images": np.array([None] * 30), "labels": LABELS}, r"images holds pickled objects, which are never"),
        ({"x_train": IMAGES, "train_images": IMAGES}, r"train_images and x_train, which both say pictures of train"),
        ({"x_train": IMAGES}, r"has x_train and no y_train: add it, or set ImageData.labels = False"),
        ({"x_train": IMAGES, "y_train": LABELS[:7]}, r"y_train holds 7 labels for the 30 pictures of x_train"),
        ({"x_train": IMAGES / 255, "y_train": LABELS}, r"x_train is float64 \[30, 4, 5\]: save pictures as uint8"),
        ({"x_train": IMAGES[:, None], "y_train": LABELS}, r"x_train is uint8 \[30, 1, 4, 5\]: save .* or \[N, height"),
        ({"x_train": IMAGES, "y_train": np.eye(30)}, r"y_train is float64 \[30, 30\]: labels are one integer for each"),
        ({"x_train": IMAGES, "y_train": LABELS - 5.0}, r"y_train is float64 \[30\]: labels are one integer"),
        ({"x_train": IMAGES, "y_train": LABELS.astype(int) - 2}, r"labels from -2 to 0: number classes from 0"),
        ({"x_train": IMAGES[:0], "y_train": LABELS[:0]}, r"x_train holds no pictures"),
        ({"weights": IMAGES}, r"holds weights: name its arrays x_train, y_train, x_test and y_test, or images and la"),
        ({"x_train": IMAGES, "y_train": LABELS, "x_test": np.stack([IMAGES] * 3, -1), "y_test": LABELS},
         r"pictures of train have 1 channels, those of test 3: save them alike"),
    ],
)  # fmt: skip
def test_bad_npz(tmp_path, arrays, message):
    place = npz(tmp_path / "d.npz", **arrays)
    with pytest.raises(UserError, match=message) as error:
        opened(place)
    assert "\n" not in str(error.value) and str(place) in str(error.value)


def test_broken_archives(tmp_path):
    for kind, fix in (("npz", "make it with numpy.savez"), ("zip", "pack or fetch it again")):
        place = tmp_path / f"d.{kind}"
        place.write_bytes(pickle.dumps([1, 2, 3]))
        with pytest.raises(UserError, match=rf"d.{kind} cannot be read as .*: {fix}"):
            opened(f"{kind}:{place}")
        with pytest.raises(UserError, match=rf"d.{kind} is neither a folder nor a whole .npz or .zip file"):
            opened(place)
        with pytest.raises(UserError, match=rf"{kind}:.*gone: no such file"):
            opened(f"{kind}:{tmp_path}/gone")
    for kind, length in (("tar", 1), ("tar.gz", 1), ("tar.xz", 1), ("tar.bz2", 2)):
        place = tarred(tmp_path / f"e.{kind}", SPLIT)
        raw = place.read_bytes()
        place.write_bytes(raw[: len(raw) // 2 + 100] if length == 1 else raw + b"and more")
        with pytest.raises(UserError, match=rf"e.{kind} cannot be read as a tar file \(.*\): pack or fetch it again"):
            opened(place)
    with pytest.raises(UserError, match="tar:.*gone: no such file"):
        opened(f"tar:{tmp_path}/gone")
    place = zipped(tmp_path / "e.zip", SPLIT)
    raw = bytearray(place.read_bytes())
    at = raw.index(b"PK\x01\x02")
    raw[at + 8] |= 1  # the flag of encryption
    place.write_bytes(bytes(raw))
    with pytest.raises(UserError, match=r"e.zip \(train/a/0.png\) is encrypted: pack the pictures again"):
        opened(place)
    large = zipped(tmp_path / "b.zip", {f"{i}.png": pixels(i) for i in range(4)})
    with zipfile.ZipFile(large, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("5.png", b"0" * (2 << 20))
    with pytest.raises(
        UserError, match=r"b.zip \(5.png\) .*\(it unpacks to 2,097,152 bytes, more than any picture of Image"
    ):
        prepared = opened(large, max_pixels=100)
        records(prepared), records(prepared, "valid")


# ----------------------------------------------------------------------------------------------------------------- tfds


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    tfds = pytest.importorskip("tensorflow_datasets")
    root = tmp_path_factory.mktemp("tfds")

    class TinyPictures(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(names=["cat", "dog"])}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, manager):
            return {"train": self._generate_examples(0, 12), "validation": self._generate_examples(12, 15)}

        def _generate_examples(self, start, end):
            for i in range(start, end):
                broken = {13: b"no picture"}
                yield i, {"image": io.BytesIO(broken.get(i, encoded(pixels(i)))), "label": i % 2}

    TinyPictures(data_dir=root, file_format="array_record").download_and_prepare(
        download_config=tfds.download.DownloadConfig(num_shards=2)
    )
    return root / "tiny_pictures" / "1.0.0"


def test_a_tfds_directory_below_the_home_directory(tfds_dir, monkeypatch):
    monkeypatch.setenv("HOME", str(tfds_dir.parent))
    wanted = opened(f"tfds:{tfds_dir}").fingerprint
    assert opened("tfds:~/1.0.0").fingerprint == opened("~/1.0.0").fingerprint == wanted


def test_tfds_is_read_without_tensorflow(tfds_dir):
    assert len(list(tfds_dir.glob("*train.array_record*"))) == 2
    prepared = opened(f"tfds:{tfds_dir}")
    assert prepared.classes == ("cat", "dog") and opened(tfds_dir).fingerprint == prepared.fingerprint
    for path in tfds_dir.iterdir():
        os.utime(path, ns=(1, 1))  # which is nothing of the content
    assert opened(tfds_dir).fingerprint == prepared.fingerprint
    found = records(prepared)
    known = {pixels(i).tobytes(): i for i in range(12)}
    order = [known[r["image"].tobytes()] for r in found]
    assert sorted(order) == list(range(12)) and [r["label"] for r in found] == [i % 2 for i in order]
    copy = pickle.loads(pickle.dumps(prepared.source("train")))
    assert (copy[7]["image"] == found[7]["image"]).all()
    assert records(opened(tfds_dir, labels=False))[0]["label"] == -1
    assert sorted(r["label"] for r in records(opened(tfds_dir, fraction=0.5))) == [0, 0, 0, 1, 1, 1]
    broken = []
    for i in range(3):
        try:
            prepared.source("valid")[i]
        except ValueError as error:
            broken.append((prepared.source("valid").name(i), str(error)))
    [(name, error)] = broken
    assert "tiny_pictures-validation.array_record" in name and "cannot identify image file" in error
    assert "tensorflow" not in sys.modules


def test_tfds_errors(tfds_dir, tmp_path, monkeypatch):
    with pytest.raises(
        UserError, match=r"has no feature 'pixels', only image, label: choose with ImageData.image_field$"
    ):
        opened(tfds_dir, image_field="pixels")
    with pytest.raises(
        UserError, match=r"no feature 'kind', .* ImageData.label_field, or set ImageData.labels = False"
    ):
        opened(tfds_dir, label_field="kind")
    with pytest.raises(UserError, match=r"^tfds:no_such_thing cannot be opened \(Dataset no_such_thing not found.\)$"):
        opened("tfds:no_such_thing")
    other = shutil.copytree(tfds_dir, tmp_path / "tfrecord")
    info = (other / "dataset_info.json").read_text()
    (other / "dataset_info.json").write_text(info.replace("array_record", "tfrecord"))
    for path in other.glob("*.array_record*"):
        path.rename(other / path.name.replace("array_record", "tfrecord"))
    with pytest.raises(
        UserError, match=r"is a TFRecord file, which cannot be read in any order: prepare the data again"
    ):
        opened(other)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    prepared_tfds.builder.cache_clear()
    with pytest.raises(UserError, match=r"^tfds:imagenet2012 needs tensorflow-datasets: pip install"):
        opened("tfds:imagenet2012")


# ---------------------------------------------------------------------------------------------------------------- names


def test_a_split_may_lack_classes_of_train(tmp_path):
    names = {f"train/{c}/{i}.png": pixels(i) for c in "abc" for i in range(2)} | {"val/b/7.png": pixels(7)}
    prepared = opened(folder(tmp_path / "d", names))
    assert prepared.classes == ("a", "b", "c") and [r["label"] for r in records(prepared, "valid")] == [1]
    assert "valid has none of a, c" in prepared.described


@pytest.mark.parametrize(
    "source, message",
    [
        ("digit", r"^unknown image source 'digit': did you mean 'digits'\? choose from digits, shapes, idx, npz, fol"),
        ("ixd:DIR", r"^unknown image source 'ixd': did you mean 'idx'\?"),
        ("no/such/folder", r"image source no/such/folder: no such file or directory \(sources without files: digits,"),
        ("folder:nowhere", r"^folder:nowhere: no such directory"),
        ("idx:nowhere", r"^idx:nowhere: no such directory"),
        ("folder:", r"names no place: write folder:PATH"),
        ("tfds", r"names no place: write tfds:NAME"),
        ("shapes:3", r"nothing comes after shapes; its settings are ImageData's"),
    ],
)
def test_unknown_sources(source, message):
    with pytest.raises(UserError, match=message) as error:
        opened(source)
    assert "\n" not in str(error.value)


def test_nothing_heavy_is_imported_for_a_source_that_does_not_need_it():
    code = (
        "import sys, vision.data; vision.data.ImageData('shapes').build(progress=False).source('train')[3]; "
        "sys.exit(([m for m in ('jax', 'sklearn', 'tensorflow', 'tensorflow_datasets') if m in sys.modules] or 0))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
