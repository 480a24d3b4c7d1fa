"""Heads on an encoder's hidden states that are not its output over the vocabulary."""

import jax.numpy as jnp
from flax import linen as nn

from paradigm.architecture import Architecture
from paradigm.errors import UserError, choose
from paradigm.layers import ACTIVATIONS, Dense

PARTITION_RULES = (
    (r"(^|/)(detector|pooler|pairs|pointer)/dense/kernel$", ("fsdp", "tensor")),  # [D, D]
    (r"(^|/)(detector|pairs)/out/kernel$", ("fsdp", None)),  # [D, n]
)


class TokenHead(Architecture, kw_only=True):
    """Scores of each token among `classes`: [..., D] -> [..., n], out(activation(dense(x))).

    ELECTRA's discriminator has one class (google-research/electra, run_pretraining.py, _get_discriminator_output).
    """

    classes: int = 1

    @nn.compact
    def __call__(self, x):
        x = one_product(self.activation)(Dense((self.d_model,), 1, True, self.init_std, self.dtype, name="dense")(x))
        return Dense((self.classes,), 1, True, self.init_std, self.dtype, name="out")(x)

    @nn.nowrap
    def flops(self, tokens):
        """Forward FLOPs of the products at so many tokens."""
        return 2 * tokens * self.d_model * (self.d_model + self.classes)


class Pointer(Architecture, kw_only=True):
    """Queries that point at places: [..., D] -> [..., D], norm(activation(dense(x)))."""

    @nn.compact
    def __call__(self, x):
        x = Dense((self.d_model,), 1, True, self.init_std, self.dtype, name="dense")(x)
        return self.make_norm("norm")(one_product(self.activation)(x))


def one_product(name):
    """The activation of that name. Raises UserError for one of two products, which a head does not have."""
    activation, inputs = choose("activation", name, ACTIVATIONS)
    if inputs > 1:
        raise UserError(f"the head has one product, and {name} takes {inputs}: set head_activation")
    return activation


def token_head(model, classes=1):
    """A TokenHead for the hidden states of an Encoder."""
    return TokenHead(**model.shared(activation=model.head_activation or model.activation), classes=classes)


class Pooler(Architecture, kw_only=True):
    """tanh(dense(x)): [..., D] -> [..., D], BERT's pooler."""

    @nn.compact
    def __call__(self, x):
        return jnp.tanh(Dense((self.d_model,), 1, True, self.init_std, self.dtype, name="dense")(x))


class PairHead(Architecture, kw_only=True):
    """Scores of two classes from the first token's hidden state: [..., D] -> [..., 2], by way of BERT's pooler."""

    @nn.compact
    def __call__(self, x):
        x = jnp.tanh(Dense((self.d_model,), 1, True, self.init_std, self.dtype, name="dense")(x))
        return Dense((2,), 1, True, self.init_std, self.dtype, name="out")(x)


def pooled(hidden, segments, pool):
    """[B, L, D] -> [B, D]: the first token's ("cls"), or the mean over tokens, segment 0 being padding ("mean")."""
    if pool == "cls":
        return hidden[:, 0]
    weights = (segments > 0).astype(jnp.float32)[..., None]
    return (hidden.astype(jnp.float32) * weights).sum(1) / jnp.maximum(weights.sum(1), 1.0)
