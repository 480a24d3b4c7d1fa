"""SILC: Naeem et al. 2023, "SILC: Improving Vision Language Pretraining with Self-Distillation", section 3.

CLIP, and DINO on its picture's vector, from local views to global ones:

    z_v = W_i f(view v) of two global and some local views; z_t = W_t g(text)
    L_pairs   = mean over the global views of CLIP's loss of z_v and z_t, over the pairs of the batch
    L_distill = mean over pictures, global views i and local views v of -sum_k q_i log p_v
                q = softmax((prototypes(head(z)) - centre) / 0.04) of the teacher, p = softmax(... / 0.1) of the student
    loss = L_pairs + L_distill
    then: teacher <- 0.966 teacher + 0.034 student;    centre <- 0.9 centre + 0.1 mean of the teacher's scores

Each global view is aligned with the text, for otherwise the two losses diverge, and the teacher's momentum stays as it
is, for a teacher that stops following learns no more from text (section 3). Constants and crops are those of the
paper's implementation details; no code was released. The head is DINO's. The published SILC has either loss of pairs:
SILCSigmoid is on SigLIP's.

SigLIP 2 (Tschannen et al. 2025, section 2.3) adds this to SigLIP in the last fifth of its training, and with `masked`
TIPS's prediction of hidden patches (Maninis et al. 2024): the student reads the global views with half of their patches
behind a mask token, and has to find what the teacher, which sees them, says of the hidden ones, by a head for patches:

    + masked * mean over pictures, global views and hidden patches of -sum_k q_k log p_k

Its weights are 1 for the local views and 0.25 for the patches, both times 0.25, 0.5, 1 and 0.5 for B, L, So400m and g;
these and the half are the paper's text, no code was released.
"""

import dataclasses

import jax
import jax.numpy as jnp

from multimodal.objectives.clip import CLIP
from multimodal.objectives.siglip import SigLIP
from paradigm.errors import UserError
from paradigm.objective import Loss, Term
from paradigm.schedule import Schedule, as_schedule
from paradigm.teacher import Teacher
from vision.heads import l2_normalize
from vision.masking import check_count
from vision.objectives.dino import DINO
from vision.objectives.multi_crop import MultiCrop
from vision.objectives.two_views import prefixed

GLOBAL = 2  # views that the teacher and the text see


@dataclasses.dataclass(frozen=True, kw_only=True)
class _SILC(DINO):
    """What both are: before an objective on pairs among the bases.

    distillation: the weight of the second loss. masked: that of hidden patches, 0 for none; mask_ratio: the part that
    is hidden, of an encoder with mask_token=True. Views: dino_views. Evaluation aligns the plain view with the text.

    Raises UserError for views without a local one, and for patch_drop, which has no place here.
    """

    momentum: float | Schedule = 0.966
    distillation: float = 1.0
    masked: float = 0.0
    mask_ratio: float = 0.5

    full_batch = contrasts = True

    def __post_init__(self):
        super().__post_init__()
        name = type(self).__name__
        if len(self.views) <= GLOBAL:
            raise UserError(
                f"{name}: {len(self.views)} views are the teacher's, and none is left for the student: give local ones "
                "as well, as dino_views does"
            )
        if self.patch_drop:
            raise UserError(f"{name}.patch_drop={self.patch_drop}: all patches of a view are read here: leave it out")

        if self.masked:
            if self.encoder.grid is None or not self.encoder.mask_token:
                raise UserError(f"{name}.masked hides patches of a ViT: set the encoder's mask_token=True")
            check_count(name, self.mask_ratio, self.hidden_count, self.patches_of(self.views[0].size))

    prefixes = property(lambda self: ("", "patch_") if self.masked else ("",))
    centres = property(lambda self: ("class", "patches") if self.masked else ("class",))

    @property
    def hidden_count(self):
        """How many patches of a global view are hidden."""
        return int(self.mask_ratio * self.patches_of(self.views[0].size))

    def width_read(self, head):
        return self.encoder.features if head else self.view_width

    @property
    def teacher(self):
        heads = [f"{prefix}{name}" for prefix in self.prefixes for name in ("projector", "prototypes")]
        return Teacher(self.momentum, ("encoder", "image_head", *heads))

    @property
    def view_width(self):
        return self.width

    @property
    def pairs(self):
        return [(i, v) for i in range(GLOBAL) for v in range(len(self.views) - GLOBAL)]

    def variables(self, params, extra, which="online"):
        found = super().variables(params, extra, which)  # a teacher has no text tower of its own
        return {**found, "params": {**params, **found["params"]}} if which == "teacher" else found

    def pooled(self, variables, images, ctx, keys):
        """(z [B, E], moments)."""
        x, found, moments = self.apply("encoder", variables, images, ctx=ctx, keys=keys)
        x = found["patches"] if self.image_pool == "map" else x
        return self.apply("image_head", variables, x, ctx=ctx)[0], moments

    def encode(self, params, extra, batch, ctx):
        """({"image" [B, views, E], "text" [B, E], "student" [B, local views, ...], "teacher" [B, 2, ...]}, Loss)."""
        variables, index, views = self.variables(params, extra), batch["index"], self.augment_views(batch, ctx)
        seen, moments = self.encode_views(variables, views, index, ctx)
        taught, of_teacher = self.encode_views(extra["teacher"], views[:GLOBAL], index, ctx, dropout=None)
        aligned = l2_normalize(seen[:, :GLOBAL])
        if not ctx.train:
            aligned = self._image(variables, self.view(batch), ctx)[0][:, None]
        embeddings = {
            "image": aligned,
            "text": self._text(variables, batch["tokens"], ctx, index, batch.get("source")),
            "student": self.embed(variables, seen[:, GLOBAL:], ctx),
            "teacher": jax.lax.stop_gradient(self.embed(extra["teacher"], taught, ctx)),
        }
        if self.masked:
            embeddings |= self._hidden_patches(variables, extra["teacher"], views[:GLOBAL], index, ctx)
        return embeddings, Loss(metrics=self._cut(batch), stats={**moments, **prefixed("teacher", of_teacher)})

    def _hidden_patches(self, variables, teacher, views, index, ctx):
        """{"patches", "teacher_patches" [B, 2, n, bottleneck] of hidden ones, "teacher_mean" [B, 2, bottleneck]}."""
        flat = lambda xs: jnp.stack(xs, 1).reshape(-1, *xs[0].shape[1:])  # a picture's views side by side
        noise = lambda i: jax.vmap(lambda key: jax.random.uniform(key, (n,)))(ctx.keys(f"hidden/{i}", index))
        n = self.patches_of(self.views[0].size)
        places = jnp.argsort(flat([noise(i) for i in range(GLOBAL)]), 1)[:, : self.hidden_count]  # [2 B, hidden]
        mask = jnp.zeros((len(places), n), bool).at[jnp.arange(len(places))[:, None], places].set(True)
        keys = None
        if ctx.train and self.draws(self.encoder):
            keys = flat([ctx.keys(f"dropout/hidden/{i}", index) for i in range(GLOBAL)])
        read = lambda v, **how: self.apply("encoder", v, flat(views), ctx=ctx, **how)[1]["patches"]
        at = lambda x: jnp.take_along_axis(x, places[..., None], 1)
        embed = lambda v, x: self.embed(v, x, ctx, "patch_")
        seen, taught = read(variables, mask=mask, keys=keys), embed(teacher, read(teacher))
        found = {"patches": embed(variables, at(seen))}
        found |= jax.lax.stop_gradient({"teacher_patches": at(taught), "teacher_mean": taught.mean(1)})
        return {name: x.reshape(len(index), GLOBAL, *x.shape[1:]) for name, x in found.items()}

    def full_batch_loss(self, params, extra, embeddings, batch, ctx):
        distilled = super().full_batch_loss(params, extra, embeddings, batch, ctx)
        terms = {name: term.replace(coefficient=self.distillation) for name, term in distilled.terms.items()}
        image, text, aligned = embeddings["image"], embeddings["text"], super(MultiCrop, self).full_batch_loss
        of = lambda v: aligned(params, extra, {"image": image[:, v], "text": text}, batch, ctx)
        if self.masked:
            distilled = distilled.join(self._patches_loss(params, extra, embeddings, batch, ctx))
            terms |= {"patches": distilled.terms["patches"]}
        return distilled.replace(terms=terms).join(_over_views([of(v) for v in range(image.shape[1])]))

    def _patches_loss(self, params, extra, embeddings, batch, ctx):
        mask, of_teacher = batch["mask"], extra["teacher"]
        student = self.scores(self.variables(params, extra), embeddings["patches"], ctx, "patch_") / self.temperature
        taught = self.scores(of_teacher, embeddings["teacher_patches"], ctx, "patch_")
        weight = jnp.broadcast_to(mask[:, None, None], taught.shape[:3])
        temperature = as_schedule(self.teacher_temperature)(ctx.step)
        q = self.targets(taught, extra["centre"]["patches"], temperature, weight)
        nll = -jnp.sum(q * jax.nn.log_softmax(student), -1)
        term = Term(jnp.sum(nll.mean((1, 2)) * mask), mask.sum(), self.masked)
        mean = self.scores(of_teacher, embeddings["teacher_mean"], ctx, "patch_")
        return Loss({"patches": term}, stats=self.centre_stats("patches", mean, mask))

    def forward_flops(self, batch_spec):
        rows, modules, local = batch_spec["mask"].size, self.modules(), len(self.views) - GLOBAL
        patches = [self.patches_of(view.size) or 0 for view in self.views]
        head = lambda sizes: sum(modules["image_head"][0].flops(rows, self.encoder.features, n) for n in sizes)
        return {
            "encoder": self.encoder_flops(rows, self.views) + self._masked_flops(rows),
            "image_head": head(patches),
            "text": self.text.flops(rows),
            "text_head": modules["text_head"][0].flops(rows, self.text.features),
            "pairs": GLOBAL * 2 * rows * rows * self.width,
            **self._head_flops(rows * local),
        }

    def _masked_flops(self, rows):
        """Of the global views once more, with hidden patches, and their head."""
        if not self.masked:
            return 0
        modules, seen = self.modules(), GLOBAL * rows * self.hidden_count
        heads = modules["patch_projector"][0].flops(seen, self.encoder.features)
        heads += modules["patch_prototypes"][0].flops(seen, self.bottleneck)
        return heads + self.encoder_flops(rows, self.views[:GLOBAL])

    def _head_flops(self, rows):
        modules = self.modules()
        return {
            "projector": modules["projector"][0].flops(rows, self.width),
            "prototypes": modules["prototypes"][0].flops(rows, self.bottleneck),
        }

    def flops(self, batch_spec, frozen=()):
        rows, parts = batch_spec["mask"].size, self.forward_flops(batch_spec)
        trained = sum(x * (1.0 if name in frozen else 3.0) for name, x in parts.items())
        taught = parts["image_head"] * GLOBAL / len(self.views) + sum(self._head_flops(rows * GLOBAL).values())
        passes = 2 if self.masked else 1  # for the vector, and for patches
        return trained + taught + passes * self.encoder_flops(rows, self.views[:GLOBAL])


@dataclasses.dataclass(frozen=True, kw_only=True)
class SILC(_SILC, CLIP):
    """CLIP, and a teacher of the global views whom the local ones follow (see `_SILC`)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SILCSigmoid(_SILC, SigLIP):
    """The same on SigLIP's loss of pairs."""


def _over_views(losses):
    """The mean over views of their losses: sums and weights add."""
    parts = [({name: (term.sum, term.weight) for name, term in loss.terms.items()}, loss.metrics) for loss in losses]
    terms, metrics = jax.tree.map(lambda *x: sum(x), *parts)
    return Loss({name: Term(*pair) for name, pair in terms.items()}, metrics)
