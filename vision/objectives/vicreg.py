"""VICReg: Bardes, Ponce and LeCun 2022, "VICReg: Variance-Invariance-Covariance Regularization ...".

    s = mean over pictures and dims of (z1 - z2)^2
    v(z) = mean over dims of max(0, 1 - sqrt(var(z_j) + 1e-4))
    c(z) = sum_{i != j} cov(z)_ij^2 / D
    loss = 25 s + 25 (v(z1) + v(z2)) / 2 + c(z1) + c(z2)                                            (equations 1 to 6)

s is a mean over dims and v is halved as in the official main_vicreg.py, where the paper has sums. Variance and
covariance are of the global batch, with n - 1; on a mesh each device holds a part of the covariance's lines.
"""

import dataclasses

import jax.numpy as jnp
from flax import linen as nn

from paradigm.objective import Loss, Term
from vision.heads import centred, embedding_std, l2_normalize, off_diagonal, products
from vision.objectives.two_views import ByDims


@dataclasses.dataclass(frozen=True, kw_only=True)
class VICReg(ByDims):
    """The two views' embeddings are near, vary in each dim, and no two dims vary together.

    invariance, variance, covariance: the coefficients. widths: of the expander (see ByDims). Views: byol_views.
    """

    invariance: float = 25.0
    variance: float = 25.0
    covariance: float = 1.0

    def full_batch_loss(self, params, extra, embeddings, batch, ctx):
        z, moments = self.project(self.variables(params, extra), embeddings["online"], ctx, "projector")
        z, mask = [x.astype(jnp.float32) for x in z], batch["mask"]
        spread = redundancy = 0.0
        for x in z:
            x, rows = centred(x, mask)
            others = jnp.maximum(rows - 1, 1.0)
            deviation = jnp.sqrt(jnp.sum(jnp.square(x), 0) / others + 1e-4)
            spread += jnp.mean(nn.relu(1 - deviation)) / 2
            redundancy += jnp.sum(jnp.square(off_diagonal(products(x, x) / others))) / x.shape[1]
        near = jnp.sum(jnp.mean(jnp.square(z[0] - z[1]), 1) * mask)
        one = jnp.float32(1.0)
        terms = {
            "invariance": Term(near, mask.sum(), self.invariance),
            "variance": Term(spread, one, self.variance),
            "covariance": Term(redundancy, one, self.covariance),
        }
        metrics = {"embedding_std": (embedding_std(l2_normalize(z[0]), mask) * rows, rows)}
        return Loss(terms, metrics, stats=moments)
