"""WebDataset tar files with random access: their headers are read once (see tar_index.py), a pair by a few reads.

Of a pair are read the picture, its texts (.txt, .caption, .text), the fields of its .json, and `.cls`, its class: a
number, or a name. Nothing is ever unpacked to a disk; links and names that lead outside are refused all the same, since
whoever unpacks the file next might follow them.
"""

import collections
import dataclasses
import fnmatch
import glob
import hashlib
import json
import os
import pathlib
import re

import numpy as np

from multimodal.fields import RECIPE, captions_of, held_out
from multimodal.tar_index import FIELDS, FIRST_TEXT, HASH, JSON, LABEL, PICTURE, SHARD, Scanned, scan
from paradigm import storage
from paradigm.errors import UserError
from paradigm.names import HIDDEN, few, is_hidden, kind_of, left_out, split_of
from vision.decode_image import decode
from vision.files import SAMPLE_BYTES, SAMPLED, sample_of, spread
from vision.reading import Opened, Reading, digest

FORMAT = "paradigm-pairs-2"
LOOKED = 64  # pairs whose texts are looked at when tar files are opened
_INDEX, _META = "pairs_index.npy", "pairs_index.json"
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_DEFAULT = ("caption",)


class Index:
    """Rows int64 [n, c] (see tar_index.py); of a file, each process that gets a pickled one maps it for itself."""

    def __init__(self, rows, path=None):
        self.path, self._rows = path, rows

    def __getstate__(self):
        return {"path": self.path, "_rows": None if self.path else self._rows}

    @property
    def rows(self):
        if self._rows is None:
            self._rows = np.load(self.path, mmap_mode="r", allow_pickle=False)
        return self._rows


@dataclasses.dataclass
class TarPairs:
    """Pairs in tar files. paths: of the shards. index: of all. chosen: int64 [n], which of its rows.

    text, separator: see `captions_of`. fields_too: whether the .json is read where there is a text beside it.
    """

    paths: tuple[str, ...]
    index: Index
    chosen: np.ndarray
    text: tuple[str, ...]
    separator: str
    reading: Reading
    fields_too: bool = False

    def __len__(self):
        return len(self.chosen)

    def row(self, position):
        """int64 [c]: the index of a pair."""
        return self.index.rows[self.chosen[position]]

    def __getitem__(self, position):
        row = self.row(position)
        captions = self.captions(position)
        raw = self._member(row, PICTURE)
        if raw is None:
            raise ValueError("there is no picture beside the text")
        image = decode(raw, self.reading.channels, self.reading.max_pixels, RECIPE)
        return {"image": image, "label": int(row[LABEL]), "captions": captions}

    def captions(self, position):
        texts = self.texts(position) if self.text == _DEFAULT else ()
        if texts and not self.fields_too:
            return texts
        try:
            fields = self.fields(position)
            texts += captions_of(fields, self.text, self.separator)
        except ValueError:
            if not texts:
                raise
        if not texts:
            raise ValueError(f"it has no text{f' in {self.text}, only in ' + ', '.join(fields) if fields else ''}")
        return tuple(dict.fromkeys(texts))

    @property
    def labels(self):
        return self.read_labels()

    def read_labels(self):
        return np.asarray(self.index.rows[self.chosen, LABEL])

    def texts(self, position):
        """The texts that stand in files of their own: tuple of str."""
        row = self.row(position)
        found = [self._member(row, column) for column in range(FIRST_TEXT, len(row), 2)]
        return captions_of({"caption": [text for text in found if text is not None]}, _DEFAULT, self.separator)

    def fields(self, position):
        """The fields of the .json; a list there is one of captions."""
        raw = self._member(self.row(position), FIELDS)
        found = {} if raw is None else json.loads(raw)
        if isinstance(found, (str, list)):
            found = {"caption": found}
        if not isinstance(found, dict):
            raise ValueError("its .json is no object")
        return found

    def _member(self, row, column):
        """The bytes of a member, or None."""
        begin, size = int(row[column]), int(row[column + 1])
        if begin < 0:
            return None
        path = self.paths[row[SHARD]]
        with open(path, "rb", buffering=0) as file:
            raw = os.pread(file.fileno(), size, begin)
        if len(raw) != size:
            raise ValueError(f"{path} ends before byte {begin + size}")
        return raw

    def name(self, position):
        row = self.row(position)
        path = self.paths[row[SHARD]]
        begin = int(max(row[[PICTURE, FIELDS, *range(FIRST_TEXT, len(row), 2)]]))
        try:  # the header, which holds the name, is the block before
            with open(path, "rb", buffering=0) as file:
                return f"{path} ({os.pread(file.fileno(), 100, begin - 512).split(bytes(1))[0].decode()})"
        except (OSError, ValueError):
            return f"{path} (byte {begin})"


def open_tars(place, recipe, cache_dir=None):
    """The Opened of WebDataset tar files. The index is kept in `cache_dir` and made again when a shard has changed.

    PairData.valid_glob names the shards to hold out. Without it shards whose names, or folders, say train and valid or
    test are those splits; else the pairs with the smallest hashes of their keys are held out. Raises UserError if a
    shard is no plain tar file, is damaged, holds links or names that lead outside, or no pairs.
    """
    paths, others = _shards(place)
    scanned, kept = _scanned(paths, place, cache_dir), None
    index = scanned.rows
    if cache_dir is not None:
        kept = str(pathlib.Path(cache_dir) / _INDEX)
    has_text = (index[:, [FIELDS, *range(FIRST_TEXT, index.shape[1], 2)]] >= 0).any(1)
    lost = (index[:, PICTURE] < 0) | ~has_text
    split_by, said = _splits(paths, index, recipe, place)
    notes = [f"{lost.sum():,} pairs without a picture or a text"] if lost.any() else []
    reading = Reading(channels=recipe.channels, max_pixels=recipe.max_pixels)
    how = (recipe.text, recipe.separator, reading)
    everything = TarPairs(paths, Index(index, kept), np.arange(len(index)), *how)
    if lost.all() or (lost.any() and recipe.on_broken == "refuse"):
        first = everything.name(int(np.argmax(lost)))
        raise UserError(f"wds:{place} has {notes[0]}, first {first}: mend them, or set PairData.on_broken = 'replace'")
    fields_too = _look_at_texts(everything, np.flatnonzero(~lost), place)
    labels, classes = _classes(everything, scanned, recipe)
    if (labels != index[:, LABEL]).any():
        index = np.array(index)
        index[:, LABEL], kept = labels, None
    splits = {}
    for split, mask in split_by.items():
        splits[split] = TarPairs(paths, Index(index, kept), np.flatnonzero(mask), *how, fields_too)
    numbers = sorted(set(labels[labels >= 0].tolist()))
    by = f"classes by .cls: {few(classes if scanned.classes else numbers)}" if numbers else ""
    notes += [said, by, _captions_note(scanned.counts, recipe, fields_too)]
    notes.append(left_out(others + scanned.counts["left out"]))
    if scanned.counts["unlabelled"]:
        notes.append(f"{scanned.counts['unlabelled']:,} .cls that are no label left out")
    settings = (recipe.text, recipe.separator, recipe.valid, recipe.valid_glob)
    shards = [(os.path.basename(path), os.path.getsize(path)) for path in paths]
    content = hashlib.sha256(np.ascontiguousarray(index).tobytes()).hexdigest()
    members = [PICTURE, FIELDS, *range(FIRST_TEXT, index.shape[1], 2)]
    sample = [sample_of(paths[row[SHARD]], row[at], min(row[at + 1], SAMPLE_BYTES))
              for row in index[spread(len(index), SAMPLED)] for at in members if row[at] >= 0]  # fmt: skip
    lines = [*shards, settings, classes, content, fields_too, *sample]
    return Opened(splits, classes or None, digest(lines), "; ".join(filter(None, notes)))


def _splits(paths, index, recipe, place):
    """({split: bool [n]}, what was taken as what)."""
    names = [os.path.basename(path) for path in paths]
    if recipe.valid_glob:
        chosen = [k for k, name in enumerate(names) if fnmatch.fnmatch(name, recipe.valid_glob)]
        held = np.isin(index[:, SHARD], chosen)
        if held.all() or not held.any():
            which = "every" if held.all() else "no"
            raise UserError(f"wds:{place}: {which} shard with pairs matches PairData.valid_glob={recipe.valid_glob!r}")
        return {"train": ~held, "valid": held}, f"{len(chosen)} shards held out by PairData.valid_glob"
    by_name = [_split_of(path) for path in paths]
    said = ""
    if "train" in by_name and len(set(by_name) - {None}) > 1:
        if None in by_name:
            told = sorted(set(by_name) - {None})
            raise UserError(
                f"wds:{place} holds shards of {' and '.join(told)} and {names[by_name.index(None)]}: name those to "
                "read in PairData.source, and those to hold out in PairData.valid_glob"
            )
        found = {split: np.isin(index[:, SHARD], [k for k, s in enumerate(by_name) if s == split])
                 for split in ("train", "valid", "test") if split in by_name}  # fmt: skip
        said = "splits by the shards' names: " + ", ".join(f"{by_name.count(s)} of {s}" for s in found)
    else:
        found = {"train": np.ones(len(index), bool)}
    if "valid" not in found:
        rows, held = np.flatnonzero(found["train"]), np.zeros(len(index), bool)
        held[rows] = held_out(index[rows, HASH].astype(np.uint64), recipe.valid, f"wds:{place}")
        found = {"train": found["train"] & ~held, "valid": held} | {s: m for s, m in found.items() if s == "test"}
    if empty := [split for split, mask in found.items() if not mask.any()]:
        raise UserError(f"wds:{place}: no pair in the shards of {' and '.join(empty)}: add some, or leave them out")
    return found, said


def _split_of(path):
    """The split that a shard's folder or a word of its name says, or None."""
    words = re.split(r"[-_. ]+", pathlib.PurePath(path).stem)
    found = {split_of(word) for word in words} - {None}
    return split_of(os.path.basename(os.path.dirname(path))) or (found.pop() if len(found) == 1 else None)


def _look_at_texts(pairs, whole, place):
    """Whether a .json says more than the texts beside it. Raises UserError where none of some pairs has a text."""
    fields_too, told, names, reason = False, 0, set(), ""
    chosen = whole[spread(len(whole), LOOKED)]
    for position in chosen.tolist():
        try:
            told += bool(pairs.captions(position))
        except ValueError as error:
            reason = str(error)
        if pairs.row(position)[FIELDS] < 0:
            continue
        try:
            fields = pairs.fields(position)
        except ValueError:
            continue
        names |= fields.keys()
        if pairs.text == _DEFAULT and (texts := pairs.texts(position)):
            fields_too |= not set(captions_of(fields, pairs.text, pairs.separator)) <= set(texts)
    if not told:
        only = (
            f"; their .json have {few(sorted(names))}: choose with PairData.text"
            if names and not names & {*pairs.text}
            else f" ({reason})"
        )
        raise UserError(f"wds:{place}: none of {len(chosen)} pairs looked at has a text in {list(pairs.text)}{only}")
    return fields_too


def _captions_note(counts, recipe, fields_too):
    """Which members the captions come from, and how many each."""
    found = counts["captions"]
    if recipe.text != _DEFAULT:
        return f"captions from {', '.join(recipe.text)} of .json"
    texts = {kind: n for kind, n in found.items() if kind != JSON}
    said = [f".{kind.lstrip('.')} ({n:,})" for kind, n in texts.items()]
    if JSON in found and (fields_too or not texts or found[JSON] > max(texts.values())):
        said.append(f"caption of .json ({found[JSON]:,})")
    merged = [f"{kind} ({n:,})" for kind, n in counts["merged"].items()]
    return f"captions from {few(said)}" + (f"; members taken into pairs: {few(merged)}" if merged else "")


def _classes(pairs, scanned, recipe):
    """(labels int64 [n], names of the classes). Raises UserError for one that PairData.classes does not name."""
    labels, classes = np.array(scanned.rows[:, LABEL]), recipe.classes
    if scanned.classes and classes:
        known = {name: k for k, name in enumerate(classes)}
        table = np.array([*(known.get(name, -2) for name in scanned.classes), -1])
        named, labels = labels, table[labels]
    elif not classes:
        return np.maximum(labels, -1), scanned.classes
    wrong = (labels < -1) | (labels >= len(classes))
    if wrong.any():
        at = int(np.argmax(wrong))
        found = repr(scanned.classes[named[at]]) if scanned.classes else labels[at]
        raise UserError(f"{pairs.name(at)} is of class {found} and PairData.classes has {len(classes)} names, "
                        "of the classes 0 to the last: give each its name")  # fmt: skip
    return labels, classes


def _shards(place):
    """(paths, {kind: number of other files}) that a file, a folder, a glob or a range in braces stands for."""
    place, others = str(storage.expand(place)), collections.Counter()
    span = _RANGE.search(place)
    if span:
        first, last = int(span[1]), int(span[2])
        found = [_RANGE.sub(f"{n:0{len(span[1])}d}", place, count=1) for n in range(first, last + 1)]
        if _RANGE.search(found[0] if found else ""):
            raise UserError(f"wds:{place} has two ranges in braces: use one, or a * for the other")
    elif os.path.isdir(place):
        root = pathlib.Path(place)
        files = [path for path in sorted(root.rglob("*")) if path.is_file()]
        hidden = [path for path in files if is_hidden(path.relative_to(root).as_posix())]
        found = [str(path) for path in files if path.suffix == ".tar" and path not in set(hidden)]
        others = collections.Counter(kind_of(path.name) for path in files if path.suffix != ".tar")
        others[HIDDEN] = len(hidden)
    else:
        found = [place] if os.path.exists(place) else sorted(glob.glob(place))
    if not found:
        holds = f"; it holds files of {few(sorted(others))}" if others.total() else ""
        raise UserError(
            f"wds:{place}: there is no tar file (name a file, a folder, x-*.tar or x-{{000..127}}.tar){holds}"
        )
    if missing := [path for path in found if not os.path.isfile(path)]:
        raise UserError(f"wds:{place}: {missing[0]} is missing" + f" with {len(missing) - 1} more" * (len(missing) > 1))
    return tuple(found), others


def _scanned(paths, place, cache_dir):
    """The Scanned of these shards, as it was kept in `cache_dir`, its rows mapped into memory, or made and kept."""
    stamps = [[os.path.basename(p), os.path.getsize(p), os.stat(p).st_mtime_ns] for p in paths]
    wanted = {"format": FORMAT, "shards": stamps}
    if cache_dir is not None and (found := _kept(pathlib.Path(cache_dir), wanted)):
        return found
    found = scan(paths)
    if not len(found.rows):
        raise UserError(f"wds:{place} holds no picture and no .txt or .json in {len(paths)} tar files")
    if cache_dir is not None:
        directory = pathlib.Path(cache_dir)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / _META).unlink(missing_ok=True)  # it is written last, and says that the rest is whole
        with storage.replacing(directory / _INDEX) as file:
            np.save(file, found.rows)
        told = {"classes": found.classes, "counts": found.counts}
        storage.replace(directory / _META, json.dumps(wanted | told).encode())
    return found


def _kept(directory, wanted):
    """The Scanned that is kept in a directory; None if there is none, or of other shards."""
    try:
        meta = json.loads((directory / _META).read_text())
        if {name: meta.get(name) for name in wanted} != wanted:
            return None
        rows = np.load(directory / _INDEX, mmap_mode="r", allow_pickle=False)
        counts = {k: collections.Counter(v) if isinstance(v, dict) else v for k, v in meta["counts"].items()}
        classes = tuple(meta["classes"])
    except (OSError, ValueError, EOFError, KeyError):
        return None
    whole = rows.ndim == 2 and rows.shape[1] >= FIRST_TEXT and rows.dtype == np.int64
    return Scanned(rows, classes, counts) if whole else None
