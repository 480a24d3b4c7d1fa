"""Where pairs of a picture and captions come from: a source's name becomes splits, and each gives its records.

    shapes            scenes that a program draws (see vision/synthetic_scenes.py), each with its caption
    tsv:FILE          lines of a table, pictures in zip files or folders beside it (see `open_table`)
    wds:PATTERN       WebDataset tar files (see webdataset.py): a file, a folder of them, a glob, or x-{000..127}.tar
    tfds:NAME         a prepared TensorFlow data set such as coco_captions (or its directory), read without TensorFlow
    PATH              one of these, by what is there

A record is {"image": uint8 [h, w, C], "label": int, -1 for none, "captions": tuple of str}; a source also gives
`captions(position)` alone and `name(position)`. The first two raise for a pair that is broken. Sources can be pickled:
files are opened by whichever process reads them.
"""

import dataclasses
import hashlib
import os
import pathlib
import zipfile
from typing import Any

import numpy as np

from multimodal.fields import RECIPE, captions_of, digest, held_out, names_in
from multimodal.webdataset import open_tars
from paradigm import tfds
from paradigm.errors import UserError, choose
from paradigm.records import keys_of
from paradigm.storage import expand
from vision.decode_image import decode
from vision.files import Archive, Folder, is_picture
from vision.sources import Opened, Reading, TfdsSource, open_source
from vision.synthetic_scenes import COLOURS, SHAPES

PAIR = "pair"  # the label of shapes that names colour and shape
_SPLITS = {"train": "train", "training": "train", "valid": "valid", "validation": "valid", "val": "valid",
           "dev": "valid", "test": "test", "testing": "test"}  # fmt: skip


def open_pairs(recipe, cache_dir=None):
    """The Opened of a PairData's source (see the top of this file). cache_dir: where an index of tar files is kept.

    Raises UserError, naming the place, if there is nothing to read, or not what the name says.
    """
    kind, _, place = recipe.source.partition(":")
    if kind not in _OPENERS and (os.sep in recipe.source or expand(recipe.source).exists()):
        kind, place = _guess(expand(recipe.source)), recipe.source
    opener = choose("source of pairs", kind, _OPENERS)
    if (kind == "shapes") == bool(place):
        fix = "nothing comes after shapes" if place else f"it names no place: write {kind}:PATH"
        raise UserError(f"PairData.source={recipe.source!r}: {fix}")
    try:
        return opener(place, recipe, cache_dir)
    except OSError as error:
        raise UserError(f"{recipe.source}: {error.filename} cannot be read ({error.strerror})") from error


def _guess(path):
    if not path.exists() and "{" not in path.name and "*" not in path.name:
        raise UserError(f"PairData.source={str(path)!r}: no such file or directory (a source without files: shapes)")
    if path.suffix in (".tsv", ".tab"):
        return "tsv"
    return "tfds" if (path / "dataset_info.json").exists() else "wds"


def _reading(recipe, **changes):
    return Reading(channels=recipe.channels, max_pixels=recipe.max_pixels, shapes=recipe.shapes, **changes)


# --------------------------------------------------------------------------------------------------------------- shapes


@dataclasses.dataclass
class ShapesPairs:
    """Scenes of the generator and their captions. pairs: whether the label names colour and shape, or Shapes.label."""

    scenes: Any
    pairs: bool

    def __len__(self):
        return len(self.scenes)

    def __getitem__(self, position):
        record = self.scenes[position]
        if self.pairs:
            record["label"] = record["labels"]["colour"] * len(SHAPES) + record["labels"]["shape"]
        return {"image": record["image"], "label": record["label"], "captions": (record["caption"],)}

    def captions(self, position):
        return (self.scenes.shapes.scene(self.scenes.start + position).caption,)

    def name(self, position):
        return self.scenes.name(position)


def _open_shapes(place, recipe, cache_dir):
    choose("label of shapes", recipe.label, {"": 1, PAIR: 1})
    opened = open_source("shapes", _reading(recipe))
    pairs = recipe.label == PAIR
    splits = {name: ShapesPairs(scenes, pairs) for name, scenes in opened.splits.items()}
    classes = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES) if pairs else opened.classes
    return Opened(splits, classes, digest([opened.digest, pairs]))


# --------------------------------------------------------------------------------------------------------------- tables


@dataclasses.dataclass(frozen=True)
class Table:
    """The lines of a tsv file. path; lines: their numbers; names: of pictures; captions; labels: int32 or None."""

    path: str
    lines: np.ndarray
    names: tuple[str, ...]
    captions: tuple[tuple[str, ...], ...]
    labels: np.ndarray | None


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
        files, name, reading = self.files[place], self.table.names[row], self.reading
        image = decode(files.read(name), files.place(name), reading.channels, reading.max_pixels, RECIPE)
        label = -1 if self.table.labels is None else int(self.table.labels[row])
        return {"image": image, "label": label, "captions": captions}

    def captions(self, position):
        found = self.table.captions[self.rows[position]]
        if not found:
            raise ValueError("it has no text")
        return found

    def name(self, position):
        row = self.rows[position]
        return f"{self.table.path} line {self.table.lines[row]} ({self.table.names[row]})"


def open_table(place, recipe, cache_dir=None):
    """The Opened of a tab-separated file with a header, without quoting, whose lines name pictures.

    A picture is looked for, by its column and PairData.image_suffix, in each of PairData.images: zip files, which are
    never unpacked, or folders, by their paths from the table's folder on; without any, in the zip of the table's name,
    or else in its folder. A line makes a pair with each that has its picture, and one that no place has is broken.

    Whole groups of lines are held out, those of PairData.group's smallest hashes, else those of one picture's name: as
    'valid'. With PairData.test_images, whose pictures nobody trains on, 'test' is what these show of the training
    groups, and 'test_unseen' of the groups held out. PairData.split, if set, is the column that says train, valid or
    test instead.
    """
    path = expand(place)
    if not path.is_file():
        raise UserError(f"tsv:{place}: no such file")
    header, rows, lines = _read_table(path, recipe)
    column = {name: k for k, name in enumerate(header)}
    cells = lambda name: [row[column[name]] for row in rows]
    names = tuple(_safe(cell, path, line) + recipe.image_suffix for cell, line in zip(cells(recipe.image), lines))
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
    table = Table(str(path), np.array(lines), names, captions, labels)
    split_of = _table_splits(cells(recipe.group) if recipe.group else names, recipe, cells, path)

    files, found, stamps = _table_files(path, recipe, names)
    trained, tested = found[: len(found) - len(recipe.test_images)], found[len(found) - len(recipe.test_images) :]
    nowhere = ~np.any(found, axis=0)
    notes = _table_problems(table, nowhere, recipe, files)
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
                recipe.valid, recipe.images, recipe.test_images)  # fmt: skip
    content = hashlib.sha256(path.read_bytes()).hexdigest()
    return Opened(splits, classes, digest([content, settings, *stamps]), notes)


def _read_table(path, recipe):
    """(header, rows, line numbers)."""
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start}): save it as that") from None
    numbered = [(n, line.split("\t")) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    if len(numbered) < 2:
        what = "has a header and no lines" if numbered else "is empty"
        raise UserError(f"{path} {what}: it wants a header and a line for each pair, with tabs between the columns")
    header = numbered[0][1]
    settings = [("image", recipe.image), *(("text", name) for name in names_in(recipe.text))]
    settings += [(s, getattr(recipe, s)) for s in ("label", "group", "split") if getattr(recipe, s)]
    for setting, name in settings:
        if name not in header:
            raise UserError(f"{path} has no column {name!r}, only {', '.join(header)}: choose with PairData.{setting}")
        if header.count(name) > 1:
            raise UserError(f"{path} has {header.count(name)} columns {name!r}: give each a name of its own")
    for n, row in numbered[1:]:
        if len(row) != len(header):
            raise UserError(f"{path} line {n} has {len(row)} columns and the header {len(header)}: mend that line")
    return header, [row for _, row in numbered[1:]], [n for n, _ in numbered[1:]]


def _safe(name, path, line):
    if name.startswith(("/", "\\")) or ".." in pathlib.PurePosixPath(name.replace("\\", "/")).parts:
        raise UserError(f"{path} line {line}: the picture {name!r} lies outside of PairData.images: mend that line")
    return name


def _table_splits(groups, recipe, cells, path):
    """[rows] of str: the split of each line."""
    if recipe.split:
        values = cells(recipe.split)
        for value in set(values):
            choose(f"split in the column {recipe.split} of {path}", value, _SPLITS)
        found = np.array([_SPLITS[value] for value in values])
        if "train" not in found:
            raise UserError(f"{path}: the column {recipe.split} says train in no line: add some, or leave it out")
        if "valid" in found:
            return found
    else:
        found = np.full(len(groups), "train", dtype="U5")
    groups, rows = np.array(groups), np.flatnonzero(found == "train")
    found[rows[held_out(keys_of(groups[rows]), recipe.valid, path)]] = "valid"
    return found


def _table_files(path, recipe, names):
    """(files, bool [files, rows]: which has whose picture, lines that change with the pictures)."""
    places = [path.parent / expand(place) for place in (*recipe.images, *recipe.test_images)]
    if not recipe.images:
        own = path.with_suffix(".zip")
        places.insert(0, own if own.is_file() else path.parent)
    files, found, stamps = [], [], []
    for place in places:
        if place.is_dir():
            one = Folder(str(place))
        elif zipfile.is_zipfile(place):
            one = Archive(str(place), recipe.max_pixels, RECIPE)
        else:
            what = "neither a folder nor a whole zip file" if place.exists() else "not there"
            raise UserError(f"{place} of PairData.images is {what}: name the zip file or folder of the pictures")
        listed = dict(one.list()[0])
        stamps += [place.name, *(f"{name} {listed[name]}" for name in names if name in listed)]
        files.append(one)
        found.append(np.array([name in listed for name in names]))
        if not found[-1].any():
            pictures = [name for name in listed if is_picture(name)]
            raise UserError(
                f"{place} has the picture of no line, such as {names[0]!r}; it holds {', '.join(pictures[:2])}"
                ": set PairData.image and PairData.image_suffix so that they give such names"
            )
    return tuple(files), np.array(found), stamps


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
    return TablePairs(table, files, rows[order], places[order], _reading(recipe))


# ----------------------------------------------------------------------------------------------------------------- tfds


@dataclasses.dataclass
class TfdsPairs(TfdsSource):
    """Records of a prepared TensorFlow data set with a picture and captions. text, separator: see `captions_of`."""

    text: tuple[str, ...]
    separator: str

    def __getitem__(self, position):
        record, reading = self.parsed(position), self.reading
        raw = record[reading.image_field]
        image = decode(raw, self.name(position), reading.channels, reading.max_pixels, RECIPE)
        label = int(record[reading.label_field]) if reading.labels else -1
        return {"image": image, "label": label, "captions": self._captions(record)}

    def captions(self, position):
        return self._captions(self.parsed(position))

    def _captions(self, record):
        return captions_of(record, self.text, self.separator)


def _open_tfds(place, recipe, cache_dir):
    features = sorted(tfds.builder(place).info.features)
    for setting, names in (("image", [recipe.image]), ("label", [recipe.label]), ("text", names_in(recipe.text))):
        if lacking := [name for name in names if name and name not in features]:
            only = f"has no feature {lacking[0]!r}, only {', '.join(features)}"
            raise UserError(f"tfds:{place} {only}: choose with PairData.{setting}")
    labels = {"labels": bool(recipe.label), "label_field": recipe.label or "label"}
    opened = open_source(f"tfds:{place}", _reading(recipe, image_field=recipe.image, **labels))
    splits = {
        split: TfdsPairs(base.data, base.shards, base.reading, recipe.text, recipe.separator)
        for split, base in opened.splits.items()
    }
    return Opened(splits, opened.classes, digest([opened.digest, recipe.text, recipe.separator]))


_OPENERS = {"shapes": _open_shapes, "tsv": open_table, "wds": open_tars, "tfds": _open_tfds}
