"""Fields that nobody named: taken where one reading fits, told in the summary, else refused with what there is."""

import json

import pytest

from paradigm.errors import UserError
from t5like.records import PreparedRecords, TextRecords


def prepared(tmp_path, content, name="a.jsonl", **settings):
    """The PreparedRecords of a file or, by {name: content}, of a folder."""
    for file, text in (content if isinstance(content, dict) else {name: content}).items():
        (tmp_path / "in" / file).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / "in" / file).write_text(text)
    source = tmp_path / "in" if isinstance(content, dict) else tmp_path / "in" / name
    return TextRecords(str(source), **({"valid": 0.0} | settings)).build(tmp_path / "out", workers=1)


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def texts(prepared, split="train"):
    source = prepared.source(split)
    decode = prepared.tokenizer.decode
    return [
        (decode(r["inputs"]), decode(r["targets"]), r["label"].tolist())
        for r in map(source.__getitem__, range(len(source)))
    ]


@pytest.mark.parametrize("text", ["text", "sentence", "Sentence"])
@pytest.mark.parametrize("label", ["label", "intent", "Class"])
def test_a_text_and_a_label_by_their_names(text, label, tmp_path, capsys):
    found = prepared(tmp_path, lines({"id": 1, label: "b", text: "one"}, {"id": 2, label: "a", text: "two"}))
    assert texts(found) == [("one", "", 1), ("two", "", 0)] and found.classes == ("a", "b")
    assert f"fields     input {{{text}}}, label {label}\n" in capsys.readouterr().err
    again = TextRecords(str(tmp_path / "in" / "a.jsonl"), valid=0.0).build(tmp_path / "out")
    assert again.fingerprint == found.fingerprint
    (tmp_path / "in" / "a.jsonl").unlink()  # a run keeps what it began with
    assert TextRecords(str(tmp_path / "in" / "a.jsonl"), valid=0.0).build(tmp_path / "out").classes == ("a", "b")


def test_a_field_may_be_left_out_by_the_first_record(tmp_path):
    rows = {"text": "one"}, {"text": "two", "label": "a", "split": "train"}, {"text": "three", "split": "test"}
    found = prepared(tmp_path, lines(*rows))
    assert texts(found) == [("two", "", 0)] and texts(found, "test") == [("three", "", -1)]
    assert found.meta["broken"]["records"] == 1  # without a split, and a label


def test_words_with_tags_questions_and_replies(tmp_path):
    found = prepared(tmp_path / "tags", "Ann B-p\nsits O\n\nBob B-p\n", "a.conll", label_kind="tags")
    assert found.classes == ("B-p", "O") and texts(found) == [("Ann sits", "", [0, 1]), ("Bob", "", [0])]
    squad = {"question": "who?", "context": "Ann sits", "answers": [{"text": "Ann", "answer_start": 0}]}
    assert texts(prepared(tmp_path / "qa", lines(squad), label_kind="answer")) == [("who?", "Ann sits", [[0, 0]])]
    found = prepared(tmp_path / "chat", lines({"turns": ["hi", "yes?", "bye", "so long"]}), turns="turns")
    assert texts(found) == [
        ("user: hi\n", "yes?", -1),
        ("user: hi\nassistant: yes?\nuser: bye\n", "so long", -1),
    ]


@pytest.mark.parametrize(
    "content, settings, message",
    [
        (lines({"body": "x", "kind": "y"}), {}, r"input is not set: .*'\{body\}'; of body, kind in \S+jsonl none is "
         "called text or sentence$"),
        (lines({"id": 3, "data": {"id": 4, "text": "x"}}), {}, r"as in '\{data.text\}'; of id, data, "),
        (lines({"id": "x", "messages": ["y"]}), {}, r"sentence; if messages holds the turns of a dialogue, set T"),
        (lines({"text": "x", "sentence": "y"}), {}, r"text and sentence may be it$"),
        (lines({"text": "x", "label": "y", "intent": "z"}), {}, "label is not set, and label and intent may be it:"),
        ({"a.tsv": "It is one\t3\nIt is two\t4\n"}, {},
         r"as in '\{text\}'; of It is one, 3 in .*text or sentence; without a header, name its columns \(Text"),
        ({"a.jsonl": "[1]\n"}, {}, r"none of its 1 records can be used: \S+:1 is a list and not an object"),
        ({"a.jsonl": "\n"}, {}, "there is no record to train on in it"),
    ],
)  # fmt: skip
def test_no_guess_where_two_readings_fit(content, settings, message, tmp_path):
    with pytest.raises(UserError, match=message):
        prepared(tmp_path, content, **settings)


def test_what_is_said_is_left_alone(tmp_path):
    rows = lines({"text": "x", "label": "y", "other": "z"})
    assert prepared(tmp_path / "a", rows, input="{other}").classes == ()
    assert prepared(tmp_path / "b", rows, label="other").classes == ("z",)
    assert texts(prepared(tmp_path / "c", rows, target="{other}")) == [("x", "z", -1)]


def test_several_classes_with_commas_are_told(tmp_path, capsys):
    table = "text\tlabel\na\t1\nb\t2\nc\t1,2\n"
    prepared(tmp_path / "a", {"train.tsv": table})
    assert (
        "1 of them are others with commas between ('1,2'): if a record may be of several classes, set label_kind"
        in (capsys.readouterr().err)
    )
    with pytest.raises(
        UserError, match=r"'1,2,3'; if they are several with commas between, set label_kind to 'classes'"
    ):
        prepared(tmp_path / "b", {"train.tsv": table, "dev.tsv": "text\tlabel\nd\t1,2,3\n"})
    found = prepared(tmp_path / "c", {"train.tsv": table}, label_kind="classes")
    assert found.classes == ("1", "2") and "commas between" not in capsys.readouterr().err


def test_lists_of_a_json_are_splits_by_their_names(tmp_path, capsys):
    lists = {
        "train": [["a", "x"], ["b", "y"]],
        "val": [["c", "x"]],
        "oos_train": [["d", "y"]],
        "oos_test": [["e", "y"]],
    }
    found = prepared(tmp_path / "a", json.dumps(lists), "a.json", valid=0.5)
    assert [t for t, *_ in texts(found)] == ["a", "b", "d"] and [t for t, *_ in texts(found, "valid")] == ["c"]
    assert [t for t, *_ in texts(found, "test")] == ["e"]
    assert (
        "read       1 file of .json; train, oos_train are train, val is valid, oos_test is test"
        in capsys.readouterr().err
    )
    found = prepared(tmp_path / "b", json.dumps(lists), "a.json", exclude="oos_*")
    assert [t for t, *_ in texts(found)] == ["a", "b"]
    odd = json.dumps({**lists, "more": [["f", "x"]]})
    with pytest.raises(UserError, match=r"a.json holds lists that are no split \(more\) beside others: leave them out"):
        prepared(tmp_path / "c", odd, "a.json")
    assert len(texts(prepared(tmp_path / "d", odd, "a.json", exclude="more"))) == 3
    found = prepared(tmp_path / "e", json.dumps({"cats": [["a", "x"]], "dogs": [["b", "y"]]}), "a.json")
    assert len(texts(found)) == 2


def test_files_that_share_all_but_the_split_are_splits(tmp_path, capsys):
    row = lambda text: lines({"text": text, "label": "x"})
    folder = {"mood_train.jsonl": row("a"), "mood_eval.jsonl": row("b"), "mood_test.jsonl": row("c")}
    found = prepared(tmp_path / "a", folder)
    assert [t for t, *_ in texts(found)] == ["a"] and [t for t, *_ in texts(found, "valid")] == ["b"]
    assert "mood_train.jsonl is train, mood_eval.jsonl is valid, mood_test.jsonl is test" in capsys.readouterr().err
    found = prepared(tmp_path / "b", {"a_guide.jsonl": row("a"), "my_test.jsonl": row("b")})
    assert len(texts(found)) == 2


def test_a_prepared_directory_brings_its_tokenizer(tmp_path, capsys):
    rows = [{"text": f"the {w} sat", "label": "x"} for w in ("cat", "dog", "bird", "fish")]
    found = prepared(tmp_path, lines(*rows))
    asked = TextRecords(str(tmp_path / "out"), tokenizer="wordpiece:2048")
    assert asked.build("unused").fingerprint == found.fingerprint
    assert "brings its tokenizer, 'bytes': 'wordpiece:2048' is not learnt" in capsys.readouterr().err
    assert asked.vocabulary() == PreparedRecords(tmp_path / "out").vocabulary()
    with pytest.raises(UserError, match="was prepared with tokenizer='bytes', not '/my/vocab.txt'"):
        TextRecords(str(tmp_path / "out"), tokenizer="/my/vocab.txt").build("unused")
