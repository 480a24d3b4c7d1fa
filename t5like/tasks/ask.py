"""Asking a task in a notebook: texts in, labels, tags, answers and texts out."""

import jax
import numpy as np

from paradigm.capabilities import Classified
from paradigm.errors import UserError
from t5like import labels as kinds
from t5like.decode import chosen_by
from t5like.tasks.base import batch_of_rows
from t5like.tasks.evaluators import scores_of, spelt
from t5like.tokenizers.base import check_texts


def classify(objective, variables, tokenizer, labels, texts):
    """Labels of texts.

    Args:
        objective: Classifying. variables: of objective.apply. tokenizer, labels: those that it was trained with.
        texts: a list of texts, or of pairs of them where it reads two; or one.

    Returns:
        a Classified for each text, in a list; or one.

    Raises:
        UserError: a text where pairs are read, or a pair where texts are.
    """
    several = isinstance(texts, (list, tuple))
    if isinstance(texts, str) or (objective.pair and several and texts and isinstance(texts[0], str)):
        return classify(objective, variables, tokenizer, labels, [texts])[0]
    is_pair = lambda one: isinstance(one, (list, tuple)) and [isinstance(text, str) for text in one] == [True, True]
    for text in texts if several else [None]:
        if not (is_pair(text) if objective.pair else isinstance(text, str)):
            raise UserError(
                "classify: this run reads pairs of texts: give (first, second)" if objective.pair
                else "classify: this run reads one text at a time: give a text, or a list of them"
            )  # fmt: skip
    if not texts:
        return []
    pairs = [text if objective.pair else (text, "") for text in texts]
    unknown = kinds.encode(objective.kind, None, labels)
    rows = [{"inputs": tokenizer.encode(a), "targets": tokenizer.encode(b), "label": unknown} for a, b in pairs]
    scores = asked(objective, variables, rows)
    if objective.kind == "number":
        return [Classified(float(score[0]), {}) for score in scores]
    if objective.kind == "classes":
        chances = 1 / (1 + np.exp(-scores.astype(np.float64)))
    else:
        chances = np.asarray(jax.nn.softmax(scores))
    found = []
    for row in chances:
        named = {labels[k]: float(row[k]) for k in np.argsort(-row, kind="stable")}
        above = tuple(name for name, p in named.items() if p > 0.5)
        found.append(Classified(above if objective.kind == "classes" else next(iter(named)), named))
    return found


def asked(objective, variables, rows, size=16):
    """The scores, numpy, of records, `size` at a time."""
    found = []
    for start in range(0, len(rows), size):
        some = [objective.preprocess(row, None, 0, False) for row in rows[start : start + size]]
        batch = batch_of_rows(some + [some[-1]] * (size - len(some)))
        scores = jax.device_get(scores_of(objective, variables, batch))
        found += [jax.tree.map(lambda x, k=k: x[k], scores) for k in range(len(some))]
    return found if isinstance(found[0], tuple) else np.stack(found)


def tag(objective, variables, tokenizer, labels, words):
    """Tags of words.

    Args:
        words: a list of words, or a text whose words stand between spaces; the others as of `classify`.

    Returns:
        [(word, its tag)]; None is the tag of a word past the length that is read.
    """
    words = (
        words.split() if isinstance(words, str) else check_texts("tag", words, "a text is wanted, or a list of words")
    )
    if not words:
        return []
    ids, starts = kinds.encode_words(tokenizer, words)
    numbers = np.arange(len(words), dtype=np.int32)
    row = {"inputs": ids, "words": starts, "label": numbers}  # in place of tags, to see where each word speaks
    places = objective.preprocess(row, None, 0, False)["tags"]
    best = asked(objective, variables, [row], 1)[0].argmax(1)
    found = {int(places[at]): labels[int(best[at])] for at in np.flatnonzero(places >= 0)}
    return [(word, found.get(k)) for k, word in enumerate(words)]


def answer(objective, variables, tokenizer, labels, question, context):
    """The answer to a question in a context, as it is spelt there; "" for none. The rest as of `classify`."""
    del labels
    check_texts("answer", [question, context], "question and context are texts")
    ids, starts = kinds.encode_words(tokenizer, context.split())
    row = {"inputs": tokenizer.encode(question), "targets": ids, "words": starts, "label": np.zeros((0, 2), np.int32)}
    [(first, last)] = asked(objective, variables, [row], 1)
    return spelt(context, objective.preprocess(row, None, 0, False)["words"], first, last)


def rewrite(objective, variables, tokenizer, labels, texts, max_new_tokens=None, seed=0, **how):
    """What the model writes for each text, in a list; or for one.

    Args:
        texts: as the input's template makes them. max_new_tokens: None for as many as a target had. seed: of the draws.
            how: temperature, top_k, top_p of t5like.decode.Sampling; or beams, length_penalty of its Beams. The others
            as of `classify`.
    """
    if isinstance(texts, str):
        return rewrite(objective, variables, tokenizer, labels, [texts], max_new_tokens, seed, **how)[0]
    texts, choice = check_texts("rewrite", texts), chosen_by(tokenizer.vocab_size, **how)
    found = objective.rewrite(variables, tokenizer.encode_batch(texts), choice, seed, max_new_tokens) if texts else []
    return [tokenizer.decode(ids) for ids in found]
