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

from multimodal.objectives.captioner import HiddenCaptionTokens
from paradigm.objective import Loss


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnifiedVLP(HiddenCaptionTokens):
    """Hidden tokens of captions from pictures and the rest. encoder: a SingleStream with mask token, all of the model.

    seq2seq: the share of examples that are read from left to right. rate, masked, random: see HiddenCaptionTokens.
    """

    seq2seq: float = 0.75

    shares = ("seq2seq", *HiddenCaptionTokens.shares)

    def loss(self, params, extra, batch, ctx):
        variables, (_, targets, real) = self.variables(params, extra), self.scored(batch)
        index, lengths = batch["index"], self.real(real).sum(1)
        read, hidden, chosen = self.hide(targets, real, ctx, index)
        one_way = jax.vmap(jax.random.uniform)(ctx.keys("seq2seq", index)) < self.seq2seq
        how = {
            "hidden": hidden,
            "prefix": jnp.where(one_way, 0, lengths),
            "keys": self._keys("dropout", self.encoder, ctx, index),
        }
        patches, _, _ = self.apply("encoder", variables, self._images(batch, ctx), ctx=ctx, method="see")
        hidden, _, _ = self.apply("encoder", variables, patches, read, ctx=ctx, method="decode", **how)
        return self.caption_loss(params, hidden, targets, jnp.float32(chosen)).join(Loss(metrics=self._cut(batch)))

    def forward_flops(self, batch_spec):
        return {"encoder": self.encoder.flops(batch_spec["mask"].size)}
