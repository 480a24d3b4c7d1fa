import gzip
import json
import os
import shutil
import struct
import sys
import zipfile

import pytest

from paradigm import tfds
from paradigm.errors import UserError
from t5like import sources
from t5like.prepare_windows import summary
from tests.t5like.corpora import documents, make, text

# -------------------------------------------------------------------------------------------------------------- sources


def listed(source, **kw):
    listing = sources.list_pieces(str(source), **kw)
    return dict(document for piece in listing.pieces for document in sources.read(piece))


def test_stdlib_is_prose_and_code_of_this_python():
    listing = sources.list_pieces("stdlib")
    names = {p.name for p in listing.pieces}
    assert {"argparse.py", "asyncio/base_events.py", "pydoc_data/topics.py"} <= names
    assert not any(
        part in name.split("/") for name in names for part in ("test", "tests", "site-packages", "encodings")
    )
    assert sum(p.size for p in listing.pieces) > 5_000_000
    assert f"Python {sys.version.split()[0]}" in listing.described
    [topics] = [p for p in listing.pieces if p.kind == "topics"]
    prose = dict(sources.read(topics))
    assert len(prose) > 50 and all(value.strip() for value in prose.values())


def backwards(scandir):
    """os.scandir, which every listing rests on, in the reverse order of names."""

    class Entries:
        def __init__(self, *path):
            with scandir(*path) as found:
                self._all = iter(sorted(found, key=lambda entry: entry.name, reverse=True))

        def __iter__(self):
            return self

        def __next__(self):
            return next(self._all)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        close = __exit__

    return Entries


def test_the_order_of_files_is_not_the_file_system_s(tmp_path, monkeypatch):
    for name in ("b/2.txt", "a/1.txt", "c.txt", "a/b/3.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    places = ("stdlib", str(tmp_path))
    before = [sources.list_pieces(place) for place in places]
    monkeypatch.setattr(os, "scandir", backwards(os.scandir))
    assert [sources.list_pieces(place) for place in places] == before


def test_every_container_gives_the_same_documents(tmp_path):
    from array_record.python.array_record_module import ArrayRecordWriter

    texts = {f"{i}.txt": text(i) for i in range(5)}
    plain = tmp_path / "plain"
    plain.mkdir()
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        for name, value in texts.items():
            (plain / name).write_text(value)
            archive.writestr(name, value)
    with gzip.open(tmp_path / "0.txt.gz", "wt") as file:
        file.write(texts["0.txt"])
    lines = "".join(json.dumps({"text": value, "url": name}) + "\n" for name, value in texts.items())
    (tmp_path / "lines.jsonl").write_text(lines)
    with gzip.open(tmp_path / "lines.jsonl.gz", "wt") as file:
        file.write(lines)
    writer = ArrayRecordWriter(str(tmp_path / "r.array_record"), "group_size:1")
    for value in texts.values():
        writer.write(value.encode())
    writer.close()
    wanted = [value.encode() for value in texts.values()]
    assert listed(plain) == listed(tmp_path / "z.zip") == dict(zip(texts, wanted))
    assert listed(tmp_path / "0.txt.gz") == {"0.txt.gz": wanted[0]}
    for name in ("lines.jsonl", "lines.jsonl.gz", "r.array_record"):
        assert list(listed(tmp_path / name).values()) == wanted
    assert list(listed(tmp_path / "lines.jsonl", field="url").values()) == [name.encode() for name in texts]
    everything = listed(tmp_path)  # a folder of all of them
    assert len(everything) == 5 + 5 + 1 + 5 + 5 + 5


def test_long_files_are_read_in_stretches_that_lose_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "PIECE_BYTES", 1000)
    (tmp_path / "long.txt").write_text("".join(f"line {i} å\n" for i in range(2000)))
    (tmp_path / "lines.jsonl").write_text("".join(json.dumps({"text": f"t{i}" * (i % 50)}) + "\n" for i in range(500)))
    (tmp_path / "no_newline.txt").write_text("x" + "å" * 5000)
    listing = sources.list_pieces(str(tmp_path))
    assert len(listing.pieces) > 40
    texts = {name: b"".join(raw for p in listing.pieces if p.path.endswith(name) for _, raw in sources.read(p))
             for name in ("long.txt", "no_newline.txt")}  # fmt: skip
    for name, joined in texts.items():
        assert joined == (tmp_path / name).read_bytes()
    for piece in listing.pieces:
        for name, raw in sources.read(piece):
            assert sources.decode(name, raw)[1] == 0, "no character is cut"
    jsonl = [raw for p in listing.pieces if p.kind == "jsonl" for _, raw in sources.read(p)]
    assert jsonl == [(f"t{i}" * (i % 50)).encode() for i in range(500)]


def test_fingerprint_changes_with_content(folder):
    before = sources.list_pieces(str(folder)).fingerprint
    path = folder / "a" / "00.txt"
    path.write_text(path.read_text().swapcase())
    assert sources.list_pieces(str(folder)).fingerprint != before


def bad_source(tmp_path, name, content=None):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    return str(path)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("gone.txt", None, r"source .*gone.txt: no such file or directory \(other sources: stdlib, tfds:NAME\)"),
        ("empty.txt", b"", r"source .*empty.txt is empty: there is no text in it"),
        ("empty.jsonl", b"", r"source .*empty.jsonl is empty"),
        (
            "nul.txt",
            b"abc\0def" * 99,
            r"nul.txt looks binary \(a NUL byte at offset 3\): leave it out, or save it as UTF",
        ),
        (
            "cp1251.txt",
            "война и мир ".encode("cp1251") * 99,
            r"cp1251.txt looks binary \(851 of 1134 bytes are not UTF-8\)",
        ),
        ("no.zip", b"not a zip", r"no.zip: cannot be read as a zip archive"),
        ("no.txt.gz", b"not gzip", r"no.txt.gz: cannot be read \(Not a gzipped file"),
        ("no.array_record", b"nothing" * 99, r"no.array_record: cannot be read as ArrayRecord"),
        ("a.jsonl", b'{"text": "a"}\n{"text": ', r"a.jsonl: the line at byte 14 is not one JSON object"),
        (
            "b.jsonl",
            b'{"body": "a"}\n',
            r"b.jsonl: the line at byte 0 has no text in 'text' \(it has body\): .* with --field",
        ),
        ("c.jsonl", b"[1]\n", r"c.jsonl: .* \(it has a list, not an object\)"),
    ],
)
def test_bad_sources(tmp_path, name, content, message):
    with pytest.raises(UserError, match=message) as error:
        make(bad_source(tmp_path, name, content), tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out" / "meta.json").exists()


def test_folders_and_archives_without_text(tmp_path):
    (tmp_path / "d").mkdir()
    with pytest.raises(UserError, match=r"holds no file of text .*; it holds nothing\. Name others with --extensions"):
        sources.list_pieces(str(tmp_path / "d"))
    (tmp_path / "d" / "x.py").write_text("pass")
    with pytest.raises(UserError, match=r"; it holds 1 file of \.py\. Name"):
        sources.list_pieces(str(tmp_path / "d"))
    assert list(listed(tmp_path / "d", extensions=("py",))) == ["x.py"]
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr("p.png", b"x")
    with pytest.raises(UserError, match=r"z.zip holds no .* 1 file of \.png\. .*; pictures are trained on as they are"):
        sources.list_pieces(str(tmp_path / "z.zip"))


def test_invalid_utf8_is_replaced_and_counted_or_refused(folder, tmp_path):
    (folder / "a" / "00.txt").write_bytes(b"caf\xe9 au lait " * 50)
    (folder / "b" / "01.txt").write_bytes(b"ok \xff\xfe " + b"fine " * 50)
    prepared = make(folder, tmp_path / "out")
    assert prepared.meta["invalid_utf8"] == {"documents": 2, "bytes": 52, "first": "a/00.txt"}
    assert "replaced   52 bytes that are not UTF-8, in 2 documents (the first: a/00.txt)" in summary(prepared.meta)
    texts = documents(prepared, "train") + documents(prepared, "valid")
    assert "caf\ufffd au lait " * 50 in texts
    with pytest.raises(UserError, match=r"00.txt is not UTF-8 \(byte 0xe9 at offset 3\): mend it, or pass --invalid"):
        make(folder, tmp_path / "refused", invalid_utf8="refuse")


@pytest.mark.parametrize("name, form", [
    ("a.jsonl", b'{"text": "%s \\ud83d"}\n'), ("a.csv", b"text,n\n%s?,1\n"), ("a.json", b'[{"text": "%s?"}]')
])  # fmt: skip
def test_invalid_utf8_of_a_record_is_no_other(name, form, tmp_path):
    (tmp_path / name).write_bytes(form % (b"caf\xe9 au lait " * 50))
    prepared = make(tmp_path / name, tmp_path / "out", valid=0)
    assert prepared.meta["invalid_utf8"]["bytes"] == 50 and documents(prepared, "train")[0].startswith("caf\ufffd au")
    with pytest.raises(UserError, match=rf"{name} \(.*\) is not UTF-8 \(byte 0xe9 at offset 3\): mend it, or pass"):
        make(tmp_path / name, tmp_path / "refused", invalid_utf8="refuse", valid=0)
    if name == "a.jsonl":
        for content, wrong in ((form.decode("latin-1").encode("utf-16"), "is UTF-16"), (b'{"a"}\r{"a"}', "ends its l")):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(UserError, match=f"{name} {wrong}"):
                make(tmp_path / name, tmp_path / "other", valid=0)


def test_a_nul_in_a_record_is_a_bad_byte(tmp_path):
    (tmp_path / "x.jsonl").write_text("".join(json.dumps({"text": text(i) + "\0"}) + "\n" for i in range(4)))
    assert make(tmp_path / "x.jsonl", tmp_path / "out", valid=0.3).meta["invalid_utf8"]["bytes"] == 4


# ---------------------------------------------------------------------------------------------------------- tfds, no TF


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    tfds = pytest.importorskip("tensorflow_datasets")
    root = tmp_path_factory.mktemp("tfds")

    class TinyCorpus(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = tfds.features.FeaturesDict({"text": tfds.features.Text(), "url": tfds.features.Text()})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, manager):
            return {
                "train": self._generate_examples(0, 40),
                "validation": self._generate_examples(40, 50),
                "test": self._generate_examples(50, 52),
            }

        def _generate_examples(self, start, end):
            for i in range(start, end):
                yield i, {"text": text(i), "url": str(i)}

    TinyCorpus(data_dir=root, file_format="array_record").download_and_prepare()
    return root / "tiny_corpus" / "1.0.0"


def as_tfrecord(directory, out):
    """The same data set with its records in TFRecord framing."""
    from array_record.python.array_record_module import ArrayRecordReader

    shutil.copytree(directory, out)
    for path in out.glob("*.array_record*"):
        records = ArrayRecordReader(str(path)).read_all()
        framed = b"".join(struct.pack("<QI", len(r), 0) + r + struct.pack("<I", 0) for r in records)
        (out / path.name.replace("array_record", "tfrecord")).write_bytes(framed)
        path.unlink()
    info = json.loads((out / "dataset_info.json").read_text())
    (out / "dataset_info.json").write_text(json.dumps({**info, "fileFormat": "tfrecord"}))
    return out


def test_tfds_reads_both_formats_without_tensorflow(tfds_dir, tmp_path):
    first = make(f"tfds:{tfds_dir}", tmp_path / "a")
    assert sorted(documents(first, "valid")) == sorted(text(i) for i in range(40, 50))
    assert sorted(documents(first, "train")) == sorted(text(i) for i in range(40))
    framed = as_tfrecord(tfds_dir, tmp_path / "tfrecord")
    second = make(f"tfds:{framed}", tmp_path / "b")
    assert documents(second, "train") == documents(first, "train")
    assert "tensorflow" not in sys.modules
    path = next(framed.glob("*train.tfrecord*"))
    path.write_bytes(path.read_bytes()[:-7])
    tfds.builder.cache_clear()
    with pytest.raises(UserError, match=r"train.tfrecord\S* is cut short: it ends inside a record"):
        make(f"tfds:{framed}", tmp_path / "c")


def test_tfds_errors(tfds_dir, monkeypatch, tmp_path):
    with pytest.raises(UserError, match=r"has no feature 'body', only text, url: choose with --field"):
        sources.list_pieces(f"tfds:{tfds_dir}", field="body")
    with pytest.raises(UserError, match=r"^tfds:no_such_thing cannot be opened \(Dataset no_such_thing not found.\)$"):
        sources.list_pieces("tfds:no_such_thing")
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    tfds.builder.cache_clear()
    with pytest.raises(
        UserError, match=r'^tfds:c4/en needs tensorflow-datasets: pip install -e "\.\[data\]" in the checkout$'
    ):
        sources.list_pieces("tfds:c4/en")
