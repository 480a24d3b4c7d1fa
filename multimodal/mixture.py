"""Pairs of several data sets in one run, each of which says which it is of (see `sources` of ImageText)."""

import dataclasses
import pathlib
from typing import Any

import numpy as np

from multimodal.data import PairData, PreparedPairs
from paradigm.dataset import Mixture
from paradigm.errors import UserError
from paradigm.records import Prepared
from t5like.tokenizers import vocabulary_of


@dataclasses.dataclass(frozen=True)
class PairMixture:
    """Several data sets of pairs as one, in shares that may change with the step (see paradigm.dataset.Mixture).

    parts: a PairData each. weights: a number or a schedule for each; () is by their
    sizes. alternate: each batch is of one data set, by turns, as Saito et al. 2023 sample theirs (section 3.3).
    tokenizer: of all of them, as PairData's, "" for the one that parts name; one to be learnt is learnt from all.

    Classes are those of the first part that names any; pictures of others have no label. Splits are read one part after
    the other.
    """

    parts: tuple[PairData, ...]
    weights: tuple[Any, ...] = ()
    alternate: bool = False
    tokenizer: str = ""

    def __post_init__(self):
        object.__setattr__(self, "parts", tuple(self.parts))  # gin gives lists
        object.__setattr__(self, "weights", tuple(self.weights))
        if len(self.parts) < 2:
            raise UserError(f"PairMixture.parts are {len(self.parts)}: give two PairData or more")
        if self.alternate and self.weights:
            raise UserError("PairMixture.alternate takes parts by turns: leave PairMixture.weights out")
        if self.weights and len(self.weights) != len(self.parts):
            raise UserError(f"PairMixture.weights are {len(self.weights)} for {len(self.parts)} parts: give each one")
        named = {part.tokenizer for part in self.parts}
        if self.tokenizer:
            named = named - {PairData.tokenizer} | {self.tokenizer}
        if len(named) > 1:
            raise UserError(f"PairMixture has one tokenizer, and {' and '.join(sorted(named))} are named: keep to one")
        object.__setattr__(self, "tokenizer", *named)
        if len({part.channels for part in self.parts}) > 1:
            raise UserError("PairMixture.parts differ in channels: set PairData.channels alike")

    def vocabulary(self):
        """As of a PairData."""
        return vocabulary_of(self.tokenizer, PairData.extra_ids)

    def build(self, cache_dir=None, window=None, progress=True, workers=None):
        """The MixedPairs of these parts, each made in a directory of its own under `cache_dir`. Raises as PairData."""
        beside = lambda k: None if cache_dir is None else pathlib.Path(cache_dir) / str(k)
        plain = [dataclasses.replace(part, tokenizer="bytes") for part in self.parts]
        built = [part.build(beside(k), window, progress, workers) for k, part in enumerate(plain)]
        mixed = MixedPairs(parts=tuple(built), weights=self.weights, alternate=self.alternate)
        own = dataclasses.replace(self.parts[0], tokenizer=self.tokenizer)
        tokenizer = own.learn(mixed.source("train"), cache_dir, progress)
        parts = tuple(dataclasses.replace(one, tokenizer=tokenizer) for one in built)
        return dataclasses.replace(mixed, parts=parts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixedPairs(Prepared):
    """Prepared pairs of one tokenizer, read together; what PreparedPairs is for one of them."""

    parts: tuple[PreparedPairs, ...]
    weights: tuple[Any, ...]
    alternate: bool

    @property
    def name(self):
        return " and ".join(one.name for one in self.parts)

    @property
    def tokenizer(self):
        return self.parts[0].tokenizer

    @property
    def classes(self):
        return next((one.classes for one in self.parts if one.classes), None)

    def source(self, split="train"):
        """A PairsOfSeveral; of other splits than train, of the parts that have them."""
        named = next((k for k, one in enumerate(self.parts) if one.classes), None)
        kept = [k for k, one in enumerate(self.parts) if split in one.splits]
        if not kept:
            raise UserError(f"none of {', '.join(one.name for one in self.parts)} has a {split} split")
        sources = [Numbered(self.parts[k].source(split), k, k == named) for k in kept]
        if split == "train" and self.alternate:
            weights = tuple(Turn(k, len(kept)) for k in range(len(kept)))
        else:
            weights = self.weights if split == "train" and self.weights else tuple(len(one) for one in sources)
        return PairsOfSeveral(sources, weights)


@dataclasses.dataclass(frozen=True)
class Turn:
    """steps -> 1 at every n-th step from the k-th on, else 0."""

    k: int
    n: int

    def __call__(self, steps):
        return np.float64(np.asarray(steps) % self.n == self.k)


@dataclasses.dataclass(frozen=True)
class Numbered:
    """The records of a PairSource with "source", the number of their data set. labels: whether they keep theirs."""

    pairs: Any
    number: int
    labels: bool

    @property
    def classes(self):
        return self.pairs.classes if self.labels else None

    @property
    def fingerprint(self):
        # With another tokenizer the pairs are other ones, which their own does not say once it was exchanged.
        return f"{self.pairs.fingerprint} {self.pairs.tokenizer.fingerprint} {self.number} {self.labels}"

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, position):
        record = {**self.pairs[position], "source": self.number}
        return record if self.labels else {**record, "label": -1}

    def captions(self, position):
        return self.pairs.captions(position)

    def name(self, position):
        return self.pairs.name(position)


class PairsOfSeveral(Mixture):
    """A Mixture of Numbered sources, with the classes and captions that evaluators read."""

    @property
    def classes(self):
        return next((one.classes for one in self.sources if one.classes), None)

    def captions(self, position):
        """The captions of a record, without its picture."""
        one, place = self._at(position)
        return one.captions(place)
