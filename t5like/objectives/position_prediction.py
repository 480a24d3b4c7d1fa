"""Position prediction: tokens of a text change places, and an encoder says where each belongs (Cui et al. 2022, "PERT:
Pre-training BERT with Permuted Language Model", section 3).

Of the tokens of a window 15 % are chosen; nine in ten of these are shuffled among themselves and one stays:

    text      we are told where the tokens belong         chosen places   1 3 5
    read      we where told tokens the are belong         targets         5 1 3

At each chosen place t the encoder points at the place y of the token that belongs there:

    h' = norm(activation(dense(h[t])))        p(. | t) = softmax_s(h' h[s] / sqrt(D))        loss = E_t[ -log p(y | t) ]

over the places s of the same document. No mask is read, and nothing is scored over the vocabulary. The division, as in
attention, keeps the first logits small, which the paper does not speak of; its bias of each place is left out.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from paradigm.attention import MASKED
from paradigm.errors import UserError
from paradigm.objective import MAIN, Loss, Term, rows_spec
from t5like import heads
from t5like.masking import Masking
from t5like.models import PARTITION_RULES, Encoder
from t5like.objectives.base import HiddenTokens, OnText


@dataclasses.dataclass(frozen=True)
class Shuffling:
    """What a data worker makes of a window: of the tokens that `masking` chooses the share `shuffled` change places,
    within their document.

    Gives encoder_inputs, encoder_segments int32 [L]; positions (the chosen places), targets (where the token that
    belongs there now stands) int32 [P] and weights float32 [P].
    """

    masking: Masking
    shuffled: float

    def __call__(self, example, rng, step, train):
        row = self.masking(example, rng, step, train)
        read, segments, count = row["encoder_inputs"], row["encoder_segments"], int(row["weights"].sum())
        places = row["positions"][:count]
        moving = places[rng.random(count) < self.shuffled]
        stands = np.arange(len(read), dtype=np.int32)  # where the token of each place is
        for document in np.unique(segments[moving]):
            own = moving[segments[moving] == document]
            stands[own] = rng.permutation(own)
        moved = read.copy()
        moved[stands] = read
        targets = np.zeros_like(row["targets"])
        targets[:count] = stands[places]
        names = ("encoder_segments", "positions", "weights")
        return {"encoder_inputs": moved, "targets": targets, **{name: row[name] for name in names}}


@dataclasses.dataclass(frozen=True)
class PositionPrediction(HiddenTokens, OnText):
    """Finds where tokens that have changed places belong.

    model: an Encoder without head. length: tokens it reads. rate, unit: of the tokens that are chosen, see
    t5like/masking.py; PERT takes whole words in n-grams, ngram4. shuffled: the share of them that changes places.

    Raises UserError for a model with a head or of another kind, a share outside (0, 1], and what Masking refuses.
    """

    model: Any
    length: int = 512
    rate: Any = 0.15
    unit: str = "token"
    shuffled: float = 0.9

    architectures = (Encoder,)

    def __post_init__(self):
        self.check_kind("position_prediction")
        if self.model.head:
            raise UserError("position_prediction: the model has no output over the vocabulary: set its head=False")
        if not 0 < self.shuffled <= 1:
            raise UserError(f"position_prediction: shuffled={self.shuffled:g} is a share above 0, up to 1")
        _ = self._masking  # raises now rather than in a data worker
        self.check_positions("position_prediction")

    @functools.cached_property
    def _masking(self):  # which hides nothing: it chooses
        return Masking(self.vocabulary, self.length, self.rate, self.unit, 0.0, 0.0, "position_prediction")

    @property
    def preprocess(self):
        return self.known and Shuffling(self._masking, self.shuffled)

    def batch_spec(self, batch_size, phase=MAIN):
        row = lambda length, dtype=jnp.int32: jax.ShapeDtypeStruct((batch_size, length), dtype)
        chosen = self._masking.target_length
        read = {"encoder_inputs": row(self.length), "encoder_segments": row(self.length)}
        places = {"positions": row(chosen), "targets": row(chosen), "weights": row(chosen, jnp.float32)}
        return {**read, **places, **rows_spec(batch_size)}

    @property
    def pointer(self):
        """What makes of a hidden state the query for its place: [B, P, D] -> [B, P, D]."""
        return heads.Pointer(**self.model.shared(activation=self.model.head_activation or self.model.activation))

    def modules(self):
        head = self.pointer, jnp.zeros((1, self.model.d_model))
        return {"model": (self.model, jnp.ones((1, 8), jnp.int32)), "pointer": head}

    def loss(self, params, extra, batch, ctx):
        keys = ctx.keys("dropout", batch["index"]) if ctx.train else None
        variables, segments, places = self.variables(params, extra), batch["encoder_segments"], batch["positions"]
        read = batch["encoder_inputs"], keys, segments
        hidden, _, _ = self.apply("model", variables, *read, ctx=ctx, method="hidden")
        chosen = jnp.take_along_axis(hidden, places[..., None], axis=1)
        query, _, _ = self.apply("pointer", variables, chosen, ctx=ctx)
        logits = jnp.einsum("bpd,bsd->bps", query, hidden, preferred_element_type=jnp.float32)
        same = jnp.take_along_axis(segments, places, axis=1)[..., None] == segments[:, None]
        logits = jnp.where(same, logits * self.model.d_model**-0.5, MASKED)
        logs = jax.nn.log_softmax(logits)
        nll = -jnp.take_along_axis(logs, batch["targets"][..., None], axis=-1)[..., 0]
        weights = batch["weights"] * batch["mask"][:, None]
        right, count = jnp.argmax(logits, -1) == batch["targets"], weights.sum()
        uniform = jnp.log(same.sum(-1).astype(jnp.float32))
        metrics = {
            "position_accuracy": ((right * weights).sum(), count),
            "position_stays": (((places == batch["targets"]) * weights).sum(), count),
            "position_chance": ((uniform * weights).sum(), count),
        }
        return Loss({"position": Term((nll * weights).sum(), count)}, metrics)

    @property
    def partition_rules(self):
        return (*heads.PARTITION_RULES, *PARTITION_RULES)

    def forward_flops(self, batch_spec):
        (batch, length), (_, chosen) = batch_spec["encoder_inputs"].shape, batch_spec["targets"].shape
        width = self.model.d_model
        return {"model": self.model.flops(batch, length, 0), "pointer": 2 * batch * chosen * width * (width + length)}
