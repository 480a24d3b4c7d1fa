"""Tables of pairs as people write them: by commas, quoted, with other columns, beside zips with an outer folder."""

import csv
import os
import shutil

import pytest

from paradigm.errors import UserError
from tests.multimodal.pairs import opened, plain, records, shard, table
from tests.vision.pictures import folder, pixels, zipped

TEXTS = ["plain", "a small, quiet one", 'the "big" dog', "two\nlines", "a;b", ""]


def everything(prepared):
    """The number of the picture -> its captions, of all splits."""
    known = {pixels(i).tobytes(): i for i in range(12)}
    found = [r for split in prepared.splits for r in records(prepared, split)]
    return {known[r["image"].tobytes()]: r["captions"] for r in found}


def written(root, name, rows, header=("image", "caption"), **how):
    """A table as the csv module writes it, and twelve pictures in img/."""
    folder(root, {f"img/{i}.png": pixels(i) for i in range(12)})
    with open(root / name, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, **how).writerows([header, *rows])
    return root / name


@pytest.mark.parametrize("ending", ["\r\n", "\n"])
@pytest.mark.parametrize("name, delimiter", [("p.csv", ","), ("p.tsv", "\t"), ("p.csv", ";"), ("p.csv", "\t"),
                                             ("p.tab", "\t"), ("p.CSV", ","), ("p.txt", "\t")])  # fmt: skip
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_tables_are_read_as_spreadsheets_write_them(tmp_path, name, delimiter, ending, quoting):
    rows = [(f"img/{i}.png", TEXTS[i % 5] + f" {i}", "x") for i in range(12)]
    how = {"delimiter": delimiter, "lineterminator": ending, "quoting": quoting}
    path = written(tmp_path, name, rows, ("filepath", "title", "url"), **how)
    for source in (path, f"tsv:{path}", f"csv:{path}", tmp_path):
        if source == tmp_path and name == "p.txt":
            continue  # a folder may hold any text
        prepared = opened(source, image="filepath", text=["title"])
        assert everything(prepared) == {i: (" ".join(TEXTS[i % 5].split()) + f" {i}",) for i in range(12)}
        assert "captions from title; columns left out: url" in prepared.described and "cells in quotes" in prepared.note
    at = prepared.source().name(0)
    assert " line " in at and at.endswith(".png)")


def test_columns_of_plain_names_are_taken_and_said(tmp_path):
    rows = [(f"img/{i}.png", f"c {i}", word) for i, word in enumerate("train train val test train train".split())]
    prepared = opened(written(tmp_path, "p.csv", rows, ("FilePath", "title", "split")))
    assert everything(prepared) == {i: (f"c {i}",) for i in range(6)}
    assert {split: len(prepared.source(split)) for split in prepared.splits} == {"train": 4, "valid": 1, "test": 1}
    assert "pictures from FilePath; splits from split; captions from title" in prepared.described
    named = opened(tmp_path / "p.csv", image="FilePath", text=["title"], split="split")
    assert named.fingerprint == prepared.fingerprint
    mixed = [(*row[:2], "a half" if i else "train") for i, row in enumerate(rows)]  # says something else
    other = opened(written(tmp_path, "q.csv", mixed, ("image", "caption", "split")))
    assert "columns left out: split" in other.described and list(other.splits) == ["train", "valid"]
    assert "no splits from split" in other.described
    coco = [(*row[:2], word) for row, word in zip(rows, "train restval val test train odd".split())]
    some = opened(written(tmp_path, "r.csv", coco, ("image", "caption", "split")))
    assert {split: len(some.source(split)) for split in some.splits} == {"train": 2, "valid": 1, "test": 1}
    assert "2 of 'odd', 'restval' in split left out" in some.described
    both = [(*row, word) for row, word in zip(rows, "a b c d e f".split())]
    chosen = opened(written(tmp_path, "s.csv", both, ("image", "caption", "part", "split")), split="part")
    assert len(chosen.source("train")) == 4 and "no splits from" not in chosen.described


def test_the_line_of_a_pair_is_counted_in_the_file(tmp_path):
    path = written(tmp_path, "p.csv", [("img/0.png", "one\ntwo"), ("img/1.png", ""), ("img/2.png", "c")])
    assert "1 lines without text, first line 4 (img/1.png)" in opened(path, valid=0.6).note


def test_lines_of_a_quoted_cell_that_could_be_rows_are_one_cell_unless_they_name_a_picture(tmp_path):
    texts = ["two\nlines, a comma", "one", "a\n\nb, c\nd, e"]
    prepared = opened(written(tmp_path, "p.csv", [(f"img/{i}.png", text) for i, text in enumerate(texts)]))
    assert everything(prepared) == {i: (" ".join(text.split()),) for i, text in enumerate(texts)}
    assert "cells in quotes" in prepared.described


def test_quotes_that_stand_for_themselves(tmp_path):
    folder(tmp_path, {f"{i}.png": pixels(i) for i in range(4)})
    lines = [("0.png", '"Stop" says he'), ("1.png", 'a 5" nail'), ("2.png", "plain"), ("3.png", '"open')]
    prepared = opened(table(tmp_path, ("image", "caption"), *lines))
    assert everything(prepared) == {i: (text,) for i, (_, text) in enumerate(lines)}
    assert "quotes stand for themselves" in prepared.described
    path = table(tmp_path, ("image", "caption"), ("0.png", '"open'), ("1.png", 'shut"'), ("2.png", "c"), name="q.tsv")
    with pytest.raises(UserError, match=r"q.tsv line 3 is within quotes that begin before it, or a line of its own"):
        opened(path)


@pytest.mark.parametrize(
    "text, settings, message",
    [
        (
            "where,what\n0.png,a\n",
            {},
            r"with commas between the columns, has no column 'image' and no 'caption', onl"
            r"y where, what: choose with PairData.image and PairData.text$",
        ),
        (
            "path;file;caption\n0;0.png;a\n",
            {},
            r"with semicolons .* no column 'image', only path, file, caption: choose",
        ),
        (
            "image,title,alt\n0.png,a,b\n",
            {},
            r"no column 'caption', only image, title, alt: choose with PairData.text$",
        ),
        ("0.png\na.png\n", {}, r"has one column, '0.png': it wants a header with tabs, commas or semicolons between"),
        ("image,caption\n0.png,a, b\n", {}, r"line 2 has 3 columns and the header 2: mend that line$"),
        ('image,caption\n0.png,"a, b\n1.png,c\n', {}, r"line 2 is not csv \(.*\): is a quote left open\?$"),
        ("image,caption\n0.png,a\n", {"split": "part"}, r"has no column 'part', only image, caption: choose with"),
    ],
)
def test_tables_that_cannot_be_read(tmp_path, text, settings, message):
    plain(tmp_path)
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(UserError, match=message) as error:
        opened(tmp_path / "p.csv", **settings)
    assert "\n" not in str(error.value)


def test_a_column_of_splits_in_any_words(tmp_path):
    rows = [(f"img/{i}.png", f"c {i}", word) for i, word in enumerate("Training TRAIN Val testing train".split())]
    prepared = opened(written(tmp_path, "p.csv", rows, ("image", "caption", "part")), split="part")
    found = {split: {r["caption"] for r in records(prepared, split)} for split in prepared.splits}
    assert found == {"train": {"c 0", "c 1", "c 4"}, "valid": {"c 2"}, "test": {"c 3"}}


def test_a_class_a_line_is_none_unless_several_places_draw_it(tmp_path):
    path = table(tmp_path, ("image", "caption"), *((f"{i}.png", f"thing {i}") for i in range(24)))
    for place in ("one", "two"):
        folder(tmp_path / place, {f"{i}.png": pixels(i) for i in range(24)})
    assert len(opened(path, images=["one", "two"], label="caption").classes) == 24
    with pytest.raises(UserError, match="'caption' holds 24 distinct values in 24 records, .* which are no classes"):
        opened(path, images=["one"], label="caption")


def test_outer_folders_of_the_pictures_are_passed_through(tmp_path):
    rows = [(f"{'.' + chr(92) if i % 2 else './'}{i}.png", f"c {i}") for i in range(8)]
    files = {f"deep/er/{i}.png": pixels(i) for i in range(10)} | {"__MACOSX/deep/._0.png": b"x"}
    path = table(tmp_path, ("image", "caption"), *rows)
    zipped(tmp_path / "pairs.zip", files)
    prepared = opened(path)
    assert everything(prepared) == {i: (f"c {i}",) for i in range(8)}
    assert "2 pictures of no line left out" in prepared.described
    (tmp_path / "pairs.zip").unlink()
    folder(tmp_path / "apart", files)
    assert everything(opened(path, images=["apart"])) == {i: (f"c {i}",) for i in range(8)}


def test_the_identity_of_a_table_is_its_content(tmp_path, monkeypatch):
    path = plain(tmp_path / "d")
    wanted = opened(path, images=["."]).fingerprint
    for picture in path.parent.glob("*.png"):
        os.utime(picture, ns=(1, 1))
    monkeypatch.chdir(tmp_path)
    assert opened("d/pairs.tsv", images=["."]).fingerprint == wanted
    assert opened("d/pairs.tsv", images=[str(path.parent)]).fingerprint == wanted
    assert opened(shutil.copytree("d", "e") + "/pairs.tsv", images=["."]).fingerprint == wanted
    picture = path.parent / "3.png"
    picture.write_bytes(picture.read_bytes()[::-1])
    assert opened(path, images=["."]).fingerprint != wanted


def test_what_a_path_holds_is_no_guess(tmp_path):
    message = r": pairs are read from tables \(.tsv, .csv, .jsonl, .json, .parquet\), WebDataset .tar files, tfds dire"
    folder(tmp_path / "a", {"0.png": pixels(0)})
    with pytest.raises(UserError, match=r"a' holds no table and no tar file .* no picture with a text .* holds .png$"):
        opened(tmp_path / "a")
    with pytest.raises(UserError, match=r"0.png' is of no known form" + message):
        opened(tmp_path / "a/0.png")
    zipped(tmp_path / "c.zip", {"in/0.png": pixels(0), "in/metadata.csv": b"file_name,text\n0.png,a\n"})
    with pytest.raises(UserError, match=r"c.zip' holds the table in/metadata.csv: unpack it, have the pictures beside"):
        opened(tmp_path / "c.zip")
    both = plain(tmp_path / "b")
    shard(tmp_path / "b/t.tar", 0, 4)
    with pytest.raises(UserError, match=r"b' holds pairs.tsv, t.tar: name the one to read, or write wds:"):
        opened(tmp_path / "b")
    (tmp_path / "b/t.tar").unlink()
    assert opened(tmp_path / "b").fingerprint == opened(both).fingerprint


def test_held_out_pairs_that_cannot_be_read_are_found_at_the_start(tmp_path):
    path = written(tmp_path, "p.csv", [(f"img/{i}.png", f"c {i}", "val" if i > 8 else "train") for i in range(12)],
                   ("image", "caption", "part"))  # fmt: skip
    for i in range(9, 12):
        (tmp_path / f"img/{i}.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"held out: none of 3 records looked at can be read, such as .*img/11.png"):
        opened(path, split="part")
