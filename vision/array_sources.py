"""Pictures that come as arrays: MNIST's idx files, numpy's npz, and scikit-learn's digits."""

import collections
import dataclasses
import functools
import gzip
import hashlib
import math
import os
import re
import struct
import zipfile
import zlib
from typing import Any

import numpy as np

from paradigm.classes import check_classes
from paradigm.dataset import mix64
from paradigm.errors import UserError
from paradigm.names import few, split_of
from paradigm.storage import expand
from vision.decode_image import to_channels

_IDX_SPLITS = {"train": "train", "test": "t10k"}
_NPZ_WORDS = {"x": "pictures", "images": "pictures", "image": "pictures", "data": "pictures",
              "y": "labels", "labels": "labels", "label": "labels", "targets": "labels"}  # fmt: skip
_LABELS_OF = {"x": "y", "images": "labels", "image": "label", "data": "labels"}  # what they are called side by side


@dataclasses.dataclass
class ArraySource:
    """Pictures that lie in memory as one array. load: picklable, () -> uint8 [N, h, w] or [N, h, w, C], cached.

    labels: int32 [N], or None. where: what its names begin with.
    """

    load: Any
    labels: np.ndarray | None
    where: str
    channels: int

    def __len__(self):
        return len(self.load())

    def __getitem__(self, position):
        label = -1 if self.labels is None else int(self.labels[position])
        return {"image": to_channels(self.load()[position], self.channels), "label": label}

    def name(self, position):
        return f"{self.where} picture {position}"

    def keys(self):
        """uint64 [N]: hashes of the pictures, by which some are held out; those of equal ones are equal."""
        return mix64(np.array([zlib.crc32(image.tobytes()) for image in self.load()], np.uint64))


def digits(reading):
    """({"train": ArraySource}, classes, digest) of scikit-learn's handwritten digits."""
    images, labels = _digits()
    source = ArraySource(_digit_images, labels if reading.labels else None, "digits", reading.channels)
    classes = tuple(map(str, range(10))) if reading.labels else None
    return {"train": source}, classes, hashlib.sha256(images.tobytes()).hexdigest()


@functools.cache
def _digits():
    from sklearn.datasets import load_digits

    found = load_digits()
    return np.rint(found.images * (255 / 16)).astype(np.uint8), found.target.astype(np.int32)


def _digit_images():
    return _digits()[0]


# ------------------------------------------------------------------------------------------------------------------ idx


def idx(place, reading):
    """({split: ArraySource}, classes, digest) of a directory in MNIST's format (yann.lecun.com/exdb/mnist).

    Raises UserError if a file is missing, cut short or of another format, or if labels and pictures differ in number.
    """
    directory, splits, digest = expand(place), {}, hashlib.sha256()
    if not directory.is_dir():
        raise UserError(f"idx:{place}: no such directory")
    for split, prefix in _IDX_SPLITS.items():
        path = idx_file(directory, f"{prefix}-images")
        if path is None and split == "train":
            raise UserError(f"idx:{place} holds no train-images-idx3-ubyte or .gz of it: name the directory that does")
        if path is None:
            continue
        images, labels = functools.partial(_idx, str(path), _stamp(path), (3, 4)), None
        if reading.labels:
            labels_path = idx_file(directory, f"{prefix}-labels")
            if labels_path is None:
                raise UserError(
                    f"{path} has no labels beside it ({prefix}-labels-idx1-ubyte, .gz): add them, or set "
                    "ImageData.labels = False"
                )
            labels = _idx(str(labels_path), _stamp(labels_path), (1,))
            labels = _checked_labels(labels, len(images()), str(labels_path), path)
        splits[split] = ArraySource(images, labels, str(path), reading.channels)
        digest.update(images().tobytes() + (b"" if labels is None else labels.tobytes()))
    return _checked(splits, reading, str(directory), digest.hexdigest())


def idx_file(directory, prefix):
    """The idx file of that name, also with .gz, also with a dot for the last dash; None if there is none."""
    rank = "1" if prefix.endswith("labels") else "3"
    names = [f"{prefix}{dash}idx{rank}-ubyte{end}" for dash in "-." for end in ("", ".gz")]
    return next((directory / name for name in names if (directory / name).is_file()), None)


@functools.lru_cache(maxsize=16)
def _idx(path, stamp, ranks):
    """uint8 array of an idx file; its rank must be one of `ranks`."""
    try:
        with open(path, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else open(path, "rb") as file:
            head = file.read(4)
            if len(head) < 4 or head[:3] != b"\0\0\x08" or head[3] not in ranks:
                raise UserError(
                    f"{path} is no idx file of bytes in {' or '.join(map(str, ranks))} dimensions (it begins with "
                    f"{head.hex(' ') or 'nothing'}): fetch it again"
                )
            sizes = file.read(4 * head[3])
            shape = struct.unpack(f">{len(sizes) // 4}I", sizes[: len(sizes) // 4 * 4])
            wanted, chunks, found = math.prod(shape), [], 0
            while found <= wanted and (chunk := file.read(min(1 << 24, wanted + 1 - found))):
                chunks.append(chunk)
                found += len(chunk)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is cut short or damaged ({error}): fetch it again") from error
    if len(shape) < head[3] or found != wanted:
        what = "is cut short: it holds" if found < wanted or len(shape) < head[3] else "is too long: it holds over"
        raise UserError(f"{path} {what} {found:,} of the {wanted:,} bytes that its header tells: fetch it again")
    return np.frombuffer(b"".join(chunks), np.uint8).reshape(shape)


# ------------------------------------------------------------------------------------------------------------------ npz


def npz(place, reading):
    """({split: ArraySource}, classes, digest, note) of a numpy archive. Nothing in it is ever unpickled.

    Raises UserError if it is none, an array is of another type or shape, or labels and pictures differ in number.
    """
    path = expand(place)
    if not path.is_file():
        raise UserError(f"npz:{place}: no such file")
    try:
        with zipfile.ZipFile(path) as archive:
            infos = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
    except zipfile.BadZipFile as error:
        raise UserError(f"{path} cannot be read as an .npz archive ({error}): make it with numpy.savez") from error
    splits, digest = {}, hashlib.sha256(repr([(i.filename, i.CRC, i.file_size) for i in infos.values()]).encode())
    found, others = _npz_names(infos, path)
    words = _npz_classes(path, [labels for _, labels, _ in found.values() if labels and reading.labels], reading)
    for split, (images, labels, missing) in found.items():
        if reading.labels and labels is None:
            raise UserError(f"{path} has {images} and no {missing}: add it, or set ImageData.labels = False")
        load = functools.partial(_npz_images, str(path), _stamp(path), images)
        own = None
        if reading.labels:
            own = _npz(path, labels) if words is None else words[1][labels]
            own = _checked_labels(own, len(load()), f"{path}: {labels}", images)
        splits[split] = ArraySource(load, own, f"{path}: {images}", reading.channels)
    if "train" not in splits:
        raise UserError(
            f"{path} holds {', '.join(sorted(infos)[:8]) or 'nothing'}: name its arrays x_train, y_train, x_test and "
            "y_test, or images and labels"
        )
    note = f"arrays left out: {few(sorted(others))}" if others else ""
    splits, classes, digest = _checked(splits, reading, str(path), digest.hexdigest())
    return splits, classes if words is None else words[0], digest, note


def _npz_classes(path, names, reading):
    """(classes, {array: int [N]}) of labels that are names of classes; None where they are numbers."""
    arrays = {name: _npz(path, name) for name in names}
    if not arrays or any(array.dtype.kind not in "US" for array in arrays.values()):
        return None
    texts = {name: np.char.decode(a, "utf-8") if a.dtype.kind == "S" else a for name, a in arrays.items()}
    classes = reading.classes or tuple(np.unique(np.concatenate([text.ravel() for text in texts.values()])).tolist())
    number = {name: k for k, name in enumerate(classes)}
    for name, text in texts.items():
        if other := next((word for word in text.ravel().tolist() if word not in number), None):
            raise UserError(f"{path}: {name} holds {other!r}, which ImageData.classes does not name: name all")
    return classes, {name: np.vectorize(number.get, otypes=[np.int32])(text) for name, text in texts.items()}


def _npz_names(names, path):
    """({split: (pictures, labels or None, what those would be called)}, the other names) of an archive's arrays.

    x_train, train_images, X_val ...: a word for pictures or labels and one for a split, in any case and order; pictures
    without a split are those of train where no others are. Raises UserError where two are meant by the same.
    """
    found, others = collections.defaultdict(list), set(names)
    for name in names:
        words = re.split(r"[-_.]", name.lower())
        kinds = [_NPZ_WORDS[word] for word in words if word in _NPZ_WORDS]
        splits = [split for word in words if (split := split_of(word))]
        if len(kinds) == 1 and len(kinds) + len(splits) == len(words) and len(splits) < 2:
            found[splits[0] if splits else "", kinds[0]].append(name)
    if ("train", "pictures") not in found:
        for kind in ("pictures", "labels"):
            found["train", kind] = found["train", kind] or found["", kind]
    chosen = {}
    for split in ("train", "valid", "test"):
        for kind in ("pictures", "labels"):
            if len(found[split, kind]) > 1:
                both = " and ".join(sorted(found[split, kind]))
                raise UserError(f"{path} holds {both}, which both say {kind} of {split}: rename or remove one of them")
        if images := found[split, "pictures"]:
            words = [_LABELS_OF.get(word.lower(), word) for word in re.split(r"([-_.])", images[0])]
            chosen[split] = images[0], (found[split, "labels"] or [None])[0], "".join(words)
            others -= {*images, *found[split, "labels"]}
    return chosen, others


def _npz(path, key):
    try:
        with np.load(path, allow_pickle=False) as archive:
            return archive[key]
    except (ValueError, zipfile.BadZipFile, zlib.error, EOFError, KeyError) as error:
        if "allow_pickle" in str(error):
            reason, fix = "holds pickled objects, which are never loaded", "save it as an array of numbers"
        else:
            reason, fix = f"cannot be read ({str(error).splitlines()[0]})", "make it again"
        raise UserError(f"{path}: {key} {reason}: {fix}") from error


@functools.lru_cache(maxsize=8)
def _npz_images(path, stamp, key):
    images = _npz(path, key)
    if images.dtype != np.uint8 or not (images.ndim == 3 or (images.ndim == 4 and images.shape[3] in (1, 3, 4))):
        raise UserError(
            f"{path}: {key} is {images.dtype} {list(images.shape)}: save pictures as uint8 (0 to 255) of shape "
            "[N, height, width] or [N, height, width, channels], with 1, 3 or 4 channels"
        )
    return images


# --------------------------------------------------------------------------------------------------------------- checks


def _stamp(path):
    """Changes with the file, so that what is cached is never stale."""
    found = os.stat(path)
    return found.st_size, found.st_mtime_ns


def _checked_labels(labels, count, where, pictures):
    """int32 [count]."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(f"{where} is {labels.dtype} {list(labels.shape)}: labels are one integer for each picture")
    if len(labels) != count:
        raise UserError(
            f"{where} holds {len(labels):,} labels for the {count:,} pictures of {pictures}: they belong to different "
            "data, or one of them is not whole"
        )
    if len(labels) and (labels.min() < -1 or labels.max() >= 1 << 20):
        raise UserError(
            f"{where} has labels from {labels.min()} to {labels.max()}: number classes from 0 (-1 for none)"
        )
    return labels.astype(np.int32)


def _checked(splits, reading, where, digest):
    """(splits, classes, digest), once they fit each other."""
    for split, source in splits.items():
        if not source.load().size:
            raise UserError(f"{source.where} holds no pictures")
        counts = [s.load().shape[3] if s.load().ndim == 4 else 1 for s in (splits["train"], source)]
        if counts[0] != counts[1]:
            raise UserError(
                f"{where}: pictures of train have {counts[0]} channels, those of {split} {counts[1]}: save them alike"
            )
    if not reading.labels:
        return splits, None, digest
    if not reading.classes:
        labels = splits["train"].labels
        fix = "give one number to each class, or set ImageData.labels = False"
        check_classes(np.unique(labels[labels >= 0]), int(np.sum(labels >= 0)), f"{where}: the labels of train", fix)
    counts = {split: 1 + int(s.labels.max()) for split, s in splits.items()}
    if not reading.classes and (more := next((split for split, n in counts.items() if n > counts["train"]), None)):
        raise UserError(
            f"{where}: {more} has labels up to {counts[more] - 1}, train up to {counts['train'] - 1}: number the "
            "classes of all alike, or set ImageData.labels = False"
        )
    count = max(counts.values())
    if reading.classes and len(reading.classes) < count:
        raise UserError(f"ImageData.classes names {len(reading.classes)} classes and {where} has {count}: name all")
    return splits, tuple(reading.classes) or tuple(map(str, range(count))), digest
