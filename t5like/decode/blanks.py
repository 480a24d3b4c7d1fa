"""How a model that was trained to write what is missing in a text is asked to fill blanks, and its answer read."""

import dataclasses

import numpy as np

from paradigm.capabilities import Infilling
from paradigm.errors import UserError


class BySentinels(Infilling):
    """A blank is a sentinel, and what fills it is written behind that sentinel: T5's way.

    front: ids before the text, as of a mode.
    """

    front = ()

    def with_blanks(self, ids, vocabulary):
        return {"prompts": [[]], "inputs": [np.r_[self.front, ids, vocabulary.end].astype(np.int32)]}

    def fillings(self, ids, found, vocabulary):
        spans = spans_of(found, vocabulary)
        return [spans.get(i, []) for i in ids if i in vocabulary.sentinels]


class ByMask(Infilling):
    """A blank is the mask, and the whole text is written: BART's way."""

    def with_blanks(self, ids, vocabulary):
        v, front = vocabulary, [] if vocabulary.bos is None else [vocabulary.bos]
        masked = [v.mask if i in v.sentinels else i for i in ids]
        # A decoder that has to write bos is started by the end (t5like/denoise.py).
        started = dataclasses.replace(v, bos=v.end) if front else v
        inputs = [np.array([*front, *masked, v.end], np.int32)]
        return {"prompts": [front], "inputs": inputs, "vocabulary": started, "given": len(ids)}

    def fillings(self, ids, found, vocabulary):
        """What stands between the parts of the text that are given; None where one of them was not written again."""
        ends = [k for k, i in enumerate(ids) if i in vocabulary.sentinels]
        parts = [list(ids[a:b]) for a, b in zip([0, *(k + 1 for k in ends)], [*ends, len(ids)])]
        found, at, filled = list(map(int, found)), 0, []
        for n, part in enumerate(parts):
            last = n == len(parts) - 1
            places = range(len(found) - len(part), len(found) - len(part) + 1) if last else range(at, len(found) + 1)
            place = next((p for p in places if p >= at and found[p : p + len(part)] == part), None)
            if place is None or (n == 0 and place):
                return None
            filled += [found[at:place]] if n else []
            at = place + len(part)
        return filled


class ByGap(Infilling):
    """The blank is the mask, and what fills it is all that is written: PEGASUS' way."""

    def with_blanks(self, ids, vocabulary):
        if (blanks := sum(i in vocabulary.sentinels for i in ids)) > 1:
            raise UserError(f"infill: pegasus writes sentences one after the other and tells no blanks apart: {blanks} "
                            "are too many, leave one")  # fmt: skip
        masked = [vocabulary.mask if i in vocabulary.sentinels else i for i in ids]
        return {"prompts": [[]], "inputs": [np.array([*masked, vocabulary.end], np.int32)]}

    def fillings(self, ids, found, vocabulary):
        return [found]


def spans_of(ids, vocabulary):
    """{sentinel id: the ids after it} of a target such as "<X> these truths <Y> self evident"; the first of equals."""
    ids = np.asarray(ids)
    marks = [*np.flatnonzero(np.isin(ids, vocabulary.sentinels)).tolist(), len(ids)]
    spans = {}
    for mark, end in zip(marks, marks[1:]):
        spans.setdefault(int(ids[mark]), ids[mark + 1 : end])
    return spans
