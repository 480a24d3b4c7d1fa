"""Records of a file: an object of JSON a line, a list of them, the rows of csv, tsv and Parquet, as dicts.

A record that is broken comes as the ValueError that says what is wrong with it. What is read is a piece of a source: it
has `kind`, `path`, `inside`, `start`, `end` (bytes, or rows of Parquet) and `line`, the number of its first.
"""

import codecs
import csv
import dataclasses
import json
import re

from paradigm.errors import UserError
from paradigm.records import class_names, named
from t5like.files import open_file, place_of, reading, unpacked_ending

KINDS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".tsv": "tsv", ".tab": "tsv", ".csv": "csv",
         ".parquet": "parquet", ".arrow": "arrow", ".feather": "arrow", ".conll": "conll", ".conllu": "conll",
         ".bio": "conll"}  # fmt: skip
WITHOUT_LINES = ("json", "columns", "splits", "squad", "parquet", "arrow")  # whose records have a number and no line
_DATASETS = ("dataset_info.json", "dataset_dict.json", "state.json")  # what the datasets library puts beside its .arrow
_CONLLU = ["id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc"]
_ROWS = ("data", "rows", "records", "examples", "items")  # the one list of an object that says more about it
_FIELD_BYTES = 16 << 20  # of one quoted cell of a csv file; a longer one is taken for a quote that is left open
_UNDECODED = re.compile("[\udc80-\udcff]")
_FIRST = 1 << 16  # bytes by which the two kinds of .json are told apart


def kind_of(file):
    """The kind of a File of records: jsonl, json, columns, splits, squad, csv, tsv, conll, parquet or arrow; None if it
    is none.

    A .json file is one list of objects or of texts, an object a line, objects of many lines (json too), splits (an
    object of lists of rows or of objects: {"train": [["text", "class"], ...], ...}), columns (pandas' {"text": {"0":
    ...}, ...}) or squad (SQuAD's: data, paragraphs, qas); one that holds something else is none.
    """
    kind = KINDS.get(unpacked_ending(file.name))
    if unpacked_ending(file.name) != ".json":
        return kind
    if file.name.rpartition("/")[2] in _DATASETS:
        return None
    with reading(place_of(file)), open_file(file.path, file.inside) as stream:
        start = stream.read(_FIRST).decode("utf-8", "replace").removeprefix("\ufeff").lstrip()
    if start.startswith("["):
        return "json" if re.match(r"\[\s*[{\"]", start) else None
    if '"paragraphs"' in start and re.match(r"\{\s*\"(data|version)\"", start):
        return "squad"
    return _kind_of_objects(file) if start.startswith("{") else None


def _kind_of_objects(file):
    """jsonl, json, columns or splits of a file that begins with an object of JSON; None of one that is no record."""
    with reading(place_of(file)), open_file(file.path, file.inside) as stream:
        line = next((line for line in stream if line.strip()), b"")
        first, alone = parsed(line.decode("utf-8-sig", "replace")), not any(line.strip() for line in stream)
    if isinstance(first, dict):
        return (_kind_of_tables(first) if alone else None) or "jsonl"
    with open_file(file.path, file.inside) as stream:
        text = stream.read().decode("utf-8-sig", "replace").strip()
    try:
        first, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return None
    if end == len(text):
        return _kind_of_tables(first)  # a lone object of many lines is more often a program's settings than a record
    return "json" if text[end:].lstrip(" \t\r\n,").startswith("{") else None


def _kind_of_tables(found):
    """splits or columns of an object that is all of a file; None of another."""
    lists = {name: v for name, v in found.items() if isinstance(v, list)}
    rows_in = [name for name, v in lists.items() if v and all(isinstance(cells, (list, dict)) for cells in v)]
    whole = len(lists) == len(found) == len(rows_in) + list(lists.values()).count([])
    if rows_in and (whole or (rows_in == [*lists] and rows_in[0] in _ROWS)):
        return "splits"
    numbered = [isinstance(v, dict) and v and list(v) == [str(k) for k in range(len(v))] for v in found.values()]
    return "columns" if found and all(numbered) and len({len(v) for v in found.values()}) == 1 else None


def rows(piece, columns=()):
    """(number, record or ValueError) of every record of a piece, in order; the number of its line, or of the record.

    columns: names of a table's columns where it has no header.
    """
    if piece.kind == "jsonl":
        yield from ((n, parsed(line)) for n, line in lines(piece) if line.strip())
    elif piece.kind == "json":
        yield from _listed(piece)
    elif piece.kind in ("splits", "squad", "columns"):
        of = {"splits": _rows_of_splits, "squad": _squad, "columns": _columns}[piece.kind]
        yield from enumerate(of(piece, columns), 1)
    elif piece.kind == "arrow":
        yield from _arrow(piece)
    elif piece.kind == "conll":
        yield from _sentences(piece, columns)
    elif piece.kind == "parquet":
        yield from _parquet(piece)
    else:
        yield from _table(piece, columns)


def lookup(record, field):
    """A record's value in a field; dots lead into objects ('a.b') and lists ('a.0').

    Raises ValueError without one, and where 'a.b' is both a field's name and a way into the field 'a'.
    """
    value, inside = record.get(field), record
    for key in field.split("."):
        if isinstance(inside, list) and key.isdecimal() and int(key) < len(inside):
            inside = inside[int(key)]
        else:
            inside = inside.get(key) if isinstance(inside, dict) else None
    if "." in field and None not in (value, inside) and value != inside:
        raise ValueError(
            f"has a field named {field!r} and {field.split('.')[0]!r} holds another of that way: rename one"
        )
    value = inside if value is None else value
    if is_null(value) and (value is not None or field in record):
        raise Missing(f"has {'null' if value is None else 'NaN'} in {field!r}")
    if value is None:
        raise Missing(f"has no field {field!r}, only {', '.join(record) or 'nothing'}")
    return value


def is_null(value):
    """Whether a value stands for none: null, or the NaN that the pandas library has in its place."""
    return value is None or (isinstance(value, float) and value != value)


def fields_of(record):
    """The names by which a record's fields are read, those in an object with dots."""
    for name, value in record.items():
        yield from (f"{name}.{key}" for key in value) if isinstance(value, dict) and value else (name,)


class Missing(ValueError):
    """A record without a field."""


class NotUTF8(ValueError):
    """A record with bytes that are not UTF-8, each a lone surrogate in it."""

    def __init__(self, record):
        super().__init__("is not UTF-8")
        self.record = record


def parsed(line):
    """The object of JSON that a line is, or the ValueError that says why it is none."""
    if _UNDECODED.search(line):
        return ValueError("is not UTF-8")
    if "\0" in line:
        return ValueError("is binary, or UTF-16: save it as UTF-8")
    try:
        record = json.loads(line.rstrip())
    except json.JSONDecodeError as error:
        return ValueError(f"is not JSON ({error.msg} at character {error.pos + 1})")
    except (ValueError, RecursionError) as error:
        return ValueError(f"is not JSON ({error})")
    return _an_object(record)


def _an_object(record):
    """A record; a text in a list of texts is one whose only field is `text`."""
    record = {"text": record} if isinstance(record, str) else record
    return record if isinstance(record, dict) else ValueError(f"is a {type(record).__name__} and not an object")


def _listed(piece):
    with open_file(piece.path, piece.inside) as file:
        text = file.read().decode("utf-8", "surrogateescape").removeprefix("\ufeff")
    decoder, number, gap = json.JSONDecoder(), 0, re.compile(r"[\s,]*")
    listed = text.lstrip().startswith("[")  # else object after object
    at = text.find("[") + listed if listed else 0
    while (at := gap.match(text, at).end()) < len(text) and text[at] != "]":
        number += 1
        try:
            record, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{place_of(piece)}: record {number} of its list is not JSON ({error})") from error
        record = _an_object(record)
        yield number, NotUTF8(record) if _UNDECODED.search(text[at:end]) and isinstance(record, dict) else record
        at = end
    if at >= len(text) and listed:
        raise UserError(f"{place_of(piece)}: is cut short: its list of records does not end")


def _whole(piece):
    """The JSON that a file is. Raises UserError where it is none."""
    with open_file(piece.path, piece.inside) as file:
        try:
            return json.loads(file.read().decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{place_of(piece)} is not JSON ({error})") from error


def lists_in(piece):
    """The names of the lists of a file of kind splits."""
    return [name for name, found in _whole(piece).items() if isinstance(found, list)]


def _rows_of_splits(piece, columns):
    """Records {"split": the list's name, column: cell ...}; without `columns` they are text and label. Of the list
    piece.member, or of all."""
    names = columns or ("text", "label")
    for split, found in _whole(piece).items():
        for cells in found if isinstance(found, list) and piece.member in ("", split) else ():
            if isinstance(cells, dict):
                yield {"split": split, **cells}
            elif isinstance(cells, list) and len(cells) == len(names):
                yield {"split": split, **dict(zip(names, cells))}
            else:
                yield ValueError(f"has {len(cells) if isinstance(cells, list) else 'no'} columns and not {len(names)}")


def _columns(piece, columns):
    """Records of columns that number their cells, as the pandas library writes them."""
    del columns
    found = _whole(piece)
    yield from (dict(zip(found, cells)) for cells in zip(*(column.values() for column in found.values())))


def _squad(piece, columns):
    """A record for each question: id, title, context, question, answers (a list of objects)."""
    del columns
    try:
        for article in _whole(piece)["data"]:
            for paragraph in article["paragraphs"]:
                for question in paragraph["qas"]:
                    more = {"id": question["id"], "question": question["question"], "answers": question["answers"]}
                    yield {"title": article.get("title", ""), "context": paragraph["context"], **more}
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{place_of(piece)} is not of SQuAD's form ({error!r} is missing or wrong)") from error


def _sentences(piece, columns):
    """Records of lists, a sentence each: {"tokens": [...], "tags": [...]} of a line a token, an empty one between.

    Of more than two columns the first and the last have those names and the others column2, column3 ..., unless
    `columns` says otherwise; of .conllu all have those of Universal Dependencies. Lines of -DOCSTART- and, in files of
    three and more columns, # comments are left out, and of .conllu those of several words or none (1-2, 8.1).
    """
    universal = unpacked_ending(place_of(piece)) == ".conllu"
    names = list(columns) or (_CONLLU if universal else _names_of_columns(piece))
    begin, cells, wrong = None, [], None

    def sentence():
        return begin, wrong or dict(zip(names, map(list, zip(*cells))))

    for number, line in lines(piece):
        line = line.rstrip("\r\n")
        found = _columns_of(line)
        if not line.strip() or found[0] == "-DOCSTART-":
            if cells or wrong:
                yield sentence()
            begin, cells, wrong = None, [], None
            continue
        if (len(names) > 2 and line.startswith("# ")) or (universal and re.fullmatch(r"\d+[-.]\d+", found[0])):
            continue
        begin = begin or number
        if _UNDECODED.search(line):
            wrong = wrong or ValueError("is not UTF-8")
        elif len(found) != len(names):
            wrong = wrong or ValueError(f"has {len(found)} columns in line {number} and not {len(names)}")
        cells.append(found)
    if cells or wrong:
        yield sentence()


def _names_of_columns(piece):
    """By the first line that is no comment; of a file of such lines alone, by the last."""
    count = 0
    for _, line in lines(piece):
        if line.strip() and not line.startswith("-DOCSTART-"):
            count = len(_columns_of(line))
            if not line.startswith("# "):
                break
    return ["tokens", *(f"column{k}" for k in range(2, count)), "tags"][: max(count, 2)]


def _columns_of(line):
    line = line.rstrip("\r\n")
    return line.split("\t") if "\t" in line else line.split()


def parquet_stretches(piece):
    """[((first row group, the one after the last), bytes)] of a Parquet file.

    One for all of a file that cannot be read: that is told when it is, unless it is left out.
    """
    try:
        with reading(place_of(piece)):
            metadata = _parquet_file(piece).metadata
    except UserError:
        return [((0, None), piece.size)]
    return [((i, i + 1), metadata.row_group(i).total_byte_size) for i in range(metadata.num_row_groups)]


def _parquet_file(piece):
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(f"{place_of(piece)} is Parquet: to read it, pip install pyarrow") from error
    stream = open_file(piece.path, piece.inside)
    return pyarrow.parquet.ParquetFile(stream if stream.seekable() else pyarrow.BufferReader(stream.read()))


def _parquet(piece):
    """Of the row groups start .. end."""
    file = _parquet_file(piece)
    groups = range(piece.start, file.metadata.num_row_groups if piece.end is None else piece.end)
    number = sum(file.metadata.row_group(i).num_rows for i in range(piece.start))
    names = class_names(file.schema_arrow)
    for batch in file.iter_batches(batch_size=256, row_groups=list(groups)):
        for record in batch.to_pylist():
            number += 1
            yield number, _record(record, names)


def _arrow(piece):
    """Of a file of Arrow's, or of its stream, as the datasets library saves it."""
    try:
        import pyarrow
    except ImportError as error:
        raise UserError(f"{place_of(piece)} is Arrow: to read it, pip install pyarrow") from error
    with open_file(piece.path, piece.inside) as stream:
        data = stream if stream.seekable() else pyarrow.BufferReader(stream.read())
        try:
            file = pyarrow.ipc.open_file(data)
            batches = (file.get_batch(k) for k in range(file.num_record_batches))
        except pyarrow.ArrowInvalid:
            data.seek(0)
            batches = pyarrow.ipc.open_stream(data)
        number = 0
        for batch in batches:
            names = class_names(batch.schema)
            for record in batch.to_pylist():
                number += 1
                yield number, _record(record, names)


def _record(record, names):
    """A row as JSON has it, with the names of classes for their numbers where the file has them."""
    return {k: named(_plain(v), names[k]) if k in names else _plain(v) for k, v in record.items()}


def _plain(value):
    """A value as JSON has it."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value if value is None or isinstance(value, (str, int, float, bool)) else str(value)


def header(piece):
    """The names of a table's columns, "" of those that spreadsheets leave behind the last. Raises UserError if it has
    none, or two of one name."""
    start = dataclasses.replace(piece, start=0, end=None, line=1)
    names = next((cells for _, cells in _cells(start) if cells), None)
    names = [name.strip() for name in names] if isinstance(names, list) else names
    if names is None:
        raise UserError(f"{place_of(piece)} is empty: it wants a header and a line for each record")
    if isinstance(names, Exception):
        raise UserError(f"{place_of(piece)}: its header {names}: mend it")
    if twice := [n for n in names if n and names.count(n) > 1]:
        raise UserError(
            f"{place_of(piece)} has {names.count(twice[0])} columns {twice[0]!r}: give each a name of its own"
        )
    return names


def lines(piece):
    """(number, text) of the lines; bytes that are not UTF-8 become lone surrogates."""
    with open_file(piece.path, piece.inside) as file:
        if piece.start:
            file.seek(piece.start)
        at = piece.start
        for number, raw in enumerate(file, piece.line):
            if piece.end is not None and at >= piece.end:
                return
            if not at:
                check_first_line(raw, place_of(piece))
            at += len(raw)
            line = raw.decode("utf-8", "surrogateescape")
            yield number, line.removeprefix("\ufeff") if number == 1 else line


def check_utf8(raw, place):
    """UserError for the first bytes of a text in UTF-16 or UTF-32."""
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)):
        raise UserError(f"{place} is UTF-16 by its first bytes: save it as UTF-8")


def check_first_line(raw, place):
    """`check_utf8`, and UserError for a file that is one line to all but old Macintoshes."""
    check_utf8(raw, place)
    if b"\n" not in raw and b"\r" in raw.rstrip():
        raise UserError(f"{place} ends its lines with a carriage return alone: save it with line feeds (\\n)")


def _table(piece, columns):
    names = list(columns) or header(piece)
    skip = not columns and piece.start == 0  # the header itself
    for number, cells in _cells(piece, len(names)):
        if not cells:
            continue
        if skip:
            skip = False
            continue
        if isinstance(cells, list):
            if len(cells) != len(names):
                cells = ValueError(f"has {len(cells)} column{'s' * (len(cells) != 1)} and the header {len(names)}")
            else:
                record = dict(zip(names, cells))
                cells = NotUTF8(record) if _UNDECODED.search("".join(cells)) else record
        yield number, cells


def _cells(piece, wanted=None):
    """(number of the first line, cells or ValueError) of a table's rows; [] for an empty line."""
    if piece.kind == "tsv":
        for number, line in lines(piece):
            yield number, _tsv(line.rstrip("\r\n"), wanted)
        return
    csv.field_size_limit(max(csv.field_size_limit(), _FIELD_BYTES))
    left, ahead, used = lines(piece), [], []
    ahead += [item for item in [next(left, None)] if item]
    between = _between(ahead[0][1], wanted) if ahead else ","

    def feed():
        while (item := ahead.pop() if ahead else next(left, None)) is not None:
            used.append(item)
            yield item[1]

    while True:
        used.clear()
        try:
            cells = next(csv.reader(feed(), delimiter=between, strict=True), None)
        except csv.Error as error:
            # A quote that is left open must not swallow the records after it: they are read again, from the next line.
            cells = ValueError(f"is not csv ({error}): is a quote left open?")
            ahead += used[:0:-1]
        if cells is None:
            return
        yield used[0][0], cells


def _between(line, wanted):
    """What stands between the cells of a csv file, by its first line: a comma, unless only another mark makes `wanted`
    cells (None: two or more) of it."""
    fits = lambda mark: (
        len(next(csv.reader([line], delimiter=mark), ())) in ((wanted,) if wanted else range(2, 1 << 20))
    )
    try:
        return next((mark for mark in ",;\t|" if fits(mark)), ",")
    except csv.Error:
        return ","


def _tsv(line, wanted):
    """The cells of a line: with quotes taken off where they enclose whole cells, and as many are left as are wanted.

    Elsewhere a quote is a character like others, as most tsv files have it.
    """
    if not line:
        return []
    plain = line.split("\t")
    if not any(cell.startswith('"') for cell in plain):
        return plain
    csv.field_size_limit(max(csv.field_size_limit(), _FIELD_BYTES))
    try:
        quoted = next(csv.reader([line], delimiter="\t", strict=True))
    except (csv.Error, StopIteration):
        return plain
    return quoted if len(quoted) == (wanted or len(plain)) else plain
