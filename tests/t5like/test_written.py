"""What is written and chosen: scores as the libraries give them, likelihoods by a loop, dialogues as examples."""

import json
import sys
import types

import jax
import numpy as np
import pytest

from paradigm.errors import UserError
from t5like.models import gpt
from t5like.objectives import NextToken
from t5like.records import TextRecords
from t5like.tasks import TextToText
from t5like.tasks.choice import MultipleChoice
from t5like.tasks.written import TextScores, text_scores
from t5like.tokenizers import ByteTokenizer

TOKENIZER = ByteTokenizer(extra_ids=2)
GPT = gpt("tiny", layers=1, d_model=16, heads=2, d_ff=32)


def test_scores_of_texts():
    pytest.importorskip("sacrebleu")
    pytest.importorskip("rouge_score")
    found = ["the cat sat on the mat", "a dog"]
    references = [["the cat sat on the mat"], ["no", "a dog"]]
    assert text_scores(found, references, TextScores.scores) == {"exact_match": 1.0}
    scores = text_scores(found, references, ("bleu", "chrf", "rouge1", "rouge2", "rougeL"))
    assert scores == pytest.approx({"bleu": 100, "chrf": 100, "rouge1": 1, "rouge2": 1, "rougeL": 1})
    scores = text_scores(["a b c"], [["a b d", "x"]], ("exact", "rouge1", "rouge2"))
    assert scores == pytest.approx({"exact_match": 0, "rouge1": 2 / 3, "rouge2": 1 / 2})


@pytest.mark.parametrize("score, library", [("bleu", "sacrebleu"), ("rouge1", "rouge_score")])
def test_a_score_whose_library_is_missing_is_refused(score, library, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UserError, match=rf"{score} needs the package {library.replace('_', '-')}: pip install"):
        TextScores((score,)).check(TextToText(GPT), None)
    with pytest.raises(UserError, match="unknown TextScores.scores 'blue': did you mean 'bleu'"):
        TextScores(("blue",))


def test_choices_by_likelihood(tmp_path):
    rows = [{"q": "two", "a": "ab", "b": "cde", "right": k % 2} for k in range(3)]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    objective = NextToken(GPT, 16).bind(TOKENIZER.vocabulary)
    variables = {"params": jax.jit(objective.init)(jax.random.key(0))}
    records = TextRecords(str(path), "{q} ", label="right")
    data = types.SimpleNamespace(tokenizer=TOKENIZER)
    evaluator = MultipleChoice(records, ("{a}", "{b}"), length=12)
    evaluator.check(objective, data)
    numbers, _ = evaluator.run(objective, variables, data)
    scores = []
    for choice in ("ab", "cde"):
        ids = TOKENIZER.encode("two " + choice)
        read = np.r_[TOKENIZER.vocabulary.start, ids[:-1]][None].astype(np.int32)
        logs = np.asarray(jax.nn.log_softmax(objective.apply("model", variables, read)[0][0]))
        scores.append([logs[t, ids[t]] for t in range(4, len(ids))])
    best, by_length = np.argmax([sum(s) for s in scores]), np.argmax([np.mean(s) for s in scores])
    share = lambda k: pytest.approx(np.mean([row["right"] == k for row in rows]))
    assert numbers == {"choice": share(best), "choice_by_length": share(by_length), "choice_chance": 0.5}
    with pytest.raises(UserError, match="has the label '0', which is none of x, y"):
        MultipleChoice(records, ("{a}", "{b}"), ("x", "y")).check(objective, data)
    with pytest.raises(UserError, match="1 choices and 0 classes: give two choices or more"):
        MultipleChoice(records, ("{a}",))


def test_dialogues_become_contexts_and_responses(tmp_path):
    rows = [{"turns": ["hi", "hello", "bye", "see you"]},
            {"turns": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
            {"turns": [{"role": "cook", "content": "a"}]}]  # fmt: skip
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = TextRecords(
        str(path), "{context}assistant:", "{response}", turns="turns", turn="{role}: {text}\n", valid=0.0
    )
    built = recipe.build(tmp_path / "out", progress=False, workers=1)
    text = built.tokenizer.decode
    found = [(text(r["inputs"]), text(r["targets"])) for r in built.source().__getitems__(range(3))]
    assert found == [
        ("user: hi\nassistant:", "hello"),
        ("user: hi\nassistant: hello\nuser: bye\nassistant:", "see you"),
        ("user: a\nassistant:", "b"),
    ]
    assert built.meta["broken"]["first"] == [f"{path}:3 has a turn of 'cook', which is none of user, assistant"]
