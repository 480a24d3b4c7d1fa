"""BEiT: Bao et al. 2022, "BEiT: BERT Pre-Training of Image Transformers"; and BEiT v2 (Peng et al. 2022).

Blocks of 40 % of the patches are hidden; from the others the ids that a frozen tokenizer gives the hidden ones, in its
own view of the same crop, are predicted:

    loss = -1/|M| sum over hidden patches i of log softmax(W h_i + b)[id_i]                           (equation 3)

BEiT v2 (section 2.3, "patch aggregation") predicts them a second time, by the same W, from a few blocks that see the
class token after the last block, and patches after an earlier one: the class token has to tell them what the picture
is.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from paradigm.attention import AttentionMask
from paradigm.capabilities import Reconstructing
from paradigm.errors import UserError
from paradigm.losses import chunked_cross_entropy
from paradigm.objective import Loss, Term
from paradigm.partition import BATCH, constrain
from vision.masking import hidden_first
from vision.objectives.masked_images import MaskedImages, PatchHead
from vision.patches import patchify, unpatchify


class Aggregator(nn.Module):
    """The class token [B, D] and patches [B, N, D] of two layers -> (patches [B, N, D], {}): blocks and a norm."""

    encoder: Any
    layers: int = 2

    @nn.compact
    def __call__(self, token, patches, keys=None):
        x = constrain(jnp.concatenate([token[:, None], patches], 1), BATCH, None, None)
        x, _ = self.encoder.stack(layers=self.layers, name="blocks")(x, AttentionMask(), keys=keys)
        return x[:, 1:], {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class BEiT(Reconstructing, MaskedImages):
    """Ids of hidden patches.

    encoder: a ViT with mask_token=True. tokenizer: the VQ or DVAE, with its settings, whose run gives module
    `tokenizer` (see vision/tokenizer.py; Experiment.init, Experiment.freeze). augment: a view, or one crop at two
    sizes, the second for the tokenizer (`beit_views`). aggregate_from: after which block patches are read again (BEiT
    v2: 9 of 12), or None. aggregate_layers: blocks that read them.

    Raises UserError for a tokenizer of another grid or another size than its view.
    """

    tokenizer: Any
    masking: str = "block"
    mask_ratio: float = 0.4
    aggregate_from: int | None = None
    aggregate_layers: int = 2

    given = ("tokenizer",)

    def __post_init__(self):
        super().__post_init__()
        theirs, ours = self.tokenizer.encoder, self.encoder
        if theirs.grid != ours.grid:
            raise UserError(
                f"BEiT: the tokenizer has {theirs.grid[0]} x {theirs.grid[1]} patches and the encoder {ours.grid[0]} x "
                f"{ours.grid[1]}: choose the same image_size / patch"
            )
        sizes = self.groups[0][0]
        if sizes[-1].size != theirs.image_size:
            raise UserError(
                f"BEiT: the tokenizer reads {theirs.image_size} pixels, and its view has {sizes[-1].size}: set "
                f"beit_views.token_size = {theirs.image_size}"
            )
        if theirs.channels != ours.channels:
            raise UserError(f"BEiT: the tokenizer reads {theirs.channels} channels and the encoder {ours.channels}")
        if self.aggregate_from is not None and not 0 < self.aggregate_from < ours.layers:
            raise UserError(f"BEiT.aggregate_from={self.aggregate_from} is no block before the last of {ours.layers}")
        if self.aggregate_from is not None and not ours.class_token:
            raise UserError("BEiT.aggregate_from needs a class token: set the encoder's class_token=True")

    @property
    def aggregator(self):
        return Aggregator(self.encoder, self.aggregate_layers)

    def modules(self):
        e, size = self.encoder, self.tokenizer.encoder.image_size
        modules = {
            **super().modules(),
            "tokenizer": (self.tokenizer.tokenizer, jnp.zeros((1, size, size, e.channels))),
            "decoder": (PatchHead(self.tokenizer.codes, e.init_std, e.dtype), jnp.zeros((1, e.d_model))),
        }
        if self.aggregate_from is not None:
            inputs = jnp.zeros((1, e.d_model)), jnp.zeros((1, self.patches, e.d_model))
            modules["aggregator"] = (self.aggregator, inputs)
        return modules

    def hidden_patches(self, variables, images, mask, keys=None, again=None):
        """([the encoder's output [B, M, D] at hidden patches, the aggregator's, if any], their places [B, M]). keys,
        again: for the dropout of either."""
        _, seen, _ = self.apply("encoder", variables, images, mask=mask, keys=keys)
        patches = [seen["patches"]]
        if self.aggregate_from is not None:
            early = seen["layers"][self.aggregate_from - 1][:, self.encoder.prefix :]
            patches += [self.apply("aggregator", variables, seen["layers"][-1][:, 0], early, again)[0]]
        places = hidden_first(mask, self.hidden)
        return [jnp.take_along_axis(x, places[..., None], 1) for x in patches], places

    def loss(self, params, extra, batch, ctx):
        views, mask = self.draw(batch, ctx), self.mask(ctx.keys("mask", batch["index"]))
        big, small = (views[0], views[-1]) if isinstance(views, tuple) else (views, views)
        variables = self.variables(params, extra)
        ids, _, _ = self.apply("tokenizer", variables, small)
        keys = [self.dropout_keys(batch, ctx, name) for name in ("dropout", "dropout/aggregator")]
        every, places = self.hidden_patches(variables, big, mask, *keys)
        targets = jnp.take_along_axis(ids, places, 1)
        weight = jnp.take_along_axis(mask, places, 1) * batch["mask"][:, None]
        head = params["decoder"]["predict"]
        kernel = jnp.concatenate([head["kernel"], head["bias"][None]])
        terms, metrics = {}, {}
        for name, x in zip(("tokens", "aggregated"), every):
            x = jnp.concatenate([x, jnp.ones_like(x[..., :1])], -1)  # for the bias
            found = chunked_cross_entropy(x, kernel, targets, weight)
            terms[name] = Term(found.total, weight.sum())
            metrics.setdefault("accuracy", (jnp.sum(found.correct * weight), weight.sum()))
        return Loss(terms, metrics)

    def reconstruct(self, variables, images, keys):
        """{"masked": hidden patches grey, "reconstructed": the picture that the tokenizer makes of ids, those of hidden
        patches as predicted}; the latter for tokenizers of pixels alone."""
        tokens, mask = self.tokenizer, self.mask(keys)
        size, patch = tokens.encoder.image_size, self.encoder.patch
        masked = unpatchify(jnp.where(mask[..., None], 0.0, patchify(images, patch)), patch, images.shape[1:])
        if tokens.outputs < tokens.encoder.patch**2 * self.encoder.channels or getattr(tokens, "target", None):
            return {"masked": masked}
        resized = lambda x, size: jax.image.resize(x, (len(x), size, size, x.shape[-1]), "linear")
        ids = self.apply("tokenizer", variables, resized(images, size))[0]
        (x, *_), places = self.hidden_patches(variables, images, mask)
        guessed = jnp.argmax(self.apply("decoder", variables, x)[0], -1)
        guessed = jax.vmap(lambda row, at, new: row.at[at].set(new))(ids, places, guessed)
        outputs = self.apply("tokenizer", variables, jnp.where(mask, guessed, ids), method="decode")[0]
        whole = unpatchify(tokens.pixels(outputs), tokens.encoder.patch, (size, size, images.shape[-1]))
        return {"masked": masked, "reconstructed": resized(whole, images.shape[1])}

    def forward_flops(self, batch_spec):
        rows, e = batch_spec["mask"].size, self.encoder
        theirs = self.tokenizer.forward_flops(batch_spec)
        times = 1 if self.aggregate_from is None else 2
        parts = {"encoder": e.flops(rows), "tokenizer": theirs["encoder"] + theirs["quantizer"]}
        parts["decoder"] = 2 * times * rows * self.hidden * e.d_model * self.tokenizer.codes
        if self.aggregate_from is not None:
            stack = e.stack(layers=self.aggregate_layers, parent=None)
            parts["aggregator"] = stack.flops(rows, 1 + self.patches)
        return parts
