"""What follows the parameters or past batches: moving averages, teachers, queues (in `extra`), and balanced targets."""

import dataclasses

import jax
import jax.numpy as jnp

from paradigm import trees
from paradigm.schedule import Schedule, as_schedule

PREFIX = "teacher/"  # of the teacher's own moments in Loss.stats


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A copy of modules that follows them: theta <- m theta + (1 - m) new, once a step, from the NEW parameters.

    Its variables are {"params": {name: tree}, "batch_stats": ...}, used through the same `apply` as the online ones.
    Its batch statistics are its own: they move towards the moments that it saw itself.

    momentum: m, or a Schedule of the step. modules: their names; () is all that there is. ahead: the momentum is read
    at so many steps later (MoCo v3 moves its teacher at the start of a step, by that step's).
    """

    momentum: float | Schedule
    modules: tuple[str, ...] = ()
    ahead: int = 0

    def names(self, tree):
        """Those of a tree's modules that the teacher has."""
        return [name for name in tree if name in self.modules] if self.modules else list(tree)

    def init(self, params, batch_stats):
        """The teacher that equals what it is to follow."""
        copied = lambda tree: {name: jax.tree.map(jnp.copy, tree[name]) for name in self.names(tree)}
        stats = copied(batch_stats)
        return {"params": copied(params), **({"batch_stats": stats} if stats else {})}

    def update(self, teacher, params, moments, step):
        """The next teacher, from the new params and its own moments of the batch."""
        new = {name: params[name] for name in teacher["params"]}
        teacher = {**teacher, "params": ema(teacher["params"], new, as_schedule(self.momentum)(step + self.ahead))}
        if moments:
            teacher["batch_stats"] = update_batch_stats(teacher["batch_stats"], moments)
        return teacher


def update_batch_stats(batch_stats, moments, decay=0.9):
    """Running statistics moved towards a batch's moments {"module/.../mean": array}; others stay as they are.

    The decay is PyTorch's BatchNorm momentum of 0.1, TensorFlow's of 0.9.
    """
    moved = trees.named_map(lambda name, x: ema(x, moments[name], decay) if name in moments else x, batch_stats)
    if unknown := set(moments) - {name for name, _ in trees.named_leaves(batch_stats)}:
        raise KeyError(f"moments of {sorted(unknown)}, which have no running statistics")
    return moved


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


def sinkhorn(scores, mask=None, iterations=3):
    """Soft assignments [..., K] of rows to K prototypes in which all prototypes have about as many rows.

    Caron et al. 2020 (SwAV), section 3.1, equation 3 with scores = cosine / epsilon; the centring of DINOv2 with
    scores = logits / temperature. Rows and columns of exp(scores) are scaled in turn, prototypes first, so that each
    row sums to 1 at the end; here in logarithms, where nothing overflows. The sums are over all rows, wherever a mesh
    has them, and constant factors (the official 1/K and 1/B) cancel.

    Args:
        scores: [..., K]; all leading axes are rows. mask: [...], 0 for a row that has no share in the sums.
    """
    rows = tuple(range(scores.ndim - 1))
    scores = scores.astype(jnp.float32)
    of_row = jnp.zeros((*scores.shape[:-1], 1))
    outside = 0.0 if mask is None else jnp.where(mask > 0, 0.0, -1e30)[..., None]
    for _ in range(iterations):
        of_prototype = -jax.nn.logsumexp(scores + of_row + outside, axis=rows)
        of_row = -jax.nn.logsumexp(scores + of_prototype, axis=-1, keepdims=True)
    return jnp.exp(scores + of_prototype + of_row)
