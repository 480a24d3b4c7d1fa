"""iBOT: Zhou et al. 2022, "iBOT: Image BERT Pre-Training with Online Tokenizer".

    DINO's loss, the student's large views with blocks of patches hidden, and on the hidden patches of each of them
    + mean over pictures and large views of mean over its hidden patches of -sum_k q log p               (equation 2)
    q = softmax((teacher's scores of the patch, which it sees, - patch centre) / T_t),    p = softmax(student's / 0.1)

and of DINOv2: Oquab et al. 2023, "DINOv2: Learning Robust Visual Features without Supervision", section 4: a second
head for patches, balanced assignments in place of centres, and KoLeo on the student's class tokens:
    + 0.1 sum over the large views of mean over pictures of -log |x - nearest other x|
"""

import dataclasses

import jax
import jax.numpy as jnp

from paradigm.contrastive import koleo
from paradigm.errors import UserError
from paradigm.objective import Loss, Term
from paradigm.schedule import Schedule, as_schedule
from vision.heads import l2_normalize
from vision.masking import block_mask
from vision.objectives.dino import DINO


@dataclasses.dataclass(frozen=True, kw_only=True)
class IBOT(DINO):
    """DINO, and the teacher's scores of hidden patches.

    mask_ratio: the range of the part of the patches that is hidden, uniform. mask_probability: of a large view to have
    any hidden. smallest_block: patches; None is (min(rows, columns) // 3)^2, as iBOT has it, DINOv2 has 4.
    patch_temperature: of the teacher for patches: Linear(peak=0.04, final=0.07) over the first 30 epochs.
    patch_weight: of the patches' term. shared_head: one head for class tokens and patches, or one for each.
    koleo: the coefficient of KoLeo, 0 for none. Views: dino_views.

    Raises UserError for an encoder without a mask token or class token, and for masks that leave nothing to predict or
    to see.
    """

    prototypes: int = 8192
    mask_ratio: tuple = (0.1, 0.5)
    mask_probability: float = 0.5
    smallest_block: int | None = None
    patch_temperature: float | Schedule = 0.07
    patch_weight: float = 1.0
    shared_head: bool = True
    koleo: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        name, encoder = type(self).__name__, self.encoder
        if encoder.grid is None or not (encoder.mask_token and encoder.class_token):
            raise UserError(f"{name} hides patches of a ViT: set vit.mask_token = True and vit.class_token = True")
        low, high = self.mask_ratio
        if not 0 <= low <= high < 1 or not 0 < self.mask_probability <= 1 or not self.hidden_patches:
            raise UserError(
                f"{name}.mask_ratio={(low, high)} of {self.patches_of(self.views[0].size)} patches in "
                f"{self.mask_probability:g} of the views leaves nothing to predict or to see: take 0 <= low <= high < 1"
            )

    prefixes = property(lambda self: ("",) if self.shared_head else ("", "patch_"))
    centres = ("class", "patches")

    @property
    def full_batch(self):
        return super().full_batch or self.koleo > 0

    @property
    def hidden_patches(self):
        """The most that a mask hides of a large view."""
        return int(self.mask_ratio[1] * self.patches_of(self.views[0].size))

    @property
    def patch_head(self):
        return "" if self.shared_head else "patch_"

    def draw_masks(self, batch, ctx):
        """bool [B, 2, N], what is hidden of either large view."""
        side, (low, high) = self.views[0].size // self.encoder.patch, self.mask_ratio
        smallest = (side // 3) ** 2 if self.smallest_block is None else self.smallest_block

        def of_view(i):
            draw = lambda name: ctx.keys(f"{name}/{i}", batch["index"])
            draws = jax.vmap(lambda key: jax.random.uniform(key, (2,)))(draw("mask_ratio"))
            ratio = jnp.where(draws[:, 0] < self.mask_probability, low + (high - low) * draws[:, 1], 0.0)
            one = lambda key, count: block_mask(key, (side, side), count, smallest)
            return jax.vmap(one)(draw("mask"), ratio * side**2)

        return jnp.stack([of_view(0), of_view(1)], 1)

    def _large_views(self, variables, views, ctx, keys=None, mask=None):
        """(class tokens [B, 2, D], patches [B, 2, N, D]) of the two large views."""
        flat = lambda xs: xs.reshape(-1, *xs.shape[2:])  # [B, 2, ...] -> [2 B, ...]
        x, more, _ = self.apply(
            "encoder", variables, flat(jnp.stack(views, 1)), ctx=ctx,
            keys=None if keys is None else flat(jnp.stack(keys, 1)), mask=None if mask is None else flat(mask),
        )  # fmt: skip
        return x.reshape(-1, 2, x.shape[-1]), more["patches"].reshape(len(views[0]), 2, -1, x.shape[-1])

    def encode(self, params, extra, batch, ctx):
        views, index, variables = self.augment_views(batch, ctx), batch["index"], self.variables(params, extra)
        mask, keys = self.draw_masks(batch, ctx), None
        if ctx.train and self.draws(self.encoder):
            keys = [ctx.keys(f"dropout/large/{i}", index) for i in (0, 1)]
        student, patches = self._large_views(variables, views[:2], ctx, keys, mask)
        views_seen = student
        if views[2:]:
            views_seen = jnp.concatenate([student, self.encode_views(variables, views[2:], index, ctx)[0]], 1)
        taught, taught_patches = self._large_views(extra["teacher"], views[:2], ctx)
        # The hidden patches first, as many of each view as any may have; the rest of them weigh nothing.
        at = jnp.argsort(~mask, -1, stable=True)[..., : self.hidden_patches]
        take = lambda x: jnp.take_along_axis(x, at[..., None], 2)
        teacher = self.embed(extra["teacher"], taught_patches, ctx, self.patch_head)
        embeddings = {
            "student": self.embed(variables, views_seen, ctx),
            "patches": self.embed(variables, take(patches), ctx, self.patch_head),
            "hidden": jnp.take_along_axis(mask, at, 2).astype(jnp.float32),
            "class": student,
        }
        targets = {
            "teacher": self.embed(extra["teacher"], taught, ctx),
            "teacher_patches": take(teacher),
            "teacher_mean": teacher.mean(2),  # scores are linear in it: the mean of all patches' scores is its score
        }
        return {**embeddings, **jax.lax.stop_gradient(targets)}, Loss()

    def full_batch_loss(self, params, extra, embeddings, batch, ctx):
        loss = super().full_batch_loss(params, extra, embeddings, batch, ctx)
        variables, mask, head = self.variables(params, extra), batch["mask"], self.patch_head
        hidden = embeddings["hidden"] * mask[:, None, None]  # [B, 2, n]
        student = self.scores(variables, embeddings["patches"], ctx, head) / self.temperature
        teacher = self.scores(extra["teacher"], embeddings["teacher_patches"], ctx, head)
        temperature = as_schedule(self.patch_temperature)(ctx.step)
        q = self.targets(teacher, extra["centre"]["patches"], temperature, hidden)
        nll = -jnp.sum(q * jax.nn.log_softmax(student), -1)
        of_view = jnp.sum(nll * hidden, -1) / jnp.maximum(hidden.sum(-1), 1.0)
        rows = mask.sum()
        terms = {"patches": Term(jnp.sum(of_view.mean(1) * mask), rows, self.patch_weight)}
        if self.koleo:
            apart = sum(koleo(l2_normalize(embeddings["class"][:, i]), mask) for i in (0, 1))
            terms["koleo"] = Term(jnp.sum(apart * mask), rows, self.koleo)
        metrics = {"masked": (hidden.sum(), rows * 2 * self.patches_of(self.views[0].size))}
        mean = self.scores(extra["teacher"], embeddings["teacher_mean"], ctx, head)
        return loss.join(Loss(terms, metrics, stats=self.centre_stats("patches", mean, mask)))

    def forward_flops(self, batch_spec):
        parts, rows, modules = super().forward_flops(batch_spec), batch_spec["mask"].size, self.modules()
        seen, name = 2 * rows * self.hidden_patches, self.patch_head
        for part, width in ((f"{name}projector", self.encoder.features), (f"{name}prototypes", self.bottleneck)):
            parts[part] = parts.get(part, 0.0) + modules[part][0].flops(seen, width)
        return parts


@dataclasses.dataclass(frozen=True, kw_only=True)
class DINOv2(IBOT):
    """iBOT with the settings of DINOv2 (its ssl_default_config.yaml and the long runs' files; section 4)."""

    prototypes: int = 65536
    momentum: float | Schedule = 0.992
    teacher_temperature: float | Schedule = 0.07
    centring: str = "sinkhorn"
    smallest_block: int | None = 4
    shared_head: bool = False
    koleo: float = 0.1
