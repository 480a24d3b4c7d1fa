"""Records with fields: a source's name becomes parts (planned once), and a part becomes records.

    FILE              .jsonl, .ndjson, .json (an object a line, or one list of objects), .tsv or .tab (a header, quotes
                      round whole cells or none), .csv (a header, quotes, which may hold line breaks), .parquet, each
                      .conll (a token a line, an empty line between sentences), each also packed (.gz, .bz2, .xz, .zst);
                      .array_record (an object of JSON each); a .zip or .tar of such
    FOLDER            such files; one called train, valid, dev or test, or in a folder of that name, is that split;
                      so is a list of that name in a .json of splits (rows.py)
    stdlib:KIND       of Python's standard library: tokens, summaries or modules (see stdlib_records.py)
    tfds:NAME         a prepared TensorFlow data set (or its directory) with its splits, read without TensorFlow

A record is a dict of what JSON can hold. One that is broken comes as the ValueError that says what is wrong with it.
"""

import collections
import dataclasses
import functools
import hashlib
import json
import math
import os
import pathlib
import re

from paradigm import tfds
from paradigm.errors import UserError
from paradigm.names import few, first_of, split_in
from paradigm.records import named
from paradigm.storage import here
from t5like import rows, sources, stdlib_records
from t5like.files import (
    PACKED,
    UNPACKS_TO,
    check_patterns,
    checksum,
    ending,
    is_container,
    is_packed,
    matches,
    place_of,
    reading,
    splits_by_name,
    told,
    walk,
)
from t5like.rows import header, lookup, parsed
from t5like.sources import PIECE_BYTES, Listing
from t5like.windows import META

_SUFFIXES = (*rows.KINDS, *sources.RECORDS)
REAL = "set label_kind to 'number' for a regression, or label to another field"
_PLACE = re.compile(r"\{\{|\}\}|\{([^{}]+)\}")


@dataclasses.dataclass(frozen=True)
class Part:
    """A stretch of a source. start and end bound it in bytes (jsonl, tsv) or records; line: the number of its first.

    name: of the file below the source, or of the split. size: in bytes, about. split: train, valid or test.
    """

    kind: str  # a kind of rows.py, array_record, tfds or stdlib
    path: str
    name: str
    size: int
    split: str = "train"
    start: int = 0
    end: int | None = None
    line: int = 1
    member: str = ""  # the tfds name, the kind of stdlib, or a list in a file of kind splits
    inside: tuple[str, ...] = ()  # members of containers, as of a t5like.files.File
    names: tuple[str, ...] = ()  # what a person may call its file


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


def text_of(value, field):
    """A value as text: numbers as JSON writes them, the texts of a list with commas between."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()  # JSON can name half a surrogate pair
    if isinstance(value, list) and not any(isinstance(v, (list, dict)) for v in value):
        return ", ".join(text_of(v, field) for v in value)
    if isinstance(value, (list, dict)):
        near = next(iter(value), "name") if isinstance(value, dict) else 0
        raise ValueError(f"has an object in {field!r}, not a text: name what is in it, as in {{{field}.{near}}}")
    if value is None or (isinstance(value, float) and not math.isfinite(value)):  # of a list, or of a number
        raise ValueError(f"has {json.dumps(value)} in {field!r}, which is no text")
    return json.dumps(value)


def class_of(value, field):
    """The name of a class: a text, a whole number or a truth value. Raises ValueError for anything else."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, (float, list, dict)):
        fix = "set label_kind to 'classes'" if isinstance(value, list) and value else "a name or a whole number is"
        fix = REAL if isinstance(value, float) else fix
        raise ValueError(f"has {json.dumps(value)[:40]} in {field!r}, which is no class: {fix}")
    return text_of(value, field).strip()


# ------------------------------------------------------------------------------------------------------------- planning


def list_parts(source, valid_glob="", exclude="", columns=()):
    """The Listing of a source. valid_glob, exclude: names of files or tfds splits to hold out, or to leave out.

    columns: names of a table's columns where it has no header. Raises UserError, naming the place, if nothing is there
    to read.
    """
    try:
        taken = left = ""
        if source.startswith("tfds:"):
            parts, described = _tfds_parts(source[len("tfds:") :])
        elif source.startswith("stdlib:"):
            parts, described = _stdlib_parts(source[len("stdlib:") :])
        else:
            parts, described, taken, left = _file_parts(source)
        check_patterns(source, "exclude", exclude, parts)
        parts = [p for p in parts if not matches(p.names, exclude)]
        check_patterns(source, "valid_glob", valid_glob, parts)
        parts = [_placed(p, valid_glob) for p in parts]
        if columns and not any(p.kind in ("tsv", "csv", "conll", "splits") for p in parts):
            raise UserError(f"source {source} holds no table without names, of which columns={columns!r} would be some")
        unsaid = [p for p in parts if not p.split]
        if unsaid and len(unsaid) < len(parts):
            raise UserError(
                f"{place_of(unsaid[0])} holds lists that are no split ({few(p.member for p in unsaid)}) beside others: "
                f"leave them out (exclude='{unsaid[0].member}'), or have train, valid or test in their names"
            )
        parts = [dataclasses.replace(p, split=p.split or "train") for p in parts]
        if not any(p.split == "train" for p in parts):
            there = ", ".join(sorted({p.name for p in parts})[:4]) or "nothing"
            raise UserError(f"source {source}: nothing is left to train on, only {there}: check exclude and valid_glob")
        for part in {p.names[0]: p for p in parts}.values():
            if part.kind in ("tsv", "csv") and not columns:
                with reading(place_of(part)):
                    header(part)
        files = sorted({p.path for p in parts})
        lines = [checksum(path) for path in files] + [f"{p.kind} {p.name} {p.split} {p.size}" for p in parts]
    except OSError as error:
        raise UserError(f"source {source}: {error.filename} cannot be read ({error.strerror})") from error
    digest = hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()
    return Listing(tuple(parts), digest[:32], described, taken and taken + _splits_told(parts), left)


def _splits_told(parts):
    """'; dev.tsv is valid, test.tsv is test' of parts that are not all to train on."""
    of = {s: dict.fromkeys(p.member or p.name for p in parts if p.split == s) for s in ("train", "valid", "test")}
    return "" if len(of["train"]) and not (of["valid"] or of["test"]) else "; " + ", ".join(
        f"{few(names, 3)} {'are' if len(names) > 1 else 'is'} {split}" for split, names in of.items() if names
    )  # fmt: skip


def _placed(part, valid_glob):
    return dataclasses.replace(part, split="valid") if matches(part.names, valid_glob) else part


def _file_parts(source):
    if not source.strip():
        raise UserError("TextRecords.source is empty: name a file or folder of records, tfds:NAME or stdlib:KIND")
    root = here(source)
    if not root.exists():
        raise UserError(
            f"source {source}: no such file or directory (other sources of records: tfds:NAME, stdlib:KIND)"
        )
    if (root / META).exists():
        raise UserError(f"source {source} is a prepared directory: it is used as it is, or made again from its source")
    if root.is_file() and not is_container(root.name) and ending(root.name) not in sources.RECORDS:
        if not any(ending(root.name).removesuffix(p) in rows.KINDS for p in ("", *PACKED)):
            raise UserError(f"source {root} is of no known kind: records are read from {' '.join(_SUFFIXES)}")

    @functools.cache
    def kind(file):
        if ending(file.name) in sources.RECORDS:
            return "array_record" if not file.inside else None
        return rows.kind_of(file) or ("jsonl" if root.is_file() and not file.inside else None)

    found, left = walk(root, kind)
    if not found and root.is_file() and not left:
        wants = {".csv": "a header and a line", ".tsv": "a header and a line", ".tab": "a header and a line"}
        wants |= dict.fromkeys((".jsonl", ".ndjson", ".json"), "an object of JSON")
        more = (
            f"it wants {wants[ending(root.name)]} for each record" if ending(root.name) in wants else "it holds nothing"
        )
        more = "no file is in it" if is_container(root.name) else more
        raise UserError(f"{root} is empty: {more}")
    if not found:
        raise UserError(
            f"source {source} holds no file of records ({' '.join(_SUFFIXES)} .zip .tar); it holds "
            f"{told(left) or 'nothing'}"
        )
    parts = []
    alike = splits_by_name(found)  # my_train.csv beside my_test.csv
    for file in found:
        words = () if root.is_file() and not file.inside else pathlib.PurePosixPath(file.member).parts
        parts += _parts_of(file, kind(file), _split_of(words) or alike.get(file.name) or "train")
    taken = collections.Counter(ending(file.name) for file in found)
    return parts, f"{source}: {len(found)} file{'s' * (len(found) > 1)}", told(taken), told(left)


def _split_of(words):
    """The split that one of these names begins with, as validation_matched and dev.tsv do; None."""
    return next((split for split in map(first_of, words) if split), None)


def _parts_of(file, kind, split):
    path, name, size = file.path, file.member, file.size
    part = functools.partial(Part, kind, path, name, inside=file.inside, names=file.names, split=split)
    if kind == "array_record":
        yield from _ranges(kind, path, name, size, split, tfds.array_records(path).num_records())
    elif kind == "parquet":
        for (start, end), share in rows.parquet_stretches(part(size)):
            yield part(share, start=start, end=end)
    elif kind == "splits":
        lists = rows.lists_in(part(size))
        for one in lists:
            yield dataclasses.replace(
                part(max(1, size // len(lists))), split=split_in(one), member=one, names=(*file.names, one)
            )
    elif kind in ("csv", "json", "columns", "squad", "conll", "arrow") or is_packed(file.name) or file.inside:
        yield part(UNPACKS_TO * size if is_packed(file.name) else size)
    else:
        start, line = 0, 1
        with open(path, "rb") as stream:
            while block := stream.read(PIECE_BYTES) + stream.readline():
                yield part(len(block), start=start, end=start + len(block), line=line)
                start, line = start + len(block), line + block.count(b"\n")


def _ranges(kind, path, name, size, split, count, step=None, member=""):
    step = step or max(1, int(PIECE_BYTES * count / max(size, 1)))
    for start in range(0, count, step):
        end = min(start + step, count)
        share = size * (end - start) // count
        yield Part(kind, path, name, share, split, start, end, start, member, names=(name,))


def _stdlib_parts(kind):
    found = stdlib_records.files(kind)
    part = lambda path, name: Part("stdlib", str(path), name, path.stat().st_size, member=kind, names=(name,))
    parts = [part(path, path.relative_to(stdlib_records.root()).as_posix()) for path in found]
    return parts, f"stdlib:{kind}: {len(found)} files of Python's standard library"


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
    place = place_of(part)
    with reading(place):
        if part.kind == "array_record":
            yield from (
                (f"{place} record {n}", parsed(raw.decode("utf-8", "surrogateescape")))
                for n, (_, raw) in enumerate(sources.array_record_rows(part), part.start)
            )
        elif part.kind == "tfds":
            yield from _tfds_records(part)
        elif part.kind == "stdlib":
            found = stdlib_records.records(part.member, part.path)
            yield from ((f"{place} record {n}", record) for n, record in enumerate(found, 1))
        else:
            between = " record " if part.kind in rows.WITHOUT_LINES else ":"
            yield from ((f"{place}{between}{n}", record) for n, record in rows.rows(part, columns))


def _tfds_records(part):
    features = tfds.builder(part.member).info.features
    names = {name: f.names for name, f in features.items() if getattr(f, "names", None)}
    for number, (_, example) in enumerate(sources.tfds_rows(part), part.start):
        record = {name: _plain(value) for name, value in example.items()}
        yield f"{part.path} record {number}", record | {k: named(record[k], own) for k, own in names.items()}


def _plain(value):
    """A value of a TensorFlow data set as JSON has it."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
