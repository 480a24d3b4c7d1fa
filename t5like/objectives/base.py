"""What every text objective shares: the vocabulary that the data hand to it, and what of a batch is scored."""

import dataclasses

import jax
import jax.numpy as jnp

from paradigm.capabilities import TextScoring
from paradigm.errors import UserError
from paradigm.objective import Objective
from t5like.vocabulary import ROWS, Vocabulary, fit_rows


@dataclasses.dataclass(frozen=True)
class OnText(Objective):
    """Base of all that reads tokens, tasks too. A subclass has the fields `model` and `length`.

    vocabulary: of the text, given by `bind`; in a run the data's.
    """

    vocabulary: Vocabulary | None = dataclasses.field(default=None, kw_only=True)

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
            raise UserError(f"{type(self).__name__} has no vocabulary yet: objective.bind(vocabulary) gives it one")
        return self.vocabulary

    def check_positions(self, name):
        """Raises UserError where the model has learned positions for fewer than `length` tokens."""
        if self.model.positions == "learned" and self.model.places < self.length:
            raise UserError(
                f"{name}: length {self.length} but the model has {self.model.places} learned positions; "
                f"lower the length or set the model's max_length to {self.length}"
            )


@dataclasses.dataclass(frozen=True)
class TextObjective(TextScoring, OnText):
    """Base of the objectives that predict tokens of text. A subclass has a field `model`."""

    def scored(self, batch):
        """(targets [B, L], weights float32 [B, L], is_text bool [B, L]) of a numpy or jax batch."""
        return batch["targets"], batch["weights"] * batch["mask"][:, None], self.known.is_text(batch["targets"])


def text_spec(batch_size, length):
    """ShapeDtypeStructs of what every text batch holds (see t5like/corrupt.py)."""
    ints = jax.ShapeDtypeStruct((batch_size, length), jnp.int32)
    return {
        **dict.fromkeys(("inputs", "targets", "segments", "positions"), ints),
        "weights": jax.ShapeDtypeStruct((batch_size, length), jnp.float32),
        "text_bytes": jax.ShapeDtypeStruct((batch_size,), jnp.float32),
    }
