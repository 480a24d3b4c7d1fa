"""SimCSE without labels (Gao et al. 2021, "SimCSE", section 3), and DeCLUTR's spans (Giorgi et al. 2021, section 3.1).

A text is read twice; dropout alone, or where the spans begin and end, tells the readings apart. Each picks its partner:

    loss = -1/B sum_i log exp(cos(h_i, h_i+) / 0.05) / sum_j exp(cos(h_i, h_j+) / 0.05)            (equation 4)

h is the first token's hidden state under a dense layer with tanh that is left off afterwards, or the mean over tokens.
With spans, h and h+ are of an anchor and of a positive from the same document (DeCLUTR, equations 1 to 5: lengths are
Beta(4, 2) and Beta(2, 4) between the shortest and the longest, and the positive meets or touches the anchor). A text
gives one such pair; DeCLUTR takes two anchors of it, averages two positives of each, and adds the loss of masked
tokens, which is MaskedLM beside this in a Sum.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from paradigm.contrastive import info_nce
from paradigm.errors import UserError, choose
from paradigm.objective import MAIN, Loss, Term, rows_spec
from t5like import heads
from t5like.corrupt import window
from t5like.models import PARTITION_RULES, Encoder
from t5like.objectives.base import OnText
from t5like.vocabulary import Vocabulary

POOLS = ("cls", "mean")


@dataclasses.dataclass(frozen=True)
class TwoReadings:
    """inputs, segments int32 [2, L]: a text twice, or an anchor and a positive of it. cls and sep frame each.

    raw: tokens of the window. shortest: of a span, or None for the whole text. A text is the window's first document.
    """

    vocabulary: Vocabulary
    length: int
    raw: int
    shortest: int | None = None

    def __call__(self, example, rng, step, train):
        read = window(example, self.raw, rng, train)
        segments = example["segments"][read]
        text = example["tokens"][read][segments == segments[0]].astype(np.int32)
        room = self.length - sum(i is not None for i in (self.vocabulary.cls, self.vocabulary.sep))
        parts = [text[:room]] * 2 if self.shortest is None else self._spans(rng, text, room)
        frame = lambda part: [*(i for i in [self.vocabulary.cls] if i is not None), *part,
                              *(i for i in [self.vocabulary.sep] if i is not None)]  # fmt: skip
        rows = [np.array(frame(part), np.int32) for part in parts]
        pad = lambda row, value: np.pad(row, (0, self.length - len(row)), constant_values=value)
        inputs = np.stack([pad(row, self.vocabulary.filler) for row in rows])
        return {"inputs": inputs, "segments": np.stack([pad(np.ones(len(r), np.int32), 0) for r in rows])}

    def _spans(self, rng, text, longest):
        """[anchor, positive], of a text of at least two tokens."""
        longest = min(longest, len(text))
        shortest = min(self.shortest, longest)
        size = lambda a, b: int(rng.beta(a, b) * (longest - shortest)) + shortest
        anchor, positive = size(4, 2), size(2, 4)
        start = int(rng.integers(len(text) - anchor + 1))
        low = max(0, start - positive)
        high = min(start + anchor, len(text) - positive)
        begin = int(rng.integers(low, max(high, low) + 1))
        return [text[start : start + anchor], text[begin : begin + positive]]


@dataclasses.dataclass(frozen=True)
class SimCSE(OnText):
    """Readings of one text attract, those of others repel. Without spans evaluation has dropout too, drawn by index:
    two equal readings would be no task.

    model: an Encoder without head and with dropout, unless there are spans. length: tokens a reading has room for. raw:
    tokens of a window that spans are drawn from; None: as many as one reading has. temperature: of the cosines. pool:
    cls, the first token's hidden state under a head, or mean. shortest: tokens of a span (32 in DeCLUTR), or None for
    the whole text twice.

    Raises UserError for a model with a head or of another kind, one in which two readings would be the same, texts
    that are too short, and an unknown pool.
    """

    model: Any
    length: int = 32
    raw: int | None = None
    temperature: float = 0.05
    pool: str = "cls"
    shortest: int | None = None

    full_batch = True
    architectures = (Encoder,)

    @property
    def text_needs(self):
        return f"a document of {self._least} tokens or more at its beginning"

    @property
    def _least(self):
        return self.shortest or 4

    def is_short(self, batch):
        ends = sum(i is not None for i in (self.known.cls, self.known.sep))
        return (batch["segments"][:, 0] > 0).sum(-1) - ends < self._least

    def __post_init__(self):
        self.check_kind("simcse")
        choose("SimCSE.pool", self.pool, dict.fromkeys(POOLS))
        if self.model.head:
            raise UserError("simcse: the model has no output over the vocabulary: set its head=False")
        if self.temperature <= 0:
            raise UserError(f"simcse: temperature={self.temperature:g} must be positive")
        if self.shortest is None and not self.draws(self.model):
            raise UserError(
                "simcse reads a text twice under dropout, and the model has none: set its dropout, to 0.1 say"
            )
        if self.length < 4 or (self.shortest is not None and not 2 <= self.shortest <= self.length - 2):
            raise UserError(
                f"simcse: texts too short: length={self.length} tokens and spans of {self.shortest or self.length} or "
                "more; use a length of at least 4, and shortest from 2 to two below the length"
            )
        self.check_positions("simcse")

    @property
    def preprocess(self):
        return TwoReadings(self.known, self.length, self.raw_length, self.shortest)

    @property
    def raw_length(self):
        """Tokens a data window must hold."""
        return self.length if self.raw is None else self.raw

    def batch_spec(self, batch_size, phase=MAIN):
        rows = jax.ShapeDtypeStruct((batch_size, 2, self.length), jnp.int32)
        return {"inputs": rows, "segments": rows, **rows_spec(batch_size)}

    def modules(self):
        found = {"model": (self.model, jnp.ones((1, 8), jnp.int32))}
        if self.pool == "cls":
            found["pooler"] = heads.Pooler(**self.model.shared()), jnp.zeros((1, self.model.d_model))
        return found

    def encode(self, params, extra, batch, ctx):
        variables, both = self.variables(params, extra), []
        for n in range(2):  # each reading has dropout of its own
            keys = ctx.keys(f"reading{n}/dropout", batch["index"]) if ctx.train or self.shortest is None else None
            read = batch["inputs"][:, n], keys, batch["segments"][:, n]
            hidden, _, _ = self.apply("model", variables, *read, ctx=ctx, method="hidden")
            both.append(heads.pooled(hidden, batch["segments"][:, n], self.pool).astype(jnp.float32))
        return jnp.stack(both, 1), Loss()

    def full_batch_loss(self, params, extra, embeddings, batch, ctx):
        if self.pool == "cls":
            embeddings, _, _ = self.apply("pooler", self.variables(params, extra), embeddings, ctx=ctx)
        unit = embeddings / jnp.maximum(jnp.linalg.norm(embeddings, axis=-1, keepdims=True), 1e-8)
        mask = batch["mask"]
        nll, correct = info_nce(unit[:, 0], unit[:, 1], 1.0 / self.temperature, mask)
        metrics = {"contrast_accuracy": ((correct * mask).sum(), mask.sum())}
        return Loss({"contrast": Term((nll * mask).sum(), mask.sum())}, metrics)

    @property
    def partition_rules(self):
        return (*heads.PARTITION_RULES, *PARTITION_RULES)

    def throughput(self, batch_spec):
        return "tokens", batch_spec["inputs"].size

    def forward_flops(self, batch_spec):
        batch, _, length = batch_spec["inputs"].shape
        return {"model": self.model.flops(2 * batch, length, 0)}
