"""The head of a task: dropout, a hidden layer if wanted, and a linear map to what is asked for."""

import jax.numpy as jnp
from flax import linen as nn

from paradigm.layers import Dense, drop

PARTITION_RULES = (
    (r"^(classifier|tagger|answerer)/dense/kernel$", ("fsdp", "tensor")),
    (r"^(classifier|tagger|answerer)/output/kernel$", ("fsdp", None)),
)


class Head(nn.Module):
    """[B, ..., D] -> (float32 [B, ..., outputs], {}).

    hidden: a layer of D and tanh before the output, as BERT's pooler and RoBERTa's head have (transformers,
        models/roberta/modeling_roberta.py, RobertaClassificationHead). dropout: before each layer, in training.
    std: of the kernels, BERT's 0.02 (google-research/bert, run_classifier.py, create_model). bias: of the output.
    """

    outputs: int
    hidden: bool = False
    dropout: float = 0.0
    std: float = 0.02
    bias: bool = True

    @nn.compact
    def __call__(self, x, *, keys=None):
        x = drop(x.astype(jnp.float32), keys, "head", self.dropout)
        if self.hidden:
            x = jnp.tanh(Dense((x.shape[-1],), 1, True, self.std, name="dense")(x))
            x = drop(x, keys, "head/output", self.dropout)
        return Dense((self.outputs,), 1, self.bias, self.std, name="output")(x), {}

    @nn.nowrap
    def flops(self, rows, features):
        """Forward FLOPs of the products for [rows, features]."""
        return 2 * rows * features * (self.outputs + self.hidden * features)
