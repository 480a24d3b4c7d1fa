"""What the objectives share that tell something of a picture and a text together, by one transformer over both."""

import dataclasses

import jax.numpy as jnp

from multimodal.objectives.base import WithCaptions
from t5like import heads
from t5like.vocabulary import ROWS


@dataclasses.dataclass(frozen=True, kw_only=True)
class TellsPairs(WithCaptions):
    """Base of those that tell something of a picture and a text together. encoder: a SingleStream.

    A row of tokens begins with the start, at which the pair is told, and all of it is read.
    """

    reader, rows, starts = "encoder", ROWS, True

    @property
    def length(self):
        return self.encoder.max_length

    def modules(self):
        head = heads.PairHead(**self.encoder.shared())
        return {**super().modules(), "pairs": (head, jnp.zeros((1, self.encoder.d_model)))}

    def lengths(self, tokens):
        """int32 [B]: tokens of each row, its end the last."""
        ends = tokens == self.vocabulary.end
        return jnp.sum(jnp.cumsum(ends, 1) - ends == 0, 1)

    def read(self, variables, patches, tokens, ctx, index, name="pairs", **how):
        """States [B, L, D] of tokens that see each other and the patches."""
        how |= {"prefix": self.lengths(tokens), "keys": self._keys(f"dropout/{name}", self.encoder, ctx, index)}
        return self.apply("encoder", variables, patches, tokens, ctx=ctx, method="decode", **how)[0]

    def tell(self, variables, patches, tokens, ctx, index):
        """Logits [B, 2] of no and yes."""
        first = self.read(variables, patches, tokens, ctx, index)[:, 0]
        return self.apply("pairs", variables, first, ctx=ctx)[0]

    @property
    def partition_rules(self):
        return (*heads.PARTITION_RULES, *super().partition_rules)

    def forward_flops(self, batch_spec):
        rows, e = batch_spec["mask"].size, self.encoder
        embed = 2 * rows * e.count * e.patch**2 * e.channels * e.d_model
        stack = e.stack(parent=None).flops(rows, e.count + self.length)
        return {"encoder": embed + stack, "pairs": 2 * rows * e.d_model * (e.d_model + 2)}
