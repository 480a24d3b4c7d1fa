"""Attentive probing: a head that asks the tokens of a frozen encoder by learned queries, where a linear probe is given
their mean or one of them.

    z = mean over queries q of  z_q + MLP(norm z_q),  z_q = q + A(q, norm x)         block=True
                                A(q, norm x)                                         block=False

A is multi-head attention to the tokens x. With a block it is V-JEPA's probe (Bardes et al. 2024, "Revisiting Feature
Prediction for Learning Visual Representations from Video"; facebookresearch/jepa, src/models/attentive_pooler.py: one
query, norms and biases, every kernel and the query with deviation 0.02, those that end a branch divided by 2 ** 0.5).
Without one it is CAE's and AIM's (Chen et al. 2022, "Context Autoencoder for Self-Supervised
Representation Learning"; El-Nouby et al. 2024, "Scalable Pre-training of Large Autoregressive Image Models";
apple/ml-aim, AttentionPoolingClassifier, whose output is a mean over queries). Two things are ours: a LayerNorm of each
token in place of their BatchNorm without scale, which would tie the examples of a batch together, and maps of the query
and of the output, which add nothing to what a learned query and a linear classifier behind it can say.
"""

import dataclasses

import jax.numpy as jnp
from flax import linen as nn

from paradigm.architecture import Architecture
from paradigm.attention import AttentionMask
from paradigm.errors import UserError
from paradigm.partition import BATCH, constrain
from paradigm.transformer import MLP, Attention

PARTITION_RULES = ((r"pool/queries$", ()),)  # [1, Q, D]; its kernels are the transformer's
STD = 0.02


@dataclasses.dataclass(frozen=True)
class Attentive:
    """What a classifier's `pool` may be, in place of the encoder's own. queries, block: see the top of this file."""

    queries: int = 1
    block: bool = True

    def __post_init__(self):
        if self.queries < 1:
            raise UserError(f"Attentive.queries={self.queries}: at least 1")

    def module(self, encoder):
        """The AttentivePool for the tokens of an encoder: as wide, with as many heads."""
        width = encoder.d_model
        return AttentivePool(
            d_model=width, heads=encoder.heads, head_dim=encoder.head_dim, d_ff=4 * width, queries=self.queries,
            block=self.block, norm="layer", bias=True, activation="gelu_exact", init_std=STD,
        )  # fmt: skip


class AttentivePool(Architecture, kw_only=True):
    """[B, L, D] -> (float32 [B, D], {}). Parameters queries [1, Q, D], norm, attention; with `block` mlp_norm, mlp."""

    queries: int = 1
    block: bool = True

    @nn.compact
    def __call__(self, x, segments=None):
        """segments: int32 [B, L], 0 is padding; None: nothing is."""
        first = self.param("queries", nn.initializers.normal(STD), (1, self.queries, self.d_model), jnp.float32)
        queries = jnp.broadcast_to(first, (len(x), *first.shape[1:]))
        inner = self.shared(out_std=STD / 2**0.5)
        mask = AttentionMask(keys=segments)
        read = self.make_norm("norm")(x.astype(jnp.float32))
        z, _ = Attention(**inner, name="attention")(constrain(queries, BATCH, None, None), mask, source=read)
        if self.block:
            z = queries + z
            z = z + MLP(**inner, name="mlp")(self.make_norm("mlp_norm")(z))
        return z.mean(1), {}

    @nn.nowrap
    def flops(self, batch, tokens):
        """Forward FLOPs of the products for [batch, tokens, D]."""
        inner = self.heads * self.head_width
        ends = 4 * self.queries * self.d_model * (inner + self.block * self.d_ff)
        return batch * (ends + 4 * tokens * inner * (self.d_model + self.queries))
