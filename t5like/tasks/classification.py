"""Text classification: a head on what a pre-trained model says of a text, or of two (Devlin et al. 2019, section 4.1;
Radford et al. 2018, section 3.2).

    class     loss = -log softmax(f(z))[y]                                           one of C names
    classes   loss = -1/C sum_c y_c log s(f_c) + (1 - y_c) log(1 - s(f_c))           any of C names, s the sigmoid
    number    loss = (f(z) - y)^2                                                    similarity of two texts, a rating

each a mean over labelled records; f is the head (heads.py). z is

    Encoder          the place of [cls], or the mean over tokens
    Decoder          the last token, which alone has seen all of the text
    any of them      an Attentive's answer, which has asked all tokens (of an EncoderDecoder the encoder's)
    EncoderDecoder   the decoder's first step, which reads the start id and, through the encoder, the text (EncT5, Liu
                     et al. 2021, section 3); or the mean over the encoder's tokens

Two texts (entailment, similarity) are a record's input and target; who reads them is told by `reading` in base.py.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from paradigm import attentive
from paradigm.attentive import Attentive
from paradigm.capabilities import Classifying
from paradigm.classes import OnClasses
from paradigm.errors import UserError, choose
from paradigm.objective import MAIN, Loss, Term, divide, rows_spec
from t5like.models import Decoder, Encoder, EncoderDecoder
from t5like.tasks import heads
from t5like.tasks.base import Reading, TextTask, reading_spec

KINDS = ("class", "classes", "number")
POOLS = {Encoder: ("first", "mean"), Decoder: ("last",), EncoderDecoder: ("first", "mean")}


@dataclasses.dataclass(frozen=True)
class ReadLabelled:
    """A record as a Reading and its label. pair: of both of its texts."""

    reading: Reading
    pair: bool

    def __call__(self, example, rng, step, train):
        del rng, step, train  # nothing is drawn: dropout alone tells epochs apart
        texts = (example["inputs"], example["targets"]) if self.pair else (example["inputs"],)
        return {**self.reading(*texts)[0], "label": np.asarray(example["label"])}


@dataclasses.dataclass(frozen=True)
class TextClassification(Classifying, OnClasses, TextTask):
    """Labels from texts.

    model: an Encoder, Decoder or EncoderDecoder. classes: how many labels there are; None: as many as the data have; no
    matter for numbers. kind: class, classes or number, as TextRecords.label_kind. length: tokens that are read. pair:
    of the record's input and target, or of its input alone. pool: first, mean, last or an Attentive, see above; None:
    first, of a Decoder last, of an Encoder whose tokenizer has no cls the mean. hidden, dropout: of the head
    (heads.py).

    A record without a label weighs nothing.
    """

    model: Any
    classes: int | None = None
    kind: str = "class"
    length: int = 128
    pair: bool = False
    pool: str | Attentive | None = None
    hidden: bool = False
    dropout: float = 0.1

    new_modules = ("pool", "classifier")

    def __post_init__(self):
        super().__post_init__()
        choose("TextClassification.kind", self.kind, dict.fromkeys(KINDS))
        pools = next(pools for kind, pools in POOLS.items() if isinstance(self.model, kind))
        if self.pool not in (None, *pools) and not self.attends:
            able = f"{' or '.join(pools)}, or an Attentive"
            raise UserError(f"TextClassification.pool={self.pool!r}: of a {type(self.model).__name__} it is {able}")
        if not self.lacks_classes:
            _ = self.outputs  # which may be refused
        lacks_cls = isinstance(self.model, Encoder) and self.vocabulary is not None and self.vocabulary.cls is None
        if self.pool is None and self.vocabulary is not None:
            object.__setattr__(self, "pool", "mean" if lacks_cls else pools[0])
        if self.pool == "first" and lacks_cls:
            raise UserError(
                "TextClassification.pool='first' reads the place of cls, which the tokenizer has not: set pool='mean', "
                "or TextRecords.specials = ('cls', 'sep')"
            )

    @property
    def label_kind(self):
        return self.kind

    @property
    def lacks_classes(self):
        return self.classes is None and self.kind != "number"

    @property
    def side(self):
        return "both_lengths" if self.pair else "input_lengths"

    @functools.cached_property
    def preprocess(self):
        return ReadLabelled(self.reading, self.pair)

    @property
    def _head(self):
        return heads.Head(self.outputs, self.hidden, self.dropout)

    @property
    def outputs(self):
        """C; 1 of numbers."""
        return 1 if self.kind == "number" else self.known_classes

    def batch_spec(self, batch_size, phase=MAIN):
        shape, dtype = {
            "class": ((batch_size,), jnp.int32),
            "classes": ((batch_size, self.outputs), jnp.float32),
            "number": ((batch_size,), jnp.float32),
        }[self.kind]
        label = {"label": jax.ShapeDtypeStruct(shape, dtype)}
        return {**reading_spec(batch_size, self.length), **label, **rows_spec(batch_size)}

    def modules(self):
        width, pool = self.model.d_model, {}
        if self.attends:
            pool["pool"] = self.pool.module(self.model), (jnp.zeros((1, 1, width)), jnp.ones((1, 1), jnp.int32))
        return {"model": (self.model, self.model_inputs()), **pool, "classifier": (self._head, jnp.zeros((1, width)))}

    @property
    def attends(self):
        """Whether z is an Attentive's."""
        return isinstance(self.pool, Attentive)

    def pooled(self, variables, batch, ctx):
        """float32 [B, D]: z."""
        if isinstance(self.model, EncoderDecoder) and self.pool == "first":
            keys = ctx.keys("dropout", batch["index"]) if ctx.train else None
            start = jnp.full((len(batch["inputs"]), 1), self.known.start, jnp.int32)
            read = batch["inputs"], start, keys, batch["segments"], jnp.ones_like(start)
            return self.apply("model", variables, *read, ctx=ctx, method="hidden")[0][:, 0].astype(jnp.float32)
        hidden, real = self.states(variables, batch, ctx), batch["segments"] > 0
        if self.attends:
            return self.apply("pool", variables, hidden, batch["segments"], ctx=ctx)[0]
        if self.pool == "first":
            return hidden[:, 0]
        if self.pool == "last":
            return jnp.take_along_axis(hidden, real.sum(1)[:, None, None] - 1, axis=1)[:, 0]
        return divide(jnp.sum(hidden * real[..., None], 1), real.sum(1)[:, None])

    def scores(self, variables, batch, ctx):
        """float32 [B, C]: logits, or the number."""
        keys = ctx.keys("head", batch["index"]) if ctx.train else None
        return self.apply("classifier", variables, self.pooled(variables, batch, ctx), ctx=ctx, keys=keys)[0]

    def loss(self, params, extra, batch, ctx):
        scores, label = self.scores(self.variables(params, extra), batch, ctx), batch["label"]
        metrics = {"texts_cut": ((batch["cut"] * batch["mask"]).sum(), batch["mask"].sum())}
        if self.kind == "number":
            weights = batch["mask"] * ~jnp.isnan(label)
            each = jnp.square(scores[:, 0] - jnp.nan_to_num(label))
        elif self.kind == "classes":
            weights = batch["mask"] * (label[:, 0] >= 0)
            each = (jax.nn.softplus(scores) - label * scores).mean(1)
            right = ((scores > 0) == (label > 0)).all(1)
            metrics |= {"exact_match": ((right * weights).sum(), weights.sum())}
        else:
            weights = batch["mask"] * (label >= 0)
            at = jnp.where(label >= 0, label, 0)
            each = -jnp.take_along_axis(jax.nn.log_softmax(scores), at[:, None], 1)[:, 0]
            right = jnp.argmax(scores, 1) == at
            metrics |= {"accuracy": ((right * weights).sum(), weights.sum())}
        return Loss({"labels": Term(jnp.sum(each * weights), weights.sum())}, metrics)

    @property
    def partition_rules(self):
        of_pool = attentive.PARTITION_RULES if self.attends else ()
        return (*of_pool, *heads.PARTITION_RULES[not self.hidden :], *super().partition_rules)

    def forward_flops(self, batch_spec):
        rows, width = batch_spec["mask"].shape[0], self.model.d_model
        parts = {"model": self.model_flops(rows), "classifier": self._head.flops(rows, width)}
        return parts | ({"pool": self.pool.module(self.model).flops(rows, self.length)} if self.attends else {})
