"""Pairs that stand in no csv: objects of JSON, Parquet, Arrow, COCO's captions, texts beside pictures.

Each becomes (header, rows, numbers of the lines or records, what was taken as what), as the lines of a table do; a cell
is a str, or a tuple of several captions.
"""

import collections
import dataclasses
import json

from paradigm.errors import UserError
from paradigm.names import few, kind_of, left_out, plain
from t5like import files, rows
from t5like.tables import Part
from vision.arrange import arrange
from vision.embedded import splits_of_rows
from vision.files import is_picture

SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet", ".arrow", ".feather")
TEXTS = (".txt", ".caption", ".text")  # of a picture, beside it


def is_listed(path):
    """Whether a file's name is that of records."""
    return files.unpacked_ending(path.name) in SUFFIXES


def read(path):
    """Of a file of records: a column for each field, those of an object in it with dots."""
    part = Part("jsonl", str(path), path.name, path.stat().st_size)
    with files.reading(path):
        kind = rows.kind_of(files.File(str(path), path.name, part.size))
        if kind != "json" and files.unpacked_ending(path.name) == ".json" and (found := _whole(part)):
            return found
        found = list(rows.rows(dataclasses.replace(part, kind=kind or "jsonl")))
    if wrong := next(((n, r) for n, r in found if isinstance(r, Exception)), None):
        raise UserError(f"{path}:{wrong[0]} {wrong[1]}: mend or remove it")
    flat = [_flat(record) for _, record in found]
    header = list(dict.fromkeys(name for record in flat for name in record))
    table = [[_cell(record.get(name)) for name in header] for record in flat]
    if not header:
        raise UserError(f"{path} is empty: it wants a record for each pair, with its picture's file and its caption")
    return header, table, [number for number, _ in found], ""


def embedded(files):
    """Of the pictures in a column of Parquet or Arrow files, an Embedded; their splits by the files' names."""
    split_by, said = splits_of_rows(files)
    of_files, records = said.startswith("splits by"), []
    for file, splits in split_by.items():
        table = files.table(file)
        columns = [name for name in table.fields if name != files.column and not table.holds_pictures(name)]
        cells = zip(*(table.values(name) for name in columns)) if columns else [()] * len(table)
        for name, split, row in zip(files.names(file), splits, cells):
            own = {"split": split} if of_files else {}
            records.append(_flat({files.column: name} | dict(zip(columns, row)) | own))
    header = list(dict.fromkeys(name for record in records for name in record))
    table = [[_cell(record.get(name)) for name in header] for record in records]
    return header, table, list(range(1, len(table) + 1)), said if of_files else ""


def _flat(record, before=""):
    """A column for each plain field; of an object in it, and of several, with dots."""
    found = {}
    for name, value in record.items():
        if isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
            value = {key: [one.get(key) for one in value] for key in dict.fromkeys(key for one in value for key in one)}
        found |= _flat(value, f"{before}{name}.") if isinstance(value, dict) else {f"{before}{name}": value}
    return found


def _cell(value):
    """A value as a cell: several texts of a list, else one."""
    if isinstance(value, list):
        return tuple(str(v) for v in value if not rows.is_null(v))
    return "" if rows.is_null(value) else str(value)


def _whole(part):
    """Of a file that is one object, COCO's or {"1.jpg": "its caption" or several, ...}; None of any other."""
    with files.open_file(part.path) as stream:
        try:
            found = json.loads(stream.read().decode("utf-8-sig"))
        except (ValueError, RecursionError):
            return None
    table, said = None, ""
    if isinstance(found, dict) and {"images", "annotations"} <= found.keys():
        captions = collections.defaultdict(list)
        try:
            for one in found["annotations"]:
                captions[str(one["image_id"])].append(str(one["caption"]))
            table = [[str(one["file_name"]), tuple(captions.get(str(one["id"]), ()))] for one in found["images"]]
            ids = collections.Counter(str(one["id"]) for one in found["images"])
            if twice := [i for i, n in ids.items() if n > 1]:
                raise UserError(f"{part.path} has {ids[twice[0]]} images of the id {twice[0]}: give each its own")
            lost = sum(len(own) for i, own in captions.items() if i not in ids)
            said = f"{lost:,} captions of no image left out" if lost else ""
        except (KeyError, TypeError) as error:
            raise UserError(f"{part.path} is not of COCO's form: an object lacks {error}") from None
    elif isinstance(found, dict) and found and all(map(is_picture, found)):
        table = [[name, _cell(captions)] for name, captions in found.items()]
    return table and (["image", "caption"], table, list(range(1, len(table) + 1)), said)


def beside(container, path):
    """Of the pictures in a folder, zip or tar, each with a text of its name beside; their splits by folder. Or None."""
    listed, without = container.list()
    names = [name for name, _ in listed]
    pictures = [name for name in names if is_picture(name)]
    texts, table, alone, read = collections.defaultdict(list), [], [], set()
    for name in names:
        if name.lower().endswith(TEXTS):
            texts[_stem(name)].append(name)
    splits = arrange(pictures, path, labels=False) if pictures else None
    split_of = {name: split for split, own in splits.splits.items() for name, _ in own} if splits else {}
    for name in split_of:
        if not (own := texts.get(_stem(name))):
            alone.append(name)
            continue
        read.update(own)
        captions = tuple(_text(container, text) for text in own)
        table.append([name, captions if len(own) > 1 else captions[0], split_of[name]])
    if not table:
        return None
    without += collections.Counter(kind_of(n) for n in names if not is_picture(n) and n not in read)
    said = ["captions from texts beside the pictures", splits.note, left_out(without)]
    said += [f"{len(alone):,} pictures without a text left out ({few(sorted(alone), 3)})"] if alone else []
    header = ["image", "caption", "split"]
    if len(splits.splits) == 1:
        header, table = header[:2], [row[:2] for row in table]
    return header, table, list(range(1, len(table) + 1)), "; ".join(filter(None, said))


def _text(container, name):
    try:
        return container.read(name).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{container.place(name)} is not UTF-8: save it as that") from None


def _stem(name):
    return plain(name).rpartition(".")[0]
