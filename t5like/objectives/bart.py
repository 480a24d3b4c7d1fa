"""BART: Lewis et al. 2020 ("BART: Denoising Sequence-to-Sequence Pre-training", section 2.2).

The encoder reads a window with noise, the decoder writes it whole:

    original   A B C . D E .
    inputs     D _ . A _ C . </s>       sentences permuted, each span of Poisson(3) tokens, none too, one mask
    targets    A B C . D E . </s>

    loss = 1/T sum_t [ -log p(targets[t] | inputs, targets[<t]) + z_loss log(Z_t)^2 ]      over all T targets

BART's own noise is infilling of 30 % of the tokens and permutation of all sentences (section 5.1); token
masking, deletion and rotation are there by their rates. Most targets can be copied: `hidden/nll` is of those that the
encoder was not given. Inputs are as long as the targets at most; what infilling shortens them by is padding of no
weight, and `encoder_padding` tells its share.
"""

import dataclasses
import functools
from typing import Any

from paradigm.capabilities import Continuing, SentenceScoring
from paradigm.objective import MAIN
from t5like.decode.blanks import ByMask
from t5like.decode.likelihood import Row, hidden_rows, mask_of
from t5like.denoise import Denoising
from t5like.models import EncoderDecoder
from t5like.objectives.base import SequenceToSequence, TextObjective, padding_share


@dataclasses.dataclass(frozen=True)
class Bart(SequenceToSequence, SentenceScoring, Continuing, ByMask, TextObjective):
    """Restoring a window of text from a noisy one.

    model: an EncoderDecoder. length: tokens of targets and, at most, of inputs, ends included. infill, mean_span,
    permute, delete, mask, rotate: see t5like/denoise.py. z_loss: coefficient of log(Z)^2.

    Raises UserError for what Denoising refuses, and when the model has learned positions for fewer tokens.
    """

    model: Any
    length: int = 512
    infill: float = 0.3
    mean_span: float = 3.0
    permute: float = 1.0
    delete: float = 0.0
    mask: float = 0.0
    rotate: float = 0.0
    z_loss: float = 0.0

    architectures = (EncoderDecoder,)

    def __post_init__(self):
        _ = self._noise  # raises now rather than in a data worker
        self.check_kind("bart")
        self.check_positions("bart")

    @functools.cached_property
    def _noise(self):
        rates = {f.name: getattr(self, f.name) for f in dataclasses.fields(Denoising)}
        return Denoising(**rates)

    def batch_spec(self, batch_size, phase=MAIN):
        spec = super().batch_spec(batch_size, phase)
        return {**spec, "hidden": spec["weights"]}

    def groups(self, batch):
        return {"hidden": batch["hidden"]}

    def sentence(self, ids):
        v, (front, before) = self.known, self._opening
        ask = lambda text, t: Row([*before, *ids[:t]], [len(before) + t - 1], [ids[t]], [*front, *text, v.end])
        return [ask(text, t) for text, t in hidden_rows(ids, mask_of(v))]

    def continued(self, prompt, ids):
        v, (front, before) = self.known, self._opening
        written = [*before, *prompt]
        places = range(len(written) - 1, len(written) - 1 + len(ids))
        return Row([*written, *ids[:-1]], places, ids, [*front, *prompt, mask_of(v), v.end])

    @property
    def decoder_start(self):
        return self._opening[1][0]

    @property
    def _opening(self):
        """(ids before a text in the encoder, and in the decoder, as t5like/denoise.py starts it)."""
        v = self.known
        front = [] if v.bos is None else [v.bos]
        return front, [v.end if front else v.start, *front]

    def loss(self, params, extra, batch, ctx):
        loss = super().loss(params, extra, batch, ctx)
        return loss.replace(metrics={**loss.metrics, **padding_share(batch)})
