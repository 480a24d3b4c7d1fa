"""Text by every way that people keep it: formats, packings, containers in containers, and what is left out of them."""

import bz2
import gzip
import io
import json
import lzma
import re
import sys
import tarfile
import zipfile

import pytest

from paradigm.errors import UserError
from t5like import prepare as P
from t5like import sources
from t5like.prepare_records import RECORDS
from t5like.prepare_windows import summary
from t5like.records import PreparedRecords, TextRecords
from tests.t5like.corpora import documents, make, text

TEXTS = [f'text {i} of "some", words\nand a second line' for i in range(6)]


def jsonl(texts=TEXTS):
    return "".join(json.dumps({"text": t, "meta": {"id": i}}) + "\n" for i, t in enumerate(texts)).encode()


def table(delimiter):
    quoted = ['"{}"'.format(t.replace('"', '""')) for t in TEXTS]
    if delimiter == "\t":  # a line a record
        quoted = [q.replace("\n", " ") for q in quoted]
    return "".join(f"{a}{delimiter}{b}\n" for a, b in [("id", "text"), *enumerate(quoted)]).encode()


def parquet(nested=False, row_group_size=2):
    pyarrow, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [{"id": i, "doc": {"text": t}} if nested else {"id": i, "text": t} for i, t in enumerate(TEXTS)]
    out = io.BytesIO()
    pq.write_table(pyarrow.Table.from_pylist(rows), out, row_group_size=row_group_size)
    return out.getvalue()


def zstd(content):
    pyarrow = pytest.importorskip("pyarrow")
    half = len(content) // 2  # in two frames, as parallel programs write them
    return b"".join(pyarrow.compress(part, "zstd", asbytes=True) for part in (content[:half], content[half:]))


def zipped(members):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


def tarred(members, mode="w"):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def texts_of(source, **how):
    """The texts of a source, in order."""
    pieces = sources.list_pieces(str(source), **how).pieces
    return [raw.decode() for piece in pieces for _, raw in sources.read(piece)]


LISTED = json.dumps([{"text": t} for t in TEXTS], indent=1).encode()
FILES = {
    "a.jsonl": jsonl,
    "a.ndjson": jsonl,
    "a.json": jsonl,
    "b.json": lambda: LISTED,
    "a.csv": lambda: table(","),
    "a.tsv": lambda: table("\t"),
    "a.parquet": parquet,
}
PACKED = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd}
PLACES = {
    "file": None,
    "folder": None,
    "x.zip": zipped,
    "x.tar": tarred,
    "x.tar.gz": lambda members: tarred(members, "w:gz"),
    "x.tgz": lambda members: tarred(members, "w:gz"),
    "x.tar.zst": lambda members: zstd(tarred(members)),
    "zip in tar.xz": lambda members: tarred({"./in/y.zip": zipped(members)}, "w:xz"),
    "tar.gz in zip": lambda members: zipped({"in/y.tar.gz": tarred(members, "w:gz")}),
}


@pytest.mark.parametrize("packing", PACKED)
@pytest.mark.parametrize("name", FILES)
def test_every_format_in_every_packing(name, packing, tmp_path):
    (tmp_path / f"{name}{packing}").write_bytes(PACKED[packing](FILES[name]()))
    wanted = [t.replace("\n", " ") for t in TEXTS] if name == "a.tsv" else TEXTS
    assert texts_of(tmp_path / f"{name}{packing}") == wanted == texts_of(tmp_path)


def put(where, members, tmp_path):
    """Members in a place; the source to name."""
    if PLACES[where] is None:
        for name, content in members.items():
            (tmp_path / "s" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "s" / name).write_bytes(content)
        return tmp_path / "s"
    name = where.replace("zip in ", "x.").replace("tar.gz in ", "x.")
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / name).write_bytes(PLACES[where](members))
    return tmp_path / "s" / name


@pytest.mark.parametrize("where", list(PLACES)[1:])
def test_a_container_is_read_as_a_folder_is(where, tmp_path):
    members = {
        "c/a.jsonl": jsonl(TEXTS[:2]),
        "c/b.csv": b"id,text\n1,of a table\n",
        "c/c.txt": b"plain",
        "c/d.parquet": parquet(),
        "c/e.txt.gz": gzip.compress(b"packed"),
        "c/f.jsonl.zst": zstd(jsonl(TEXTS[2:])),
        "c/.git/x.txt": b"hidden",
        "c/.ipynb_checkpoints/x.txt": b"hidden",
        "__MACOSX/c/._c.txt": b"\0\5\26",
        "c/p.png": b"picture",
        "c/q.py": b"pass",
        "c/empty.txt": b"",
    }
    source = put(where, members, tmp_path)
    for place in (source, tmp_path / "s"):  # the container, and a folder that holds it
        listing = sources.list_pieces(str(place))
        found = [raw.decode() for piece in listing.pieces for _, raw in sources.read(piece)]
        assert sorted(found) == sorted([*TEXTS, *TEXTS, "of a table", "plain", "packed"])
        assert listing.left == "3 hidden files, 1 file of .png, 1 file of .py, 1 empty file"
        kinds = [".csv", ".jsonl", ".jsonl.zst", ".parquet", ".txt", ".txt.gz"]
        assert listing.read == ", ".join(f"1 file of {kind}" for kind in kinds)
    records = TextRecords(str(source), input="{text}", valid=0.0).build(tmp_path / "out", progress=False, workers=1)
    assert len(records.source()) == 2 * len(TEXTS) + 1


def test_extensions_do_not_make_text_of_the_syntax_of_records(tmp_path):
    (tmp_path / "x.zip").write_bytes(zipped({"a.jsonl": jsonl(), "package.json": b'{\n "text": "no list"\n}'}))
    assert texts_of(tmp_path / "x.zip", extensions=(".jsonl",)) == TEXTS
    assert sources.list_pieces(str(tmp_path)).left == "1 file of .json"


# ------------------------------------------------------------------------------------------------------ fields, errors


def test_nested_fields(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"".join(json.dumps({"doc": {"text": t}}).encode() + b"\n" for t in TEXTS))
    (tmp_path / "b.parquet").write_bytes(parquet(nested=True))
    assert texts_of(tmp_path, field="doc.text") == TEXTS * 2
    (tmp_path / "c.jsonl").write_text('{"doc.text": "one", "doc": {"text": "another"}}\n')
    with pytest.raises(
        UserError, match=r"c.jsonl: the line at byte 0 has a field named 'doc.text' and 'doc' holds ano"
    ):
        texts_of(tmp_path / "c.jsonl", field="doc.text")


@pytest.mark.parametrize(
    "name, content, message",
    [
        (
            "a.jsonl",
            b'{"body": "x", "doc": {"body": "y"}}',
            r"has no text in 'text' \(it has body, doc.body\): name the ",
        ),
        (
            "a.json",
            b'[{"title": "x", "content": "y"}]',
            r"record 1 has no text in 'text' \(it has title, content\): na",
        ),
        ("a.csv", b"title,content\nx,y\n", r"a.csv:2 has no text in 'text' \(it has title, content\): name the right"),
        ("a.tsv", b"title\tcontent\nx\ty\n", r"a.tsv:2 has no text in 'text' \(it has title, content\): name the ri"),
        ("a.jsonl", b'{"text": ["x"]}', r"has no text in 'text' \(but a list\): name the right one"),
        ("a.csv", b"text,n\nx,1\ny\n", r"a.csv:3 has 1 column and the header 2$"),
        ("a.json", b'[{"text": "x"}, {"text": ', r"a.json: record 2 of its list is not JSON"),
        ("a.json", b'[{"text": "x"}', r"a.json: is cut short: its list of records does not end"),
        ("a.parquet", b"PAR1 and no more of it", r"a.parquet: cannot be read \("),
        ("a.jsonl.zst", b"(\xb5/\xfd and no more of it", r"a.jsonl.zst: cannot be read \("),
        ("a.tar", b"no tar", r"a.tar: cannot be read as a tar archive"),
        ("a.txt.xz", b"no xz", r"a.txt.xz: cannot be read \("),
    ],
)
def test_what_cannot_be_read_is_one_line(name, content, message, tmp_path):
    if name.endswith(("parquet", "zst")):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        texts_of(tmp_path / name)
    assert "\n" not in str(error.value)


def test_settings_that_say_nothing_of_a_source_are_refused(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"x" * 99)
    with pytest.raises(UserError, match=r"holds no records with fields, of which field='body' would be one$"):
        texts_of(tmp_path, field="body")
    with pytest.raises(UserError, match=r"holds no file of .py that --extensions names: correct or leave it out$"):
        texts_of(tmp_path, extensions=(".txt", "py"))
    (tmp_path / "b.devtest").write_bytes(b"x")
    with pytest.raises(UserError, match=r"exclude='a.txt' leaves nothing but 1 file of .devtest: name what is text wi"):
        make(tmp_path, tmp_path / "out", exclude="a.txt")
    with pytest.raises(UserError, match=r"extensions=.py are of files, and source stdlib is none: leave them out$"):
        texts_of("stdlib", extensions=(".py",))


@pytest.mark.parametrize("ending", [".gz", ".bz2", ".xz", ".zst"])
@pytest.mark.parametrize("harm", ["more", "cut", "cut in a second stream"])
def test_what_is_packed_ends_where_its_file_does(ending, harm, tmp_path):
    """Bytes behind an end, and an end that is not there, are no end."""
    whole, behind = PACKED[ending](jsonl()), r"\(something else stands behind its end\)"
    for name, content in (("a.jsonl", jsonl()), ("b.tar", tarred({"a.jsonl": jsonl()}))):
        raw = PACKED[ending](content)
        raw = {"more": raw + b"more than there was", "cut": raw[:-9]}.get(harm, raw + raw[:-9])
        (tmp_path / f"{name}{ending}").write_bytes(raw)
        said = behind if harm == "more" and ending in (".bz2", ".xz") else ""
        with pytest.raises(UserError, match=rf"{name}{ending}.*: cannot be read {said}"):
            texts_of(tmp_path / f"{name}{ending}")
    padded = bytes(512) if ending != ".zst" else b""  # as tapes are
    (tmp_path / f"c.jsonl{ending}").write_bytes(whole + whole + padded)
    assert texts_of(tmp_path / f"c.jsonl{ending}") == TEXTS * 2


@pytest.mark.parametrize("name, wanted", [("a.jsonl.zst", "zstandard"), ("a.parquet", "pyarrow")])
def test_a_package_that_is_missing_is_named(name, wanted, tmp_path, monkeypatch):
    (tmp_path / name).write_bytes(b"(\xb5/\xfd")
    for package in ("pyarrow", "pyarrow.parquet", "zstandard"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"{name} is .*: to read it, pip install {wanted}$"):
        texts_of(tmp_path)
    (tmp_path / "b.txt").write_text(text(0))
    make(tmp_path, tmp_path.with_name(f"{wanted}-out"), exclude=name)  # what is left out need not be readable


@pytest.mark.parametrize(
    "name, content, message",
    [
        (
            "a.jsonl",
            b'{"body": 1}\n',
            r"x.zip/in/y.tar/a.jsonl: the line at byte 0 has no text in 'text' \(it has body\)",
        ),
        ("a.csv", b"body\n1\n", r"x.zip/in/y.tar/a.csv:2 has no text in 'text' \(it has body\)"),
        ("a.csv", b"n,n\n1\n", r"x.zip/in/y.tar/a.csv has 2 columns 'n': give each a name of its own"),
        ("a.txt", b"a\0b", r"x.zip/in/y.tar/a.txt looks binary"),
        ("a.txt.gz", b"not gzip", r"x.zip/in/y.tar/a.txt.gz: cannot be read \(Not a gzipped file"),
        ("z.zip", b"no zip", r"x.zip/in/y.tar/z.zip: cannot be read as a zip archive"),
    ],
)
def test_what_is_wrong_in_a_container_is_named_with_its_place(name, content, message, tmp_path):
    (tmp_path / "x.zip").write_bytes(zipped({"in/y.tar": tarred({name: content})}))
    with pytest.raises(UserError, match=message):
        make(tmp_path / "x.zip", tmp_path / "out")


# ------------------------------------------------------------------------------------------- patterns, and the summary


@pytest.mark.parametrize("where", list(PLACES)[1:])
def test_patterns_match_the_names_that_people_see(where, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "PIECE_BYTES", 1000)  # the files are read in stretches
    members = {f"c/{name}.jsonl": jsonl([f"{name} {text(i)}" for i in range(3)]) for name in ("train", "valid", "test")}
    members["c/long.txt"] = "".join(f"train line {i}\n" for i in range(500)).encode()
    source = put(where, members, tmp_path)
    prepared = make(source, tmp_path / "out", exclude="*test.jsonl", valid_glob="*c/valid.jsonl")
    assert {t.split()[0] for t in documents(prepared, "train")} == {"train"}
    assert [t.split()[0] for t in documents(prepared, "valid")] == ["valid"] * 3
    for setting in ("exclude", "valid_glob"):
        with pytest.raises(UserError, match=rf"no file or split matches {setting}='tset.jsonl'; it has .*test.jsonl"):
            make(source, tmp_path / setting, **{setting: "*train.jsonl, tset.jsonl"})
    with pytest.raises(UserError, match="no file or split matches exclude='dev/"):
        make("stdlib", tmp_path / "stdlib", exclude="dev/*")


def test_two_containers_with_members_of_one_name(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.zip").write_bytes(zipped({"x.txt": f"{name} {text(0)}".encode()}))
    prepared = make(tmp_path, tmp_path.with_name("two"), valid_glob="a.zip")
    assert documents(prepared, "valid")[0][0] == "a" and documents(prepared, "train")[0][0] == "b"


def test_the_summary_says_what_was_read_and_what_was_not(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    for i in range(40):
        (source / f"{i}.jsonl").write_text(json.dumps({"body": text(i)}) + "\n")
    (source / "p.png").write_bytes(b"x")
    (source / ".hidden.txt").write_text("x")
    said = summary(make(source, tmp_path / "out", field="body", valid=0.1).meta)
    assert "read       40 files of .jsonl\nleft out   1 file of .png, 1 hidden file\n" in said
    assert "text       of records: their field 'body'\n" in said
    assert re.search(r"held out   [\d.]+ % of the bytes: documents by a hash of their names", said)
    recipe = TextRecords(str(source), input="{body}", valid=0.1)
    P.prepare(recipe, tmp_path / "records", 1, False, RECORDS)
    said = RECORDS.summary(PreparedRecords(tmp_path / "records").meta)
    assert "read       40 files of .jsonl\nleft out   1 file of .png, 1 hidden file\n" in said


def test_a_cell_of_a_table_may_hold_a_book(tmp_path):
    book = text(0, 400_000)
    assert len(book) > 1 << 20
    (tmp_path / "a.csv").write_text(f'id,text\n1,"{book}"\n2,short\n')
    assert texts_of(tmp_path) == [book, "short"]
