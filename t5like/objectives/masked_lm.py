"""Masked language modelling: the objective of BERT (Devlin et al. 2019, "BERT", section 3.1, task 1).

A share of the tokens of a window is hidden, drawn anew each time the window is read (RoBERTa's dynamic masking, Liu et
al. 2019, section 4.1); an encoder that sees both sides predicts them:

    loss = -1/|M| sum_{t in M} log p(x[t] | x without M)        M the hidden places

Only hidden places go through the output: its cost is the rate's share of a next-token model's. The rate may be a
schedule (Ankner et al. 2024, "Dynamic Masking Rate Schedules for MLM Pretraining": linear from 0.3 to 0.15); rows then
have room for its highest rate, and `padding` tells what is empty.

With `pairs` a row holds two texts and a second loss is added: -log p(pair | the first token's hidden state), whether
the second follows the first (BERT's task 2) or which is the first (ALBERT). See t5like/sentence_pairs.py.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from paradigm.capabilities import FillingMasks
from paradigm.errors import UserError
from paradigm.objective import MAIN
from t5like import heads
from t5like.decode.likelihood import Row, hidden_rows, mask_of
from t5like.masking import Masking
from t5like.models import PARTITION_RULES, Encoder
from t5like.objectives.base import HiddenTokens, TextObjective, scheduled_padding
from t5like.scoring import score_pairs, score_text
from t5like.sentence_pairs import PairMasking


@dataclasses.dataclass(frozen=True)
class MaskedLM(HiddenTokens, FillingMasks, TextObjective):
    """Hidden tokens from those on both sides.

    model: an Encoder. length: tokens it reads, the vocabulary's cls and sep among them. rate, unit, masked, random: see
    t5like/masking.py. z_loss: coefficient of log(Z)^2. pairs: next, order, or None for one text a row.

    Raises UserError for pairs of a model without token types, when the model has learned positions for fewer tokens,
    and for what Masking and PairMasking refuse.
    """

    model: Any
    length: int = 512
    rate: Any = 0.15
    unit: str = "token"
    masked: float = 0.8
    random: float = 0.1
    z_loss: float = 0.0
    pairs: str | None = None

    architectures = (Encoder,)

    @property
    def text_needs(self):
        return "a document of 4 tokens or more, to be cut into a pair" if self.pairs else ""

    def is_short(self, batch):
        return batch["pair_weight"] == 0

    def __post_init__(self):
        self.check_kind("masked_lm")
        _ = self._prepared  # raises now rather than in a data worker
        if self.pairs is not None and self.model.token_types < 2:
            raise UserError(
                f"masked_lm: pairs={self.pairs!r} tells two texts apart by types: set the model's token_types=2"
            )
        self.check_positions("masked_lm")

    @functools.cached_property
    def _masking(self):
        return Masking(self.vocabulary, self.length, self.rate, self.unit, self.masked, self.random)

    @functools.cached_property
    def _prepared(self):
        return self._masking if self.pairs is None else PairMasking(self._masking, self.pairs)

    @property
    def preprocess(self):
        return self.known and self._prepared

    @property
    def raw_length(self):
        """Tokens a data window must hold."""
        return self._prepared.raw_length

    def batch_spec(self, batch_size, phase=MAIN):
        spec, row = super().batch_spec(batch_size), lambda dtype: jax.ShapeDtypeStruct((batch_size,), dtype)
        pairs = {"types": spec["encoder_inputs"], "pair": row(jnp.int32), "pair_weight": row(jnp.float32)}
        return spec | (pairs if self.pairs else {})

    def modules(self):
        head = {"pairs": (heads.PairHead(**self.model.shared()), jnp.zeros((1, self.model.d_model)))}
        return {"model": (self.model, jnp.ones((1, 8), jnp.int32)), **(head if self.pairs else {})}

    def loss(self, params, extra, batch, ctx):
        targets, weights, is_text = self.scored(batch)
        keys = ctx.keys("dropout", batch["index"]) if ctx.train else None
        variables, how = self.variables(params, extra), {"ctx": ctx, "method": "hidden"}
        read = batch["encoder_inputs"], keys, batch["encoder_segments"], batch["positions"]
        types = {"types": batch["types"]} if self.pairs else {}
        hidden, more, _ = self.apply("model", variables, *read, **types, **how)
        kernel = self.output_kernel(params)
        text_bytes = batch["text_bytes"] * batch["mask"]
        loss = score_text(hidden, kernel, targets, weights, is_text, text_bytes, self.z_loss)
        loss = loss.replace(metrics={**loss.metrics, **scheduled_padding(batch, [self.rate], "")})
        if not self.pairs:
            return loss
        logits, _, _ = self.apply("pairs", variables, more["encoded"][:, 0], ctx=ctx)
        return loss.join(score_pairs(logits, batch["pair"], batch["pair_weight"] * batch["mask"]))

    def sentence(self, ids):
        v = self.known
        front, back = ([i for i in (x,) if i is not None] for x in (v.cls, v.sep))
        rows = hidden_rows(ids, mask_of(v))
        return [Row([*front, *text, *back], [len(front) + t], [ids[t]]) for text, t in rows]

    @property
    def partition_rules(self):
        return (*heads.PARTITION_RULES, *PARTITION_RULES) if self.pairs else PARTITION_RULES

    def forward_flops(self, batch_spec):
        return {"model": self.model.flops(*batch_spec["encoder_inputs"].shape, batch_spec["targets"].shape[1])}
