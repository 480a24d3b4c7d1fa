import io
import os
import pickle
import shutil
import sys
import tarfile

import numpy as np
import pytest

from multimodal.fields import captions_of, held_out
from paradigm.errors import UserError
from tests.multimodal.pairs import DESIGNERS, designers, opened, plain, records, shard, table, tar
from tests.vision.pictures import encoded, folder, pixels, zipped
from vision.synthetic_scenes import Shapes

# --------------------------------------------------------------------------------------------------------------- tables


def test_a_table_and_its_zip_give_pairs(tmp_path):
    path = plain(tmp_path)
    (tmp_path / "packed").mkdir()
    packed = zipped(tmp_path / "packed" / "pairs.zip", {f"{i}.png": pixels(i) for i in range(8)})
    shutil.copy(path, packed.parent)
    for source in (path, f"tsv:{path}", packed.with_suffix(".tsv")):
        prepared = opened(source)
        found = records(prepared) + records(prepared, "valid")
        assert len(prepared.source("valid")) == 1 and len(found) == 8
        for record in found:
            i = int(record["caption"].split()[1])
            assert (record["image"] == pixels(i)).all() and record["captions"] == (f"caption {i}",)
            assert record["label"] == -1
        name = prepared.source().name(0)
        assert name.endswith(f"pairs.tsv line {2 + int(found[0]['caption'][-1])} ({found[0]['caption'][-1]}.png)")


def test_designers_and_concepts_are_held_out(tmp_path):
    prepared = opened(designers(tmp_path), test_images=["c.zip"], valid=0.3, label="family", **DESIGNERS)
    assert prepared.classes == tuple(f"family {i}" for i in range(6))
    drawn = {pixels(100 * k + i).tobytes(): (k, i) for k in range(3) for i in range(12)}
    seen = {}
    for split in prepared.splits:
        found = records(prepared, split)
        seen[split] = [drawn[r["image"].tobytes()] for r in found]
        assert [r["label"] for r in found] == [i // 2 for _, i in seen[split]]
        assert [r["caption"] for r in found] == [f"thing {i}" for _, i in seen[split]]
    concepts = {split: {i for _, i in pairs} for split, pairs in seen.items()}
    assert concepts["train"] | concepts["valid"] == set(range(12)) and not concepts["train"] & concepts["valid"]
    assert concepts["test"] == concepts["train"] and concepts["test_unseen"] == concepts["valid"]
    assert all({2 * (i // 2), 2 * (i // 2) + 1} <= concepts["valid"] for i in concepts["valid"])  # whole families
    assert len(concepts["valid"]) == 4  # 0.3 of six families
    for split, pairs in seen.items():
        wanted = {2} if split.startswith("test") else {0, 1}
        assert {k for k, _ in pairs} == wanted
        assert len(pairs) == len(concepts[split]) * len(wanted) - ((1, 11) not in pairs and 11 in concepts[split]) * (
            wanted == {0, 1}
        )
    assert (1, 11) not in seen["train"] + seen["valid"] and (0, 11) in seen["train"] + seen["valid"]


def test_a_column_may_say_the_split(tmp_path):
    folder(tmp_path, {f"{i}.png": pixels(i) for i in range(5)})
    splits = ["train", "dev", "test", "train", "train"]
    path = table(tmp_path, ("image", "caption", "part"), *((f"{i}.png", f"c {i}", s) for i, s in enumerate(splits)))
    prepared = opened(path, split="part")
    captions = {split: [r["caption"] for r in records(prepared, split)] for split in prepared.splits}
    assert captions == {"train": ["c 0", "c 3", "c 4"], "valid": ["c 1"], "test": ["c 2"]}
    path.write_text(path.read_text().replace("dev", "tset"))
    with pytest.raises(UserError, match=r"unknown split in the column part of .*'tset': did you mean 'test'\?"):
        opened(path, split="part")


def test_captions_of_fields():
    fields = {"a": " one\n two ", "b": "x|y", "c": "", "d": [b"first", "", "third"], "e": {"text": ["t"], "id": [1]}}
    assert captions_of(fields, ("a",)) == ("one two",)
    assert captions_of(fields, ("c", "nothing", "d")) == ("first", "third")
    assert captions_of(fields, ("{a}: {b}", "{a} {c}", "e"), "|") == ("one two: x, y", "t")
    assert captions_of(fields, ("b",)) == ("x|y",)


def test_held_out_groups_are_whole_and_one_at_least():
    hashes = np.repeat(np.array([5, 3, 9, 7], np.uint64), 3)
    assert (held_out(hashes, 0.01, "x") == (hashes == 3)).all()
    assert (held_out(hashes, 0.5, "x") == (hashes <= 5)).all()
    assert held_out(hashes, 0.999, "x").sum() == 9  # something is left to train on
    with pytest.raises(UserError, match=r"^x holds 2 pairs that belong together: none can be held out"):
        held_out([4, 4], 0.5, "x")


PARTS = "image\tcaption\tpart\n0.png\ta\ttrain\n1.png\tb\tvalid\n"


def write(tmp_path, text):
    (tmp_path / "pairs.tsv").write_text(text)


@pytest.mark.parametrize(
    "change, settings, message",
    [
        (lambda d: write(d, ""), {}, r"pairs.tsv is empty: it wants a header and a line for each pair"),
        (lambda d: write(d, "image\tcaption\n\n"), {}, r"has a header and no lines: it wants"),
        (None, {"text": ["title"]}, r"no column 'title', only image, caption: choose with PairData.text$"),
        (None, {"text": ["{caption} {more}"]}, r"no column 'more', only image, caption: choose with PairData.text$"),
        (None, {"image": "file"}, r"no column 'file', only image, caption: choose with PairData.image$"),
        (None, {"label": "kind"}, r"no column 'kind', .* PairData.label$"),
        (None, {"group": "base"}, r"no column 'base', .* PairData.group$"),
        (lambda d: write(d, "image\tcaption\tcaption\n0.png\ta\tb\n"), {}, r"has 2 columns 'caption': give each a"),
        (
            lambda d: write(d, "image\tcaption\tkind\n0.png\ta\t\n1.png\tb\t\n"),
            {"label": "kind"},
            r"the column kind names no class: fill it, or leave out PairData.label$",
        ),
        (
            lambda d: write(d, "image\tcaption\tpart\n0.png\ta\tvalid\n1.png\tb\ttest\n"),
            {"split": "part"},
            r"the column part says train in no line: add some, or leave it out$",
        ),
        (
            lambda d: write(d, "image\tcaption\tpart\n0.png\ta\ttrain\n1.png\tb\ttest\n2.png\tc\tvalid\n"),
            {"split": "part", "images": ["."], "test_images": ["."]},
            r"PairData.split names a test split and PairData.test_images another: leave one out$",
        ),
        (
            lambda d: (zipped(d / "more.zip", {"0.png": pixels(0)}), write(d, PARTS)),
            {"split": "part", "images": ["."], "test_images": ["more.zip"]},
            r"no line of test_unseen has its picture in those places: check PairData.images$",
        ),
        (lambda d: write(d, "image\tcaption\n0.png\n"), {}, r"line 2 has 1 columns and the header 2: mend that line$"),
        (
            lambda d: write(d, "image\tcaption\n0.png\ta\n../0.png\tb\n"),
            {},
            r"line 3: the picture '../0.png' lies outside of .*: set PairData.images to the folders",
        ),
        (lambda d: (d / "pairs.tsv").write_bytes(b"image\tcaption\n\xff\tb\n"), {}, r"is not UTF-8 \(byte 14\)"),
        (None, {"images": ["no.zip"]}, r"no.zip of PairData.images is not there: name the zip file or folder"),
        (None, {"images": ["0.png"]}, r"0.png of PairData.images is neither a folder nor a whole zip file"),
        (
            None,
            {"image_suffix": ".jpg"},
            r"has the picture of no line, such as '0.png.jpg'; it holds 0.png, 1.png: set",
        ),
        (
            lambda d: write(d, "image\tcaption\nhttps://a.b/0.png\ta\nhttps://a.b/1.png\tb\n"),
            {},
            r"names pictures by web addresses, such as .https://a.b/0.png., and nothing is fetched here: img2d",
        ),
        (lambda d: write(d, "image\tcaption\n0.png\t \n1.png\t\n"), {}, r"has 2 lines without text, first line 2 \(0"),
        (lambda d: write(d, "image\tcaption\n0.png\tx\n"), {}, r"holds 1 pair that belong together"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path, change, settings, message):
    plain(tmp_path)
    if change:
        change(tmp_path)
    with pytest.raises(UserError, match=message) as error:
        opened(tmp_path / "pairs.tsv", **settings)
    assert "\n" not in str(error.value)


# ----------------------------------------------------------------------------------------------------------------- tars


def test_tar_files_are_read_in_any_order(tmp_path):
    shard(tmp_path / "t-00.tar", 0, 7)
    shard(tmp_path / "t-01.tar", 7, 5)
    for place in (tmp_path, tmp_path / "t-*.tar", f"{tmp_path}/t-{{00..01}}.tar"):
        prepared = opened(f"wds:{place}", valid=0.3)
        assert len(prepared.source("valid")) == 4
        for split in ("train", "valid"):
            source = pickle.loads(pickle.dumps(prepared.source(split)))
            for i in reversed(range(len(source))):
                record = source[i]
                k = int(record["caption"].split()[1])
                assert (record["image"] == pixels(k)).all() and record["tokens"][0].tolist() == [
                    byte + 3 for byte in f"caption {k}".encode()
                ]
                assert source.name(i) == f"{tmp_path}/t-0{int(k >= 7)}.tar (x/{k:04d}.txt)"
    by_shard = opened(tmp_path, valid_glob="*-01.tar")
    assert {r["caption"] for r in records(by_shard, "valid")} == {f"caption {k}" for k in range(7, 12)}
    with pytest.raises(UserError, match=r"no shard with pairs matches PairData.valid_glob='v'"):
        opened(tmp_path, valid_glob="v")


def test_json_classes_and_what_is_not_of_a_pair(tmp_path):
    members = [("readme", b"no pair"), ("./a.png", encoded(pixels(0))), ("./a.json", {"caption": "A", "long": "AA"})]
    members += [("b.seg.png", b"a mask"), ("b.PNG", encoded(pixels(1))), ("b.txt", b"B"), ("b.cls", b"1")]
    members += [("b.json", {"long": "BB"})]
    path = tar(tmp_path / "t.tar", *members)
    prepared = opened(path, classes=["no", "yes"])
    found = {r["caption"]: r for split in prepared.splits for r in records(prepared, split)}
    assert {k: (r["label"], int((r["image"] == pixels(k == "B")).all())) for k, r in found.items()} == {
        "A": (-1, 1),
        "B": (1, 1),
    }
    prepared = opened(path, text=["long"])
    assert {r["caption"] for split in prepared.splits for r in records(prepared, split)} == {"AA", "BB"}


def test_the_index_is_kept_and_made_again(tmp_path, monkeypatch):
    path, cache = shard(tmp_path / "t.tar", 0, 6), tmp_path / "cache"
    first = opened(path, cache)
    with monkeypatch.context() as patch:
        patch.setattr(tarfile, "open", None)  # the headers are not read again
        again = opened(path, cache)
    assert again.fingerprint == first.fingerprint
    assert [r["caption"] for r in records(again)] == [r["caption"] for r in records(first)]
    raw = pickle.dumps(again.source())
    assert pickle.loads(raw)[2]["caption"] == first.source()[2]["caption"]
    assert again.splits["train"].index.rows[:].tobytes() not in raw  # workers map the file
    (cache / "pairs_index.npy").write_bytes(b"")  # as a full disk might leave it
    assert len(opened(path, cache).source()) == 5
    shard(path, 10, 4)
    os.utime(path, ns=(1, 1))
    changed = opened(path, cache)
    assert changed.fingerprint != first.fingerprint
    assert {r["caption"][:9] for r in records(changed)} == {"caption 1"}


def link(name, kind, target):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return name, info


PAIR = [("a.png", encoded(pixels(0))), ("a.txt", b"A")]


@pytest.mark.parametrize(
    "members, message",
    [
        ([("../a.png", b"x")], r"t.tar is refused: its member '../a.png' leads outside; pack it again without$"),
        ([("x/../../a.txt", b"x")], r"is refused: its member 'x/../../a.txt' leads outside"),
        ([("/etc/a.txt", b"x")], r"is refused: its member '/etc/a.txt' leads outside"),
        ([link("a.txt", tarfile.SYMTYPE, "/etc/passwd")], r"is refused: its member 'a.txt' is a link"),
        ([*PAIR, link("b.txt", tarfile.LNKTYPE, "a.txt")], r"is refused: its member 'b.txt' is a link"),
        ([link("a.txt", tarfile.FIFOTYPE, "")], r"is refused: its member 'a.txt' is no plain file"),
        ([*PAIR, ("a.jpg", b"x")], r"t.tar has two members for a.jpg: give each pair a key of its own"),
        ([("notes", b"x")], r"holds no picture and no .txt or .json in 1 tar files"),
        ([("a.txt", b"x"), ("b.txt", b"x")], r"has 2 pairs without a picture or a text, first .*\(a.txt\): mend them"),
        (PAIR, r"t.tar holds 1 pair that belong together"),
    ],
)
def test_tars_that_are_refused(tmp_path, members, message):
    tar(tmp_path / "t.tar", *members)
    with pytest.raises(UserError, match=message) as error:
        opened(tmp_path / "t.tar")
    assert "\n" not in str(error.value)


def test_damaged_tars(tmp_path):
    path = shard(tmp_path / "t.tar", 0, 6)
    raw = path.read_bytes()
    second = raw.index(b"x/0003.png")
    path.write_bytes(raw[:second] + b"?" * 512 + raw[second + 512 :])
    with pytest.raises(UserError, match=rf"t.tar is damaged at byte {second}: fetch or pack it again"):
        opened(path)
    path.write_bytes(raw[:second])  # between two members, where tarfile sees an end like any other
    with pytest.raises(UserError, match=rf"t.tar is cut short at byte {second}: fetch or pack it again"):
        opened(path)
    path.write_bytes(raw[: second + 600])
    with pytest.raises(UserError, match=r"cannot be read as an uncompressed tar file \(unexpected end of data\)"):
        opened(path)
    with tarfile.open(path, "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a.txt"), io.BytesIO())
    with pytest.raises(UserError, match=r"cannot be read as an uncompressed tar file"):
        opened(path)
    with pytest.raises(UserError, match=r"t-2.tar is missing"):
        shard(tmp_path / "t-1.tar", 0, 2)
        opened(f"wds:{tmp_path}/t-{{1..2}}.tar")
    with pytest.raises(UserError, match=r"^wds:nowhere: there is no tar file"):
        opened("wds:nowhere")
    with pytest.raises(UserError, match=r"has two ranges in braces: use one, or a \* for the other$"):
        opened("wds:{1..2}/t-{1..2}.tar")


@pytest.mark.parametrize("label", [b"2", b"-2"])
def test_classes_without_a_name(tmp_path, label):
    members = [(f"{i}{end}", x) for i in range(6) for end, x in ((".png", encoded(pixels(i))), (".txt", b"A"))]
    path = tar(tmp_path / "t.tar", *members, ("3.cls", label))
    message = rf"t.tar \(3.*\) is of class {int(label)} and PairData.classes has 2 names, .*: give each its name$"
    with pytest.raises(UserError, match=message):
        prepared = opened(path, classes=["no", "yes"])
        records(prepared), records(prepared, "valid")


def test_pairs_that_may_not_be_read(tmp_path, monkeypatch):
    path = plain(tmp_path)

    def denied(path, *_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("t5like.files.open_file", denied)
    with pytest.raises(
        UserError, match=r"pairs.tsv: cannot be read \(.*Permission denied.*\): mend it, or leave it out$"
    ):
        opened(f"tsv:{path}")


# ------------------------------------------------------------------------------------------------------ shapes and tfds


def test_shapes_have_captions_and_pairs_held_out():
    shapes = Shapes(size=16, scenes=40, valid_scenes=9, exclude=("red circle",))
    prepared = opened("shapes", shapes=shapes, label="pair")
    assert len(prepared.classes) == 72 and list(prepared.splits) == ["train", "valid", "test"]
    for i, record in enumerate(records(prepared)):
        scene = shapes.scene(i)
        assert record["caption"] == scene.caption == prepared.source().captions(i)[0]
        assert prepared.classes[record["label"]] == f"{scene.things[0].colour} {scene.things[0].shape}" != "red circle"
    assert {prepared.classes[r["label"]] for r in records(prepared, "test")} == {"red circle"}
    assert opened("shapes", shapes=shapes).classes == shapes.classes


def test_tfds_captions_are_read_without_tensorflow(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")

    class TinyCaptions(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            captions = tfds.features.Sequence({"id": np.int64, "text": tfds.features.Text()})
            features = {"image": tfds.features.Image(), "captions": captions}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, manager):
            return {"train": self._generate_examples(0, 5), "val": self._generate_examples(5, 7)}

        def _generate_examples(self, start, end):
            for i in range(start, end):
                captions = [{"id": k, "text": f"caption {i}.{k}"} for k in range(i % 3)]
                yield i, {"image": io.BytesIO(encoded(pixels(i))), "captions": captions}

    TinyCaptions(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    directory = tmp_path / "tiny_captions" / "1.0.0"
    prepared = opened(f"tfds:{directory}", text=["captions"])
    found = {}
    for split, source in ((s, pickle.loads(pickle.dumps(prepared.source(s)))) for s in ("train", "valid")):
        for i in range(len(source)):
            try:
                record = source[i]
            except ValueError as error:
                assert str(error) == "it has no text"
                continue
            k = int(record["caption"].split()[1][0])
            assert (record["image"] == pixels(k)).all() and source.captions(i) == record["captions"]
            found[k] = (split, record["captions"])
    assert {k: len(captions) for k, (_, captions) in found.items()} == {1: 1, 2: 2, 4: 1, 5: 2}
    assert found[5] == ("valid", ("caption 5.0", "caption 5.1"))
    assert opened(directory).fingerprint == prepared.fingerprint and "captions from captions" in prepared.note
    with pytest.raises(UserError, match=r"no feature 'words', only captions, image: choose with PairData.text$"):
        opened(directory, text=["words"])
    with pytest.raises(UserError, match=r"no feature 'picture', only captions, image: choose with PairData.image$"):
        opened(directory, image="picture", text=["captions"])
    with pytest.raises(UserError, match=r"no feature 'kind', only captions, image: choose with PairData.label$"):
        opened(directory, label="kind", text=["captions"])
    with pytest.raises(UserError, match=r"has 54 pixels and PairData.max_pixels is 53: remove it"):
        records(opened(directory, max_pixels=53, text=["captions"]))
    TinyCaptions._split_generators = lambda self, manager: {"train": self._generate_examples(0, 6)}
    TinyCaptions(data_dir=tmp_path / "train", file_format="array_record").download_and_prepare()
    half = opened(tmp_path / "train" / "tiny_captions" / "1.0.0", text=["captions"], valid=0.34, fraction=0.5)
    assert (len(half.source("train")), len(half.source("valid"))) == (2, 2)
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize(
    "source, message",
    [
        (
            "shape",
            r"^unknown source of pairs 'shape': did you mean 'shapes'\? choose from shapes, tsv, csv, parquet, besi",
        ),
        ("shapes:3", r"nothing comes after shapes$"),
        ("tsv:", r"names no place: write tsv:PATH"),
        ("tsv:none.tsv", r"^tsv:none.tsv: no such file"),
        ("no/such.tsv", r"no such file or directory \(a source without files: shapes\)"),
    ],
)
def test_unknown_sources(source, message):
    with pytest.raises(UserError, match=message):
        opened(source)
