"""SimCSE by a loop; log-probabilities, minimal pairs and probes on inputs whose answer is known."""

import dataclasses
import gzip
import json
import types
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradigm.errors import UserError
from paradigm.objective import Context
from paradigm.schedule import FINAL
from t5like.bart import bart
from t5like.decode.likelihood import log_probs
from t5like.likelihood import MinimalPairs, PseudoPerplexity
from t5like.models import bert, gpt, t5
from t5like.objectives import UL2, Bart, MaskedLM, MaskedNextToken, NextToken, Pegasus, SimCSE, SpanCorruption
from t5like.probes import TextProbes
from t5like.tokenizers import ByteTokenizer
from tests.t5like.test_masked_lm import FRAMED, VOCAB, example
from tests.vision.tiny import encoder, views
from vision.objectives import SimCLR

TINY = {"d_model": 16, "heads": 2, "d_ff": 24, "layers": 2, "init_std": 0.3}
MODEL = bert("tiny", VOCAB, head=False, **TINY)
OBJECTIVE = SimCSE(MODEL, length=16, raw=24).bind(FRAMED)
BYTES = ByteTokenizer(specials=("mask", "cls", "sep"))
ENCODER = MaskedLM(bert("tiny", **TINY), length=64).bind(BYTES.vocabulary)
DECODER = NextToken(gpt("tiny", **TINY), length=64).bind(BYTES.vocabulary)
SHIFTED = MaskedNextToken(gpt("tiny", **TINY), length=64).bind(BYTES.vocabulary)


def make_batch(objective):
    rows = [objective.preprocess(example(24, i), np.random.default_rng(i), 0, True) for i in range(5)]
    batch = {name: jnp.stack([row[name] for row in rows]) for name in rows[0]}
    return {**batch, "index": jnp.array([[0, i] for i in range(5)], jnp.uint32), "mask": jnp.array([1.0, 1, 1, 1, 0])}


def test_a_text_is_read_twice_and_framed():
    batch = make_batch(OBJECTIVE)
    np.testing.assert_array_equal(batch["inputs"][:, 0], batch["inputs"][:, 1])
    for row in np.asarray(batch["inputs"][:, 0]):
        have = int((row > 0).sum())
        assert row[0] == FRAMED.cls and row[have - 1] == FRAMED.sep and have == 14  # the first document's twelve


def test_spans_are_of_one_document_and_meet():
    spans = dataclasses.replace(OBJECTIVE, shortest=2, length=10)
    for seed in range(30):
        row = spans.preprocess(example(24, seed), np.random.default_rng(seed), 0, True)
        text = example(24, seed)["tokens"][:12]
        where = []
        for ids, segments in zip(row["inputs"], row["segments"]):
            part = ids[segments > 0][1:-1]
            assert 2 <= len(part) <= 8
            starts = [s for s in range(13 - len(part)) if (text[s : s + len(part)] == part).all()]
            assert starts, "a span of no document"
            where.append((starts, len(part)))
        (a, n), (b, m) = where
        assert any(x <= y + m and y <= x + n for x in a for y in b), "a positive far from its anchor"


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_simcse_by_a_loop(pool):
    objective = dataclasses.replace(OBJECTIVE, pool=pool)
    batch, ctx = make_batch(objective), Context(jnp.int32(0), seed=3)
    params = jax.jit(objective.init)(jax.random.key(0))

    def slow(params):
        h = []
        for n in range(2):
            keys = ctx.keys(f"reading{n}/dropout", batch["index"])
            args = batch["inputs"][:, n], keys, batch["segments"][:, n]
            x, _ = MODEL.apply({"params": params["model"]}, *args, method="hidden")
            rows = []
            for b in range(4):
                have = int(batch["segments"][b, n].sum())
                row = x[b, 0] if pool == "cls" else x[b, :have].mean(0)
                if pool == "cls":
                    row = jnp.tanh(row @ params["pooler"]["dense"]["kernel"] + params["pooler"]["dense"]["bias"])
                rows.append(row / jnp.linalg.norm(row))
            h.append(rows)
        total = 0.0
        for i in range(4):
            scores = jnp.stack([h[0][i] @ h[1][j] / 0.05 for j in range(4)])
            total = total - jax.nn.log_softmax(scores)[i]
        return total / 4

    value, grads = jax.jit(jax.value_and_grad(lambda p: objective.loss(p, {}, batch, ctx).value()))(params)
    expected, slopes = jax.value_and_grad(slow)(params)
    np.testing.assert_allclose(value, expected, rtol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4, rtol=5e-3), grads, slopes)
    assert value > 0.01  # dropout tells the readings apart


def test_evaluation_tells_readings_of_one_text_apart_by_dropout_too():
    params, ctx = jax.jit(OBJECTIVE.init)(jax.random.key(0)), Context(jnp.int32(FINAL), train=False)
    for objective, twice in ((OBJECTIVE, True), (dataclasses.replace(OBJECTIVE, shortest=2), False)):
        read = jax.jit(lambda inputs, params=params, one=objective: one.encode(params, {}, inputs, ctx)[0])
        batch = make_batch(OBJECTIVE)  # of one text twice
        found = read(batch)
        assert (found == read(batch)).all() and bool((found[:, 0] != found[:, 1]).any()) == twice


@pytest.mark.parametrize(
    "settings, text",
    [
        ({"model": MODEL.clone(dropout=0.0)}, "under dropout, and the model has none"),
        ({"model": bert("tiny", VOCAB)}, "set its head=False"),
        ({"model": gpt("tiny", VOCAB)}, "simcse trains an Encoder"),
        ({"pool": "max"}, "SimCSE.pool"),
        ({"temperature": 0.0}, "temperature=0 must be positive"),
        ({"shortest": 15}, "texts too short"),
        ({"length": 3}, "texts too short"),
    ],
)
def test_bad_settings(settings, text):
    with pytest.raises(UserError, match=text):
        dataclasses.replace(OBJECTIVE, **settings)


# ---- Likelihood ------------------------------------------------------------------------------------------------------

SENTENCES = [list(b"a cat".ljust(3)), list(b"the dogs bark"), [70] * 30]


@pytest.mark.parametrize("objective", [ENCODER, DECODER, SHIFTED], ids=["masked", "causal", "masked_next"])
def test_log_probs_by_a_loop(objective):
    params = jax.jit(objective.init)(jax.random.key(0))
    v, model = BYTES.vocabulary, objective.model
    found = log_probs(objective, {"params": params}, SENTENCES)
    apply = jax.jit(lambda *a: model.apply({"params": params["model"]}, *a)[0])
    for ids, scores in zip(SENTENCES[:2], found):
        assert len(scores) == len(ids)
        for t, token in enumerate(ids):
            if objective is SHIFTED:
                read = [v.start, *ids[:-1]]
                if t + 1 < len(ids):
                    read[t + 1] = v.mask
                logits = apply(jnp.array([read]), None, None, None, jnp.array([len(ids)]))[0, t, : v.size]
            elif objective is ENCODER:
                read = [v.cls, *ids, v.sep]
                read[t + 1] = v.mask
                logits = apply(jnp.array([read]))[0, t + 1, : v.size]
            else:
                logits = apply(jnp.array([[v.start, *ids[:-1]]]))[0, t, : v.size]
            np.testing.assert_allclose(scores[t], jax.nn.log_softmax(logits)[token], atol=1e-4)


MORE = ByteTokenizer(specials=("mask", "bos", "nlu", "nlg", "s2s")).vocabulary
NLU, X, END = MORE.nlu, MORE.sentinels[0], MORE.end
T5 = t5("tiny", **TINY)
CAT = list(b"a cat")
# objective -> what encoder and decoder read to predict the third token of CAT, and where
READ = {
    "spans": (SpanCorruption(T5, 32), [97, 32, X, 97, 116, END], [MORE.start, X], 1),
    "bart": (Bart(bart("tiny", **TINY), 32), [MORE.bos, 97, 32, MORE.mask, 97, 116, END], [END, MORE.bos, 97, 32], 3),
    "pegasus": (Pegasus(T5, 32, 16), [MORE.mask, END], [MORE.start, 97, 32], 2),
    "ul2": (UL2(T5, 32), [NLU, 97, 32, X, 97, 116, END], [MORE.start, X], 1),
    "ul2_decoder": (UL2(DECODER.model, 32), None, [MORE.start, NLU, 97, 32, X, 97, 116, X], 7),
}


@pytest.mark.parametrize("name", READ)
def test_how_each_denoiser_is_asked_for_a_sentence(name):
    objective, inputs, read, place = READ[name]
    objective = objective.bind(MORE)
    params = jax.jit(objective.init)(jax.random.key(0))
    found = log_probs(objective, {"params": params}, [CAT, [5]])
    assert [len(x) for x in found] == [5, 1]
    apply, row = jax.jit(objective.model.apply), jnp.array([read])
    if inputs is None:
        logits = apply({"params": params["model"]}, row, prefix=jnp.array([place]))[0]
    else:
        logits = apply({"params": params["model"]}, jnp.array([inputs]), row)[0]
    logs = jax.nn.log_softmax(logits[0, place, : MORE.size])
    np.testing.assert_allclose(found[0][2], logs[CAT[2]], atol=1e-4)


def test_sentences_that_cannot_be_asked():
    ends = UL2(T5, 32, (("s", "s2s", None, 0.25, 1.0),)).bind(MORE)
    with pytest.raises(UserError, match="none of its denoisers hides spans: add one"):
        log_probs(ends, {}, [CAT])
    short = SpanCorruption(bart("tiny", max_length=40, **TINY), 32).bind(MORE)
    with pytest.raises(UserError, match="a sentence of 60 tokens, and the model has 3. learned positions"):
        log_probs(short, {}, [CAT * 12])


class KnowsLetters:
    """Data whose tokenizer is BYTES."""

    tokenizer = BYTES

    def records(self, split):
        rows = [
            {"tokens": np.arange(40) % 26 + 100, "segments": np.repeat([1, 2], 20), "byte_lengths": BYTES.byte_lengths}
        ]
        return types.SimpleNamespace(__getitems__=lambda at: [rows[0] for _ in at], __len__=lambda: 3)


def likes_a(objective):
    """Parameters by which the letter a is likelier than any other, whatever is read."""
    params = jax.jit(objective.init)(jax.random.key(0))
    if objective is ENCODER:
        params["model"]["head"]["bias"] = params["model"]["head"]["bias"].at[ord("a") + 3].set(100.0)
    else:
        kernel = params["model"]["logits"]["kernel"]
        params["model"]["decoder"]["norm"]["scale"] = jnp.zeros(16).at[0].set(1.0)
        params["model"]["logits"]["kernel"] = jnp.zeros_like(kernel)
    return params


def test_minimal_pairs(tmp_path):
    path = tmp_path / "letters.jsonl"
    pairs = [("aaaa", "aabb"), ("aaab", "abbb"), ("abbb", "aaaa")]
    path.write_text("".join(json.dumps({"sentence_good": g, "sentence_bad": b}) + "\n" for g, b in pairs))
    run = lambda objective, params, **how: MinimalPairs(str(path), **how).run(
        objective, {"params": params}, KnowsLetters()
    )[0]
    assert run(ENCODER, likes_a(ENCODER)) == {"minimal_pairs": pytest.approx(2 / 3)}
    assert set(run(ENCODER, likes_a(ENCODER), pairs=2, name="n")) == {"n"}
    assert run(DECODER, likes_a(DECODER)) == {"minimal_pairs": 0.0}  # it knows nothing: no pair is won by a tie
    (tmp_path / "more.jsonl").write_text(json.dumps({"sentence_good": "a", "sentence_bad": "b"}))
    found = MinimalPairs(str(tmp_path)).run(ENCODER, {"params": likes_a(ENCODER)}, KnowsLetters())[0]
    assert found["minimal_pairs/more"] == 1.0 and found["minimal_pairs"] == pytest.approx(5 / 6)


def test_minimal_pairs_are_a_fair_part_of_all_files(tmp_path):
    lines = [json.dumps({"sentence_good": f"good {i}", "sentence_bad": "bad"}) for i in range(100)]
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        for name, content in (("a/x.jsonl", "\n".join(lines)), ("b/x.jsonl", lines[0]), ("LICENSE", "y")):
            archive.writestr(name, content)
        archive.writestr("y.jsonl.gz", gzip.compress("\n".join(lines).encode()))
        archive.writestr("__MACOSX/a/._x.jsonl", b"\0\xff")
    found = MinimalPairs(str(tmp_path / "b.zip"), pairs=10).read()
    assert {name: len(pairs) for name, pairs in found.items()} == {"x": 10, "b/x.jsonl": 1, "y": 10}
    for name in "xy":
        assert [int(good.split()[1]) // 10 for good, _ in found[name]] == list(range(10))  # one of each tenth


def test_minimal_pairs_are_checked(tmp_path):
    (tmp_path / "broken.jsonl").write_text('{"sentence_good": "a", "sentence_bad": "b"}\n{"sentence_good": "a"}\n')
    with pytest.raises(UserError, match="broken.jsonl, line 2 is not an object with 'sentence_good'"):
        MinimalPairs(str(tmp_path)).check(ENCODER, None)
    for content, message in (
        ('{"sentence_good": 5, "sentence_bad": "b"}', "broken.jsonl, line 1 is not .* and 'sentence_bad', two texts"),
        ("\n\n", "broken.jsonl holds no pairs: leave it out"),
    ):
        (tmp_path / "broken.jsonl").write_text(content)
        with pytest.raises(UserError, match=message):
            MinimalPairs(str(tmp_path)).check(ENCODER, None)
    with pytest.raises(UserError, match="no such file"):
        MinimalPairs(str(tmp_path / "gone")).check(ENCODER, None)
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="holds no pairs"):
        MinimalPairs(str(tmp_path / "none")).check(ENCODER, None)
    with pytest.raises(UserError, match="SimCSE cannot score sentences, .*Bart.*MaskedLM.*NextToken.* can"):
        MinimalPairs(str(tmp_path)).check(OBJECTIVE, None)
    bare = MaskedLM(ENCODER.model, 64, masked=0.0, random=1.0).bind(ByteTokenizer().vocabulary)
    with pytest.raises(UserError, match="the tokenizer has no mask"):
        log_probs(bare, {}, [[70]])
    (tmp_path / "broken.jsonl").write_text('{"sentence_good": "a", "sentence_bad": "a long one"}\n')
    short = NextToken(gpt("tiny", style="gpt2", max_length=8, **TINY), 8).bind(BYTES.vocabulary)
    MinimalPairs(str(tmp_path / "broken.jsonl")).check(ENCODER, KnowsLetters())
    with pytest.raises(UserError, match="a sentence of 10 tokens, and the model has 8 learned positions"):
        MinimalPairs(str(tmp_path / "broken.jsonl")).check(short, KnowsLetters())
    with pytest.raises(UserError, match="the tokenizer has no mask"):
        MinimalPairs(str(tmp_path / "broken.jsonl")).check(bare, KnowsLetters())


def test_pseudo_perplexity_of_a_model_that_knows_nothing():
    params = jax.tree.map(jnp.zeros_like, jax.jit(ENCODER.init)(jax.random.key(0)))
    source = KnowsLetters.records(None, "valid")

    class Data(KnowsLetters):
        def records(self, split):
            return Records(source.__getitems__)

    class Records:
        def __init__(self, get):
            self.get = get

        def __len__(self):
            return 3

        def __getitems__(self, at):
            return self.get(at)

    short = NextToken(gpt("tiny", style="gpt2", max_length=8, **TINY), 8).bind(BYTES.vocabulary)
    PseudoPerplexity(windows=2, length=8).check(short, Data())
    with pytest.raises(UserError, match="a sentence of 20 tokens, and the model has 8 learned positions"):
        PseudoPerplexity(windows=2, length=30).check(short, Data())
    found, _ = PseudoPerplexity(windows=2, length=30).run(ENCODER, {"params": params}, Data())
    assert found["pseudo/perplexity"] == pytest.approx(BYTES.vocab_size, rel=1e-4)  # even odds over all ids
    assert found["pseudo/bits_per_byte"] == pytest.approx(np.log2(BYTES.vocab_size), rel=1e-4)


# ---- Probes ----------------------------------------------------------------------------------------------------------


def sentences(folder, chance=False):
    """Texts of x or of y; with `chance` their labels say nothing."""
    draw = np.random.default_rng(0)
    for split, count in (("train", 120), ("test", 60)):
        rows = []
        for i in range(count):
            label = i % 2
            letters = "xy"[draw.integers(2) if chance else label]
            rows.append({"text": letters * int(draw.integers(3, 9)), "label": label})
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(folder)


SIMCSE = SimCSE(ENCODER.model.clone(head=False), 32).bind(BYTES.vocabulary)
BART = Bart(t5("tiny", **TINY), length=64).bind(BYTES.vocabulary)


@pytest.mark.parametrize("objective", [ENCODER, DECODER, SIMCSE, BART])
def test_probes_find_what_is_there(objective, tmp_path):
    variables = {"params": jax.jit(objective.init)(jax.random.key(0))}
    probes = TextProbes(sentences(tmp_path), layer=0)
    probes.check(objective, None)
    found, _ = probes.run(objective, variables, KnowsLetters())
    assert {*found} == {"probe/knn", "probe/linear", "probe/random/knn", "probe/random/linear", "probe/chance"}
    assert found["probe/knn"] > 0.95 and found["probe/linear"] > 0.95 and found["probe/chance"] == 0.5


@pytest.mark.parametrize("objective", [ENCODER, BART])
def test_an_attentive_probe_asks_the_tokens(objective, tmp_path):
    """One letter of a text says its label, and padding says nothing."""
    draw = np.random.default_rng(0)
    for split, count in (("train", 200), ("test", 70)):
        rows = []
        for i in range(count):
            letters = [*"abcdefgh"[: int(draw.integers(3, 9))]]
            letters[draw.integers(len(letters))] = "xy"[i % 2]
            rows.append({"text": "".join(letters), "label": i % 2})
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    variables = {"params": jax.jit(objective.init)(jax.random.key(0))}
    probes = TextProbes(str(tmp_path), layer=0, methods=("attentive",), random=False, epochs=60)
    assert probes.run(objective, variables, KnowsLetters())[0]["probe/attentive"] > 0.85


def test_probes_of_labels_that_say_nothing_are_at_chance(tmp_path):
    variables = {"params": jax.jit(ENCODER.init)(jax.random.key(0))}
    probes = TextProbes(sentences(tmp_path, chance=True), random=False, methods=("knn", "linear", "attentive"))
    found, _ = probes.run(ENCODER, variables, KnowsLetters())
    assert all(0.25 < found[f"probe/{method}"] < 0.75 for method in probes.methods)


def test_clinc_form_and_what_is_wrong(tmp_path):
    path = tmp_path / "data.json"
    none = {"none": [[None, "x"], ["a", "y"]]}
    path.write_text(json.dumps({"train": [["a", "x"], ["b", "y"]], "test": [["c", "y"]], "one": [["a", "x"]]} | none))
    splits, names = TextProbes(str(path)).read()
    assert names == ["x", "y"] and splits[1][0] == ["c"] and splits[0][1].tolist() == [0, 1]
    for how, text in (
        ({"train": "gone"}, "has no 'gone'"),
        ({"train": "one"}, "have one label"),
        ({"train": "none"}, "None is no text"),
        ({"layer": 2}, "layers 0 to 1"),
        ({"source": str(tmp_path / "no.json")}, "cannot be read"),
    ):
        with pytest.raises(UserError, match=text):
            TextProbes(**{"source": str(path), **how}).check(ENCODER, None)
    with pytest.raises(UserError, match="^TextProbes: SimCLR cannot encode texts, .*SimCSE.* can: take TextProbes"):
        TextProbes(str(path)).check(SimCLR(encoder=encoder(), augment=views()), None)
    with pytest.raises(UserError, match="TextProbes.pool='cls': a Decoder's first place has seen nothing"):
        TextProbes(str(path), pool="cls").check(DECODER, None)
    for split in ("train", "test"):  # as Windows saves it, and with a separator of lines in a text
        rows = [{"text": f"a\u2028{k}", "label": k} for k in range(2)]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\r\n" for row in rows)
        (tmp_path / f"{split}.jsonl").write_text("\ufeff" + text, "utf-8")
    assert TextProbes(str(tmp_path)).read()[0][0][0] == ["a\u20280", "a\u20281"]
    with pytest.raises(UserError, match="TextProbes.pool"):
        TextProbes(str(path), pool="max")
