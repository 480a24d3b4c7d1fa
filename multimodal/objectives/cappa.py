"""CapPa: Tschannen et al. 2023, "Image Captioners Are Scalable Vision Learners Too", section 3.

A ViT, and a decoder that attends to its patches:

    Cap    loss = -mean over tokens of log p(y[t] | y[<t], image)
    CapPa  a share of the examples, 0.75, is predicted in parallel: all inputs are the mask token, without causal mask,
           so that all there is to know is in the picture: log p(y[t] | image)                      (section 3.1)

Which examples is drawn anew for each, each time, as in big_vision's cappa.py. Evaluation is that of captions written
from left to right, for either. parallel = 0 is Cap.

Its encoder and its `captioner` share no name but the encoder's with a pair of towers: a Sum with SigLIP trains one
encoder by both, as SigLIP 2's first term beside the pairs does (Tschannen et al. 2025, section 2.1, after LocCa).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from multimodal.objectives.captioner import CaptionObjective
from paradigm.errors import UserError
from paradigm.objective import Loss


@dataclasses.dataclass(frozen=True, kw_only=True)
class CapPa(CaptionObjective):
    """Captions from pictures, some of them all at once.

    captioner: a CaptionDecoder. parallel: the share of examples that are predicted in parallel.

    Raises UserError for a decoder without mask token where some are, and for an encoder without patches.
    """

    captioner: Any
    parallel: float = 0.75

    reader = "captioner"

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.parallel <= 1:
            raise UserError(f"CapPa.parallel={self.parallel}: a share of the examples lies from 0 to 1")
        if self.parallel and not self.captioner.mask_token:
            raise UserError("CapPa.parallel needs a mask token: set the decoder's mask_token=True, or parallel=0 (Cap)")
        if self.encoder.grid is None:
            raise UserError("CapPa reads patches: choose a ViT as its encoder")

    def modules(self):
        patches = jnp.zeros((1, int(np.prod(self.encoder.grid)), self.encoder.features))
        return {
            **super().modules(),
            "captioner": (self.captioner, (patches, jnp.zeros((1, self.length - 1), jnp.int32))),
        }

    def loss(self, params, extra, batch, ctx):
        variables, (inputs, targets, weights) = self.variables(params, extra), self.scored(batch)
        images, index = self._images(batch, ctx), batch["index"]
        keys = self._keys("dropout/image", self.encoder, ctx, index)
        _, seen, moments = self.apply("encoder", variables, images, ctx=ctx, keys=keys)
        how = {"keys": self._keys("dropout/captioner", self.captioner, ctx, index)}
        if ctx.train and self.parallel:
            how["parallel"] = jax.vmap(lambda key: jax.random.uniform(key) < self.parallel)(ctx.keys("parallel", index))
        hidden, _, _ = self.apply("captioner", variables, seen["patches"], inputs, ctx=ctx, method="decode", **how)
        loss = self.caption_loss(params, hidden, targets, weights)
        return loss.join(Loss(metrics=self._cut(batch), stats=moments))

    def see(self, variables, images):
        return self.features(variables, images)[1]["patches"]

    def forward_flops(self, batch_spec):
        rows = batch_spec["mask"].size
        return {
            "encoder": self.encoder.flops(rows),
            "captioner": self.captioner.flops(rows, int(np.prod(self.encoder.grid))),
        }
