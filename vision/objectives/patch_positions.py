"""Position prediction: Zhai et al. 2022, "Position Prediction as an Effective Pretraining Strategy" (MP3).

Patches come without positions, as a bag; some of them, the context, are all that any patch may look at, itself
included, and each of all N patches is asked where in the picture it is (section 3):

    loss = -1/N sum over patches i of log softmax(W h_i + b)_i

Which are the context is drawn anew for each picture; without hiding any, edges of neighbours give the places away.
Fine-tuning gives the encoder positions again: another vit.positions, and --init_partly_from.
"""

import dataclasses

import jax
import jax.numpy as jnp

from paradigm.attention import AttentionMask
from paradigm.errors import UserError
from paradigm.objective import Loss, Term
from vision.masking import check_count, random_mask
from vision.objectives.masked_images import OneView, PatchHead


@dataclasses.dataclass(frozen=True, kw_only=True)
class PatchPositions(OneView):
    """Where each patch is, among as many places as there are patches.

    encoder: a ViT with positions='none', class_token=False, pool='mean'. mask_ratio: the part of the patches that no
    other one sees.

    Raises UserError for an encoder that knows the places, and for a ratio that leaves nothing to see or hides nothing.
    """

    mask_ratio: float = 0.75

    def __post_init__(self):
        super().__post_init__()
        e = self.encoder
        if e.positions != "none" or e.grid_bias != "none":
            raise UserError(
                "PatchPositions asks for places that the encoder has: set its positions and grid_bias='none'"
            )
        if e.prefix:
            raise UserError(
                "PatchPositions reads patches alone: set the encoder's class_token=False, registers=0, pool='mean'"
            )
        check_count("PatchPositions", self.mask_ratio, self.hidden, self.patches)

    @property
    def hidden(self):
        return int(self.patches * self.mask_ratio)

    def modules(self):
        head = PatchHead(self.patches, self.encoder.init_std, self.encoder.dtype)
        return {**super().modules(), "decoder": (head, jnp.zeros((1, self.encoder.d_model)))}

    def context(self, keys):
        """Keys [B] -> int32 [B, N], 1 where a patch may be looked at."""
        hidden = jax.vmap(lambda key: random_mask(key, self.encoder.grid, self.hidden))(keys)
        return 1 - hidden.astype(jnp.int32)

    def loss(self, params, extra, batch, ctx):
        images, context = self.draw(batch, ctx), self.context(ctx.keys("mask", batch["index"]))
        variables, keys = self.variables(params, extra), self.dropout_keys(batch, ctx)
        _, seen, _ = self.apply("encoder", variables, images, attention=AttentionMask(keys=context), keys=keys)
        logits = self.apply("decoder", variables, seen["patches"])[0].astype(jnp.float32)  # [B, N, N]
        nll = -jnp.diagonal(jax.nn.log_softmax(logits), axis1=1, axis2=2)
        right = jnp.argmax(logits, -1) == jnp.arange(self.patches)
        weight = jnp.broadcast_to(batch["mask"][:, None], nll.shape)
        metrics = {"accuracy": (jnp.sum(right * weight), weight.sum())}
        return Loss({"places": Term(jnp.sum(nll * weight), weight.sum())}, metrics)

    def forward_flops(self, batch_spec):
        rows = batch_spec["mask"].size
        return {
            "encoder": self.encoder.flops(rows),
            "decoder": 2 * rows * self.patches**2 * self.encoder.d_model,
        }
