"""BLEU, ROUGE-L and CIDEr: the numbers of coco-caption (pycocoevalcap 1.2) on these captions, and what each must be."""

import collections
import math

import numpy as np
import pytest

from multimodal.caption_scores import bleu, cider, rouge_l

FOUND = [
    "a large blue heart on a navy background",
    "A small red circle, above a star.",
    "two green stars and a ring",
    "a picture of a ring",
]
TRUTH = [
    ["a large blue heart on a navy background", "a blue heart"],
    ["a small red circle below a blue star", "a red circle and a star"],
    ["two small green stars and a large ring", "stars and a ring in green"],
    ["a medium orange ring", "the picture shows a ring on cream"],
]


def test_they_are_coco_captions():
    assert cider(FOUND, TRUTH) == pytest.approx(3.7997474232613695)
    for n, wanted in enumerate((0.88461538458, 0.80209515851, 0.73258382132, 0.68846755809), 1):
        assert bleu(FOUND, TRUTH, n) == pytest.approx(wanted)
    assert rouge_l(FOUND, TRUTH) == pytest.approx(0.8038007138540054)


def test_letters_without_spaces_between_words_are_words():
    found, truth = ["一个大红圆在一颗星上", "两只 green 猫"], [["一个小红圆在一颗星下"], ["两只green猫"]]
    spaced = lambda text: " ".join(text.replace("green", "g").replace(" ", "")).replace("g", "green")
    for score in (bleu, rouge_l, cider):
        apart = score([*map(spaced, found)], [[*map(spaced, texts)] for texts in truth])
        assert 0 < score(found, truth) == apart


def test_cider_by_a_loop():
    """Vectors over all n-grams of the corpus, as equation 2 has them, one reference each."""
    texts = [t.lower().replace(",", "").replace(".", "").split() for t in FOUND]
    truth = [r[0].split() for r in TRUTH]
    total = 0.0
    for n in range(1, 5):
        grams = lambda t, n=n: collections.Counter(tuple(t[i : i + n]) for i in range(len(t) - n + 1))
        every = sorted({g for t in texts + truth for g in grams(t)})
        rare = np.array([math.log(4 / max(1, sum(g in grams(t) for t in truth))) for g in every])
        for a, b in zip(texts, truth):
            x, y = (np.array([grams(t)[g] for g in every]) * rare for t in (a, b))
            if x.any() and y.any():
                near = math.exp(-((len(a) - len(b)) ** 2) / 72)
                total += near * np.minimum(x, y) @ y / (np.linalg.norm(x) * np.linalg.norm(y))
    assert cider(FOUND, [[r[0]] for r in TRUTH]) == pytest.approx(10 * total / 4 / 4)


def test_true_captions_have_all_and_foreign_ones_nothing():
    truth = [["one two three four five"], ["six seven eight nine ten"]]
    same, other = [t[0] for t in truth], ["x y z u v", "x y z u v"]
    assert (bleu(same, truth), rouge_l(same, truth), cider(same, truth)) == pytest.approx((1.0, 1.0, 10.0))
    assert (bleu(other, truth), rouge_l(other, truth), cider(other, truth)) == (0.0, 0.0, 0.0)
    assert (bleu(["", ""], truth), rouge_l(["", ""], truth), cider(["", ""], truth)) == (0.0, 0.0, 0.0)


def test_words_that_are_repeated_count_no_more_than_in_the_reference():
    found = ["a ring ring ring of a ring", "blue blue blue star star"]
    truth = [["a large ring", "the ring of a planet"], ["a blue star on blue", "two stars"]]
    assert cider(found, truth) == pytest.approx(1.050250749523682)  # pycocoevalcap's
