"""Next-token prediction: the language model of Radford et al. 2018 ("Improving Language Understanding", section 3.1).

    loss = -1/T sum_t log p(x[t] | x[<t]) + z_loss log(Z_t)^2        over the T tokens of the windows

Windows of L tokens may hold several documents, told apart by `segments`. Each is read by itself: its first token is
predicted from the vocabulary's start id, its positions count from 0 and attention never leaves it.
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
    False; the prefix language model is an objective of its own, PrefixLM.

    Raises UserError when the model has learned positions for fewer tokens.
    """

    model: Any
    length: int = 1024
    prefix: bool = False
    z_loss: float = 0.0

    architectures = (Decoder,)

    def __post_init__(self):
        self.check_kind("next_token")
        if self.prefix:
            raise UserError(
                "NextToken.prefix = True is an objective of its own now: Experiment.objective = @PrefixLM()"
            )
        _ = NextTokenWindows(self.vocabulary, self.length)  # raises now rather than in a data worker
        self.check_positions("next_token")

    @functools.cached_property
    def preprocess(self):
        return NextTokenWindows(self.known, self.length)
