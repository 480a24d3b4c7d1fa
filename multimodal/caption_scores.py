"""How near captions are to those that people wrote: BLEU, ROUGE-L and CIDEr, of words alone.

Each takes `found`, a text for each picture, and `truth`, a list of texts for each picture, and gives a number. Words
are runs of letters and digits, in small letters, and each letter of a script without spaces; CIDEr's stemming and the
PTB tokenizer of coco-caption are left out.
"""

import collections
import itertools
import math
import re

from t5like.sentences import UNSPACED

_WORD = re.compile(rf"{UNSPACED}|(?:(?!{UNSPACED})\w)+")


def words(text):
    """A tuple of a text's words."""
    return tuple(_WORD.findall(text.lower()))


def ngrams(text, n):
    """Counter of a text's n-grams. text: a tuple of words."""
    return collections.Counter(zip(*(text[k:] for k in range(n))))


def bleu(found, truth, n=4):
    """Corpus BLEU of orders 1 .. n, 0 to 1 (Papineni et al. 2002, section 2.3): clipped counts of all pictures are
    added first. The brevity penalty reads the reference that is nearest in length, the shorter of two."""
    right, total, length, wanted = [0] * n, [0] * n, 0, 0
    for text, references in _pairs(found, truth):
        length += len(text)
        wanted += min((abs(len(r) - len(text)), len(r)) for r in references)[1]
        for k in range(n):
            own, most = ngrams(text, k + 1), collections.Counter()
            for reference in references:
                most |= ngrams(reference, k + 1)
            right[k] += (own & most).total()
            total[k] += own.total()
    if not all(right):
        return 0.0
    precision = sum(math.log(a / b) for a, b in zip(right, total)) / n
    return math.exp(min(0.0, 1 - wanted / length) + precision)


def rouge_l(found, truth, beta=1.2):
    """Mean over pictures of the F-measure of the longest common subsequence (Lin 2004, section 3.1), of the best
    precision and the best recall over references, as coco-caption has it, and its beta."""
    total = 0.0
    for text, references in _pairs(found, truth):
        common = [_longest(text, r) for r in references]
        precision = max(c / max(len(text), 1) for c in common)
        recall = max(c / max(len(r), 1) for c, r in zip(common, references))
        if precision and recall:
            total += (1 + beta**2) * precision * recall / (recall + beta**2 * precision)
    return total / len(found)


def cider(found, truth, n=4, sigma=6.0):
    """CIDEr-D, 0 to 10 (Vedantam et al. 2015, "CIDEr", sections 3 and 4).

    For each order 1 .. n the cosine of vectors of n-grams, weighted by their count and by log(pictures / pictures with
    it in their references), the text's clipped to the reference's, times exp(-difference in length^2 / (2 sigma^2)); a
    mean over references, orders and pictures, times 10. A single picture has no rare words: 0.
    """
    pairs, total = list(_pairs(found, truth)), 0.0
    seen = collections.Counter()
    for _, references in pairs:
        seen.update(set(itertools.chain(*(ngrams(r, k + 1) for r in references for k in range(n)))))
    rare = lambda counts: {gram: c * math.log(len(pairs) / max(seen[gram], 1)) for gram, c in counts.items()}
    norm = lambda vector: math.sqrt(sum(x * x for x in vector.values()))
    for text, references in pairs:
        own = [rare(ngrams(text, k + 1)) for k in range(n)]
        for reference in references:
            near = math.exp(-((len(text) - len(reference)) ** 2) / (2 * sigma**2))
            for k in range(n):
                other = rare(ngrams(reference, k + 1))
                dot = sum(min(x, other[gram]) * other[gram] for gram, x in own[k].items() if gram in other)
                if dot:
                    total += near * dot / (norm(own[k]) * norm(other)) / (n * len(references))
    return 10 * total / len(pairs)


SCORES = {"bleu4": bleu, "rouge_l": rouge_l, "cider": cider}


def _pairs(found, truth):
    for text, references in zip(found, truth, strict=True):
        yield words(text), [words(r) for r in references]


def _longest(a, b):
    """Words of the longest common subsequence of two texts."""
    row = [0] * (len(b) + 1)
    for x in a:
        before = 0
        for j, y in enumerate(b):
            before, row[j + 1] = row[j + 1], before + 1 if x == y else max(row[j + 1], row[j])
    return row[-1]
