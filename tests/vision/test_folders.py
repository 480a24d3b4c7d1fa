"""Folders and zip files of pictures as people have them: what is a split, a class, an outer folder, or left out."""

import io
import os
import shutil
import tarfile

import pytest

from paradigm.errors import UserError
from tests.vision.pictures import encoded, folder, opened, pixels, records, zipped
from vision.decode_image import suffixes


@pytest.mark.parametrize(
    "names, words",
    [
        ("Training Testing", "Testing is test, Training is train"),
        ("TRAIN VAL", "TRAIN is train, VAL is valid"),
        ("train2017 val2017", "train2017 is train, val2017 is valid"),
        ("training_set test_set", "test_set is test, training_set is train"),
        ("Train dev Test", "Test is test, Train is train, dev is valid"),
        ("seg_train seg_test", "seg_test is test, seg_train is train"),
        ("1_train 2_test", "1_train is train, 2_test is test"),
        ("train heldout", "heldout is valid, train is train"),
    ],
)
def test_splits_have_many_names(tmp_path, names, words):
    files = {f"data/{part}/{c}/{i}.png": pixels(i) for part in names.split() for i, c in enumerate("aabb")}
    for place in (folder(tmp_path / "d", files), zipped(tmp_path / "d.zip", files)):
        prepared = opened(place)
        assert set(prepared.splits) >= {"train", "valid"} and prepared.classes == ("a", "b")
        assert len(prepared.source("train")) == 4
        assert f"all inside of data; splits by folder: {words}" in prepared.described
        assert "classes by folder: a, b" in prepared.described


def test_one_folder_inside_of_all_splits_is_no_class(tmp_path):
    files = {f"{part}/images/{c}/{i}.png": pixels(i) for part in ("train", "test") for i, c in enumerate("aabb")}
    prepared = opened(folder(tmp_path / "d", files))
    assert prepared.classes == ("a", "b") and "all of a split inside of images; splits by folder" in prepared.described
    flat = {f"{part}/images/{i}.png": pixels(i) for part in ("train", "test") for i in range(4)}
    assert "no labels" in opened(folder(tmp_path / "f", flat)).described


def test_a_test_split_without_labels_is_no_validation(tmp_path):
    files = {f"train/{c}/{i}.png": pixels(i) for i, c in enumerate("aaaabbbb")}
    prepared = opened(folder(tmp_path / "d", files | {f"test/{i}.png": pixels(i) for i in range(4)}))
    assert "valid held out of train, since test has no labels" in prepared.described
    assert {record["label"] for record in records(prepared, "valid")} == {0, 1} and len(prepared.source("test")) == 4


def test_classes_may_bring_their_splits(tmp_path):
    files = {f"d/{c}/{part}/{i}.png": pixels(i) for part in ("Train", "Test") for i, c in enumerate("abab")}
    for place in (folder(tmp_path / "d", files), zipped(tmp_path / "d.zip", files)):
        prepared = opened(place)
        assert prepared.classes == ("a", "b") and [r["label"] for r in records(prepared, "test")] == [0, 0, 1, 1]
        assert "splits by folder: Test is test, Train is train" in prepared.described
    with pytest.raises(UserError, match=r"holds folders train inside of its folders, and others .* such as c/3.png, c"):
        opened(folder(tmp_path / "e", {f"{k}.png": pixels(0) for k in ("a/train/0", "b/train/1", "c/new/2", "c/3")}))


def test_outer_folders_are_passed_through(tmp_path):
    files = {f"x/y/z/{c}/{i}.png": pixels(i) for i, c in enumerate("ababab")}
    twice = {f"d/train/train/{c}/{i}.png": pixels(i) for i, c in enumerate("ababab")}
    for k, (content, outer) in enumerate(((files, "x/y/z"), (twice, "d/train"))):
        for place in (folder(tmp_path / f"{k}", content), zipped(tmp_path / f"{k}.zip", content)):
            prepared = opened(place)
            assert prepared.classes == ("a", "b") and f"all inside of {outer};" in prepared.described
    kaggle = {f"{s}_set/{s}_set/{c}/{i}.png": pixels(i) for s in ("training", "test") for i, c in enumerate("abab")}
    prepared = opened(zipped(tmp_path / "k.zip", kaggle | {"README.md": b"x"}))
    assert prepared.classes == ("a", "b") and len(prepared.source("test")) == 4
    windows = zipped(tmp_path / "w.zip", {f"pets\\{c}\\{i}.png": pixels(i) for i, c in enumerate("abab")})
    assert opened(windows).classes == ("a", "b")


@pytest.mark.parametrize(
    "names, message",
    [
        ("train/a/0 Training/a/1 test/a/2", r"holds Training and train, which both say train: rename or remove one"),
        ("train/a/0 val/a/1 dev/a/2", r"holds dev and val, which both say valid"),
        (
            "test/0 cat/1 dog/2",
            r"holds test beside cat, dog: a split or a class\? If a split, put the others into a fo",
        ),
        ("train/0 bus/1 car/2", r"holds train beside bus, car: a split or a class\? If a split, move the others away"),
    ],
)
def test_a_folder_that_may_be_two_things(tmp_path, names, message):
    files = {f"{name}.png": pixels(i) for i, name in enumerate(names.split())}
    for place in (folder(tmp_path / "d", files), zipped(tmp_path / "d.zip", files)):
        with pytest.raises(UserError, match=message):
            opened(place)


def test_what_is_not_read_is_counted_by_kind(tmp_path):
    others = {"a/x.heic": b"x", "b/y.heic": b"x", "a/Thumbs.db": b"x", "a/noext": b"x", "a/._0.png": b"x",
              "__MACOSX/a/0.png": b"x", ".git/0.png": b"x", "b/.DS_Store": b"x"}  # fmt: skip
    files = {f"{'ab'[i % 2]}/{i}.JPG": encoded(pixels(i), "JPEG") for i in range(6)} | others
    for place, hidden in ((folder(tmp_path / "d", files), 4), (zipped(tmp_path / "d.zip", files), 4)):
        said = opened(place).described
        assert f"{hidden} hidden names left out" in said and "6 pictures" not in said
        assert "2 files of .heic left out" in said and ".heic needs pip install pillow-heif" in said
        assert "1 file of .db left out" in said and "1 file of no suffix left out" in said
    only = folder(tmp_path / "e", {"a/x.heic": b"x"})
    with pytest.raises(UserError, match=r"holds no pictures .*; it holds .heic \(.heic needs pip install pillow-heif"):
        opened(only)


@pytest.mark.parametrize("kind, suffix", [("AVIF", "avif"), ("WEBP", "webp"), ("TIFF", "tiff"), ("JPEG", "jfif"),
                                          ("JPEG2000", "jp2"), ("TGA", "tga"), ("PPM", "pnm")])  # fmt: skip
def test_all_that_pillow_reads_is_read(tmp_path, kind, suffix):
    if f".{suffix}" not in suffixes():
        pytest.skip("this Pillow is without it")
    place = folder(tmp_path, {f"{i}.{suffix.upper()}": encoded(pixels(i, 32, 32), kind) for i in range(4)})
    assert len(records(opened(place))) == 3


def test_held_out_pictures_that_cannot_be_read_are_found_at_the_start(tmp_path):
    whole = encoded(pixels(0, 64, 64))
    files = {f"train/{i}.png": pixels(i) for i in range(4)} | {f"val/{i}.png": whole[:-2000] for i in range(3)}
    place = folder(tmp_path / "d", files)  # whose headers are whole
    with pytest.raises(UserError, match=r"held out: none of 3 records looked at can be read, such as .*2.png \("):
        opened(place)
    (place / "val/1.png").write_bytes(whole)
    assert len(opened(place).source("valid")) == 3


def test_the_identity_of_a_folder_is_its_content(tmp_path, monkeypatch):
    place = folder(tmp_path / "d", {f"{'ab'[i % 2]}/{i}.png": pixels(i) for i in range(6)})
    wanted = opened(place).fingerprint
    for path in place.rglob("*.png"):
        os.utime(path, ns=(1, 1))
    monkeypatch.chdir(tmp_path)
    assert opened(place).fingerprint == opened("./d").fingerprint == opened("folder:d/").fingerprint == wanted
    assert opened(shutil.copytree(place, tmp_path / "elsewhere")).fingerprint == wanted
    (place / "a/0.png").write_bytes((place / "a/0.png").read_bytes()[::-1])  # as long as before
    assert opened(place).fingerprint != wanted


def test_folders_that_say_a_split_twice_and_accents_in_two_forms(tmp_path):
    """seg_train/seg_train/CLASS, as in archives packed twice; an accent as a Mac writes it and as others do."""
    classes = {"train": ("caf\xe9", "pub"), "test": ("cafe\u0301", "pub")}
    files = {
        f"seg_{split}/seg_{split}/{name}/{i}.png": pixels(i)
        for split in classes
        for name in classes[split]
        for i in range(3)
    }
    prepared = opened(folder(tmp_path / "d", files))
    assert prepared.classes == ("caf\xe9", "pub")
    assert {s: len(prepared.source(s)) for s in ("train", "test")} == {"train": 6, "test": 6}
    assert [r["label"] for r in records(prepared, "test")] == [0, 0, 0, 1, 1, 1]


def test_archives_say_what_is_not_there(tmp_path):
    """Links lead to files; of several of one name the last is read; both are told where they come to nothing."""
    with tarfile.open(tmp_path / "d.tar", "w") as archive:
        links = [("b/3.png", "../a/0.png"), ("b/4.png", "gone.png")]
        for name, target in [*((name, "") for name in ("a/0.png", "a/1.png", "b/2.png", "b/2.png")), *links]:
            member, raw = tarfile.TarInfo(name), encoded(pixels(1))
            member.type, member.linkname = (tarfile.SYMTYPE, target) if target else (tarfile.REGTYPE, "")
            member.size = 0 if target else len(raw)
            archive.addfile(member, io.BytesIO(raw))
    found = opened(tmp_path / "d.tar")
    assert sum(len(found.source(split)) for split in ("train", "valid")) == 4 and found.classes == ("a", "b")
    assert "1 dangling link left out, 1 replaced file left out" in found.note
