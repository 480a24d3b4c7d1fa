"""PEGASUS: Zhang et al. 2020 ("PEGASUS: Pre-training with Extracted Gap-sentences", section 3.1).

Sentences that say most of the text are taken out of it, and written one after the other as if they were its summary:

    inputs     A B . [MASK1] F . </s>        30 % of the sentences, by ROUGE-1 F1 with the rest of the text
    targets    C D E . </s>

    loss = 1/T sum_t [ -log p(targets[t] | inputs, targets[<t]) + z_loss log(Z_t)^2 ]     over all T targets

[MASK1] is the vocabulary's mask; the paper's other mask, of single tokens, did not help its large model (section 6.1.3)
and is left out. Sentences are found by the rule of t5like/sentences.py. A text of one sentence has nothing to take out:
`too_short` tells the share of such examples. Inputs and targets vary in length; `encoder_padding` tells what is empty.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from paradigm.capabilities import Continuing, SentenceScoring
from paradigm.objective import MAIN
from t5like.decode.blanks import ByGap
from t5like.decode.likelihood import causal_row
from t5like.gap_sentences import GapSentences
from t5like.models import EncoderDecoder
from t5like.objectives.base import SequenceToSequence, TextObjective, padding_share


@dataclasses.dataclass(frozen=True)
class Pegasus(SequenceToSequence, SentenceScoring, Continuing, ByGap, TextObjective):
    """Writing the sentences that were taken out of a text.

    model: an EncoderDecoder. length, target_length, ratio, choice: see t5like/gap_sentences.py; 512 and 256 in the
    paper. z_loss: coefficient of log(Z)^2.

    Raises UserError for what GapSentences refuses, and when the model has learned positions for fewer tokens.
    """

    model: Any
    length: int = 512
    target_length: int = 256
    ratio: float = 0.3
    choice: str = "principal"
    z_loss: float = 0.0

    architectures = (EncoderDecoder,)
    text_needs = "two sentences, which end in . ! ? or a line break"

    def is_short(self, batch):
        return batch["too_short"] > 0

    def __post_init__(self):
        _ = self._noise  # raises now rather than in a data worker
        self.check_kind("pegasus")
        self.check_positions("pegasus", max(self.length, self.target_length))

    @functools.cached_property
    def _noise(self):
        return GapSentences(self.vocabulary, self.length, self.target_length, self.ratio, self.choice)

    def batch_spec(self, batch_size, phase=MAIN):
        short = jax.ShapeDtypeStruct((batch_size,), jnp.float32)
        return {**super().batch_spec(batch_size, phase), "too_short": short}

    def sentence(self, ids):
        return [causal_row(ids, self.known, [self.known.mask, self.known.end])]  # the one that was taken out

    def continued(self, prompt, ids):
        return causal_row(ids, self.known, [*prompt, self.known.mask, self.known.end])

    def loss(self, params, extra, batch, ctx):
        loss = super().loss(params, extra, batch, ctx)
        short = {"too_short": ((batch["too_short"] * batch["mask"]).sum(), batch["mask"].sum())}
        return loss.replace(metrics={**loss.metrics, **short, **padding_share(batch)})
