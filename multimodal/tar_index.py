"""The index of WebDataset tar files: their headers are read once, and a pair is then a few reads at known places.

Files of one pair stand under one key. WebDataset ends it at the first dot of a name's last part
(webdataset/tariterators.py), but names have dots of their own: here it ends at the last one, before a suffix that is
known. What is no pair by itself, such as `17.seg.png` beside `17.jpg` and `17.txt`, goes by WebDataset's rule: its
picture or text is read where the pair of that shorter key lacks one, and is left out, and counted, where it does not.

A file may be several tar files, one after the other; the same key is then another pair in each.
"""

import collections
import dataclasses
import os
import re
import sys
import tarfile
from typing import Any

import numpy as np

from paradigm.classes import no_classes
from paradigm.errors import UserError
from paradigm.names import HIDDEN, is_hidden, kind_of
from paradigm.records import keys_of
from vision.decode_image import suffixes

TEXTS, JSON, CLASS = ("txt", "caption", "captions", "text"), "json", "cls"
# Columns of the index: the shard, the hash of the key, begin and size of the picture and of the .json, the class (-1
# for none), then begin and size of each text; a begin is -1 where there is no such member.
SHARD, HASH, PICTURE, FIELDS, LABEL, FIRST_TEXT = 0, 1, 2, 4, 6, 7
_CLASS_BYTES = 256  # of a class's name
_BLOCK = 512


@dataclasses.dataclass
class Scanned:
    """What the headers of some tar files tell.

    rows: int64 [pairs, FIRST_TEXT + 2 texts]. classes: names that .cls members hold; () where they hold numbers, or
    are not there. counts: of what is read ("captions": {suffix: n}, "merged": {kind: n}) and what is not ("left out":
    {kind: n}, "unlabelled": n).
    """

    rows: np.ndarray
    classes: tuple[str, ...]
    counts: dict[str, Any]


class _Pair:
    """Members of one key: columns -> (begin, size), texts: {suffix: (begin, size)}, label: str or None."""

    def __init__(self):
        self.columns, self.texts, self.label = {}, {}, None

    @property
    def is_whole(self):
        return PICTURE in self.columns and self.has_text

    @property
    def has_text(self):
        return bool(self.texts) or FIELDS in self.columns


def scan(paths):
    """The Scanned of tar files. Raises UserError for one that is none, is damaged, or holds what no data set needs."""
    counts = {name: collections.Counter() for name in ("captions", "merged", "left out")}
    shards, words = [], []
    for shard, path in enumerate(paths):
        found = _pairs(path, counts).items()
        pairs = [(key, pair) for (_, key), pair in found if PICTURE in pair.columns or pair.has_text]
        shards.append(_rows(shard, pairs))
        for _, pair in pairs:
            words.append(pair.label and sys.intern(pair.label))
            counts["captions"].update([*pair.texts, *[JSON] * (FIELDS in pair.columns)])
    width = max((rows.shape[1] for rows in shards), default=FIRST_TEXT)
    rows = np.concatenate([np.pad(r, ((0, 0), (0, width - r.shape[1])), constant_values=-1) for r in shards])
    rows[:, LABEL], classes, counts["unlabelled"] = _labels(words)
    return Scanned(rows, classes, counts)


def _rows(shard, pairs):
    """int64 [pairs, c] of one shard's [(key, _Pair)], as yet without labels."""
    texts = max((len(pair.texts) for _, pair in pairs), default=0)
    rows = np.full((len(pairs), FIRST_TEXT + 2 * texts), -1, np.int64)
    for row, (_, pair) in zip(rows, pairs):
        for column, place in pair.columns.items():
            row[column : column + 2] = place
        for k, suffix in enumerate(sorted(pair.texts, key=_rank)):
            row[FIRST_TEXT + 2 * k : FIRST_TEXT + 2 * k + 2] = pair.texts[suffix]
    rows[:, SHARD] = shard
    if pairs:
        rows[:, HASH] = keys_of([key for key, _ in pairs]).astype(np.int64)
    return rows


def _rank(suffix):
    return TEXTS.index(suffix) if suffix in TEXTS else len(TEXTS)  # a stable sort keeps the others' order


def _pairs(path, counts):
    """{(archive, key): _Pair} of one tar file, in the order of the keys' first members."""
    pairs = collections.defaultdict(_Pair)
    try:
        with open(path, "rb") as file:
            for archive, member in _members(file, path):
                _check(member, path)
                if member.isdir():
                    continue
                stem, _, suffix = member.name.rpartition(".")
                suffix = suffix.lower()
                known = f".{suffix}" in suffixes() or suffix in (*TEXTS, JSON, CLASS)
                if is_hidden(member.name) or not known or stem.rpartition("/")[2] == "":
                    counts["left out"][HIDDEN if is_hidden(member.name) else kind_of(member.name)] += 1
                    continue
                pair, place = pairs[archive, stem], (member.offset_data, member.size)
                if suffix == CLASS:
                    taken, pair.label = pair.label, _class(file, member)
                elif suffix in TEXTS:
                    taken = pair.texts.get(suffix)
                    pair.texts[suffix] = place
                else:
                    column = FIELDS if suffix == JSON else PICTURE
                    taken = pair.columns.get(column)
                    pair.columns[column] = place
                if taken is not None:
                    raise UserError(f"{path} has two members for {stem}.{suffix}: give each pair a key of its own")
    except tarfile.TarError as error:
        if open(path, "rb").read(2) in (b"\x1f\x8b", b"BZ", b"\xfd7", b"(\xb5"):
            why = "it is packed, and pairs are read in any order"
            raise UserError(f"{path} cannot be read as an uncompressed tar file: {why}; unpack it") from None
        raise UserError(
            f"{path} cannot be read as an uncompressed tar file ({error}): fetch or pack it again"
        ) from error
    return _merged(path, pairs, counts)


def _merged(path, pairs, counts):
    """The pairs, those that are none by themselves joined by WebDataset's rule."""
    apart = collections.defaultdict(list)  # (archive, key up to the first dot) -> what is no pair by itself
    for archive, key in pairs:
        folder, slash, base = key.rpartition("/")
        if "." in base and not pairs[archive, key].is_whole:
            apart[archive, folder + slash + base.partition(".")[0]].append((archive, key))
    for short, keys in apart.items():
        own = pairs.get(short)
        pictures = [key[1] for key in keys if PICTURE in pairs[key].columns]
        if own is not None and PICTURE not in own.columns and len(pictures) > 1:
            raise UserError(
                f"{path} has the pictures {' and '.join(pictures)} for the text of {short[1]}: give that the one that "
                "belongs to it"
            )
        if own is None and not (len(pictures) == 1 and any(pairs[key].has_text for key in keys)):
            continue  # they have nothing but a few letters in common
        own, lacks_text = own or _Pair(), own is None or not own.has_text
        for key in keys:
            pair, ending = pairs[key], key[1][len(short[1]) :]
            for column, place in pair.columns.items():
                taken = column not in own.columns and (column == PICTURE or lacks_text)
                if taken:
                    own.columns[column] = place
                kind = f"{ending}.{JSON}" if column == FIELDS else f"{ending} (a picture)"
                counts["merged" if taken else "left out"][kind] += 1
            for suffix, place in pair.texts.items():
                if lacks_text:
                    own.texts[f"{ending}.{suffix}"] = place
                counts["merged" if lacks_text else "left out"][f"{ending}.{suffix}"] += 1
        if short in pairs:
            for key in keys:
                del pairs[key]
        else:  # in the place of the first of them
            first = keys[0]
            pairs = {short if key == first else key: own if key == first else pair
                     for key, pair in pairs.items() if key == first or key not in keys}  # fmt: skip
    return pairs


def _class(file, member):
    """The text of a .cls member; "" where it is none."""
    raw = os.pread(file.fileno(), min(member.size, _CLASS_BYTES + 1), member.offset_data)
    try:
        text = raw.decode("utf-8").strip()
    except UnicodeDecodeError:
        return ""
    return text if len(raw) <= _CLASS_BYTES and text.isprintable() else ""


def _labels(words):
    """(a number for each, -1 for none; the names of the classes, () where they are numbers; how many are no label)."""
    told = {word for word in words if word}
    if no_classes(sorted(told), sum(map(bool, words))):
        return [-1] * len(words), (), sum(word is not None for word in words)
    numbers = all(re.fullmatch(r"-?\d{1,9}", word) for word in told)
    unlabelled = sum(word == "" for word in words)
    if numbers:
        return [int(word) if word else -1 for word in words], (), unlabelled
    classes = tuple(sorted(told))
    number = {name: k for k, name in enumerate(classes)}
    return [number.get(word, -1) for word in words], classes, unlabelled


def _members(file, path):
    """(which archive of the file, TarInfo) of every member. Raises UserError where it is damaged or cut short."""
    begin, archive = 0, 0
    while begin is not None:
        file.seek(begin)
        with tarfile.open(fileobj=file, mode="r:") as found:
            members = 0
            for member in found:
                members += 1
                yield archive, member
            end = found.offset
        file.seek(end)
        block = file.read(_BLOCK)
        if block != bytes(_BLOCK) or (archive and not members):  # zeros end a whole file
            what = "damaged" if block else "cut short"
            raise UserError(f"{path} is {what} at byte {end}: fetch or pack it again")
        begin, archive = _next(file, end), archive + 1


def _next(file, begin):
    """Where the first block from `begin` on lies that holds more than zeros; None if there is none."""
    file.seek(begin)
    while chunk := file.read(1 << 20):
        if rest := chunk.lstrip(b"\0"):
            return begin + (len(chunk) - len(rest)) // _BLOCK * _BLOCK
        begin += len(chunk)
    return None


def _check(member, path):
    """UserError for what no data set needs and an attacker does."""
    if member.name.startswith("/") or ".." in member.name.split("/"):
        raise UserError(f"{path} is refused: its member {member.name!r} leads outside; pack it again without")
    if not (member.isreg() or member.isdir()):
        what = "a link" if member.issym() or member.islnk() else "no plain file"
        raise UserError(f"{path} is refused: its member {member.name!r} is {what}; pack it again without")
