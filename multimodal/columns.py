"""What the columns of a table of pairs are: how its lines are read, and which column is taken as what."""

import ast
import csv
import dataclasses
import io
import pathlib

from multimodal import listed
from multimodal.fields import IMAGE, RECIPE, complete, form_of, names_in
from paradigm.errors import UserError
from paradigm.names import few, plain, says_splits, split_of
from paradigm.storage import expand
from t5like import files
from vision.files import is_picture, open_container

_BETWEEN = {"\t": "tabs", ",": "commas", ";": "semicolons", "|": "bars"}


def read_table(path, recipe):
    """(the recipe with the columns that it left open, header, rows, numbers of their lines, what was taken as what).

    The columns stand between tabs, commas or semicolons: whichever make a header with the wanted names. Cells may be
    quoted as spreadsheets do (the csv module's rules); where those do not fit, quotes stand for themselves.
    """
    if listed.is_listed(path):
        header, rows, lines, said = listed.read(path)
        given, (recipe, rows, lines, odd) = recipe, completed(recipe, header, rows, lines)
        if recipe.image == IMAGE and IMAGE not in header:
            recipe = dataclasses.replace(recipe, image=form_of(header, rows, _pictures(path, recipe)) or IMAGE)
        check_wanted(path, header, recipe)
        return recipe, header, rows, lines, "; ".join(filter(None, (said, columns_told(given, recipe, header), odd)))
    try:
        with files.reading(path), files.open_file(str(path)) as stream:
            text = io.TextIOWrapper(stream, "utf-8-sig").read()
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
    (header, *rows), (_, *lines), quotes = _rows(path, text, delimiter, recipe)
    header = [name.strip() for name in header]
    recipe, rows, lines, odd = completed(recipe, header, rows, lines)
    names = [name for _, name in _wanted(recipe)]
    if double := next((name for name in names if header.count(name) > 1), None):
        raise UserError(f"{path} has {header.count(double)} columns {double!r}: give each a name of its own")
    notes = [
        f"columns between {_BETWEEN[delimiter]}" * (delimiter != "\t" or files.unpacked_ending(path.name) == ".csv"),
        quotes,
    ]
    rows, several = _lists(rows, [header.index(name) for name in names_in(recipe.text)])
    notes += [several, columns_told(given, recipe, header), odd]
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
    container = open_container(places_of(path, recipe)[0], recipe.max_pixels, RECIPE)
    return [plain(name) for name, _ in container.list()[0] if is_picture(name)] if container else []


def places_of(path, recipe):
    """Where pictures are looked for."""
    places = [path.parent / expand(place) for place in (*recipe.images, *recipe.test_images)]
    own = path.with_suffix(".zip")
    return places if recipe.images else [own if own.is_file() else path.parent, *places]


def completed(recipe, header, rows, lines):
    """(the recipe with the columns that it leaves open, rows, lines, a note): without the rows whose split is another
    than train, valid and test, as COCO's restval, in a column of that name."""
    found = complete(recipe, header)
    if not found.split or recipe.split:
        return found, rows, lines, ""
    said = [single(row[header.index(found.split)]) for row in rows]
    splits = [split_of(word) for word in said]
    if not says_splits(splits):
        return dataclasses.replace(found, split=""), rows, lines, ""  # a column of that name that says something else
    odd = sorted({word for word, split in zip(said, splits) if not split})
    note = f"{splits.count(None):,} of {few(map(repr, odd), 4)} in {found.split} left out" if odd else ""
    kept = [k for k, split in enumerate(splits) if split]
    return found, [rows[k] for k in kept], [lines[k] for k in kept], note


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


def single(cell):
    """A cell that is no caption, as a str."""
    return cell if isinstance(cell, str) else ", ".join(cell)


def columns_told(given, recipe, header, every=False):
    """What was taken from which column, of `every` one also where it has its plain name, and which are left out."""
    notes, names = [], [name for _, name in _wanted(recipe)]
    if given.label and not recipe.label:
        notes.append(f"no labels (PairData.label={given.label!r} is of the scenes 'shapes')")
    if every or recipe.image != given.image:
        notes.append(f"pictures from {recipe.image}")
    if recipe.split != given.split:
        notes.append(f"splits from {recipe.split}")
    if odd := [name for name in header if name.lower() == "split" and not recipe.split]:
        notes.append(f"no splits from {odd[0]}, which says others than train, valid and test")
    if recipe.label:
        notes.append(f"classes from {recipe.label}")
    others = [name for name in header if name not in names]
    if every or others or recipe.text != given.text:
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
    check_wanted(
        f"{path}, read with {_BETWEEN[best]} between the columns,", headers[best], complete(recipe, headers[best])
    )


def check_wanted(what, header, recipe):
    """UserError where a table lacks a column that is wanted."""
    if lacking := [(setting, name) for setting, name in _wanted(recipe) if name not in header]:
        settings = list(dict.fromkeys(f"PairData.{setting}" for setting, _ in lacking))
        raise UserError(
            f"{what} has no column {' and no '.join(repr(name) for _, name in lacking)}, only {few(header, 20)}: "
            f"choose with {' and '.join(settings)}"
        )


def _rows(path, text, delimiter, recipe):
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
    if not any(wrong.values()) and (at := _line_or_cell(plain, quoted, recipe)):
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


def _line_or_cell(plain, quoted, recipe):
    """The number of the first line that lies within quotes and yet has a picture's name where the others have theirs;
    None where all that quotes enclose is text."""
    header, starts = [name.strip() for name in quoted[0][1]], {n for n, _ in quoted}
    columns = [header.index(name) for name in names_in([complete(recipe, header).image])]
    ends = lambda cells: [pathlib.PurePath(cells[k].strip()).suffix.lower() for k in columns]
    known = [ends(cells) for _, cells in quoted[1:]]
    return next((n for n, cells in plain if n not in starts and ends(cells) in known), None)
