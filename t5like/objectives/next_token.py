"""Next-token prediction: the language model of Radford et al. 2018 ("Improving Language Understanding", section 3.1).

    loss = -1/T sum_t log p(x[t] | x[<t]) + z_loss log(Z_t)^2        over the T tokens of the windows

Windows of L tokens may hold several documents, told apart by `segments`. Each is read by itself: its first token is
predicted from the vocabulary's start id, its positions count from 0 and attention never leaves it.

With goldfish=k this is the goldfish loss (Hans et al. 2024, "Be like a Goldfish, Don't Memorize!", section 3): in
training a target is left out of the sum when a hash of the h tokens before it falls below 1/k, so that a passage loses
the same tokens each time it is read and cannot be learnt by heart. k = 4 and h = 13 in the paper.
"""

import dataclasses
import functools
from typing import Any

from paradigm.errors import UserError
from t5like.corrupt import NextTokenWindows
from t5like.models import Decoder
from t5like.objectives.base import LeftToRight, TextObjective


@dataclasses.dataclass(frozen=True)
class NextToken(LeftToRight, TextObjective):
    """Left-to-right prediction of every token.

    model: a Decoder. length: tokens a window. z_loss: coefficient of log(Z)^2, 1e-4 in PaLM and none in GPT. prefix:
    False; the prefix language model is an objective of its own, PrefixLM. goldfish: k, or None for all targets;
    goldfish_context: h.

    Raises UserError when the model has learned positions for fewer tokens.
    """

    model: Any
    length: int = 1024
    prefix: bool = False
    z_loss: float = 0.0
    goldfish: int | None = None
    goldfish_context: int = 13

    architectures = (Decoder,)

    def __post_init__(self):
        self.check_kind("next_token")
        if self.prefix:
            raise UserError(
                "NextToken.prefix = True is an objective of its own now: Experiment.objective = @PrefixLM()"
            )
        _ = self._windows(self.vocabulary)  # raises now rather than in a data worker
        self.check_positions("next_token")

    @functools.cached_property
    def preprocess(self):
        return self._windows(self.known)

    def _windows(self, vocabulary):
        how = {"goldfish": self.goldfish, "goldfish_context": self.goldfish_context}
        return NextTokenWindows(vocabulary, self.length, **how)
