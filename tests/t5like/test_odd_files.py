"""Files as people have them, of every form: read, told or refused, never silently less than is there."""

import io
import json
import os
import tarfile
import zipfile

import pytest

from paradigm.archives import Tar
from paradigm.errors import UserError
from t5like.data import TextData
from t5like.records import TextRecords

ROWS = [{"text": f"the cat number {i} sat", "label": "ab"[i % 2]} for i in range(12)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def build(path, content=None, **settings):
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return TextRecords(str(path), **({"valid": 0.0} | settings)).build(path.parent / "out", workers=1)


def tar(path, members, end=True):
    """A tar of [(name, text)]; end: with the zeros that end it."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, text in members:
            member = tarfile.TarInfo(name)
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
        size = archive.offset
    path.write_bytes(out.getvalue() if end else out.getvalue()[:size])
    return path


@pytest.mark.parametrize("mark", [";", "\t", "|", ","])
@pytest.mark.parametrize("begin", ["", "\ufeff"])
def test_csv_between_other_marks(mark, begin, tmp_path):
    table = begin + f"text{mark}label\r\n" + "".join(f'"so, {i}"{mark}{i % 2}\r\n' for i in range(4))
    found = build(tmp_path / "a.csv", table)
    assert (
        found.classes == ("0", "1")
        and found.meta["counts"]["train"]["records"] == 4
        and not found.meta["broken"]["records"]
    )
    source = found.source()
    assert {source[i]["fields"]["text"] for i in range(4)} == {f"so, {i}" for i in range(4)}


def test_a_csv_of_one_column_has_commas_in_its_texts(tmp_path):
    found = build(tmp_path / "a.csv", "text\nhello; you\nand | you\n", label="", input="{text}")
    assert found.meta["counts"]["train"]["records"] == 2


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.conll"])
@pytest.mark.parametrize("form", ["utf-16", "utf-16-be"])
def test_utf16_is_named(name, form, tmp_path):
    raw = ("\ufeff" if form == "utf-16-be" else "").encode(form) + f"text,label\n{LINES}".encode(form)
    with pytest.raises(UserError, match=rf"{name} is UTF-16 by its first bytes: save it as UTF-8$"):
        build(tmp_path / name, raw, label_kind="tags" if name == "a.conll" else "class")


@pytest.mark.parametrize("indent", [None, 1])
def test_an_object_of_lists_of_objects_is_splits(indent, tmp_path):
    found = build(tmp_path / "a.json", json.dumps({"train": ROWS[:8], "Test": ROWS[8:]}, indent=indent))
    counts = {split: c["records"] for split, c in found.meta["counts"].items()}
    assert counts == {"train": 8, "valid": 0, "test": 4} and found.classes == ("a", "b")


def test_an_object_a_line_stays_one_whatever_its_first_field(tmp_path):
    rows = [
        {"turns": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": f"yes {i}"}]} for i in range(3)
    ]
    found = build(tmp_path / "a.json", "".join(json.dumps(row) + "\n" for row in rows), turns="turns")
    assert found.meta["counts"]["train"]["records"] == 3


def test_a_field_called_split_is_one_where_no_file_says_it(tmp_path, capsys):
    rows = [{**row, "split": ("train", "dev", "test")[i % 3]} for i, row in enumerate(ROWS)]
    found = build(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert {split: c["records"] for split, c in found.meta["counts"].items()} == {"train": 4, "valid": 4, "test": 4}
    assert "fields     input {text}, label label, split split\n" in capsys.readouterr().err


def test_null_is_not_a_missing_field(tmp_path):
    found = build(tmp_path / "a.jsonl", LINES + '{"text": "x", "label": null}\n{"text": "x"}\n')
    assert [line.partition("jsonl")[2] for line in found.meta["broken"]["first"]] == [
        ":13 has null in 'label'",
        ":14 has no field 'label', only text",
    ]


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_of_several_members_of_one_name_the_last_is_read_and_the_others_are_told(kind, tmp_path, capsys):
    members = [("a.jsonl", LINES), ("a.jsonl", LINES[: LINES.index("\n") + 1] + '{"text": "new", "label": "b"}\n')]
    path = tmp_path / f"a.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive, pytest.warns(UserWarning, match="Duplicate name"):
            for member in members:
                archive.writestr(*member)
    else:
        tar(path, members)
    assert build(path).meta["counts"]["train"]["records"] == 2
    assert "left out   1 replaced file\n" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_links_in_a_container_lead_where_they_would_in_a_folder(kind, tmp_path, capsys):
    """Hard ones and soft ones; such as lead nowhere, or round in a circle, are counted."""
    soft = {
        "train/b.jsonl": "../all/a.jsonl",
        "train/c.jsonl": "b.jsonl",
        "d.jsonl": "/etc/passwd",
        "e.jsonl": "e.jsonl",
    }
    path = tmp_path / f"a.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("all/a.jsonl", LINES)
            for name, target in soft.items():
                info = zipfile.ZipInfo(name)
                info.external_attr = 0o120777 << 16
                archive.writestr(info, target)
    else:
        with tarfile.open(path, "w") as archive:
            for name, target, link in [
                ("./all/a.jsonl", "", tarfile.REGTYPE),
                ("./all/h.jsonl", "./all/a.jsonl", tarfile.LNKTYPE),
            ] + [(f"./{name}", target, tarfile.SYMTYPE) for name, target in soft.items()]:
                member = tarfile.TarInfo(name)
                member.type, member.linkname, member.size = link, target, 0 if target else len(LINES)
                archive.addfile(member, io.BytesIO(LINES.encode()))
    found = build(path)
    assert found.meta["counts"]["train"]["records"] == len(ROWS) * (3 if kind == "zip" else 4)
    assert "left out   2 broken links\n" in capsys.readouterr().err


def test_a_zip_of_windows_has_folders(tmp_path):
    """Its names may have backslashes: what says test is not trained on."""
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("set\\train\\", "set\\train\\a.jsonl", "set\\test\\b.jsonl", "__MACOSX\\c.jsonl"):
            info = zipfile.ZipInfo("x")
            info.filename = name
            archive.writestr(info, "" if name.endswith("\\") else LINES)
    counts = build(path).meta["counts"]
    assert {split: counts[split]["records"] for split in ("train", "test")} == {"train": 12, "test": 12}
    assert "1 hidden file" in TextData(str(path), window=8).build(tmp_path / "text", 8).meta["source"]["left"]


def test_tars_one_after_the_other_and_tars_that_are_cut_short(tmp_path):
    one, two = tar(tmp_path / "1.tar", [("a.jsonl", LINES)]), tar(tmp_path / "2.tar", [("b.jsonl", LINES)])
    (tmp_path / "both.tar").write_bytes(one.read_bytes() + two.read_bytes())
    assert build(tmp_path / "both.tar").meta["counts"]["train"]["records"] == 24
    whole = tar(tmp_path / "whole.tar", [("a.jsonl", LINES), ("b.jsonl", LINES)], end=False).read_bytes()
    begin = -(-len(LINES) // 512) * 512 + 512  # of the second header
    cuts = {"in a header": whole[: begin + 100], "between two files": whole[:begin], "in a file": whole[:-600]}
    cuts["by something else"] = one.read_bytes() + b"no tar at all" * 100
    for raw in cuts.values():
        (tmp_path / "cut.tar").write_bytes(raw)
        for recipe in (TextRecords, TextData):
            with pytest.raises(
                UserError, match=r"cut.tar: cannot be read( as a tar archive)? \(\S+ is|\(unexpected end|behind"
            ):
                recipe(str(tmp_path / "cut.tar")).build(tmp_path / "unused", 8)
        with pytest.raises(tarfile.ReadError):
            Tar(io.BytesIO(raw))


def test_what_is_empty_says_what_it_wants(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w"):
        pass
    with pytest.raises(UserError, match="a.zip is empty: no file is in it$"):
        build(tmp_path / "a.zip")
    with pytest.raises(UserError, match="a.jsonl is empty: it wants an object of JSON for each record$"):
        build(tmp_path / "a.jsonl", "")


def jsonl(rows):
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


def test_nan_is_no_text(tmp_path):
    broken = ['{"text": NaN, "label": "a"}', '{"text": Infinity, "label": "a"}']
    first = build(tmp_path / "a.jsonl", jsonl(ROWS + broken)).meta["broken"]["first"]
    assert [line.partition(" ")[2] for line in first] == [
        "has NaN in 'text'",
        "has Infinity in 'text', which is no text",
    ]


def test_windows_take_nan_for_null(tmp_path):
    (tmp_path / "a.jsonl").write_text(jsonl([*[{"text": "many words and more of them"}] * 9, '{"text": NaN}']))
    found = TextData(str(tmp_path / "a.jsonl"), tokenizer="bytes", valid=0.0).build(tmp_path / "out", 16)
    assert found.meta["counts"]["train"]["documents"] == 9


@pytest.mark.parametrize("valid", ['{"sentence": "a", "label": "a"}\n', '{"text": "a"}\n', "\n"])
def test_a_split_that_holds_nothing_to_use_is_refused(valid, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "train.jsonl").write_text(LINES)
    (tmp_path / "in" / "valid.jsonl").write_text(valid)
    with pytest.raises(UserError, match="none of its 1 valid records can be used|its valid files hold no record"):
        TextRecords(str(tmp_path / "in")).build(tmp_path / "out", workers=1)


def test_the_training_records_say_which_fields_are_meant(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "train.jsonl").write_text(LINES)
    (tmp_path / "in" / "test.jsonl").write_text('{"sentence": "a", "label": "a"}\n')
    with pytest.raises(UserError, match="none of its 1 test records can be used: .*no field 'text'"):
        TextRecords(str(tmp_path / "in")).build(tmp_path / "out", workers=1)


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_lines_that_end_in_a_carriage_return_alone_are_named(name, tmp_path):
    text = "text,label\rcat,a\r" if name == "a.csv" else LINES.replace("\n", "\r")
    with pytest.raises(UserError, match="ends its lines with a carriage return alone"):
        build(tmp_path / name, text)


def test_labels_of_two_kinds_are_warned_of(tmp_path, capsys):
    build(tmp_path / "a.jsonl", jsonl({"text": f"t{i}", "label": [True, False, 0, 1][i % 4]} for i in range(12)))
    assert "the labels 0, 1 are numbers and false, true are none" in capsys.readouterr().err


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    (tmp_path / "in" / "locked").mkdir(parents=True)
    (tmp_path / "in" / "a.jsonl").write_text(LINES)
    scan = os.scandir

    def refuse(path):  # whoever may read all has no folder that he cannot read
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match="locked cannot be read .Permission denied.: mend its rights"):
        TextRecords(str(tmp_path / "in")).build(tmp_path / "out", workers=1)
