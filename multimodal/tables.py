"""Tables of pairs: lines that name a picture's file and its captions, and the files beside them."""

import csv
import dataclasses
import hashlib
import io
import pathlib
from typing import Any

import numpy as np

from multimodal.fields import RECIPE, captions_of, complete, digest, held_out, names_in
from paradigm.errors import UserError, choose
from paradigm.names import SPLITS, few, parts_of, split_of
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
    recipe, header, rows, lines, said = _read_table(path, recipe)
    column = {name: k for k, name in enumerate(header)}
    cells = lambda name: [row[column[name]] for row in rows]
    files_of = lambda name: tuple(_safe(cell, path, n) + recipe.image_suffix for cell, n in zip(cells(name), lines))
    names, seconds = files_of(recipe.image), files_of(recipe.second) if recipe.second else None
    wanted = {name: column[name] for name in names_in(recipe.text)}
    captions = tuple(
        captions_of({name: row[k] for name, k in wanted.items()}, recipe.text, recipe.separator) for row in rows
    )
    labels = classes = None
    if recipe.label:
        words = cells(recipe.label)
        classes = tuple(sorted(set(words) - {""}))
        if not classes:
            raise UserError(f"{path}: the column {recipe.label} names no class: fill it, or leave out PairData.label")
        number = {name: k for k, name in enumerate(classes)} | {"": -1}
        labels = np.array([number[word] for word in words], np.int32)
    table = Table(str(path), np.array(lines), names, captions, labels, seconds)
    split_of = _table_splits(cells(recipe.group) if recipe.group else names, recipe, cells, path)

    files, found, stamps, others = _table_files(path, recipe, names, seconds or names)
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
    content = hashlib.sha256(path.read_bytes()).hexdigest()
    return Opened(splits, classes, digest([content, settings, *stamps]), "; ".join(filter(None, notes)))


def _read_table(path, recipe):
    """(the recipe with the columns that it left open, header, rows, numbers of their lines, what was taken as what).

    The columns stand between tabs, commas or semicolons: whichever make a header with the wanted names. Cells may be
    quoted as spreadsheets do (the csv module's rules); where those do not fit, quotes stand for themselves.
    """
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
    delimiter, given = _delimiter(path, text, recipe), recipe
    (header, *rows), (_, *lines), quotes = _rows(path, text, delimiter)
    header = [name.strip() for name in header]
    recipe = complete(recipe, header)
    if recipe.split and not given.split and not all(split_of(row[header.index(recipe.split)]) for row in rows):
        recipe = dataclasses.replace(recipe, split="")  # a column of that name that says something else
    names = [name for _, name in _wanted(recipe)]
    if double := next((name for name in names if header.count(name) > 1), None):
        raise UserError(f"{path} has {header.count(double)} columns {double!r}: give each a name of its own")
    notes = [f"columns between {_BETWEEN[delimiter]}" * (delimiter != "\t" or path.suffix.lower() == ".csv"), quotes]
    if recipe.image != given.image:
        notes.append(f"pictures from {recipe.image}")
    if recipe.split != given.split:
        notes.append(f"splits from {recipe.split}")
    others = [name for name in header if name not in names]
    if others or recipe.text != given.text:
        notes.append(f"captions from {', '.join(recipe.text)}")
    if others:
        notes.append(f"columns left out: {few(others)}")
    return recipe, header, rows, lines, "; ".join(filter(None, notes))


def _wanted(recipe):
    """[(setting of PairData, name of the column that it reads)]."""
    wanted = [("image", recipe.image), *(("text", name) for name in names_in(recipe.text))]
    return wanted + [(s, getattr(recipe, s)) for s in ("second", "label", "group", "split") if getattr(recipe, s)]


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
    lacking = [(setting, name) for setting, name in wanted[best] if name not in headers[best]]
    settings = list(dict.fromkeys(f"PairData.{setting}" for setting, _ in lacking))
    raise UserError(
        f"{path}, read with {_BETWEEN[best]} between the columns, has no column "
        f"{' and no '.join(repr(name) for _, name in lacking)}, only {', '.join(headers[best])}: choose with "
        f"{' and '.join(settings)}"
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


def _table_splits(groups, recipe, cells, path):
    """[rows] of str: the split of each line."""
    if recipe.split:
        values = cells(recipe.split)
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
    groups, rows = np.array(groups), np.flatnonzero(found == "train")
    found[rows[held_out(keys_of(groups[rows]), recipe.valid, path)]] = "valid"
    return found


def _table_files(path, recipe, names, seconds):
    """(files, bool [files, rows]: which has whose pictures, lines that change with them, number of other pictures)."""
    places = [path.parent / expand(place) for place in (*recipe.images, *recipe.test_images)]
    if not recipe.images:
        own = path.with_suffix(".zip")
        places.insert(0, own if own.is_file() else path.parent)
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
            raise UserError(
                f"{place} has the picture of no line, such as {names[0]!r}; it holds {', '.join(pictures[:2])}"
                ": set PairData.image and PairData.image_suffix so that they give such names"
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
