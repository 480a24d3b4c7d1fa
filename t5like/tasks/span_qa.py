"""Extractive question answering: an answer is a span of its context (Devlin et al. 2019, section 4.2).

    loss = -1/2 [ log softmax_i(s_i)[start] + log softmax_i(e_i)[end] ],   s = S.h, e = E.h over all places i

averaged over questions. The input is the question, the target the context; an unanswerable question, and one whose
answer was cut off, has its answer at the first place (section 4.3). The best span is the argmax of s_i + e_j over
i <= j < i + most in the context, and no answer where s_0 + e_0 is higher, if questions may have none.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from paradigm.capabilities import Answering
from paradigm.objective import MAIN, Loss, Term, rows_spec
from t5like.models import Encoder, EncoderDecoder
from t5like.tasks import heads
from t5like.tasks.base import Reading, TextTask, reading_spec


@dataclasses.dataclass(frozen=True)
class ReadQuestion:
    """A record as a Reading of question and context, and

    answer  int32 [2]   its first and last place among the inputs; 0, 0 for none, or one that was cut off
    words   int32 [L]   of the context's pieces the number of their word, elsewhere -1
    """

    reading: Reading

    def __call__(self, example, rng, step, train):
        del step
        room = self.reading.length - self.reading.around(2)
        question = example["inputs"][: max(room // 2, room - len(example["targets"]))]  # the context is cut before it
        arrays, [_, (begin, kept)] = self.reading(question, example["targets"])
        arrays["cut"] = np.maximum(arrays["cut"], np.float32(len(question) < len(example["inputs"])))
        starts, label = example["words"], example["label"]
        words = np.full(self.reading.length, -1, np.int32)
        real = starts[starts >= 0]
        inside = np.searchsorted(real, np.arange(kept), side="right") - 1
        words[begin : begin + kept] = np.append(np.flatnonzero(starts >= 0), -1)[inside]  # -1 before the first word
        answer = np.zeros(2, np.int32)
        if len(label):  # in training one of several is drawn
            first, last = label[int(rng.integers(len(label))) if train else 0]
            found = np.flatnonzero((words >= first) & (words <= last))
            following = starts[last + 1 :]
            end = next(iter(following[following >= 0]), len(example["targets"]))  # of the answer's pieces
            if len(found) and kept >= end:
                answer = np.array([found[0], found[-1]], np.int32)
        return {**arrays, "answer": answer, "words": words}


@dataclasses.dataclass(frozen=True)
class SpanQA(Answering, TextTask):
    """Answers in a context.

    model: an Encoder, or an EncoderDecoder, whose encoder is read: the places have to see what comes after. length:
    tokens of question and context; contexts are cut. most: tokens of an answer (30 in BERT's run_squad.py).
    unanswerable: whether a question may have no answer. hidden, dropout: of the head (heads.py).
    """

    model: Any
    length: int = 384
    most: int = 30
    unanswerable: bool = False
    hidden: bool = False
    dropout: float = 0.0

    new_modules = ("answerer",)
    label_kind = "answer"
    architectures = (Encoder, EncoderDecoder)
    side = "both_lengths"

    @functools.cached_property
    def preprocess(self):
        return ReadQuestion(self.reading)

    def batch_spec(self, batch_size, phase=MAIN):
        ints = lambda *shape: jax.ShapeDtypeStruct((batch_size, *shape), jnp.int32)
        more = {"answer": ints(2), "words": ints(self.length)}
        return {**reading_spec(batch_size, self.length), **more, **rows_spec(batch_size)}

    @property
    def _head(self):
        return heads.Head(2, self.hidden, self.dropout, bias=False)  # a softmax over places does not see what all have

    def modules(self):
        head = self._head, jnp.zeros((1, 1, self.model.d_model))
        return {"model": (self.model, self.model_inputs()), "answerer": head}

    def edges(self, variables, batch, ctx):
        """float32 [B, L, 2]: logits of each place as the start and as the end; padding is out of the question."""
        keys = ctx.keys("head", batch["index"]) if ctx.train else None
        logits = self.apply("answerer", variables, self.states(variables, batch, ctx), ctx=ctx, keys=keys)[0]
        return jnp.where(batch["segments"][..., None] > 0, logits, -1e9)

    def scores(self, variables, batch, ctx):
        """(first place, last place) int32 [B] of the best span; 0, 0 for no answer."""
        start, end = jnp.moveaxis(self.edges(variables, batch, ctx), 2, 0)
        inside = jnp.where(batch["words"] >= 0, 0.0, -1e9)
        far = jnp.arange(self.length)[None, :] - jnp.arange(self.length)[:, None]
        allowed = jnp.where((far >= 0) & (far < self.most), 0.0, -1e9)
        table = (start + inside)[:, :, None] + (end + inside)[:, None, :] + allowed  # [B, L, L]
        best = jnp.argmax(table.reshape(len(start), -1), 1)
        first, last = best // self.length, best % self.length
        if self.unanswerable:
            none = start[:, 0] + end[:, 0] > table.reshape(len(start), -1).max(1)
            first, last = jnp.where(none, 0, first), jnp.where(none, 0, last)
        return first.astype(jnp.int32), last.astype(jnp.int32)

    def loss(self, params, extra, batch, ctx):
        logs = jax.nn.log_softmax(self.edges(self.variables(params, extra), batch, ctx), axis=1)  # [B, L, 2]
        nll = -jnp.take_along_axis(logs, batch["answer"][:, None, :], 1)[:, 0].mean(1)
        mask = batch["mask"]
        metrics = {"texts_cut": ((batch["cut"] * mask).sum(), mask.sum())}
        return Loss({"edges": Term(jnp.sum(nll * mask), mask.sum())}, metrics)

    @property
    def partition_rules(self):
        return (*heads.PARTITION_RULES[not self.hidden :], *super().partition_rules)

    def forward_flops(self, batch_spec):
        rows = batch_spec["mask"].shape[0]
        return {"model": self.model_flops(rows), "answerer": self._head.flops(rows * self.length, self.model.d_model)}
