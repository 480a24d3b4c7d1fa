"""Labels in the forms that tables have them in: lists as texts, places of classes, numbers of named ones."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from t5like.labels import read, words_of
from t5like.records import TextRecords
from tests.t5like.test_named_splits import records


@pytest.mark.parametrize("cell", ["['a', 'b']", '["a", "b"]', ["a", "b"], "a, b", " ['b','a']"], ids=str)
def test_classes_of_a_list_however_it_is_written(cell):
    assert read("classes", {"label": cell}, "label", ()) == ["a", "b"]


def test_tags_and_words_of_lists_that_are_texts():
    record = {"tokens": "['New', 'York']", "tags": "['B-LOC', 'I-LOC']"}
    words = words_of("tags", "{tokens}", record)
    assert words == ["New", "York"] and read("tags", record, "tags", words, "{tokens}") == ["B-LOC", "I-LOC"]
    assert words_of("tags", "{tokens}", {"tokens": "[CLS] is no list [SEP]"}) == ["[CLS]", "is", "no", "list", "[SEP]"]
    assert read("classes", {"label": "[]"}, "label", ()) == []


def test_lists_that_say_something_else_are_told(tmp_path, capsys):
    with pytest.raises(ValueError, match="a list without commas in 'label'"):
        read("classes", {"label": "['a' 'b']"}, "label", ())
    with pytest.raises(ValueError, match=r"has \[0, 1, 0\] in 'label', a place for each class: name those that hold"):
        read("classes", {"label": [0, 1, 0]}, "label", ())
    rows = [{"text": f"a b {i}", "label": [i % 2, 1 - i % 2]} for i in range(20)]
    records(tmp_path, rows, label_kind="classes")
    assert "every record is of all classes: there is nothing to tell apart" in capsys.readouterr().err


def test_classes_that_a_parquet_file_names(tmp_path):
    """GLUE as the datasets library publishes it: numbers, their names in the schema, -1 in the test split."""
    names = {"info": {"features": {"label": {"names": ["negative", "positive"], "_type": "ClassLabel"}}}}
    for split, labels in (("train", [0, 1] * 8), ("validation", [1, 0]), ("test", [-1, -1])):
        table = pyarrow.table({"text": [f"{split} {i}" for i in range(len(labels))], "label": labels})
        (tmp_path / "glue").mkdir(exist_ok=True)
        table = table.replace_schema_metadata({"huggingface": json.dumps(names)})
        pyarrow.parquet.write_table(table, tmp_path / "glue" / f"{split}-00000-of-00001.parquet")
    built = TextRecords(str(tmp_path / "glue"), label="label", tokenizer="bytes").build(tmp_path / "cache")
    assert built.classes == ("negative", "positive")
    assert [int(built.source("valid")[i]["label"]) for i in range(2)] == [1, 0]
    assert [int(built.source("test")[i]["label"]) for i in range(2)] == [-1, -1]
