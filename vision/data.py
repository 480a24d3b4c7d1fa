"""Images as a run names them: where they come from, how they are read, and which of them are held out."""

import dataclasses
import hashlib
import sys
from typing import Any

import numpy as np

from paradigm.dataset import mix64
from paradigm.errors import UserError, choose
from paradigm.names import SPLITS
from paradigm.records import Prepared, Subset, check_readable, held_out, share_of
from vision.decode_image import MAX_PIXELS, PILLOW_PIXELS
from vision.sources import Reading, open_source
from vision.synthetic_scenes import Shapes


@dataclasses.dataclass(frozen=True)
class ImageData:
    """Which pictures a run reads.

    source: digits, shapes, idx:DIR, npz:FILE, folder:DIR, zip:FILE, tar:FILE, parquet:PATH, tfds:NAME or a path
    (vision/sources.py).
    channels: 3 or 1; pictures of other modes are converted. valid: share of train that is held out where the data bring
    neither a split for validation nor one for tests: in each class those with the smallest hashes (of the pixels in
    arrays, else of the name). Data with a test split alone are validated on it, as MNIST is. hold_out: hold that share
    out in any case, and leave the test split alone. fraction: the share of the training pictures that is used, of each
    class as large a one, drawn by fraction_seed: a smaller fraction is a part of a larger one. labels: False reads
    none, so that none are needed. on_broken: a picture that cannot be read is 'replace'd by another, counted and named,
    or 'refuse'd. max_pixels: a larger one is broken, and not unpacked. classes: names of numbered labels. image_field,
    label_field: of tfds records, and columns of Parquet, where the only one of pictures need not be named. regions: the
    folder with a map for each picture, grey or palette numbers of classes, 255 for none: images/train/x.jpg has
    masks/train/x.png with regions='masks', and train/images/x.jpg has train/masks/x.png; of `shapes`, shape or colour.
    shapes: settings of the source of that name.

    repeats: how many views of a picture stand in a batch, drawn apart (DeiT's repeated augmentation has 3): an epoch is
    as many times longer.

    Nothing is written: pictures are read where they lie.
    """

    source: str = "digits"
    channels: int = 3
    valid: float = 0.1
    hold_out: bool = False
    fraction: float = 1.0
    fraction_seed: int = 0
    labels: bool = True
    on_broken: str = "replace"
    max_pixels: int = MAX_PIXELS
    classes: tuple[str, ...] = ()
    image_field: str = "image"
    label_field: str = "label"
    regions: str = ""
    repeats: int = 1
    shapes: Shapes = Shapes()

    def __post_init__(self):
        object.__setattr__(self, "classes", tuple(self.classes))  # gin gives a list
        choose("ImageData.on_broken", self.on_broken, {"replace": 1, "refuse": 1})
        if self.channels not in (1, 3):
            raise UserError(f"ImageData.channels={self.channels}: choose 3 (colour) or 1 (grey)")
        if not 0 < self.valid < 1:
            raise UserError(f"ImageData.valid={self.valid}: the held-out share of train must lie in (0, 1)")
        if self.repeats < 1:
            raise UserError(f"ImageData.repeats={self.repeats}: a picture stands in a batch once at least")
        if not 0 < self.fraction <= 1:
            raise UserError(f"ImageData.fraction={self.fraction}: a share of the training pictures lies in (0, 1]")
        if not 0 < self.max_pixels <= PILLOW_PIXELS:
            raise UserError(f"ImageData.max_pixels={self.max_pixels}: it must lie in 1 .. {PILLOW_PIXELS:,}")

    def build(self, cache_dir=None, window=None, progress=True, workers=None):
        """The PreparedImages of this recipe. The arguments, which recipes of text need, change nothing but progress.

        Raises UserError if the data cannot be used.
        """
        reading = Reading(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Reading)})
        opened = open_source(self.source, reading)
        splits, how = dict(opened.splits), ""
        only_test = "valid" not in splits and "test" in splits and not self.hold_out
        secret = only_test and _has_labels(splits["train"]) and not _has_labels(splits["test"])
        if only_test and not secret:
            splits["valid"] = splits["test"]
        elif "valid" not in splits or self.hold_out:
            splits["train"], splits["valid"] = _hold_out(splits["train"], self.valid, self.source)
            how = f"{self.valid} {self.hold_out}"
        if self.fraction < 1:
            train = splits["train"]
            splits["train"] = Subset(train, share_of(len(train), self.fraction, self.fraction_seed, _labels(train)))
            how += f" {self.fraction} {self.fraction_seed}"
        settings = (
            opened.digest,
            self.channels,
            self.labels,
            opened.classes,
            how,
            *([self.regions] if self.regions else []),
        )
        fingerprint = hashlib.sha256(repr(settings).encode()).hexdigest()[:32]
        bare = {s: int(np.sum(x < 0)) for s, own in opened.splits.items() if (x := known_labels(own)) is not None}
        why = "valid held out of train, since test has no labels" * secret
        told = [opened.note, why, *(f"{n:,} of {split} without a label" for split, n in bare.items() if n)]
        note = "; ".join(filter(None, told))
        prepared = PreparedImages(
            name=self.source,
            splits=splits,
            classes=opened.classes,
            channels=self.channels,
            fingerprint=fingerprint,
            note=note,
            repeats=self.repeats,
        )
        check_readable(prepared.source("valid"), f"{self.source}, what is held out")
        if progress:
            print(prepared.described, file=sys.stderr)
        return prepared


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedImages(Prepared):
    """Pictures, opened.

    splits: name -> source (without what `source` adds). classes: names of the labels, or None. channels: of every
    record. fingerprint: changes whenever a record does. repeats: how often a record stands in a row in training.
    """

    name: str
    splits: dict[str, Any]
    classes: tuple[str, ...] | None
    channels: int
    fingerprint: str
    note: str = ""
    repeats: int = 1

    def source(self, split="train"):
        """The records of 'train', 'valid' or 'test' for paradigm.dataset.Dataset.

        Raises UserError if the data have no such split.
        """
        choose("split", split, dict.fromkeys(SPLITS))
        if split not in self.splits:
            raise UserError(f"{self.name} has no {split} split, only {', '.join(sorted(self.splits))}")
        return ImageSource(self.splits[split], self.classes, f"{self.fingerprint}/{split}")

    @property
    def described(self):
        """One line for a person."""
        same = self.splits.get("test") is self.splits["valid"]
        counts = [f"{len(self.splits[s]):,} {s}" for s in SPLITS if s in self.splits and not (same and s == "test")]
        counts[1] += " (the test split)" if same else ""
        labels = f"{len(self.classes)} classes" if self.classes else "no labels"
        return f"{self.name}: {', '.join(counts)} pictures, {labels}{self.note and f'; {self.note}'}"


@dataclasses.dataclass(frozen=True)
class ImageSource:
    """The records of one split: {"image": uint8 [h, w, C], "label": int, -1 for none} and what the source adds.

    classes: names of the labels, or None. Picklable.
    """

    records: Any
    classes: tuple[str, ...] | None
    fingerprint: str

    def __len__(self):
        return len(self.records)

    def __getitem__(self, position):
        return self.records[int(position)]

    def name(self, position):
        return self.records.name(int(position))

    @property
    def labels(self):
        return known_labels(self.records)


def known_labels(source):
    """int32 [n], the labels of a source's records, -1 for none, where they are in memory; else None."""
    if not isinstance(source, Subset):
        return getattr(source, "labels", None)
    labels = known_labels(source.source)
    return None if labels is None else np.asarray(labels)[source.positions]


def _has_labels(source):
    """Whether a record of a source has a label, where they are in memory."""
    labels = known_labels(source)
    return labels is not None and bool(np.any(np.asarray(labels) >= 0))


def _labels(source):
    """int32 [n] of a source's records; None where they have none, or are drawn, as scenes are."""
    if isinstance(source, Subset):
        labels = _labels(source.source)
        return None if labels is None else labels[source.positions]
    return source.read_labels() if hasattr(source, "read_labels") else getattr(source, "labels", None)


def _hold_out(source, share, name):
    """(kept, held out): in each class the records with the smallest keys, one at least where it has two."""
    count = len(source)
    keys = source.keys() if hasattr(source, "keys") else mix64(np.arange(count))
    held = held_out(keys, share, getattr(source, "labels", None))
    if not held.size:
        labels, fix = getattr(source, "labels", None), "add some"
        if count > 1 and labels is not None:
            fix = "each is alone in its class, so add some, or set ImageData.labels = False"
        raise UserError(f"{name} has {count} picture{'s' * (count != 1)}, none of which can be held out: {fix}")
    return Subset(source, np.setdiff1d(np.arange(count), held)), Subset(source, held)
