"""Metrics that are no means, as counts that add up over batches and processes, and functions that finish them.

Counts are numpy arrays or Counters: parts add with `+`. The definitions are those of scikit-learn, seqeval and SQuAD's
evaluate-v1.1.py, which tests hold them equal to. Of libraries numpy alone is imported here.
"""

import collections
import re
import string

import numpy as np

from t5like.sentences import UNSPACED


def ratio(a, b):
    """a / b, and 0 where b is 0, as scikit-learn and seqeval have it."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.divide(a, b, out=np.zeros(np.broadcast_shapes(a.shape, b.shape)), where=b != 0)


def f1(right, found, true):
    """2 p r / (p + r) of counts: of what is right, what was found, and what there is."""
    return ratio(2 * np.asarray(right), np.asarray(found) + np.asarray(true))


# ---- one class of many -----------------------------------------------------------------------------------------------


def class_scores(table):
    """{accuracy, macro_f1, matthews} of a table of paradigm.metrics.confusion.

    macro_f1: over the classes that are there, in truth or as found, as sklearn.metrics.f1_score(average="macro").
    matthews: Gorodkin's R_K (2004), sklearn.metrics.matthews_corrcoef.
    """
    right, true, found = np.diag(table).astype(np.float64), table.sum(1), table.sum(0)
    there, total = true + found > 0, table.sum()
    covariance = lambda a, b: float(total) ** 2 - float(np.dot(a.astype(np.float64), b))
    spread = (covariance(found, found) * covariance(true, true)) ** 0.5
    both = float(total) * right.sum() - float(np.dot(found.astype(np.float64), true))
    return {
        "accuracy": float(ratio(right.sum(), total)),
        "macro_f1": float(f1(right, found, true)[there].mean()) if there.any() else 0.0,
        "matthews": float(ratio(both, spread)),
    }


# ---- several of many -------------------------------------------------------------------------------------------------


def label_counts(truth, found):
    """int64 [C, 3]: of each label how often it was right, found, and there. truth, found: bool [n, C]."""
    return np.stack([(truth & found).sum(0), found.sum(0), truth.sum(0)], 1).astype(np.int64)


def label_scores(counts):
    """{micro_f1, macro_f1} of label_counts, as sklearn.metrics.f1_score on indicator matrices."""
    return {"micro_f1": float(f1(*counts.sum(0))), "macro_f1": float(f1(*counts.T).mean())}


# ---- numbers ---------------------------------------------------------------------------------------------------------


def number_scores(truth, found):
    """{pearson, spearman} of two lists of numbers; ranks do not add up, so that all of them are kept until the end."""
    from scipy.stats import rankdata

    def correlation(a, b):
        a, b = (np.asarray(x, np.float64) - np.mean(x) for x in (a, b))
        return float(ratio((a * b).sum(), ((a * a).sum() * (b * b).sum()) ** 0.5))

    return {"pearson": correlation(truth, found), "spearman": correlation(rankdata(truth), rankdata(found))}


# ---- entities --------------------------------------------------------------------------------------------------------


def is_entity_tag(tag):
    """Whether a tag is O, or B-, I-, E- or S- and a type."""
    return tag == "O" or re.match(r"[BIES]-.", tag) is not None


def entities(tags):
    """[(type, first word, last word)]: what B-, I-, E- and S- mark, read as conlleval and seqeval's default do.

    A word goes on with the entity of the word before where it is I- or E- of its type and that word was B- or I-; any
    other that is not O begins one, an I- too.
    """
    found, previous, kind = [], "O", ""
    for place, tag in enumerate(tags):
        place_in, this = tag[0], tag[2:]
        if place_in in "IE" and previous in "BI" and kind == this:
            found[-1] = (this, found[-1][1], place)
        elif place_in != "O":
            found.append((this, place, place))
        previous, kind = place_in, this
    return found


def entity_counts(truth, found):
    """Counter {(type, right | found | true): n} of two lists of tags of one length."""
    true, ours, counts = entities(truth), entities(found), collections.Counter()
    counts.update((kind, "true") for kind, *_ in true)
    counts.update((kind, "found") for kind, *_ in ours)
    counts.update((kind, "right") for kind, *_ in set(true) & set(ours))
    return counts


def entity_scores(counts):
    """{entity_precision, entity_recall, entity_f1, entity_macro_f1}: over all entities, and the mean over types."""
    kinds = sorted({kind for kind, _ in counts})
    table = np.array([[counts[kind, what] for what in ("right", "found", "true")] for kind in kinds]).reshape(-1, 3)
    right, found, true = table.sum(0)
    return {
        "entity_precision": float(ratio(right, found)),
        "entity_recall": float(ratio(right, true)),
        "entity_f1": float(f1(right, found, true)),
        "entity_macro_f1": float(f1(*table.T).mean()) if kinds else 0.0,
    }


# ---- answers ---------------------------------------------------------------------------------------------------------


def normal_answer(text):
    """Lower case, without punctuation and articles, single spaces (SQuAD's evaluate-v1.1.py, normalize_answer)."""
    text = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def answer_counts(found, answers):
    """float64 [3]: exact matches, F1 over words, questions; of the nearest of some answers. No answers: "" is right.

    A letter of a script that is written without spaces is a word (Lewis et al. 2020, "MLQA", mlqa_evaluation_v1.py).
    """
    words, best = lambda text: re.sub(UNSPACED, r" \g<0> ", normal_answer(text)).split(), [0.0, 0.0]
    for answer in answers or [""]:
        ours, true = words(found), words(answer)
        shared = sum((collections.Counter(ours) & collections.Counter(true)).values())
        overlap = 2 * shared / (len(ours) + len(true)) if shared else float(ours == true)
        best = [max(best[0], float(ours == true)), max(best[1], overlap)]
    return np.array([*best, 1.0])


def answer_scores(counts):
    """{exact_match, answer_f1} of answer_counts, 0 to 1."""
    return {"exact_match": float(ratio(counts[0], counts[2])), "answer_f1": float(ratio(counts[1], counts[2]))}
