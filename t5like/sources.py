"""Where text comes from: a source's name becomes pieces (planned without reading), and a piece becomes documents.

    stdlib            sources and documentation of the Python standard library on this machine
    PATH              a file of text (any suffix), of records whose field is text (.jsonl, .ndjson, .json, .csv, .tsv,
                      .parquet), or an ArrayRecord file of texts; a .zip or .tar of such files; a folder of such files,
                      zips and tars. Each may be packed (.gz, .bz2, .xz, .zst), and a container may lie in another
    tfds:NAME         a prepared TensorFlow data set (or its directory), read without TensorFlow: its splits train and
                      validation, if it has the latter

A document is a name that stays the same from run to run, and bytes that should be UTF-8. A piece is one document, or a
stretch of a file that holds many; pieces are what several processes share out among themselves.
"""

import collections
import dataclasses
import functools
import hashlib
import json
import mimetypes
import os
import pathlib
import re
import struct
import sys
import sysconfig
from collections.abc import Iterator

from paradigm import tfds
from paradigm.errors import UserError
from paradigm.names import SPLIT_OF, split_in
from paradigm.storage import here
from t5like import rows
from t5like.files import (
    UNPACKS_TO,
    checksum,
    ending,
    is_container,
    is_packed,
    open_file,
    place_of,
    reading,
    splits_by_name,
    told,
    unpacked_ending,
    walk,
)

EXTENSIONS = (".txt", ".text", ".md", ".rst", ".tex")  # what counts as plain text inside a folder or archive
PIECE_BYTES = 4 << 20  # longer files of lines or records are read in stretches of about this size
RECORDS = (".array_record", ".arrayrecord")
_HALF = re.compile("[\ud800-\udc7f\udd00-\udfff]")
# Left out of stdlib: installed packages, tests and their data, bundled wheels, and tables that a program wrote.
_NOT_PROSE = {"site-packages", "dist-packages", "test", "tests", "idle_test", "_bundled", "encodings", "entities.py"}


@dataclasses.dataclass(frozen=True)
class Piece:
    """A part of a source. kind says how `read` reads it; start and end bound it in bytes (text, jsonl) or records.

    name: the document's name, or the prefix of its documents' names. size: its bytes, or an estimate where only reading
    would tell. names: what a person may call its file, as of a t5like.files.File.
    """

    kind: str  # text | jsonl | json | csv | tsv | parquet | array_record | tfds | topics
    path: str
    name: str
    size: int
    member: str = ""  # the tfds name, or a list in a file of kind splits
    start: int = 0
    end: int | None = None
    field: str = "text"
    inside: tuple[str, ...] = ()  # members of containers, as of a File
    names: tuple[str, ...] = ()
    line: int = 1
    split: str = ""  # train, valid or test where names say so

    @property
    def single(self):
        """Whether it is one document, whose name is known before it is read."""
        return self.kind == "text"


@dataclasses.dataclass(frozen=True)
class Listing:
    """All pieces of a source in a fixed order, and a fingerprint of names, sizes and contents.

    described: what the source is. read, left: what files were taken of it and what were not, for a person; or "".
    """

    pieces: tuple[Piece, ...]
    fingerprint: str
    described: str
    read: str = ""
    left: str = ""


def list_pieces(source, field="text", extensions=EXTENSIONS):
    """The Listing of a source.

    Raises UserError, naming the place, if nothing is there to read or a package is missing.
    """
    try:
        return _list(source, field, tuple(e if e.startswith(".") else f".{e}" for e in extensions))
    except OSError as error:
        raise UserError(f"source {source}: {error.filename} cannot be read ({error.strerror})") from error


def _list(source, field, extensions):
    taken = left = ""
    if not source.strip():
        raise UserError("TextData.source is empty: name a file or folder of text, tfds:NAME or stdlib")
    if source == "stdlib":
        pieces, described = _stdlib()
    elif source.startswith("tfds:"):
        pieces, described = _tfds(source[len("tfds:") :], field)
    else:
        path = here(source)
        if not path.exists():
            raise UserError(f"source {source}: no such file or directory (other sources: stdlib, tfds:NAME)")
        pieces, taken, left = _files(path, field, extensions)
        described = f"{source}: {len(pieces)} pieces"
    if not sum(p.size for p in pieces):
        raise UserError(f"source {source} is empty: there is no text in it")
    if field != Piece.field and all(p.kind in ("text", "topics", "array_record") for p in pieces):
        raise UserError(f"source {source} holds no records with fields, of which field={field!r} would be one")
    if extensions != EXTENSIONS and not taken:
        raise UserError(f"extensions={' '.join(extensions)} are of files, and source {source} is none: leave them out")
    digest = hashlib.sha256()
    for path in sorted({p.path for p in pieces}):
        digest.update(f"{checksum(path)} ".encode())
    for p in pieces:
        line = f"{p.kind} {p.name} {p.size} {p.start} {p.end} {p.field}\n"
        digest.update(line.encode("utf-8", "surrogateescape"))
    return Listing(tuple(pieces), digest.hexdigest()[:32], described, taken, left)


def read(piece, without=None) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of every document of a piece, in order.

    without: a list that the names of records with null for their text are added to. Raises UserError naming the file if
    it cannot be read as what its name says.
    """
    with reading(place_of(piece)):
        found = {
            "text": _read_text,
            "jsonl": _read_jsonl,
            "array_record": array_record_rows,
            "tfds": _read_tfds,
            "topics": _read_topics,
        }.get(piece.kind, _read_rows)(piece)
        for name, raw in found:
            if raw is not None:
                yield name, raw
            elif without is not None:
                without.append(f"{place_of(piece)} ({name})")


def split_field(pieces):
    """The field of the first record that says a split, which is not read here; "" where there is none."""
    piece = next((p for p in pieces if p.kind in (*rows.KINDS.values(), "json", "columns")), None)
    if piece is None:
        return ""
    with reading(place_of(piece)):
        record = next((record for _, record in rows.rows(piece) if isinstance(record, dict)), {})
    return next((n for n, v in record.items() if n.lower() == "split" and str(v).strip().lower() in SPLIT_OF), "")


def place(piece, name):
    """Where a person finds a document of this piece."""
    return place_of(piece) if piece.single else f"{place_of(piece)} ({name})"


def cut_at(raw, at):
    """Where a text's bytes are cut, at or soon after `at`: where a line ends, else a word, else a character."""
    if at <= 0:
        return 0
    near = at + max(1, min(1 << 16, (len(raw) - at) // 2))
    for mark in (b"\n", b" "):
        if (found := raw.find(mark, at - 1, near)) >= 0:
            return found + 1
    while at < len(raw) and raw[at] & 0xC0 == 0x80:
        at += 1
    return at


def decode(name, raw, invalid="replace"):
    """(text, number of bytes that were not UTF-8 and became U+FFFD).

    invalid: 'replace' or 'refuse'. Raises UserError naming the document if it looks binary, or if bytes are refused.
    """
    nul = raw.find(b"\0")
    rows.check_utf8(raw, name)
    if nul >= 0:
        raise UserError(f"{name} looks binary (a NUL byte at offset {nul}): leave it out, or save it as UTF-8")
    try:
        return str(raw, "utf-8-sig"), 0
    except UnicodeDecodeError as error:
        offset = error.start
    if invalid == "refuse":
        raise UserError(
            f"{name} is not UTF-8 (byte {raw[offset]:#04x} at offset {offset}): mend it, or pass --invalid_utf8=replace"
        )
    # Each byte that cannot be decoded becomes one lone surrogate, which no UTF-8 text can hold.
    text, replaced = re.subn("[\udc80-\udcff]", "\N{REPLACEMENT CHARACTER}", raw.decode("utf-8-sig", "surrogateescape"))
    if replaced > 0.3 * len(raw) and len(raw) >= 64:
        raise UserError(
            f"{name} looks binary ({replaced} of {len(raw)} bytes are not UTF-8): leave it out, or save it as UTF-8"
        )
    return text, replaced


# ------------------------------------------------------------------------------------------------------------- planning


def _stdlib():
    root = pathlib.Path(sysconfig.get_path("stdlib"))
    if not (root / "os.py").exists():
        raise UserError(f"source stdlib: no Python sources in {root}; give --source=PATH instead")
    pieces = []
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(f for f in folders if f not in _NOT_PROSE and not f.startswith("config-"))
        for file in sorted(files):
            pieces += _stdlib_file(root, pathlib.Path(folder, file))
    return pieces, f"Python {sys.version.split()[0]} standard library: {len(pieces)} files"


def _stdlib_file(root, path):
    size = path.stat().st_size
    if path.suffix != ".py" or not size or path.name in _NOT_PROSE or path.name.startswith("_sysconfigdata"):
        return
    name = path.relative_to(root).as_posix()
    # pydoc's topics are the language reference as one dictionary of strings: read as the prose that it is.
    kind = "topics" if name == "pydoc_data/topics.py" else "text"
    yield Piece(kind, str(path), name, size, names=(name,))


def _files(root, field, extensions):
    """(pieces, what was read, what was left out) of a file or folder."""
    whole = root.is_file() and not is_container(root.name)  # then its suffix need not be one of text

    @functools.cache
    def kind(file):
        if ending(file.name) in RECORDS:
            return "array_record" if not file.inside else None
        if found := rows.kind_of(file):  # whatever extensions say: the syntax of records is no text
            return found
        if unpacked_ending(file.name) in extensions:
            return "text"
        return ("jsonl" if unpacked_ending(file.name) in rows.KINDS else "text") if whole else None

    found, left = walk(root, kind)
    if not found and (left or not root.is_file()):
        pictures = any((mimetypes.guess_type(f"x{kind}")[0] or "").startswith("image/") for kind in left)
        more = "; pictures are trained on as they are (ImageData.source, PairData.source)" if pictures else ""
        raise UserError(
            f"source {root} holds no file of text ({' '.join(extensions)} {' '.join(rows.KINDS)} .zip .tar .gz .zst "
            f".array_record); it holds {told(left) or 'nothing'}. Name others with --extensions{more}"
        )
    if lacking := [e for e in extensions if extensions != EXTENSIONS and not whole
                   and not any(unpacked_ending(file.name) == e for file in found)]:  # fmt: skip
        raise UserError(f"source {root} holds no file of {lacking[0]} that --extensions names: correct or leave it out")
    taken, split = collections.Counter(ending(file.name) or "no suffix" for file in found), splits_by_name(found)
    pieces = [piece for file in found for piece in _pieces(file, kind(file), field, split.get(file.name, ""))]
    return pieces, told(taken), told(left)


def _pieces(file, kind, field, split):
    """Pieces of one file of a kind."""
    name, size, packed = file.member, file.size, is_packed(file.name)
    piece = functools.partial(Piece, kind, file.path, inside=file.inside, names=file.names, split=split)
    if kind == "array_record":
        count = tfds.array_records(file.path).num_records()
        step = max(1, int(PIECE_BYTES * count / max(size, 1)))
        for start in range(0, count, step):
            end = min(start + step, count)
            yield piece(name, size * (end - start) // count, start=start, end=end)
    elif kind == "parquet":
        for (start, end), share in rows.parquet_stretches(piece(name, size)):
            yield piece(name, share, start=start, end=end, field=field)
    elif kind == "splits":
        lists = rows.lists_in(piece(name, size))
        for one in lists:
            part, names = piece(f"{name}/{one}", max(1, size // len(lists)), field=field), (*file.names, one)
            yield dataclasses.replace(part, member=one, names=names, split=split or split_in(one) or "")
    elif kind not in ("text", "jsonl") or packed or file.inside:  # what is read from its beginning on
        yield piece(name, UNPACKS_TO * size if packed else size, field=field)
    elif kind == "jsonl":
        for start, end in _stretches(size):
            yield piece(name, end - start, start=start, end=end, field=field)
    else:
        stretches = _stretches(size)
        for start, end in stretches:
            one = len(stretches) == 1
            part, end = (name, None) if one else (f"{name}@{start}", end)
            yield piece(part, (size if one else end - start), start=start, end=end)


def _tfds(name, field):
    builder = tfds.builder(name)
    features = sorted(builder.info.features)
    if field not in features:
        raise UserError(f"tfds:{name} has no feature {field!r}, only {', '.join(features)}: choose with --field")
    if "train" not in builder.info.splits:
        raise UserError(f"tfds:{name} has no train split, only {', '.join(sorted(builder.info.splits))}")
    pieces = []
    for split in [s for s in ("train", "validation") if s in builder.info.splits]:
        info = builder.info.splits[split]
        for shard, (path, count) in enumerate(zip(info.filepaths, info.shard_lengths)):
            size, prefix = os.path.getsize(path), f"{split}/{shard}"
            step = count if tfds.is_tfrecord(path) else max(1, int(PIECE_BYTES * count / max(size, 1)))
            for start in range(0, count, step):
                end = min(start + step, count)
                pieces.append(
                    Piece(
                        "tfds",
                        os.fspath(path),
                        prefix,
                        size * (end - start) // count,
                        member=name,
                        start=start,
                        end=end,
                        field=field,
                        names=(prefix, split),
                    )
                )
    return pieces, f"tfds:{builder.info.full_name} from {builder.data_dir}"


def _stretches(size):
    """[start, end) of about PIECE_BYTES each, all of one size."""
    count = max(1, round(size / PIECE_BYTES))
    return [(size * i // count, size * (i + 1) // count) for i in range(count)]


# -------------------------------------------------------------------------------------------------------------- reading


def _read_text(piece):
    with open_file(piece.path, piece.inside) as file:
        if piece.start or piece.end is not None:
            size = file.seek(0, os.SEEK_END)
            start, end = (_line_start(file, size if at is None else at, size) for at in (piece.start, piece.end))
            file.seek(start)
            yield piece.name, file.read(end - start)
        else:
            yield piece.name, file.read()


def _line_start(file, at, size):
    """The start of the first line at or after byte `at`; of the first character, where no line ends within 64 KiB."""
    if at <= 0 or at >= size:
        return min(max(at, 0), size)
    file.seek(at - 1)
    near = file.read(1 << 16)
    newline = near.find(b"\n")
    return at + (newline if newline >= 0 else next((k for k, byte in enumerate(near[1:5]) if byte & 0xC0 != 0x80), 0))


def _read_jsonl(piece):
    with open_file(piece.path, piece.inside) as file:
        if piece.start:  # the line that this byte is part of belongs to the stretch before
            file.seek(piece.start - 1)
            file.readline()
        offset = file.tell() if piece.start else 0
        for line in file:
            if piece.end is not None and offset >= piece.end:
                break
            if not offset:
                rows.check_first_line(line, place_of(piece))
            if line.strip():
                yield f"{piece.name}@{offset}", _json_text(line, piece, offset)
            offset += len(line)


def _read_rows(piece):
    for number, record in rows.rows(piece):
        where = f"{place_of(piece)}{': record ' if piece.kind in rows.WITHOUT_LINES else ':'}{number}"
        if isinstance(record, rows.NotUTF8):  # what becomes of its text is said by invalid_utf8
            record = record.record
        if isinstance(record, Exception):
            raise UserError(f"{where} {record}")
        yield f"{piece.name}@{number}", _text_in(record, piece.field, where)


def _json_text(line, piece, offset):
    where = f"{place_of(piece)}: the line at byte {offset}"
    try:
        line = line.decode("utf-8", "surrogateescape")
        record = json.loads(line if offset else line.removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:
        fix = "an object a line, or one list of them in a .json: mend or remove it"
        raise UserError(f"{where} is not one JSON object ({error}): it wants {fix}") from error
    return _text_in(record, piece.field, where)


def _text_in(record, field, where):
    """The bytes of a record's field, None of null. Raises UserError, with the fields there are, if it is no text."""
    record = {"text": record} if isinstance(record, str) else record
    if isinstance(record, dict) and field in record and rows.is_null(record[field]):
        return None
    text, has = None, f"a {type(record).__name__}, not an object"
    if isinstance(record, dict):
        has = ", ".join(rows.fields_of(record)) or "none"
        try:
            text = rows.lookup(record, field)
        except rows.Missing:
            pass
        except ValueError as error:
            raise UserError(f"{where} {error}") from error
    if not isinstance(text, str):
        has = f"it has {has}" if text is None else f"but a {type(text).__name__}"
        raise UserError(
            f"{where} has no text in {field!r} ({has}): name the right one with --field, or --exclude the file"
        )
    # JSON can name half a surrogate pair; what stands for a byte that is not UTF-8 becomes that byte.
    return _no_nul(_HALF.sub("?", text).encode("utf-8", "surrogateescape"))


def array_record_rows(piece):
    """(name, bytes) of the records of a piece."""
    reader = tfds.array_records(str(piece.path))
    for start in range(piece.start, piece.end, 256):
        rows = range(start, min(start + 256, piece.end))
        yield from ((f"{piece.name}#{row}", raw) for row, raw in zip(rows, reader.read(rows.start, rows.stop)))


def _read_tfds(piece):
    for name, example in tfds_rows(piece):
        text = example[piece.field]
        yield name, _no_nul(text if isinstance(text, bytes) else str(text).encode())


def tfds_rows(piece):
    """(name, features as numpy) of the examples of a piece of a TensorFlow data set."""
    features = tfds.builder(piece.member).info.features
    if tfds.is_tfrecord(piece.path):
        rows = ((f"{piece.name}#{row}", raw) for row, raw in enumerate(_tfrecords(piece.path)))
    else:
        rows = array_record_rows(piece)
    yield from ((name, features.deserialize_example_np(raw)) for name, raw in rows)


def _no_nul(raw):
    """A NUL in a record that is known to be text is a bad byte to be counted, not the sign of a binary file."""
    return raw.replace(b"\0", b"\xff")


def _tfrecords(path):
    """The examples of a TFRecord file: length (8 bytes), its CRC (4), example, its CRC (4). No CRC is checked."""
    with open(path, "rb") as file:
        while header := file.read(12):
            size = struct.unpack("<Q", header[:8])[0] if len(header) == 12 else 0
            body = file.read(size + 4)
            if len(header) < 12 or len(body) < size + 4:
                raise UserError(f"{path} is cut short: it ends inside a record")
            yield body[:size]


def _read_topics(piece):
    from pydoc_data import topics

    for topic, text in sorted(topics.topics.items()):
        yield f"{piece.name}/{topic}", text.encode()
