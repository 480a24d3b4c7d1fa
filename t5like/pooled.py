"""A text model that gives one vector a text: an encoder or a decoder with a pool, as CLIP's and SigLIP's towers are.

Parameter paths are those of t5like.models: `embed`, `positions` and `decoder` when causal, `encoder` otherwise, so that
weights of a Decoder or an Encoder fit.
"""

import jax.numpy as jnp
from flax import linen as nn

from paradigm.attention import AttentionMask
from paradigm.errors import UserError
from paradigm.layers import Embed
from paradigm.partition import BATCH, constrain
from t5like.models import TextModel


class PooledText(TextModel, kw_only=True):
    """Tokens int32 [B, L] -> (pooled [B, D], intermediates).

    max_length: L, of the table of positions.
    causal: whether a token sees only those before it (CLIP), or all, padding too (SigLIP).
    pool: end, the output at the first `end_id` (None: the vocabulary's; the last place where there is none); highest,
        at the first of a row's highest id, which is the end of a text where no id lies above the end's (openai/CLIP
        model.py); or last, that of the last place, which is padding after all but the longest texts and, without
        causality, has seen them whole.

    sources: how many kinds of text are told apart, each by a vector of its own before the tokens, `sources/embedding`,
        as by a prefix token (Saito et al. 2023, "Prefix Conditioning Unifies Language and Label Supervision", section
        3.2); 0: none are.

    intermediates: "tokens" [B, L, D], after the last norm; "layers" [n, B, L, D].
    """

    causal: bool = True
    pool: str = "end"
    end_id: int | None = None
    sources: int = 0
    positions: str = "learned"
    tied: bool = True

    table_rows = None  # see Embed

    def setup(self):
        super().setup()
        if self.sources:
            self.kinds = Embed(self.sources, self.d_model, self.embed_std, self.dtype, name="sources")
        if self.causal:
            self.decoder = self.stack()
        else:
            self.encoder = self.stack()

    @property
    def features(self):
        """D of the pooled output."""
        return self.d_model

    @property
    def length(self):
        """L."""
        return self.max_length

    def __call__(self, tokens, source=None, *, keys=None):
        """source: int32 [B], of which kind each text is; None is the first. keys: typed PRNG keys [B] for dropout, or
        None. Raises UserError for more tokens than there are positions."""
        if self.pool == "end" and self.end_id is None:
            raise UserError("the text tower has no end_id: objective.bind(vocabulary) gives it one, or set it")
        x = self.embedded(tokens, jnp.arange(tokens.shape[1]))
        if self.sources:
            source = jnp.zeros(len(x), jnp.int32) if source is None else source
            x = jnp.concatenate([self.kinds(source[:, None]), x], 1)
        mask = AttentionMask(self.causal, window=self.window)
        stack = self.decoder if self.causal else self.encoder
        x, intermediates = stack(constrain(x, BATCH, None, None), mask, keys=keys)
        x = x[:, 1:] if self.sources else x
        return self._pooled(x, tokens), {"tokens": x, **intermediates}

    @nn.nowrap
    def _pooled(self, x, tokens):
        """[B, L, D] -> [B, D]."""
        if self.pool == "last":
            return x[:, -1]
        if self.pool == "highest":
            place = jnp.argmax(tokens, axis=1)
        else:
            ends = tokens == self.end_id
            place = jnp.where(ends.any(1), jnp.argmax(ends, axis=1), tokens.shape[1] - 1)
        return constrain(jnp.take_along_axis(x, place[:, None, None], axis=1)[:, 0], BATCH, None)

    @nn.nowrap
    def flops(self, batch):
        """Forward FLOPs of the products for texts of L tokens, all pairs of positions counted."""
        return self.stack(parent=None).flops(batch, self.max_length + bool(self.sources))
