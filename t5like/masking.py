"""Hiding tokens of a window from an encoder: BERT's masking, by token or by span. Pure numpy, in data workers.

    text             the man went to the store
    encoder_inputs   the man [MASK] to dog store          encoder_segments   1 where there is a token
    targets          went the                             positions          2 4

Of the hidden tokens eight in ten are replaced by the mask, one by any token, and one stays as it is (Devlin et al.
2019, section 3.1, and appendix A.1). A row holds the hidden tokens alone as targets, so that nobody scores the others.
"""

import dataclasses
import functools
from typing import Any

import numpy as np

from paradigm.errors import UserError, choose
from paradigm.schedule import FINAL
from t5like.corrupt import at, extremes, window
from t5like.vocabulary import Vocabulary

# Whole words, and how often one, two .. in a row are hidden together. ngram: ALBERT, section 3.1 (Joshi et al.'s n-gram
# masking): in proportion to 1/n, up to 3. ngram4: MacBERT (Cui et al. 2020, section 4), which PERT takes over.
WORDS = {"word": np.ones(1), "ngram": (1 / np.arange(1, 4)) / (1 / np.arange(1, 4)).sum()}
WORDS["ngram4"] = np.array([0.4, 0.3, 0.2, 0.1])
UNITS = ("token", "span", *WORDS)
# SpanBERT, section 3.1: lengths of Geo(0.2) up to 10, 3.8 on average (renormalised, as facebookresearch/SpanBERT does).
SPANS = np.arange(1, 11)
SPAN_SHARES = 0.8**SPANS / (0.8**SPANS).sum()


@dataclasses.dataclass(frozen=True)
class Masking:
    """Masks a window of text, as a data worker does it.

    vocabulary: of the text, with a mask; None for lengths alone. length: tokens the encoder reads, with the
    vocabulary's cls in front and its sep behind where it has them. rate: share of the text hidden, a float or a
    schedule of the step (validation uses its final value). unit: token, each drawn by itself; span, runs that are
    hidden alike (Joshi et al. 2020, "SpanBERT", section 3.1, but for its whole words); or by the data's `word_starts`
    word, all tokens of a word, ngram, of up to three in a row, or ngram4, of up to four (see WORDS). Words that exceed
    the rate are skipped, as google-research/bert and albert do (create_pretraining_data.py). masked, random: shares of
    the hidden tokens that become the mask and any token. name: of the objective, for messages.

    Raises UserError for a rate outside (0, 1), shares that are none, and a vocabulary without a mask or without text.
    """

    vocabulary: Vocabulary | None
    length: int
    rate: Any = 0.15
    unit: str = "token"
    masked: float = 0.8
    random: float = 0.1
    name: str = "masked_lm"

    def __post_init__(self):
        choose(f"{self.name}: unit", self.unit, dict.fromkeys(UNITS))
        low, high = extremes(self.rate)
        if not 0 < low <= high < 1:
            raise UserError(f"{self.name}: rate must lie strictly between 0 and 1, not {low if low <= 0 else high:g}")
        if min(self.masked, self.random) < 0 or self.masked + self.random > 1:
            raise UserError(
                f"{self.name}: masked={self.masked:g} and random={self.random:g} are shares of the hidden tokens: none "
                "may be negative, nor their sum above 1"
            )
        if self.raw_length < 2:
            raise UserError(f"{self.name}: length {self.length} leaves no text to see and to hide; use 4 or more")
        if self.masked and self.vocabulary is not None and self.vocabulary.mask is None:
            raise UserError(
                f"{self.name} hides tokens behind a mask, and this tokenizer has none: give it one with "
                "TextData.specials = ('mask',), or launch.prepare --specials=mask"
            )

    @property
    def _ends(self):
        """(cls, sep): ids, or None where the vocabulary has none."""
        return (None, None) if self.vocabulary is None else (self.vocabulary.cls, self.vocabulary.sep)

    @property
    def raw_length(self):
        """Tokens a data window must hold."""
        return self.length - sum(i is not None for i in self._ends)

    @property
    def target_length(self):
        """P: hidden tokens a row has room for."""
        return self._count(self.raw_length, extremes(self.rate)[1])

    @staticmethod
    def _count(tokens, rate):
        return max(round(tokens * rate), 1)

    @functools.cached_property
    def _text_ids(self):
        return np.concatenate([np.arange(*ids) for ids in self.vocabulary.text_ranges])

    def __call__(self, example, rng, step, train):
        """One masked window.

        Args:
            example: {"tokens": int [W], "segments": int [W], "byte_lengths": float32 [vocab_size]}, W >= raw_length.
            rng: numpy Generator of this example. step: the training step that it belongs to.
            train: False for the rate's final value.

        Returns:
            encoder_inputs, encoder_segments [length]; inputs (what the encoder reads there), targets, weights, segments
            and positions (places among encoder_inputs) [P]; text_bytes: bytes of the hidden text.
        """
        read = window(example, self.raw_length, rng, train)
        tokens, segments = (example[name][read].astype(np.int32) for name in ("tokens", "segments"))
        cls, sep = self._ends
        if cls is not None:
            tokens, segments = np.insert(tokens, 0, cls), np.insert(segments, 0, segments[0])
        if sep is not None:  # behind the text, before the padding
            end = np.count_nonzero(segments)
            tokens, segments = np.insert(tokens, end, sep), np.insert(segments, end, segments[end - 1])
        return self.hide(example, tokens, segments, rng, step, train)

    def hide(self, example, tokens, segments, rng, step, train):
        """The same of a row that is framed already: tokens, segments int32 [length]."""
        v, text = self.vocabulary, np.flatnonzero((segments > 0) & self.vocabulary.is_text(tokens))
        count = min(self._count(len(text), at(self.rate, step if train else FINAL)), len(text), self.target_length)
        if self.unit in WORDS:
            if "word_starts" not in example:
                raise UserError(f"{self.name}: unit={self.unit!r} needs word_starts, which these data do not have")
            first = example["word_starts"][tokens]
            first[1:] |= segments[1:] != segments[:-1]
            hidden, kind = self._draw_words(rng, text, segments, first, count)
        else:
            hidden, kind = self._draw(rng, text, segments, count)
        corrupted = tokens.copy()
        masked, drawn = hidden[kind < self.masked], hidden[(kind >= self.masked) & (kind < self.masked + self.random)]
        corrupted[masked] = v.filler if v.mask is None else v.mask  # without one, `masked` is empty
        corrupted[drawn] = rng.choice(self._text_ids, len(drawn))
        corrupted[segments == 0] = v.filler

        def row(values, filler=0):
            filled = np.full(self.target_length, filler, np.int32)
            filled[: len(hidden)] = values
            return filled

        return {
            "encoder_inputs": corrupted,
            "encoder_segments": segments,
            "inputs": row(corrupted[hidden], v.filler),
            "targets": row(tokens[hidden], v.filler),
            "weights": row(1).astype(np.float32),
            "segments": row(segments[hidden]),
            "positions": row(hidden),
            "text_bytes": example["byte_lengths"][tokens[hidden]].sum(dtype=np.float32),
        }

    def _draw(self, rng, text, segments, count):
        """(sorted places [count] to hide, of those in `text`; uniform [count], which decides what each becomes)."""
        if self.unit == "token":
            return np.sort(rng.choice(text, count, replace=False, shuffle=False)), rng.random(count)
        free, kind = np.zeros(len(segments), bool), np.zeros(len(segments))
        free[text], left = True, count
        while left:  # each turn hides at least the place it begins at
            start = rng.choice(np.flatnonzero(free))
            run = free[start : start + min(rng.choice(SPANS, p=SPAN_SHARES), left)]
            run = run & (segments[start : start + len(run)] == segments[start])
            size = len(run) if run.all() else int(np.argmin(run))  # to the next one that is hidden, or no text
            free[start : start + size], kind[start : start + size] = False, rng.random()
            left -= size
        hidden = text[~free[text]]
        return hidden, kind[hidden]

    def _draw_words(self, rng, text, segments, first, count):
        """As _draw, at most `count` places, by whole words. first: bool [L], which tokens begin a word."""
        apart = first[text].copy()
        apart[1:] |= np.diff(text) > 1
        apart[:1] = True
        words = np.split(text, np.flatnonzero(apart)[1:]) if len(text) else []
        free, hidden, shares = np.ones(len(words), bool), [], WORDS[self.unit]
        for i in rng.permutation(len(words)):
            n = 1 + rng.choice(len(shares), p=shares) if len(shares) > 1 else 1
            while n:  # fewer words where so many do not fit
                run = words[i : i + n]
                same = segments[run[0][0]] == segments[run[-1][0]] and free[i : i + n].all()
                if same and sum(map(len, hidden)) + sum(map(len, run)) <= count:
                    hidden += run
                    free[i : i + n] = False
                    break
                n -= 1
        if not hidden:  # every word is longer than that: a part of one, anywhere
            start = int(rng.integers(len(text) - count + 1))
            hidden = [text[start : start + count]]
        hidden = np.sort(np.concatenate(hidden))
        return hidden, rng.random(len(hidden))
