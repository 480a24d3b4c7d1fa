"""What counting alone achieves on the validation targets: a model that does not beat it has learnt nothing.

Both evaluators count on windows of the training data and score exactly the targets that the objective scores, so their
`bits_per_byte` stands beside the model's own. They do not depend on the weights, and are computed once for each data.
"""

import dataclasses
import math
import weakref

import numpy as np

from paradigm.capabilities import Generating, TextScoring
from paradigm.evaluator import Evaluator

_computed = weakref.WeakKeyDictionary()  # data -> {evaluator: metrics}


def training_windows(data, limit):
    """(tokens, segments) of up to `limit` training windows, evenly spread over the sources: an iterator of int [W].

    Of records with fields, whose targets alone are scored, they are the targets."""
    for source in data.train.sources:
        size = len(source)
        wanted = min(size, max(limit // len(data.train.sources), 1))
        for start in range(0, wanted, 256):
            places = [i * size // wanted for i in range(start, min(start + 256, wanted))]
            for record in source.__getitems__(places):
                if "targets" in record:
                    yield record["targets"], np.ones(len(record["targets"]), np.int32)
                else:
                    yield record["tokens"], record["segments"]


def scored_rows(part, data):
    """(batch, targets, weights, is_text, bytes) of each validation batch of a Part, as numpy: what the objective's own
    loss is summed over."""
    for batch in part.batches(data):
        targets, weights, is_text = map(np.asarray, part.objective.scored(batch))
        yield batch, targets, weights, is_text, float(np.sum(batch["text_bytes"] * batch["mask"]))


class CountingBaseline(Evaluator):
    """An evaluator whose metrics depend on the data alone. A subclass gives compute(part, data) -> metrics."""

    needs = TextScoring

    def run(self, objective, variables, data):
        """(metrics, no artefacts). The weights are not read."""
        del variables
        known = _computed.setdefault(data, {})
        if (self, objective) not in known:
            known[self, objective] = self.compute(self.part(objective), data)
        return known[self, objective], []


@dataclasses.dataclass(frozen=True)
class UnigramBaseline(CountingBaseline):
    """Each text token at its frequency in the training windows, add-one smoothed; context is ignored.

    p(w) = (c(w) + 1) / (N + V) over the V ids that spell text. windows: how many training windows to count.
    Metric: unigram/bits_per_byte of the text targets; sentinels, eos and padding are left out.
    """

    windows: int = 40_000

    counts = ("windows",)

    def compute(self, part, data):
        v = data.tokenizer.vocabulary
        counts = np.zeros(v.size, np.int64)
        for tokens, segments in training_windows(data, self.windows):
            counts += np.bincount(tokens[segments > 0], minlength=v.size)  # padding may be an id that spells text
        is_word = v.is_text(np.arange(v.size))
        bits = np.log2(counts[is_word].sum() + is_word.sum()) - np.log2(counts + 1)
        spent = total_bytes = 0.0
        for _, targets, weights, is_text, text_bytes in scored_rows(part, data):
            spent += float((bits[targets] * weights * is_text).sum())
            total_bytes += text_bytes
        return {"unigram/bits_per_byte": spent / total_bytes if total_bytes else math.nan}  # where nothing is predicted


@dataclasses.dataclass(frozen=True)
class BigramBaseline(CountingBaseline):
    """Each token given the one before it, by interpolated Kneser-Ney (Chen and Goodman 1998, section 2.7).

    p(w | v) = max(c(v, w) - d, 0) / c(v) + d T(v) / c(v) * q(w)
    d = n1 / (n1 + 2 n2) from the bigrams seen once and twice; T(v) tokens were seen after v; q(w) is in proportion to
    the number of tokens seen before w, plus one. A document's first token follows the start id, as in the model.
    Counts are sparse, so the vocabulary may be large. windows: how many training windows to count.
    Metrics: bigram/nll (nats a scored token, eos included) and bigram/bits_per_byte of the text targets.
    """

    windows: int = 40_000

    needs = Generating
    counts = ("windows",)

    def compute(self, part, data):
        v = data.tokenizer.vocabulary
        pairs = (token_pairs(*window, v.size, v.start) for window in training_windows(data, self.windows))
        score = kneser_ney(np.concatenate(list(pairs)), v.size)
        nats = bits = count = total_bytes = 0.0
        for batch, targets, weights, is_text, text_bytes in scored_rows(part, data):
            nll = score(batch["inputs"].astype(np.int64), targets) * weights
            nats += float(nll.sum())
            count += float(weights.sum())
            bits += float((nll * is_text).sum()) / math.log(2)
            total_bytes += text_bytes
        if not count:  # nothing is predicted
            return {"bigram/nll": math.nan, "bigram/bits_per_byte": math.nan}
        return {"bigram/nll": nats / count, "bigram/bits_per_byte": bits / total_bytes}


def previous_tokens(tokens, segments, start):
    """int64 [..., L]: the token before in the same document, or the start id."""
    previous = np.full(tokens.shape, start, np.int64)
    previous[..., 1:] = np.where(segments[..., 1:] == segments[..., :-1], tokens[..., :-1], start)
    return previous


def token_pairs(tokens, segments, vocab, start):
    """int64 [n]: previous * vocab + token, for the n tokens of a window that are not padding."""
    return (previous_tokens(tokens, segments, start) * vocab + tokens)[segments > 0]


def kneser_ney(pairs, vocab):
    """Fits the model of `BigramBaseline` to pair codes [N]; returns nll(previous, tokens) in nats, of any shape."""
    kinds, counts = np.unique(pairs, return_counts=True)
    before, after = kinds // vocab, kinds % vocab
    seen = np.bincount(before, counts, minlength=vocab)  # c(v)
    followers = np.bincount(before, minlength=vocab)  # T(v)
    once, twice = (counts == 1).sum(), (counts == 2).sum()
    discount = once / (once + 2 * twice) if once and twice else 0.5
    continuation = np.bincount(after, minlength=vocab) + 1.0
    continuation /= continuation.sum()

    def nll(previous, tokens):
        code = previous * vocab + tokens
        place = np.minimum(np.searchsorted(kinds, code), len(kinds) - 1)
        count = np.where(kinds[place] == code, counts[place], 0)
        total = np.maximum(seen[previous], 1)
        back_off = np.where(seen[previous] > 0, discount * followers[previous] / total, 1.0)
        return -np.log(np.maximum(count - discount, 0) / total + back_off * continuation[tokens])

    return nll
