"""Barlow Twins: Zbontar et al. 2021, "Barlow Twins: Self-Supervised Learning via Redundancy Reduction".

    c_ij = mean over pictures of z1_i z2_j, z standardised over the batch dim by dim
    loss = sum_i (1 - c_ii)^2 + lambda sum_i sum_{j != i} c_ij^2                                      (equations 1, 2)

The matrix c is of the global batch; on a mesh each device holds a part of its lines.
"""

import dataclasses

import jax
import jax.numpy as jnp

from paradigm.objective import Loss, Term
from vision.heads import centred, embedding_std, l2_normalize, off_diagonal, products
from vision.objectives.two_views import ByDims

EPS = 1e-5  # under the root of the variance: PyTorch's BatchNorm, which the official code standardises with


@dataclasses.dataclass(frozen=True, kw_only=True)
class BarlowTwins(ByDims):
    """The two views' embeddings agree in each dim, and no two dims say the same.

    redundancy: lambda. widths: of the projector (see ByDims). Views: byol_views.
    """

    redundancy: float = 0.0051

    def full_batch_loss(self, params, extra, embeddings, batch, ctx):
        z, moments = self.project(self.variables(params, extra), embeddings["online"], ctx, "projector")
        mask = batch["mask"]
        (a, rows), (b, _) = centred(z[0], mask), centred(z[1], mask)
        a, b = (x * jax.lax.rsqrt(jnp.sum(jnp.square(x), 0) / rows + EPS) for x in (a, b))
        c = products(a, b) / rows
        one = jnp.float32(1.0)
        terms = {
            "invariance": Term(jnp.sum(jnp.square(1 - jnp.diagonal(c))), one),
            "redundancy": Term(jnp.sum(jnp.square(off_diagonal(c))), one, self.redundancy),
        }
        metrics = {"embedding_std": (embedding_std(l2_normalize(z[0]), mask) * rows, rows)}
        return Loss(terms, metrics, stats=moments)
