"""Where pictures come from: a source's name becomes its splits, and each split gives its records one by one.

    digits            scikit-learn's 1,797 handwritten digits, 8x8, grey
    shapes            scenes that a program draws (see synthetic_scenes.py)
    idx:DIR           MNIST's format: train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-..., also with .gz
    npz:FILE          x_train y_train x_test y_test (x_valid y_valid), or train_images train_labels ..., or images
                      labels, in any case: uint8 [N, h, w] or [N, h, w, C], and integers [N]
    folder:DIR        DIR/train/CLASS/*.jpg with DIR/{valid,test}/CLASS/*.jpg, or DIR/CLASS/*.jpg, or pictures without
                      classes, below any outer folders (see arrange.py); zip:FILE the same inside an archive, which is
                      never unpacked, tar:FILE in a .tar, .tar.{gz,bz2,xz,zst}. Splits may be called by other
                      names in any case (see paradigm/names.py)
    tfds:NAME         a prepared TensorFlow data set of ArrayRecord files (or its directory), read without TensorFlow
    PATH              one of these, by what is there

A record is {"image": uint8 [h, w, channels], "label": int, -1 for none} (shapes add more). Sources can be pickled:
files are opened by whichever process reads them.
"""

import collections
import dataclasses
import hashlib
import os
import re
import zipfile
from typing import Any

import numpy as np

from paradigm import tfds
from paradigm.errors import UserError, choose
from paradigm.names import kind_of, left_out, split_of
from paradigm.records import Shards, keys_of
from paradigm.storage import expand, here
from vision import array_sources
from vision.arrange import arrange, maps_of
from vision.decode_image import MAX_PIXELS, UNREAD, class_map, decode, mode, suffixes, to_channels
from vision.files import Archive, Folder, Tar, is_picture, is_tar, kinds_left_out, sample_of, spread
from vision.synthetic_scenes import Shapes

SURVEYED = 64  # pictures of each split of a folder that are looked at when it is opened


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
    regions: str = ""
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
        kind, place = _guess(here(source)), source
    opener = choose("image source", kind, _OPENERS)
    if kind in ("digits", "shapes"):
        if place:
            raise UserError(f"image source {source!r}: nothing comes after {kind}; its settings are ImageData's")
    elif not place:
        raise UserError(f"image source {source!r} names no place: write {kind}:{'NAME' if kind == 'tfds' else 'PATH'}")
    if reading.classes and kind not in ("idx", "npz"):
        raise UserError(f"ImageData.classes names numbered labels, of idx and npz; {source} has names of its own")
    if reading.regions and kind not in ("folder", "zip", "tar", "shapes"):
        raise UserError(
            f"ImageData.regions: maps of classes are read beside pictures in folders, zips and tars, not in {kind}"
        )
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
        if is_tar(path):
            return "tar"
        raise UserError(
            f"image source {path} is neither a folder nor a whole .npz or .zip file, nor a .tar{_instead(path.suffix)}"
        )
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    return "npz" if names and all(name.endswith(".npy") for name in names) else "zip"


def _instead(suffix):
    """What may be done about a file that is no source of pictures."""
    arrays = ": save its arrays by numpy.savez(FILE, images=..., labels=...)"
    inside = ": write its pictures to files in a folder for each class"
    found = dict.fromkeys((".npy", ".pt", ".pth", ".h5", ".hdf5", ".mat", ".pkl"), arrays)
    return found.get(suffix.lower()) or (inside if suffix.lower() in (".parquet", ".arrow", ".csv", ".json") else "")


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
        record = self.shapes.record(self.start + position, self.reading.regions)
        record["image"] = to_channels(record["image"], self.reading.channels)
        return record if self.reading.labels else {**record, "label": -1}

    def name(self, position):
        return f"scene {self.start + position} of seed {self.shapes.seed}"


def _open_shapes(place, reading):
    s, valid = reading.shapes, reading.shapes.valid_scenes
    if reading.regions:
        choose("ImageData.regions of shapes", reading.regions, {"shape": 1, "colour": 1})
    splits = {"train": ShapesSource(s, 0, s.scenes, reading), "valid": ShapesSource(s, s.scenes, valid, reading)}
    if s.exclude:  # what was never seen in training
        unseen = dataclasses.replace(s, exclude=(), only=s.exclude)
        splits["test"] = ShapesSource(unseen, s.scenes + valid, valid, reading)
    return Opened(splits, s.classes if reading.labels else None, _digest(["shapes-1", s]))


# ------------------------------------------------------------------------------------------------- folders and archives


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
        record = {"image": _decoded(lambda: self.files.read(name), self.name(position), self.reading), "label": label}
        if self.maps:
            place, size = self.files.place(self.maps[name]), record["image"].shape[:2]
            record["regions"] = _checked(lambda: class_map(self.files.read(self.maps[name]), size), place, self.reading)
        return record

    def name(self, position):
        return self.files.place(self.names[position])

    def keys(self):
        """uint64 [N]: hashes of the names, by which some are held out."""
        return keys_of(self.names)


def _decoded(raw, name, reading):
    """The pixels of raw() -> bytes; a broken picture is a UserError if it is to be refused, else a ValueError."""
    return _checked(lambda: decode(raw(), name, reading.channels, reading.max_pixels), name, reading)


def _checked(made, name, reading):
    """made(), whose errors say what is broken."""
    try:
        return made()
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


def _open_tar(place, reading):
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
        *(_survey(split, s) for split, s in splits.items()),
    ]
    return Opened(
        splits, tuple(classes) or None, _digest([*lines, *files.sample(names)]), "; ".join(filter(None, notes))
    )


def _unread(kinds):
    """What to do about pictures that Pillow cannot read as it is installed."""
    kind = next((kind for kind in kinds if kind in UNREAD), None)
    return f" ({kind} needs {UNREAD[kind]})" if kind else ""


def _packed(kinds):
    """What to do about containers in a container."""
    found = [kind for kind in kinds if kind in (".zip", ".tar", ".tgz", ".gz", ".npz")]
    return f": name the {found[0]} itself, or unpack it" if found else ""


def _survey(split, source):
    """What a look at some of the pictures' headers finds that is not of the wanted channels; "" if nothing.

    Raises UserError if none of them is a picture, whatever their names say.
    """
    modes, broken = collections.Counter(), []
    places = spread(len(source), SURVEYED)
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
    others = others if split == "train" else []
    others += [f"{len(broken)} broken"] if broken else []
    if not others:
        return ""
    of = "" if split == "train" else f" of {split}"
    read = f"; all are read with {channels} channels" if split == "train" else ""
    return f"of {len(places)} looked at{of} {', '.join(others)}{read}"


def _reason(error):
    return re.sub(r" <_io\.BytesIO object at \w+>", "", (str(error).splitlines() or [type(error).__name__])[0])


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

    def read_labels(self):
        """int32 [n], or None: every record is read for it, no picture is decoded."""
        if not self.reading.labels:
            return None
        return np.array([self.parsed(i)[self.reading.label_field] for i in range(len(self))], np.int32)

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
    splits, lines, taken = {}, [info.full_name], tfds_splits(place, info)
    for split, name in taken.items():
        files = [(os.fspath(p), n) for p, n in zip(info.splits[name].filepaths, info.splits[name].shard_lengths) if n]
        other = next((path for path, _ in files if tfds.is_tfrecord(path)), None)
        if other:
            raise UserError(
                f"{other} is a TFRecord file, which cannot be read in any order: prepare the data again with "
                f"tfds.builder({info.name!r}, file_format='array_record').download_and_prepare()"
            )
        splits[split] = TfdsSource(place, Shards(*map(tuple, zip(*files))), reading)
        lines += [f"{split} {os.path.basename(p)} {n} {os.stat(p).st_size} {sample_of(p)}" for p, n in files]
    names = getattr(info.features[reading.label_field], "names", None) if reading.labels else None
    return Opened(splits, tuple(names) if names else None, _digest(lines + wanted), _said(taken, info))


def tfds_splits(place, info):
    """{split: the data set's name of it}. Raises UserError if there is no train, or two names for one."""
    found = {split: [name for name in info.splits if split_of(name) == split] for split in ("train", "valid", "test")}
    for split, names in found.items():
        if len(names) > 1:
            raise UserError(f"tfds:{place} has {' and '.join(names)}, which both say {split}: prepare it with one")
    if not found["train"]:
        raise UserError(f"tfds:{place} has no train split, only {', '.join(sorted(info.splits))}")
    return {split: names[0] for split, names in found.items() if names}


def _said(taken, info):
    """Which splits are taken under another name, and which are left out."""
    notes = [f"split {name} is {split}" for split, name in taken.items() if name != split]
    rest = sorted(set(info.splits) - set(taken.values()))
    return "; ".join(notes + [f"splits left out: {', '.join(rest)}"] * bool(rest))


_OPENERS = {
    "digits": lambda place, reading: Opened(*array_sources.digits(reading)),
    "shapes": _open_shapes,
    "idx": lambda place, reading: Opened(*array_sources.idx(place, reading)),
    "npz": lambda place, reading: Opened(*array_sources.npz(place, reading)),
    "folder": _open_folder,
    "zip": _open_zip,
    "tar": _open_tar,
    "tfds": _open_tfds,
}
