"""Where a ViT's class token looks: the attention of its last block, head by head, as pictures (DINO, figure 1)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from paradigm.capabilities import ImageFeatures
from paradigm.errors import UserError
from paradigm.evaluator import Evaluator
from paradigm.layers import NORMS
from paradigm.metrics import Artefact
from vision.patches import grid_of
from vision.probe import check_plain, plain_encoder
from vision.sheet import sheet
from vision.vit import ViT


def class_attention(encoder, params, layers):
    """float32 [B, H, L]: the last block's attention weights of the class token over all tokens; each head's sum is 1.

    Args:
        params: the ViT's. layers: [n, B, L, D], its intermediates["layers"], n > 1.
    """
    block = jax.tree.map(lambda x: x[-1], params["blocks"]["layers"])
    norm = NORMS[encoder.norm](encoder.eps, jnp.float32)
    x = norm.apply({"params": block["attention_norm"]}, layers[-2].astype(jnp.float32))
    project = lambda x, p: jnp.einsum("...d,dhk->...hk", x, p["kernel"]) + p.get("bias", 0.0)
    q, k = project(x[:, 0], block["attention"]["query"]), project(x, block["attention"]["key"])
    return jax.nn.softmax(jnp.einsum("bhk,blhk->bhl", q, k) * encoder.head_width**-0.5)


@dataclasses.dataclass(frozen=True)
class AttentionMaps(Evaluator):
    """Pictures beside what the class token attends to in the last block: the mean of all heads, then head by head.

    Each map is divided by its largest weight; white is that, black is none. count: of pictures. heads: shown at most.
    """

    count: int = 8
    heads: int = 6

    needs = ImageFeatures
    counts = ("count",)

    def check(self, objective, data):
        super().check(objective, data)
        encoder = self.part(objective).objective.encoder
        name = type(encoder).__name__
        if not isinstance(encoder, ViT) or not encoder.class_token or encoder.layers < 2:
            raise UserError(f"AttentionMaps: {name} has no class token, or fewer than two layers: leave it out")
        plain = encoder.norm_place == "pre" and encoder.grid_bias == "none" and encoder.scale_attention
        if not plain or encoder.qk_norm or encoder.key_heads != encoder.heads:
            raise UserError(
                "AttentionMaps reads pre-norm, scaled attention with as many key heads, no grid_bias and no qk_norm: "
                "leave it out"
            )
        check_plain(self.part(objective).objective, "AttentionMaps", "leave it out")

    def run(self, objective, variables, data):
        part = self.part(objective)
        objective, variables = part.objective, part.variables(variables)
        encoder = objective.encoder
        batch = {name: jnp.asarray(x) for name, x in part.examples(data, self.count).items()}
        images = objective.view(batch)

        def maps(variables, images):
            _, more = objective.features(variables, images)
            return class_attention(encoder, plain_encoder(objective, variables), more["layers"])

        weights = np.asarray(jax.jit(maps)(variables, images))[..., encoder.prefix :]  # [B, H, N]
        shown = np.concatenate([weights.mean(1, keepdims=True), weights[:, : self.heads]], 1)
        shown = shown / shown.max(-1, keepdims=True)
        rows, columns = grid_of(*images.shape[1:3], encoder.patch)
        shown = shown.reshape(*shown.shape[:2], rows, columns, 1).repeat(encoder.patch, 2).repeat(encoder.patch, 3)
        height, width = rows * encoder.patch, columns * encoder.patch
        originals = np.asarray(objective.views[0].undo(images))[:, :height, :width]  # what the patches cover
        headings = ["original", "mean of heads", *(f"head {i + 1}" for i in range(shown.shape[1] - 1))]
        pictures = [[original, *own] for original, own in zip(originals, shown)]
        return {}, [Artefact("attention_maps", "image", sheet(pictures, headings))]
