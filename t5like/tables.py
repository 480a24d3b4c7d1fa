"""Records with fields: a source's name becomes parts (planned once), and a part becomes records.

    FILE              .jsonl, .ndjson, .json (an object a line), .tsv or .tab (a header, no quoting), .csv (a header,
                      quotes, which may hold line breaks), each also with .gz; .array_record (an object of JSON each)
    FOLDER            such files; one called train, valid, dev or test, or in a folder of that name, is that split
    tfds:NAME         a prepared TensorFlow data set (or its directory) with its splits, read without TensorFlow

A record is a dict of what JSON can hold. One that is broken comes as the ValueError that says what is wrong with it.
"""

import csv
import dataclasses
import gzip
import hashlib
import json
import os
import re
import zlib

from paradigm import tfds
from paradigm.errors import UserError
from paradigm.storage import expand
from t5like import sources
from t5like.sources import PIECE_BYTES, Listing
from t5like.windows import META

SPLITS = {"train": "train", "training": "train", "valid": "valid", "validation": "valid", "val": "valid",
          "dev": "valid", "development": "valid", "test": "test", "testing": "test"}  # fmt: skip
_SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".tsv": "tsv", ".tab": "tsv", ".csv": "csv",
             ".array_record": "array_record", ".arrayrecord": "array_record"}  # fmt: skip
_FIELD_BYTES = 1 << 20  # of one quoted cell of a csv file; a longer one is taken for a quote that is left open
_PLACE = re.compile(r"\{\{|\}\}|\{([^{}]+)\}")
_UNDECODED = re.compile("[\udc80-\udcff]")


@dataclasses.dataclass(frozen=True)
class Part:
    """A stretch of a source. start and end bound it in bytes (jsonl, tsv) or records; line: the number of its first.

    name: of the file below the source, or of the split. size: in bytes, about. split: train, valid or test.
    """

    kind: str  # jsonl | tsv | csv | array_record | tfds
    path: str
    name: str
    size: int
    split: str = "train"
    start: int = 0
    end: int | None = None
    line: int = 1
    member: str = ""  # the tfds name


# ------------------------------------------------------------------------------------------------------------ templates


def fields_in(template, setting="template"):
    """The names of the fields that a template reads, such as 'question' and 'answers.text.0'.

    Raises UserError for a brace that is no part of a {field}; {{ and }} stand for braces.
    """
    if re.search("[{}]", _PLACE.sub("", template)):
        raise UserError(f"{setting}={template!r}: a brace stands alone; write {{field}}, and {{{{ or }}}} for a brace")
    return tuple(match[1] for match in _PLACE.finditer(template) if match[1])


def render(template, record):
    """The text that a template makes of a record. Raises ValueError naming the field that is missing or no text."""
    return _PLACE.sub(lambda m: text_of(lookup(record, m[1]), m[1]) if m[1] else m[0][0], template)


def lookup(record, field):
    """A record's value in a field; dots lead into objects ('a.b') and lists ('a.0'). Raises ValueError without one."""
    value = record.get(field)
    if value is None:
        value = record
        for key in field.split("."):
            if isinstance(value, list) and key.isdecimal() and int(key) < len(value):
                value = value[int(key)]
            else:
                value = value.get(key) if isinstance(value, dict) else None
    if value is None:
        raise Missing(f"has no field {field!r}, only {', '.join(record) or 'nothing'}")
    return value


class Missing(ValueError):
    """A record without a field."""


def text_of(value, field):
    """A value as text: numbers as JSON writes them, the texts of a list with commas between."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()  # JSON can name half a surrogate pair
    if isinstance(value, list) and not any(isinstance(v, (list, dict)) for v in value):
        return ", ".join(text_of(v, field) for v in value)
    if isinstance(value, (list, dict)):
        near = next(iter(value), "name") if isinstance(value, dict) else 0
        raise ValueError(f"has an object in {field!r}, not a text: name what is in it, as in {{{field}.{near}}}")
    return json.dumps(value)


def class_of(value, field):
    """The name of a class: a text, a whole number or a truth value. Raises ValueError for anything else."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, (float, list, dict)):
        raise ValueError(f"has {json.dumps(value)[:40]} in {field!r}, which is no class: a name or a whole number is")
    return text_of(value, field)


# ------------------------------------------------------------------------------------------------------------- planning


def list_parts(source, valid_glob="", exclude="", columns=()):
    """The Listing of a source. valid_glob, exclude: names of files or tfds splits to hold out, or to leave out.

    columns: names of a table's columns where it has no header. Raises UserError, naming the place, if nothing is there
    to read.
    """
    try:
        if source.startswith("tfds:"):
            parts, described = _tfds_parts(source[len("tfds:") :])
        else:
            parts, described = _file_parts(source)
        parts = [_placed(p, valid_glob) for p in parts if not sources.matches(p.name, exclude)]
        if valid_glob and not any(p.split == "valid" for p in parts):
            raise UserError(f"source {source}: no file or split matches valid_glob={valid_glob!r}")
        if not any(p.split == "train" for p in parts):
            left = ", ".join(sorted({p.name for p in parts})[:4]) or "nothing"
            raise UserError(f"source {source}: nothing is left to train on, only {left}: check exclude and valid_glob")
        files = sorted({p.path for p in parts})
        for part in {p.path: p for p in parts}.values():
            if part.kind in ("tsv", "csv") and not columns:
                header(part)
        lines = [sources.checksum(path) for path in files] + [f"{p.kind} {p.name} {p.split} {p.size}" for p in parts]
    except OSError as error:
        raise UserError(f"source {source}: {error.filename} cannot be read ({error.strerror})") from error
    return Listing(
        tuple(parts), hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()[:32], described
    )


def _placed(part, valid_glob):
    return dataclasses.replace(part, split="valid") if sources.matches(part.name, valid_glob) else part


def _file_parts(source):
    root = expand(source)
    if not root.exists():
        raise UserError(f"source {source}: no such file or directory (other sources of records: tfds:NAME)")
    if (root / META).exists():
        raise UserError(f"source {source} is a prepared directory: it is used as it is, or made again from its source")
    if root.is_file():
        return list(_parts_of(root, root.name, "train")), f"{source}: 1 file"
    parts, seen, files = [], set(), 0
    for path in sorted(root.rglob("*"), key=lambda p: p.relative_to(root).as_posix()):
        name = path.relative_to(root)
        if path.is_file() and not any(part.startswith(".") for part in name.parts):
            seen.add(path.suffix or path.name)
            if _kind(path.name):
                files += 1
                parts += _parts_of(path, name.as_posix(), _split_of(name.parts) or "train")
    if not parts:
        held = " ".join(sorted(seen)[:8]) or "nothing"
        raise UserError(f"source {source} holds no file of records ({' '.join(_SUFFIXES)}); it holds {held}")
    return parts, f"{source}: {files} files"


def _split_of(words):
    """The split that one of these names begins with, as validation_matched and dev.tsv do; None."""
    found = [SPLITS.get(re.split(r"[^a-z]", word.lower())[0]) for word in words]
    return next((split for split in found if split), None)


def _kind(name):
    return _SUFFIXES.get(sources.ending(name).removesuffix(".gz"))


def _parts_of(path, name, split):
    kind, size = _kind(name), path.stat().st_size
    if kind is None:
        raise UserError(f"source {path} is of no known kind: records are read from {' '.join(_SUFFIXES)}")
    if kind == "array_record":
        yield from _ranges(kind, path, name, size, split, tfds.array_records(str(path)).num_records())
    elif kind == "csv" or sources.ending(name).endswith(".gz"):
        yield Part(kind, str(path), name, size, split)
    else:
        start, line = 0, 1
        with open(path, "rb") as file:
            while block := file.read(PIECE_BYTES) + file.readline():
                yield Part(kind, str(path), name, len(block), split, start, start + len(block), line)
                start, line = start + len(block), line + block.count(b"\n")


def _ranges(kind, path, name, size, split, count, step=None, member=""):
    step = step or max(1, int(PIECE_BYTES * count / max(size, 1)))
    for start in range(0, count, step):
        end = min(start + step, count)
        yield Part(kind, str(path), name, size * (end - start) // count, split, start, end, start, member)


def _tfds_parts(name):
    builder = tfds.builder(name)
    parts, other = [], []
    for split, info in builder.info.splits.items():
        if not _split_of([split]):
            other.append(split)
            continue
        for path, count in zip(info.filepaths, info.shard_lengths):
            step = max(count, 1) if tfds.is_tfrecord(path) else None
            parts += _ranges("tfds", path, split, os.path.getsize(path), _split_of([split]), count, step, name)
    left = f", without {', '.join(other)}" if other else ""
    return parts, f"tfds:{builder.info.full_name} from {builder.data_dir}{left}"


# -------------------------------------------------------------------------------------------------------------- reading


def read(part, columns=()):
    """(name, record or ValueError) of every record of a part, in order; a name is 'file:line', or says the record.

    Raises UserError naming the file if it cannot be read as what its name says.
    """
    try:
        if part.kind == "jsonl":
            yield from ((f"{part.path}:{n}", _object(line)) for n, line in _lines(part) if line.strip())
        elif part.kind == "array_record":
            yield from (
                (f"{part.path} record {n}", _object(raw.decode("utf-8", "surrogateescape")))
                for n, (_, raw) in enumerate(sources.array_record_rows(part), part.start)
            )
        elif part.kind == "tfds":
            yield from _tfds_records(part)
        else:
            yield from _table_records(part, columns)
    except (OSError, EOFError, zlib.error, RuntimeError) as error:
        raise UserError(f"{part.path}: cannot be read ({tfds.first_line(error)})") from error


def header(part):
    """The names of a table's columns. Raises UserError if it has none, or two of one name."""
    start = dataclasses.replace(part, start=0, end=None, line=1)
    names = next((cells for _, cells in _rows(start) if cells), None)
    if names is None:
        raise UserError(f"{part.path} is empty: it wants a header and a line for each record")
    if isinstance(names, Exception):
        raise UserError(f"{part.path}: its header {names}: mend it")
    if twice := [n for n in names if names.count(n) > 1]:
        raise UserError(f"{part.path} has {names.count(twice[0])} columns {twice[0]!r}: give each a name of its own")
    return names


def _lines(part):
    """(number, text) of the lines; bytes that are not UTF-8 become lone surrogates."""
    opened = gzip.open if part.path.lower().endswith(".gz") else open
    with opened(part.path, "rb") as file:
        file.seek(part.start)
        at = part.start
        for number, raw in enumerate(file, part.line):
            if part.end is not None and at >= part.end:
                return
            at += len(raw)
            line = raw.decode("utf-8", "surrogateescape")
            yield number, line.removeprefix("\ufeff") if number == 1 else line


def _object(line):
    if _UNDECODED.search(line):
        return ValueError("is not UTF-8")
    try:
        record = json.loads(line.rstrip())
    except json.JSONDecodeError as error:
        return ValueError(f"is not JSON ({error.msg} at character {error.pos + 1})")
    except (ValueError, RecursionError) as error:
        return ValueError(f"is not JSON ({error})")
    return record if isinstance(record, dict) else ValueError(f"is a {type(record).__name__} and not an object")


def _table_records(part, columns):
    names = list(columns) or header(part)
    skip = not columns and part.start == 0  # the header itself
    for number, cells in _rows(part):
        if not cells:
            continue
        if skip:
            skip = False
            continue
        if isinstance(cells, list):
            if _UNDECODED.search("".join(cells)):
                cells = ValueError("is not UTF-8")
            elif len(cells) != len(names):
                cells = ValueError(f"has {len(cells)} column{'s' * (len(cells) != 1)} and the header {len(names)}")
            else:
                cells = dict(zip(names, cells))
        yield f"{part.path}:{number}", cells


def _rows(part):
    """(number of the first line, cells or ValueError) of a table's rows; [] for an empty line."""
    if part.kind == "tsv":
        for number, line in _lines(part):
            line = line.rstrip("\r\n")
            yield number, line.split("\t") if line else []
        return
    csv.field_size_limit(max(csv.field_size_limit(), _FIELD_BYTES))
    lines, ahead, used = _lines(part), [], []

    def feed():
        while (item := ahead.pop() if ahead else next(lines, None)) is not None:
            used.append(item)
            yield item[1]

    while True:
        used.clear()
        try:
            cells = next(csv.reader(feed(), strict=True), None)
        except csv.Error as error:
            # A quote that is left open must not swallow the records after it: they are read again, from the next line.
            cells = ValueError(f"is not csv ({error}): is a quote left open?")
            ahead += used[:0:-1]
        if cells is None:
            return
        yield used[0][0], cells


def _tfds_records(part):
    features = tfds.builder(part.member).info.features
    named = {name: f.names for name, f in features.items() if getattr(f, "names", None)}
    for number, (_, example) in enumerate(sources.tfds_rows(part), part.start):
        record = {name: _plain(value) for name, value in example.items()}
        yield f"{part.path} record {number}", record | {k: _named(record[k], names) for k, names in named.items()}


def _plain(value):
    """A value of a TensorFlow data set as JSON has it."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _named(label, names):
    """The name of a class for its number; None for -1, where it is kept secret."""
    if isinstance(label, list):
        return [_named(one, names) for one in label]
    return names[label] if label >= 0 else None
