"""SimCLR: Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual Representations".

    z = l2_normalize(g(f(x))) for two views of each of B pictures; each view picks its partner among the 2B - 1 others:
    loss = mean over pictures of nll(a -> b) + nll(b -> a)                                        (section 2.1)

This is the official code's loss; equation 1 with its mean over all 2B views is half of it. BatchNorm, in the encoder
and in the head, has the statistics of both views of the global batch.
"""

import dataclasses

import jax.numpy as jnp

from paradigm.contrastive import nt_xent
from paradigm.errors import UserError
from paradigm.objective import Loss, Term
from vision.heads import Head, embedding_std, l2_normalize
from vision.objectives.two_views import Projected


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimCLR(Projected):
    """Two views of a picture attract, those of others repel.

    temperature: of the softmax. head_layers: of the projection head, whose hidden layers are as wide as the encoder's
    output (2 in the paper, 3 in SimCLR v2). output: the embedding's width.

    The embeddings of microbatches are gathered before the loss, so any number of them gives the whole batch's gradient,
    unless the encoder has BatchNorm.
    """

    temperature: float = 0.1
    head_layers: int = 2
    output: int = 128

    full_batch = True

    def __post_init__(self):
        super().__post_init__()
        if self.temperature <= 0:
            raise UserError(f"SimCLR.temperature={self.temperature} must be positive")

    @property
    def projector(self):
        hidden = (self.encoder.features,) * (self.head_layers - 1)
        return Head((*hidden, self.output), last_norm="scale", std=0.01, dtype=self.encoder.dtype)

    def encode(self, params, extra, batch, ctx):
        views, variables = self.augment_views(batch, ctx), self.variables(params, extra)
        pooled, moments = self.encode_views(variables, views, batch["index"], ctx, apart=False)
        return pooled, Loss(stats=moments)

    def full_batch_loss(self, params, extra, embeddings, batch, ctx):
        flat = embeddings.reshape(-1, embeddings.shape[-1])  # [B, 2, D] -> [2 B, D]
        z, _, moments = self.apply("projector", self.variables(params, extra), flat, ctx=ctx)
        z = l2_normalize(z).reshape(-1, 2, self.output)
        a, b, mask = z[:, 0], z[:, 1], batch["mask"]
        nll, correct = nt_xent(a, b, 1.0 / self.temperature, mask)
        rows = mask.sum()
        metrics = {
            "contrast_accuracy": (jnp.sum(correct * mask), 2 * rows),
            "embedding_std": (embedding_std(a, mask) * rows, rows),
        }
        return Loss({"contrast": Term(jnp.sum(nll * mask), rows)}, metrics, stats=moments)
