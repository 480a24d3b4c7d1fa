"""The discrete VAE of DALL-E: Ramesh et al. 2021, "Zero-Shot Text-to-Image Generation", section 2.1 and appendix A.

Each patch is a distribution q over K codes; a sample of it, relaxed by Gumbel noise g, goes through the decoder:

    code = softmax((log q + g) / tau) E
    loss = 1/(H W C) ( -log p(x | codes) + beta sum over patches of KL(q || uniform) )               (appendix A.2)

tau falls from 1 to 1/16 and beta rises from 0 to 6.6 over the run's first steps. p is the logit-Laplace distribution of
a pixel x squeezed into (0.1, 0.9) (appendix A.3), or a Gaussian (`l2`). The encoder and the decoder are transformers on
patches and not the paper's convolutions.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from paradigm.errors import choose
from paradigm.objective import Loss, Term
from paradigm.schedule import Schedule, as_schedule
from vision.objectives.tokenizer import TokenizerObjective
from vision.patches import patchify
from vision.tokenizer import GumbelQuantizer

SQUEEZE = 0.1  # epsilon of appendix A.3, equation 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class DVAE(TokenizerObjective):
    """Pictures through a relaxed choice of codes.

    temperature: tau. kl: beta; both numbers or Schedules. distribution: logit_laplace or l2.
    """

    temperature: float | Schedule = 1.0
    kl: float | Schedule = 6.6
    distribution: str = "logit_laplace"

    def __post_init__(self):
        super().__post_init__()
        choose("DVAE.distribution", self.distribution, dict.fromkeys(("logit_laplace", "l2")))

    @property
    def outputs(self):
        return super().outputs * (2 if self.distribution == "logit_laplace" else 1)

    def make_quantizer(self):
        return GumbelQuantizer(self.codes, self.code_width)

    def error(self, outputs, images):
        """[B]: -log p of a number of a picture, the mean over them; without the constant of a Gaussian."""
        if self.distribution == "l2":
            return jnp.square(outputs - patchify(images, self.encoder.patch)).mean((1, 2))
        x = (1 - 2 * SQUEEZE) * patchify(self.views[0].undo(images), self.encoder.patch) + SQUEEZE
        x = jnp.clip(x, SQUEEZE, 1 - SQUEEZE)
        mu, log_b = jnp.split(outputs, 2, -1)
        logit = jnp.log(x) - jnp.log1p(-x)
        return (math.log(2.0) + log_b + jnp.log(x * (1 - x)) + jnp.abs(logit - mu) * jnp.exp(-log_b)).mean((1, 2))

    def pixels(self, outputs):
        if self.distribution == "l2":
            return outputs
        mu, _ = jnp.split(outputs, 2, -1)
        x = jnp.clip((jax.nn.sigmoid(mu) - SQUEEZE) / (1 - 2 * SQUEEZE), 0.0, 1.0)
        zero, one = (
            self.views[0].undo(jnp.zeros(self.encoder.channels)),
            self.views[0].undo(jnp.ones(self.encoder.channels)),
        )
        x = x.reshape(*x.shape[:2], -1, self.encoder.channels)
        return ((x - zero) / (one - zero)).reshape(mu.shape)

    def loss(self, params, extra, batch, ctx):
        images, variables = self.draw(batch, ctx), self.variables(params, extra)
        _, seen, _ = self.apply("encoder", variables, images, keys=self.dropout_keys(batch, ctx))
        keys = ctx.keys("gumbel", batch["index"]) if ctx.train else None
        tau = as_schedule(self.temperature)(ctx.step)
        codes, more, _ = self.apply("quantizer", variables, seen["patches"], keys, tau)
        outputs = self.apply("decoder", variables, codes)[0]
        rows, total = batch["mask"].sum(), lambda x: jnp.sum(x * batch["mask"])
        logs, numbers = more["logs"], self.patches * self.encoder.patch**2 * self.encoder.channels
        kl = jnp.sum(jnp.exp(logs) * (logs + math.log(self.codes)), (1, 2)) / numbers
        terms = {
            "reconstruction": Term(total(self.error(outputs, images)), rows),
            "kl": Term(total(kl), rows, as_schedule(self.kl)(ctx.step)),
        }
        entropy = -jnp.sum(jnp.exp(logs) * logs, -1).mean(1)
        return Loss(terms, {"code_entropy": (total(entropy), rows)})

    def forward_flops(self, batch_spec):
        rows, parts = batch_spec["mask"].size, super().forward_flops(batch_spec)
        quantizer = 2 * rows * self.patches * self.codes * (self.encoder.d_model + self.code_width)
        return {**parts, "quantizer": quantizer}
