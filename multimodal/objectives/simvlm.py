"""SimVLM: Wang et al. 2022, "SimVLM: Simple Visual Language Model Pretraining with Weak Supervision", section 3.1.

A prefix language model over patches and then text: the prefix, all patches and the first p tokens, is seen by all of
itself; what follows is predicted from left to right:

    p uniform over 0 .. n - 1, n the caption's tokens with its end
    loss = -mean over t >= p of log p(y[t] | image, y[<t])                                           (equation 3)

One transformer reads both, as in the paper's equation 3; its largest models have an encoder for the prefix and a
decoder for the rest, and patches come from the first blocks of a ResNet where here a linear layer makes them (the
ablations of its table 6). Evaluation is of whole captions: p = 0.
"""

import dataclasses

import jax
import jax.numpy as jnp

from multimodal.objectives.captioner import CaptionObjective
from paradigm.objective import EVALUATION, Loss


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimVLM(CaptionObjective):
    """A prefix language model over pictures and captions. encoder: a SingleStream, which is all of the model."""

    reader, prefix = "encoder", True

    def loss(self, params, extra, batch, ctx):
        variables, (inputs, targets, weights) = self.variables(params, extra), self.scored(batch)
        index, prefix = batch["index"], jnp.ones(len(inputs), jnp.int32)  # the start is always seen
        if ctx.train:
            uniform = jax.vmap(jax.random.uniform)(ctx.keys("prefix", index))
            given = jnp.floor(uniform * self.real(weights).sum(1)).astype(jnp.int32)
            prefix, weights = prefix + given, weights * (jnp.arange(inputs.shape[1]) >= given[:, None])
        patches, _, _ = self.apply("encoder", variables, self._images(batch, ctx), ctx=ctx, method="see")
        how = {"keys": self._keys("dropout", self.encoder, ctx, index), "prefix": prefix}
        hidden, _, _ = self.apply("encoder", variables, patches, inputs, ctx=ctx, method="decode", **how)
        return self.caption_loss(params, hidden, targets, weights).join(Loss(metrics=self._cut(batch)))

    def see(self, variables, images):
        return self.apply("encoder", variables, images, ctx=EVALUATION, method="see")[0]

    def forward_flops(self, batch_spec):
        return {"encoder": self.encoder.flops(batch_spec["mask"].size)}
