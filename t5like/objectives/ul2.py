"""UL2: Tay et al. 2022 ("UL2: Unifying Language Learning Paradigms", section 3.1), a mixture of denoisers.

Each example is corrupted in one of several ways, and a token of its mode says which kind it is:

    R  [NLU] Thank you <X> me to <Y> </s>          spans of 3 or 8 tokens, 15 % hidden: T5's span corruption
    X  [NLG] Thank <X> your <Y> week </s>          long spans or half of the tokens hidden
    S  [S2S] Thank you for inviting me to </s>     the last quarter is to be continued

    loss = 1/T sum_t [ -log p(targets[t] | inputs, targets[<t]) + z_loss log(Z_t)^2 ]     over the targets of all

The mixture is one of data: one loss over batches of all kinds, whose nll is also told for each denoiser. An
EncoderDecoder reads inputs and writes targets; a Decoder has both in one row and sees the inputs both ways (a prefix
language model). Rows have the room that the most demanding denoiser needs; `encoder_padding` and `padding` tell what
the others leave empty. The released checkpoints spell modes as text, in several pieces; here each is an id of its own.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from paradigm.errors import UserError
from paradigm.objective import MAIN, rows_spec
from t5like.decode.likelihood import Row
from t5like.denoisers import PUBLISHED, Mixture
from t5like.models import PARTITION_RULES, Decoder, EncoderDecoder
from t5like.objectives.base import (
    Blanks,
    LeftToRight,
    SequenceToSequence,
    TextObjective,
    encoder_spec,
    padding_share,
    text_spec,
)


@dataclasses.dataclass(frozen=True)
class UL2(Blanks, TextObjective):
    """Denoising by a mixture.

    model: an EncoderDecoder or a Decoder. length: tokens of text read. denoisers: tuples (name, mode, mean span or None
    for the end, rate, share), see t5like/denoisers.py. z_loss: coefficient of log(Z)^2.

    Raises UserError for what Mixture refuses, and when the model has learned positions for fewer tokens.
    """

    model: Any
    length: int = 512
    denoisers: tuple = PUBLISHED
    z_loss: float = 1e-4

    prefix = True

    architectures = (EncoderDecoder, Decoder)

    def __post_init__(self):
        self.check_kind("ul2")
        self.check_positions("ul2", max(self._noise.target_length, 0 if self._noise.joined else self._noise.length))

    @functools.cached_property
    def _noise(self):
        return Mixture(self.vocabulary, self.length, self.denoisers, isinstance(self.model, Decoder))

    @property
    def _way(self):
        """How the model reads a batch."""
        return LeftToRight if self._noise.joined else SequenceToSequence

    @property
    def preprocess(self):
        return self.known and self._noise

    @property
    def raw_length(self):
        """Tokens a data window must hold."""
        return self.length

    def batch_spec(self, batch_size, phase=MAIN):
        one = jax.ShapeDtypeStruct((batch_size,), jnp.int32)
        joined = {"prefix": one, **text_spec(batch_size, self._noise.target_length), **rows_spec(batch_size)}
        return {"denoiser": one, **(joined if self._noise.joined else encoder_spec(batch_size, self._noise))}

    def modules(self):
        return self._way.modules(self)

    def hidden(self, params, extra, batch, ctx):
        return self._way.hidden(self, params, extra, batch, ctx)

    def groups(self, batch):
        of = lambda i: (batch["denoiser"] == i).astype(jnp.float32)[:, None]
        return {denoiser.name: of(i) for i, denoiser in enumerate(self._noise.denoisers)}

    @property
    def front(self):
        """The mode of the denoiser whose spans are the shortest."""
        spans = [d for d in self._noise.denoisers if d.mean_span is not None]
        if not spans:
            raise UserError(
                "ul2 scores a sentence by hiding its tokens, and none of its denoisers hides spans: add one"
            )
        mode = min(spans, key=lambda d: d.mean_span).mode
        return () if mode is None else (getattr(self.known, mode),)

    def with_blanks(self, ids, vocabulary):
        asked = super().with_blanks(ids, vocabulary)
        if not self._noise.joined:
            return asked
        return {"prompts": [asked["inputs"][0][:-1]], "prefix": True}  # what is read both ways, in the same row

    def sentence(self, ids):
        return [self._read(row) for row in super().sentence(ids)]

    def continued(self, prompt, ids):
        return self._read(super().continued(prompt, ids))

    def _read(self, row):
        """A Row of an EncoderDecoder as the model takes it: by a Decoder what is read and what is written, in one."""
        if not self._noise.joined:
            return row
        given = row.inputs[:-1]
        places = [len(given) + place for place in row.places]
        return Row([row.read[0], *given, *row.read[1:]], places, row.targets, visible=1 + len(given))

    def loss(self, params, extra, batch, ctx):
        loss = self._way.loss(self, params, extra, batch, ctx)
        empty = padding_share(batch, "") | ({} if self._noise.joined else padding_share(batch))
        return loss.replace(metrics={**loss.metrics, **empty})

    @property
    def partition_rules(self):
        return PARTITION_RULES

    def throughput(self, batch_spec):
        return self._way.throughput(self, batch_spec)

    def forward_flops(self, batch_spec):
        return self._way.forward_flops(self, batch_spec)
