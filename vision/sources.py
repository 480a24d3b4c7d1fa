"""Where pictures come from: a source's name becomes its splits, and each split gives its records one by one.

    digits            scikit-learn's 1,797 handwritten digits, 8x8, grey
    shapes            scenes that a program draws (see synthetic_scenes.py)
    idx:DIR           MNIST's format: train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-..., also with .gz
    npz:FILE          x_train y_train x_test y_test (x_valid y_valid), or train_images train_labels ..., or images
                      labels: uint8 [N, h, w] or [N, h, w, C], and integers [N]
    folder:DIR        DIR/train/CLASS/*.jpg with DIR/{valid,test}/CLASS/*.jpg, or DIR/CLASS/*.jpg, or pictures without
                      classes; zip:FILE the same inside an archive, which is never unpacked
    tfds:NAME         a prepared TensorFlow data set of ArrayRecord files (or its directory), read without TensorFlow
    PATH              one of these, by what is there

A record is {"image": uint8 [h, w, channels], "label": int, -1 for none} (shapes add more). Sources can be pickled:
files are opened by whichever process reads them.
"""

import collections
import dataclasses
import hashlib
import os
import pathlib
import re
import zipfile
from typing import Any

import numpy as np

from paradigm import tfds
from paradigm.errors import UserError, choose
from paradigm.records import Shards, keys_of
from paradigm.storage import expand
from vision import array_sources
from vision.decode_image import MAX_PIXELS, decode, mode, to_channels
from vision.synthetic_scenes import Shapes

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
SURVEYED = 64  # pictures of a folder that are looked at when it is opened
_SPLITS = {  # folders -> splits
    "train": ("train", "training"),
    "valid": ("valid", "validation", "val"),
    "test": ("test", "testing"),
}
_SPLIT_OF = {folder: split for split, folders in _SPLITS.items() for folder in folders}


@dataclasses.dataclass(frozen=True)
class Reading:
    """How records are read; the fields of vision.data.ImageData of the same names."""

    channels: int = 3
    on_broken: str = "replace"
    max_pixels: int = MAX_PIXELS
    labels: bool = True
    classes: tuple[str, ...] = ()
    image_field: str = "image"
    label_field: str = "label"
    shapes: Shapes = Shapes()


@dataclasses.dataclass(frozen=True)
class Opened:
    """What a source's name stands for. splits: those of train, valid and test that it brings. classes: or None.

    digest: changes with the contents. note: what a person should know.
    """

    splits: dict[str, Any]
    classes: tuple[str, ...] | None
    digest: str
    note: str = ""


def open_source(source, reading):
    """The Opened of a source's name (see the top of this file).

    Raises UserError, naming the place, if there is nothing to read, or not what the name says.
    """
    kind, _, place = source.partition(":")
    if kind not in _OPENERS and (os.sep in source or expand(source).exists()):
        kind, place = _guess(expand(source)), source
    opener = choose("image source", kind, _OPENERS)
    if kind in ("digits", "shapes"):
        if place:
            raise UserError(f"image source {source!r}: nothing comes after {kind}; its settings are ImageData's")
    elif not place:
        raise UserError(f"image source {source!r} names no place: write {kind}:{'NAME' if kind == 'tfds' else 'PATH'}")
    if reading.classes and kind not in ("idx", "npz"):
        raise UserError(f"ImageData.classes names numbered labels, of idx and npz; {source} has names of its own")
    try:
        return opener(place, reading)
    except OSError as error:
        raise UserError(f"image source {source}: {error.filename} cannot be read ({error.strerror})") from error


def _guess(path):
    """The kind of what lies at a path."""
    if path.is_dir():
        if (path / "dataset_info.json").exists():
            return "tfds"
        return "idx" if array_sources.idx_file(path, "train-images") else "folder"
    if not path.exists():
        raise UserError(f"image source {path}: no such file or directory (sources without files: digits, shapes)")
    if not zipfile.is_zipfile(path):
        raise UserError(f"image source {path} is neither a folder nor a whole .npz or .zip file")
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    return "npz" if names and all(name.endswith(".npy") for name in names) else "zip"


def _digest(lines):
    digest = hashlib.sha256()
    for line in lines:
        digest.update(f"{line}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:32]


# --------------------------------------------------------------------------------------------------------------- shapes


@dataclasses.dataclass
class ShapesSource:
    """Scenes start, start + 1 ... of the generator."""

    shapes: Shapes
    start: int
    count: int
    reading: Reading

    def __len__(self):
        return self.count

    def __getitem__(self, position):
        record = self.shapes.record(self.start + position)
        record["image"] = to_channels(record["image"], self.reading.channels)
        return record if self.reading.labels else {**record, "label": -1}

    def name(self, position):
        return f"scene {self.start + position} of seed {self.shapes.seed}"


def _open_shapes(place, reading):
    s, valid = reading.shapes, reading.shapes.valid_scenes
    splits = {"train": ShapesSource(s, 0, s.scenes, reading), "valid": ShapesSource(s, s.scenes, valid, reading)}
    if s.exclude:  # what was never seen in training
        unseen = dataclasses.replace(s, exclude=(), only=s.exclude)
        splits["test"] = ShapesSource(unseen, s.scenes + valid, valid, reading)
    return Opened(splits, s.classes if reading.labels else None, _digest(["shapes-1", s]))


# ------------------------------------------------------------------------------------------------- folders and archives


@dataclasses.dataclass(frozen=True)
class Folder:
    """Files below a directory, by their names from there on."""

    root: str

    def read(self, name):
        with open(os.path.join(self.root, name), "rb") as file:
            return file.read()

    def place(self, name):
        return os.path.join(self.root, name)

    def list(self):
        """Sorted (name, what changes with the contents) of every file; hidden ones are left out."""
        seen, found = set(), []
        for folder, folders, files in os.walk(self.root, followlinks=True):
            real = os.path.realpath(folder)
            folders[:] = [] if real in seen else sorted(f for f in folders if not f.startswith("."))
            if real not in seen:  # links may go round in circles
                found += [os.path.join(folder, f) for f in files if not f.startswith(".")]
            seen.add(real)
        stats = [(path, os.stat(path)) for path in found if os.path.isfile(path)]
        rows = [(os.path.relpath(path, self.root), f"{s.st_size} {s.st_mtime_ns}") for path, s in stats]
        return sorted((name.replace(os.sep, "/"), stamp) for name, stamp in rows)


class Archive:
    """Members of a zip file. Each process opens it for itself; nothing is written anywhere.

    max_pixels: of a picture, which bounds the bytes of a member. recipe: the class whose setting that is.
    """

    def __init__(self, root, max_pixels, recipe="ImageData"):
        self.root, self.max_bytes, self.recipe = root, 8 * max_pixels + (1 << 20), recipe
        self._opened = (None, None)  # (process, ZipFile)

    def __getstate__(self):
        return {**self.__dict__, "_opened": (None, None)}

    def _zip(self):
        process, archive = self._opened
        if process != os.getpid():  # a fork shares the file's position with its parent
            archive = zipfile.ZipFile(self.root)
            self._opened = (os.getpid(), archive)
        return archive

    def read(self, name):
        info = self._zip().getinfo(name)
        if info.file_size > self.max_bytes:
            raise UserError(
                f"{self.place(name)} unpacks to {info.file_size:,} bytes, more than any picture of "
                f"{self.recipe}.max_pixels: remove it, or raise that if it is no decompression bomb"
            )
        return self._zip().read(name)

    def place(self, name):
        return f"{self.root} ({name})"

    def list(self):
        infos = [i for i in self._zip().infolist() if not i.is_dir()]
        locked = next((i.filename for i in infos if i.flag_bits & 1), None)
        if locked:
            raise UserError(f"{self.place(locked)} is encrypted: pack the pictures again without a password")
        names = [(i.filename, f"{i.file_size} {i.CRC:08x}") for i in infos]
        return sorted(row for row in names if not any(p.startswith((".", "__MACOSX")) for p in _parts(row[0])))


@dataclasses.dataclass
class FileSource:
    """Picture files of a Folder or an Archive. labels: int32 [N], or None."""

    files: Any
    names: list[str]
    labels: np.ndarray | None
    reading: Reading

    def __len__(self):
        return len(self.names)

    def __getitem__(self, position):
        name = self.names[position]
        label = -1 if self.labels is None else int(self.labels[position])
        return {"image": _decoded(lambda: self.files.read(name), self.name(position), self.reading), "label": label}

    def name(self, position):
        return self.files.place(self.names[position])

    def keys(self):
        """uint64 [N]: hashes of the names, by which some are held out."""
        return keys_of(self.names)


def _decoded(raw, name, reading):
    """The pixels of raw() -> bytes; a broken picture is a UserError if it is to be refused, else a ValueError."""
    try:
        return decode(raw(), name, reading.channels, reading.max_pixels)
    except UserError:
        raise
    except Exception as error:  # decoders raise anything at all
        reason = _reason(error)
        if reading.on_broken == "refuse":
            raise UserError(
                f"{name} is broken ({reason}): mend or remove it, or set ImageData.on_broken = 'replace'"
            ) from error
        raise ValueError(reason) from error


def _open_folder(place, reading):
    root = expand(place)
    if not root.is_dir():
        raise UserError(f"folder:{place}: no such directory")
    return _open_files(Folder(str(root)), reading)


def _open_zip(place, reading):
    path = expand(place)
    if not path.is_file():
        raise UserError(f"zip:{place}: no such file")
    try:
        return _open_files(Archive(str(path), reading.max_pixels), reading)
    except zipfile.BadZipFile as error:
        raise UserError(f"{path} cannot be read as a zip archive ({error}): pack or fetch it again") from error


def _open_files(files, reading):
    rows = files.list()
    stamps = {name: stamp for name, stamp in rows if name.lower().endswith(SUFFIXES)}
    if not stamps:
        kinds = sorted({pathlib.PurePosixPath(name).suffix or name for name, _ in rows})
        raise UserError(
            f"{files.root} holds no pictures ({' '.join(SUFFIXES)}); it holds {' '.join(kinds[:8]) or 'nothing'}"
        )
    found, left_out = arrange(list(stamps), files.root, reading.labels)
    classes = sorted({label for rows in found.values() for _, label in rows if label is not None})
    places = {name: k for k, name in enumerate(classes)}
    splits = {}
    for split, rows in found.items():
        names = [name for name, _ in rows]
        labels = np.array([places[label] for _, label in rows], np.int32) if rows[0][1] is not None else None
        splits[split] = FileSource(files, names, labels, reading)
    lines = (f"{split} {name} {label} {stamps[name]}" for split, rows in found.items() for name, label in rows)
    notes = [f"{left_out:,} outside of train, valid and test are left out"] * bool(left_out)
    notes += [note] if (note := _survey(splits["train"])) else []
    return Opened(splits, tuple(classes) or None, _digest(lines), "; ".join(notes))


def _survey(source):
    """What a look at some of the pictures' headers finds that is not of the wanted channels; "" if nothing.

    Raises UserError if none of them is a picture, whatever their names say.
    """
    modes, broken = collections.Counter(), []
    places = sorted({round(k * (len(source) - 1) / (SURVEYED - 1)) for k in range(SURVEYED)})
    for place in places:
        try:
            modes[mode(source.files.read(source.names[place]))] += 1
        except Exception as error:  # when it is read, this is said in full
            broken.append(f"{source.name(place)} ({_reason(error)})")
    if len(broken) == len(places):
        raise UserError(
            f"{source.files.root}: none of {len(places)} pictures looked at can be read, such as {broken[0]}: fetch "
            "or pack them again"
        )
    channels = source.reading.channels
    others = [f"{n} {name}" for name, n in sorted(modes.items()) if name != {1: "L", 3: "RGB"}[channels]]
    others += [f"{len(broken)} broken"] if broken else []
    return f"of {len(places)} looked at {', '.join(others)}; all are read with {channels} channels" if others else ""


def _reason(error):
    return re.sub(r" <_io\.BytesIO object at \w+>", "", (str(error).splitlines() or [type(error).__name__])[0])


def arrange(names, where, labels=True):
    """({split: [(name, class or None)]}, number left out) of the names of picture files, by their folders.

    Raises UserError if splits differ in their classes, or if some pictures have a class and others not.
    """
    paths = [_parts(name) for name in names]
    tops = {p[0] for p in paths}
    if len(tops) == 1 and any(len(p) > 2 and _SPLIT_OF.get(p[1]) == "train" for p in paths):
        paths = [p[1:] for p in paths]  # an archive of one folder that holds all
        tops = {p[0] for p in paths}
    folders = {p[0] for p in paths if len(p) > 1}
    if not any(_SPLIT_OF.get(f) == "train" for f in folders):
        if folders and all(f in _SPLIT_OF for f in folders):
            raise UserError(f"{where} holds {' and '.join(sorted(folders))} and no folder train: add it, or name one")
        rows = {"train": list(zip(names, paths))}
    else:
        rows = collections.defaultdict(list)
        for name, path in zip(names, paths):
            if len(path) > 1 and path[0] in _SPLIT_OF:
                rows[_SPLIT_OF[path[0]]].append((name, path[1:]))
    found = {s: [(n, p[0] if labels and len(p) > 1 else None) for n, p in part] for s, part in rows.items()}
    for part in found.values():
        without = next((name for name, label in part if label is None), None)
        if without is not None and any(label is not None for _, label in part):
            raise UserError(
                f"{where} has pictures in class folders and others beside them ({without}): move those into a "
                "class, or set ImageData.labels = False"
            )
    classes = {split: {label for _, label in part} - {None} for split, part in found.items()}
    for split, own in classes.items():
        if own and own != classes["train"]:
            only = [f"{', '.join(sorted(more)[:8])} only in {s}" for s, more in
                    (("train", classes["train"] - own), (split, own - classes["train"])) if more]  # fmt: skip
            raise UserError(
                f"{where}: the class folders of train and {split} differ ({'; '.join(only)}): rename or complete "
                "them, or set ImageData.labels = False"
            )
    return found, len(names) - sum(map(len, found.values()))


def _parts(name):
    """The folders and the file of a name; an archive's may begin with ./ or worse, which leads nowhere here."""
    return tuple(part for part in name.split("/") if part not in ("", ".", ".."))


# ----------------------------------------------------------------------------------------------------------------- tfds


@dataclasses.dataclass
class TfdsSource:
    """Records of a prepared TensorFlow data set."""

    data: str
    shards: Shards
    reading: Reading

    def __len__(self):
        return len(self.shards)

    def __getitem__(self, position):
        field, record = self.reading.image_field, {}

        def image():
            record.update(self.parsed(position))
            return record[field]

        pixels = _decoded(image, self.name(position), self.reading)
        return {"image": pixels, "label": int(record[self.reading.label_field]) if self.reading.labels else -1}

    def parsed(self, position):
        """The features of a record; its picture is still the bytes of a file."""
        return tfds.parse(self.data, self.shards[position], self.reading.image_field)

    def name(self, position):
        return self.shards.name(position)


def _open_tfds(place, reading):
    info = tfds.builder(place).info
    features = sorted(info.features)
    wanted = [("image_field", reading.image_field)] + [("label_field", reading.label_field)] * reading.labels
    for setting, field in wanted:
        if field not in features:
            also = "" if setting == "image_field" else ", or set ImageData.labels = False"
            raise UserError(
                f"tfds:{place} has no feature {field!r}, only {', '.join(features)}: choose with "
                f"ImageData.{setting}{also}"
            )
    splits, lines = {}, [info.full_name]
    for split, names in _SPLITS.items():
        name = next((n for n in names if n in info.splits), None)
        if name is None:
            continue
        files = [(os.fspath(p), n) for p, n in zip(info.splits[name].filepaths, info.splits[name].shard_lengths) if n]
        other = next((path for path, _ in files if tfds.is_tfrecord(path)), None)
        if other:
            raise UserError(
                f"{other} is a TFRecord file, which cannot be read in any order: prepare the data again with "
                f"tfds.builder({info.name!r}, file_format='array_record').download_and_prepare()"
            )
        splits[split] = TfdsSource(place, Shards(*map(tuple, zip(*files))), reading)
        stats = [(os.stat(path), path, count) for path, count in files]
        lines += [f"{split} {os.path.basename(p)} {n} {s.st_size} {s.st_mtime_ns}" for s, p, n in stats]
    if "train" not in splits:
        raise UserError(f"tfds:{place} has no train split, only {', '.join(sorted(info.splits))}")
    names = getattr(info.features[reading.label_field], "names", None) if reading.labels else None
    return Opened(splits, tuple(names) if names else None, _digest(lines + wanted))


_OPENERS = {
    "digits": lambda place, reading: Opened(*array_sources.digits(reading)),
    "shapes": _open_shapes,
    "idx": lambda place, reading: Opened(*array_sources.idx(place, reading)),
    "npz": lambda place, reading: Opened(*array_sources.npz(place, reading)),
    "folder": _open_folder,
    "zip": _open_zip,
    "tfds": _open_tfds,
}
