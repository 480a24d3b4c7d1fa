"""CoCa: Yu et al. 2022, "CoCa: Contrastive Captioners are Image-Text Foundation Models", section 3.2.

One pass of each tower. The first half of the text decoder reads text alone, and its class token, at the end, is the
text's vector; the second half attends to the picture's tokens and predicts the next token:

    x = f(image); tokens = pool_256(x), z_i = l2_normalize(W_i pool_1(tokens)); z_t = l2_normalize(W_t class token)
    L_con = mean over pairs of (nll of the text among the batch's + nll of the image among its) / 2     (CLIP)
    L_cap = -mean over tokens of log p(y[t] | y[<t], tokens)
    loss  = 1 * L_con + 2 * L_cap

Equation 4 writes L_con without the half; with it is open_clip's (loss.py, CoCaLoss), whose weights are the same.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np

from multimodal.captioners import task_poolers
from multimodal.objectives.captioner import CaptionObjective
from multimodal.objectives.clip import CLIP
from paradigm.errors import UserError
from paradigm.objective import EVALUATION, Loss
from vision.heads import l2_normalize


@dataclasses.dataclass(frozen=True, kw_only=True)
class CoCa(CaptionObjective, CLIP):
    """Pictures and captions find each other, as in CLIP, and captions are written.

    text: a CoCaText. contrastive, captioning: the weights of the two losses. queries: tokens that a picture is pooled
    to for its caption. cascade: its vector is pooled from these, else from the patches. image_pool: task, by a pooler
    for each; or one, by a single pooler, whose first token is the vector and which reads the encoder's class token too,
    as open_clip has it (objectives/coca_open_clip.gin). pool_width, pool_heads: of the poolers, None is the encoder's.

    Raises UserError when towers, heads, views and tokenizer do not fit each other.
    """

    contrastive: float = 1.0
    captioning: float = 2.0
    queries: int = 256
    cascade: bool = True
    pool_width: int | None = None
    pool_heads: int | None = None
    image_pool: str = "task"

    POOLS = ("task", "one")
    sources = 0  # its text tower tells no data sets apart

    def __post_init__(self):
        super().__post_init__()
        if self.text.pool != "class":
            raise UserError("CoCa.text is no decoder in two halves: choose coca_text")
        if self.queries < (least := 1 + (self.image_pool == "one")):
            raise UserError(f"CoCa.queries={self.queries} leaves captions no token of a picture: {least} is the least")

    def modules(self):
        e, modules = self.encoder, super().modules()
        pools = task_poolers(e, self.queries, self.cascade, self.image_pool == "one", self.pool_width, self.pool_heads)
        text = jnp.zeros((1, self.length - 1), jnp.int32)
        return {
            **modules,
            "pools": (pools, jnp.zeros((1, int(np.prod(e.grid)), e.features))),
            "image_head": (modules["image_head"][0], jnp.zeros((1, pools.d_model))),
            "text": (self.text, (text, text, jnp.zeros((1, 1, pools.d_model)))),
        }

    def encode(self, params, extra, batch, ctx):
        """({"image", "text"}: float32 [B, E], unit vectors; Loss of the captions)."""
        variables, (inputs, targets, weights) = self.variables(params, extra), self.scored(batch)
        image, tokens, moments = self._pooled(variables, self._images(batch, ctx), ctx, batch["index"])
        keys = self._keys("dropout/text", self.text, ctx, batch["index"])
        read = inputs, self.real(weights), tokens, keys
        text, seen, _ = self.apply("text", variables, *read, ctx=ctx)
        text = l2_normalize(self.apply("text_head", variables, text, ctx=ctx)[0])
        loss = self.caption_loss(params, seen["hidden"], targets, weights, self.captioning)
        return {"image": image, "text": text}, loss.join(Loss(metrics=self._cut(batch), stats=moments))

    def full_batch_loss(self, params, extra, embeddings, batch, ctx):
        loss = super().full_batch_loss(params, extra, embeddings, batch, ctx)
        terms = {name: term.replace(coefficient=self.contrastive) for name, term in loss.terms.items()}
        return loss.replace(terms=terms)

    def _pooled(self, variables, images, ctx, index=None):
        """(unit vectors [B, E], tokens [B, queries, D], moments) of pictures."""
        _, intermediates, moments = self._encoder(variables, images, ctx, index)
        x = intermediates["patches"]
        if self.image_pool == "one" and self.encoder.class_token:
            x = jnp.concatenate([intermediates["class"][:, None], x], 1)
        x, pooled, _ = self.apply("pools", variables, x, ctx=ctx)
        x, _, _ = self.apply("image_head", variables, x, ctx=ctx)
        return l2_normalize(x), pooled["tokens"], moments

    # ---- For evaluation --------------------------------------------------------------------------------------------

    def _image(self, variables, images, ctx, index=None):
        x, _, moments = self._pooled(variables, images, ctx, index)
        return x, moments

    def _text(self, variables, tokens, ctx, index=None, source=None):
        del index, source
        inputs, _, weights = self.scored({"tokens": tokens, "mask": jnp.ones(len(tokens))})
        x, _, _ = self.apply("text", variables, inputs, self.real(weights), ctx=ctx)
        return l2_normalize(self.apply("text_head", variables, x, ctx=ctx)[0])

    def see(self, variables, images):
        return self._pooled(variables, images, EVALUATION)[1]

    def forward_flops(self, batch_spec):
        rows, modules = batch_spec["mask"].size, self.modules()
        pools = modules["pools"][0]
        heads = {name: modules[name][0].flops(rows, modules[name][1].shape[-1]) for name in ("image_head", "text_head")}
        return {
            "encoder": self.encoder.flops(rows, *((self._kept,) if self.patch_drop else ())),
            "pools": pools.flops(rows, self._kept),
            "text": self.text.flops(rows, self.queries),
            **heads,
            "pairs": 2 * rows * rows * self.width,
        }
