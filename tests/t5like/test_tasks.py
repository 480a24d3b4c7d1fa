"""Text tasks: what a model reads, losses by loops, and records whose labels are wrong."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest

from paradigm.errors import UserError
from paradigm.objective import EVALUATION
from t5like import labels
from t5like.labels import encode_words
from t5like.models import bert, gpt, t5
from t5like.records import TextRecords
from t5like.tasks import SpanQA, TextClassification, TextToText, TokenTagging
from t5like.tasks.base import Reading, batch_of_rows, cut_longest
from t5like.tasks.evaluators import spelt
from t5like.tokenizers import ByteTokenizer, train_wordpiece

TINY = {"d_model": 16, "heads": 4, "head_dim": 4, "d_ff": 32, "layers": 1}
TOKENIZER = ByteTokenizer(extra_ids=2, specials=("cls", "sep"))
V = TOKENIZER.vocabulary
BERT, GPT, T5 = bert("tiny", **TINY), gpt("tiny", **TINY), t5("tiny", **TINY)
POSITIONS = bert("tiny", **TINY | {"style": "bert", "max_length": 16})


def ids(text):
    return TOKENIZER.encode(text)


def records(tmp_path, rows, **settings):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"input": "{text}", "label": "label", "valid": 0.0} | settings
    return TextRecords(str(path), **settings).build(tmp_path / "out", progress=False, workers=1)


# ---- what is read ----------------------------------------------------------------------------------------------------


def test_texts_as_a_model_reads_them():
    row, places = Reading(V, 10, False)(ids("ab"), ids("cde"))
    assert row["inputs"].tolist() == [V.cls, *ids("ab"), V.sep, *ids("cde"), V.sep, V.pad, V.pad]
    assert row["segments"].tolist() == [1] * 8 + [0] * 2 and row["types"].tolist() == [0] * 4 + [1] * 4 + [0] * 2
    assert places == [(1, 2), (4, 3)] and row["cut"] == 0
    roberta = dataclasses.replace(V, seps=2)  # <s> a </s></s> b </s>
    row, places = Reading(roberta, 9, False)(ids("ab"), ids("cdef"))
    assert row["inputs"].tolist() == [V.cls, *ids("ab"), V.sep, V.sep, *ids("cde"), V.sep] and row["cut"] == 1
    assert places == [(1, 2), (5, 3)] and row["types"].tolist() == [0] * 5 + [1] * 4
    row, _ = Reading(V, 10, True)(ids("abcdefghijkl"))
    assert row["inputs"].tolist() == [V.start, *ids("abcdefgh"), V.eos] and row["cut"] == 1


@pytest.mark.parametrize(
    "lengths, room, kept",
    [([10, 3], 8, [5, 3]), ([5, 5], 7, [4, 3]), ([5, 5], 10, [5, 5]), ([100, 90], 50, [25, 25]), ([9], 4, [4])],
)
def test_the_longer_text_is_cut_token_by_token(lengths, room, kept):
    slow = list(lengths)
    while sum(slow) > room:  # BERT's _truncate_seq_pair
        longer = 0 if len(slow) == 1 or slow[0] > slow[1] else 1
        slow[longer] -= 1
    assert cut_longest(lengths, room) == kept == slow


@pytest.mark.parametrize("learnt", [False, True])
def test_words_speak_through_their_first_piece(learnt):
    texts = ["the cats sat on the mat"] * 9
    tokenizer = train_wordpiece(texts, 30, extra_ids=2) if learnt else TOKENIZER
    words = ["the", "catsat", "mat"]
    tokens, starts = encode_words(tokenizer, words)
    assert tokens.tolist() == tokenizer.encode(" ".join(words)).tolist()
    first = [tokenizer.decode([tokens[i]]).strip() for i in starts]
    assert all(word.startswith(piece.removeprefix("##")) and piece for word, piece in zip(words, first))


def test_a_word_without_a_piece_has_no_place():
    tokens, starts = encode_words(TOKENIZER, ["", "ab", "", "c", ""])
    assert TOKENIZER.decode(tokens) == " ab  c " and starts.tolist() == [-1, 1, -1, 5, -1]
    for model, places in ((BERT, [2, 6]), (GPT, [5, 7])):
        row = tagged(TokenTagging(model, 3, 12).bind(V), ["", "ab", "", "c", ""], [0, 1, 0, 2, 0])
        assert [i for i, t in enumerate(row["tags"]) if t >= 0] == places and row["tags"][places].tolist() == [1, 2]
    tokens, starts = encode_words(TOKENIZER, ["ab", "", "cdefghi"])
    example = {"inputs": ids("who"), "targets": tokens, "words": starts, "label": np.int32([[0, 0]])}
    assert SpanQA(BERT, length=12).bind(V).preprocess(example, None, 0, False)["answer"].tolist() == [5, 8]
    row = question(SpanQA(BERT, length=12).bind(V), ["", ""], [])
    assert (row["words"] == -1).all()


def tagged(objective, text, tags):
    words = text.split() if isinstance(text, str) else text
    tokens, starts = encode_words(TOKENIZER, words)
    return objective.preprocess({"inputs": tokens, "words": starts, "label": np.int32(tags)}, None, 0, True)


def test_tags_stand_at_first_pieces_and_in_a_decoder_before_the_next_ones():
    row = tagged(TokenTagging(BERT, 3, 12).bind(V), "ab c def g", [2, 0, 1, 2])
    read = TOKENIZER.decode(row["inputs"][1:11])
    assert read == "ab c def g" and {read[i - 1]: int(t) for i, t in enumerate(row["tags"]) if t >= 0} == {
        "a": 2, "c": 0, "d": 1, "g": 2,
    }  # fmt: skip
    row = tagged(TokenTagging(GPT, 3, 12).bind(V), "ab c def g", [2, 0, 1, 2])
    assert [i for i, t in enumerate(row["tags"]) if t >= 0] == [3, 5, 9, 10]
    row = tagged(TokenTagging(BERT, 3, 8).bind(V), "ab c def g", [2, 0, 1, 2])
    assert row["cut"] == 1 and row["tags"].tolist() == [-1, 2, -1, -1, 0, -1, 1, -1]


def question(objective, context, answer):
    tokens, starts = encode_words(TOKENIZER, context.split() if isinstance(context, str) else context)
    example = {"inputs": ids("who"), "targets": tokens, "words": starts, "label": np.int32(answer).reshape(-1, 2)}
    return objective.preprocess(example, np.random.default_rng(0), 0, True)


def test_an_answer_is_found_where_it_stands():
    objective = SpanQA(BERT, length=24).bind(V)
    row = question(objective, "in 1912 the old ship", [[2, 3]])
    first, last = row["answer"]
    assert TOKENIZER.decode(row["inputs"][first : last + 1]).strip() == "the old"
    assert spelt("in  1912 the old, ship", row["words"], first, last) == "the old,"
    for context, answer in (("in 1912 the old ship", []), ("in 1912 the old ship is lost", [[6, 6]])):
        row = question(objective, context, answer)
        assert row["answer"].tolist() == [0, 0] and spelt(context, row["words"], 0, 0) == ""


@pytest.mark.parametrize("asked, cut", [(3, 0), (16, 0), (17, 1)])
def test_a_question_that_is_cut_is_told(asked, cut):
    tokens, starts = encode_words(TOKENIZER, ["abcde"])
    example = {"inputs": ids("q" * asked), "targets": tokens, "words": starts, "label": np.zeros((0, 2), np.int32)}
    assert SpanQA(BERT, length=24).bind(V).preprocess(example, None, 0, False)["cut"] == cut


def test_the_best_span_is_that_of_all_pairs(monkeypatch):
    objective = SpanQA(BERT, length=24, most=9).bind(V)
    batch = batch_of_rows([question(objective, "in 1912 the old ship", [[2, 3]])] * 6)
    edges = np.random.default_rng(0).normal(size=(6, 24, 2)).astype(np.float32)
    monkeypatch.setattr(SpanQA, "edges", lambda *_: edges)
    for unanswerable in (False, True):
        first, last = dataclasses.replace(objective, unanswerable=unanswerable).scores(None, batch, EVALUATION)
        for b in range(6):
            inside = np.flatnonzero(batch["words"][b] >= 0)
            pairs = {(i, j): edges[b, i, 0] + edges[b, j, 1] for i in inside for j in inside if i <= j < i + 9}
            best = max(pairs, key=pairs.get)
            if unanswerable and edges[b, 0].sum() > pairs[best]:
                best = (0, 0)
            assert (int(first[b]), int(last[b])) == best


def test_a_decoder_and_an_encoder_decoder_read_input_and_target():
    example = {"inputs": ids("abc"), "targets": ids("xy"), "byte_lengths": TOKENIZER.byte_lengths}
    row = TextToText(GPT, 8, 4, prefix=True).bind(V).preprocess(example, None, 0, True)
    read = [*ids("abc"), V.eos]
    assert row["inputs"].tolist() == [V.start, *read, *ids("xy"), *[V.pad] * 5]
    assert row["targets"].tolist() == [*read, *ids("xy"), V.eos, *[V.pad] * 5]
    assert row["weights"].tolist() == [0] * 4 + [1] * 3 + [0] * 5 and row["prefix"] == 5 and row["text_bytes"] == 2
    row = TextToText(T5, 8, 4).bind(V).preprocess(example, None, 0, True)
    assert row["encoder_inputs"].tolist() == [*read, 0, 0, 0, 0] and row["inputs"].tolist() == [V.start, *ids("xy"), 0]
    assert row["targets"].tolist() == [*ids("xy"), V.eos, 0] and row["weights"].tolist() == [1, 1, 1, 0]
    long = {**example, "inputs": ids("abcdefghij")}
    kept = {k: TextToText(T5, 8, 4, keep=k).bind(V).preprocess(long, None, 0, True) for k in ("begin", "end")}
    assert TOKENIZER.decode(kept["begin"]["encoder_inputs"]) == "abcdefg" and kept["end"]["cut"] == 1
    assert TOKENIZER.decode(kept["end"]["encoder_inputs"]) == "defghij"


# ---- losses ----------------------------------------------------------------------------------------------------------


def outcome(objective, rows):
    batch = batch_of_rows(rows)
    batch["mask"][-1] = 0.0  # a row of padding
    params = jax.jit(objective.init)(jax.random.key(0))
    loss = jax.jit(lambda p: objective.loss(p, {}, batch, EVALUATION))(params)
    scores = jax.jit(lambda p: objective.scores({"params": p}, batch, EVALUATION))(params)
    return loss, jax.tree.map(np.asarray, scores), batch


@pytest.mark.parametrize("model", [BERT, T5], ids=["encoder", "encoder-decoder"])
@pytest.mark.parametrize("kind", ["class", "classes", "number"])
def test_losses_of_classification_by_loops(kind, model):
    objective = TextClassification(model, 3, kind, length=16).bind(V)
    draw = np.random.default_rng(0)
    values = {
        "class": [np.int32(x) for x in (2, -1, 0, 1)],
        "classes": [np.float32(x) for x in ([1, 0, 1], [-1, -1, -1], [0, 0, 0], [1, 1, 1])],
        "number": [np.float32(x) for x in (0.5, np.nan, -2.0, 1.0)],
    }[kind]
    rows = [objective.preprocess({"inputs": draw.integers(3, 99, 5 + n), "label": v}, None, 0, True)
            for n, v in enumerate(values)]  # fmt: skip
    loss, scores, _ = outcome(objective, rows)
    total = 0.0
    for s, y in ((scores[0], values[0]), (scores[2], values[2])):
        if kind == "class":
            total -= s[y] - np.log(np.sum(np.exp(s)))
        elif kind == "number":
            total += (s[0] - y) ** 2
        else:
            p = 1 / (1 + np.exp(-s))
            total -= np.mean(y * np.log(p) + (1 - y) * np.log(1 - p))
    assert float(loss.value()) == pytest.approx(total / 2, rel=1e-5)
    assert loss.terms["labels"].weight == 2


def test_loss_of_tagging_by_loops():
    objective = TokenTagging(BERT, 3, 12).bind(V)
    rows = [
        tagged(objective, "ab c def g", [2, 0, 1, 2]),
        tagged(objective, "ab c", []),
        tagged(objective, "a b", [1, 1]),
    ]
    loss, scores, batch = outcome(objective, rows)
    right = [scores[0, i][t] - np.log(np.exp(scores[0, i]).sum()) for i, t in enumerate(batch["tags"][0]) if t >= 0]
    assert float(loss.value()) == pytest.approx(-np.mean(right), rel=1e-5) and loss.terms["tags"].weight == 4


def test_a_decoder_says_what_its_last_token_says():
    """Padding and what comes after it do not matter, what stands in the text does."""
    objective = TextClassification(GPT, 3, length=12).bind(V)
    short = dataclasses.replace(objective, length=8)
    params = jax.jit(objective.init)(jax.random.key(0))
    row = lambda o, text: o.preprocess({"inputs": ids(text), "label": np.int32(0)}, None, 0, True)
    score = lambda o, text: np.asarray(o.scores({"params": params}, batch_of_rows([row(o, text)]), EVALUATION))
    np.testing.assert_allclose(score(objective, "abcd"), score(short, "abcd"), rtol=1e-5)
    assert np.abs(score(objective, "abcd") - score(objective, "bbcd")).max() > 1e-4


# ---- records ---------------------------------------------------------------------------------------------------------


def test_labels_of_every_kind_are_stored_and_read(tmp_path):
    rows = [{"text": "a b", "label": ["x", "y"], "n": 1.5}, {"text": "c", "label": "y, z", "n": "2"}]
    built = records(tmp_path, rows, label_kind="classes")
    assert built.classes == ("x", "y", "z")
    assert [built.source()[i]["label"].tolist() for i in range(2)] == [[1, 1, 0], [0, 1, 1]]
    (tmp_path / "n").mkdir()
    built = records(tmp_path / "n", rows, label_kind="number", label="n")
    assert [float(built.source()[i]["label"]) for i in range(2)] == [1.5, 2.0] and built.classes == ()
    (tmp_path / "t").mkdir()
    rows = [{"text": ["New", "York"], "label": ["B", "I"]}, {"text": "a b  c", "label": "O O B"}]
    built = records(tmp_path / "t", rows, label_kind="tags")
    assert built.classes == ("B", "I", "O") and built.source()[1]["label"].tolist() == [2, 2, 0]
    assert built.source()[0]["words"].tolist() == [0, 4]


def test_spans_of_characters_are_tags_of_the_words_that_they_touch(tmp_path):
    text = "Ann flew to  New York."
    spans = [[0, 3, "person"], [13, 21, "place"]]
    rows = [
        {"text": text, "spans": spans},
        {"text": text, "spans": [{"start": s, "end": e, "label": name} for s, e, name in spans[::-1]]},
        {"text": text, "spans": [{"start": s, "end": e, "labels": [name]} for s, e, name in spans]},
        {"text": text, "spans": []},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    built = TextRecords(str(tmp_path / "a.jsonl"), label_kind="tags", valid=0.0).build(tmp_path / "out", progress=False)
    tags = [[built.classes[k] for k in built.source()[i]["label"]] for i in range(4)]
    assert tags == [["B-person", "O", "O", "B-place", "I-place"]] * 3 + [["O"] * 5]


@pytest.mark.parametrize("spans, said", [
    ([[0, 3]], "has [0, 3] in 's', which is no span: [start, end, name] is one"),
    ([[0, 3, ""]], "which is no span"),
    ([{"start": 0, "stop": 3, "label": "x"}], "which is no span"),
    ([[3, 30, "x"]], "has the span 3 to 30 in 's', and its text of 9 has no word there"),
    ([[3, 4, "x"]], "has no word there"),
    ([[0, 3, "x"], [1, 2, "y"]], "has the span 'n' in 's' on a word that another has"),
    ([[7, 8, "x"]], "has the span '東' in 's' inside of what stands between spaces"),
])  # fmt: skip
def test_spans_that_cannot_be(spans, said):
    record = {"text": "Ann is 東京", "s": spans, "words": ["Ann", "is"]}
    with pytest.raises(ValueError, match=re.escape(said)):
        labels.read("tags", record, "s", ["Ann", "is", "東京"], "{text}")
    for template in ("{words}", "a {text}"):
        with pytest.raises(ValueError, match="spans in 's', which count characters: set input"):
            labels.read("tags", record, "s", ["Ann", "is"], template)


def test_comments_before_the_first_sentence_name_no_columns(tmp_path):
    """Universal Dependencies' files begin with them; their columns have names, and a word of two is left out."""
    words = ["1-2\tdon't", "1\tdo", "2\tn't", "2.1\tgo"]
    lines = ["# sent_id = 1", "# text = don't", *(f"{w}\t_\tX{k}" + "\t_" * 6 for k, w in enumerate(words)), "", ""]
    (tmp_path / "a.conllu").write_text("\n".join(lines))
    (tmp_path / "a.conll").write_text("# id 5\nAnn NNP B-NP B-PER\nsat VBD B-VP O\n\n# 6\nhe PRP B-NP O\n")
    (tmp_path / "b.conll").write_text("# O\nAnn B-PER\n")
    read = lambda name, **how: TextRecords(str(tmp_path / name), label_kind="tags", valid=0.0, **how).build(
        tmp_path / f"{name}.out", workers=1
    )
    fields = lambda data: [data.source()[k]["fields"] for k in range(len(data.source()))]
    found = read("a.conllu", input="{form}", label="upos")
    assert found.classes == ("X1", "X2") and fields(found)[0]["form"] == ["do", "n't"]
    found = read("a.conll")
    assert [row["tokens"] for row in fields(found)] == [["Ann", "sat"], ["he"]] and found.meta["broken"]["records"] == 0
    assert fields(read("b.conll")) == [{"tokens": ["#", "Ann"], "tags": ["O", "B-PER"]}]  # of two columns: a token


def test_a_conll_file_with_one_of_each_oddity(tmp_path):
    path = tmp_path / "a.conll"
    path.write_text("-DOCSTART- -X- O\n\nEU NNP B-org\nrejects VBZ O\n\n\nbroken line\nx y O\n\nlast NN O")
    recipe = TextRecords(str(path), "{tokens}", label="tags", label_kind="tags", valid=0.0)
    built = recipe.build(tmp_path / "out", progress=False, workers=1)
    found = [built.source()[i]["fields"] for i in range(2)]
    assert found[0] == {"tokens": ["EU", "rejects"], "column2": ["NNP", "VBZ"], "tags": ["B-org", "O"]}
    assert found[1]["tokens"] == ["last"]
    assert built.meta["broken"] == {"records": 1, "first": [f"{path}:7 has 2 columns in line 7 and not 3"]}


def test_squads_form_and_lists_of_rows_by_split(tmp_path):
    answers = [{"text": "old ship", "answer_start": 4}]
    paragraph = {"context": "the old ship.", "qas": [{"id": "1", "question": "what?", "answers": answers}]}
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"version": "1.1", "data": [{"title": "t", "paragraphs": [paragraph]}]}))
    recipe = TextRecords(str(path), "{question}", "{context}", "answers", "answer", valid=0.0)
    built = recipe.build(tmp_path / "out", progress=False, workers=1)
    assert built.source()[0]["label"].tolist() == [[1, 2]] and built.source()[0]["fields"]["title"] == "t"
    path = tmp_path / "b.json"
    path.write_text(json.dumps({"val": [["a", "x"]], "train": [["b", "y"], ["c", "x"]]}))
    recipe = TextRecords(str(path), "{text}", label="label", split="split")
    built = recipe.build(tmp_path / "out2", progress=False, workers=1)
    assert (len(built.source()), len(built.source("valid")), built.classes) == (2, 1, ("x", "y"))


def test_fractions_are_balanced_nested_and_of_the_seed(tmp_path):
    rows = [{"text": f"{i}", "label": "abbbbbbbbb"[i % 10] if i else "rare"} for i in range(400)]
    built = records(tmp_path, rows)
    chosen = {}
    for share, seed in ((0.05, 0), (0.5, 0), (0.05, 1)):
        recipe = TextRecords(str(tmp_path / "out"), fraction=share, fraction_seed=seed)
        source = recipe.build(tmp_path / "unused").source()
        found = [source[i] for i in range(len(source))]
        chosen[share, seed] = {r["fields"]["text"] for r in found}
        counts = np.bincount([r["label"] for r in found])
        assert counts.tolist() == [max(1, round(share * n)) for n in (39, 360, 1)]
        assert len({source.fingerprint, built.source().fingerprint}) == 2
    assert chosen[0.05, 0] < chosen[0.5, 0] and chosen[0.05, 0] != chosen[0.05, 1]
    assert len(TextRecords(str(tmp_path / "out"), fraction=1.0).build("unused").source()) == 400


@pytest.mark.parametrize(
    "row, settings, text",
    [
        ({"text": "a b", "label": ["O"]}, {"label_kind": "tags"}, r"a.jsonl:1 has 1 tags in 'label' for 2 words"),
        ({"text": "a", "label": "high"}, {"label_kind": "number"}, r"has 'high' in 'label', which is no number"),
        (
            {"text": "q", "c": "the ship", "label": {"text": ["boat"], "answer_start": [4]}},
            {"label_kind": "answer", "target": "{c}"},
            r"has the answer 'boat' in 'label', which is not in its context at 4",
        ),
        (
            {"text": "q", "c": "the ship", "label": "ship"},
            {"label_kind": "answer", "target": "{c}"},
            r"has no answers in 'label': give objects with text and answer_start",
        ),
        ({"text": "a", "label": "x"}, {"label": "lable"}, r"has no field 'lable', only text, label"),
        ({"text": "a", "label": "x"}, {"label_kind": "clas"}, r"unknown label_kind 'clas': did you mean 'class'\?"),
        ({"text": "a", "label": "x"}, {"fraction": 0}, r"fraction=0: a share of the training records lies in \(0, 1\]"),
        ({"text": "a", "label": "x"}, {"label_kind": "answer"}, r"target is not set: answers stand in it"),
    ],
)
def test_wrong_labels_are_told(tmp_path, row, settings, text):
    with pytest.raises(UserError, match=text):
        records(tmp_path, [row], **settings)


def test_a_label_of_the_test_split_alone_is_named(tmp_path):
    rows = [{"text": f"{i}", "label": "x", "s": "train"} for i in range(3)] + [
        {"text": "t", "label": "new", "s": "test"}
    ]
    with pytest.raises(
        UserError, match=r"its test records have 1 label in 'label' that no training record has \('new'\)"
    ):
        records(tmp_path, rows, split="s")


# ---- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make, text",
    [
        (lambda: SpanQA(GPT), "SpanQA works on Encoder or EncoderDecoder, and the model is a Decoder"),
        (lambda: TextToText(BERT), "TextToText works on EncoderDecoder or Decoder, and the model is a Encoder"),
        (lambda: TextClassification(GPT, 3, pool="mean"), "pool='mean': of a Decoder it is last"),
        (lambda: TextClassification(BERT).modules(), "TextClassification.classes is not set: the data of a run say it"),
        (
            lambda: TextClassification(BERT).bind_classes(1).modules(),
            "classes=1: there is something to tell apart from 2",
        ),
        (lambda: TextClassification(BERT, 3, kind="clas"), "unknown TextClassification.kind 'clas'"),
        (
            lambda: TextClassification(BERT, 3, pool="first").bind(ByteTokenizer().vocabulary),
            "cls, which the tokenizer has not: set",
        ),
        (lambda: TokenTagging(BERT).modules(), "TokenTagging.classes is not set"),
        (lambda: TokenTagging(BERT, 1), "TokenTagging.classes=1: there is something to tell apart from 2"),
        (lambda: TokenTagging(POSITIONS, 3, 32), "length 32 but the model has 16 learned positions"),
        (lambda: TextToText(T5, prefix=True), "prefix is for a Decoder"),
        (lambda: TextToText(T5, keep="middle"), "keep='middle': of too long an input 'begin' or 'end' is kept"),
        (lambda: TextClassification(BERT, 3, length=4), "length=4: texts need 8 tokens or more"),
    ],
)
def test_mistakes(make, text):
    with pytest.raises(UserError, match=text):
        make()


def test_data_that_a_task_cannot_learn_from(tmp_path):
    built = records(tmp_path, [{"text": "a longer text", "label": k} for k in "xyz"])
    objective = TextClassification(BERT, 3, length=12).bind(V)
    [said] = objective.check_data(built)
    assert said.startswith("3 of 3 train records are longer than the 10 tokens that are read of them")
    assert not dataclasses.replace(objective, length=15).check_data(built)
    built.meta["settings"]["turn"] = "<X>{role}: {text}"
    [said] = dataclasses.replace(objective, length=15).check_data(built)
    assert said.startswith("TextRecords.turn spells <X>, of which the tokenizer has an id: in a record it is text")
    for wrong, text in (
        (dataclasses.replace(objective, classes=2), "classes=2 and the training records have 3 labels: set it to that"),
        (dataclasses.replace(objective, kind="classes"), "labels of kind 'classes' and the records' are 'class'"),
        (TextToText(T5).bind(V), "needs a target: set TextRecords.target"),
    ):
        with pytest.raises(UserError, match=text):
            wrong.check_data(built)
    with pytest.raises(UserError, match="reads records with fields: set Experiment.data = @TextRecords"):
        objective.check_data(object())
    (tmp_path / "u").mkdir()
    with pytest.raises(UserError, match="needs labels: set TextRecords.label"):
        objective.check_data(records(tmp_path / "u", [{"text": "a"}], label=""))
