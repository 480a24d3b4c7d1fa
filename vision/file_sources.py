"""Pictures that are files, in folders, archives or cells of a table: their splits, their classes and a first look."""

import collections
import dataclasses
import os
import zipfile
from typing import Any

import numpy as np

from paradigm.classes import check_classes
from paradigm.errors import UserError
from paradigm.names import SPLITS, few, kind_of, left_out
from paradigm.records import keys_of
from paradigm.storage import expand
from vision.arrange import arrange, maps_of
from vision.decode_image import UNREAD, class_map, mode, suffixes
from vision.embedded import open_embedded, splits_of_rows
from vision.files import Archive, Folder, Tar, is_picture, kinds_left_out, sample_of, spread
from vision.reading import Opened, Reading, checked, decoded, digest, reason_of

SURVEYED = 64  # pictures of each split of a folder that are looked at when it is opened


@dataclasses.dataclass
class FileSource:
    """Picture files of a Folder or an Archive. labels: int32 [N], or None. maps: {name: that of its map of classes}."""

    files: Any
    names: list[str]
    labels: np.ndarray | None
    reading: Reading
    maps: dict = dataclasses.field(default_factory=dict)

    def __len__(self):
        return len(self.names)

    def __getitem__(self, position):
        name = self.names[position]
        label = -1 if self.labels is None else int(self.labels[position])
        record = {"image": decoded(lambda: self.files.read(name), self.name(position), self.reading), "label": label}
        if self.maps:
            place, size = self.files.place(self.maps[name]), record["image"].shape[:2]
            record["regions"] = checked(lambda: class_map(self.files.read(self.maps[name]), size), place, self.reading)
        return record

    def name(self, position):
        return self.files.place(self.names[position])

    def keys(self):
        """uint64 [N]: hashes of the names, by which some are held out."""
        return keys_of(self.names)


def open_folder(place, reading):
    root = expand(place)
    if not root.is_dir():
        raise UserError(f"folder:{place}: no such directory")
    return _open_files(Folder(str(root)), reading)


def open_zip(place, reading):
    path = expand(place)
    if not path.is_file():
        raise UserError(f"zip:{place}: no such file")
    try:
        return _open_files(Archive(str(path), reading.max_pixels), reading)
    except zipfile.BadZipFile as error:
        raise UserError(f"{path} cannot be read as a zip archive ({error}): pack or fetch it again") from error


def open_tar(place, reading):
    path = expand(place)
    if not path.is_file():
        raise UserError(f"tar:{place}: no such file")
    return _open_files(Tar(str(path), reading.max_pixels), reading)


def _open_files(files, reading):
    rows, without = files.list()
    stamps = {name: stamp for name, stamp in rows if is_picture(name)}
    without += kinds_left_out(name for name, _ in rows)
    if not stamps:
        kinds = sorted({kind_of(name) for name, _ in rows})
        raise UserError(
            f"{files.root} holds no pictures ({' '.join(suffixes())}); it holds {' '.join(kinds[:8]) or 'nothing'}"
            f"{_unread(kinds)}{_packed(kinds)}"
        )
    maps, alone = maps_of(stamps, reading.regions, files.root) if reading.regions else ({}, [])
    pictures = list(maps) if reading.regions else list(stamps)
    found = arrange(pictures, files.root, reading.labels and not reading.regions)
    classes = sorted({label for rows in found.splits.values() for _, label in rows if label is not None})
    places = {name: k for k, name in enumerate(classes)}
    splits = {}
    for split, rows in found.splits.items():
        names = [name for name, _ in rows]
        labels = np.array([places[label] for _, label in rows], np.int32) if rows[0][1] is not None else None
        splits[split] = FileSource(files, names, labels, reading, {name: maps[name] for name in names} if maps else {})
    lines = [f"{split} {name} {label} {stamps[name]}" for split, rows in found.splits.items() for name, label in rows]
    names = sorted(name for rows in found.splits.values() for name, _ in rows)
    lines += [f"{name} {maps[name]} {stamps[maps[name]]}" for name in names if maps]
    notes = [
        found.note,
        *alone,
        left_out(without) + _unread(without),
        *(survey(split, s) for split, s in splits.items()),
    ]
    return Opened(
        splits, tuple(classes) or None, digest([*lines, *files.sample(names)]), "; ".join(filter(None, notes))
    )


def _unread(kinds):
    """What to do about pictures that Pillow cannot read as it is installed."""
    kind = next((kind for kind in kinds if kind in UNREAD), None)
    return f" ({kind} needs {UNREAD[kind]})" if kind else ""


def _packed(kinds):
    """What to do about containers in a container."""
    found = [kind for kind in kinds if kind in (".zip", ".tar", ".tgz", ".gz", ".npz")]
    return f": name the {found[0]} itself, or unpack it" if found else ""


def survey(split, source):
    """What a look at some of the pictures' headers finds that is not of the wanted channels; "" if nothing.

    Raises UserError if none of them is a picture, whatever their names say.
    """
    modes, broken = collections.Counter(), []
    places = spread(len(source), SURVEYED)
    for place in places:
        try:
            modes[mode(source.files.read(source.names[place]))] += 1
        except Exception as error:  # when it is read, this is said in full
            broken.append(f"{source.name(place)} ({reason_of(error)})")
    if len(broken) == len(places):
        raise UserError(
            f"{source.files.root}: none of {len(places)} pictures looked at can be read, such as {broken[0]}: fetch "
            "or pack them again"
        )
    channels = source.reading.channels
    others = [f"{n} {name}" for name, n in sorted(modes.items()) if name != {1: "L", 3: "RGB"}[channels]]
    others = others if split == "train" else []
    others += [f"{len(broken)} broken"] if broken else []
    if not others:
        return ""
    of = "" if split == "train" else f" of {split}"
    read = f"; all are read with {channels} channels" if split == "train" else ""
    return f"of {len(places)} looked at{of} {', '.join(others)}{read}"


def open_parquet(place, reading):
    path = expand(place)
    if not path.exists():
        raise UserError(f"parquet:{place}: no such file or directory")
    files = open_embedded(path, reading.image_field, "ImageData.image_field", reading.max_pixels)
    split_by, said = splits_of_rows(files)
    names = {s: [f"{f}#{k}" for f, own in split_by.items() for k, o in enumerate(own) if o == s] for s in SPLITS}
    found, classes, field = _labels_of(files, reading)
    splits = {}
    for split, own in names.items():
        labels = None if found is None else np.array([found[name] for name in own], np.int32)
        if own:
            splits[split] = FileSource(files, own, labels, reading)
    if "train" not in splits:
        raise UserError(f"{path}: its column of splits says train in no record: add some, or leave it out")
    table = files.table(next(iter(files.files)))
    rest = [n for n in table.fields if n not in (files.column, field) and f"splits from {n}" != said]
    notes = [f"pictures from {files.column}", f"classes from {field}: {few(classes)}" if field else "", said]
    odd = sum(own.count(None) for own in split_by.values())
    notes += [f"{odd:,} whose split is no train, valid or test left out"] * bool(odd)
    notes += [f"columns left out: {few(rest)}"] * bool(rest) + [survey(split, s) for split, s in splits.items()]
    lines = [f"{name} {os.path.getsize(p)} {sample_of(p)}" for name, p in files.files.items()]
    lines += [files.column, field, said]
    return Opened(splits, classes or None, digest(lines), "; ".join(filter(None, notes)))


def _labels_of(files, reading):
    """({picture: number of its class, -1 for none}, classes, their column) of Parquet files; (None, (), "") without."""
    tables = {file: files.table(file) for file in files.files}
    first, field = next(iter(tables.values())), reading.label_field
    if not reading.labels or (field not in first.fields and field == Reading.label_field):
        return None, (), ""
    fix = "choose with ImageData.label_field, or set ImageData.labels = False"
    if field not in first.fields:
        raise UserError(f"{files.root} has no column {field!r}, only {few(first.fields)}: {fix}")
    values = {f"{file}#{k}": v for file, table in tables.items() for k, v in enumerate(table.values(field))}
    where = f"{files.root}: the column {field!r}"
    if wrong := next((v for v in values.values() if not isinstance(v, (str, int, float, type(None)))), None):
        raise UserError(f"{where} holds a {type(wrong).__name__}, such as {str(wrong)[:40]}, which is no class: {fix}")
    whole = lambda v: int(v) if isinstance(v, float) and v.is_integer() else v
    values = {name: None if v in (None, "", -1) else whole(v) for name, v in values.items()}
    there = sorted(set(values.values()) - {None}, key=lambda v: (isinstance(v, str), v))
    names = first.names.get(field) or reading.classes
    if not names:
        check_classes(there, sum(v is not None for v in values.values()), where, fix)
    if reading.classes and any(isinstance(v, str) for v in there):
        raise UserError(f"ImageData.classes names numbered labels, and {where} has names of its own")
    if reading.classes and (more := next((v for v in there if v >= len(names)), None)):
        raise UserError(f"ImageData.classes names {len(names)} classes and {where} has number {more}: name all")
    number = {v: k for k, v in enumerate(first.names.get(field) or (range(len(names)) if names else there))}
    return {name: number.get(v, -1) for name, v in values.items()}, tuple(map(str, names or there)), field
