"""PEGASUS's noise: the sentences that say most of a text are taken out of it. Pure numpy, in data workers."""

import dataclasses
import functools

import numpy as np

from paradigm.errors import UserError, choose
from t5like.corrupt import filled, shifted, window
from t5like.sentences import sentences
from t5like.vocabulary import Vocabulary, need

CHOICES = ("principal", "random", "lead")


@dataclasses.dataclass(frozen=True)
class GapSentences:
    """A window of text without some of its sentences, each a mask, and these sentences one after the other.

    vocabulary: of the text, with a mask; None for lengths alone. length: tokens that the encoder reads, the end
    included. target_length: of the sentences and the end; what is beyond is cut off. ratio: share of the sentences that
    are taken out, at least one and never all. choice: principal, those whose ROUGE-1 F1 with the rest of the text is
    highest, each by itself (Zhang et al. 2020, section 3.1, Ind-Orig); random; or lead, the first.

    Raises UserError for a ratio outside (0, 1), an unknown choice, and a vocabulary without a mask.
    """

    vocabulary: Vocabulary | None
    length: int
    target_length: int
    ratio: float = 0.3
    choice: str = "principal"

    def __post_init__(self):
        choose("Pegasus.choice", self.choice, dict.fromkeys(CHOICES))
        if not 0 < self.ratio < 1:
            raise UserError(f"pegasus: ratio must lie strictly between 0 and 1, not {self.ratio:g}")
        if self.length < 8 or self.target_length < 2:
            raise UserError(
                f"pegasus: length {self.length} and target_length {self.target_length} have no room for sentences; "
                "use 8 and 2 or more"
            )
        if self.vocabulary is not None:
            need(self.vocabulary, "pegasus", "mask")

    @functools.cached_property
    def raw_length(self):
        """Tokens a data window must hold."""
        return self.length - 1

    def __call__(self, example, rng, step, train):
        """One window: the batch of t5like/corrupt.py, and too_short float32 [], 1 for a text of fewer than two
        sentences, of which nothing is predicted. example: as of Denoising, in t5like/denoise.py."""
        del step
        v, read = self.vocabulary, window(example, self.raw_length, rng, train)
        text = np.count_nonzero(example["segments"][read])
        tokens = example["tokens"][read][:text].astype(np.int32)
        starts = sentences(tokens, example["sentence_ends"], example["segments"][read][:text])
        parts = [tokens[a:b] for a, b in zip(starts, starts[1:])]
        gaps = self._chosen(parts, v.size, rng) if len(parts) > 1 else frozenset()
        given = [[v.mask] if i in gaps else part for i, part in enumerate(parts)]
        taken = np.concatenate([tokens[:0], *(parts[i] for i in sorted(gaps))])
        inputs, encoder_segments = filled([*np.concatenate([tokens[:0], *given]), v.end], self.length, v.filler)
        targets, segments = filled([*taken, v.end][: self.target_length], self.target_length, v.filler)
        weights = segments * (len(gaps) > 0)
        return {
            "encoder_inputs": inputs,
            "encoder_segments": encoder_segments,
            **shifted(targets, segments, v.start),
            "weights": weights.astype(np.float32),
            "too_short": np.float32(not gaps),
            "text_bytes": example["byte_lengths"][taken[: self.target_length]].sum(dtype=np.float32),
        }

    def _chosen(self, parts, size, rng):
        """The places of the sentences to take out."""
        count = min(max(round(self.ratio * len(parts)), 1), len(parts) - 1)
        if self.choice == "lead":
            return set(range(count))
        if self.choice == "random":
            return set(rng.choice(len(parts), count, replace=False).tolist())
        return set(np.argsort(-rouge_1(parts, size), kind="stable")[:count].tolist())


def rouge_1(parts, size):
    """float64 [n]: ROUGE-1 F1 of each part with all others together, tokens counted as often as they stand there.

    parts: list of int arrays, ids below `size`.
    """
    counts = np.stack([np.bincount(part, minlength=size) for part in parts])
    rest = counts.sum(0) - counts
    shared = np.minimum(counts, rest).sum(1)
    return 2 * shared / (counts.sum(1) + rest.sum(1))  # 2 P R / (P + R), with P = shared / |part|, R = shared / |rest|
