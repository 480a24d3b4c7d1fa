"""Where pairs of a picture and captions come from: a source's name becomes splits, and each gives its records.

    shapes            scenes that a program draws (see vision/synthetic_scenes.py), each with its caption
    tsv:FILE          lines of a table, pictures in zip files or folders beside it (see tables.py); csv:FILE the same,
                      also objects of JSON, Parquet and Arrow, and COCO's captions (see listed.py)
    parquet:PATH      Parquet or Arrow files with a column of pictures, one or those of a folder (vision/embedded.py)
    beside:PATH       pictures in a folder, zip or tar, each with a .txt or .caption of its name beside
    wds:PATTERN       WebDataset tar files (see webdataset.py): a file, a folder of them, a glob, or x-{000..127}.tar
    tfds:NAME         a prepared TensorFlow data set such as coco_captions (or its directory), read without TensorFlow
    PATH              one of these, by what is there

A record is {"image": uint8 [h, w, C], "label": int, -1 for none, "captions": tuple of str}; a source also gives
`captions(position)` alone and `name(position)`. The first two raise for a pair that is broken. `read_labels()` gives
int [n], the label of each, or None where there are none. Sources can be pickled: files are opened by whichever process
reads them.
"""

import dataclasses
import os
import tarfile
import zipfile
from typing import Any

import numpy as np

from multimodal.fields import PAIR, RECIPE, TEXT, captions_of, complete, held_out, names_in
from multimodal.listed import is_listed
from multimodal.tables import (
    TABLES,
    open_beside,
    open_columns,
    open_table,
    reading_of,
    tables_in,
    tables_of_splits,
)
from multimodal.two_scenes import CLASSES, TwoScenes
from multimodal.webdataset import open_tars
from paradigm import tfds
from paradigm.dataset import mix64
from paradigm.errors import UserError, choose
from paradigm.names import few
from paradigm.records import Subset
from paradigm.storage import expand, here
from t5like.files import unpacked_ending
from vision.decode_image import decode
from vision.embedded import files_in, is_embedded
from vision.reading import Opened, digest
from vision.sources import TfdsSource, open_source
from vision.synthetic_scenes import COLOURS, SHAPES

_READ_BY = {  # settings of a PairData that are not of every kind of source: the kinds that read them
    "separator": "tsv csv parquet beside wds tfds",
    **dict.fromkeys(("image_suffix", "second", "images", "test_images"), "tsv csv"),
    "image": "tsv csv parquet beside tfds",
    "label": "shapes tsv csv parquet beside tfds",
    **dict.fromkeys(("group", "split"), "tsv csv parquet beside"),
    **dict.fromkeys(("classes", "valid_glob"), "wds"),
    "valid": "tsv csv parquet beside wds tfds",
}
TRUTH = "truth"  # the label of shapes that says whether a sentence is true of two scenes
_FORMS = (
    "pairs are read from tables (.tsv, .csv, .jsonl, .json, .parquet), WebDataset .tar files, tfds directories, "
    "Parquet with pictures in it, and pictures with a .txt of their name beside"
)


def open_pairs(recipe, cache_dir=None):
    """The Opened of a PairData's source (see the top of this file). cache_dir: where an index of tar files is kept.

    Raises UserError, naming the place, if there is nothing to read, or not what the name says.
    """
    kind, _, place = recipe.source.partition(":")
    if kind not in _OPENERS and (os.sep in recipe.source or expand(recipe.source).exists()):
        kind, place = _guess(recipe.source)
    opener = choose("source of pairs", kind, _OPENERS)
    unread = list(_unread(recipe, kind))
    if unread and (kind != "shapes" or "second" in unread):
        given = " and ".join(f"PairData.{name}={getattr(recipe, name)!r}" for name in unread)
        if len(unread) > 1:
            raise UserError(f"{given} say nothing of {kind}: leave them out, or set them to what PairData has")
        raise UserError(f"{given} says nothing of {kind}, only of {few(_READ_BY[unread[0]].split())}: leave it out")
    if (kind == "shapes") == bool(place):
        fix = "nothing comes after shapes" if place else f"it names no place: write {kind}:PATH"
        raise UserError(f"PairData.source={recipe.source!r}: {fix}")
    try:
        opened = opener(place, recipe, cache_dir)
    except OSError as error:
        raise UserError(f"{recipe.source}: {error.filename} cannot be read ({error.strerror})") from error
    if unread:  # shapes stand in for the files of any run
        opened = dataclasses.replace(opened, note=f"{opened.note}; not read: {', '.join(unread)}".removeprefix("; "))
    return opened


def _unread(recipe, kind):
    """Names of settings that say nothing of a kind of source."""
    for setting, kinds in _READ_BY.items():
        value, default = getattr(recipe, setting), getattr(type(recipe), setting)
        if value != default and kind not in kinds.split() and (setting, value, kind) != ("label", PAIR, "wds"):
            yield setting


def _guess(source):
    """(kind, place) of what lies at a path. Raises UserError where it is nothing that is known, or several things."""
    path = here(source)
    if not source.strip():
        raise UserError(f"PairData.source is empty: {_FORMS}")
    tars = next(path.rglob("*.tar"), None) if path.is_dir() else None
    if not tars and path.exists() and files_in(path) and is_embedded(path):
        if path.is_dir() and (other := next((p for p in path.rglob("*") if p.suffix in TABLES), None)):
            found = [*files_in(path), other.name]
            raise UserError(f"PairData.source={source!r} holds {few(found, 4)}: name the one to read")
        return "parquet", source
    if path.is_file() and (unpacked_ending(path.name) in (*TABLES, ".txt") or is_listed(path)):
        return "tsv", source
    if path.is_file() and zipfile.is_zipfile(path):
        return "beside", source
    if path.is_dir() and not (path / "dataset_info.json").exists():
        tables = tables_in(path)
        found = [p.name for p in (*tables, tars) if p is not None]
        if tables and len(found) > 1 and (tars or not tables_of_splits(path)):
            fix = "name the one to read" + f", or write wds:{source} for the tar files" * bool(tars)
            raise UserError(f"PairData.source={source!r} holds {few(found, 4)}: {fix}")
        if not found:
            return "beside", source
        return ("tsv", str(tables[0]) if len(tables) == 1 else source) if tables else ("wds", source)
    if path.is_dir():
        return "tfds", source
    if path.is_file() and path.suffix != ".tar" and not tarfile.is_tarfile(path):
        raise UserError(f"PairData.source={source!r} is of no known form: {_FORMS}")
    if not path.exists() and "{" not in path.name and "*" not in path.name:
        raise UserError(f"PairData.source={source!r}: no such file or directory (a source without files: shapes)")
    return "wds", source


# --------------------------------------------------------------------------------------------------------------- shapes


@dataclasses.dataclass
class ShapesPairs:
    """Scenes of the generator and their captions. pairs: whether the label names colour and shape, or Shapes.label.
    text: see `captions_of`, of the fields `caption` and `class`, the largest object's colour and shape."""

    scenes: Any
    pairs: bool
    text: tuple[str, ...]

    def __len__(self):
        return len(self.scenes)

    def __getitem__(self, position):
        record = self.scenes[position]
        if self.pairs:
            record["label"] = _pair_of(record["labels"])
        captions = self._captions(record["caption"], record["labels"])
        return {"image": record["image"], "label": record["label"], "captions": captions}

    def captions(self, position):
        scene = self._scene(position)
        return self._captions(scene.caption, scene.labels)

    def read_labels(self):
        number = _pair_of if self.pairs else lambda labels: labels[self.scenes.shapes.label]
        return np.array([number(self._scene(position).labels) for position in range(len(self))], np.int32)

    def _scene(self, position):
        return self.scenes.shapes.scene(self.scenes.start + position)

    def _captions(self, caption, labels):
        named = f"{list(COLOURS)[labels['colour']]} {SHAPES[labels['shape']]}"
        return captions_of({"caption": caption, "class": named}, self.text)

    def name(self, position):
        return self.scenes.name(position)


def _pair_of(labels):
    """The number of a colour and a shape among all pairs of them."""
    return labels["colour"] * len(SHAPES) + labels["shape"]


def _open_shapes(place, recipe, cache_dir):
    choose("label of shapes", recipe.label, {"": 1, PAIR: 1, TRUTH: 1})
    if recipe.label == TRUTH:
        opened = open_source("shapes", reading_of(recipe))
        splits = {name: TwoScenes(scenes) for name, scenes in opened.splits.items()}
        return Opened(splits, CLASSES, digest([opened.digest, TRUTH]))
    for name in names_in(recipe.text):
        choose("text of shapes", name, {"caption": 1, "class": 1})
    opened = open_source("shapes", reading_of(recipe))
    pairs = recipe.label == PAIR
    splits = {name: ShapesPairs(scenes, pairs, recipe.text) for name, scenes in opened.splits.items()}
    classes = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES) if pairs else opened.classes
    own = [] if recipe.text == TEXT else recipe.text
    return Opened(splits, classes, digest([opened.digest, pairs, *own]))


# ----------------------------------------------------------------------------------------------------------------- tfds


@dataclasses.dataclass
class TfdsPairs(TfdsSource):
    """Records of a prepared TensorFlow data set with a picture and captions. text, separator: see `captions_of`."""

    text: tuple[str, ...]
    separator: str

    def __getitem__(self, position):
        record, reading = self.parsed(position), self.reading
        raw = record[reading.image_field]
        image = decode(raw, reading.channels, reading.max_pixels, RECIPE)
        label = int(record[reading.label_field]) if reading.labels else -1
        return {"image": image, "label": label, "captions": self._captions(record)}

    def captions(self, position):
        return self._captions(self.parsed(position))

    def _captions(self, record):
        return captions_of(record, self.text, self.separator)


class Pairs(Subset):
    """Some pairs of a source, a source of pairs itself."""

    def captions(self, position):
        return self.source.captions(int(self.positions[position]))

    def read_labels(self):
        labels = self.source.read_labels()
        return None if labels is None else labels[self.positions]


def _open_tfds(place, recipe, cache_dir):
    features = sorted(tfds.builder(place).info.features)
    recipe = dataclasses.replace(complete(recipe, features), split=recipe.split)
    for setting, names in (("image", [recipe.image]), ("label", [recipe.label]), ("text", names_in(recipe.text))):
        if lacking := [name for name in names if name and name not in features]:
            only = f"has no feature {lacking[0]!r}, only {', '.join(features)}"
            raise UserError(f"tfds:{place} {only}: choose with PairData.{setting}")
    labels = {"labels": bool(recipe.label), "label_field": recipe.label or "label"}
    opened = open_source(f"tfds:{place}", reading_of(recipe, image_field=recipe.image, **labels))
    splits = {
        split: TfdsPairs(base.data, base.shards, base.reading, recipe.text, recipe.separator)
        for split, base in opened.splits.items()
    }
    how = []
    if "valid" not in splits:
        train, how = splits["train"], [recipe.valid]
        held = held_out(mix64(np.arange(len(train))), recipe.valid, f"tfds:{place}")
        splits["train"], splits["valid"] = (Pairs(train, np.flatnonzero(mask)) for mask in (~held, held))
    used = {recipe.image, recipe.label, *names_in(recipe.text)}
    rest = [name for name in features if name not in used]
    note = f"captions from {', '.join(recipe.text)}" + (rest and f"; features left out: {few(rest)}" or "")
    note = "; ".join(filter(None, (opened.note, note)))
    return Opened(splits, opened.classes, digest([opened.digest, recipe.text, recipe.separator, *how]), note)


_OPENERS = {
    "shapes": _open_shapes,
    "tsv": open_table,
    "csv": open_table,
    "parquet": open_columns,
    "beside": open_beside,
    "wds": open_tars,
    "tfds": _open_tfds,
}
