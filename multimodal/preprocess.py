"""A pair of a picture and captions becomes a row of a batch: numpy and Pillow alone, since data workers import it.

What a batch of every objective on pairs holds beside `index` and `mask` (B rows, S pixels a side, C channels,
L = length):

    image     uint8   [B, S, S, C]   the whole picture, resized to a square (see vision/preprocess.py)
    aspect    float32 [B]            its width / height before that
    label     int32   [B]            its class, -1 for none
    tokens    int32   [B, L]         [begin] ids of one caption, the end id, then padding; none lacks its end
    cut       float32 [B]            1 where the caption was longer than that and lost its last ids, else 0
    source    int32   [B]            which of several data sets it is of; for objectives that tell them apart alone

Begin, end and padding are the vocabulary's bos (where it has one beside the end), end and pad. Objectives that write
captions have their rows begin with the vocabulary's start, always: the first token is predicted from it.
"""

import dataclasses
from typing import Any

import numpy as np

from paradigm.errors import UserError
from t5like.vocabulary import Vocabulary
from vision.preprocess import PreprocessImage


@dataclasses.dataclass(frozen=True)
class PreprocessPair:
    """The preprocessing of every objective on pairs (see the top of this file).

    image: of the picture. length: L. tokenizer: one that encodes the captions here, as a tower from elsewhere brings
    it; None takes the ids that the data brought. vocabulary: of those ids. starts: whether rows begin with its start.
    sources: how many data sets are told apart; 0: none are.

    Of several captions, training takes one by the shared stream "caption", so that all parts of a combination see the
    same one, and validation the first.
    """

    image: PreprocessImage
    length: int
    tokenizer: Any = None
    vocabulary: Vocabulary | None = None
    starts: bool = False
    sources: int = 0

    def __post_init__(self):
        if self.length < 2:
            raise UserError(f"captions of {self.length} tokens hold no text: make the tower's length 2 or more")

    def __call__(self, example, rng, step, train):
        """{"image", "label", "captions": tuple of str, "tokens": tuple of int arrays} -> what a batch holds of it.

        Raises UserError for a record that is no pair.
        """
        field = "tokens" if self.tokenizer is None else "captions"
        found = example.get(field)
        if found is None and field == "captions" and example.get("caption"):
            found = (example["caption"],)
        if not found:
            raise UserError(f"a record has no {field}, only {', '.join(sorted(example))}: PairData gives them")
        chosen = found[int(rng.shared("caption").integers(len(found))) if train and len(found) > 1 else 0]
        how = self.length, self.vocabulary, self.starts
        row, cut = self.tokens(chosen) if field == "captions" else to_row(chosen, *how)
        made = {**self.image(example, rng, step, train), "tokens": row, "cut": np.float32(cut)}
        return {**made, "source": self._source(example)} if self.sources else made

    def _source(self, example):
        """int32 []: the data set that an example is of. Raises UserError where it does not say, or says another."""
        if "source" not in example:
            raise UserError(
                f"the text tower tells {self.sources} data sets apart, and a record does not say which it is of: read "
                "them by a PairMixture, or set the tower's sources=0"
            )
        if not 0 <= example["source"] < self.sources:
            raise UserError(
                f"a record is of data set {example['source']}, and the text tower tells {self.sources} apart: set its "
                f"sources={example['source'] + 1} or more"
            )
        return np.int32(example["source"])

    def tokens(self, text, tokenizer=None):
        """(int32 [L], whether text was left out) of a text, by this object's tokenizer or else the given one."""
        t = self.tokenizer or tokenizer
        return to_row(t.encode(text), self.length, t.vocabulary, self.starts)


def to_row(ids, length, vocabulary, starts=False):
    """(int32 [length]: [begin] ids end pad ..., whether ids were left out). The end is kept whatever is cut.

    starts: begin with the vocabulary's start, whether or not it has a bos.

    A bos that ends texts too, as GPT-2's does, begins no row without `starts`: the row is read up to its first end.
    """
    begin = vocabulary.start if starts else vocabulary.bos if vocabulary.bos != vocabulary.end else None
    first = [] if begin is None else [begin]
    room = length - len(first) - 1
    kept = [*first, *ids[:room], vocabulary.end]
    row = np.full(length, vocabulary.filler, np.int32)
    row[: len(kept)] = kept
    return row, len(ids) > room
