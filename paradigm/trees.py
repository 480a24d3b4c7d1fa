"""Trees by path: a leaf's name is its path, 'encoder/layers/attention/query/kernel'.

Tables (partition rules, weight decay, learning-rate multipliers) are read against these names, first match wins.
"""

import dataclasses
import re

import jax
import numpy as np

from paradigm.errors import UserError

KINDS = {bool: "True or False", int: "a whole number", float: "a number", str: "a text"}  # of a table's values
STACKED = "layers"  # a path component of this name: the leaves below it carry a leading layer axis


def path_name(path):
    """'a/b/0' for a jax key path."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def named_leaves(tree, is_leaf=None):
    """[(name, leaf), ...] in jax's order."""
    return [(path_name(p), x) for p, x in jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)[0]]


def nested(named):
    """Nested dicts from {'a/b/c': leaf}: the inverse of named_leaves for a tree of dicts."""
    root = {}
    for name, leaf in named.items():
        *parents, last = name.split("/")
        node = root
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return root


def named_map(fn, tree, *rest):
    """jax.tree.map whose function also gets the name: fn(name, leaf, *others)."""
    return jax.tree_util.tree_map_with_path(lambda p, *xs: fn(path_name(p), *xs), tree, *rest)


def merge(tree, other):
    """Two nested dicts in one; a leaf of `other` replaces one of the same name."""
    out = dict(tree)
    for key, value in other.items():
        out[key] = merge(out[key], value) if isinstance(value, dict) and isinstance(out.get(key), dict) else value
    return out


def split(tree, table):
    """(the rest, what the table says True of): nested dicts that `merge` joins again.

    Args:
        table: ((regex on 'a/b/kernel', bool), ...), the first match counts and the rest is False; () is all the rest.

    Raises:
        UserError: a pattern that matches no leaf, or a table that takes every leaf.
    """
    check_table(table, "freeze", bool)
    named = dict(named_leaves(tree))
    for pattern, _ in table:
        if not any(re.search(pattern, name) for name in named):
            near = ", ".join(list(named)[:3])
            raise UserError(f"freeze: {pattern!r} matches no parameter (such as {near}): correct it or leave it out")
    taken = {name: x for name, x in named.items() if first_match(table, name, False)}
    if taken and len(taken) == len(named):
        raise UserError(f"freeze: {table} freezes every parameter, and nothing is left to train: leave one out")
    return nested({name: x for name, x in named.items() if name not in taken}), nested(taken)


def is_stacked(name):
    """Whether the leaf of this name carries a leading layer axis."""
    return STACKED in name.split("/")


def check_table(table, what, kind):
    """Raises UserError, which begins with `what`, for a rule that is not (regular expression, value of this kind)."""
    for rule in table:
        rightly = f"{what}: {rule!r} is not (regular expression, {KINDS[kind]})"
        if not (isinstance(rule, tuple | list) and len(rule) == 2 and isinstance(rule[0], str)):
            raise UserError(f"{rightly}; a table of one rule has a comma behind it, as in (('^model/', VALUE),)")
        fitting = int | float if kind is float else kind
        if not isinstance(rule[1], fitting) or isinstance(rule[1], bool) != (kind is bool):
            raise UserError(rightly)
        try:
            re.compile(rule[0])
        except re.error as error:
            raise UserError(f"{rightly}: {error}") from None


def check_patterns(patterns, what):
    """Raises UserError, which begins with `what`, for one that is no regular expression."""
    for pattern in patterns:
        try:
            re.compile(pattern)
        except (re.error, TypeError) as error:
            raise UserError(f"{what}: {pattern!r} is no regular expression: {error}") from None


def first_match(table, name, default=None):
    """The value of the first (regex, value) whose regex is found in `name`."""
    for pattern, value in table:
        if re.search(pattern, name):
            return value
    return default


def stack(trees):
    """Per-layer trees -> one tree whose leaves have a leading layer axis."""
    return jax.tree.map(lambda *xs: np.stack(xs) if isinstance(xs[0], np.ndarray) else jax.numpy.stack(xs), *trees)


def mean(trees):
    """The mean of trees of one structure, leaf by leaf."""
    return jax.tree.map(lambda *xs: sum(xs) / len(xs), *trees)


def merge_strict(wanted, found, where="checkpoint"):
    """`found`'s leaves in `wanted`'s structure; every leaf must be there with its shape.

    Raises:
        UserError: naming the leaf, the shape wanted and the shape found (first five of each kind).
    """
    have = dict(named_leaves(found))
    want = dict(named_leaves(wanted))
    problems = [f"{n}: wanted {tuple(x.shape)} {x.dtype}, found nothing" for n, x in want.items() if n not in have]
    problems += [f"{n}: wanted nothing, found {tuple(x.shape)} {x.dtype}" for n, x in have.items() if n not in want]
    problems += [
        f"{n}: wanted {tuple(x.shape)}, found {tuple(have[n].shape)}"
        for n, x in want.items()
        if n in have and tuple(have[n].shape) != tuple(x.shape)
    ]
    if problems:
        raise UserError(f"{where} does not fit the model: " + "; ".join(problems[:5]) + _more(problems))
    return named_map(lambda n, _: have[n], wanted)


@dataclasses.dataclass(frozen=True)
class MergeReport:
    """What a partial merge did: names of leaves that were taken, kept as they were, and left over."""

    matched: tuple
    missing: tuple
    unexpected: tuple

    def __str__(self):
        return f"{len(self.matched)} matched, {len(self.missing)} missing, {len(self.unexpected)} unexpected"


def merge_partial(wanted, found, where="checkpoint"):
    """(tree, MergeReport): leaves of `found` where name and shape agree, `wanted`'s own elsewhere.

    Raises:
        UserError: when nothing matches, which is never what was meant.
    """
    have = dict(named_leaves(found))
    fits = {n for n, x in named_leaves(wanted) if n in have and tuple(have[n].shape) == tuple(x.shape)}
    report = MergeReport(
        tuple(sorted(fits)),
        tuple(n for n, _ in named_leaves(wanted) if n not in fits),
        tuple(n for n in have if n not in fits),
    )
    if not fits:
        ours, theirs = [n for n, _ in named_leaves(wanted)][:2], list(have)[:2]
        raise UserError(f"no leaf of {where} matches the model: it wants {ours} ..., {where} holds {theirs} ...")
    return named_map(lambda n, x: have[n] if n in fits else x, wanted), report


def _more(problems):
    return f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
