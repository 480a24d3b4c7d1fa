"""Tables of pairs: lines that name a picture's file and its captions, and the files beside them."""

import ast
import csv
import dataclasses
import hashlib
import io
import pathlib
from typing import Any

import numpy as np

from multimodal import listed
from multimodal.fields import IMAGE, RECIPE, captions_of, complete, digest, filled, form_of, held_out, names_in
from paradigm.errors import UserError, choose
from paradigm.names import SPLITS, few, kind_of, parts_of, split_of
from paradigm.records import keys_of
from paradigm.storage import expand
from vision.decode_image import decode
from vision.files import is_picture, open_container
from vision.sources import Opened, Reading

_BETWEEN = {"\t": "tabs", ",": "commas", ";": "semicolons", "|": "bars"}


def reading_of(recipe, **changes):
    """The Reading of a PairData."""
    return Reading(channels=recipe.channels, max_pixels=recipe.max_pixels, shapes=recipe.shapes, **changes)


@dataclasses.dataclass(frozen=True)
class Below:
    """Files of a Folder or an Archive by their names below an outer folder, which ends in a slash."""

    files: Any
    outer: str

    def read(self, name):
        return self.files.read(self.outer + name)

    def place(self, name):
        return self.files.place(self.outer + name)

    def sample(self, names):
        return self.files.sample([self.outer + name for name in names])


def outer_folders(paths):
    """The folders that all of these paths, tuples of folders and a file, begin with."""
    shortest = min((len(path) for path in paths), default=1) - 1
    same = next((k for k in range(shortest) if len({path[k] for path in paths}) > 1), shortest)
    return paths[0][:same] if paths else ()


@dataclasses.dataclass(frozen=True)
class Table:
    """The lines of a table. path; lines: their numbers; names: of pictures; captions; labels: int32 or None; seconds:
    names of second pictures, or None."""

    path: str
    lines: np.ndarray
    names: tuple[str, ...]
    captions: tuple[tuple[str, ...], ...]
    labels: np.ndarray | None
    seconds: tuple[str, ...] | None = None


@dataclasses.dataclass
class TablePairs:
    """Lines of a table with a picture each. rows: of the table [n]. places: in `files` [n], -1 where none has it."""

    table: Table
    files: tuple
    rows: np.ndarray
    places: np.ndarray
    reading: Reading

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, position):
        captions, row, place = self.captions(position), self.rows[position], self.places[position]
        if place < 0:
            raise ValueError(f"there is no picture {self.table.names[row]}")
        files, reading = self.files[place], self.reading
        read = lambda name: decode(files.read(name), files.place(name), reading.channels, reading.max_pixels, RECIPE)
        label = -1 if self.table.labels is None else int(self.table.labels[row])
        more = {} if self.table.seconds is None else {"second": read(self.table.seconds[row])}
        return {"image": read(self.table.names[row]), "label": label, "captions": captions, **more}

    def captions(self, position):
        found = self.table.captions[self.rows[position]]
        if not found:
            raise ValueError("it has no text")
        return found

    def read_labels(self):
        return None if self.table.labels is None else self.table.labels[self.rows]

    def name(self, position):
        row = self.rows[position]
        return f"{self.table.path} line {self.table.lines[row]} ({self.table.names[row]})"


def open_table(place, recipe, cache_dir=None):
    """The Opened of a table with a header, whose lines name pictures (see `_read_table`).

    A picture is looked for, by its column and PairData.image_suffix, in each of PairData.images: zip files, which are
    never unpacked, or folders, by their paths from the table's folder on; without any, in the zip of the table's name,
    or else in its folder; and where none is found, below the outer folders that hold all. A line makes a pair with each
    that has its picture, and one that no place has is broken.

    Whole groups of lines are held out, those of PairData.group's smallest hashes, else those of one picture's name: as
    'valid'. With PairData.test_images, whose pictures nobody trains on, 'test' is what these show of the training
    groups, and 'test_unseen' of the groups held out. PairData.split, if set, is the column that says train, valid or
    test instead.
    """
    path = expand(place)
    if not path.is_file():
        raise UserError(f"{recipe.source.partition(':')[0]}:{place}: no such file")
    content = hashlib.sha256(path.read_bytes()).hexdigest()
    return _opened(path, content, *_read_table(path, recipe))


def open_beside(place, recipe, cache_dir=None):
    """The Opened of the pictures in a folder, zip or tar, each with a text of its name beside (see listed.py)."""
    path = expand(place)
    if not path.exists():
        raise UserError(f"{recipe.source.partition(':')[0]}:{place}: no such file or directory")
    container = open_container(path, recipe.max_pixels, RECIPE)
    if (found := container and listed.beside(container, path)) is None:
        kinds = few(sorted({kind_of(name) for name, _ in container.list()[0]})) if container else "no files"
        raise UserError(
            f"PairData.source={recipe.source!r} holds no table and no tar file (.csv, .jsonl, .tar ...) and no "
            f"picture with a text of its name beside ({', '.join(listed.TEXTS)}); it holds {kinds or 'nothing'}"
        )
    header, rows, lines, said = found
    recipe = complete(dataclasses.replace(recipe, images=(str(path.absolute()),)), header)
    _check_wanted(path, header, recipe)
    return _opened(path, repr(rows), recipe, header, rows, lines, said)


def _opened(path, content, recipe, header, rows, lines, said):
    """The Opened of a table that was read."""
    for setting in ("classes", "valid_glob"):
        if getattr(recipe, setting):
            raise UserError(f"PairData.{setting} is of tar files, and {path} is none: leave it out")
    column = {name: k for k, name in enumerate(header)}
    cells = lambda name: [row[column[name]] for row in rows]
    pictures = lambda form: [filled(form, lambda name: _one(row[column[name]]).strip()) for row in rows]
    files_of = lambda form: tuple(_safe(n, path, line) + recipe.image_suffix for n, line in zip(pictures(form), lines))
    names, seconds = files_of(recipe.image), files_of(recipe.second) if recipe.second else None
    wanted = {name: column[name] for name in names_in(recipe.text)}
    captions = tuple(
        captions_of({name: row[k] for name, k in wanted.items()}, recipe.text, recipe.separator) for row in rows
    )
    labels = classes = None
    if recipe.label:
        words = [_one(cell).strip() for cell in cells(recipe.label)]
        classes = tuple(sorted(set(words) - {""}))
        if not classes:
            raise UserError(f"{path}: the column {recipe.label} names no class: fill it, or leave out PairData.label")
        number = {name: k for k, name in enumerate(classes)} | {"": -1}
        labels = np.array([number[word] for word in words], np.int32)
    table = Table(str(path), np.array(lines), names, captions, labels, seconds)
    files, found, stamps, others = _table_files(path, recipe, names, seconds or names, header, rows)
    whole = found.any(axis=0) & np.array([bool(c) for c in captions])
    groups = list(map(_one, cells(recipe.group))) if recipe.group else names
    split_of = _table_splits(groups, whole, recipe, cells, path)
    trained, tested = found[: len(found) - len(recipe.test_images)], found[len(found) - len(recipe.test_images) :]
    nowhere = ~np.any(found, axis=0)
    notes = [_table_problems(table, nowhere, recipe, files), said]
    notes.append(f"{others:,} pictures of no line left out" if others else "")
    splits = {}
    for split in ("train", "valid", "test"):
        chosen = split_of == split
        if chosen.any():
            # A line without any picture stands once, with those that train or validate, to be counted there.
            splits[split] = _pairs(table, files, trained, chosen, nowhere, 0, recipe)
    if recipe.test_images:
        first = len(trained)
        if "test" in splits:
            raise UserError(
                f"{path}: PairData.split names a test split and PairData.test_images another: leave one out"
            )
        for split, of in (("test", "train"), ("test_unseen", "valid")):
            splits[split] = _pairs(table, files, tested, split_of == of, nowhere & False, first, recipe)
    if empty := [split for split, source in splits.items() if not len(source)]:
        raise UserError(f"{path}: no line of {', '.join(empty)} has its picture in those places: check PairData.images")
    settings = (recipe.image_suffix, recipe.text, recipe.separator, recipe.label, recipe.group, recipe.split,
                recipe.valid, len(recipe.images), len(recipe.test_images),
                *([recipe.second] if recipe.second else []))  # fmt: skip
    return Opened(splits, classes, digest([content, settings, *stamps]), "; ".join(filter(None, notes)))


def _read_table(path, recipe):
    """(the recipe with the columns that it left open, header, rows, numbers of their lines, what was taken as what).

    The columns stand between tabs, commas or semicolons: whichever make a header with the wanted names. Cells may be
    quoted as spreadsheets do (the csv module's rules); where those do not fit, quotes stand for themselves.
    """
    if listed.is_listed(path):
        header, rows, lines, said = listed.read(path)
        given, recipe = recipe, _completed(recipe, header, rows)
        if recipe.image == IMAGE and IMAGE not in header:
            recipe = dataclasses.replace(recipe, image=form_of(header, rows, _pictures(path, recipe)) or IMAGE)
        _check_wanted(path, header, recipe)
        return recipe, header, rows, lines, "; ".join(filter(None, (said, _columns_told(given, recipe, header))))
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start}): save it as that") from None
    written = sum(1 for line in text.split("\n") if line.strip())
    if written < 2:
        what = "has a header and no lines" if written else "is empty"
        raise UserError(
            f"{path} {what}: it wants a header and a line for each pair, with tabs or commas between the columns"
        )
    given = recipe
    try:
        delimiter = _delimiter(path, text, recipe)
    except UserError:
        if not (form := _form(path, text, recipe)):
            raise
        recipe = dataclasses.replace(recipe, image=form)
        delimiter = _delimiter(path, text, recipe)
    (header, *rows), (_, *lines), quotes = _rows(path, text, delimiter)
    header = [name.strip() for name in header]
    recipe = _completed(recipe, header, rows)
    names = [name for _, name in _wanted(recipe)]
    if double := next((name for name in names if header.count(name) > 1), None):
        raise UserError(f"{path} has {header.count(double)} columns {double!r}: give each a name of its own")
    notes = [f"columns between {_BETWEEN[delimiter]}" * (delimiter != "\t" or path.suffix.lower() == ".csv"), quotes]
    rows, several = _lists(rows, [header.index(name) for name in names_in(recipe.text)])
    notes += [several, _columns_told(given, recipe, header)]
    return recipe, header, rows, lines, "; ".join(filter(None, notes))


def _form(path, text, recipe):
    """By which form the lines name the pictures that are there, where no column says so; "" if none is found."""
    written = [line for line in text.split("\n") if line.strip()][:100]
    for mark in _BETWEEN if recipe.image == IMAGE else ():
        header, *rows = csv.reader(written, delimiter=mark)
        rows = [row for row in rows if len(row) == len(header)]
        if len(header) > 1 and (form := form_of(header, rows, _pictures(path, recipe))):
            return form
    return ""


def _pictures(path, recipe):
    """The names of the pictures beside a table, in PairData.images or where they are looked for without."""
    container = open_container(_places(path, recipe)[0], recipe.max_pixels, RECIPE)
    return [name for name, _ in container.list()[0] if is_picture(name)] if container else []


def _completed(recipe, header, rows):
    """The recipe with the columns that it leaves open."""
    found = complete(recipe, header)
    if found.split and not recipe.split and not all(split_of(row[header.index(found.split)]) for row in rows):
        return dataclasses.replace(found, split="")  # a column of that name that says something else
    return found


def _lists(rows, columns):
    """(rows, in which each cell of a column of lists as Python or JSON writes them holds several captions, a note)."""
    for k in columns:
        if rows and all(row[k].startswith("[") and row[k].endswith("]") for row in rows):
            try:
                several = [ast.literal_eval(row[k]) for row in rows]
            except (ValueError, SyntaxError):
                continue
            if all(isinstance(text, str) for texts in several for text in texts):
                rows = [[*row[:k], tuple(texts), *row[k + 1 :]] for row, texts in zip(rows, several)]
                return rows, "lists of captions"
    return rows, ""


def _one(cell):
    """A cell that is no caption, as a str."""
    return cell if isinstance(cell, str) else ", ".join(cell)


def _columns_told(given, recipe, header):
    """What was taken from which column, and which are left out."""
    notes, names = [], [name for _, name in _wanted(recipe)]
    if given.label and not recipe.label:
        notes.append(f"no labels (PairData.label={given.label!r} is of the scenes 'shapes')")
    if recipe.image != given.image:
        notes.append(f"pictures from {recipe.image}")
    if recipe.split != given.split:
        notes.append(f"splits from {recipe.split}")
    if odd := [name for name in names if name.lower() == "split" and name != recipe.split]:
        notes.append(f"no splits from {odd[0]}, which says others than train, valid and test")
    others = [name for name in header if name not in names]
    if others or recipe.text != given.text:
        notes.append(f"captions from {', '.join(recipe.text)}")
    if others:
        notes.append(f"columns left out: {few(name or 'one without a name' for name in others)}")
    return "; ".join(notes)


def _wanted(recipe):
    """[(setting of PairData, name of the column that it reads)]."""
    wanted = [
        *(("image", name) for name in names_in([recipe.image])),
        *(("second", name) for name in names_in([recipe.second] if recipe.second else [])),
        *(("text", name) for name in names_in(recipe.text)),
    ]
    return wanted + [(s, getattr(recipe, s)) for s in ("label", "group", "split") if getattr(recipe, s)]


def _delimiter(path, text, recipe):
    """What stands between the columns. Raises UserError, naming the columns, where the wanted ones are not there."""
    first = next(line for line in text.split("\n") if line.strip())
    headers = {d: [name.strip() for name in next(csv.reader([first], delimiter=d))] for d in _BETWEEN}
    wanted = {d: _wanted(complete(recipe, header)) for d, header in headers.items()}
    fits = [d for d, header in headers.items() if {name for _, name in wanted[d]} <= set(header)]
    if len(fits) > 1:
        raise UserError(f"{path} may have {' or '.join(_BETWEEN[d] for d in fits)} between its columns: keep to one")
    if fits:
        return fits[0]
    best = max(headers, key=lambda d: len(headers[d]))
    if len(headers[best]) == 1:
        raise UserError(
            f"{path} has one column, {headers[best][0][:80]!r}: it wants a header with tabs, commas or semicolons "
            "between the columns, one of them the picture's file and one its caption"
        )
    if any(is_picture(name) for name in headers[best]):
        raise UserError(
            f"{path} has no header, it seems: {first[:60]!r} is its first line. Put one above it that names the "
            f"columns, such as {['image', 'caption', *(f'column{k}' for k in range(3, 9))][: len(headers[best])]}"
        )
    _check_wanted(
        f"{path}, read with {_BETWEEN[best]} between the columns,", headers[best], complete(recipe, headers[best])
    )


def _check_wanted(what, header, recipe):
    """UserError where a table lacks a column that is wanted."""
    if lacking := [(setting, name) for setting, name in _wanted(recipe) if name not in header]:
        settings = list(dict.fromkeys(f"PairData.{setting}" for setting, _ in lacking))
        raise UserError(
            f"{what} has no column {' and no '.join(repr(name) for _, name in lacking)}, only {few(header, 20)}: "
            f"choose with {' and '.join(settings)}"
        )


def _rows(path, text, delimiter):
    """(rows, the header among them, the numbers of their lines, what to say about quotes)."""
    plain = [(n, line.split(delimiter)) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    plain[0] = plain[0][0], next(csv.reader([delimiter.join(plain[0][1])], delimiter=delimiter))
    quoted, problem, before = [], None, 0
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                quoted.append((before + 1, cells))
            before = reader.line_num
    except csv.Error as error:
        problem = f"line {before + 1} is not csv ({error}): is a quote left open?"
    wrong = {}
    for name, rows in (("plain", plain), ("quoted", quoted)):
        wide = len(rows[0][1]) if rows else 0
        odd = next((row for row in rows if len(row[1]) != wide), None)
        wrong[name] = odd and f"line {odd[0]} has {len(odd[1])} columns and the header {wide}: mend that line"
    wrong["quoted"] = problem or wrong["quoted"]
    if wrong["quoted"] and wrong["plain"]:
        raise UserError(f"{path} {wrong['quoted']}")
    if not any(wrong.values()) and len(plain) != len(quoted):
        at = next(n for (n, _), (m, _) in zip(plain, [*quoted, (0, 0)]) if n != m)
        raise UserError(
            f"{path} line {at} is within quotes that begin before it, or a line of its own: double the quotes that "
            "stand for themselves, and put their cell in quotes"
        )
    rows = plain if wrong["quoted"] else quoted
    said = ""
    if wrong["quoted"]:
        said = "quotes stand for themselves"
    elif cells := sum(a != b for (_, one), (_, other) in zip(plain, quoted) for a, b in zip(one, other)):
        said = f"{cells:,} cells in quotes" if len(plain) == len(quoted) and not wrong["plain"] else "cells in quotes"
    return [row for _, row in rows], [n for n, _ in rows], said


def _safe(name, path, line):
    if name.startswith(("/", "\\")) or ".." in pathlib.PurePosixPath(name.replace("\\", "/")).parts:
        raise UserError(f"{path} line {line}: the picture {name!r} lies outside of PairData.images: mend that line")
    return "/".join(parts_of(name)) if "\\" in name or name.startswith("./") else name


def _table_splits(groups, whole, recipe, cells, path):
    """[rows] of str: the split of each line. whole: bool [rows], those that may be held out."""
    if recipe.split:
        values = list(map(_one, cells(recipe.split)))
        words = {word: split for split, own in SPLITS.items() for word in own}
        for value in set(values):
            split_of(value) or choose(f"split in the column {recipe.split} of {path}", value, words)
        found = np.array([split_of(value) for value in values])
        if "train" not in found:
            raise UserError(f"{path}: the column {recipe.split} says train in no line: add some, or leave it out")
        if "valid" in found:
            return found
    else:
        found = np.full(len(groups), "train", dtype="U5")
    rows = np.flatnonzero((found == "train") & (whole if whole.any() else True))
    groups = np.array(groups)
    found[rows[held_out(keys_of(groups[rows]), recipe.valid, path)]] = "valid"
    return found


def _places(path, recipe):
    """Where pictures are looked for."""
    places = [path.parent / expand(place) for place in (*recipe.images, *recipe.test_images)]
    own = path.with_suffix(".zip")
    return places if recipe.images else [own if own.is_file() else path.parent, *places]


def _table_files(path, recipe, names, seconds, header, rows):
    """(files, bool [files, rows]: which has whose pictures, lines that change with them, number of other pictures)."""
    places = _places(path, recipe)
    files, found, stamps, others, wanted = [], [], [], 0, {*names, *seconds}
    for place in places:
        one = open_container(place, recipe.max_pixels, RECIPE)
        if one is None:
            what = "neither a folder nor a whole zip file, nor a tar" if place.exists() else "not there"
            raise UserError(f"{place} of PairData.images is {what}: name the zip file or folder of the pictures")
        listed = dict(one.list()[0])
        if not wanted & listed.keys() and (outer := outer_folders([parts_of(name) for name in listed])):
            one = Below(one, "/".join(outer) + "/")
            listed = {name.removeprefix(one.outer): stamp for name, stamp in listed.items()}
        others += sum(is_picture(name) for name in listed.keys() - wanted)
        every = names if seconds is names else (*names, *seconds)
        stamps += [f"{len(files)}", *(f"{name} {listed[name]}" for name in every if name in listed)]
        stamps += one.sample(sorted(wanted & listed.keys()))
        files.append(one)
        found.append(np.array([a in listed and b in listed for a, b in zip(names, seconds)]))
        if not found[-1].any():
            pictures = [name for name in listed if is_picture(name)]
            form = form_of(header, rows, pictures)
            both = "PairData.image and PairData.image_suffix so that they give such names"
            fix = f"PairData.image = '{form}'" if form else both
            raise UserError(
                f"{place} has the picture of no line, such as {names[0]!r}; it holds {', '.join(pictures[:2])}: "
                f"set {fix}"
            )
    return tuple(files), np.array(found), stamps, others


def _table_problems(table, nowhere, recipe, files):
    """What a person should know; UserError if nothing is whole, or if something is not and that is to be refused."""
    silent = np.array([not captions for captions in table.captions])
    problems = []
    for mask, what in ((nowhere, "without a picture"), (silent, "without text")):
        if mask.any():
            first = int(np.argmax(mask))
            problems.append(f"{mask.sum():,} lines {what}, first line {table.lines[first]} ({table.names[first]})")
    if problems and (recipe.on_broken == "refuse" or (nowhere | silent).all()):
        raise UserError(f"{table.path} has {'; '.join(problems)}: mend them, or set PairData.on_broken = 'replace'")
    return "; ".join(problems)


def _pairs(table, files, found, chosen, nowhere, first, recipe):
    """TablePairs of the chosen lines with the pictures found [files, rows], whose places begin at `first`."""
    rows, places = np.nonzero((found & chosen).T)
    lost = np.flatnonzero(nowhere & chosen)
    rows, places = np.append(rows, lost), np.append(places + first, np.full(len(lost), -1))
    order = np.lexsort((places, rows))
    return TablePairs(table, files, rows[order], places[order], reading_of(recipe))
