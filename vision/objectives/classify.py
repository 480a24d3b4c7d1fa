"""Supervised classification: softmax cross-entropy on labels, from scratch or from any encoder that is here.

    loss = mean over labelled examples of -sum_c y_c log softmax(W z + b)_c,   y smoothed towards uniform

With mixup or CutMix a picture is one of two, and y the mean of their labels by their shares (see vision/mixing.py).

It is the yardstick of the others and, started from their encoders, the full fine-tune of He et al. 2022, appendix A.1;
with Experiment.adapt = @LinearProbe() a linear probe, and with pool = @Attentive() beside it an attentive one.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from paradigm.attentive import Attentive
from paradigm.capabilities import ClassifyingPictures
from paradigm.classes import OnClasses
from paradigm.errors import UserError
from paradigm.layers import Dense
from paradigm.objective import EVALUATION, Loss, Term
from vision.mixing import ENTRIES, erase, mix, pair
from vision.objectives.base import ImageObjective
from vision.objectives.igpt import ImageGPT


class Linear(nn.Module):
    """[B, D] -> logits [B, classes]; small at first (std 0.01), so that an encoder that knows something keeps it."""

    classes: int

    @nn.compact
    def __call__(self, x):
        return Dense((self.classes,), bias=True, std=0.01, name="output")(x.astype(jnp.float32)), {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classify(ClassifyingPictures, OnClasses, ImageObjective):
    """Labels from pictures. classes: how many; None: as many as the data have. smoothing: the part of a label's
    probability given to all classes alike. pool: an Attentive, which reads all patches; None: z is the encoder's own.

    mixup, cutmix: the parameter of the Beta distribution that a picture's share is drawn from; 0 is off. erasing: the
    probability of a box of noise. DeiT has 0.8, 1.0 and 0.25. All three in training alone.

    An example without a label (-1) weighs nothing, and is nobody's partner.
    """

    classes: int | None = None
    pool: Attentive | None = None
    smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    erasing: float = 0.0

    LONE = 1  # view

    def __post_init__(self):
        super().__post_init__()
        if min(self.mixup, self.cutmix) < 0 or not 0 <= self.erasing <= 1:
            raise UserError("Classify.mixup and cutmix must be 0 or more, and erasing a probability")
        if isinstance(self.encoder, ImageGPT):
            raise UserError(
                "Classify hands pictures to its encoder, and an ImageGPT reads ids of them: choose a ViT or a ResNet; "
                "Probes measure a run of IGPT by 'knn' and 'linear'"
            )
        if self.pool is not None and self.encoder.grid is None:
            name = type(self.encoder).__name__
            raise UserError(f"Classify.pool reads patches, and a {name} has none: take a ViT, or leave the pool out")

    def check_data(self, prepared):
        self.check_classes(prepared, prepared.name)
        return super().check_data(prepared)

    def paired(self, batch):
        return pair(batch) if self.mixup or self.cutmix else {}

    def random_view(self, batch, ctx):
        """Views [B, H, W, C] of a batch's pictures, perhaps with a box erased."""
        images = self.augment(batch["image"], batch["aspect"], ctx.keys("view/0", batch["index"]))
        return erase(ctx.keys("erase", batch["index"]), images, self.erasing) if self.erasing else images

    def mixed(self, images, batch, ctx):
        """(pictures [B, H, W, C], the first's share [B], the second's label [B])."""
        other = {name: batch[f"partner_{name}"] for name in ENTRIES}
        keys = ctx.keys("mix", batch["index"])
        both, share = mix(keys, images, self.random_view(other, ctx), self.mixup, self.cutmix)
        alone = (other["label"] < 0) | (other["mask"] == 0)
        images = jnp.where(alone[:, None, None, None], images, both)
        return images, jnp.where(alone, 1.0, share), jnp.where(alone, 0, other["label"])

    def modules(self):
        width, heads = self.encoder.features, {}
        if self.pool is not None:
            heads["pool"] = self.pool.module(self.encoder), jnp.zeros((1, 1, width))
        heads["classifier"] = Linear(self.known_classes), jnp.zeros((1, width))
        return {**super().modules(), **heads}

    def logits(self, variables, images):
        """Normalised images [B, H, W, C] -> float32 [B, classes], in evaluation."""
        return self.scores(variables, *self.features(variables, images))

    def scores(self, variables, pooled, intermediates, ctx=EVALUATION):
        """float32 [B, classes] of what the encoder gave."""
        if self.pool is not None:
            pooled, _, _ = self.apply("pool", variables, intermediates["patches"], ctx=ctx)
        return self.apply("classifier", variables, pooled, ctx=ctx)[0]

    def loss(self, params, extra, batch, ctx):
        images, share, second = self.random_view(batch, ctx) if ctx.train else self.view(batch), 1.0, None
        if ctx.train and (self.mixup or self.cutmix):
            images, share, second = self.mixed(images, batch, ctx)
        keys = ctx.keys("dropout", batch["index"]) if ctx.train else None
        variables = self.variables(params, extra)
        *encoded, moments = self.apply("encoder", variables, images, ctx=ctx, keys=keys)
        logits = self.scores(variables, *encoded, ctx)
        weights = batch["mask"] * (batch["label"] >= 0)
        at = jnp.where(batch["label"] >= 0, batch["label"], 0)
        logs = jax.nn.log_softmax(logits)
        right = jnp.take_along_axis(logs, at[:, None], 1)[:, 0]
        truth = right
        if second is not None:
            truth = share * right + (1 - share) * jnp.take_along_axis(logs, second[:, None], 1)[:, 0]
        nll = -(1 - self.smoothing) * truth - self.smoothing * logs.mean(1)
        hits = (jnp.argmax(logits, 1) == at) * weights
        term = Term(jnp.sum(nll * weights), weights.sum())
        return Loss({"labels": term}, {"accuracy": (hits.sum(), weights.sum())}, stats=moments)

    def forward_flops(self, batch_spec):
        rows, width = batch_spec["mask"].size, self.encoder.features
        parts = {"encoder": self.encoder_flops(rows, self.views[:1])}
        parts["classifier"] = 2 * rows * width * self.known_classes
        if self.pool is not None:
            parts["pool"] = self.pool.module(self.encoder).flops(rows, self.patches_of(self.views[0].size))
        return parts
