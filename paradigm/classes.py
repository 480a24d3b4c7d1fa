"""Which labels are classes: by one rule for every reader, since any column of values can be counted as some."""

import dataclasses
import re

from paradigm.errors import UserError
from paradigm.names import few

_NUMBER = re.compile(r"[-+]?(\d+[.,]?\d*|[.,]\d+)(e[-+]?\d+)?|nan", re.IGNORECASE)
FEWEST = 20  # records with a class of their own each that are no longer taken for a small set


def no_classes(names, records):
    """What labels that are no classes are, for a person: real numbers, or about one for each record; "" of classes.

    names: the distinct ones, of text or numbers. records: how many have one.
    """
    words = list(map(str, names))
    if len(words) > 1 and all(map(_NUMBER.fullmatch, words)):
        lists = any("," in word and set(words).issuperset(word.split(",")) for word in words)  # "1,2" beside 1 and 2
        if reals := [word for word in words if _is_real(word) and not (lists and "," in word)]:
            return f"{len(words):,} distinct real numbers, such as {reals[0]}"
    if records >= FEWEST and len(words) > 0.9 * records:
        return f"{len(words):,} distinct values in {records:,} records, such as {words[0][:40]!r}"
    return ""


def _is_real(word):
    return word.lower() != "nan" and not float(word.replace(",", ".")).is_integer()


def check_classes(names, records, where, fix):
    """Raises UserError where labels are no classes (see `no_classes`). where: of them. fix: what to do."""
    if found := no_classes(names, records):
        raise UserError(f"{where} holds {found}, which are no classes: {fix}")


def are_same(trained, found):
    """Whether data have the classes that a model was trained to tell apart, or none: their numbers else mean something
    else. trained, found: their names in order; numbers are no names, and say nothing."""
    numbered = lambda names: all(name.isdecimal() for name in names)
    return not (trained and found) or tuple(trained) == tuple(found) or numbered(trained) or numbered(found)


def check_same(trained, found, where):
    """Raises UserError where data have other classes (see `are_same`). where: the data."""
    if not are_same(trained, found):
        raise UserError(
            f"other classes: the run tells apart {few(trained)}, and {where} has {few(found)}: evaluate it on data of "
            "the same classes, by the same names"
        )


class OnClasses:
    """For objectives with a field `classes`: how many there are; None: as many as the data have (`bind_classes`)."""

    @property
    def lacks_classes(self):
        return self.classes is None

    def bind_classes(self, count):
        return dataclasses.replace(self, classes=count) if self.lacks_classes else self

    @property
    def known_classes(self):
        """How many classes there are. Raises UserError before the data have said it, and for fewer than two."""
        name = type(self).__name__
        if self.classes is None:
            raise UserError(f"{name}.classes is not set: the data of a run say it, or objective.bind_classes(count)")
        if self.classes < 2:
            raise UserError(f"{name}.classes={self.classes}: there is something to tell apart from 2 classes on")
        return self.classes

    def check_classes(self, prepared, where):
        """Raises UserError for data of another number of classes than is set, and of fewer than two."""
        name, found = type(self).__name__, prepared.classes or ()
        if len(found) < 2:
            has = f"all are {found[0]!r}" if found else "there are none"
            raise UserError(f"{name} needs labels of two classes or more, and in {where} {has}")
        if self.classes not in (None, len(found)):
            raise UserError(
                f"{name}.classes={self.classes} and the training records have {len(found)} labels: set it to that, or "
                "leave it out"
            )
