"""What names and forms of files say of text: splits, JSON in its shapes, Arrow, linked folders, texts that are null."""

import json
import math
import os

import pytest

from paradigm.errors import UserError
from t5like.data import TextData
from t5like.prepare import prepare
from t5like.prepare_records import RECORDS
from t5like.records import PreparedRecords, TextRecords
from t5like.windows import PreparedText
from tests.t5like.corpora import documents
from tests.t5like.test_formats import zipped

WORDS = {split: [f"{split} {k} of some words in a row" for k in range(8)] for split in ("train", "dev", "test")}
LAYOUTS = {
    "folders": "{split}/a.txt",
    "folders in a folder": "corpus/{split}/a.txt",
    "files": "{split}.txt",
    "files that share a name": "news_{split}.txt",
    "shards": "c4-{split}.00000-of-00001.txt",
}


def make(source, out, progress=False, **settings):
    prepare(TextData(str(source), window=32, **settings), out, workers=1, progress=progress)
    return PreparedText(out)


def lay(root, layout):
    for split, words in WORDS.items():
        path = root / layout.format(split=split)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(words))


def said(prepared, split):
    return {word.split()[0] for text in documents(prepared, split) for word in text.split("\n")}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "zip"])
def test_what_names_call_a_split_is_one(layout, packed, tmp_path, capsys):
    lay(tmp_path / "in", layout)
    source = tmp_path / "in"
    if packed:
        names = {p.relative_to(source).as_posix(): p.read_bytes() for p in source.rglob("*.txt")}
        source = tmp_path / "in.zip"
        source.write_bytes(zipped(names))
    prepared = make(source, tmp_path / "out", progress=True)
    assert said(prepared, "train") == {"train"} and said(prepared, "valid") == {"dev"}
    told = capsys.readouterr().err
    assert layout.format(split="dev") + " is held out, " in told
    assert layout.format(split="test") + " is left out (valid_glob and exclude choose otherwise)" in told
    chosen = make(
        source, tmp_path / "chosen", valid_glob="*test*", progress=True
    )  # names that a person gives come first
    assert said(chosen, "train") == {"train", "dev"} and said(chosen, "valid") == {"test"}
    assert f"{layout.format(split='dev')} is trained on: exclude leaves files out" in capsys.readouterr().err


@pytest.mark.parametrize("names", ["train dev_matched test_matched", "train1 heldout-1 test1"])
def test_names_that_begin_with_a_split_beside_train(names, tmp_path):
    lay(tmp_path / "in", "{split}")
    for name, split in zip(names.split(), WORDS):
        (tmp_path / "in" / split).rename(tmp_path / "in" / f"{name}.txt")
    prepared = make(tmp_path / "in", tmp_path / "out")
    assert said(prepared, "train") == {"train"} and said(prepared, "valid") == {"dev"}


def test_a_name_alone_says_nothing(tmp_path):
    (tmp_path / "in" / "test").mkdir(parents=True)
    (tmp_path / "in" / "test" / "a.txt").write_text("\n".join(WORDS["test"]))
    (tmp_path / "in" / "b.txt").write_text("\n".join(WORDS["dev"]))
    assert said(make(tmp_path / "in", tmp_path / "alone", valid=0.0), "train") == {"dev", "test"}


def test_test_data_are_not_trained_on_without_a_word(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    for name, split in (("wiki_dev.txt", "dev"), ("a.txt", "train")):
        (tmp_path / "in" / name).write_text("\n".join(WORDS[split]))
    make(tmp_path / "in", tmp_path / "out", progress=True)
    assert "splits     wiki_dev.txt is trained on, since nothing beside is called train: exc" in capsys.readouterr().err
    (tmp_path / "in" / "a.txt").rename(tmp_path / "in" / "test.txt")
    with pytest.raises(
        UserError, match=r"holds test.txt, wiki_dev.txt and no file of train: add that, or name the one"
    ):
        make(tmp_path / "in", tmp_path / "none")
    make(tmp_path / "in" / "test.txt", tmp_path / "named", progress=True)
    assert "splits" not in capsys.readouterr().err
    with pytest.raises(UserError, match=r"valid_glob='\*' holds out all of it: name fewer files$"):
        make(tmp_path / "in", tmp_path / "all", valid_glob="*")


def test_labels_that_differ_in_case_or_not_at_all_are_told(tmp_path, capsys):
    for labels, told in ((("Pos", "neg", "pos"), "'Pos', 'pos' differ in case alone: if they mean one class, write"),
                         (("01", 1, "NULL", 2), "'01', '1' differ in how a number is written alone: if they mean one"),
                         (("a", "b", "nan", "NULL", "c"), "'NULL', 'nan' are classes like others: if that stands for"),
                         (("yes",), "all labels are 'yes': of one class there is nothing to tell apart")):  # fmt: skip
        records = [json.dumps({"text": f"text {k}", "label": labels[k % len(labels)]}) for k in range(24)]
        (tmp_path / f"{len(labels)}.jsonl").write_text("\n".join(records))
        recipe = TextRecords(str(tmp_path / f"{len(labels)}.jsonl"))
        prepare(recipe, tmp_path / f"out{len(labels)}", workers=1, kind=RECORDS)
        assert f"warning    {told}" in capsys.readouterr().err


def test_lists_and_fields_that_say_a_split(tmp_path, capsys):
    lists = {split: [{"text": t} for t in words] for split, words in WORDS.items()}
    (tmp_path / "a.json").write_text(json.dumps(lists))
    prepared = make(tmp_path / "a.json", tmp_path / "out")
    assert said(prepared, "train") == {"train"} and said(prepared, "valid") == {"dev"}
    rows = [{"text": t, "split": split} for split, words in WORDS.items() for t in words]
    (tmp_path / "b.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    make(tmp_path / "b.jsonl", tmp_path / "b", progress=True)
    assert "records say one in 'split', which is not read: give each split a file" in capsys.readouterr().err


OBJECTS = [{"text": t, "n": k} for k, t in enumerate(WORDS["train"])]
FORMS = {
    "objects of many lines": "\n".join(json.dumps(o, indent=1) for o in OBJECTS),
    "a list with a comma at its end": f"[{','.join(json.dumps(o) for o in OBJECTS)},\n]",
    "a list of texts": json.dumps(WORDS["train"], indent=1),
    "a list in an object": json.dumps({"version": "1", "rows": OBJECTS}),
    "columns": json.dumps({"text": {str(k): o["text"] for k, o in enumerate(OBJECTS)}}),
}


@pytest.mark.parametrize("content", FORMS.values(), ids=FORMS)
def test_json_in_its_forms(content, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.json").write_text(content)
    assert sorted(documents(make(tmp_path / "in", tmp_path / "out", valid=0.0), "train")) == sorted(WORDS["train"])
    out = tmp_path / "records"
    prepare(TextRecords(source=str(tmp_path / "in"), input="{text}", valid=0.0), out, 1, False, RECORDS)
    assert len(PreparedRecords(out).source()) == 8


def test_arrow_as_the_datasets_library_saves_it(tmp_path):
    pyarrow, out, tmp_path = pytest.importorskip("pyarrow"), tmp_path / "out", tmp_path / "in"
    tmp_path.mkdir()
    for split, words in WORDS.items():
        (tmp_path / split).mkdir()
        table = pyarrow.table({"text": words})
        with pyarrow.OSFile(str(tmp_path / split / "data-00000-of-00001.arrow"), "wb") as file:
            with pyarrow.ipc.new_stream(file, table.schema) as stream:
                stream.write_table(table)
        (tmp_path / split / "dataset_info.json").write_text("{}")
    (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "dev", "test"]}))
    prepared = make(tmp_path, out)
    assert said(prepared, "train") == {"train"} and said(prepared, "valid") == {"dev"}
    assert prepared.meta["source"]["left"] == "4 files of .json"


def test_linked_folders_are_read_once(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "a.txt").write_text("\n".join(WORDS["train"]))
    (tmp_path / "near").mkdir()
    os.symlink(tmp_path / "far", tmp_path / "near" / "link")
    os.symlink(tmp_path / "near", tmp_path / "far" / "back")
    prepared = make(tmp_path / "near", tmp_path / "out", valid=0.0)
    assert documents(prepared, "train") == ["\n".join(WORDS["train"])]


def test_null_texts_are_counted(tmp_path, capsys):
    rows = [{"text": None if k % 3 == 1 else t} for k, t in enumerate(WORDS["train"])]
    (tmp_path / "a.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    prepared = make(tmp_path / "a.jsonl", tmp_path / "out", valid=0.0, progress=True)
    assert len(documents(prepared, "train")) == 5
    assert f"left out   3 records without a text, such as {tmp_path}/a.jsonl" in capsys.readouterr().err
    (tmp_path / "a.jsonl").write_text('{"text": null}\n' * 4)
    with pytest.raises(UserError, match="all of its 4 records have null for a text"):
        make(tmp_path / "a.jsonl", tmp_path / "none")


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv"])
def test_utf_16_is_told(name, tmp_path):
    (tmp_path / name).write_bytes("\n".join(["text", *WORDS["train"]]).encode("utf-16"))
    with pytest.raises(UserError, match=f"{name} is UTF-16 by its first bytes: save it as UTF-8"):
        make(tmp_path / name, tmp_path / "out")


def test_no_source_is_not_this_folder(tmp_path):
    with pytest.raises(UserError, match="TextData.source is empty: name a file"):
        TextData(source="").build(tmp_path, 16)
    with pytest.raises(UserError, match="TextRecords.source is empty: name a file"):
        TextRecords(source=" ", input="{text}").build(tmp_path)


def records(tmp_path, rows, **settings):
    (tmp_path / "a.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    prepare(TextRecords(source=str(tmp_path / "a.jsonl"), **settings), tmp_path / "out", 1, True, RECORDS)
    return PreparedRecords(tmp_path / "out")


def test_labels_that_are_no_numbers_or_have_spaces(tmp_path, capsys):
    scores = [1.5, math.nan, math.inf, 2]
    rows = [{"text": t, "score": scores[k % 4]} for k, t in enumerate(WORDS["train"])]
    found = records(tmp_path, rows, label_kind="number", valid=0.0)
    assert len(found.source()) == 4 and "left out   4 broken records" in capsys.readouterr().err
    rows = [{"text": t, "label": ["yes", "no", " yes", "no "][k % 4]} for k, t in enumerate(WORDS["train"])]
    (tmp_path / "more").mkdir()
    assert records(tmp_path / "more", rows).classes == ("no", "yes")


def test_a_field_of_splits_without_valid_holds_some_out(tmp_path):
    rows = [{"text": t, "split": "test" if k == 0 else "train"} for k, t in enumerate(WORDS["train"])]
    shards = records(tmp_path, rows, valid=0.3).meta["shards"]
    assert shards["train"] and shards["valid"] and shards["test"]
