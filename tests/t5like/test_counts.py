"""Metrics as counts: equal to the libraries', and adding up however the records are cut."""

import collections

import numpy as np
import pytest
from sklearn import metrics

from paradigm.metrics import confusion
from t5like.tasks import counts as C


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("seed, missing", [(0, False), (1, True)])
def test_one_class_of_many_as_scikit_learn(seed, missing):
    truth, found = rng(seed).integers(0, 4, 50), rng(seed + 9).integers(0, 4, 50)
    found = np.where(rng(3).random(50) < 0.5, truth, found)
    classes = 6 if missing else 4  # two that nobody has
    parts = [confusion(truth[a:b], found[a:b], classes) for a, b in ((0, 7), (7, 50))]
    scores = C.class_scores(sum(parts))
    assert scores["accuracy"] == pytest.approx(metrics.accuracy_score(truth, found))
    assert scores["macro_f1"] == pytest.approx(metrics.f1_score(truth, found, average="macro"))
    assert scores["matthews"] == pytest.approx(metrics.matthews_corrcoef(truth, found))
    always = C.class_scores(confusion(truth, np.zeros(50, int), classes))
    assert always["matthews"] == 0 and always["accuracy"] == pytest.approx(np.mean(truth == 0))


def test_several_of_many_as_scikit_learn():
    truth, found = rng(0).random((40, 5)) < 0.3, rng(1).random((40, 5)) < 0.3
    truth[:, 4] = found[:, 4] = False
    scores = C.label_scores(C.label_counts(truth[:9], found[:9]) + C.label_counts(truth[9:], found[9:]))
    for average in ("micro", "macro"):
        wanted = metrics.f1_score(truth, found, average=average, zero_division=0)
        assert scores[f"{average}_f1"] == pytest.approx(wanted)


def test_correlations_as_scipy():
    from scipy import stats

    truth = rng(0).integers(0, 5, 30).astype(float)  # with ties
    found = truth + rng(1).normal(size=30) ** 3
    scores = C.number_scores(truth, found)
    assert scores["pearson"] == pytest.approx(stats.pearsonr(truth, found)[0])
    assert scores["spearman"] == pytest.approx(stats.spearmanr(truth, found)[0])


TAGS = ["O", "B-per", "I-per", "B-loc", "I-loc", "E-loc", "S-loc", "E-per", "S-per", "B-a-b", "I-a-b"]


def test_entities_by_hand():
    tags = ["B-per", "I-per", "B-per", "O", "I-loc", "I-loc", "I-per", "S-loc", "I-loc", "B-loc", "E-loc", "I-loc"]
    assert C.entities(tags) == [
        ("per", 0, 1), ("per", 2, 2), ("loc", 4, 5), ("per", 6, 6), ("loc", 7, 7), ("loc", 8, 8), ("loc", 9, 10),
        ("loc", 11, 11),
    ]  # fmt: skip
    assert C.entities(["O"]) == C.entities([]) == []


def test_entity_f1_as_seqeval():
    seqeval = pytest.importorskip("seqeval.metrics")
    draw = rng(0)
    truth = [[TAGS[i] for i in draw.integers(0, len(TAGS), n)] for n in draw.integers(1, 12, 60)]
    found = [[tag if draw.random() < 0.7 else TAGS[draw.integers(len(TAGS))] for tag in row] for row in truth]
    counts = sum((C.entity_counts(a, b) for a, b in zip(truth, found)), collections.Counter())
    scores = C.entity_scores(counts)
    for name in ("precision", "recall", "f1"):
        wanted = getattr(seqeval, f"{name}_score")(truth, found)
        assert scores[f"entity_{name}"] == pytest.approx(wanted), name
    assert scores["entity_macro_f1"] == pytest.approx(seqeval.f1_score(truth, found, average="macro"))
    assert 0.1 < scores["entity_f1"] < 0.9


def test_answers_as_squads_script_counts():
    score = lambda found, *answers: C.answer_counts(found, answers)[:2].tolist()
    assert score("The Cat!", "cat") == [1.0, 1.0]
    assert score("the black cat", "a cat", "dog") == [0.0, pytest.approx(2 / 3)]
    assert score("a a b", "a b b") == [0.0, 1.0 * 2 * 1 / (1 + 2)]  # the article is no word
    assert score("", "") == score("") == [1.0, 1.0] and score("x") == [0.0, 0.0]
    assert score("纽约市", "纽约") == [0.0, 0.8] and score("バス停", "バス 停") == [1.0, 1.0]  # MLQA: by letters
    assert score("in 北京", "北京 in the") == [0.0, 1.0] and score("北京", "上海") == [0.0, 0.0]
    counts = C.answer_counts("cat", ["cat"]) + C.answer_counts("black cat", ["cat"])
    assert C.answer_scores(counts) == {"exact_match": 0.5, "answer_f1": pytest.approx(5 / 6)}
