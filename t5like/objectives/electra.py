"""ELECTRA: replaced token detection (Clark et al. 2020, "ELECTRA: Pre-training Text Encoders as Discriminators").

A small generator G fills hidden tokens, and the encoder, the discriminator D, tells at every place whether the token is
the original (sections 2 and 3.2):

    x_hidden   15 % of the tokens hidden                      m their places
    x_fake     x, with a sample of p_G(. | x_hidden) at m     no gradient goes through the sample
    loss = E_m[ -log p_G(x[t] | x_hidden) ] + 50 E_t[ cross-entropy of D(x_fake, t) and (x_fake[t] != x[t]) ]

A sample that is the original counts as original. The generator has a share of the discriminator's width, and its tables
of tokens, positions and token types. The one to fine-tune is the discriminator: the module `model`.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from paradigm.errors import UserError, choose
from t5like import heads
from t5like.masking import Masking
from t5like.models import PARTITION_RULES, Encoder
from t5like.objectives.base import HiddenTokens, TextObjective, scheduled_padding
from t5like.scoring import sample_tokens, score_detection, score_text

# The generator's, in place of which the discriminator's are used (section 3.2, "weight sharing").
SHARED = {"embeddings": ("embed", "positions", "token_types"), "none": ()}


@dataclasses.dataclass(frozen=True)
class ELECTRA(HiddenTokens, TextObjective):
    """A generator's fakes, to be told from the tokens of the text.

    model: the discriminator, an Encoder without head. length, rate, unit, masked, random: see t5like/masking.py; what
    is hidden is masked in 85 of 100 places and else left (google-research/electra, pretrain/pretrain_helpers.py, mask).
    generator_width, generator_layers: shares of the model's width, heads and hidden width, and of its layers (1/4 for
    the small and large model, 1/3 for base; table 6). share: the generator's tables are the model's ("embeddings") or
    its own ("none"). weight: of the discriminator's loss. over: the places that it is scored at, "all" or "hidden"
    (ELECTRA 15 %, section 3.4). temperature: of the samples.

    Raises UserError for a model with a head or of another kind, shares that leave no generator, and what Masking
    refuses.
    """

    model: Any
    length: int = 512
    rate: Any = 0.15
    unit: str = "token"
    masked: float = 0.85
    random: float = 0.0
    generator_width: float = 0.25
    generator_layers: float = 1.0
    share: str = "embeddings"
    weight: float = 50.0
    over: str = "all"
    temperature: float = 1.0

    architectures = (Encoder,)

    def __post_init__(self):
        self.check_kind("electra")
        if self.model.head:
            raise UserError("electra: the discriminator has no output over the vocabulary: set the model's head=False")
        choose("ELECTRA.share", self.share, SHARED)
        choose("ELECTRA.over", self.over, dict.fromkeys(("all", "hidden")))
        for name in ("generator_width", "generator_layers", "temperature"):
            if not getattr(self, name) > 0:
                raise UserError(f"electra: {name}={getattr(self, name):g} must be positive")
        _ = self._masking, self.generator.head_width  # raise now rather than in a data worker or a trace
        self.check_positions("electra")

    @functools.cached_property
    def _masking(self):
        return Masking(self.vocabulary, self.length, self.rate, self.unit, self.masked, self.random, "electra")

    @property
    def generator(self):
        """The Encoder that makes fakes (google-research/electra, run_pretraining.py, get_generator_config)."""
        part = lambda n, share: max(1, round(n * share))
        return self.model.clone(
            d_model=part(self.model.d_model, self.generator_width),
            heads=part(self.model.heads, self.generator_width),
            kv_heads=None,
            d_ff=part(self.model.d_ff, self.generator_width),
            layers=part(self.model.layers, self.generator_layers),
            embed_width=self.model.embed_features,
            head=True,
        )

    @property
    def detector(self):
        """What tells originals by the model's hidden states: [B, L, D] -> [B, L, 1]."""
        return heads.token_head(self.model)

    def modules(self):
        tokens = jnp.ones((1, 8), jnp.int32)
        return {
            "model": (self.model, tokens),
            "generator": (self.generator, tokens),
            "detector": (self.detector, jnp.zeros((1, self.model.d_model))),
        }

    def init(self, key):
        params = super().init(key)
        generator = {name: tree for name, tree in params["generator"].items() if name not in SHARED[self.share]}
        return {**params, "generator": generator}

    def generator_params(self, params):
        """All that the generator computes with: its own parameters, and the discriminator's that it shares."""
        shared = {name: params["model"][name] for name in SHARED[self.share] if name in params["model"]}
        return {**params["generator"], **shared}

    def apply(self, name, variables, *inputs, **how):
        if name == "generator":
            params = variables["params"]
            variables = {**variables, "params": {**params, "generator": self.generator_params(params)}}
        return super().apply(name, variables, *inputs, **how)

    def loss(self, params, extra, batch, ctx):
        targets, weights, is_text = self.scored(batch)
        segments, places = batch["encoder_segments"], batch["positions"]
        drops = lambda name: ctx.keys(f"{name}/dropout", batch["index"]) if ctx.train else None
        variables, how = self.variables(params, extra), {"ctx": ctx, "method": "hidden"}

        read = batch["encoder_inputs"], drops("generator"), segments, places
        hidden, _, _ = self.apply("generator", variables, *read, **how)
        kernel = self.generator.output_kernel(self.generator_params(params))
        text_bytes = batch["text_bytes"] * batch["mask"]
        generator = score_text(hidden, kernel, targets, weights, is_text, text_bytes, 0.0)

        fakes = self.sample(hidden, kernel, ctx.keys("electra", batch["index"]))
        places = jnp.where(batch["weights"] > 0, places, self.length)  # what is padding is written nowhere
        put = lambda row, places, values: row.at[places].set(values, mode="drop")
        read = jax.vmap(put)(batch["encoder_inputs"], places, fakes)
        replaced = jax.vmap(put)(jnp.zeros(read.shape, bool), places, fakes != targets)

        hidden, _, _ = self.apply("model", variables, read, drops("model"), segments, **how)
        logits, _, _ = self.apply("detector", variables, hidden, ctx=ctx)
        seen = (segments > 0) * batch["mask"][:, None]
        if self.over == "hidden":
            seen = seen * jax.vmap(put)(jnp.zeros(read.shape), places, batch["weights"])
        loss = generator.prefixed("generator").join(score_detection(logits[..., 0], replaced, seen, self.weight))
        return loss.replace(metrics={**loss.metrics, **scheduled_padding(batch, [self.rate], "")})

    def sample(self, hidden, kernel, keys):
        """int32 [B, P]: a token for each place, drawn from the softmax of hidden [B, P, E] @ kernel [E, V]."""
        return sample_tokens(hidden, kernel, keys, self.known.size, self.temperature)

    @property
    def partition_rules(self):
        return (*heads.PARTITION_RULES, *PARTITION_RULES)

    def forward_flops(self, batch_spec):
        (batch, length), places = batch_spec["encoder_inputs"].shape, batch_spec["targets"].shape[1]
        return {
            "model": self.model.flops(batch, length, 0),
            "generator": self.generator.flops(batch, length, places),
            "detector": self.detector.flops(batch * length),
        }
