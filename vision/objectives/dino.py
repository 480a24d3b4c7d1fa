"""DINO: Caron et al. 2021, "Emerging Properties in Self-Supervised Vision Transformers".

    s = prototypes(head(f(any view)))    t = the teacher's, of the two large views
    q = softmax((t - centre) / T_t)      p = softmax(s / 0.1)
    loss = mean over pictures and pairs of a large view i and another view v of -sum_k q_i log p_v        (equation 3)
    then: teacher <- m teacher + (1 - m) student;    centre <- 0.9 centre + 0.1 mean of t                 (equation 4)

The head is an MLP with GELU to unit vectors of 256 dims, the scores their cosines with K prototypes, which have no
gradient in the first `freeze_steps` (the official code's cancel_gradients_last_layer). With centring="sinkhorn" q is
the balanced assignment of DINOv2 in place of the centred softmax.
"""

import dataclasses

import jax
import jax.numpy as jnp

from paradigm.errors import choose
from paradigm.objective import Loss, Term
from paradigm.schedule import Schedule, as_schedule
from paradigm.teacher import Teacher, ema, sinkhorn
from vision.heads import Head, Prototypes, l2_normalize
from vision.objectives.multi_crop import MultiCrop, entropy
from vision.objectives.two_views import prefixed

CENTRE = "centre/"  # of the centres' sums in Loss.stats


@dataclasses.dataclass(frozen=True, kw_only=True)
class DINO(MultiCrop):
    """All views agree with what a teacher says of the large ones.

    momentum: m, or a Schedule: Cosine(peak=0.996, final=1.0) over the run. temperature: of the student.
    teacher_temperature: Linear(peak=0.04, final=0.07) over the first 30 epochs in the long runs. centre_momentum: see
    above. centring: mean or sinkhorn. hidden, head_layers, bottleneck: of the head. head_std: of its kernels at first,
    the official 0.02 for layers of 2048; None is fan_in ** -0.5, for narrow layers, which 0.02 leaves with outputs
    that biases soon drown. prototypes_std: of the prototypes at first; they are read as unit vectors, and the shorter
    they are, the faster they turn (the official nn.Linear's is (3 * bottleneck) ** -0.5). scaled: prototypes have a
    learned length (norm_last_layer=False, as for ViT-S). freeze_steps: an epoch. Views: dino_views.

    The teacher has no dropout and no stochastic depth.
    """

    momentum: float | Schedule = 0.996
    temperature: float = 0.1
    teacher_temperature: float | Schedule = 0.04
    centring: str = "mean"
    centre_momentum: float = 0.9
    hidden: int = 2048
    head_layers: int = 3
    bottleneck: int = 256
    head_std: float | None = 0.02
    prototypes_std: float = 1.0
    scaled: bool = False
    freeze_steps: int = 0

    prefixes = ("",)  # of the heads' names
    centres = ("class",)

    def __post_init__(self):
        super().__post_init__()
        choose(f"{type(self).__name__}.centring", self.centring, dict.fromkeys(("mean", "sinkhorn")))

    @property
    def full_batch(self):
        """Only a balanced assignment needs the scores of the whole batch at once."""
        return self.centring == "sinkhorn"

    @property
    def teacher(self):
        return Teacher(self.momentum)

    @property
    def view_width(self):
        """D of what the heads read."""
        return self.encoder.features

    def width_read(self, head):
        """The same of the head of this prefix."""
        del head
        return self.view_width

    def modules(self):
        widths = (self.hidden,) * (self.head_layers - 1) + (self.bottleneck,)
        dtype, found = self.encoder.dtype, super().modules()
        for name in self.prefixes:
            head = Head(widths, norm=False, activation="gelu_exact", std=self.head_std, dtype=dtype)
            found[f"{name}projector"] = (head, jnp.zeros((1, self.width_read(name))))
            found[f"{name}prototypes"] = (
                Prototypes(self.prototypes, self.scaled, dtype, self.prototypes_std), jnp.zeros((1, self.bottleneck))
            )  # fmt: skip
        return found

    def init_extra(self, params, key):
        """The teacher and the centres; batch_stats where the encoder has BatchNorm."""
        centre = {name: jnp.zeros(self.prototypes) for name in self.centres}
        return {**super().init_extra(params, key), "centre": centre}

    def embed(self, variables, x, ctx, head=""):
        """Outputs of the encoder [..., D] -> unit vectors [..., bottleneck]."""
        return l2_normalize(self.apply(f"{head}projector", variables, x, ctx=ctx)[0])

    def scores(self, variables, unit, ctx, head=""):
        """Unit vectors -> cosines with the prototypes [..., K]."""
        return self.apply(f"{head}prototypes", variables, unit, ctx.step < self.freeze_steps, ctx=ctx)[0]

    def loss(self, params, extra, batch, ctx):
        embeddings, decomposes = self.encode(params, extra, batch, ctx)
        return decomposes.join(self.full_batch_loss(params, extra, embeddings, batch, ctx))

    def encode(self, params, extra, batch, ctx):
        views, index, variables = self.augment_views(batch, ctx), batch["index"], self.variables(params, extra)
        student, moments = self.encode_views(variables, views, index, ctx)
        teacher, seen = self.encode_views(extra["teacher"], views[:2], index, ctx, dropout=None)
        embeddings = {
            "student": self.embed(variables, student, ctx),
            "teacher": jax.lax.stop_gradient(self.embed(extra["teacher"], teacher, ctx)),
        }
        return embeddings, Loss(stats={**moments, **prefixed("teacher", seen)})

    def targets(self, scores, centre, temperature, weight):
        """q [..., K] of the teacher's scores; weight [...] of the rows, 0 for padding."""
        if self.centring == "sinkhorn":
            return jax.lax.stop_gradient(sinkhorn(scores / temperature, weight))
        return jax.lax.stop_gradient(jax.nn.softmax((scores - centre) / temperature))

    def centre_stats(self, name, scores, mask):
        """What update_extra needs of scores [B, ..., K]: sums that average exactly over microbatches."""
        mean = scores.reshape(len(mask), -1, scores.shape[-1]).mean(1)
        sums = {"sum": jnp.mean(mean * mask[:, None], 0), "rows": mask.mean()}
        return {f"{CENTRE}{name}/{what}": jax.lax.stop_gradient(x) for what, x in sums.items()}

    def full_batch_loss(self, params, extra, embeddings, batch, ctx):
        variables, mask = self.variables(params, extra), batch["mask"]
        student = self.scores(variables, embeddings["student"], ctx) / self.temperature
        teacher = self.scores(extra["teacher"], embeddings["teacher"], ctx)
        weight = jnp.broadcast_to(mask[:, None], teacher.shape[:2])
        temperature = as_schedule(self.teacher_temperature)(ctx.step)
        q = self.targets(teacher, extra["centre"]["class"], temperature, weight)
        rows = mask.sum()
        term = Term(jnp.sum(self.agreement(q, student) * mask), rows)
        return Loss(
            {"views": term}, {"teacher_entropy": entropy(q, weight)}, stats=self.centre_stats("class", teacher, mask)
        )

    def update_extra(self, extra, params, loss, ctx):
        seen = {name: x for name, x in loss.stats.items() if name.startswith(CENTRE)}
        others = {name: x for name, x in loss.stats.items() if name not in seen}
        centre = {
            name: ema(old, seen[f"{CENTRE}{name}/sum"] / jnp.maximum(seen[f"{CENTRE}{name}/rows"], 1e-9),
                      self.centre_momentum)
            for name, old in extra["centre"].items()
        }  # fmt: skip
        return {**super().update_extra(extra, params, loss.replace(stats=others), ctx), "centre": centre}

    def flops(self, batch_spec, frozen=()):
        """As any objective's, but the teacher reads the two large views alone."""
        rows, parts = batch_spec["mask"].size, self.forward_flops(batch_spec)
        trained = sum(x * (1.0 if name in frozen else 3.0) for name, x in parts.items())
        heads = sum(x for name, x in parts.items() if name != "encoder") * 2 / len(self.views)
        return trained + heads + self.encoder_flops(rows, self.views[:2])

    def forward_flops(self, batch_spec):
        rows, modules = batch_spec["mask"].size, self.modules()
        return {
            "encoder": self.encoder_flops(rows, self.views),
            "projector": modules["projector"][0].flops(rows * len(self.views), self.encoder.features),
            "prototypes": modules["prototypes"][0].flops(rows * len(self.views), self.bottleneck),
        }
