"""Token tagging, such as named entities: a class for every word (Devlin et al. 2019, section 5.3).

    loss = -1/W sum_w log softmax(f(h[first(w)]))[y_w]        over the W words whose first piece is read

h is what the model says of each piece, from both sides in an Encoder and in an EncoderDecoder's encoder; a word speaks
through its first piece, its others weigh nothing. In a Decoder, which sees what came before alone, it speaks at the
last place before the next word's first piece.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from paradigm.capabilities import Tagging
from paradigm.classes import OnClasses
from paradigm.objective import MAIN, Loss, Term, rows_spec
from t5like.tasks import heads
from t5like.tasks.base import Reading, TextTask, reading_spec


@dataclasses.dataclass(frozen=True)
class ReadTagged:
    """A record as a Reading, and `tags` int32 [L]: where a word speaks, elsewhere -1. last: as in a Decoder."""

    reading: Reading
    last: bool

    def __call__(self, example, rng, step, train):
        del rng, step, train
        arrays, [(begin, kept)] = self.reading(example["inputs"])
        starts, label = example["words"], example["label"]
        own = starts >= 0  # words that left a piece
        ends = starts.copy()
        ends[own] = np.append(starts[own], len(example["inputs"]))[1:] - 1
        tags = np.full(self.reading.length, -1, np.int32)
        if len(label):
            places = ends if self.last else starts
            whole = own & (places < kept)
            tags[begin + places[whole]] = label[whole]
        return {**arrays, "tags": tags}


@dataclasses.dataclass(frozen=True)
class TokenTagging(Tagging, OnClasses, TextTask):
    """Tags of words.

    model: an Encoder, a Decoder or an EncoderDecoder, whose encoder is read. classes: how many tags there are; None: as
    many as the data have. length: tokens that are read. hidden, dropout: of the head (heads.py).

    Words past the length, and those without a piece, weigh nothing and are not scored.
    """

    model: Any
    classes: int | None = None
    length: int = 128
    hidden: bool = False
    dropout: float = 0.1

    new_modules = ("tagger",)
    label_kind = "tags"

    def __post_init__(self):
        super().__post_init__()
        if not self.lacks_classes:
            _ = self.known_classes  # which may be refused

    @functools.cached_property
    def preprocess(self):
        return ReadTagged(self.reading, self.reading.causal)

    def batch_spec(self, batch_size, phase=MAIN):
        tags = {"tags": jax.ShapeDtypeStruct((batch_size, self.length), jnp.int32)}
        return {**reading_spec(batch_size, self.length), **tags, **rows_spec(batch_size)}

    @property
    def _head(self):
        return heads.Head(self.known_classes, self.hidden, self.dropout)

    def modules(self):
        head = self._head, jnp.zeros((1, 1, self.model.d_model))
        return {"model": (self.model, self.model_inputs()), "tagger": head}

    def scores(self, variables, batch, ctx):
        """float32 [B, L, C]: logits at every piece."""
        keys = ctx.keys("head", batch["index"]) if ctx.train else None
        return self.apply("tagger", variables, self.states(variables, batch, ctx), ctx=ctx, keys=keys)[0]

    def loss(self, params, extra, batch, ctx):
        scores, tags, mask = self.scores(self.variables(params, extra), batch, ctx), batch["tags"], batch["mask"]
        weights = mask[:, None] * (tags >= 0)
        at = jnp.where(tags >= 0, tags, 0)
        nll = -jnp.take_along_axis(jax.nn.log_softmax(scores), at[..., None], 2)[..., 0]
        right = jnp.argmax(scores, 2) == at
        metrics = {
            "accuracy": ((right * weights).sum(), weights.sum()),
            "texts_cut": ((batch["cut"] * mask).sum(), mask.sum()),
        }
        return Loss({"tags": Term(jnp.sum(nll * weights), weights.sum())}, metrics)

    @property
    def partition_rules(self):
        return (*heads.PARTITION_RULES[not self.hidden :], *super().partition_rules)

    def forward_flops(self, batch_spec):
        rows = batch_spec["mask"].shape[0]
        return {"model": self.model_flops(rows), "tagger": self._head.flops(rows * self.length, self.model.d_model)}
