"""What the objectives on large and small crops of a picture share (Caron et al. 2020, SwAV, section 3.2)."""

import dataclasses

import jax
import jax.numpy as jnp

from paradigm.errors import UserError
from vision.objectives.base import ImageObjective


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultiCrop(ImageObjective):
    """Base of the objectives whose first two views, of one size, are the targets of all others. prototypes: K.

    Views: dino_views, swav_views or any groups; evaluation draws them too, by index.

    Raises UserError when the first two views differ in size, a view is larger than the pictures that the host hands
    over, or there are fewer than two prototypes.
    """

    prototypes: int = 65536

    contrasts = False

    def __post_init__(self):
        super().__post_init__()
        name, sizes = type(self).__name__, [view.size for view in self.views]
        if any(len(group) != 1 for group, _ in self.groups) or len(sizes) < 2 or sizes[0] != sizes[1]:
            raise UserError(
                f"{name}: the first two views are the targets and must be of one size, and augment gives {sizes} "
                "pixels: begin with (Augment, 2), or with two Augments of one size"
            )
        self.check_crops()
        if self.prototypes < 2:
            raise UserError(f"{name}.prototypes={self.prototypes}: to choose between takes two at least, and many more")

    @property
    def pairs(self):
        """(target, view) of all that are compared: each of the two targets with every other view."""
        return [(i, v) for i in (0, 1) for v in range(len(self.views)) if v != i]

    def agreement(self, targets, logits):
        """[B]: cross-entropy in nats of targets [B, 2, K] and logits [B, V, K], mean over `pairs`."""
        log_p = jax.nn.log_softmax(logits)
        terms = [-jnp.sum(targets[:, i] * log_p[:, v], -1) for i, v in self.pairs]
        return sum(terms) / len(terms)


def entropy(p, weight):
    """(sum, weight) of the entropy in nats of distributions p [..., K], by weight [...]."""
    return jnp.sum(weight * -jnp.sum(p * jnp.log(p + 1e-12), -1)), weight.sum()
