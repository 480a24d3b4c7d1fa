"""What the names of files and folders say, by one rule for every reader: hidden ones, splits, and kinds."""

import collections
import pathlib
import re
import unicodedata

SPLITS = {  # split -> what people call it, in any case
    "train": ("train", "training"),
    "valid": (
        *("valid", "validation", "val", "dev", "development", "eval", "evaluation"),
        *("heldout", "held-out", "held_out", "holdout", "hold-out", "hold_out"),
    ),
    "test": ("test", "testing"),
}
SPLIT_OF = {word: split for split, words in SPLITS.items() for word in words}
_WORD = "|".join(sorted(SPLIT_OF, key=len, reverse=True))
_CLEAN = re.compile(  # after a number, before what it is a split of, before a year
    rf"(?:\d+[-_. ]+)?({_WORD})[-_. ]*(?:set|data|dataset|images?|imgs?|photos|split)?[-_. ]*(?:(?:19|20)\d\d)?"
)
_COMPOUND = re.compile(rf"(?:(.+)[-_. ])?({_WORD})(?:[-_. ](.+))?")
_FIRST = re.compile(rf"({_WORD})(?![a-z])")
_SHARD = re.compile(r"[-_.]\d+(-of-\d+(-[0-9a-f]+)?)?$")
HIDDEN, DANGLING, REPLACED = KINDS = "hidden name", "dangling link", "replaced file"  # left out, beside suffixes
_NAMED = 6  # kinds of files that a line names


def parts_of(name):
    """The folders and the file of a name; an archive's may begin with ./ or worse, which leads nowhere here."""
    return tuple(part for part in name.replace("\\", "/").split("/") if part not in ("", ".", ".."))


def plain(name):
    """A name of a file in the one form of all that it may be written in: with slashes, accented letters as one each."""
    return unicodedata.normalize("NFC", "/".join(parts_of(name)))


def is_hidden(name):
    """Whether a file is nobody's data: it, or a folder that it lies in, is hidden or an operating system's own."""
    return any(part.startswith(".") or part in ("__MACOSX", "@eaDir") for part in parts_of(name))


def split_of(name):
    """train, valid or test for one of their names, such as Training, val2017 or test_set; None for any other."""
    found = _CLEAN.fullmatch(name.strip().lower())
    return found and SPLIT_OF[found[1]]


def says_splits(splits):
    """Whether the cells of a column, each read by `split_of`, say splits: all of them one, or train and another."""
    known = {*splits} - {None}
    return bool(known) and ("train" in known and len(known) > 1 or None not in splits)


def splits_of(names):
    """{split: its names} among the names of folders that lie side by side.

    Names that share all but the word, such as seg_train and seg_test, are splits where none says train alone.
    """
    found = collections.defaultdict(list)
    for name in sorted(names):
        if split := split_of(name):
            found[split].append(name)
    if "train" in found:
        return dict(found)
    stems = collections.defaultdict(lambda: collections.defaultdict(list))
    for name in sorted(names):
        if match := _COMPOUND.fullmatch(name.lower()):
            stems[match[1], match[3]][SPLIT_OF[match[2]]].append(name)
    whole = [dict(splits) for splits in stems.values() if "train" in splits and len(splits) > 1]
    return whole[0] if len(whole) == 1 and not found else dict(found)


def splits_by_path(paths):
    """{key: its split} of {key: names of its folders and of its file, without endings and shards' numbers}, where names
    of files or folders side by side say so, one of them train."""
    beside = collections.defaultdict(set)
    for path in paths.values():
        for k, part in enumerate(path):
            beside[tuple(path[:k])].add(part)
    said = {folder: _said(parts) for folder, parts in beside.items()}
    said = {f: {n: s for s, own in by.items() for n in own} for f, by in said.items() if "train" in by and len(by) > 1}
    split = lambda path: next((s for k, n in enumerate(path) if (s := said.get(tuple(path[:k]), {}).get(n))), None)
    return {key: found for key, path in paths.items() if (found := split(path))}


def first_of(name):
    """The split that a name begins with, as validation_matched and test1 do; None."""
    word = _FIRST.match(name.lower())
    return word and SPLIT_OF[word[1]]


def _said(names):
    """`splits_of`, and beside a train also names that begin with a split, as dev_matched does beside train."""
    found, said = splits_of(names), collections.defaultdict(list)
    known = {name: split for split, own in found.items() for name in own} if "train" in found else {}
    for name in sorted(names):
        if split := known.get(name) or first_of(name):
            said[split].append(name)
    return dict(said) if "train" in said and len(said) > 1 else found


def without_shard(name):
    """A file's name, its ending taken off, without the number of its shard: train of train-00001-of-01024-ab12."""
    return _SHARD.sub("", name)


def split_in(name):
    """The one split that a word of a name says, as oos_train does; else None."""
    found = {SPLIT_OF[word] for word in re.split(r"[^a-z]+", name.lower()) if word in SPLIT_OF}
    return found.pop() if len(found) == 1 else None


def kind_of(name):
    """What a file is called in a count: its suffix."""
    return pathlib.PurePosixPath(parts_of(name)[-1]).suffix.lower() or "no suffix"


def left_out(kinds):
    """One line for {kind: number of files} that are not read; "" for none."""
    kinds = collections.Counter({kind: count for kind, count in kinds.items() if count})
    order = sorted(kinds, key=lambda kind: (-kinds[kind], kind))
    plural = lambda kind: "s" * (kinds[kind] != 1)
    lines = [
        f"{kinds[k]:,} {k}{plural(k)} left out" if k in KINDS else
        f"{kinds[k]:,} file{plural(k)} of {k} left out" for k in order[:_NAMED]
    ]  # fmt: skip
    if rest := order[_NAMED:]:
        lines.append(f"{sum(kinds[k] for k in rest):,} files of {len(rest)} other kinds left out")
    return ", ".join(lines)


def few(names, count=8):
    """Some names for a line."""
    names = list(map(str, names))
    return ", ".join(names[:count]) + f" and {len(names) - count:,} more" * (len(names) > count)
