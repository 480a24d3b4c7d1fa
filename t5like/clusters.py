"""Tokens in clusters, and fakes drawn by what a detector misses: Di Liello et al. 2022, section 3, C-RTS.

A table of counts [C, C] says how often a token of one cluster that was replaced by one of another has been missed more
than found. A fake for a token of cluster a comes from cluster b, alike from all of its tokens, with

    p(b | a) = softmax_b(beta * scaled(counts[a])_b)          scaled: from 0, the least of the row, to 1, the greatest

All counts are 1 at first; a fake that is missed adds 1, one that is found takes 1 away. (lucadiliello/
transformers-framework, cluster_random_token_substitution.py, and its pipeline, which updates on what was replaced.)
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from paradigm.errors import UserError
from t5like.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class Clusters:
    """Which cluster each id is of; ids that spell no text are of none and never drawn.

    given: a cluster for each id of the vocabulary, as k-means of word vectors gives them; or how many there are: ranges
    of neighbouring ids of one size, which a trained vocabulary has in the order of frequency, and bytes by kind.

    Raises UserError for fewer than two clusters, more than there are tokens, another number of ids, or an empty one.
    """

    vocabulary: Vocabulary
    given: int | tuple

    def __post_init__(self):
        have, size, many = self.vocabulary.text_ids, self.vocabulary.size, isinstance(self.given, int)
        if not many and len(self.given) != size:
            raise UserError(f"clusters: {len(self.given)} ids have one, and the vocabulary has {size} ids")
        if not 2 <= self.count <= have:
            raise UserError(f"clusters={self.count}: {have} tokens fall into 2 clusters or more, and at most {have}")
        if (empty := np.flatnonzero(self._sizes == 0)).size:
            raise UserError(f"clusters: no token that spells text is of cluster {empty[0]}: leave no gap")

    @property
    def count(self):
        """C."""
        return self.given if isinstance(self.given, int) else int(max(self.given)) + 1

    @functools.cached_property
    def of(self):
        """int32 [V]: the cluster of each id, 0 for those of none."""
        if not isinstance(self.given, int):
            return np.asarray(self.given, np.int32)
        ids, of = self._text, np.zeros(self.vocabulary.size, np.int32)
        of[ids] = np.arange(len(ids)) * self.given // len(ids)
        return of

    @functools.cached_property
    def _text(self):
        return np.concatenate([np.arange(*ids) for ids in self.vocabulary.text_ranges])

    @functools.cached_property
    def _sizes(self):
        return np.bincount(self.of[self._text], minlength=self.count)

    def draw(self, counts, targets, keys, beta):
        """A fake for each token: int32 [B, P] of targets int32 [B, P], counts int32 [C, C], keys [B]."""
        counts = counts.astype(jnp.float32)
        low, high = counts.min(-1, keepdims=True), counts.max(-1, keepdims=True)
        logits = beta * (counts - low) / jnp.maximum(high - low, 1.0)
        by_cluster = self._text[np.argsort(self.of[self._text], kind="stable")]
        first, sizes = np.cumsum(self._sizes) - self._sizes, self._sizes

        def fakes(key, row):
            which, where = jax.random.split(key)
            cluster = jax.random.categorical(which, logits[jnp.asarray(self.of)[row]])
            size = jnp.asarray(sizes)[cluster]
            place = jnp.minimum((jax.random.uniform(where, row.shape) * size).astype(jnp.int32), size - 1)
            return jnp.asarray(by_cluster, jnp.int32)[jnp.asarray(first)[cluster] + place]

        return jax.vmap(fakes)(keys, targets)

    def updated(self, counts, targets, fakes, missed):
        """The next counts. missed: int32 [B, P]: 1 for a fake that was missed, -1 for one found, 0 for what is none."""
        of = jnp.asarray(self.of)
        return counts.at[of[targets], of[fakes]].add(missed)
