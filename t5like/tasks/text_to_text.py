"""Text to text: translation, summarisation, dialogue, classification by text (Raffel et al. 2020, section 2.4).

    loss = -1/T sum_t log p(y[t] | x, y[<t])        over the tokens of the target and the id that ends it, alone

x is a record's input and y its target, both made by templates. Who reads them:

    EncoderDecoder    the encoder x [end]; the decoder [start] y
    Decoder           [start] x [end] y, causal; with prefix=True the places up to x's [end] see each other
                      (Raffel et al. 2020, section 3.2.1, figure 4)

so that one set of weights from pre-training serves as it is: there is no head. Too long an input loses its end, or with
keep="end" its beginning, as a dialogue should; too long a target its end, and then it has no [end] to be learnt.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from paradigm.capabilities import Continuing, Rewriting
from paradigm.errors import UserError
from paradigm.objective import MAIN, rows_spec
from t5like.decode import Sampling, write_rows
from t5like.decode.likelihood import causal_row, joined_row
from t5like.models import Decoder, EncoderDecoder
from t5like.objectives.base import TextObjective, text_spec
from t5like.scoring import score_text
from t5like.tasks.base import TextTask
from t5like.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class ReadTexts:
    """A record as the batch of a text objective (t5like/corrupt.py). causal: one row for a Decoder, and `prefix` int32
    [], the places of start, x and its end; else `encoder_inputs` and `encoder_segments` beside it. `cut` float32 []."""

    vocabulary: Vocabulary
    length: int
    target_length: int
    keep: str
    causal: bool

    def kept(self, tokens):
        """What is read of an input: int32 [n] and its end."""
        room = self.length - 1 - self.causal
        tokens = np.asarray(tokens, np.int32)
        tokens = tokens[-room:] if self.keep == "end" else tokens[:room]
        return np.append(tokens, np.int32(self.vocabulary.end))

    def __call__(self, example, rng, step, train):
        del rng, step, train
        v, read = self.vocabulary, self.kept(example["inputs"])
        target = np.append(np.asarray(example["targets"], np.int32), np.int32(v.end))[: self.target_length]
        cut = len(example["inputs"]) > len(read) - 1 or len(example["targets"]) >= self.target_length
        before = read if self.causal else read[:0]
        targets = np.concatenate([before, target])
        inputs = np.concatenate([[v.start], targets[:-1]])
        length = self.causal * self.length + self.target_length
        padded = lambda row, size, filler=0: np.concatenate([row, np.full(size - len(row), filler)]).astype(np.int32)
        arrays = {
            "inputs": padded(inputs, length, v.filler),
            "targets": padded(targets, length, v.filler),
            "weights": np.float32(padded(np.arange(len(targets)) >= len(before), length)),
            "segments": padded(np.ones(len(targets)), length),
            "positions": np.arange(length, dtype=np.int32),
            "text_bytes": example["byte_lengths"][target].sum(dtype=np.float32),
            "cut": np.float32(cut),
        }
        if self.causal:
            return {**arrays, "prefix": np.int32(len(read) + 1)}
        ones = padded(np.ones(len(read)), self.length)
        return {**arrays, "encoder_inputs": padded(read, self.length, v.filler), "encoder_segments": ones}


@dataclasses.dataclass(frozen=True)
class TextToText(Rewriting, Continuing, TextTask, TextObjective):
    """Texts from texts.

    model: an EncoderDecoder or a Decoder. length: tokens of an input, its end among them, and a Decoder's start.
    target_length: of a target, its end among them. prefix: whether a Decoder reads the input from both sides. keep:
    begin or end, of too long an input. z_loss: coefficient of log(Z)^2.
    """

    model: Any
    length: int = 256
    target_length: int = 64
    prefix: bool = False
    keep: str = "begin"
    z_loss: float = 0.0

    architectures = (EncoderDecoder, Decoder)
    around = 1

    def __post_init__(self):
        super().__post_init__()
        if self.prefix and not self.causal:
            raise UserError("TextToText.prefix is for a Decoder: an EncoderDecoder's encoder reads from both sides")
        if self.keep not in ("begin", "end"):
            raise UserError(f"TextToText.keep={self.keep!r}: of too long an input 'begin' or 'end' is kept")
        whole = self.causal * self.length + self.target_length
        if self.target_length < 2 or self.model.positions == "learned" and self.model.places < whole:
            raise UserError(
                f"TextToText: length {self.length} and target_length {self.target_length} need {whole} positions, a "
                "target 2 or more of them: shorten them, or set the model's max_length"
            )

    @property
    def cut_off(self):
        return "beginnings are cut off" if self.keep == "end" else super().cut_off

    @property
    def causal(self):
        return isinstance(self.model, Decoder)

    @functools.cached_property
    def preprocess(self):
        return ReadTexts(self.known, self.length, self.target_length, self.keep, self.causal)

    def check_data(self, prepared):
        told = super().check_data(prepared)
        if self.keep == "begin" and prepared.meta["settings"]["turns"]:
            more = "; a dialogue's last turns are kept by TextToText.keep = 'end'"
            told = tuple(line + more * line.endswith(self.cut_off) for line in told)
        if not prepared.meta["settings"]["target"]:
            there = ", ".join(prepared.source()[0]["fields"])
            raise UserError(f"TextToText needs a target: set TextRecords.target, as in '{{summary}}', of {there}")
        return told

    def batch_spec(self, batch_size, phase=MAIN):
        ints = lambda *shape: jax.ShapeDtypeStruct((batch_size, *shape), jnp.int32)
        encoder = {"encoder_inputs": ints(self.length), "encoder_segments": ints(self.length)}
        return {
            **text_spec(batch_size, self.causal * self.length + self.target_length),
            **({"prefix": ints()} if self.causal else encoder),
            "cut": jax.ShapeDtypeStruct((batch_size,), jnp.float32),
            **rows_spec(batch_size),
        }

    def modules(self):
        return {"model": (self.model, self.model_inputs())}

    def loss(self, params, extra, batch, ctx):
        targets, weights, is_text = self.scored(batch)
        keys = ctx.keys("dropout", batch["index"]) if ctx.train else None
        if self.causal:
            visible = batch["prefix"] if self.prefix else None
            read = batch["inputs"], keys, batch["segments"], batch["positions"], visible
        else:
            read = batch["encoder_inputs"], batch["inputs"], keys, batch["encoder_segments"]
        hidden, _, _ = self.apply("model", self.variables(params, extra), *read, ctx=ctx, method="hidden")
        kernel, mask = self.output_kernel(params), batch["mask"]
        loss = score_text(hidden, kernel, targets, weights, is_text, batch["text_bytes"] * mask, self.z_loss)
        return loss.replace(metrics={**loss.metrics, "texts_cut": ((batch["cut"] * mask).sum(), mask.sum())})

    def rewrite(self, variables, inputs, sampling=None, seed=0, new=None):
        """Token ids of what follows each of some inputs' ids, to its end or `new` (None: target_length) tokens.

        sampling: Sampling, or Beams for the best text that is found."""
        read = [self.preprocess.kept(tokens) for tokens in inputs]
        prompts, encoder = (read, None) if self.causal else ([[]] * len(read), read)
        how = {"inputs": encoder, "prefix": self.prefix}
        new, sampling = self.target_length if new is None else new, sampling or Sampling()
        return write_rows(self, variables, prompts, new, sampling, self.known, seed, **how)

    def continued(self, prompt, ids):
        read = [*prompt, self.known.end]  # whole: who asks says how long it may be
        return joined_row(read, ids, self.known, self.prefix) if self.causal else causal_row(ids, self.known, read)

    def throughput(self, batch_spec):
        return "tokens", batch_spec["targets"].size + (0 if self.causal else batch_spec["encoder_inputs"].size)

    def forward_flops(self, batch_spec):
        rows, length = batch_spec["targets"].shape
        sizes = (rows, length) if self.causal else (rows, self.length, length)
        return {"model": self.model.flops(*sizes)}
