"""What the objectives that predict captions share: the tokens that are read, those that are predicted, and their loss.

A row of tokens is [start] caption end pad ...: token t is read at place t, and token t + 1 predicted there.
"""

import dataclasses

import jax.numpy as jnp

from multimodal.objectives.base import WithCaptions
from paradigm.capabilities import Captioning, CaptionScoring
from paradigm.losses import chunked_cross_entropy
from paradigm.objective import Loss, Term
from t5like.vocabulary import ROWS


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptionLoss(WithCaptions, CaptionScoring):
    """Base of the objectives that predict tokens of captions. A subclass gives a loss that ends in `caption_loss`."""

    rows, starts = ROWS, True

    def scored(self, batch):
        """(inputs int [B, L - 1], targets int [B, L - 1], weights float32 [B, L - 1]) of a numpy or jax batch: every
        token of the caption and its end."""
        inputs, targets = batch["tokens"][:, :-1], batch["tokens"][:, 1:]
        ends = targets == self.vocabulary.end
        before = ends.cumsum(1) - ends  # ends before each place: 0 up to the first, itself included
        return inputs, targets, (before == 0) * batch["mask"][:, None]

    def caption_loss(self, params, hidden, targets, weights, coefficient=1.0):
        """hidden [B, L, D] -> Loss with the term `caption`, in nats a token, and the accuracy of each token."""
        kernel = getattr(self, self.reader).output_kernel(params[self.reader])
        ce, count = chunked_cross_entropy(hidden, kernel, targets, weights), weights.sum()
        metrics = {
            "caption_nll": ((ce.nll * weights).sum(), count),
            "caption_accuracy": ((ce.correct * weights).sum(), count),
        }
        return Loss({"caption": Term(ce.total, count, coefficient)}, metrics)

    @staticmethod
    def real(weights):
        """int32 [B, L]: 1 at the places whose token is predicted from, so that padding is not read."""
        return (weights > 0).astype(jnp.int32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptionObjective(CaptionLoss, Captioning):
    """Base of those that write captions from left to right. A subclass gives `see` as well."""
