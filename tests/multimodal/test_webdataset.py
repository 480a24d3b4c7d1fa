"""Tar files as people pack them: dotted names, several captions, classes by name, archives one after the other."""

import os
import shutil

import pytest

from paradigm.errors import UserError
from tests.multimodal.pairs import opened, records, shard, tar
from tests.vision.pictures import encoded, pixels


def everything(prepared):
    """caption -> record, of all splits."""
    return {r["caption"]: r for split in prepared.splits for r in records(prepared, split)}


def pair(key, i, text=".txt", picture=".png"):
    return [(f"{key}{picture}", encoded(pixels(i))), (f"{key}{text}", f"caption {i}".encode())]


@pytest.mark.parametrize("key", ["photo.{}", "track {} v2.0 final", "./set.v1/{}", "a.b/c.{}.d", "{}.5", "IMG.2024.{}"])
def test_names_have_dots(tmp_path, key):
    members = [member for i in range(10) for member in pair(key.format(i), i)]
    members += [member for i in range(10, 14) for member in pair(f"{i:04}", i)]
    found = everything(opened(tar(tmp_path / "t.tar", *members)))
    assert len(found) == 14 and all((found[f"caption {i}"]["image"] == pixels(i)).all() for i in range(14))


def test_two_readings_of_dots(tmp_path):
    """What is no pair by itself goes by WebDataset's rule."""
    members = []
    for i in range(4):
        members += [(f"a{i}.seg.png", encoded(pixels(90 + i))), *pair(f"a{i}", i), (f"a{i}.ocr.txt", b"EXIT")]
        members += pair(f"b{i}", 10 + i, ".caption.txt") + pair(f"c{i}", 20 + i, ".long.txt", ".image.png")
        members += pair(f"d{i}", 30 + i) + pair(f"d{i}.1", 40 + i)
    prepared = opened(tar(tmp_path / "t.tar", *members))
    found = everything(prepared)
    assert set(found) == {f"caption {k + i}" for k in (0, 10, 20, 30, 40) for i in range(4)}
    assert all((record["image"] == pixels(int(text[8:]))).all() for text, record in found.items())
    assert "members taken into pairs: .caption.txt (4), .image (a picture) (4), .long.txt (4)" in prepared.described
    assert "4 files of .ocr.txt left out, 4 files of .seg (a picture) left out" in prepared.described


def test_two_pictures_of_one_text(tmp_path):
    members = [(f"{i}.{side}.png", encoded(pixels(i))) for i in range(4) for side in ("left", "right")]
    path = tar(tmp_path / "t.tar", *members, *[(f"{i}.txt", b"x") for i in range(4)])
    with pytest.raises(UserError, match=r"t.tar has the pictures 0.left and 0.right for the text of 0: give that the"):
        opened(path)


def test_all_caption_members_are_read(tmp_path):
    members = []
    for i in range(6):
        members += [*pair(f"{i}", i), (f"{i}.caption", f"other {i}".encode()), (f"{i}.json", {"caption": f"third {i}"})]
    prepared = opened(tar(tmp_path / "t.tar", *members))
    assert {r["captions"] for r in records(prepared)} <= {
        (f"caption {i}", f"other {i}", f"third {i}") for i in range(6)
    }
    assert "captions from .txt (6), .caption (6), caption of .json (6)" in prepared.described
    members = []  # as img2dataset packs them: the .json says the caption once more
    for i in range(6):
        said = {"caption": f"caption {i}", "url": "x", "error_message": None, "width": i, "sha256": str(i)}
        members += [*pair(f"{i}", i), (f"{i}.json", said), (f"{i}.npy", b"x")]
    prepared = opened(tar(tmp_path / "u.tar", *members))
    assert {len(r["captions"]) for r in records(prepared)} == {1}
    assert "captions from .txt (6); 6 files of .npy left out" in prepared.described
    odd = [[None, "a"], 5, ["b"], "c", ["d", None], {"text": ["e"]}]
    members = [m for i in range(6) for m in (pair(f"{i}", i)[0], (f"{i}.json", {"caption": odd[i]}))]
    found = opened(tar(tmp_path / "o.tar", *members))
    assert {r["captions"] for split in found.splits for r in records(found, split)} == {(x,) for x in "a5bcde"}
    members = [m for i in range(6) for m in (pair(f"{i}", i)[0], (f"{i}.json", [f"one {i}", f"two {i}"]))]
    assert {r["captions"][1][:3] for r in records(opened(tar(tmp_path / "v.tar", *members)))} == {"two"}


def test_no_caption_under_that_name(tmp_path):
    members = [m for i in range(6) for m in (pair(f"{i}", i)[0], (f"{i}.json", {"title": "x", "url": "y"}))]
    path = tar(tmp_path / "t.tar", *members)
    message = r"none of 6 pairs looked at has a text in \['caption'\]; their .json have title, url: choose with PairD"
    with pytest.raises(UserError, match=message):
        opened(path)
    assert "captions from title of .json" in opened(path, text=["title"]).described
    members = [m for i in range(6) for m in (pair(f"{i}", i)[0], (f"{i}.json", {"caption": [{"raw": "x", "id": i}]}))]
    message = r"none of 6 pairs .* a text in \['caption'\] \(where its text should be stands an object of raw, id\)"
    with pytest.raises(UserError, match=message):
        opened(tar(tmp_path / "u.tar", *members))


def test_classes_may_be_names(tmp_path):
    members = [m for i in range(6) for m in (*pair(f"{i}", i), (f"{i}.cls", ["cat\n", "dog"][i % 2].encode()))]
    prepared = opened(tar(tmp_path / "t.tar", *members))
    assert prepared.classes == ("cat", "dog") and "classes by .cls: cat, dog" in prepared.described
    assert {text: r["label"] for text, r in everything(prepared).items()} == {f"caption {i}": i % 2 for i in range(6)}
    train = prepared.source("train")
    assert train.records.read_labels().tolist() == [train[i]["label"] for i in range(len(train))]
    again = [opened(tmp_path / "t.tar", tmp_path / "cache") for _ in range(2)]
    assert again[0].classes == again[1].classes == ("cat", "dog")
    named = opened(tmp_path / "t.tar", tmp_path / "cache", classes=["dog", "cat"])
    assert {text: r["label"] for text, r in everything(named).items()} == {f"caption {i}": 1 - i % 2 for i in range(6)}
    with pytest.raises(UserError, match=r"is of class 'cat' and PairData.classes has 2 names"):
        opened(tmp_path / "t.tar", classes=["dog", "bird"])


@pytest.mark.parametrize("label", [lambda i: f"{i / 7:.2f}", lambda i: f"id{i}", str])
def test_numbers_and_ids_in_cls_are_no_classes(label, tmp_path):
    members = [m for i in range(24) for m in (*pair(f"{i}", i), (f"{i}.cls", label(i).encode()))]
    prepared = opened(tar(tmp_path / "t.tar", *members))
    assert prepared.classes is None and {r["label"] for r in everything(prepared).values()} == {-1}
    assert "24 .cls that are no label left out" in prepared.described


def test_a_class_that_nobody_can_read_ends_nothing(tmp_path):
    labels = [b"", b"\xff\xfe", b"1", b"0", b"x" * 999, b"-7"]
    members = [m for i in range(6) for m in (*pair(f"{i}", i), (f"{i}.cls", labels[i]))]
    prepared = opened(tar(tmp_path / "t.tar", *members))
    assert [r["label"] for _, r in sorted(everything(prepared).items())] == [-1, -1, 1, 0, -1, -1]
    assert "3 .cls that are no label left out" in prepared.described and prepared.classes is None


def test_tars_one_after_the_other_are_read_whole(tmp_path):
    shard(tmp_path / "a.tar", 0, 5)
    shard(tmp_path / "b.tar", 5, 5)
    joined = tmp_path / "joined.tar"
    joined.write_bytes((tmp_path / "a.tar").read_bytes() + (tmp_path / "b.tar").read_bytes())
    assert set(everything(opened(joined))) == {f"caption {i}" for i in range(10)}
    other = tar(tmp_path / "c.tar", *[m for i in range(5) for m in pair(f"x/{i:04}", 20 + i)])  # the same keys
    third = tar(tmp_path / "d.tar", *[m for i in range(5) for m in pair(f"x/{i:04}", 30 + i)])
    joined.write_bytes(b"".join(path.read_bytes() for path in (tmp_path / "a.tar", other, third)))
    assert set(everything(opened(joined))) == {f"caption {k + i}" for k in (0, 20, 30) for i in range(5)}
    size = (tmp_path / "a.tar").stat().st_size
    joined.write_bytes((tmp_path / "a.tar").read_bytes() + b"x" * 1024)
    with pytest.raises(UserError, match=rf"joined.tar is damaged at byte {size}: fetch or pack it again"):
        opened(joined)


def test_hidden_members_are_nobody_s(tmp_path):
    hidden = [("__MACOSX/._0.png", b"x"), ("._0.txt", b"x"), (".git/1.txt", b"x"), ("a/.DS_Store", b"x")]
    members = [m for i in range(6) for m in pair(f"a/{i}", i)]
    shutil.copy(tar(tmp_path / "t.tar", *hidden, *members), tmp_path / "._t.tar")
    (tmp_path / "._t.tar").write_bytes(b"a resource fork")
    (tmp_path / "sizes.json").write_bytes(b"{}")
    prepared = opened(f"wds:{tmp_path}")
    assert len(everything(prepared)) == 6 and "5 hidden names left out" in prepared.described
    assert "1 file of .json left out" in prepared.described


@pytest.mark.parametrize("names", [("Train/0", "val/0", "test/0"), ("cc-train-0", "cc-valid-0", "cc-test-0")])
def test_shards_may_say_their_split(tmp_path, names):
    for k, name in enumerate(names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shard(tmp_path / f"{name}.tar", 4 * k, 4)
    prepared = opened(f"wds:{tmp_path}")
    found = {split: {int(r["caption"][8:]) for r in records(prepared, split)} for split in prepared.splits}
    assert found == {"train": {0, 1, 2, 3}, "valid": {4, 5, 6, 7}, "test": {8, 9, 10, 11}}
    assert "splits by the shards' names: 1 of train, 1 of valid, 1 of test" in prepared.described
    shard(tmp_path / "more.tar", 20, 4)
    with pytest.raises(UserError, match=r"holds shards of test and train and valid and more.tar: name those to read"):
        opened(f"wds:{tmp_path}")


def test_the_identity_of_tars_is_their_content(tmp_path, monkeypatch):
    path = shard(tmp_path / "t.tar", 0, 6)
    wanted = opened(path).fingerprint
    os.utime(path, ns=(1, 1))
    monkeypatch.chdir(tmp_path)
    assert opened(path).fingerprint == opened("./t.tar").fingerprint == opened("wds:t.tar").fingerprint == wanted
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b"caption 3", b"caption 8"))
    assert opened(path).fingerprint != wanted
