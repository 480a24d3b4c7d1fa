"""Pairs of image and text as a run names them: where they come from, the captions' tokens, and what is held out."""

import dataclasses
import hashlib
import json
import pathlib
import re
import shutil
import sys
from typing import Any

import numpy as np

from multimodal.sources import Pairs, open_pairs
from paradigm import storage
from paradigm.dataset import feistel, mix64
from paradigm.errors import UserError, choose
from paradigm.records import Prepared, check_readable, share_of
from t5like.tokenizers import get_tokenizer, is_learnt, load_tokenizer, vocabulary_of
from vision.data import known_labels
from vision.decode_image import MAX_PIXELS, PILLOW_PIXELS
from vision.synthetic_scenes import Shapes

SAMPLE_PER_ID = 256  # bytes of captions for each id of a vocabulary to be learnt
_TOKENIZER, _META = "tokenizer", "pairs.json"


@dataclasses.dataclass(frozen=True)
class PairData:
    """Which pairs a run reads, and how their captions become tokens.

    source: shapes, tsv:FILE, parquet:PATH, wds:PATTERN, tfds:NAME or a path (see multimodal/sources.py).
    text: captions of a picture: names of columns (tables; of shapes `caption` and `class`), of keys (the .json of tar
        files, whose .txt, .caption and .text are read at the default) or of features (tfds), or sentences with such
        names in braces, as in "{name}: {tags}". Training draws one of several, validation reads the first. separator:
        of a list within such a field, read as commas.
    image: column or feature of the picture, of tables also a form as '{folder}/{id}.png'. image_suffix: what a tsv
        leaves out of its name, such as .png. Where there is no `image` or `caption`, and one other column or feature
        has a name that these often have (file, path, text, title ...: fields.py), that is taken, and said; of a table
        otherwise the one form by which every line names a picture that is there.
    second: column of a second picture, or its form, of which a sentence speaks too (NLVR2); of shapes, label = 'truth'
        draws both.
    images, test_images: zip files or folders with a table's pictures; those of the latter are for test splits alone.
    label: column or feature that tells a picture's class; of shapes, 'pair' is the colour and shape of the largest,
        'truth' whether a sentence is true of two scenes (two_scenes.py), and otherwise Shapes.label decides. classes:
        names of the numbers that tar files have; their .cls may hold names as well.
    group: column whose lines are held out together. split: column that says train, valid or test; '' takes one of that
        name, if it says so. valid: share of the groups that is held out where nothing else is. valid_glob: names of tar
        files to hold out instead.
    fraction: the share of the training pairs that is used, of each class as large a one where they have a label, drawn
        by fraction_seed: a smaller fraction is a part of a larger one. A tokenizer is learnt from all.
    tokenizer: bytes; sentencepiece:SIZE, bpe:SIZE or wordpiece:SIZE (learnt from the training captions); or the path of
        one (see t5like/tokenizers).
    channels: 3 or 1. on_broken: a pair without its picture or its text is 'replace'd by another, counted and named, or
        'refuse'd. max_pixels: a larger picture is broken, not unpacked. shapes: settings of the source of that name.

    A setting that says nothing of a kind of source is refused for it (multimodal/sources.py). Pictures are read where
    they lie. A run keeps a learnt tokenizer and the index of tar files.
    """

    source: str = "shapes"
    text: tuple[str, ...] = ("caption",)
    separator: str = ""
    image: str = "image"
    image_suffix: str = ""
    second: str = ""
    images: tuple[str, ...] = ()
    test_images: tuple[str, ...] = ()
    label: str = ""
    classes: tuple[str, ...] = ()
    group: str = ""
    split: str = ""
    valid: float = 0.05
    valid_glob: str = ""
    fraction: float = 1.0
    fraction_seed: int = 0
    tokenizer: str = "bytes"
    channels: int = 3
    on_broken: str = "replace"
    max_pixels: int = MAX_PIXELS
    shapes: Shapes = Shapes()

    extra_ids = 0  # captions are not noised: no sentinels above the vocabulary

    def __post_init__(self):
        for name in ("text", "images", "test_images", "classes"):
            value = getattr(self, name)
            if isinstance(value, str):
                raise UserError(f"PairData.{name}={value!r}: give a list, as in [{value!r}]")
            object.__setattr__(self, name, tuple(value))  # gin gives lists
        choose("PairData.on_broken", self.on_broken, {"replace": 1, "refuse": 1})
        if not self.text:
            raise UserError("PairData.text is empty: name the column, key or feature of the captions")
        if self.channels not in (1, 3):
            raise UserError(f"PairData.channels={self.channels}: choose 3 (colour) or 1 (grey)")
        if not 0 < self.valid < 1:
            raise UserError(f"PairData.valid={self.valid}: the held-out share must lie in (0, 1)")
        if not 0 < self.fraction <= 1:
            raise UserError(f"PairData.fraction={self.fraction}: a share of the training pairs lies in (0, 1]")
        if not 0 < self.max_pixels <= PILLOW_PIXELS:
            raise UserError(f"PairData.max_pixels={self.max_pixels}: it must lie in 1 .. {PILLOW_PIXELS:,}")

    def vocabulary(self):
        """The captions' Vocabulary, known before they are read; None where its tokenizer is not on this machine."""
        return vocabulary_of(self.tokenizer, self.extra_ids)

    def build(self, cache_dir=None, window=None, progress=True, workers=None):
        """The PreparedPairs of this recipe. cache_dir: where the tokenizer and an index are kept; None keeps nothing.

        window and workers, which recipes of text need, change nothing. Raises UserError if the data cannot be used, or
        cache_dir holds another tokenizer than this recipe's.
        """
        opened = open_pairs(self, cache_dir)
        tokenizer = self.learn(opened.splits["train"], cache_dir, progress)
        settings = (opened.digest, self.channels, bool(self.label), opened.classes, tokenizer.fingerprint)
        splits = opened.splits
        if self.fraction < 1:
            train = splits["train"]
            chosen = share_of(len(train), self.fraction, self.fraction_seed, train.read_labels())
            splits = {**splits, "train": Pairs(train, chosen)}
            settings += (self.fraction, self.fraction_seed)
        fingerprint = hashlib.sha256(repr(settings).encode()).hexdigest()[:32]
        refuse = self.on_broken == "refuse"
        prepared = PreparedPairs(
            name=self.source,
            splits=splits,
            classes=opened.classes,
            channels=self.channels,
            tokenizer=tokenizer,
            fingerprint=fingerprint,
            refuse=refuse,
            note=opened.note,
        )
        check_readable(prepared.source("valid"), f"{self.source}, what is held out")
        if progress:
            print(prepared.described, file=sys.stderr)
        return prepared

    def learn(self, train, cache_dir, progress):
        """The tokenizer, learnt once for a directory from the captions of `train` where it is one to be learnt."""
        if not is_learnt(self.tokenizer) or cache_dir is None:
            return get_tokenizer(self.tokenizer, lambda: _sample(train, self.tokenizer), extra_ids=self.extra_ids)
        directory = pathlib.Path(cache_dir)
        meta, wanted = directory / _META, {"tokenizer": self.tokenizer}
        if meta.exists():
            try:
                there = json.loads(meta.read_bytes())
                held = there["tokenizer"]
            except (ValueError, TypeError, KeyError):
                raise UserError(f"{meta} is damaged: delete {directory}, which is then made again") from None
            if there != wanted:
                raise UserError(
                    f"{directory} holds the tokenizer {held!r} and PairData.tokenizer is "
                    f"{self.tokenizer!r}: give another directory, or delete it"
                )
            return load_tokenizer(directory / _TOKENIZER)
        if progress:
            print(f"learning a vocabulary ({self.tokenizer}) ...", file=sys.stderr)
        tokenizer = get_tokenizer(self.tokenizer, lambda: _sample(train, self.tokenizer), extra_ids=self.extra_ids)
        aside = storage.aside_of(directory / _TOKENIZER)
        for leftover in (aside, directory / _TOKENIZER):
            shutil.rmtree(leftover, ignore_errors=True)
        tokenizer.save(aside)
        storage.commit(aside, directory / _TOKENIZER)
        storage.replace(meta, f"{json.dumps(wanted)}\n".encode())  # last: it says that the tokenizer is whole
        return tokenizer


def _sample(train, tokenizer):
    """Captions to learn a vocabulary from, of pairs in a shuffled order, to a bound."""
    budget = max(1 << 20, SAMPLE_PER_ID * int(tokenizer.partition(":")[2]))
    for start in range(0, len(train), 4096):
        places = np.arange(start, min(start + 4096, len(train)))
        for position in feistel(places, len(train), mix64(len(train))):
            try:
                captions = train.captions(int(position))
            except Exception:  # a broken pair, which is told when it is read
                continue
            yield from captions
            budget -= sum(map(len, captions))
            if budget <= 0:
                return


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedPairs(Prepared):
    """Pairs, opened.

    splits: name -> source (without what `source` adds): train, valid, and test and others where the data bring them.
    classes: names of the labels, or None. tokenizer: of the captions. fingerprint: changes whenever a record does.
    """

    name: str
    splits: dict[str, Any]
    classes: tuple[str, ...] | None
    channels: int
    tokenizer: Any
    fingerprint: str
    refuse: bool = False
    note: str = ""

    def source(self, split="train"):
        """The records of a split for paradigm.dataset.Dataset. Raises UserError if there is no such split."""
        if split not in self.splits:
            raise UserError(f"{self.name} has no {split} split, only {', '.join(self.splits)}")
        fingerprint = f"{self.fingerprint}/{split}"
        return PairSource(self.splits[split], self.classes, self.tokenizer, fingerprint, self.refuse)

    @property
    def described(self):
        """One line for a person."""
        counts = ", ".join(f"{len(source):,} {split}" for split, source in self.splits.items())
        labels = f"{len(self.classes)} classes" if self.classes else "no labels"
        ids = f"{self.tokenizer.vocab_size:,} ids"
        return f"{self.name}: {counts} pairs, {labels}, captions of {ids}{self.note and f'; {self.note}'}"


@dataclasses.dataclass(frozen=True)
class PairSource:
    """The records of one split: what every objective on pairs prepares (see multimodal/preprocess.py), and more.

        {"image": uint8 [h, w, C], "label": int, -1 for none, "captions": tuple of str, "caption": the first of them,
         "tokens": tuple of int32 arrays, the ids of each without an end}

    classes: names of the labels, or None. refuse: whether a broken pair is a UserError rather than a ValueError, which
    the data set counts, names and replaces. Picklable.
    """

    records: Any
    classes: tuple[str, ...] | None
    tokenizer: Any
    fingerprint: str
    refuse: bool = False

    def __len__(self):
        return len(self.records)

    def __getitem__(self, position):
        record = self._read(self.records.__getitem__, int(position))
        captions = record["captions"]
        return {**record, "caption": captions[0], "tokens": tuple(self.tokenizer.encode_batch(captions))}

    @property
    def labels(self):
        return known_labels(self.records)

    def captions(self, position):
        """The captions of a record, without its picture. Raises as reading it does."""
        return self._read(lambda p: {"captions": self.records.captions(p)}, int(position))["captions"]

    def name(self, position):
        return self.records.name(int(position))

    def _read(self, read, position):
        try:
            record = read(position)
            if not record["captions"]:
                raise ValueError("it has no text")
            return record
        except UserError:
            raise
        except Exception as error:  # decoders raise anything at all
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            reason = re.sub(r" <_io\.BytesIO object at \w+>", "", reason)
            if self.refuse:
                raise UserError(
                    f"{self.name(position)} is broken ({reason}): mend or remove it, or set "
                    "PairData.on_broken = 'replace'"
                ) from error
            raise ValueError(reason) from error
