"""What is written and chosen: scores as the libraries give them, likelihoods by a loop, dialogues as examples."""

import json
import sys
import types

import jax
import numpy as np
import pytest

from paradigm.errors import UserError
from t5like.bart import bart
from t5like.decode import likelihood
from t5like.models import gpt, t5
from t5like.objectives import UL2, Bart, MaskedNextToken, NextToken, Pegasus, PrefixLM, SpanCorruption
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


@pytest.mark.parametrize("there", [None, "an empty module"])
@pytest.mark.parametrize("score, library", [("bleu", "sacrebleu"), ("rouge1", "rouge_score")])
def test_a_score_whose_library_is_missing_is_refused(score, library, there, monkeypatch):
    monkeypatch.delitem(sys.modules, "rouge_score.rouge_scorer", raising=False)
    monkeypatch.setitem(sys.modules, library, there and types.ModuleType(library))
    with pytest.raises(UserError, match=rf"{score} needs the package {library.replace('_', '-')}: pip install"):
        TextScores((score,)).check(TextToText(GPT), None)
    with pytest.raises(UserError, match="unknown TextScores.scores 'blue': did you mean 'bleu'"):
        TextScores(("blue",))


@pytest.mark.parametrize(
    "score, text, how",
    [("rougeL", "Привет, мир", "reads the letters a-z alone, and 100 %"),
     ("rouge1", "東京は大きい", "reads the letters a-z alone, and 100 %"),
     ("bleu", "東京は大きい", "takes what stands between spaces for a word, and 100 %")],
)  # fmt: skip
def test_a_score_that_cannot_read_the_texts_is_refused(score, text, how):
    pytest.importorskip("sacrebleu")
    pytest.importorskip("rouge_score")
    data = lambda *texts: types.SimpleNamespace(
        held_out=lambda count, phase: [{"fields": {"a": t}, "settings": {"target": "{a}"}} for t in texts]
    )
    with pytest.raises(UserError, match=f"{score} {how} of the letters of the true texts are others: set"):
        TextScores((score,)).check(TextToText(GPT), data(text))
    TextScores((score, "exact")).check(TextToText(GPT), data("ça va bien, mon ami", "viele Grüße"))
    TextScores(("exact", "chrf")).check(TextToText(GPT), data(text))
    with pytest.raises(UserError, match="TextScores.references='b': a held-out record has no field 'b', only a"):
        TextScores(("exact",), references="b").check(TextToText(GPT), data(text))
    with pytest.raises(UserError, match="TextScores.references='a': a held-out record has an empty list there"):
        TextScores(("exact",), references="a").check(TextToText(GPT), data([]))


def test_choices_by_likelihood(tmp_path):
    rows = [{"q": "two", "a": "de", "b": "abc", "right": k % 2} for k in range(3)]
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
    for choice in ("de", "abc"):
        ids = TOKENIZER.encode("two " + choice)
        read = np.r_[TOKENIZER.vocabulary.start, ids[:-1]][None].astype(np.int32)
        logs = np.asarray(jax.nn.log_softmax(objective.apply("model", variables, read)[0][0]))
        scores.append([logs[t, ids[t]] for t in range(4, len(ids))])
    best, by_length = np.argmax([sum(s) for s in scores]), np.argmax([np.mean(s) for s in scores])
    assert best != by_length
    share = lambda k: pytest.approx(np.mean([row["right"] == k for row in rows]))
    assert numbers == {"choice": share(best), "choice_by_length": share(by_length), "choice_chance": 0.5}
    with pytest.raises(UserError, match="has the label '0', which is none of x, y"):
        MultipleChoice(records, ("{a}", "{b}"), ("x", "y")).check(objective, data)
    with pytest.raises(UserError, match="1 choices and 0 classes: give two choices or more"):
        MultipleChoice(records, ("{a}",))


class Spaced(ByteTokenizer):
    """A space before every text, beside those that it has, as Llama's."""

    def _encode_texts(self, texts):
        return super()._encode_texts([f" {text}" if text else "" for text in texts])


def test_a_continuation_is_read_as_with_what_is_before_it(tmp_path, monkeypatch):
    tokenizer, asked = Spaced(), []
    totals = lambda objective, variables, rows, v: asked.extend(rows) or [likelihood.Score(0, 1, True)]
    for module in ("decode.likelihood", "tasks.choice"):
        monkeypatch.setattr(f"t5like.{module}.totals", totals)
    objective = NextToken(GPT, 16).bind(tokenizer.vocabulary)
    likelihood.score(objective, {}, tokenizer, ["ab", ""], [" c", "d"])
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"q": q, "right": "y"}) + "\n" for q in ("ab", "cd")))
    evaluator = MultipleChoice(TextRecords(str(path), "{q}", label="right"), (" n", " y"), ("n", "y"), shots=1)
    with pytest.raises(ValueError, match="reshape"):  # there are no scores
        evaluator.run(objective, {}, types.SimpleNamespace(tokenizer=tokenizer))
    spelt = [tokenizer.decode([*row.read[1:], row.targets[-1]]) for row in asked]
    assert spelt[:2] == [" ab c", " d"] and spelt[2:4] == [" cd y\n\nab n", " cd y\n\nab y"]


T5 = t5("tiny", None, layers=1, d_model=16, heads=2, d_ff=32)
LEARNED = bart("tiny", layers=1, d_model=16, heads=2, d_ff=32, max_length=40)
V = ByteTokenizer(extra_ids=4, specials=("mask",)).vocabulary
X, S, E, M = V.sentinels[0], V.start, V.end, V.mask


@pytest.mark.parametrize(
    "objective, encoder, decoder, visible",
    [
        (NextToken(GPT, 16), [], [S, 7, 8], 0),
        (PrefixLM(GPT, 16), [], [S, 7, 8], 3),
        (MaskedNextToken(GPT, 16), [], [S, 7, 8], 0),
        (SpanCorruption(T5, 32), [7, 8, X, E], [S, X], 0),
        (UL2(T5, 32, (("r", None, 3.0, 0.15, 1.0),)), [7, 8, X, E], [S, X], 0),
        (UL2(GPT, 32, (("r", None, 3.0, 0.15, 1.0),)), [], [S, 7, 8, X, X], 4),
        (Bart(LEARNED, 32), [7, 8, M, E], [S, 7, 8], 0),
        (Pegasus(T5, 32, 16), [7, 8, M, E], [S], 0),
        (TextToText(T5, 16, 8), [7, 8, E], [S], 0),
        (TextToText(GPT, 16, 8, prefix=True), [], [S, 7, 8, E], 4),
    ],
)
def test_what_goes_on_from_a_text_is_asked_as_in_training(objective, encoder, decoder, visible):
    """A text [9, 10] behind [7, 8]: what the encoder reads, and the decoder before the first of them."""
    row = objective.bind(V).continued([7, 8], [9, 10])
    assert [*row.inputs] == encoder and [*row.read] == [*decoder, 9] and row.visible == visible
    assert [*row.targets] == [9, 10] and [*row.places] == [len(decoder) - 1, len(decoder)]


def test_an_encoder_decoder_chooses_and_is_shown_examples(tmp_path):
    """Against a loop over the choices, each behind what the encoder reads of the shots and the question."""
    rows = [{"q": f"q{k}=", "right": "ab" if k % 2 else "cd"} for k in range(4)]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    objective = SpanCorruption(T5, 32).bind(TOKENIZER.vocabulary)
    variables = {"params": jax.jit(objective.init)(jax.random.key(0))}
    records, data = TextRecords(str(path), "{q}", label="right"), types.SimpleNamespace(tokenizer=TOKENIZER)
    evaluator = MultipleChoice(records, ("ab", "cd"), length=32, shots=2, between=";")
    evaluator.check(objective, data)
    numbers, _ = evaluator.run(objective, variables, data)
    v, found = TOKENIZER.vocabulary, []
    logits_of = jax.jit(lambda *read: objective.apply("model", variables, *read))
    for k, row in enumerate(rows):
        read = [*TOKENIZER.encode("".join(evaluator.examples(k)) + row["q"]), v.sentinels[0], v.end]
        sums = []
        for choice in ("ab", "cd"):
            ids = [*TOKENIZER.encode(choice)]
            logits = logits_of(np.int32([read]), np.int32([[v.start, v.sentinels[0], *ids]]))
            logs = np.asarray(jax.nn.log_softmax(logits[0][0]))[1:]
            sums.append(sum(logs[t, i] for t, i in enumerate(ids)))
        found.append(("ab", "cd")[int(np.argmax(sums))] == row["right"])
    assert numbers["choice"] == np.mean(found) and numbers["choice_shots"] == 2.0


def test_choices_that_a_model_has_no_room_for(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"q": "q" * 60, "right": "a", "none": ""}))
    records = TextRecords(str(path), "{q}", label="right")
    data = types.SimpleNamespace(tokenizer=ByteTokenizer(extra_ids=4, specials=("mask",)))
    objective = Bart(LEARNED, 32).bind(V)
    with pytest.raises(UserError, match="MultipleChoice.length=39: .* take 40 positions, and the model has 38 learned"):
        MultipleChoice(records, ("a", "b"), length=39).check(objective, data)
    MultipleChoice(records, ("a", "b"), length=37).check(objective, data)
    with pytest.raises(UserError, match="MultipleChoice: a choice after 'q+' is empty"):
        MultipleChoice(records, ("a", "{none}"), ("a", "b")).check(objective, data)


def test_labels_are_read_alike_in_all_records(tmp_path):
    """As of MMLU, whose answer is a place and whose choices may be numbers."""

    def asked(*rows, **how):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.jsonl"
        path.write_text("".join(json.dumps({"q": "?", "c": c, "right": right}) + "\n" for c, right in rows))
        records = TextRecords(str(path), **{"input": "{q}", "label": "right"})
        return [answer for *_, answer in MultipleChoice(records, ("{c.0}", "{c.1}"), **how).questions()]

    numbers, words = ["1", "0"], ["x", "y"]
    assert asked((numbers, 1), (words, 0)) == [1, 0]  # the first one's label is a choice of it as well
    assert asked((numbers, "1"), (["7", "8"], "8")) == [0, 1]
    assert asked((["0", "1"], 1)) == [1] == asked((numbers, 1), classes=("0", "1"))
    with pytest.raises(UserError, match=r"may be choices or their numbers: set classes to \('0', '1'\) if they are"):
        asked((numbers, 1))
    with pytest.raises(UserError, match="has the label '5', which is none of 0, 1, x, y"):
        asked((words, 1), (words, 5))
    with pytest.raises(UserError, match="the TextRecords of .* has no input: set it"):
        MultipleChoice(TextRecords(str(tmp_path / "0.jsonl"), label="right"), ("{c.0}", "{c.1}")).questions()


def test_shots_stand_before_what_is_asked(tmp_path):
    """The same as asking with the examples written out."""
    rows = [{"q": f"q{k}", "a": "ab", "b": "cde", "right": "ab" if k % 3 else "cde"} for k in range(6)]
    write = lambda name, rows: (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    write("asked.jsonl", rows)
    write("shown.jsonl", [{**row, "q": row["q"].upper()} for row in rows[:4]])
    recipe = lambda name, template: TextRecords(str(tmp_path / name), template, label="right")
    objective = NextToken(GPT, 64).bind(TOKENIZER.vocabulary)
    variables = {"params": jax.jit(objective.init)(jax.random.key(0))}
    data, choices = types.SimpleNamespace(tokenizer=TOKENIZER), ("{a}", "{b}")
    of = lambda shots, shown=None, **how: MultipleChoice(
        recipe("asked.jsonl", "{q}="), choices, shots=shots, shown=shown, between=";", **{"length": 64, **how}
    )
    for shown in (None, recipe("shown.jsonl", "{q}=")):
        evaluator = of(3, shown)
        before = [evaluator.examples(k) for k in range(6)]
        answers = {f"{row['q']}={row['right']};" for row in rows}
        for k, texts in enumerate(before):
            assert len(set(texts)) == 3 and f"q{k}={rows[k]['right']};" not in texts
            assert {text.lower() for text in texts} <= answers and texts[0][0].isupper() == (shown is not None)
        assert len(set(map(tuple, before))) > 3 and before == [of(3, shown).examples(k) for k in range(6)]
        name = f"whole {shown is None}.jsonl"
        write(name, [{**row, "q": "".join(texts) + row["q"]} for texts, row in zip(before, rows)])
        found, _ = evaluator.run(objective, variables, data)
        whole, _ = MultipleChoice(recipe(name, "{q}="), choices, length=64).run(objective, variables, data)
        assert found == whole | {"choice_shots": 3.0}
    fits = len("q0=cde;q0=cde;q0=cde")
    assert of(3, length=fits).run(objective, variables, data)[0]["choice_shots"] == 2.0
    with pytest.raises(UserError, match="MultipleChoice.shots=6, and there are 5 records to show: ask for fewer"):
        of(6).check(objective, data)
    with pytest.raises(UserError, match="MultipleChoice.shots=0: how many records stand before"):
        of(0, recipe("shown.jsonl", "{q}="))


def test_dialogues_become_contexts_and_responses(tmp_path):
    rows = [{"turns": ["hi", "hello", "bye", "see you"]},
            {"turns": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
            {"turns": [{"role": "cook", "content": "a"}]},
            {"turns": ["hi"]},
            {"turns": [{"from": "user", "value": "c"}, {"from": "assistant", "value": "d"}]}]  # fmt: skip
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = TextRecords(
        str(path), "{context}assistant:", "{response}", turns="turns", turn="{role}: {text}\n", valid=0.0
    )
    built = recipe.build(tmp_path / "out", progress=False, workers=1)
    text = built.tokenizer.decode
    found = [(text(r["inputs"]), text(r["targets"])) for r in built.source().__getitems__(range(4))]
    assert found == [
        ("user: hi\nassistant:", "hello"),
        ("user: hi\nassistant: hello\nuser: bye\nassistant:", "see you"),
        ("user: a\nassistant:", "b"),
        ("user: c\nassistant:", "d"),
    ]
    assert built.meta["broken"]["first"] == [
        f"{path}:3 has a turn of 'cook', which is none of user, assistant: set TextRecords.roles to all that speak, "
        "the last of them who replies",
        f"{path}:4 has no turn of 'assistant' behind another: nobody replies",
    ]
