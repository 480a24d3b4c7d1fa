"""Two pieces of text in one row, and whether they belong together so: the data of BERT's and of ALBERT's second task.

    inputs   [CLS] A [SEP] B [SEP]        types 0 up to A's [SEP], then 1

next   B is what follows A, or half of the time text from elsewhere (Devlin et al. 2019, section 3.1, task 2)
order  B follows A, and half of the time the two have changed places (Lan et al. 2020, "ALBERT", section 3.1)

A and B are of one document, cut at any place. Pure numpy, in data workers.
"""

import dataclasses

import numpy as np

from paradigm.errors import UserError, choose
from t5like.corrupt import window
from t5like.masking import Masking

PAIRS = ("next", "order")


@dataclasses.dataclass(frozen=True)
class PairMasking:
    """Makes the row, then masks it. masking: whose vocabulary has cls and sep. kind: of PAIRS.

    Raises UserError for a vocabulary without them, and rows in which two texts have no room.
    """

    masking: Masking
    kind: str

    def __post_init__(self):
        choose("MaskedLM.pairs", self.kind, dict.fromkeys(PAIRS))
        v = self.masking.vocabulary
        if v is not None and (v.cls is None or v.sep is None):
            raise UserError(
                f"masked_lm: pairs={self.kind!r} frames two texts by cls and sep, which this tokenizer lacks: give it "
                "TextData.specials = ('mask', 'cls', 'sep'), or launch.prepare --specials=mask,cls,sep"
            )
        if self.room < 4:
            raise UserError(
                f"masked_lm: texts too short: length {self.masking.length} leaves {self.room} tokens to two"
            )

    @property
    def room(self):
        """Tokens of text in a row."""
        return self.masking.length - 3

    @property
    def raw_length(self):
        """Tokens a data window must hold; the second half is where other texts come from."""
        return self.room * (2 if self.kind == "next" else 1)

    def __call__(self, example, rng, step, train):
        """As Masking, and types int32 [L], pair int32 [] (1: B is from elsewhere, or the two are swapped) and
        pair_weight float32 [], 0 where the window has no document of four tokens."""
        v, read = self.masking.vocabulary, window(example, self.raw_length, rng, train)
        tokens, segments = (example[name][read].astype(np.int32) for name in ("tokens", "segments"))
        longest = np.argmax(np.bincount(segments[: self.room])[1:]) + 1 if segments[0] else 0
        text = tokens[: self.room][segments[: self.room] == longest]
        cut, wrong = int(rng.integers(1, max(len(text), 2))), bool(rng.random() < 0.5)
        a, b = text[:cut], text[cut:]
        if wrong and self.kind == "order":
            a, b = b, a
        if wrong and self.kind == "next":
            other = tokens[self.room :][segments[self.room :] > 0]
            start = int(rng.integers(max(len(other) - len(b), 0) + 1))
            b = other[start : start + len(b)]
        row = np.concatenate([[v.cls], a, [v.sep], b, [v.sep]]).astype(np.int32)
        pad = lambda x, value=0: np.pad(x, (0, self.masking.length - len(x)), constant_values=value).astype(np.int32)
        found = self.masking.hide(example, pad(row, v.filler), pad(np.ones(len(row))), rng, step, train)
        return {
            **found,
            "types": pad(np.repeat([0, 1], [len(a) + 2, len(b) + 1])),
            "pair": np.int32(wrong),
            "pair_weight": np.float32(len(text) >= 4 and len(b) > 0),
        }
