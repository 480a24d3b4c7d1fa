"""What the sources of every modality share: ArrayRecord shards, subsets, and which records are held out."""

import dataclasses
import hashlib
import json
import zlib
from typing import Any

import numpy as np

from paradigm.dataset import Mixture, mix64
from paradigm.errors import UserError
from paradigm.tfds import array_records


class Prepared:
    """What a recipe's `build` gives: data, opened. All that a run, and an objective's `check_data`, may read of them.

    name: what messages call them. tokenizer: of their text; None where there is none. classes: names of the labels, by
    number; () or None where there are none. repeats: how often a record stands in a row in training (see
    paradigm.dataset.Repeated). A dataclass below it takes its fields by keyword, since these are defaults.
    """

    name = ""
    tokenizer = None
    classes = ()
    repeats = 1

    def source(self, split="train"):
        """The records of a split, a source (see paradigm/dataset.py). Raises UserError where there is no such split."""
        raise NotImplementedError


def class_names(schema):
    """{column: names of its classes} that the datasets library wrote into the schema of a Parquet or Arrow file."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        return {name: tuple(f["names"]) for name, f in features.items() if isinstance(f, dict) and f.get("names")}
    except (KeyError, TypeError, ValueError):
        return {}


def named(label, names):
    """The name of a class for its number, of each in a list; None for -1, where it is kept secret."""
    if isinstance(label, list):
        return [named(one, names) for one in label]
    return names[label] if isinstance(label, int) and 0 <= label < len(names) else None if label == -1 else label


def build(recipe, directory, window, progress):
    """What a recipe gives, prepared in a directory if need be: a Prepared. Raises UserError where it is something else.

    window: tokens of a window that the objective reads; None where it reads none. progress: whether to tell of it.
    """
    prepared = recipe.build(directory, window=window, progress=progress)
    if not isinstance(prepared, Prepared):
        found = f"{type(recipe).__name__}.build gave a {type(prepared).__name__}"
        raise UserError(f"{found}: let that inherit paradigm.records.Prepared")
    return prepared


class Shards:
    """The raw records of some ArrayRecord files, one file after the other, in any order.

    paths, counts: of the files and their records. unit: what a message calls a record. reader: options of the files'
    readers. Picklable: a file is opened by whichever process reads it, when it first does.
    """

    def __init__(self, paths, counts, unit="record", **reader):
        self.paths, self.counts, self.unit = paths, counts, unit
        self._ends, self._options, self._readers = np.cumsum(counts), reader, {}

    def __getstate__(self):
        return {**self.__dict__, "_readers": {}}

    def __len__(self):
        return int(self._ends[-1])

    def __getitem__(self, position):
        return self.read([position])[0]

    def read(self, positions):
        """The bytes of the records at these positions, in their order. Raises UserError for a damaged file."""
        shards, rows = self._find(positions)
        records = [None] * len(shards)
        for shard in np.unique(shards):
            wanted = np.flatnonzero(shards == shard)
            for at, raw in zip(wanted.tolist(), self._reader(int(shard)).read(rows[wanted].tolist())):
                records[at] = raw
        return records

    def name(self, position):
        """The record's file and its number there."""
        [shard], [row] = self._find([position])
        return f"{self.paths[shard]} {self.unit} {row}"

    def _find(self, positions):
        """([n] which file, [n] which record of it)."""
        shards = np.searchsorted(self._ends, positions, side="right")
        return shards, np.asarray(positions) - self._ends[shards] + np.asarray(self.counts)[shards]

    def _reader(self, shard):
        if shard not in self._readers:
            path, count = self.paths[shard], self.counts[shard]
            reader = array_records(path, **self._options)
            if reader.num_records() != count:
                raise UserError(f"{path} has {reader.num_records()} {self.unit}s instead of {count}: prepare it again")
            self._readers[shard] = reader
        return self._readers[shard]


@dataclasses.dataclass(frozen=True, eq=False)
class Subset:
    """Some records of a source, a source itself. positions: int64 [n]. fingerprint: for one that is read as it is."""

    source: Any
    positions: np.ndarray
    fingerprint: str = ""

    @classmethod
    def drawn(cls, source, count, seed):
        """`count` records of a source (None: all), in their order, spread evenly over it (see `spread`)."""
        count = len(source) if count is None else min(count, len(source))
        return cls(source, spread(len(source), count, seed), f"{source.fingerprint}[{count}, {seed}]")

    def __len__(self):
        return len(self.positions)

    def __getitem__(self, position):
        return self.source[int(self.positions[position])]

    def __getitems__(self, positions):
        own = self.positions[np.asarray(positions, np.int64)].tolist()
        many = getattr(self.source, "__getitems__", None)
        return many(own) if many else [self.source[p] for p in own]

    def name(self, position):
        """What the source calls this record."""
        own = int(self.positions[position])
        return self.source.name(own) if hasattr(self.source, "name") else f"record {own}"


def spread(size, count, seed=0):
    """int64 [count], ascending: one place of each of `count` equal stretches of range(size), by a hash of (seed, size).

    So a sample of sorted records has its share of every class and length, and one of records that take turns, which
    equal steps might meet in step, has it too. count: at most size.
    """
    ends = np.arange(count + 1, dtype=np.int64) * size // max(count, 1)
    words = mix64(seed, size, np.arange(count))
    return ends[:-1] + (words % np.diff(ends).astype(np.uint64)).astype(np.int64)


def sample(source, count, seed=0):
    """`count` records of a source, or of all of a Mixture's as if they stood in one, by `spread`; itself if it has no
    more."""
    sources = source.sources if isinstance(source, Mixture) else (source,)
    ends = np.cumsum([len(s) for s in sources])
    if count >= ends[-1]:
        return source
    places, subsets, begin = spread(int(ends[-1]), count, seed), [], 0
    for one, end in zip(sources, ends):
        own = places[(places >= begin) & (places < end)] - begin
        if len(own):
            subsets.append(Subset(one, own, f"{one.fingerprint}[{len(own)}, {seed}]"))
        begin = end
    return Mixture(subsets, [1] * len(subsets)) if len(subsets) > 1 else subsets[0]


def check_readable(source, what, looked=64):
    """Raises UserError where none of some records of a source, spread over it, can be read; the first that can ends it.

    what: the source, for the message. A run then ends before its first step, and not at its first evaluation.
    """
    last, count = len(source) - 1, min(len(source), looked)
    for k in range(count):
        try:
            source[round(k * last / max(1, count - 1))]
            return
        except UserError:
            raise
        except Exception as error:  # decoders raise anything at all
            reason = (str(error).splitlines() or [type(error).__name__])[0]
    name = source.name(last) if hasattr(source, "name") else f"record {last}"
    raise UserError(f"{what}: none of {count} records looked at can be read, such as {name} ({reason}): mend them")


def share_of(size, share, seed=0, classes=None):
    """int64 [m], ascending: `share` of range(size), of each class as large a one and one at least, by a hash of (seed,
    place). A smaller share is a part of a larger one. classes: int [size], or None for one."""
    classes = np.zeros(size, int) if classes is None else np.asarray(classes)
    order, chosen = np.lexsort((mix64(seed, np.arange(size)), classes)), []
    for places in np.split(order, np.flatnonzero(np.diff(classes[order])) + 1):
        chosen.append(places[: max(1, round(share * len(places)))])
    return np.sort(np.concatenate(chosen))


# ------------------------------------------------------------------------------------------------------------- held out


def hash_of(name):
    """A name as a number in [0, 1), by which text is held out whatever else there is."""
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[:6], "big") / 2**48


def keys_of(names):
    """uint64 [n] of n names, of which the smallest are held out."""
    return mix64(np.array([zlib.crc32(name.encode("utf-8", "surrogateescape")) for name in names], np.uint64))


def held_out(keys, share, classes=None):
    """int64 [m], ascending: the records with the smallest keys, `share` of each class, one at least where it has two.

    keys: uint64 [n]. classes: int [n], or None for one. Of two records with one key the first comes first.
    """
    keys = np.asarray(keys, np.uint64)
    classes = np.zeros(len(keys), int) if classes is None else np.asarray(classes)
    order, chosen = np.lexsort((keys, classes)), []  # which is stable
    for rows in np.split(order, np.flatnonzero(np.diff(classes[order])) + 1):
        chosen.append(rows[: min(max(1, round(share * len(rows))), len(rows) - 1)])
    return np.sort(np.concatenate(chosen))


def groups_held_out(keys, share):
    """bool [n]: the records whose group, those of one key, is held out; of a single group none. keys: uint64 [n]."""
    groups, own = np.unique(np.asarray(keys, np.uint64), return_inverse=True)
    return np.isin(own, held_out(groups, share))
