"""WebDataset tar files with random access: their headers are read once, and a pair is then two reads at known places.

Files of one pair stand together and share a key: the name up to the first dot of its last part, so that `0/17.jpg`,
`0/17.txt` and `0/17.json` are one (webdataset/tariterators.py). Of a pair are read the picture, its text, and `.cls`,
the number of its class. Nothing is ever unpacked to a disk; links and names that lead outside are refused all the same,
since whoever unpacks the file next might follow them.
"""

import dataclasses
import fnmatch
import glob
import json
import os
import pathlib
import re
import tarfile
from typing import Any

import numpy as np

from multimodal.fields import RECIPE, captions_of, digest, held_out
from paradigm import storage
from paradigm.errors import UserError
from paradigm.records import keys_of
from vision.decode_image import decode, suffixes
from vision.sources import Opened, Reading

FORMAT = "paradigm-pairs-1"
_INDEX, _META = "pairs_index.npy", "pairs_index.json"
_KEY = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]*)")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_TEXT, _JSON, _CLASS = "txt", "json", "cls"
# Columns of the index: the shard, the hash of the key, then begin and size of four members, -1 where there is none.
_SHARD, _HASH, _IMAGE = 0, 1, 2
_AT = {_TEXT: 4, _JSON: 6, _CLASS: 8}
_COLUMNS = 10


class Index:
    """Rows int64 [n, 10], see above; of a file, each process that gets a pickled one maps it into memory for itself."""

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

    text, separator: see `captions_of`. classes: how many have a name; 0 takes any number.
    """

    paths: tuple[str, ...]
    index: Index
    chosen: np.ndarray
    text: tuple[str, ...]
    separator: str
    reading: Reading
    classes: int = 0

    def __len__(self):
        return len(self.chosen)

    def _row(self, position):
        return self.index.rows[self.chosen[position]]

    def __getitem__(self, position):
        row = self._row(position)
        captions = self.captions(position)
        raw = self._member(row, _IMAGE)
        if raw is None:
            raise ValueError("there is no picture beside the text")
        image = decode(raw, self.name(position), self.reading.channels, self.reading.max_pixels, RECIPE)
        return {"image": image, "label": self._label(row, position), "captions": captions}

    def _label(self, row, position):
        raw = self._member(row, _AT[_CLASS])
        label = -1 if raw is None else int(raw)
        if not -1 <= label < (self.classes or label + 1):
            raise UserError(f"{self.name(position)} is of class {label} and PairData.classes has {self.classes} names, "
                            "of the classes 0 to the last: give each its name")  # fmt: skip
        return label

    def captions(self, position):
        row = self._row(position)
        text, fields = self._member(row, _AT[_TEXT]), {}
        if text is not None and self.text == ("caption",):
            fields = {"caption": text}
        elif (raw := self._member(row, _AT[_JSON])) is not None:
            fields = json.loads(raw)
            if not isinstance(fields, dict):
                raise ValueError("its .json is no object")
        found = captions_of(fields, self.text, self.separator)
        if not found:
            raise ValueError(f"it has no text{f' in {self.text}, only in ' + ', '.join(fields) if fields else ''}")
        return found

    def _member(self, row, column):
        """The bytes of a member, or None."""
        begin, size = int(row[column]), int(row[column + 1])
        if begin < 0:
            return None
        path = self.paths[row[_SHARD]]
        with open(path, "rb", buffering=0) as file:
            raw = os.pread(file.fileno(), size, begin)
        if len(raw) != size:
            raise ValueError(f"{path} ends before byte {begin + size}")
        return raw

    def name(self, position):
        row = self._row(position)
        path = self.paths[row[_SHARD]]
        begin = int(max(row[[_IMAGE, *_AT.values()]]))
        try:  # the header, which holds the name, is the block before
            with open(path, "rb", buffering=0) as file:
                return f"{path} ({os.pread(file.fileno(), 100, begin - 512).split(bytes(1))[0].decode()})"
        except (OSError, ValueError):
            return f"{path} (byte {begin})"


def open_tars(place, recipe, cache_dir=None):
    """The Opened of WebDataset tar files. The index is kept in `cache_dir` and made again when a shard has changed.

    PairData.valid_glob names the shards to hold out; without it the pairs with the smallest hashes of their keys are.
    Raises UserError if a shard is no plain tar file, is damaged, holds links or names that lead outside, or no pairs.
    """
    paths = _shards(place)
    stamps = [[os.path.basename(p), os.path.getsize(p), os.stat(p).st_mtime_ns] for p in paths]
    index, kept = _kept(cache_dir, stamps), None
    if index is None:
        index = np.concatenate([_scan(k, path) for k, path in enumerate(paths)])
        if not len(index):
            raise UserError(f"wds:{place} holds no picture and no .txt or .json in {len(paths)} tar files")
        _keep(cache_dir, stamps, index)
    if cache_dir is not None:
        kept = str(pathlib.Path(cache_dir) / _INDEX)
    if recipe.valid_glob:
        chosen = [k for k, path in enumerate(paths) if fnmatch.fnmatch(os.path.basename(path), recipe.valid_glob)]
        held = np.isin(index[:, _SHARD], chosen)
        if held.all() or not held.any():
            which = "every" if held.all() else "no"
            raise UserError(f"wds:{place}: {which} shard with pairs matches PairData.valid_glob={recipe.valid_glob!r}")
    else:
        held = held_out(index[:, _HASH].astype(np.uint64), recipe.valid, f"wds:{place}")
    lost = (index[:, _IMAGE] < 0) | (index[:, [_AT[_TEXT], _AT[_JSON]]] < 0).all(1)
    note = f"{lost.sum():,} pairs without a picture or a text" if lost.any() else ""
    reading = Reading(channels=recipe.channels, max_pixels=recipe.max_pixels)
    how = recipe.text, recipe.separator, reading, len(recipe.classes)
    of = lambda mask: TarPairs(paths, Index(index, kept), np.flatnonzero(mask), *how)
    if lost.all() or (lost.any() and recipe.on_broken == "refuse"):
        first = of(lost).name(0)
        raise UserError(f"wds:{place} has {note}, first {first}: mend them, or set PairData.on_broken = 'replace'")
    settings = (recipe.text, recipe.separator, recipe.valid, recipe.valid_glob)
    return Opened(
        {"train": of(~held), "valid": of(held)},
        recipe.classes or None,
        digest([*stamps, settings, recipe.classes]),
        note,
    )


def _shards(place):
    """The paths that a file, a folder, a glob or a range in braces stands for."""
    place = str(storage.expand(place))
    span = _RANGE.search(place)
    if span:
        first, last = int(span[1]), int(span[2])
        found = [_RANGE.sub(f"{n:0{len(span[1])}d}", place, count=1) for n in range(first, last + 1)]
        if _RANGE.search(found[0] if found else ""):
            raise UserError(f"wds:{place} has two ranges in braces: use one, or a * for the other")
    elif os.path.isdir(place):
        found = sorted(str(p) for p in pathlib.Path(place).glob("*.tar"))
    else:
        found = [place] if os.path.exists(place) else sorted(glob.glob(place))
    if not found:
        raise UserError(f"wds:{place}: there is no tar file (name a file, a folder, x-*.tar or x-{{000..127}}.tar)")
    if missing := [path for path in found if not os.path.isfile(path)]:
        raise UserError(f"wds:{place}: {missing[0]} is missing" + f" with {len(missing) - 1} more" * (len(missing) > 1))
    return tuple(found)


def _scan(shard, path):
    """int64 [pairs, 10]: the index of one tar file."""
    rows: dict[Any, np.ndarray] = {}
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                _check(member, path)
                match = _KEY.fullmatch(member.name)
                if member.isdir() or not match:
                    continue
                key, suffix = match[1], match[2].lower()
                column = _IMAGE if f".{suffix}" in suffixes() else _AT.get(suffix)
                if column is None:
                    continue
                if key not in rows:
                    rows[key] = np.full(_COLUMNS, -1, np.int64)
                    rows[key][[_SHARD, _HASH]] = shard, keys_of([key])[0].astype(np.int64)
                if rows[key][column] >= 0:
                    raise UserError(f"{path} has two members for {key}.{suffix}: give each pair a key of its own")
                rows[key][column : column + 2] = member.offset_data, member.size
            end = archive.offset
        with open(path, "rb") as file:
            file.seek(end)
            block = file.read(512)
        if block != bytes(512):  # zeros end a whole file
            what = "damaged" if block else "cut short"
            raise UserError(f"{path} is {what} at byte {end}: fetch or pack it again")
    except tarfile.TarError as error:
        raise UserError(
            f"{path} cannot be read as an uncompressed tar file ({error}): fetch or pack it again"
        ) from error
    paired = [row for row in rows.values() if max(row[[_IMAGE, _AT[_TEXT], _AT[_JSON]]]) >= 0]
    return np.array(paired, np.int64).reshape(-1, _COLUMNS)


def _check(member, path):
    """UserError for what no data set needs and an attacker does."""
    if member.name.startswith("/") or ".." in member.name.split("/"):
        raise UserError(f"{path} is refused: its member {member.name!r} leads outside; pack it again without")
    if not (member.isreg() or member.isdir()):
        what = "a link" if member.issym() or member.islnk() else "no plain file"
        raise UserError(f"{path} is refused: its member {member.name!r} is {what}; pack it again without")


def _kept(cache_dir, stamps):
    """The index of these shards as `_keep` left it, mapped into memory; None if there is none."""
    if cache_dir is None:
        return None
    try:
        meta = json.loads((pathlib.Path(cache_dir) / _META).read_text())
        if meta != {"format": FORMAT, "shards": stamps}:
            return None
        index = np.load(pathlib.Path(cache_dir) / _INDEX, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return index if index.ndim == 2 and index.shape[1] == _COLUMNS and index.dtype == np.int64 else None


def _keep(cache_dir, stamps, index):
    if cache_dir is None:
        return
    directory = pathlib.Path(cache_dir)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / _META).unlink(missing_ok=True)  # it is written last, and says that the rest is whole
    with storage.replacing(directory / _INDEX) as file:
        np.save(file, index)
    storage.replace(directory / _META, json.dumps({"format": FORMAT, "shards": stamps}).encode())
