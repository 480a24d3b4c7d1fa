"""Is a sentence true of two pictures? NLVR2: Suhr et al. 2019, "A Corpus for Reasoning about Natural Language Grounded
in Photographs", as ViLT is fine-tuned for it (Kim et al. 2021, section 4.3, after UNITER's "pair").

One stream reads the sentence twice, with either picture; what it says at the first token of both goes to a classifier:

    h_k = tanh(W read(picture k, sentence)[0] + b)                                                     k = 1, 2
    loss = -mean over examples of log softmax(W2 gelu(norm(W1 [h_1, h_2])))[true or false]

The second picture's patches have a vector added, which tells it from the first (token_type_embeddings' third row in
dandelin/ViLT, compute_nlvr2); it is zero at first. The classifier is that code's nlvr2_classifier; of one picture, as
NLVR's drawn boxes (Suhr et al. 2017, "A Corpus of Natural Language for Visual Reasoning"), the same of h_1 alone.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from multimodal.objectives.captioner import TwoWay
from multimodal.preprocess import PreprocessPair
from paradigm.errors import UserError
from paradigm.layers import Dense, LayerNorm, gelu_exact
from paradigm.objective import MAIN, Loss, Term


class Second(nn.Module):
    """Patches [B, N, D] -> ([B, N, D], {}): with a vector added."""

    @nn.compact
    def __call__(self, x):
        token = self.param("second_token", nn.initializers.zeros, (1, 1, x.shape[-1]), jnp.float32)
        return x + token.astype(x.dtype), {}


class TruthHead(nn.Module):
    """First tokens' states [B, D], of each picture -> (logits float32 [B, 2], {})."""

    std: float | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, *states):
        dense = lambda width, name: Dense((width,), 1, True, self.std, self.dtype, name=name)
        width, pool = states[0].shape[-1], dense(states[0].shape[-1], "dense")
        x = jnp.concatenate([jnp.tanh(pool(x)) for x in states], -1)
        x = gelu_exact(LayerNorm(dtype=self.dtype, name="norm")(dense(2 * width, "both")(x)))
        out = Dense((2,), 1, True, 0.02, self.dtype, name="out")  # ViLT's init_weights; even odds at first
        return out(x).astype(jnp.float32), {}


@dataclasses.dataclass(frozen=True)
class PreprocessTwo(PreprocessPair):
    """A pair with a second picture: "second" uint8 [S, S, C] and "second_aspect", as "image" and "aspect"."""

    def __call__(self, example, rng, step, train):
        if "second" not in example:
            raise UserError(
                "NLVR reads two pictures and records have one: set PairData.second to the column of the other, or "
                "PairData.label = 'truth' with the source shapes; or set NLVR.pictures = 1"
            )
        other = self.image({"image": example["second"]}, rng, step, train)
        more = {"second": other["image"], "second_aspect": other["aspect"]}
        return {**super().__call__(example, rng, step, train), **more}


@dataclasses.dataclass(frozen=True, kw_only=True)
class NLVR(TwoWay):
    """True or false, of two pictures and a sentence. encoder: a SingleStream, such as a run of ViLT has trained.

    pictures: 2, or 1 that the sentence is about. Labels are 0 for false and 1 for true, the second of the data's two
    classes; -1 weighs nothing.
    """

    pictures: int = 2

    new_modules = ("second", "truth")

    def __post_init__(self):
        super().__post_init__()
        if self.pictures not in (1, 2):
            raise UserError(f"NLVR.pictures={self.pictures}: a sentence is of 1 picture or of 2")

    def check_data(self, prepared):
        if len(prepared.classes or ()) != 2:
            raise UserError(
                f"NLVR tells true from false, and {prepared.name} has {len(prepared.classes or ())} classes: set "
                "PairData.label to the column that says which, in two words"
            )
        return (f"NLVR: {prepared.classes[1]!r} is true and {prepared.classes[0]!r} false",)

    @property
    def preprocess(self):
        own = super().preprocess
        if self.pictures == 1:
            return own
        return PreprocessTwo(*(getattr(own, field.name) for field in dataclasses.fields(own)))

    def batch_spec(self, batch_size, phase=MAIN):
        spec = super().batch_spec(batch_size, phase)
        more = {"second": spec["image"], "second_aspect": spec["aspect"]} if self.pictures == 2 else {}
        return {**spec, **more}

    def modules(self):
        e = self.encoder
        states = jnp.zeros((1, e.d_model))
        head = TruthHead(e.init_std, e.dtype)
        second = {"second": (Second(), jnp.zeros((1, e.count, e.d_model)))} if self.pictures == 2 else {}
        return {**super().modules(), **second, "truth": (head, (states,) * self.pictures)}

    def loss(self, params, extra, batch, ctx):
        variables, index, states = self.variables(params, extra), batch["index"], []
        for k, (image, aspect) in enumerate((("image", "aspect"), ("second", "second_aspect"))[: self.pictures]):
            one = {**batch, "image": batch[image], "aspect": batch[aspect]}
            patches, _, _ = self.apply("encoder", variables, self._images(one, ctx, k), ctx=ctx, method="see")
            patches = self.apply("second", variables, patches, ctx=ctx)[0] if k else patches
            states.append(self.read(variables, patches, batch["tokens"], f"picture/{k}", ctx, index)[:, 0])
        logits = self.apply("truth", variables, *states, ctx=ctx)[0]
        weights, at = batch["mask"] * (batch["label"] >= 0), jnp.maximum(batch["label"], 0)
        nll = -jnp.take_along_axis(jax.nn.log_softmax(logits), at[:, None], 1)[:, 0]
        hits = (jnp.argmax(logits, 1) == at) * weights
        metrics = {"accuracy": (hits.sum(), weights.sum())}
        return Loss({"truth": Term(jnp.sum(nll * weights), weights.sum())}, metrics).join(
            Loss(metrics=self._cut(batch))
        )

    @property
    def partition_rules(self):
        own = (
            *([(r"second_token$", ())] if self.pictures == 2 else []),  # [1, 1, D]
            (r"truth/(dense|both)/kernel$", ("fsdp", "tensor")),
            (r"truth/out/kernel$", ("fsdp", None)),
        )
        return (*own, *super().partition_rules)

    def forward_flops(self, batch_spec):
        rows, e = batch_spec["mask"].size, self.encoder
        embed = 2 * rows * e.count * e.patch**2 * e.channels * e.d_model
        one = embed + e.stack(parent=None).flops(rows, e.count + self.length)
        k, width = self.pictures, e.d_model
        return {"encoder": k * one, "truth": 2 * rows * width * (k * width + 2 * k * width + 4)}
