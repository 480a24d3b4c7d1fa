"""Tables of pairs: lines that name a picture's file and its captions (see columns.py), and the pictures."""

import dataclasses
import hashlib
import os
import pathlib
from typing import Any

import numpy as np

from multimodal import listed
from multimodal.columns import check_wanted, columns_told, completed, places_of, read_table, single
from multimodal.fields import RECIPE, captions_of, complete, filled, form_of, held_out, names_in
from paradigm.classes import check_classes
from paradigm.errors import UserError, choose
from paradigm.names import SPLITS, few, is_hidden, kind_of, parts_of, plain, split_of, splits_by_path, without_shard
from paradigm.records import keys_of
from paradigm.storage import expand
from t5like import files
from vision.decode_image import decode, suffixes
from vision.embedded import open_embedded
from vision.files import is_picture, open_container, sample_of
from vision.reading import Opened, Reading, digest

TABLES = (".tsv", ".tab", ".csv")
_PICTURE, _SPLIT = "the picture from the folder of all tables on", "the split of the table"  # columns of several


def reading_of(recipe, **changes):
    """The Reading of a PairData."""
    return Reading(channels=recipe.channels, max_pixels=recipe.max_pixels, shapes=recipe.shapes, **changes)


class _ByOtherNames:
    """`files` of a Folder or an Archive; a subclass says by `there(name)` what a name is in it."""

    def read(self, name):
        return self.files.read(self.there(name))

    def place(self, name):
        return self.files.place(self.there(name))

    def sample(self, names):
        return self.files.sample(list(map(self.there, names)))


@dataclasses.dataclass(frozen=True)
class Below(_ByOtherNames):
    """Files by their names below an outer folder, which ends in a slash."""

    files: Any
    outer: str

    def there(self, name):
        return self.outer + name


@dataclasses.dataclass(frozen=True)
class Renamed(_ByOtherNames):
    """Files by their plain names. own: {such a name: the container's}, where that is another."""

    files: Any
    own: dict

    def there(self, name):
        return self.own.get(name, name)


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

    def pictures(self, row):
        """The names of a line's pictures, for a person."""
        return self.names[row] if self.seconds is None else f"{self.names[row]} and {self.seconds[row] or 'none'}"


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
            lacks = "there is no picture" if self.table.seconds is None else "one is not there of the pictures"
            raise ValueError(f"{lacks} {self.table.pictures(row)}")
        files, reading = self.files[place], self.reading
        read = lambda name: decode(files.read(name), reading.channels, reading.max_pixels, RECIPE)
        label = -1 if self.table.labels is None else int(self.table.labels[row])
        more = {} if self.table.seconds is None else {"second": read(self.table.seconds[row])}
        return {"image": read(self.table.names[row]), "label": label, "captions": captions, **more}

    def captions(self, position):
        found = self.table.captions[self.rows[position]]
        if not found:
            raise ValueError("it has no text")
        return found

    @property
    def labels(self):
        return self.read_labels()

    def read_labels(self):
        return None if self.table.labels is None else self.table.labels[self.rows]

    def name(self, position):
        row = self.rows[position]
        return f"{self.table.path} line {self.table.lines[row]} ({self.table.names[row]})"


def open_table(place, recipe, cache_dir=None):
    """The Opened of a table with a header, whose lines name pictures (see `read_table`).

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
    if path.is_dir() and (tables := tables_of_splits(path)):
        return _open_tables(path, tables, recipe)
    if not path.is_file():
        raise UserError(f"{recipe.source.partition(':')[0]}:{place}: no such file")
    content = hashlib.sha256(path.read_bytes()).hexdigest()
    return _opened(path, content, *read_table(path, recipe))


def tables_in(root):
    """The tables of a folder, below outer ones, or else of its folders; without what lies beside pictures and tars of
    its name."""
    while len(inside := [p for p in root.iterdir() if not is_hidden(p.name)]) == 1 and inside[0].is_dir():
        [root] = inside
    is_table = lambda p: files.unpacked_ending(p.name) in TABLES or listed.is_listed(p)
    ours = lambda found: sorted(p for p in found if is_table(p) and not is_hidden(p.name) and p.is_file())
    beside = lambda p: p.suffix == ".json" and any(p.with_suffix(suffix).exists() for suffix in suffixes())
    found = [p for p in ours(root.iterdir()) or ours(root.glob("*/*")) if not beside(p)]
    tars = {p.stem for p in root.rglob("*.tar")} if found else ()
    return [p for p in found if not any(p.name.startswith(stem) for stem in tars)]


def tables_of_splits(root):
    """{table: its split} of the tables of a folder, where the name of each says one: of it, or of its folder."""
    found = {p: p.relative_to(root) for p in tables_in(root)}
    bare = {p: [*n.parent.parts, without_shard(n.name.partition(".")[0])] for p, n in found.items()}
    splits = splits_by_path(bare)
    return splits if splits.keys() == found.keys() and len(set(splits.values())) == len(splits) else {}


def _open_tables(root, tables, recipe):
    """The Opened of tables with a split each. A picture is looked for from its table's folder on."""
    if recipe.second:
        raise UserError(f"PairData.second={recipe.second!r}: a second picture is read from one table, and {root} has "
                        f"{few(p.name for p in tables)}")  # fmt: skip
    records, content, first = [], [], None
    for path, split in tables.items():
        own, header, rows, lines, said = read_table(path, recipe)
        first = first or (own, header, said)
        if odd := {*header} ^ {*first[1]}:
            raise UserError(
                f"{path} and {next(iter(tables))} have other columns ({few(sorted(odd))}): name one of them"
            )
        folder = "" if recipe.images else path.parent.relative_to(root).as_posix() + "/"
        for line, row in zip(lines, rows):
            cells = dict(zip(header, row))
            picture = filled(own.image, lambda name: single(cells[name]).strip())
            inside = f"{folder.removeprefix('./')}{_safe(picture, path, line, [path.parent])}"
            records.append((line, [inside, split, *(cells[name] for name in first[1])]))
        content.append(hashlib.sha256(path.read_bytes()).hexdigest())
    own, header, said = first
    named = ", ".join(f"{p.relative_to(root)} is {split}" for p, split in tables.items())
    said = [said, f"splits by the tables' names: {named}"]
    own = dataclasses.replace(own, image=_PICTURE, split=recipe.split or _SPLIT)
    lines, rows = zip(*records)
    return _opened(
        root / "tables", content, own, [_PICTURE, _SPLIT, *header], rows, lines, "; ".join(filter(None, said))
    )


def open_beside(place, recipe, cache_dir=None):
    """The Opened of the pictures in a folder, zip or tar, each with a text of its name beside (see listed.py)."""
    path = expand(place)
    if not path.exists():
        raise UserError(f"{recipe.source.partition(':')[0]}:{place}: no such file or directory")
    container = open_container(path, recipe.max_pixels, RECIPE)
    if (found := container and listed.beside(container, path)) is None:
        names = [name for name, _ in container.list()[0]] if container else []
        if tables := [name for name in names if files.unpacked_ending(name) in (*TABLES, ".jsonl", ".ndjson")]:
            unpack = "" if path.is_dir() else "unpack it, have the pictures beside or in PairData.images, and "
            raise UserError(f"PairData.source={recipe.source!r} holds the table {tables[0]}: {unpack}name it")
        kinds = few(sorted(set(map(kind_of, names)))) if container else "no files"
        raise UserError(
            f"PairData.source={recipe.source!r} holds no table and no tar file (.csv, .jsonl, .tar ...) and no "
            f"picture with a text of its name beside ({', '.join(listed.TEXTS)}); it holds {kinds or 'nothing'}"
        )
    header, rows, lines, said = found
    recipe = complete(dataclasses.replace(recipe, images=(str(path.absolute()),)), header)
    check_wanted(path, header, recipe)
    return _opened(path, repr(rows), recipe, header, rows, lines, said)


def open_columns(place, recipe, cache_dir=None):
    """The Opened of Parquet or Arrow files with a column of pictures (see vision/embedded.py)."""
    path = expand(place)
    if not path.exists():
        raise UserError(f"parquet:{place}: no such file or directory")
    files = open_embedded(path, recipe.image, "PairData.image", recipe.max_pixels, RECIPE)
    header, rows, lines, said = listed.embedded(files)
    given = recipe
    recipe, rows, lines, odd = completed(dataclasses.replace(recipe, image=files.column), header, rows, lines)
    check_wanted(path, header, recipe)
    told = columns_told(given, recipe, header, every=True)
    content = [(name, sample_of(file)) for name, file in files.files.items()]
    return _opened(path, content, recipe, header, rows, lines, "; ".join(filter(None, (said, told, odd))), files)


def _opened(path, content, recipe, header, rows, lines, said, inside=None):
    """The Opened of a table that was read. inside: the container of its pictures, where they lie in it."""
    column = {name: k for k, name in enumerate(header)}
    cells = lambda name: [row[column[name]] for row in rows]
    pictures = lambda form: [filled(form, lambda name: single(row[column[name]]).strip()) for row in rows]
    places = [path] if inside else places_of(path, recipe)
    named = lambda form: (_safe(n, path, line, places) for n, line in zip(pictures(form), lines))
    files_of = lambda form: tuple(name + recipe.image_suffix for name in named(form))
    names, seconds = files_of(recipe.image), files_of(recipe.second) if recipe.second else None
    wanted = {name: column[name] for name in names_in(recipe.text)}
    captions = tuple(
        captions_of({name: row[k] for name, k in wanted.items()}, recipe.text, recipe.separator) for row in rows
    )
    labels = classes = None
    if recipe.label:
        words = [single(cell).strip() for cell in cells(recipe.label)]
        classes = tuple(sorted(set(words) - {""}))
        if not classes:
            raise UserError(f"{path}: the column {recipe.label} names no class: fill it, or leave out PairData.label")
        number = {name: k for k, name in enumerate(classes)} | {"": -1}
        labels = np.array([number[word] for word in words], np.int32)
    table = Table(str(path), np.array(lines), names, captions, labels, seconds)
    files, found, stamps, others = _table_files(path, recipe, names, seconds or names, header, rows, places, inside)
    if recipe.label:  # of all pictures, since a line may have one in each of several places
        fix = "name another with PairData.label, or leave that out"
        check_classes(classes, int(found[:, labels >= 0].sum()), f"{path}: the column {recipe.label!r}", fix)
    whole = found.any(axis=0) & np.array([bool(c) for c in captions])
    groups = list(map(single, cells(recipe.group))) if recipe.group else names
    split_of = _table_splits(groups, whole, recipe, cells, path)
    trained, tested = found[: len(found) - len(recipe.test_images)], found[len(found) - len(recipe.test_images) :]
    nowhere = ~np.any(found, axis=0)
    notes = [_table_problems(table, nowhere, recipe, files), said]
    notes.append(f"{others:,} pictures of no line left out" if others else "")
    notes.append(f"{n:,} lines without a label" if recipe.label and (n := int((labels < 0).sum())) else "")
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


def _safe(name, path, line, places):
    """A picture's plain name from one of the places on. Raises UserError where it lies in none of them."""
    roots = (f"{os.path.abspath(place)}/" for place in places if name.startswith("/"))
    name = next((name.removeprefix(root) for root in roots if name.startswith(root)), name)
    if name.startswith(("/", "\\")) or ".." in pathlib.PurePosixPath(name.replace("\\", "/")).parts:
        raise UserError(
            f"{path} line {line}: the picture {name!r} lies outside of {few(places)}: set PairData.images to the "
            "folders that hold the pictures, or mend that line"
        )
    return plain(name)


def _table_splits(groups, whole, recipe, cells, path):
    """[rows] of str: the split of each line. whole: bool [rows], those that may be held out."""
    if recipe.split:
        values = list(map(single, cells(recipe.split)))
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


def _table_files(path, recipe, names, seconds, header, rows, places, inside):
    """(files, bool [files, rows]: which has whose pictures, lines that change with them, number of other pictures)."""
    files, found, stamps, others, wanted = [], [], [], 0, {*names, *seconds}
    for place in places:
        one = inside or open_container(place, recipe.max_pixels, RECIPE)
        if one is None:
            what = "neither a folder nor a whole zip file, nor a tar" if place.exists() else "not there"
            raise UserError(f"{place} of PairData.images is {what}: name the zip file or folder of the pictures")
        listed = dict(one.list()[0])
        if own := {plain(name): name for name in listed if plain(name) != name}:
            one, listed = Renamed(one, own), {plain(name): stamp for name, stamp in listed.items()}
        if not wanted & listed.keys() and (outer := outer_folders([parts_of(name) for name in listed])):
            tops = ["/".join(outer[:k]) + "/" for k in range(len(outer), 0, -1)]
            one = Below(one, next((top for top in tops if any(top + name in listed for name in wanted)), tops[0]))
            listed = {name.removeprefix(one.outer): stamp for name, stamp in listed.items()}
        others += sum(is_picture(name) for name in listed.keys() - wanted)
        every = names if seconds is names else (*names, *seconds)
        stamps += [f"{len(files)}", *(f"{name} {listed[name]}" for name in every if name in listed)]
        stamps += one.sample(sorted(wanted & listed.keys()))
        files.append(one)
        found.append(np.array([a in listed and b in listed for a, b in zip(names, seconds)]))
        if not found[-1].any() and names[0].startswith(("http:", "https:")):
            raise UserError(
                f"{path} names pictures by web addresses, such as {names[0].replace(':/', '://', 1)!r}, and nothing is "
                "fetched here: img2dataset does, and its .tar files are read as they are (PairData.source = 'wds:DIR')"
            )
        if not found[-1].any():
            pictures = [name for name in listed if is_picture(name)]
            form = form_of(header, rows, pictures)
            both = "PairData.image and PairData.image_suffix so that they give such names"
            fix = f"PairData.image = '{form}'" if form else both
            holds = ", ".join(pictures[:2]) or "none"
            raise UserError(f"{place} has the picture of no line, such as {names[0]!r}; it holds {holds}: set {fix}")
    return tuple(files), np.array(found), stamps, others


def _table_problems(table, nowhere, recipe, files):
    """What a person should know; UserError if nothing is whole, or if something is not and that is to be refused."""
    silent = np.array([not captions for captions in table.captions])
    problems = []
    for mask, what in ((nowhere, "without a picture"), (silent, "without text")):
        if mask.any():
            first = int(np.argmax(mask))
            problems.append(f"{mask.sum():,} lines {what}, first line {table.lines[first]} ({table.pictures(first)})")
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
