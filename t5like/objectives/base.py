"""What text objectives share: the vocabulary that the data hand to them, what of a batch is scored, and the ways of
reading a batch: by a Decoder (LeftToRight), by an EncoderDecoder (SequenceToSequence), by an Encoder (HiddenTokens)."""

import dataclasses

import jax
import jax.numpy as jnp

from paradigm.capabilities import Continuing, Generating, SentenceScoring, TextFeatures, TextScoring, inheritors
from paradigm.dataset import Dataset
from paradigm.errors import UserError
from paradigm.objective import MAIN, Objective, rows_spec
from paradigm.records import sample
from t5like.decode.blanks import BySentinels
from t5like.decode.likelihood import Row, causal_row, hidden_rows, joined_row
from t5like.models import PARTITION_RULES
from t5like.scoring import output_kernel, score_text
from t5like.vocabulary import ROWS, Vocabulary, fit_rows

LOOKED = 64  # windows in which a text's length is looked at before the first step


@dataclasses.dataclass(frozen=True)
class OnText(TextFeatures, Objective):
    """Base of all that reads tokens, tasks too. A subclass has the fields `model` and `length`.

    vocabulary: of the text, given by `bind`; in a run the data's.
    """

    vocabulary: Vocabulary | None = dataclasses.field(default=None, kw_only=True)

    # Kinds of model that the objective can train; () where whoever wrote it did not say.
    architectures = ()

    # What a window of text must hold for anything to be learnt from it, as "two sentences"; "" where any will do.
    text_needs = ""

    def is_short(self, batch):
        """bool [B]: which rows of a batch (numpy) are of texts without what `text_needs` says."""
        raise NotImplementedError

    def check_data(self, prepared):
        """As of any objective: a line where most windows are of texts that are too short, UserError where all are."""
        if not self.text_needs:
            return super().check_data(prepared)
        batch = Dataset(sample(prepared.source("train"), LOOKED), self.preprocess, LOOKED, train=False).batch(0)
        short = self.is_short(batch)[batch["mask"] > 0]
        said = f"of {len(short)} windows of the training text that were looked at"
        if short.all():
            name = type(self).__name__
            raise UserError(f"{name}: texts too short: none {said} holds {self.text_needs}: give it longer texts")
        share = f"{100 * short.mean():.0f} % {said}"
        return [f"{share} do not hold {self.text_needs}: little is learnt from them"] if short.mean() > 0.5 else ()

    def bind(self, vocabulary):
        """The objective for text of this vocabulary: its ids, and a model with a row for each of them.

        Raises UserError for a model with fewer rows, and for settings that this vocabulary cannot serve.
        """
        return dataclasses.replace(self, vocabulary=vocabulary, model=fit_rows(self.model, vocabulary, multiple=ROWS))

    @property
    def data_vocabulary(self):
        return self.vocabulary

    @property
    def known(self):
        """The vocabulary. Raises UserError before `bind`."""
        if self.vocabulary is None:
            name = type(self).__name__
            raise UserError(f"{name} has no vocabulary yet: objective.bind(vocabulary) gives it one, a run's data do")
        return self.vocabulary

    @property
    def decoder_start(self):
        """The id that a decoder reads before the first one that it writes."""
        return self.known.start

    def groups(self, batch):
        """name -> shares of the targets whose nll is told by itself; see score_text."""
        del batch
        return {}

    def check_kind(self, name):
        """Raises UserError where the model is of a kind that this objective cannot train; it says which can."""
        if not isinstance(self.model, self.architectures):
            kind, an = type(self.model), lambda k: f"a{'n' * (k.__name__[0] == 'E')} {k.__name__}"
            able = sorted({o.__name__ for o in inheritors(OnText) if issubclass(kind, o.architectures)})
            instead = f"; {', '.join(able)} can train {an(kind)}" if able else ""
            wanted = " or ".join(map(an, self.architectures))
            raise UserError(f"{name} trains {wanted}, and the model is {an(kind)}: choose another model{instead}")

    def scores(self, params, batch, hidden):
        """The Loss of predicting a batch's targets from hidden [B, L, D]; see score_text."""
        kernel, text_bytes = self.output_kernel(params), batch["text_bytes"] * batch["mask"]
        return score_text(hidden, kernel, *self.scored(batch), text_bytes, self.z_loss, self.groups(batch))

    def check_positions(self, name, length=None):
        """Raises UserError where the model has learned positions for fewer than `length` tokens (None: its own)."""
        length = self.length if length is None else length
        if self.model.positions == "learned" and self.model.places < length:
            need = length + self.model.position_offset
            raise UserError(
                f"{name}: length {length} but the model has {self.model.places} learned positions; "
                f"lower the length or set the model's max_length to {need}"
            )

    def output_kernel(self, params):
        """float32 [D, V] with logits == hidden @ output_kernel(params), what an adaptation makes of it included."""
        return output_kernel(self.model, "model", params, self.adapt)


@dataclasses.dataclass(frozen=True)
class TextObjective(OnText, TextScoring):
    """Base of the objectives that predict tokens of text. A subclass has a field `model`."""

    def scored(self, batch):
        """(targets [B, L], weights float32 [B, L], is_text bool [B, L]) of a numpy or jax batch."""
        return batch["targets"], batch["weights"] * batch["mask"][:, None], self.known.is_text(batch["targets"])


class LeftToRight(Generating):
    """How a Decoder reads a batch: for the objectives with fields `model`, `length` and `z_loss`.

    prefix: whether batches hold `prefix` int32 [B], tokens that see each other and are not predicted.
    """

    prefix = False

    @property
    def context_length(self):
        return self.length

    @property
    def raw_length(self):
        """Tokens a data window must hold."""
        return self.length

    def batch_spec(self, batch_size, phase=MAIN):
        prefix = {"prefix": jax.ShapeDtypeStruct((batch_size,), jnp.int32)} if self.prefix else {}
        return {**text_spec(batch_size, self.length), **prefix, **rows_spec(batch_size)}

    def modules(self):
        return {"model": (self.model, jnp.ones((1, 8), jnp.int32))}

    def hidden(self, params, extra, batch, ctx):
        """[B, L, D] from which each target is predicted."""
        keys = ctx.keys("dropout", batch["index"]) if ctx.train else None
        visible = batch["prefix"] + 1 if self.prefix else None  # the start id stands before the prefix
        read = batch["inputs"], keys, batch["segments"], batch["positions"], visible
        return self.apply("model", self.variables(params, extra), *read, ctx=ctx, method="hidden")[0]

    def loss(self, params, extra, batch, ctx):
        return self.scores(params, batch, self.hidden(params, extra, batch, ctx))

    def sentence(self, ids):
        return [causal_row(ids, self.known)]

    def continued(self, prompt, ids):
        return joined_row(prompt, ids, self.known, self.prefix)

    @property
    def partition_rules(self):
        return PARTITION_RULES

    def throughput(self, batch_spec):
        return "tokens", batch_spec["targets"].size

    def forward_flops(self, batch_spec):
        return {"model": self.model.flops(*batch_spec["targets"].shape)}


class SequenceToSequence:
    """How an EncoderDecoder reads a batch: for the objectives with fields `model` and `z_loss`, and `_noise`, which has
    `raw_length`, `length` (of the encoder's inputs) and `target_length`."""

    @property
    def preprocess(self):
        return self.known and self._noise

    @property
    def raw_length(self):
        """Tokens a data window must hold."""
        return self._noise.raw_length

    def batch_spec(self, batch_size, phase=MAIN):
        return encoder_spec(batch_size, self._noise)

    def modules(self):
        return {"model": (self.model, (jnp.ones((1, 8), jnp.int32), jnp.ones((1, 8), jnp.int32)))}

    def hidden(self, params, extra, batch, ctx):
        """[B, L, D] from which each target is predicted."""
        keys = ctx.keys("dropout", batch["index"]) if ctx.train else None
        read = batch["encoder_inputs"], batch["inputs"], keys, batch["encoder_segments"]
        return self.apply("model", self.variables(params, extra), *read, ctx=ctx, method="hidden")[0]

    def loss(self, params, extra, batch, ctx):
        return self.scores(params, batch, self.hidden(params, extra, batch, ctx))

    @property
    def partition_rules(self):
        return PARTITION_RULES

    def throughput(self, batch_spec):
        return "tokens", batch_spec["encoder_inputs"].size + batch_spec["targets"].size

    def forward_flops(self, batch_spec):
        (batch, source), (_, length) = batch_spec["encoder_inputs"].shape, batch_spec["targets"].shape
        return {"model": self.model.flops(batch, source, length)}


class Blanks(SentenceScoring, Continuing, BySentinels):
    """How a model that writes what sentinels hide is asked to fill blanks, for a sentence, each token of which is one,
    and for what goes on from a text, behind which one stands."""

    def sentence(self, ids):
        v = self.known
        rows = hidden_rows(ids, v.sentinels[0])
        decoder = [v.start, v.sentinels[0]], [1]
        return [Row(*decoder, [ids[t]], [*self.front, *text, v.end]) for text, t in rows]

    def continued(self, prompt, ids):
        v, blank = self.known, self.known.sentinels[0]
        places = range(1, 1 + len(ids))
        return Row([v.start, blank, *ids[:-1]], places, ids, [*self.front, *prompt, blank, v.end])


class HiddenTokens:
    """How an Encoder reads windows some tokens of which are hidden or replaced: for the objectives with fields `model`
    and `length`, and `_masking`, a Masking (t5like/masking.py)."""

    @property
    def context_length(self):
        return self.length

    @property
    def preprocess(self):
        return self.known and self._masking

    @property
    def raw_length(self):
        """Tokens a data window must hold."""
        return self._masking.raw_length

    def batch_spec(self, batch_size, phase=MAIN):
        return encoder_spec(batch_size, self._masking)

    def throughput(self, batch_spec):
        return "tokens", batch_spec["encoder_inputs"].size


def padding_share(batch, name="encoder_"):
    """{"encoder_padding": (sum, weight)}, or "padding" with name="": the share of places that hold no token, where rows
    are shorter than the longest that the objective can make."""
    empty = batch[f"{name}segments"] == 0
    rows = batch["mask"][:, None] * jnp.ones_like(empty, jnp.float32)
    return {f"{name}padding": ((rows * empty).sum(), rows.sum())}


def scheduled_padding(batch, rates, *names):
    """`padding_share` by these names where one of the rates is a schedule: rows have room for its extreme."""
    return {k: v for name in names if any(map(callable, rates)) for k, v in padding_share(batch, name).items()}


def encoder_spec(batch_size, noise):
    """ShapeDtypeStructs of a batch that an encoder reads. noise: what makes it, with `length` and `target_length`."""
    read = jax.ShapeDtypeStruct((batch_size, noise.length), jnp.int32)
    text = text_spec(batch_size, noise.target_length)
    return {"encoder_inputs": read, "encoder_segments": read, **text, **rows_spec(batch_size)}


def text_spec(batch_size, length):
    """ShapeDtypeStructs of what every text batch holds (see t5like/corrupt.py)."""
    ints = jax.ShapeDtypeStruct((batch_size, length), jnp.int32)
    return {
        **dict.fromkeys(("inputs", "targets", "segments", "positions"), ints),
        "weights": jax.ShapeDtypeStruct((batch_size, length), jnp.float32),
        "text_bytes": jax.ShapeDtypeStruct((batch_size,), jnp.float32),
    }
