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
    parquet:PATH      Parquet or Arrow files with a column of pictures, one or those of a folder (see embedded.py)
    tfds:NAME         a prepared TensorFlow data set of ArrayRecord files (or its directory), read without TensorFlow
    PATH              one of these, by what is there

A record is {"image": uint8 [h, w, channels], "label": int, -1 for none} (shapes add more). Sources can be pickled:
files are opened by whichever process reads them.
"""

import dataclasses
import os
import zipfile

import numpy as np

from paradigm import tfds
from paradigm.errors import UserError, choose
from paradigm.names import is_hidden, split_of
from paradigm.records import Shards
from paradigm.storage import expand, here
from vision import array_sources, file_sources
from vision.decode_image import to_channels
from vision.embedded import files_in, is_embedded
from vision.files import is_picture, is_tar, sample_of
from vision.reading import Opened, Reading, decoded, digest
from vision.synthetic_scenes import Shapes


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
    for setting in ("image_field", "label_field") if kind not in ("parquet", "tfds") else ():
        if (value := getattr(reading, setting)) != getattr(Reading, setting):
            raise UserError(
                f"ImageData.{setting}={value!r} says nothing of {kind}, only of parquet, tfds: leave it out"
            )
    if reading.classes and kind not in ("idx", "npz", "parquet"):
        raise UserError(
            f"ImageData.classes names numbered labels, of idx, npz and Parquet; {source} has names of its own"
        )
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
        if files_in(path) and is_embedded(path):
            if picture := next((p for p in path.rglob("*") if is_picture(p.name) and not is_hidden(p.name)), None):
                both = f"{picture.relative_to(path)} and pictures in {next(iter(files_in(path)))}"
                raise UserError(f"image source {path} holds {both}: write folder:{path} or parquet:{path}")
            return "parquet"
        if (path / "dataset_info.json").exists():
            return "tfds"
        return "idx" if array_sources.idx_file(path, "train-images") else "folder"
    if not path.exists():
        raise UserError(f"image source {path}: no such file or directory (sources without files: digits, shapes)")
    if files_in(path):
        return "parquet"
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
    return found.get(suffix.lower()) or (inside if suffix.lower() in (".csv", ".json", ".jsonl") else "")


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
    return Opened(splits, s.classes if reading.labels else None, digest(["shapes-1", s]))


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

        pixels = decoded(image, self.name(position), self.reading)
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
    if reading.labels and not getattr(info.features[reading.label_field], "names", None):
        kind = np.dtype(info.features[reading.label_field].np_dtype)
        if not np.issubdtype(kind, np.integer):
            raise UserError(
                f"tfds:{place} has {kind} in {reading.label_field!r}, which is no class: choose with "
                "ImageData.label_field, or set ImageData.labels = False"
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
    return Opened(splits, tuple(names) if names else None, digest(lines + wanted), _said(taken, info))


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
    "folder": file_sources.open_folder,
    "zip": file_sources.open_zip,
    "tar": file_sources.open_tar,
    "parquet": file_sources.open_parquet,
    "tfds": _open_tfds,
}
