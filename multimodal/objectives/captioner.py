"""What the objectives that predict captions share: the tokens that are read, those that are predicted, and their loss.

A row of tokens is [start] caption end pad ...: token t is read at place t, and token t + 1 predicted there.
"""

import dataclasses

import jax
import jax.numpy as jnp

from multimodal.objectives.base import WithCaptions
from paradigm.capabilities import Captioning, CaptionScoring
from paradigm.errors import UserError
from paradigm.losses import chunked_cross_entropy
from paradigm.objective import Loss, Term
from t5like.scoring import output_kernel
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
        kernel = output_kernel(getattr(self, self.reader), self.reader, params, self.adapt)
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class TwoWay(WithCaptions):
    """Base of those whose tokens and patches all see each other. encoder: a SingleStream, all of the model."""

    reader, rows, starts = "encoder", ROWS, True

    @property
    def length(self):
        """L: all tokens are read, the start too, at which a pair is told."""
        return self.encoder.max_length

    def lengths(self, tokens):
        """int32 [B]: tokens of each row, its end the last. The start may be the same id."""
        ends = tokens[:, 1:] == self.vocabulary.end
        return 1 + jnp.sum(jnp.cumsum(ends, 1) - ends == 0, 1)

    def read(self, variables, patches, tokens, name, ctx, index, **how):
        """States [B, L, D] of tokens. name: of the pass, for its dropout."""
        how |= {"prefix": self.lengths(tokens), "keys": self._keys(f"dropout/{name}", self.encoder, ctx, index)}
        return self.apply("encoder", variables, patches, tokens, ctx=ctx, method="decode", **how)[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class HiddenCaptionTokens(CaptionLoss):
    """Base of those that predict some of a caption's tokens from the rest (Devlin et al. 2019, section 3.1).

    rate: of tokens that are hidden. masked, random: of these, the shares that are read as the mask token and as any
    other. encoder: a SingleStream with mask token.

    Raises UserError for shares that are none, and for an encoder without a mask token.
    """

    rate: float = 0.15
    masked: float = 0.8
    random: float = 0.1

    reader = "encoder"
    shares = ("rate", "masked", "random")

    def __post_init__(self):
        super().__post_init__()
        name = type(self).__name__
        for share in self.shares:
            if not 0 <= getattr(self, share) <= 1:
                raise UserError(f"{name}.{share}={getattr(self, share)}: a share lies from 0 to 1")
        if self.masked + self.random > 1:
            raise UserError(f"{name}: masked={self.masked} and random={self.random} are together more than 1")
        if not self.encoder.mask_token:
            raise UserError(f"{name} hides tokens: set the encoder's mask_token=True")

    def hide(self, tokens, real, ctx, index):
        """(tokens as they are read, where the mask token is read, which are predicted), all [B, L].

        tokens: int32 [B, L]. real: [B, L], above 0 where a token may be hidden. index: of the examples.
        """
        draw = lambda name: jax.vmap(lambda key: jax.random.uniform(key, tokens.shape[1:]))(ctx.keys(name, index))
        # The places of smallest noise are hidden: exactly so many, as round(rate * n) of n tokens.
        noise = jnp.where(real > 0, draw("hidden"), 2.0)
        count = jnp.clip(jnp.round(self.rate * self.real(real).sum(1)), 1, None)
        chosen = (jnp.argsort(jnp.argsort(noise, axis=1), axis=1) < count[:, None]) & (real > 0)
        kind = draw("kind")
        other = jnp.int32(draw("other") * self.vocabulary.size)
        return jnp.where(chosen & (kind >= 1 - self.random), other, tokens), chosen & (kind < self.masked), chosen
