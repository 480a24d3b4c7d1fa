"""BART's noise: what turns a window of text into one to be restored. Pure numpy, in data workers.

    text              A B C . D E .
    permutation       D E . A B C .         sentences (t5like/sentences.py) change places
    deletion          A C . D E .           tokens vanish
    masking           A _ C . D E .         tokens become the mask
    infilling         A _ D _ E .           a span of any length, none too, becomes ONE mask
    rotation          C . D E . A B         the window begins at another token

applied in this order, after fairseq's DenoisingDataset (fairseq/data/denoising_dataset.py; Lewis et al. 2020, section
2.2). One thing is not as there: infilled spans never overlap, so the rate is met exactly.
"""

import dataclasses
import functools
import math

import numpy as np

from paradigm.errors import UserError
from t5like.corrupt import filled, shifted, window
from t5like.sentences import sentences
from t5like.vocabulary import Vocabulary, need


@dataclasses.dataclass(frozen=True)
class Denoising:
    """A window of text and its noisy form, as a data worker makes them.

    vocabulary: of the text, with a mask; None for lengths alone. length: of targets and, at most, of inputs, with the
    vocabulary's bos in front where it has one, and its end behind. infill: share of the tokens in spans that become
    masks; mean_span: of the Poisson distribution of their lengths. permute: share of the sentences that change places.
    delete, mask: shares of the tokens. rotate: how often a window is rotated.

    Raises UserError for rates that are none, for no noise at all, and for a vocabulary without a mask.
    """

    vocabulary: Vocabulary | None
    length: int
    infill: float = 0.3
    mean_span: float = 3.0
    permute: float = 1.0
    delete: float = 0.0
    mask: float = 0.0
    rotate: float = 0.0

    def __post_init__(self):
        for name in ("infill", "delete", "mask"):
            if not 0 <= (rate := getattr(self, name)) < 1:
                raise UserError(f"bart: {name} is a share of the tokens, from 0 to below 1, not {rate:g}")
        for name in ("permute", "rotate"):
            if not 0 <= (rate := getattr(self, name)) <= 1:
                raise UserError(f"bart: {name} must lie from 0 to 1, not {rate:g}")
        if not any((self.infill, self.delete, self.mask, self.permute, self.rotate)):
            raise UserError("bart: every rate is 0 and nothing is to be restored; set infill, for one, to 0.3")
        if self.mean_span < 1:
            raise UserError(f"bart: mean_span is a number of tokens, at least 1, not {self.mean_span:g}")
        if self.length < 8:
            raise UserError(f"bart: length {self.length} leaves no text to restore; use 8 or more")
        if self.vocabulary is not None and (self.infill or self.mask):
            need(self.vocabulary, "bart", "mask")

    @property
    def target_length(self):
        """Tokens a row of targets has room for."""
        return self.length

    @functools.cached_property
    def raw_length(self):
        """Tokens a data window must hold."""
        return self.length - 1 - (self.vocabulary is not None and self.vocabulary.bos is not None)

    def __call__(self, example, rng, step, train):
        """One window.

        Args:
            example: {"tokens": int [W], "segments": int [W], "byte_lengths": float32 [V], "sentence_ends": bool [V]},
                W >= raw_length.
            rng: numpy Generator of this example. step, train: change nothing but where a longer window is read.

        Returns:
            encoder_inputs, encoder_segments [length]; inputs, targets, weights, segments and positions [length];
            hidden float32 [length], 1 at targets that the encoder is not given; text_bytes. See t5like/corrupt.py.
        """
        del step
        v, read = self.vocabulary, window(example, self.raw_length, rng, train)
        text = np.count_nonzero(example["segments"][read])
        tokens = example["tokens"][read][:text].astype(np.int32)
        documents = example["segments"][read][:text]
        noisy, given = self._noisy(tokens, example["sentence_ends"], documents, rng)
        front = [] if v.bos is None else [v.bos]
        inputs, encoder_segments = filled([*front, *noisy, v.end], self.length, v.filler)
        targets, segments = filled([*front, *tokens, v.end], self.length, v.filler)
        hidden = np.zeros(self.length, np.float32)
        hidden[len(front) : len(front) + text] = ~given
        return {
            "encoder_inputs": inputs,
            "encoder_segments": encoder_segments,
            # A decoder that has to write bos is started by the end, as fairseq's is.
            **shifted(targets, segments, v.end if front else v.start),
            "weights": segments.astype(np.float32),
            "hidden": hidden,
            "text_bytes": example["byte_lengths"][tokens].sum(dtype=np.float32),
        }

    def _noisy(self, tokens, ends, documents, rng):
        """(int32 [n]: what the encoder reads; bool [L]: which of the tokens [L] are in it)."""
        places = np.arange(len(tokens))  # of the tokens in the text; -1 is a mask
        if self.permute:
            places = places[permuted(rng, sentences(tokens, ends, documents), self.permute)]
        if self.delete:
            keep = np.ones(len(places), bool)
            keep[rng.choice(len(places), round(self.delete * len(places)), replace=False, shuffle=False)] = False
            places = places[keep]
        if self.mask:
            places = places.copy()
            places[rng.choice(len(places), round(self.mask * len(places)), replace=False, shuffle=False)] = -1
        if self.infill and len(places):
            places = infilled(rng, places, math.ceil(self.infill * len(places)), self.mean_span)
        if self.rotate and rng.random() < self.rotate:
            places = np.roll(places, -int(rng.integers(max(len(places), 1))))
        given = np.zeros(len(tokens), bool)
        given[places[places >= 0]] = True
        return np.where(places < 0, -1 if self.vocabulary.mask is None else self.vocabulary.mask, tokens[places]), given


def permuted(rng, starts, share):
    """int64 [L]: the places of L tokens when ceil(share * n) of the n sentences change places with each other.

    starts: int [n + 1], see `sentences`.
    """
    count = len(starts) - 1
    order, moved = np.arange(count), rng.permutation(count)[: math.ceil(share * count)]
    order[moved] = rng.permutation(moved)
    return np.concatenate([np.arange(0), *(np.arange(starts[i], starts[i + 1]) for i in order)])


def infilled(rng, places, count, mean_span):
    """The places with just `count` of them in spans, each of which is one -1; int64 [n - count + spans].

    Lengths are Poisson(mean_span), the last one cut to the count; a span of none inserts a -1. All orders of the spans
    among the tokens that stay are equally likely. Never more spans than `count`: the row would outgrow the text.
    """
    lengths = rng.poisson(mean_span, count)
    while lengths.sum() < count:
        lengths = np.r_[lengths, rng.poisson(mean_span, count)]
    total = lengths.cumsum()
    last = int(np.searchsorted(total, count))
    lengths = lengths[: last + 1].copy()
    lengths[last] -= total[last] - count
    if len(lengths) > count:  # so short a mean: zeros give way
        lengths = np.r_[lengths[lengths > 0], np.zeros(count, np.int64)][:count]
    spans, kept = len(lengths), len(places) - count
    is_span = np.zeros(kept + spans, bool)
    is_span[rng.choice(kept + spans, spans, replace=False, shuffle=False)] = True
    sizes = np.ones(kept + spans, np.int64)
    sizes[is_span] = rng.permutation(lengths)
    first = np.minimum(sizes.cumsum() - sizes, len(places) - 1)
    return np.where(is_span, -1, places[first])
