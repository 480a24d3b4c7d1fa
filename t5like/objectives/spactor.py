"""SpacTor's first stage: span corruption and replaced token detection at once (Ye et al. 2024, "SpacTor-T5:
Pre-training T5 Models with Span Corruption and Replaced Token Detection", section 2).

Spans are cut as T5 cuts them; of the tokens left 15 % are hidden from a generator G, an encoder, and its samples stand
in their place. The encoder-decoder reads that: its encoder D tells which tokens are not the original, its decoder
writes the spans.

    original   Thank you for inviting me to your party last week .
    of G       Thank you <X> me [MASK] your party <Y> </s>          G samples "from"
    read       Thank you <X> me from your party <Y> </s>
    targets    <X> for inviting <Y> last week . </s>

    loss = E_hidden[ -log p_G(x[t] | ...) ] + 10 E_t[ cross-entropy of D(read, t) and (read[t] != x[t]) ]
         + 10 E[ -log p(targets[t] | read, targets[<t]) + z_loss log(Z_t)^2 ]

After tau steps span corruption goes on alone, on the same weights (gin_configs/objectives/spactor.gin: Stages). There
is no public code: rates, weights and tau are after the paper's text (sections 2 and 3), not checked against it number
by number. G has a share of the encoder's layers at its width, which is this project's choice, the model's table of
tokens, and an output of its own.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from paradigm.errors import UserError
from paradigm.objective import MAIN, Loss
from t5like import heads
from t5like.corrupt import SpanNoise
from t5like.masking import Masking
from t5like.models import PARTITION_RULES, Encoder, EncoderDecoder
from t5like.objectives.base import Blanks, SequenceToSequence, TextObjective
from t5like.scoring import sample_tokens, score_detection, score_text


@dataclasses.dataclass(frozen=True)
class SpansAndMasks:
    """What a data worker makes of a window: `spans`, a SpanNoise, then `masking` of the tokens that it leaves.

    A row of span corruption whose encoder_inputs have masks, and of what these hide: hidden_targets, hidden_places
    int32 [P], hidden_weights float32 [P], hidden_bytes float32 [].
    """

    spans: SpanNoise
    masking: Masking

    def __call__(self, example, rng, step, train):
        row = self.spans(example, rng, step, train)
        of_row = row["encoder_inputs"], row["encoder_segments"]
        hidden = self.masking.hide({"byte_lengths": example["byte_lengths"]}, *of_row, rng, step, train)
        names = {"targets": "targets", "positions": "places", "weights": "weights", "text_bytes": "bytes"}
        own = {f"hidden_{name}": hidden[theirs] for theirs, name in names.items()}
        return {**row, "encoder_inputs": hidden["encoder_inputs"], **own}


@dataclasses.dataclass(frozen=True)
class SpacTor(Blanks, SequenceToSequence, TextObjective):
    """Span corruption of a text some of whose tokens are fakes, which the encoder finds.

    model: an EncoderDecoder. length, rate, mean_span, z_loss: see SpanCorruption. hidden_rate: share of the other
    tokens that the generator fills. generator_layers: share of the encoder's layers. detection, spans: weights of their
    losses.

    Raises UserError for what SpanNoise and Masking refuse, and a share that is not positive.
    """

    model: Any
    length: int = 512
    rate: Any = 0.15
    mean_span: Any = 3.0
    z_loss: float = 1e-4
    hidden_rate: Any = 0.15
    generator_layers: float = 0.25
    detection: float = 10.0
    spans: float = 10.0

    architectures = (EncoderDecoder,)

    def __post_init__(self):
        _ = self._noise, self._masking  # raise now rather than in a data worker
        self.check_kind("spactor")
        self.check_positions("spactor", max(self.length, self._noise.target_length))
        if not self.generator_layers > 0:
            raise UserError(f"spactor: generator_layers={self.generator_layers:g} must be positive")

    @functools.cached_property
    def _noise(self):
        return SpanNoise(self.vocabulary, self.length, self.rate, self.mean_span)

    @functools.cached_property
    def _masking(self):
        bare = self.vocabulary and dataclasses.replace(self.vocabulary, cls=None, sep=None)
        return Masking(bare, self.length, self.hidden_rate, masked=1.0, random=0.0, name="spactor")

    @property
    def preprocess(self):
        return self.known and SpansAndMasks(self._noise, self._masking)

    def batch_spec(self, batch_size, phase=MAIN):
        row = lambda *shape, dtype=jnp.int32: jax.ShapeDtypeStruct((batch_size, *shape), dtype)
        count = self._masking.target_length
        own = {"hidden_targets": row(count), "hidden_places": row(count)}
        own |= {"hidden_weights": row(count, dtype=jnp.float32), "hidden_bytes": row(dtype=jnp.float32)}
        return {**super().batch_spec(batch_size, phase), **own}

    @property
    def generator(self):
        """The Encoder that makes fakes: a shallow one, as wide as the model."""
        fields = self.model.shared(vocab_size=self.model.vocab_size, scaled_init=self.model.scaled_init)
        tables = {name: getattr(self.model, name) for name in ("embed_std", "max_length", "position_offset")}
        layers = max(1, round(self.model.layers * self.generator_layers))
        return Encoder(**fields, **tables, layers=layers, remat=self.model.remat, scan=self.model.scan)

    @property
    def detector(self):
        """What tells originals by the encoder's hidden states: [B, S, D] -> [B, S, 1]."""
        return heads.TokenHead(**self.model.shared(activation="gelu"))

    def modules(self):
        of_generator = self.generator, jnp.ones((1, 8), jnp.int32)
        detector = self.detector, jnp.zeros((1, self.model.d_model))
        return {**super().modules(), "generator": of_generator, "detector": detector}

    def init(self, key):
        params = super().init(key)
        return {**params, "generator": {k: v for k, v in params["generator"].items() if k != "embed"}}

    def apply(self, name, variables, *inputs, **how):
        if name == "generator":
            params = variables["params"]
            whole = {**params["generator"], "embed": params["model"]["embed"]}
            variables = {**variables, "params": {**params, "generator": whole}}
        return super().apply(name, variables, *inputs, **how)

    def loss(self, params, extra, batch, ctx):
        drops = lambda name: ctx.keys(f"{name}/dropout", batch["index"]) if ctx.train else None
        variables, rows, segments = self.variables(params, extra), batch["mask"][:, None], batch["encoder_segments"]
        targets, places, weights = (batch[f"hidden_{name}"] for name in ("targets", "places", "weights"))

        read = batch["encoder_inputs"], drops("generator"), segments, places
        hidden, _, _ = self.apply("generator", variables, *read, ctx=ctx, method="hidden")
        kernel = self.generator.output_kernel(params["generator"])
        of_text = self.known.is_text(targets), batch["hidden_bytes"] * batch["mask"]
        generator = score_text(hidden, kernel, targets, weights * rows, *of_text, 0.0)

        fakes = sample_tokens(hidden, kernel, ctx.keys("spactor", batch["index"]), self.known.size)
        places = jnp.where(weights > 0, places, self.length)  # what is padding is written nowhere
        put = jax.vmap(lambda row, at, values: row.at[at].set(values, mode="drop"))
        replaced = put(jnp.zeros(segments.shape, bool), places, fakes != targets)

        read = put(batch["encoder_inputs"], places, fakes), batch["inputs"], drops("model"), segments
        hidden, seen, _ = self.apply("model", variables, *read, ctx=ctx, method="hidden")
        spans = self.scores(params, batch, hidden)
        terms = {name: term.replace(coefficient=self.spans) for name, term in spans.terms.items()}
        logits, _, _ = self.apply("detector", variables, seen["encoded"], ctx=ctx)
        detection = score_detection(logits[..., 0], replaced, (segments > 0) * rows, self.detection)
        return generator.prefixed("generator").join(detection).join(Loss(terms, spans.metrics))

    @property
    def partition_rules(self):
        return (*heads.PARTITION_RULES, *PARTITION_RULES)

    def forward_flops(self, batch_spec):
        (batch, length), hidden = batch_spec["encoder_inputs"].shape, batch_spec["hidden_targets"].shape[1]
        own = {
            "generator": self.generator.flops(batch, length, hidden),
            "detector": self.detector.flops(batch * length),
        }
        return {**super().forward_flops(batch_spec), **own}
