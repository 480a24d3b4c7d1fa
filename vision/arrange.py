"""Splits and classes of pictures, by their folders. Whatever is taken as one of them is said."""

import collections
import dataclasses
from typing import Any

from paradigm.errors import UserError
from paradigm.names import few, parts_of, plain, split_of, splits_of


@dataclasses.dataclass(frozen=True)
class Arranged:
    """splits: {split: [(name, class or None)]}. left_out: how many names are in none. note: what was taken as what."""

    splits: dict[str, Any]
    left_out: int
    note: str


def arrange(names, where, labels=True):
    """The Arranged of the names of picture files: [OUTER/ ...] [SPLIT/] [CLASS/ ...] FILE.

    An outer folder that holds all the others is passed through. Raises UserError if a split has a class that train has
    not, if some pictures have a class and others not, or if a folder may be a split as well as a class.
    """
    # Names of folders that look alike are alike, however a Mac or a zip writes their accents.
    outer, paths = _inner([parts_of(plain(name)) for name in names])
    if all(len(p) == 2 for p in paths) and len(tops := {p[0] for p in paths}) == 1 and not split_of([*tops][0]):
        outer, paths = [*outer, *tops], [p[1:] for p in paths]  # one class alone is none
    paths = _split_first(paths, where)
    folders = {p[0] for p in paths if len(p) > 1}
    found = splits_of(folders)
    _check_splits(found, sorted(folders - {f for own in found.values() for f in own}), paths, where)
    split_by = {own[0]: split for split, own in found.items()}
    notes = [f"all inside of {'/'.join(outer)}"] if outer else []
    if split_by:
        rows, outside = collections.defaultdict(list), collections.Counter()
        for name, path in zip(names, paths):
            if len(path) > 1 and path[0] in split_by:
                rows[split_by[path[0]]].append((name, path[1:]))
            else:
                outside[f"{path[0]}/" if len(path) > 1 else path[0]] += 1
        rows = {split: _unnested(rows[split], split, own[0]) for split, own in found.items()}
        inner, rows = _one_inside(rows)
        notes += [f"all of a split inside of {'/'.join(inner)}"] if inner else []
        notes.append("splits by folder: " + ", ".join(f"{own[0]} is {split}" for split, own in found.items()))
        if outside:
            notes.append(
                f"{outside.total():,} outside of train, valid and test are left out ({few(sorted(outside), 4)})"
            )
    else:
        rows = {"train": list(zip(names, paths))}
    splits = {s: [(n, p[0] if labels and len(p) > 1 else None) for n, p in part] for s, part in rows.items()}
    classes = _check_classes(splits, where)
    if whole := classes["train"]:
        notes.append(f"classes by folder: {few(sorted(whole))}")
        lacking = {split: whole - own for split, own in classes.items() if own and own != whole}
        notes += [f"{split} has none of {few(sorted(without), 4)}" for split, without in lacking.items()]
        if bare := [split for split, part in splits.items() if part[0][1] is None]:
            notes.append(f"no classes in {' and '.join(bare)}")
    return Arranged(splits, len(names) - sum(map(len, splits.values())), "; ".join(notes))


def maps_of(names, folder, where):
    """({picture: its map}, notes) of names of picture files, the maps in folders of this name.

    A picture's map has its path with one folder more, or one exchanged, whatever its ending: images/train/x.jpg and
    masks/train/x.png, train/x.jpg and train/masks/x.png. Raises UserError where there is no such folder, or none of its
    maps is a picture's.
    """
    split = lambda name: tuple(plain(name).rpartition(".")[0].split("/"))
    without = lambda path, k: (*path[:k], *path[k + 1 :])
    paths = {name: split(name) for name in names}
    maps = {without(path, path.index(folder)): name for name, path in paths.items() if folder in path[:-1]}
    if not maps:
        folders = sorted({part for path in paths.values() for part in path[:-1]})
        raise UserError(
            f"ImageData.regions='{folder}': {where} holds no folder of this name; it holds {few(folders, 8) or 'none'}"
        )
    found, alone = {}, []
    for name, path in paths.items():
        if folder not in path[:-1]:
            keys = (path, *(without(path, k) for k in range(len(path) - 1)))
            if (key := next((key for key in keys if key in maps), None)) is None:
                alone.append(name)
            else:
                found[name] = maps[key]
    if not found:
        raise UserError(
            f"{where}: none of the maps in {folder} is of a picture, such as {sorted(maps.values())[0]}: name each "
            "like its picture, in folders alike"
        )
    notes = [f"maps of classes in {folder}"]
    notes += [f"{len(alone):,} pictures without a map are left out ({few(sorted(alone), 4)})"] if alone else []
    unused = len(maps) - len(set(found.values()))
    return found, notes + ([f"{unused:,} maps without a picture are left out"] if unused else [])


def _inner(paths):
    """(outer folders, paths below them): of a folder that holds all and more folders, unless it is a split."""
    outer = []
    while len({p[0] for p in paths}) == 1 and any(len(p) > 2 for p in paths):
        [top] = {p[0] for p in paths}
        if split_of(top) and "train" not in splits_of({p[1] for p in paths if len(p) > 2}):
            break
        outer.append(top)
        paths = [p[1:] for p in paths]
    return outer, paths


def _split_first(paths, where):
    """The paths, [SPLIT/ CLASS/ ...] FILE, where each class brings its own folders train, test ... instead.

    Raises UserError where only some of the classes' folders are such.
    """
    inside = {p[1] for p in paths if len(p) > 2}
    if "train" not in splits_of(inside) or splits_of({p[0] for p in paths if len(p) > 1}):
        return paths
    others = sorted({"/".join(p[:2]) for p in paths if len(p) < 3 or not split_of(p[1])})
    if others:
        raise UserError(
            f"{where} holds folders train inside of its folders, and others beside those, such as {few(others, 4)}: "
            "have a folder for each split, with the same classes in it"
        )
    return [(p[1], p[0], *p[2:]) for p in paths]


def _unnested(rows, split, name):
    """A split's rows without a folder inside that says it once more, as its `name` does: of archives packed twice."""
    again = lambda folder: folder == name or split_of(folder) == split
    while len({p[0] for _, p in rows}) == 1 and all(len(p) > 1 for _, p in rows) and again(rows[0][1][0]):
        rows = [(name, p[1:]) for name, p in rows]
    return rows


def _one_inside(rows):
    """(folders, {split: rows below them}): of the one folder that all splits have inside, which is no class alone."""
    passed = []
    while all(len(p) > 1 for own in rows.values() for _, p in own):
        if len(inside := {p[0] for own in rows.values() for _, p in own}) > 1:
            break
        passed += inside
        rows = {split: [(name, p[1:]) for name, p in own] for split, own in rows.items()}
    return passed, rows


def _check_splits(found, others, paths, where):
    """UserError where the folders found to be splits may be something else."""
    for split, own in found.items():
        if len(own) > 1:
            raise UserError(f"{where} holds {' and '.join(own)}, which both say {split}: rename or remove one of them")
    names = [own for [own] in found.values()]
    if found and "train" not in found and not others:
        raise UserError(f"{where} holds {' and '.join(sorted(names))} and no folder train: add it, or name one")
    flat = "train" in found and not any(len(p) > 2 for p in paths if p[0] == found["train"][0])
    if others and found and ("train" not in found or (len(found) == 1 and flat)):
        raise UserError(
            f"{where} holds {' and '.join(sorted(names))} beside {few(others, 4)}: a split or a class? If a split, "
            f"{'move the others away' if flat else 'put the others into a folder train'}; if a class, rename it"
        )


def _check_classes(splits, where):
    """{split: its classes}; UserError where not all pictures of a split have one, or one that train lacks."""
    for part in splits.values():
        without = next((name for name, label in part if label is None), None)
        if without is not None and any(label is not None for _, label in part):
            raise UserError(
                f"{where} has pictures in class folders and others beside them ({without}): move those into a "
                "class, or set ImageData.labels = False"
            )
    classes = {split: {label for _, label in part} - {None} for split, part in splits.items()}
    for split, own in classes.items():
        if own - classes["train"]:
            only = [f"{few(sorted(more))} only in {s}" for s, more in
                    (("train", classes["train"] - own), (split, own - classes["train"])) if more]  # fmt: skip
            raise UserError(
                f"{where}: the class folders of train and {split} differ ({'; '.join(only)}): rename or complete "
                "them, or set ImageData.labels = False"
            )
    return classes
