"""Pairs of a picture and a caption, prepared on the host: numpy and Pillow alone, since data workers import it."""

import dataclasses
from typing import Any

import numpy as np

from paradigm.errors import UserError
from vision.canvas import Canvas


@dataclasses.dataclass(frozen=True)
class Captions:
    """The preparation of every objective on pairs: the canvas of the picture, and its caption as `length` ids.

    canvas: of the picture. tokenizer: has encode, eos_id and pad_id, and bos_id where captions start with one.
    length: ids of a row: [bos] text eos pad ...; a longer text is cut, and its end token kept.
    """

    canvas: Canvas
    tokenizer: Any
    length: int

    def __call__(self, example, rng, step, train):
        """{"image", "label", "caption": str} -> the canvas's entries, "tokens" int32 [length], "cut" float32.

        cut: 1 where text was left out. Raises UserError for a record without a caption.
        """
        caption = example.get("caption")
        if not isinstance(caption, str) or not caption.strip():
            raise UserError(
                f"a record has the caption {caption!r}: objectives on pairs read {{'image', 'caption': str}}; choose "
                "data with captions"
            )
        tokens, cut = self.tokens(caption)
        return {**self.canvas(example, rng, step, train), "tokens": tokens, "cut": np.float32(cut)}

    def tokens(self, text):
        """(int32 [length], whether text was left out)."""
        t = self.tokenizer
        first = [] if getattr(t, "bos_id", None) is None else [t.bos_id]
        room = self.length - len(first) - 1
        ids = t.encode(text)
        row = np.full(self.length, t.pad_id, np.int32)
        kept = [*first, *ids[:room], t.eos_id]
        row[: len(kept)] = kept
        return row, len(ids) > room
