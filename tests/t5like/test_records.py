"""Records with fields: every kind of file with one of each oddity, templates, classes, splits, and batches of them."""

import collections
import gzip
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest

from launch.run import registry
from launch.run.loader import batches
from paradigm.dataset import Dataset
from paradigm.errors import UserError
from t5like import prepare as P
from t5like import prepare_records, tables
from t5like.data import TextData
from t5like.prepare_records import RECORDS
from t5like.records import PreparedRecords, TextRecords
from t5like.windows import PreparedText
from tests.t5like.corpora import files


def build(source, out, progress=False, workers=1, **settings):
    settings = {"input": "{text}", "valid": 0.0} | settings
    return TextRecords(str(source), **settings).build(out, progress=progress, workers=workers)


def read(prepared, split="train"):
    """(input, target, label) of every record of a split."""
    source, text = prepared.source(split), prepared.tokenizer.decode
    found = [source[i] for i in range(len(source))]
    return [(text(r["inputs"]), text(r["targets"]), r["label"]) for r in found]


def jsonl(path, records):
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


# ------------------------------------------------------------------------------------------------------- kinds of files


def test_csv_with_one_of_each_oddity(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(
        '\ufeffid,größe,"the, text"\r\n'  # 1: BOM, unicode name, a comma in a name
        '1,klein,"two\nlines, and a ""quote"""\r\n'  # 2 and 3
        "\r\n"  # 4: empty
        "2,few\r\n"  # 5: a column is missing
        '3,"left open,x\r\n'  # 6
        "4,groß,after it\r\n".encode()  # 7: must not be swallowed by the quote
        + b"5,\xff,not utf-8\r\n"  # 8
        + b'6,"a" b,c\r\n'  # 9: a quote ends too early
        + b"7,,last"  # 10: an empty cell is a text; no line break at the end
    )
    prepared = build(path, tmp_path / "out", input="{the, text}", target="{größe}")
    assert read(prepared) == [('two\nlines, and a "quote"', "klein", -1), ("after it", "groß", -1), ("last", "", -1)]
    broken = prepared.meta["broken"]
    assert broken["records"] == 4
    assert broken["first"][0] == f"{path}:5 has 2 columns and the header 3"
    assert broken["first"][1].startswith(f"{path}:6 is not csv (") and "quote left open?" in broken["first"][1]
    assert broken["first"][2] == f"{path}:8 is not UTF-8"
    assert prepared.source()[0]["fields"] == {"id": "1", "größe": "klein", "the, text": 'two\nlines, and a "quote"'}


def test_a_quote_left_open_costs_one_record_only(tmp_path):
    lines = ["text,n\n"] + ["word,1\n"] * 20 + ['"open,2\n'] + ["word,1\n"] * 20
    (tmp_path / "a.csv").write_text("".join(lines))
    prepared = build(tmp_path / "a.csv", tmp_path / "out")
    assert len(prepared.source()) == 40 and prepared.meta["broken"]["records"] == 1
    assert f"{tmp_path}/a.csv:22 is not csv" in prepared.meta["broken"]["first"][0]


def test_jsonl_with_one_of_each_oddity(tmp_path, capsys):
    path = tmp_path / "a.jsonl"
    lines = [
        '\ufeff{"q": {"text": "nested"}, "answers": ["one", "two"], "a.b": "dotted"}',
        "",
        '{"q": {"text": "broken"',
        '["a list"]',
        '{"q": {"text": 7.5}, "answers": [true, 3], "a.b": "\\ud83d \\u00e9"}',
        '{"q": {"text": null}, "answers": ["x"], "a.b": ""}',
        '{"q": "no object", "answers": ["x"], "a.b": ""}',
        '{"q": {"text": "few"}, "answers": [], "a.b": ""}',
        "   ",
        '{"q": {"text": "last {q}"}, "answers": ["x"], "a.b": "", "größe": 1}',
    ]
    path.write_text("\r\n".join(lines), newline="")
    prepared = build(path, tmp_path / "out", True, input="{{{q.text}}} {a.b}", target="{answers.0}: {answers}")
    assert read(prepared) == [
        ("{nested} dotted", "one: one, two", -1),
        ("{7.5} ? é", "true: true, 3", -1),
        ("{last {q}} ", "x: x", -1),
    ]
    assert prepared.meta["broken"] == {
        "records": 5,
        "first": [
            f"{path}:3 is not JSON (Expecting ',' delimiter at character 24)",
            f"{path}:4 is a list and not an object",
            f"{path}:6 has no field 'q.text', only q, answers, a.b",
        ],
    }
    said = capsys.readouterr().err
    assert "train      3 records, 36 tokens of input (the longest 15), 30 of target (the longest 13)\n" in said
    assert f"left out   5 broken records: {path}:3 is not JSON" in said and said.endswith("; and 2 more\n")


def test_empty_inputs_and_bytes_that_are_not_utf8_are_broken(tmp_path):
    from array_record.python.array_record_module import ArrayRecordWriter

    lines = [b'{"text": "  "}', b'{"text": "caf\xe9"}', '{"text": "café"}'.encode(), b'{"text": "", "text": "b"}']
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    writer = ArrayRecordWriter(str(tmp_path / "a.array_record"), "group_size:1")
    for line in lines:
        writer.write(line)
    writer.close()
    for name, places in (("a.jsonl", (":1", ":2")), ("a.array_record", (" record 0", " record 1"))):
        prepared = build(tmp_path / name, tmp_path / f"{name}.out")
        assert read(prepared) == [("café", "", -1), ("b", "", -1)]
        wanted = ("has nothing in text: its input is empty", "is not UTF-8")
        assert prepared.meta["broken"]["first"] == [f"{tmp_path}/{name}{p} {w}" for p, w in zip(places, wanted)]


def test_empty_targets_are_told(tmp_path, capsys):
    (tmp_path / "a.csv").write_text("text,short,split\n" + "a,b,train\n" * 3 + "a,,train\na,,train\na,,test\n")
    build(tmp_path / "a.csv", tmp_path / "a", True, target="{short}", split="split")
    assert "warning    2 of these have an empty target: if it is" in capsys.readouterr().err
    build(tmp_path / "a.csv", tmp_path / "b", True)
    assert "warning" not in capsys.readouterr().err


def test_lists_that_a_template_joins_are_told(tmp_path, capsys):
    rows = [{"text": f"t {i}", "all": ["a", "b"] if i % 2 else ["a"]} for i in range(8)]
    prepared = build(jsonl(tmp_path / "a.jsonl", rows), tmp_path / "a", True, target="{all}")
    assert "a, b" in [r[1] for r in read(prepared)]
    assert "warning    4 of these have lists of several texts, joined by ', ': {name.0} is" in capsys.readouterr().err
    build(tmp_path / "a.jsonl", tmp_path / "b", True, target="{all.0}")
    rows = [{"words": ["a", "b"], "tags": ["O", "O"]} for _ in range(8)]
    build(jsonl(tmp_path / "c.jsonl", rows), tmp_path / "c", True, input="{words}", label="tags", label_kind="tags")
    assert "lists of several" not in capsys.readouterr().err


def test_null_in_a_list_is_no_text_and_no_class(tmp_path):
    rows = [{"text": ["a", None], "y": ["k"]}, {"text": "b", "y": ["k", None]}, {"text": ["a", "b"], "y": ["k", "m"]}]
    prepared = build(jsonl(tmp_path / "a.jsonl", rows), tmp_path / "out", label="y", label_kind="classes")
    assert [r[0] for r in read(prepared)] == ["a, b"] and prepared.classes == ("k", "m")
    path = f"{tmp_path}/a.jsonl"
    assert prepared.meta["broken"]["first"] == [f"{path}:{n} has null in '{f}', which is no text" for n, f in
                                                ((1, "text"), (2, "y"))]  # fmt: skip


def test_answers_are_counted_in_words_of_the_text_as_it_is_read(tmp_path):
    """Of a list of sentences too; and what stands between spaces is no word where a script has none."""
    how = {"input": "{q}", "target": "{c}", "label": "a", "label_kind": "answer"}
    row = lambda context, text, start: {"q": "?", "c": context, "a": {"text": text, "answer_start": start}}
    path = jsonl(tmp_path / "a.jsonl", [row(["Ann sat.", "Bob too."], "Bob", 10), row("東京 に住む", "東京", 0)])
    source = build(path, tmp_path / "a", **how).source()
    assert [source[k]["label"].tolist() for k in range(2)] == [[[2, 2]], [[0, 0]]] and len(source[0]["words"]) == 4
    with pytest.raises(UserError, match="has the answer '東京' in 'a' inside of what stands between spaces in its con"):
        build(jsonl(tmp_path / "b.jsonl", [row("東京に住む", "東京", 0)]), tmp_path / "b", **how)


def test_tsv_has_no_quotes_and_may_have_no_header(tmp_path):
    (tmp_path / "a.tsv").write_text('text\tkind\n"open\tx\n\nthree\tcells\there\na\u2028b\ty\n')
    prepared = build(tmp_path / "a.tsv", tmp_path / "a", target="{kind}")
    assert read(prepared) == [('"open', "x", -1), ("a\u2028b", "y", -1)]
    assert prepared.meta["broken"]["first"] == [f"{tmp_path}/a.tsv:4 has 3 columns and the header 2"]
    (tmp_path / "b.tsv").write_text("one\tx\ntwo\ty\n")
    bare = build(tmp_path / "b.tsv", tmp_path / "b", target="{kind}", columns=["text", "kind"])
    assert read(bare) == [("one", "x", -1), ("two", "y", -1)]


def test_every_container_gives_the_same_examples(tmp_path):
    from array_record.python.array_record_module import ArrayRecordWriter

    records = [{"text": f"text {i}", "answer": f"{i % 3}"} for i in range(40)]
    jsonl(tmp_path / "a.jsonl", records)
    table = [("text", "answer"), *((r["text"], r["answer"]) for r in records)]
    (tmp_path / "a.tsv").write_text("".join("\t".join(row) + "\n" for row in table))
    (tmp_path / "a.csv").write_text("".join(",".join(row) + "\n" for row in table))
    for name in ("a.jsonl", "a.tsv", "a.csv"):
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress((tmp_path / name).read_bytes()))
    writer = ArrayRecordWriter(str(tmp_path / "a.array_record"), "group_size:1")
    for record in records:
        writer.write(json.dumps(record).encode())
    writer.close()
    wanted = [(r["text"], r["answer"], int(r["answer"])) for r in records]
    for i, path in enumerate(sorted(tmp_path.glob("a.*"))):
        prepared = build(path, tmp_path / f"out{i}", target="{answer}", label="answer")
        assert read(prepared) == wanted, path
        assert prepared.classes == ("0", "1", "2")
    assert i == 6


def test_stretches_of_a_file_give_all_lines_once_with_their_numbers(tmp_path, monkeypatch):
    whole = [f"{tmp_path}/a.{{}}:{n}" for n in range(2, 302)]
    (tmp_path / "a.tsv").write_text("text\tn\n" + "".join(f"{'é' * (i % 7)} {i}\t{i}\n" for i in range(300)))
    (tmp_path / "a.jsonl").write_text("\n" + "".join(f'{{"text": "{"é" * (i % 7)} {i}"}}\n' for i in range(300)))
    monkeypatch.setattr(tables, "PIECE_BYTES", 100)
    for kind in ("tsv", "jsonl"):
        parts = tables.list_parts(str(tmp_path / f"a.{kind}")).pieces
        assert len(parts) > 20
        found = [item for part in parts for item in tables.read(part)]
        assert [name for name, _ in found] == [name.format(kind) for name in whole]
        assert [record["text"].split()[-1] for _, record in found] == [str(i) for i in range(300)]


# ------------------------------------------------------------------------------------------------- templates and labels


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"input": "{qestion}"}, r"source SOURCE: none of its 2 records to train on can be used: SOURCE:1 has no "
         r"field 'qestion', only question, answer, score$"),
        ({"target": "{answer.text} {why.0}"}, r"SOURCE:1 has no field 'why.0', only question, answer, score$"),
        ({"label": "kind"}, r"SOURCE:1 has no field 'kind', only question, answer, score$"),
        ({"label": "score"}, r"SOURCE:1 has 0.5 in 'score', which is no class: set label_kind to 'number' for a"),
        ({"input": "{answer}"}, r"SOURCE:1 has an object in 'answer', not a text: name what is in it, as in "
         r"{answer.text}$"),
        ({"split": "question"}, r"SOURCE:1 has 'a' in 'question', which is none of train, training, valid,"),
        ({"input": "{"}, r"TextRecords.input='{': a brace stands alone; write {field}, and {{ or }} "
         "for a brace"),
        ({"input": "question"}, r"TextRecords.input='question' names no field: write them in braces"),
        ({"target": "yes"}, r"TextRecords.target='yes' names no field: every record would have the same"),
        ({"input": ""}, r"TextRecords.input is not set: give a template of fields"),
        ({"valid": 1.0}, r"valid=1.0: the held-out share of records must lie in \[0, 1\)"),
        ({"valid_glob": "dev*"}, r"no file or split matches valid_glob='dev\*'; it has \S+\.jsonl$"),
        ({"columns": ["a", "b"]}, r"holds no table without names, of which columns=\('a', 'b'\) would be some$"),
        ({"roles": ["a", "b"]}, r"TextRecords.roles is of dialogues: set TextRecords.turns to the field of"),
        ({"turn": "{text}"}, r"TextRecords.turn is of dialogues: set TextRecords.turns"),
        ({"exclude": "*"}, r"nothing is left to train on, only nothing: check exclude and valid_glob$"),
    ],
)  # fmt: skip
def test_mistakes_name_the_record_and_the_field(settings, message, tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [{"question": q, "answer": {"text": q}, "score": 0.5} for q in "ab"])
    with pytest.raises(UserError, match=message.replace("SOURCE", str(path))):
        build(path, tmp_path / "out", **({"input": "{question}"} | settings))
    assert not (tmp_path / "out" / "meta.json").exists()


REALS = [f"{i / 7:.3f}" for i in range(40)]
LABELS = {
    "real numbers": (
        REALS,
        r"its labels in 'y' are 40 distinct real numbers, such as 0.\d+, which are no classes: set",
    ),
    "decimal commas": ([f"{i},5" for i in range(40)], r"40 distinct real numbers, such as \d+,5, which are no classes"),
    "stars": ([f"{i % 9 / 2}" for i in range(40)], r"9 distinct real numbers, such as 0.5, which are no classes: set"),
    "ids": ([f"user{i}" for i in range(40)], r"40 distinct values in 40 records, such as 'user0', which are no cl"),
}


@pytest.mark.parametrize("values, message", LABELS.values(), ids=LABELS)
def test_labels_that_are_no_classes(values, message, tmp_path):
    """A regression's target and a column of ids are not counted as so many classes; twenty of one are classes."""
    lines = [f'text number {i},"{value}"' for i, value in enumerate(values)]
    (tmp_path / "a.csv").write_text("\n".join(["text,y", *lines]))
    with pytest.raises(UserError, match=message):
        build(tmp_path / "a.csv", tmp_path / "out", input="{text}", label="y")
    if message.startswith("9"):  # as numbers of JSON, of which every second is a whole one
        jsonl(tmp_path / "a.jsonl", [{"text": f"text {i}", "y": float(v)} for i, v in enumerate(values)])
        with pytest.raises(
            UserError, match=r"of its records cannot be used, such as .* has 0.5 in 'y', which is no cl"
        ):
            build(tmp_path / "a.jsonl", tmp_path / "out2", input="{text}", label="y")
        assert build(tmp_path / "a.jsonl", tmp_path / "out3", input="{text}", label="y", label_kind="number")


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.csv", "", r"a.csv is empty: it wants a header and a line for each record$"),
        ("a.csv", "text\n", r"there is no record to train on in it$"),
        ("a.csv", "text,b,text\n1,2,3\n", r"a.csv has 2 columns 'text': give each a name of its own$"),
        ("a.csv", '"text\n', r"a.csv: its header is not csv \("),
        ("a.xml", "<a/>", r"a.xml is of no known kind: records are read from .jsonl"),
        ("a.jsonl.gz", "text", r"a.jsonl.gz: cannot be read \(Not a gzipped file"),
        ("a.array_record", "text", r"a.array_record: cannot be read as ArrayRecord"),
        ("folder/a.xml", "<a/>", r"folder holds no file of records \(.jsonl .*\); it holds 1 file of .xml$"),
        ("test/a.jsonl", "{}", r"nothing is left to train on, only test/a.jsonl: check exclude"),
    ],
)
def test_files_that_hold_no_records(name, content, message, tmp_path):
    (tmp_path / "in" / name).parent.mkdir(parents=True)
    (tmp_path / "in" / name).write_text(content)
    source = tmp_path / "in" / name.split("/")[0]
    with pytest.raises(UserError, match=message):
        build(tmp_path / "in" if name.startswith("test") else source, tmp_path / "out")
    with pytest.raises(
        UserError, match=r"nowhere: no such file or directory \(other sources of records: tfds:NAME, stdlib:KIND\)"
    ):
        build(tmp_path / "nowhere", tmp_path / "out")


def test_columns_without_a_name_are_no_more_than_left_out(tmp_path):
    (tmp_path / "spam.csv").write_text("v1,v2,,,\nham,one,,,\nspam,two,more,,\nham,three,,,\n")
    prepared = build(tmp_path / "spam.csv", tmp_path / "out", input="{v2}", label="v1", valid=0.0)
    assert [r[0] for r in read(prepared)] == ["one", "two", "three"] and prepared.classes == ("ham", "spam")


def test_labels_are_sorted_names_and_whole_numbers_by_size(tmp_path):
    words = ["no", "yes", "maybe", "no"]
    path = jsonl(tmp_path / "a.jsonl", [{"text": "x", "k": w} for w in words])
    prepared = build(path, tmp_path / "a", label="k")
    assert prepared.classes == ("maybe", "no", "yes") and [r[2] for r in read(prepared)] == [1, 2, 0, 1]
    assert prepared.meta["counts"]["train"]["classes"] == {"maybe": 1, "no": 2, "yes": 1}
    path = jsonl(tmp_path / "b.jsonl", [{"text": "x", "k": k} for k in (10, 9, 2.0, -1, "")])
    prepared = build(path, tmp_path / "b", label="k")
    assert prepared.classes == ("-1", "2", "9", "10") and [r[2] for r in read(prepared)] == [3, 2, 1, 0]
    assert prepared.meta["broken"]["first"] == [f"{path}:5 has nothing in 'k': it is of no class"]


# --------------------------------------------------------------------------------------------------------------- splits


def test_held_out_by_a_hash_of_the_input_so_that_duplicates_stay_together(tmp_path):
    records = [{"text": f"text {i % 100}", "id": i, "doc": f"{i % 7}"} for i in range(400)]
    path = jsonl(tmp_path / "a.jsonl", records)
    prepared = build(path, tmp_path / "a", valid=0.2, target="{id}")
    train, valid = ([r[0] for r in read(prepared, split)] for split in ("train", "valid"))
    assert not set(train) & set(valid) and len(train) + len(valid) == 400
    assert set(collections.Counter(train + valid).values()) == {4}
    assert 40 <= len(valid) <= 120
    fewer = build(jsonl(tmp_path / "b.jsonl", records[::-3]), tmp_path / "b", valid=0.2)
    assert {r[0] for r in read(fewer, "valid")} <= set(valid), "who is held out depends on the others"
    grouped = build(path, tmp_path / "c", valid=0.2, target="{doc}", group="doc")
    docs = [{r[1] for r in read(grouped, split)} for split in ("train", "valid")]
    assert not docs[0] & docs[1] and len(docs[0] | docs[1]) == 7
    few = build(jsonl(tmp_path / "d.jsonl", records[:5]), tmp_path / "d", valid=0.001)
    assert len(read(few, "valid")) == 1 and len(read(few)) == 4
    many = tmp_path / "many"  # one record a file: the one that is held out in any case is no measure for the others
    many.mkdir()
    for i in range(60):
        jsonl(many / f"{i:02d}.jsonl", [{"text": f"text {i}"}])
    assert 1 <= len(read(build(many, tmp_path / "m", valid=0.01), "valid")) <= 4
    for k in range(3):  # the record that is held out in any case is none of the test's
        rows = [{"text": f"{k}, {i}", "split": "train" if i > 30 else "test"} for i in range(36)]
        some = build(jsonl(tmp_path / f"f{k}.jsonl", rows), tmp_path / f"f{k}", valid=1e-6, split="split")
        assert [len(read(some, split)) for split in ("train", "valid", "test")] == [4, 1, 31]
    with pytest.raises(UserError, match="all of its 1 records that can be used are held out: add some, or set valid"):
        build(jsonl(tmp_path / "e.jsonl", records[:1]), tmp_path / "e", valid=0.2)
    with pytest.raises(UserError, match=r"or set valid to 0; 1 cannot be used: .*e.jsonl:2 has no field 'text', only"):
        build(jsonl(tmp_path / "e.jsonl", [records[0], {"other": "x"}]), tmp_path / "e", valid=0.2)


def test_splits_by_a_field_by_files_and_by_glob(tmp_path):
    words = ["train", "Validation", "test", "dev", "other", "train"]
    path = jsonl(tmp_path / "a.jsonl", [{"text": f"{i}", "s": w} for i, w in enumerate(words)])
    prepared = build(path, tmp_path / "a", split="s", valid=0.5)
    texts = lambda p: {s: [r[0] for r in read(p, s)] for s, shards in p.meta["shards"].items() if shards}
    assert texts(prepared) == {"train": ["0", "5"], "valid": ["1", "3"], "test": ["2"]}
    assert "5 has 'other' in 's', which is none of train" in prepared.meta["broken"]["first"][0]
    folder = tmp_path / "folder"
    for name in ("train/1", "train/2", "dev_matched", "test", "other", ".hidden/5"):
        (folder / f"{name}.csv").parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.csv").write_text(f"text,k\n{name},a\n" if name != "test" else "text\ntest\n")
    prepared = build(folder, tmp_path / "b", valid=0.9, target="{k}", label="k")  # nobody is held out by a hash
    assert texts(prepared) == {"train": ["other", "train/1", "train/2"], "valid": ["dev_matched"], "test": ["test"]}
    assert read(prepared, "test") == [("test", "", -1)], "of a test split the answers may be missing"
    prepared = build(folder, tmp_path / "c", valid_glob="train/2*", exclude="dev*,other*", target="{k}")
    assert texts(prepared) == {"train": ["train/1"], "valid": ["train/2"], "test": ["test"]}
    with pytest.raises(UserError, match=r"has no valid records, only train: prepare it with some held out$"):
        build(folder / "other.csv", tmp_path / "d").source("valid")


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    tfds = pytest.importorskip("tensorflow_datasets")
    root = tmp_path_factory.mktemp("tfds")

    class TinyRecords(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            answers = tfds.features.Sequence({"text": tfds.features.Text(), "start": np.int32})
            label = tfds.features.ClassLabel(names=["true", "false"])
            features = {"question": tfds.features.Text(), "answers": answers, "label": label}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, manager):
            splits = {"train": (0, 20), "validation": (20, 25), "test": (25, 28), "unsupervised": (28, 30)}
            return {name: self._generate_examples(*ends) for name, ends in splits.items()}

        def _generate_examples(self, start, end):
            for i in range(start, end):
                answers = {"text": [f"{i}", "b"], "start": [i, 0]}
                yield i, {"question": f"ä {i}", "answers": answers, "label": i % 2 if i < 25 else -1}

    TinyRecords(data_dir=root, file_format="array_record").download_and_prepare()
    return root / "tiny_records" / "1.0.0"


def test_tfds_with_nested_features_and_names_of_classes(tfds_dir, tmp_path, capsys):
    wanted = {"input": "{question}", "target": "{answers.text.0} at {answers.start.0}", "label": "label"}
    prepared = build(f"tfds:{tfds_dir}", tmp_path / "out", True, **wanted)
    assert prepared.classes == ("false", "true")
    example = lambda i, label: (f"ä {i}", f"{i} at {i}", label)
    assert sorted(read(prepared)) == sorted(example(i, 1 - i % 2) for i in range(20))
    assert sorted(read(prepared, "valid")) == sorted(example(i, 1 - i % 2) for i in range(20, 25))
    assert sorted(read(prepared, "test")) == sorted(example(i, -1) for i in range(25, 28))
    assert ", without unsupervised\n" in capsys.readouterr().err
    assert "tensorflow" not in sys.modules
    with pytest.raises(UserError, match=r"record 0 has no field 'q', only .*question"):
        build(f"tfds:{tfds_dir}", tmp_path / "other", input="{q}")


# ------------------------------------------------------------------------------------------- directories, runs, batches


@pytest.fixture
def many_jobs(monkeypatch):
    monkeypatch.setattr(P, "JOB_BYTES", 1000)
    monkeypatch.setattr(tables, "PIECE_BYTES", 500)


def records(n):
    return [{"text": f"the {i} of {i * i}", "answer": "yes" if i % 3 else "no"} for i in range(n)]


def test_same_bytes_whatever_the_workers_and_after_an_interruption(tmp_path, many_jobs, monkeypatch):
    rows = records(300)
    path = jsonl(
        tmp_path / "a.jsonl", [row for i, r in enumerate(rows) for row in ([r, {"no": 1}] if i % 60 == 0 else [r])]
    )
    settings = dict(target="{answer}", label="answer", valid=0.1, tokenizer="sentencepiece:380")
    one, two = (build(path, tmp_path / f"w{n}", workers=n, **settings) for n in (1, 2))
    assert len(one.meta["shards"]["train"]) >= 5 and files(one.directory) == files(two.directory)
    assert one.meta["broken"]["records"] == 5
    assert [name.partition(" ")[0] for name in one.meta["broken"]["first"]] == [f"{path}:{n}" for n in (2, 63, 124)]
    there = [(e[0], e[1]) for split in ("train", "valid") for e in read(one, split)]
    assert sorted(there) == sorted((r["text"], r["answer"]) for r in rows), "records of all shards, each once"
    calls = []

    def stops(*args):
        calls.append(args[5])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return RECORDS.job(*args)

    recipe = TextRecords(str(path), input="{text}", **settings)
    with pytest.raises(KeyboardInterrupt):
        P.prepare(recipe, tmp_path / "out", 1, False, RECORDS._replace(job=stops))
    with pytest.raises(UserError, match="holds no prepared corpus"):
        PreparedRecords(tmp_path / "out")
    P.prepare(recipe, tmp_path / "out", 1, False, RECORDS._replace(job=stops))
    assert calls == [0, 1, 2, *range(2, len(one.meta["shards"]["train"]))]
    assert files(tmp_path / "out") == files(one.directory)


def test_a_run_builds_once_and_refuses_other_templates(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", records(30))
    first = build(path, tmp_path / "out", target="{answer}")
    path.write_text("")  # a run keeps what it began with
    assert build(path, tmp_path / "out", target="{answer}").fingerprint == first.fingerprint
    with pytest.raises(UserError, match=r"holds another corpus \(target='\{answer\}' there, '' now\): give another"):
        build(path, tmp_path / "out")
    direct = TextRecords(str(tmp_path / "out"))
    assert direct.build("unused").fingerprint == first.fingerprint
    assert direct.vocabulary() == first.vocabulary() == TextRecords("x", input="{text}").vocabulary()
    with pytest.raises(UserError, match=r"was prepared with input='\{text\}', not '\{a\}': set TextRecords.input to"):
        TextRecords(str(tmp_path / "out"), input="{a}").build("unused")
    with pytest.raises(UserError, match="out holds records, and windows are wanted: prepare them with --kind=windows"):
        TextData(str(tmp_path / "out")).build("unused", window=32)
    P.prepare(TextData(str(jsonl(tmp_path / "b.jsonl", records(30))), window=8), tmp_path / "text", 1, False)
    assert PreparedText(tmp_path / "text")
    with pytest.raises(UserError, match="text holds windows, and records are wanted: prepare them with --kind=records"):
        TextRecords(str(tmp_path / "text")).build("unused")
    with pytest.raises(UserError, match="out is a prepared directory: it is used as it is, or made again from its so"):
        tables.list_parts(str(tmp_path / "out"))
    shard = tmp_path / "out" / first.meta["shards"]["train"][0]["file"]
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"train-\S+ has \d+ bytes instead of \d+: run launch.prepare into .*out again"):
        direct.build("unused")


def test_fingerprint_changes_with_any_record_or_template(tmp_path):
    found = set()
    for i, (rows, settings) in enumerate(
        [
            (records(30), {}),
            (records(31), {}),
            (records(30)[::-1], {}),
            (records(30), {"target": "{answer}"}),
            (records(30), {"label": "answer"}),
        ]
    ):
        found.add(build(jsonl(tmp_path / f"{i}.jsonl", rows), tmp_path / f"{i}", **settings).fingerprint)
    assert len(found) == 5


def test_gin_names_them():
    """As a run file binds it; a list of columns becomes a tuple."""
    bindings = ["TextRecords.source = 'a.tsv'", "TextRecords.input = '{a}'", "TextRecords.columns = ['a']"]
    bindings.append("Experiment.data = @TextRecords()")
    experiment = registry.parse(["runs/smoke/next_token.gin"], bindings)
    assert experiment.data == TextRecords("a.tsv", input="{a}", columns=("a",))


class Padded:
    """What a task's preprocess does, in its simplest form: tokens to a fixed length, and a word drawn for dropping."""

    def __call__(self, example, rng, step, train):
        fixed = lambda ids, n: np.pad(ids[:n], (0, n - len(ids[:n])))
        inputs = fixed(example["inputs"], 24)
        drop = np.int32(rng.integers(24) if train else 0)
        return {"inputs": inputs, "targets": fixed(example["targets"], 4), "label": np.int32(example["label"]),
                "drop": drop, "id": np.int32(example["fields"]["n"])}  # fmt: skip


def test_batches_are_the_same_for_any_workers_and_after_a_restart(tmp_path):
    rows = [r | {"n": n} for n, r in enumerate(records(50))]
    prepared = build(jsonl(tmp_path / "a.jsonl", rows), tmp_path / "out", target="{answer}", label="answer", valid=0.2)
    dataset = Dataset(pickle.loads(pickle.dumps(prepared.source())), Padded(), 8, seed=3)
    wanted = [dataset.batch(step) for step in range(12)]
    epoch = np.concatenate([b["id"] for b in wanted])[: len(prepared.source())]
    assert len(set(epoch.tolist())) == len(prepared.source()), "an epoch reads each record once"
    for b in wanted:
        for row in range(8):
            answer = rows[b["id"][row]]["answer"]
            assert prepared.classes[b["label"][row]] == answer == prepared.tokenizer.decode(b["targets"][row])
    for workers, start in ((0, 0), (2, 5)):
        with batches(dataset, start, workers=workers) as stream:
            for step, found in zip(range(start, 12), stream):
                for name, value in wanted[step].items():
                    np.testing.assert_array_equal(found[name], value)
    held_out = Dataset(prepared.source("valid"), Padded(), 8, train=False)
    ids = [i for k in range(len(held_out)) for b in [held_out.batch(k)] for i in b["id"][b["mask"] > 0].tolist()]
    assert len(set(ids)) == len(ids) == len(prepared.source("valid")) and not set(ids) & set(epoch.tolist())


# ----------------------------------------------------------------------------------------------------- the command line


def command(*arguments):
    return subprocess.run([sys.executable, "-m", "launch.prepare", *arguments], capture_output=True, text=True)


def test_launch_prepare_writes_records(tmp_path):
    path = jsonl(tmp_path / "qa.jsonl", [*records(30), {"text": "x"}])
    out = tmp_path / "out"
    done = command(f"--source={path}", f"--out={out}", "--input=about {text}", "--target={answer}", "--label=answer")
    assert done.returncode == 0, done.stderr
    assert f"left out   1 broken records: {path}:31 has no field 'answer', only text\n" in done.stderr
    assert "label      answer: 2 classes (no, yes)" in done.stderr and "\r" not in done.stderr  # a log has no bars
    found = {label: (text, target) for text, target, label in read(PreparedRecords(out))}
    assert found.keys() == {0, 1} and found[0][1] == "no" and found[1][1] == "yes"
    assert found[0][0].startswith("about the ")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ["--kind=records"],
            "error: TextRecords.input is not set: give a template of fields, as in '{a}'; of a in {path} ",
        ),
        (["--target={a}"], "error: --target says nothing of windows: give --input or --kind=records, or leave it out"),
        (["--input={a}", "--window=9"], "error: --window says nothing of records: leave it out"),
        (["--input={a}", "--kind=windows"], "error: --input says nothing of windows: give --input or --kind=records"),
        (["--input={b}"], "error: source {path}: none of its 1 records to train on can be used: {path}:1 has no field"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(arguments, message, tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [{"a": "x"}])
    done = command(f"--source={path}", f"--out={tmp_path / 'out'}", *arguments)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(message.replace("{path}", str(path))) and done.stderr.count("\n") == 1, done.stderr


def test_stored_examples_survive_and_a_damaged_one_is_told():
    ids = np.array([0, 255, 7], np.int32)
    raw = prepare_records.encode_example(ids, ids[:1], "k", {"é": [1, None]}, "<u1")
    inputs, targets, label, fields, words = prepare_records.decode_example(raw, "<u1")
    assert (
        words is None
        and inputs.tolist() == [0, 255, 7]
        and targets.tolist() == [0]
        and (label, fields) == ("k", {"é": [1, None]})
    )
    assert inputs.dtype == targets.dtype == np.int32
    for cut in (4, 10, len(raw) - 1):
        with pytest.raises(ValueError):
            prepare_records.decode_example(raw[:cut], "<u1")
