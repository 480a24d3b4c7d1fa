"""VQ-VAE: van den Oord et al. 2017, "Neural Discrete Representation Learning", and BEiT v2's VQ-KD (Peng et al. 2022).

    z = the encoder's patches, e = the nearest code to each                                       (equation 1)
    loss = |x - decoder(z + sg(e - z))|^2 + beta |z - sg(e)|^2                                    (equation 3)

Codes are moving averages of what is nearest to them, with gamma = 0.99 (appendix A.1, equations 6 to 8), and not a
term:

    N <- gamma N + (1 - gamma) n        m <- gamma m + (1 - gamma) sum of the n latents z        e = m / N

A code that hardly any latent is nearest to is put on a latent of the batch (Dhariwal et al. 2020, "Jukebox", 3.1).
VQ-KD predicts another encoder's patches in place of pixels, by their cosine, and latents and codes have length 1:

    loss = 1 - cos(decoder(...), t) + beta |z - sg(e)|^2, of patches t of a frozen teacher        (BEiT v2, equation 4)

It moves the mean of a code's latents over the past, where the official code moves the code towards the batch's mean.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from paradigm import rng
from paradigm.errors import UserError
from paradigm.objective import Loss, Term
from paradigm.teacher import ema
from vision.objectives.tokenizer import TokenizerObjective, codebook_metrics
from vision.patches import patchify
from vision.tokenizer import VectorQuantizer, unit

FADED = 1e-6  # of an even share: a code that falls no further keeps its place, where 0 / 0 would have none
MOMENTS = {"count": "quantizer/codebook/count", "sum": "quantizer/codebook/sum"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class VQ(TokenizerObjective):
    """Pictures through codes.

    commitment: beta. decay: gamma. restart: of a code's even share, below which it is put on a latent; 0 is never. A
    code that is never nearest falls there in log(restart) / log(decay) steps, 349 with these: a run that is as short as
    that needs a smaller decay, or ends with the few codes that it began with.
    normalized: latents and codes of length 1. target: a ViT whose patches are to be found in place of pixels (VQ-KD),
    module `target`, frozen, from another run (Experiment.freeze, Experiment.init); its grid is the encoder's.

    Raises UserError for a target of another grid.
    """

    commitment: float = 0.25
    decay: float = 0.99
    restart: float = 0.03
    normalized: bool = False
    target: Any = None

    def __post_init__(self):
        super().__post_init__()
        if self.target is not None and self.target.grid != self.encoder.grid:
            raise UserError(
                f"VQ.target has {self.target.grid} patches and the encoder {self.encoder.grid}: choose the same "
                "image_size / patch"
            )

    @property
    def given(self):
        return () if self.target is None else ("target",)

    @property
    def outputs(self):
        return super().outputs if self.target is None else self.target.d_model

    def make_quantizer(self):
        return VectorQuantizer(self.codes, self.code_width, self.normalized)

    def modules(self):
        modules = super().modules()
        return modules if self.target is None else {**modules, "target": (self.target, modules["encoder"][1])}

    def decoded(self, variables, ids):
        return super().decoded(variables, ids) if self.target is None else None

    def init_extra(self, params, key):
        """As many latents of a picture for each code."""
        extra = super().init_extra(params, key)
        book = extra["batch_stats"]["quantizer"]["codebook"]
        even = self.patches / self.codes
        extra["batch_stats"]["quantizer"]["codebook"] = jax.tree.map(lambda x: even * x, book)
        return extra

    def error(self, variables, outputs, images):
        """[B]: how far the decoder is from what it should give."""
        if self.target is None:
            return jnp.square(outputs - patchify(images, self.encoder.patch)).mean((1, 2))
        _, seen, _ = self.apply("target", variables, images)
        wanted = jax.lax.stop_gradient(seen["patches"].astype(jnp.float32))
        return (1.0 - jnp.sum(unit(outputs) * unit(wanted), -1)).mean(1)

    def loss(self, params, extra, batch, ctx):
        images, variables = self.draw(batch, ctx), self.variables(params, extra)
        _, seen, _ = self.apply("encoder", variables, images, ctx=ctx, keys=self.dropout_keys(batch, ctx))
        codes, more, moments = self.apply("quantizer", variables, seen["patches"], batch["mask"], ctx=ctx)
        outputs = self.apply("decoder", variables, codes)[0]
        rows, total = batch["mask"].sum(), lambda x: jnp.sum(x * batch["mask"])
        commitment = jnp.square(more["latent"] - jax.lax.stop_gradient(more["nearest"])).mean((1, 2))
        terms = {
            "reconstruction": Term(total(self.error(variables, outputs, images)), rows),
            "commitment": Term(total(commitment), rows, self.commitment),
        }
        count = extra["batch_stats"]["quantizer"]["codebook"]["count"]
        # One latent of each picture, for codes that are dead.
        place = jax.vmap(lambda key: jax.random.randint(key, (), 0, self.patches))(ctx.keys("latent", batch["index"]))
        latent = jnp.take_along_axis(more["latent"], place[:, None, None], 1)[:, 0]
        kept = {"latent": jax.lax.stop_gradient(latent), "mask": batch["mask"]} if moments else {}
        return Loss(terms, codebook_metrics(count / count.sum(), rows), kept, moments)

    def update_extra(self, extra, params, loss, ctx):
        stats = {name: x for name, x in loss.stats.items() if name not in MOMENTS.values()}
        extra = super().update_extra(extra, params, loss.replace(stats=stats), ctx)
        if len(stats) == len(loss.stats):
            return extra  # the quantizer is frozen
        old, even = extra["batch_stats"]["quantizer"]["codebook"], self.patches / self.codes
        book = ema(old, {name: loss.stats[path] for name, path in MOMENTS.items()}, self.decay)
        faded = book["count"] < FADED * even
        book = {name: jnp.where(faded.reshape(-1, *(1,) * (x.ndim - 1)), old[name], x) for name, x in book.items()}
        if self.restart:
            dead = book["count"] < self.restart * even
            chance = jnp.log(loss.rows["mask"])
            drawn = jax.random.categorical(rng.fold(ctx.key("restart"), "codes"), chance, shape=(self.codes,))
            book = {
                "count": jnp.where(dead, even, book["count"]),
                "sum": jnp.where(dead[:, None], even * loss.rows["latent"][drawn], book["sum"]),
            }
        quantizer = {**extra["batch_stats"]["quantizer"], "codebook": book}
        return {**extra, "batch_stats": {**extra["batch_stats"], "quantizer": quantizer}}

    def forward_flops(self, batch_spec):
        parts = super().forward_flops(batch_spec)
        return parts if self.target is None else {**parts, "target": self.target.flops(batch_spec["mask"].size)}
