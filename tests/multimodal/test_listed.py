"""Pairs in no csv: JSON in its forms, Parquet, COCO's captions, texts beside pictures; tables that are wrong."""

import gzip
import io
import json

import pytest

from paradigm.errors import UserError
from tests.multimodal.pairs import opened, plain, table, tar
from tests.multimodal.test_tables import everything, written
from tests.vision.pictures import encoded, folder, pixels, zipped

COUNT = 12
ALL = {i: (f"caption {i}",) for i in range(COUNT)}
LIST = [{"file_name": f"img/{i}.png", "text": f"caption {i}"} for i in range(COUNT)]
NESTED = [{"image": {"path": f"img/{i}.png"}, "caption": f"caption {i}", "n": i} for i in range(COUNT)]
COCO = {
    "info": {},
    "images": [{"id": 7 * i, "file_name": f"img/{i}.png"} for i in range(COUNT)],
    "annotations": [{"image_id": 7 * i, "caption": f"caption {i}"} for i in range(COUNT)],
}
FORMS = {
    "a line each": ("metadata.jsonl", "\n\n".join(map(json.dumps, LIST)), {}),
    "a list": ("p.json", json.dumps(LIST, indent=1), {}),
    "objects in objects": ("p.json", json.dumps(NESTED), {"image": "image.path"}),
    "captions by pictures": ("p.json", json.dumps({f"img/{i}.png": t for i, t in ALL.items()}, indent=1), {}),
    "COCO": ("captions_train2017.json", json.dumps(COCO), {}),
    "COCO with ids as text": (
        "p.json",
        json.dumps(COCO | {"annotations": [a | {"image_id": str(a["image_id"])} for a in COCO["annotations"]]}),
        {},
    ),
}


@pytest.mark.parametrize("name, content, settings", FORMS.values(), ids=FORMS)
def test_json_of_pairs(name, content, settings, tmp_path):
    folder(tmp_path, {f"img/{i}.png": pixels(i) for i in range(COUNT)})
    (tmp_path / name).write_text(content)
    for source in (tmp_path, tmp_path / name):
        assert everything(opened(source, **settings)) == ALL


def test_parquet_of_pairs(tmp_path):
    pyarrow, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    folder(tmp_path, {f"img/{i}.png": pixels(i) for i in range(COUNT)})
    rows = [{"image": f"img/{i}.png", "captions": [f"caption {i}", f"another {i}"]} for i in range(COUNT)]
    pq.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "p.parquet")
    assert everything(opened(tmp_path / "p.parquet")) == {i: (*text, f"another {i}") for i, text in ALL.items()}


@pytest.mark.parametrize("container", ["folder", "zip", "tar"])
def test_texts_beside_pictures(container, tmp_path):
    parts = ["train" if i < 9 else "val" for i in range(COUNT)]
    files = {f"in/{part}/{i}.png": pixels(i) for i, part in enumerate(parts)}
    files |= {f"in/{part}/{i}.txt": f"caption {i}\n".encode() for i, part in enumerate(parts)}
    files |= {"in/train/90.png": pixels(90), "in/train/notes.md": b"x", "__MACOSX/in/train/._0.png": b"x"}
    if container == "folder":
        folder(tmp_path / "pairs", files)
        source = tmp_path / "pairs"
    elif container == "zip":
        zipped(tmp_path / "pairs.zip", files)
        source = tmp_path / "pairs.zip"
    else:
        raw = [(name, p if isinstance(p, bytes) else encoded(p)) for name, p in files.items()]
        source = f"beside:{tar(tmp_path / 'pairs.tar', *raw)}"
    prepared = opened(source)
    assert everything(prepared) == ALL
    assert {split: len(prepared.source(split)) for split in prepared.splits} == {"train": 9, "valid": 3}
    for told in ("train is train, val is valid", "1 pictures without a text left out (", "1 file of .md left out"):
        assert told in prepared.described


def test_lists_in_cells_are_several_captions(tmp_path):
    rows = [(f"img/{i}.png", repr([f"caption {i}", f"it's {i}"])) for i in range(COUNT)]
    prepared = opened(written(tmp_path, "p.csv", rows))
    assert everything(prepared) == {i: (f"caption {i}", f"it's {i}") for i in range(COUNT)}
    assert "lists of captions" in prepared.described
    rows[3] = (rows[3][0], "[sic] a caption")  # a text that begins with a bracket is no list
    assert everything(opened(written(tmp_path, "p.csv", rows)))[0] == (rows[0][1],)


def test_lines_without_a_picture_are_not_held_out(tmp_path):
    rows = [(f"img/{i}.png", f"caption {i}") for i in range(200)]  # twelve have theirs
    prepared = opened(written(tmp_path, "p.csv", rows), valid=0.2)
    held = prepared.source("valid")
    assert len(held) == 2 and [held[i]["caption"] for i in range(2)]
    assert "188 lines without a picture" in prepared.described


def test_labels_of_the_scenes_are_left_alone_in_other_pairs(tmp_path):
    prepared = opened(plain(tmp_path), label="pair")  # as the smoke runs on `shapes` say
    assert prepared.classes is None and "no labels (PairData.label='pair' is of the scenes" in prepared.described
    rows = [(f"img/{i}.png", f"caption {i}", f"kind {i % 2}") for i in range(COUNT)]
    assert opened(written(tmp_path / "b", "p.csv", rows, ("image", "caption", "pair")), label="pair").classes


@pytest.mark.parametrize("settings", [{"classes": ["a"]}, {"valid_glob": "x*"}])
def test_settings_of_tar_files_are_refused_for_tables(settings, tmp_path):
    with pytest.raises(UserError, match=rf"PairData.{[*settings][0]}=.* says nothing of tsv, only of wds: leave"):
        opened(plain(tmp_path), **settings)


def test_a_table_without_a_header_is_told_so(tmp_path):
    written(tmp_path, "p.csv", [(f"img/{i}.png", f"caption {i}") for i in range(1, 12)], ("img/0.png", "caption 0"))
    with pytest.raises(UserError, match=r"p.csv has no header, it seems: 'img/0.png,caption 0' .*'image', 'caption'"):
        opened(tmp_path / "p.csv")


def test_texts_in_another_encoding_are_no_captions(tmp_path):
    members = [(f"{i}.{kind}", raw) for i in range(8) for kind, raw in
               (("png", encoded(pixels(i))), ("txt", f"\xe9t\xe9 {i}".encode("latin-1")))]  # fmt: skip
    with pytest.raises(UserError, match=r"none of 8 pairs looked at has a text in .* \(its text is not UTF-8"):
        opened(tar(tmp_path / "x.tar", *members))
    good = [(name, raw if k != 3 else "caption 1".encode("utf-16")) for k, (name, raw) in enumerate(
        (name, raw if name.endswith("png") else raw.decode("latin-1").encode()) for name, raw in members)]  # fmt: skip
    prepared = opened(tar(tmp_path / "y.tar", *good), valid=0.4)
    found = [s for split in prepared.splits for s in [prepared.source(split)]]
    broken = 0
    for source in found:
        for i in range(len(source)):
            try:
                source[i]
            except ValueError as error:
                broken += "its text is not UTF-8" in str(error)
    assert broken == 1


def test_the_bytes_of_a_packed_tar_are_told(tmp_path):
    import gzip

    raw = io.BytesIO(tar(tmp_path / "x.tar", ("0.png", encoded(pixels(0))), ("0.txt", b"a")).read_bytes())
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress(raw.getvalue()))
    with pytest.raises(UserError, match="cannot be read as an uncompressed tar file: it is packed, and pairs are"):
        opened(tmp_path / "x.tar.gz")


def test_pictures_that_no_column_names_are_found_by_a_form(tmp_path):
    files = {f"{part}/{i}.png": pixels(i) for i, part in enumerate(["a", "b"] * 6)}
    zipped(tmp_path / "p.zip", files)
    lines = [f"{'ab'[i % 2]},{i},caption {i}" for i in range(COUNT)]
    (tmp_path / "p.csv").write_text("\n".join(["part,number,sentence", *lines]))
    prepared = opened(tmp_path / "p.csv")
    assert everything(prepared) == ALL and "pictures from {part}/{number}.png; captions from sentence" in prepared.note
    assert everything(opened(tmp_path / "p.csv", image="{part}/{number}.png", text=["sentence"])) == ALL
    (tmp_path / "p.csv").write_text("\n".join(["split,number,sentence", *lines]))
    assert "no splits from split, which says others than train" in opened(tmp_path / "p.csv").note
    (tmp_path / "p.csv").write_text("\n".join(["part,image,sentence", *lines]))
    with pytest.raises(UserError, match=r"of no line, such as '0'; it holds .*: set PairData.image = '{part}/{image}"):
        opened(tmp_path / "p.csv")
    zipped(tmp_path / "p.zip", {f"{i}.{kind}": pixels(i) for i in range(COUNT) for kind in ("png", "bmp")})
    (tmp_path / "p.csv").write_text("\n".join(["part,number,sentence", *lines]))
    with pytest.raises(UserError, match="has no column 'image', only part, number, sentence: choose"):
        opened(tmp_path / "p.csv")  # two forms fit


@pytest.mark.parametrize("layout", ["beside each other", "in folders", "packed", "below an outer folder"])
def test_tables_of_splits(layout, tmp_path):
    """train.csv and val.csv; metadata.jsonl in each split's folder, from which its pictures are named."""
    parts, source = {"train": range(9), "val": range(9, COUNT)}, tmp_path
    tmp_path = tmp_path / "in" / "data" if layout == "below an outer folder" else tmp_path
    for split, own in parts.items():
        if layout in ("in folders", "below an outer folder"):
            folder(tmp_path, {f"{split}/{i}.png": pixels(i) for i in own})
            lines = [json.dumps({"file_name": f"{i}.png", "text": f"caption {i}"}) for i in own]
            (tmp_path / split / "metadata.jsonl").write_text("\n".join(lines))
        else:
            folder(tmp_path, {f"img/{i}.png": pixels(i) for i in own})
            text = "image,caption\n" + "".join(f"img/{i}.png,caption {i}\n" for i in own)
            packed = gzip.compress(text.encode()) if layout == "packed" else text.encode()
            (tmp_path / f"{split}.csv{'.gz' * (layout == 'packed')}").write_bytes(packed)
    prepared = opened(source)
    assert everything(prepared) == ALL
    assert [prepared.source("valid")[i]["caption"] for i in range(3)] == [f"caption {i}" for i in range(9, COUNT)]
    assert "splits by the tables' names: " in prepared.described
    more = tmp_path / "other.csv"
    if layout in ("beside each other", "packed"):
        more.write_text("image,caption\n")
        with pytest.raises(UserError, match="other.csv.*: name the one to read$"):
            opened(tmp_path)


def test_tables_of_splits_that_are_not_alike(tmp_path):
    (tmp_path / "train.csv").write_text("image,caption\n1.png,a\n")
    (tmp_path / "test.csv").write_text("image,caption,n\n1.png,a,1\n")
    with pytest.raises(UserError, match=r"train.csv and .*test.csv have other columns \(n\): name one"):
        opened(tmp_path)


def test_pictures_by_whole_paths(tmp_path):
    folder(tmp_path / "d", {f"img/{i}.png": pixels(i) for i in range(COUNT)})
    text = "image,caption\n" + "".join(f"{tmp_path}/d/img/{i}.png,caption {i}\n" for i in range(COUNT))
    (tmp_path / "d" / "p.csv").write_text(text)
    assert everything(opened(tmp_path / "d")) == ALL
    (tmp_path / "p.csv").write_text(text)
    assert everything(opened(tmp_path / "p.csv", images=[str(tmp_path / "d")])) == ALL
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "p.csv").write_text(text)
    with pytest.raises(
        UserError, match=r"line 2: the picture '/.*/0.png' lies outside of .*/e: set PairData.images to"
    ):
        opened(tmp_path / "e")


def test_what_img2dataset_writes_beside_its_tars(tmp_path):
    for k in range(2):
        members = [(f"{i}.{kind}", raw) for i in range(6) for kind, raw in
                   (("png", encoded(pixels(6 * k + i))), ("txt", f"caption {6 * k + i}".encode()))]  # fmt: skip
        tar(tmp_path / f"0000{k}.tar", *members)
        (tmp_path / f"0000{k}_stats.json").write_text("{}")
        (tmp_path / f"0000{k}.parquet").write_bytes(b"")
    prepared = opened(tmp_path)
    assert everything(prepared) == ALL
    assert "2 files of .json left out, 2 files of .parquet left out" in prepared.described
    (tmp_path / "captions.csv").write_text("image,caption\n")
    with pytest.raises(UserError, match=r"holds captions.csv, 00000.tar: name the one to read, or write wds:"):
        opened(tmp_path)


def test_names_are_one_however_they_are_written(tmp_path):
    """A Mac takes accents apart, Windows packs with backslashes: in a folder, beside texts, in a zip beside a table."""
    mac = {f"o\u0308/{i}.png": pixels(i) for i in range(COUNT)}
    texts = {f"\u00f6/{i}.txt": text.encode() for i, (text,) in ALL.items()}
    assert everything(opened(folder(tmp_path / "beside", {**mac, **texts}))) == ALL
    folder(tmp_path / "table", mac)
    rows = [(f"\u00f6\\{i}.png", text) for i, (text,) in ALL.items()]
    assert everything(opened(table(tmp_path / "table", ("image", "caption"), *rows))) == ALL
    windows = {name.replace("/", "\\"): content for name, content in (mac | texts).items()}
    assert everything(opened(zipped(tmp_path / "windows.zip", windows))) == ALL
    path = table(tmp_path / "z", ("image", "caption"), *rows)
    zipped(path.with_suffix(".zip"), {"out\\" + name: content for name, content in windows.items()})
    assert everything(opened(path)) == ALL


def test_no_text_beside_a_picture_and_no_caption_of_coco_is_lost_without_a_word(tmp_path):
    files = {f"{i}.png": pixels(i) for i in range(COUNT)} | {f"{i}.txt": f"caption {i}".encode() for i in range(COUNT)}
    found = opened(folder(tmp_path / "d", {**files, "3.caption": b"another", "4.json": b"{}"}))
    assert everything(found) == ALL | {3: ("another", "caption 3")}
    assert "1 file of .json left out" in found.note
    folder(tmp_path, {f"img/{i}.png": pixels(i) for i in range(COUNT)})
    more = {"annotations": COCO["annotations"] + [{"image_id": 1, "caption": "of none"}]}
    (tmp_path / "coco.json").write_text(json.dumps(COCO | more))
    assert "1 captions of no image left out" in opened(tmp_path / "coco.json").note
    (tmp_path / "coco.json").write_text(json.dumps(COCO | {"images": [COCO["images"][0], *COCO["images"]]}))
    with pytest.raises(UserError, match="coco.json has 2 images of the id 0: give each its own"):
        opened(tmp_path / "coco.json")


def test_lines_without_a_label_are_told(tmp_path):
    rows = [(f"img/{i}.png", f"caption {i}", "ab"[i % 2] if i % 4 else "") for i in range(COUNT)]
    path = written(tmp_path, "p.csv", rows, ("image", "caption", "label"))
    assert "3 lines without a label" in opened(path, label="label").note
