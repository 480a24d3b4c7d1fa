"""Unified VLP: Zhou et al. 2020, "Unified Vision-Language Pre-Training for Image Captioning and VQA", section 3.

One transformer over patches and then text predicts hidden tokens, by one of two masks, drawn for each example:

    seq2seq, a share of 0.75      tokens see the picture and what stands before them
    bidirectional, the other 0.25 all see all                    (the official run's --s2s_prob 0.75 --bi_prob 0.25)

    M: 15 % of a caption's tokens, one at least, its end among them; 80 % of these are read as the mask token, 10 % as
    any token, 10 % as themselves                                                     (Devlin et al. 2019, section 3.1)
    loss = -mean over t in M of log p(y[t] | image, what t sees of y without M)

The paper's picture is regions of a detector; here it is patches.
"""

import dataclasses

import jax
import jax.numpy as jnp

from multimodal.objectives.captioner import CaptionLoss
from paradigm.errors import UserError
from paradigm.objective import Loss


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnifiedVLP(CaptionLoss):
    """Hidden tokens of captions from pictures and the rest. encoder: a SingleStream with mask token, all of the model.

    seq2seq: the share of examples that are read from left to right. rate: of tokens that are hidden. masked, random:
    of these, the shares that are read as the mask token and as any other.
    """

    seq2seq: float = 0.75
    rate: float = 0.15
    masked: float = 0.8
    random: float = 0.1

    reader = "encoder"

    def __post_init__(self):
        super().__post_init__()
        for name in ("seq2seq", "rate", "masked", "random"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"UnifiedVLP.{name}={getattr(self, name)}: a share lies from 0 to 1")
        if self.masked + self.random > 1:
            raise UserError(f"UnifiedVLP: masked={self.masked} and random={self.random} are together more than 1")
        if not self.encoder.mask_token:
            raise UserError("UnifiedVLP hides tokens: set the encoder's mask_token=True")

    def loss(self, params, extra, batch, ctx):
        variables, (_, targets, real) = self.variables(params, extra), self.scored(batch)
        index, lengths = batch["index"], self.real(real).sum(1)
        draw = lambda name, shape: jax.vmap(lambda key: jax.random.uniform(key, shape))(ctx.keys(name, index))
        # The places of smallest noise are hidden: exactly so many, as round(rate * n) of n tokens.
        noise = jnp.where(real > 0, draw("hidden", targets.shape[1:]), 2.0)
        count = jnp.clip(jnp.round(self.rate * lengths), 1, None)
        chosen = (jnp.argsort(jnp.argsort(noise, axis=1), axis=1) < count[:, None]) & (real > 0)
        kind = draw("kind", targets.shape[1:])
        other = jnp.int32(draw("other", targets.shape[1:]) * self.vocabulary.size)
        read = jnp.where(chosen & (kind >= 1 - self.random), other, targets)
        how = {
            "hidden": chosen & (kind < self.masked),
            "prefix": jnp.where(draw("seq2seq", ()) < self.seq2seq, 0, lengths),
            "keys": self._keys("dropout", self.encoder, ctx, index),
        }
        patches, _, _ = self.apply("encoder", variables, self._images(batch, ctx), ctx=ctx, method="see")
        hidden, _, _ = self.apply("encoder", variables, patches, read, ctx=ctx, method="decode", **how)
        return self.caption_loss(params, hidden, targets, jnp.float32(chosen)).join(Loss(metrics=self._cut(batch)))

    def forward_flops(self, batch_spec):
        return {"encoder": self.encoder.flops(batch_spec["mask"].size)}
