"""Prefix language modelling: Raffel et al. 2020 ("Exploring the Limits of Transfer Learning", section 3.2.3).

The first p tokens of a window, p uniform over 1 .. n - 1 for its n tokens, are read and not predicted. The p + 1
positions of the start id and of these tokens see each other, the rest is causal:

    loss = -1/(n - p) sum_{t >= p} log p(x[t] | x[<t]) + z_loss log(Z_t)^2

A Decoder's weights serve this and next-token prediction alike.
"""

import dataclasses
import functools
from typing import Any

from t5like.corrupt import NextTokenWindows
from t5like.models import Decoder
from t5like.objectives.base import LeftToRight, TextObjective


@dataclasses.dataclass(frozen=True)
class PrefixLM(LeftToRight, TextObjective):
    """Prediction of the tokens after a random prefix, which is read from both sides.

    model: a Decoder. length: tokens a window. z_loss: coefficient of log(Z)^2.

    Raises UserError when the model has learned positions for fewer tokens.
    """

    model: Any
    length: int = 1024
    z_loss: float = 0.0

    prefix = True

    architectures = (Decoder,)

    def __post_init__(self):
        _ = NextTokenWindows(self.vocabulary, self.length)  # raises now rather than in a data worker
        self.check_kind("prefix_lm")
        self.check_positions("prefix_lm")

    @functools.cached_property
    def preprocess(self):
        return NextTokenWindows(self.known, self.length, prefix=True)
