"""Batch normalisation, Ioffe and Szegedy 2015, over the whole batch, wherever its rows are.

The moments are plain sums over all rows, so that under jit with shardings they are those of the global batch: what
SimCLR calls global BN and PyTorch SyncBatchNorm. Nothing here moves the running statistics. A call in training leaves
this batch's moments in the collection `moments`, whose tree is that of `batch_stats`; an objective carries them in
Loss.stats, and moves `extra["batch_stats"]` towards them after the step (see `update_batch_stats`).

The running variance follows the biased one, the mean of squared differences, as in TensorFlow; PyTorch's follows
n / (n - 1) of it.

The rule for a teacher: in training it normalises by the moments of its own batch, and it has running statistics of its
own, which follow these moments: buffers are not averaged with the student's. That is what the key encoder of the
official MoCo does. In evaluation everybody uses running statistics.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from paradigm.cpu_gradients import normalise


class BatchNorm(nn.Module):
    """(x - mean) / sqrt(variance + eps) * scale + bias over all axes but the last; float32 inside.

    scale, bias: whether there are any. zero: the scale is 0 at first (see ResNet.zero_init).
    """

    eps: float = 1e-5
    scale: bool = True
    bias: bool = True
    zero: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train=False):
        """x [..., C] -> [..., C]. train: by this batch's moments, which `moments` collects; else by running ones."""
        shape = x.shape[-1:]
        first = nn.initializers.zeros if self.zero else nn.initializers.ones
        scale = self.param("scale", first, shape) if self.scale else jnp.ones(shape)
        bias = self.param("bias", nn.initializers.zeros, shape) if self.bias else jnp.zeros(shape)
        running = {
            "mean": self.variable("batch_stats", "mean", jnp.zeros, shape),
            "var": self.variable("batch_stats", "var", jnp.ones, shape),
        }
        if not train:
            factor = jax.lax.rsqrt(running["var"].value + self.eps) * scale
            return ((x.astype(jnp.float32) - running["mean"].value) * factor + bias).astype(self.dtype)
        y, mean, var = normalise(x.astype(jnp.float32), scale, bias, self.eps)
        for name, moment in (("mean", mean), ("var", var)):
            self.sow("moments", name, moment, reduce_fn=lambda _, new: new, init_fn=lambda: None)
        return y.astype(self.dtype)
