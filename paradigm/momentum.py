"""Moving averages and queues: functions over arrays and trees that live in `extra`."""

import jax
import jax.numpy as jnp


def ema(average, new, decay):
    """decay * average + (1 - decay) * new, leaf by leaf, in the average's dtype.

    MoCo (He et al. 2020), section 3.2, equation 2: theta_k <- m theta_k + (1 - m) theta_q. `new` are the NEW params.
    """
    return jax.tree.map(lambda a, x: (decay * a + (1.0 - decay) * x).astype(a.dtype), average, new)


def push(queue, cursor, rows):
    """The queue [K, C] with rows [B, C] written at the cursor, and the cursor moved on; K % B == 0.

    MoCo section 3.1, "Dictionary as a queue": the newest batch replaces the oldest.

    Raises:
        ValueError: when the queue is not a multiple of the rows.
    """
    if queue.shape[0] % rows.shape[0]:
        raise ValueError(f"a queue of {queue.shape[0]} is not a multiple of the batch of {rows.shape[0]}")
    queue = jax.lax.dynamic_update_slice_in_dim(queue, rows.astype(queue.dtype), cursor, axis=0)
    return queue, (cursor + rows.shape[0]) % jnp.int32(queue.shape[0])
