"""Cached decoding against the plain forward pass, the draws against their probabilities, and text in and out."""

import functools
import importlib
import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradigm import progress, rng
from paradigm.errors import UserError
from paradigm.partition import AXES
from t5like import decode
from t5like.bart import bart
from t5like.decode import GenerateSamples, Infill, InfillSamples, ModelAlone, Sampling, generate, infill, steps
from t5like.models import Encoder, gpt, t5
from t5like.objectives import UL2, Bart, NextToken, Pegasus, PrefixLM, SpanCorruption
from t5like.tokenizers import ByteTokenizer
from t5like.vocabulary import Vocabulary

VOCAB, EOS = 40, 1


def ended_by(eos):
    return Vocabulary(VOCAB + 1, pad=0, eos=eos)


NEVER = ended_by(VOCAB)  # no model has a row for it
SMALL = dict(d_model=16, heads=2, head_dim=8, d_ff=32, layers=2)
MODELS = {
    "t5": t5("tiny", VOCAB, **SMALL),
    "t5_v1_0": t5("tiny", VOCAB, version="1.0", decoder_layers=1, scan=False, **SMALL),
    "rope": gpt("tiny", VOCAB, **SMALL),
    "gpt2": gpt("tiny", VOCAB, style="gpt2", max_length=32, **SMALL),
    "prefix": gpt("tiny", VOCAB, **SMALL),
}
PROMPTS = [[5, 9, 7, 30, 31], [8], [11, 12, 13]]
INPUTS = [[5, 6, 7, 8, 39, 9, 1], [20, 39, 1], [4, 39, 30, 38, 22, 1]]
NEW = 8
DRAWN = Sampling(temperature=0.7, top_k=12, top_p=0.9)


@functools.cache
def variables_of(model):
    """Random weights, large enough that different rows and positions choose different tokens."""
    tokens = jnp.ones((1, 2), jnp.int32)
    arguments = (tokens, tokens) if "encode" in dir(model) else (tokens,)
    return jax.tree.map(lambda x: 3 * x if x.ndim > 2 else x, jax.jit(model.init)(jax.random.key(0), *arguments))


def alone(model):
    """(objective, variables) of a model with its random weights."""
    return ModelAlone(model), {"params": {"model": variables_of(model)["params"]}}


def arguments(name, rows=slice(None)):
    inputs = {"inputs": INPUTS[rows]} if name.startswith("t5") else {"prefix": name == "prefix"}
    prompts = PROMPTS[rows]
    return dict(prompts=[[] for _ in prompts] if name.startswith("t5") else prompts, **inputs)


@functools.partial(jax.jit, static_argnames=("model",))
def forward(model, variables, tokens, inputs, visible):
    if inputs is None:
        return model.apply(variables, tokens, prefix=visible)[0]
    return model.apply(variables, inputs, tokens, input_segments=inputs > 0)[0]


def uncached(model, variables, prompts, new, sampling, vocabulary, inputs=None, prefix=False):
    """The same tokens by the definition: the whole sequence of one row through the model for every token."""
    pad = lambda row, width: jnp.array([[*row, *[0] * (width - len(row))]])
    index = np.array([[0, i] for i in range(len(prompts))], np.uint32)
    found = []
    for row, key in enumerate(rng.per_example(rng.key(0, "decode"), index)):
        tokens = [0, *prompts[row]]
        source = None if inputs is None else pad(inputs[row], 7)
        visible = jnp.array([len(tokens)]) if prefix else None
        for step in range(new):
            logits = forward(model, variables, pad(tokens, 20), source, visible)  # the padding comes later, unseen
            token = int(sampling.choose(logits[:, len(tokens) - 1], jax.random.fold_in(key, step)[None])[0])
            if token == vocabulary.end:
                break
            tokens.append(token)
        found.append(tokens[1 + len(prompts[row]) :])
    return found


GREEDY_AND_DRAWN = [*((name, Sampling()) for name in MODELS), ("t5", DRAWN), ("gpt2", DRAWN)]


@pytest.mark.parametrize("name, sampling", GREEDY_AND_DRAWN, ids=lambda x: x if isinstance(x, str) else x.temperature)
def test_cached_is_uncached(name, sampling):
    model = MODELS[name]
    variables = variables_of(model)
    with_cache = decode.decode_rows(*alone(model), new=NEW, sampling=sampling, vocabulary=NEVER, **arguments(name))
    wanted = uncached(model, variables, new=NEW, sampling=sampling, vocabulary=NEVER, **arguments(name))
    assert [row.tolist() for row in with_cache] == wanted
    assert len({token for row in wanted for token in row}) > 3 and len(set(map(tuple, wanted))) == len(wanted)

    eos = wanted[0][3]  # now let the first row end early, and the others where they will
    stopped = decode.decode_rows(*alone(model), new=NEW, sampling=sampling, vocabulary=ended_by(eos), **arguments(name))
    assert [row.tolist() for row in stopped] == [row[: row.index(eos)] if eos in row else row for row in wanted]
    assert len(stopped[0]) <= 3


def test_after_eos_there_is_padding():
    model = MODELS["rope"]
    prompts, lengths = np.array([[0, 5, 9], [0, 8, 0]], np.int32), np.array([3, 2], np.int32)
    run = lambda eos: decode.decode(
        ModelAlone(model),
        alone(model)[1],
        prompts,
        lengths,
        jax.random.split(jax.random.key(0), 2),
        NEW,
        Sampling(),
        eos,
    )
    free = np.asarray(run(VOCAB))
    eos = int(free[0, 2])
    first = [row.index(eos) if eos in row else NEW for row in free.tolist()]
    wanted = np.where(np.arange(NEW) <= np.array(first)[:, None], free, 0)
    assert first[0] <= 2 and free[0, first[0] + 1 :].any()
    assert np.array_equal(run(eos), wanted)


@pytest.mark.parametrize("name", ["t5", "rope"])
def test_rows_do_not_depend_on_each_other(name):
    """Neither padding nor what the neighbours draw reaches a row; the seed does."""
    model = MODELS[name]
    draw = lambda rows, seed: decode.decode_rows(
        *alone(model),
        new=NEW,
        sampling=DRAWN,
        seed=seed,
        vocabulary=NEVER,
        **arguments(name, rows),
    )
    together = draw(slice(None), 3)
    assert np.array_equal(draw(slice(0, 1), 3)[0], together[0])
    assert not np.array_equal(draw(slice(0, 1), 4)[0], together[0])


@pytest.mark.parametrize("name", ["t5", "gpt2"])
def test_on_a_mesh(name):
    """Three rows on a mesh whose batch axes have four places: padded, computed, and the padding dropped."""
    model = MODELS[name]
    run = lambda: decode.decode_rows(*alone(model), new=NEW, sampling=Sampling(), vocabulary=NEVER, **arguments(name))
    wanted = run()
    types = (jax.sharding.AxisType.Auto,) * 3
    with jax.set_mesh(jax.make_mesh((2, 2, 2), AXES, types)):
        found = run()
    assert len(found) == 3 and all(np.array_equal(a, b) for a, b in zip(found, wanted))


def draws(sampling, logits, n=4000):
    keys = jax.random.split(jax.random.key(0), n)
    tokens = sampling.choose(jnp.broadcast_to(jnp.array(logits), (n, len(logits))), keys)
    return np.bincount(np.asarray(tokens), minlength=len(logits)) / n


@pytest.mark.parametrize(
    "sampling, wanted",
    [
        (Sampling(), [0, 1, 0, 0]),
        (Sampling(1.0), [0.3, 0.4, 0.2, 0.1]),
        (Sampling(0.5), np.array([9, 16, 4, 1]) / 30),
        (Sampling(1.0, top_k=2), [3 / 7, 4 / 7, 0, 0]),
        (Sampling(1.0, top_k=9), [0.3, 0.4, 0.2, 0.1]),
        (Sampling(1.0, top_p=0.65), [3 / 7, 4 / 7, 0, 0]),
        (Sampling(1.0, top_p=0.75), [3 / 9, 4 / 9, 2 / 9, 0]),
        (Sampling(1.0, top_p=0.01), [0, 1, 0, 0]),
        (Sampling(1.0, top_k=3, top_p=0.7), [3 / 7, 4 / 7, 0, 0]),  # 0.7 of what top_k left: 7 of 9 are enough, 4 not
    ],
)
def test_draws_have_their_probabilities(sampling, wanted):
    np.testing.assert_allclose(draws(sampling, np.log([0.3, 0.4, 0.2, 0.1])), wanted, atol=0.03)


@pytest.mark.parametrize(
    "match, settings",
    [
        ("temperature=-1", dict(temperature=-1)),
        ("top_k=0", dict(temperature=1.0, top_k=0)),
        ("top_k=2.5: leave it out, or draw among 1 or more", dict(temperature=1.0, top_k=2.5)),
        ("temperature='hot': it is a number", dict(temperature="hot")),
        ("top_p=1.5", dict(temperature=1.0, top_p=1.5)),
        ("temperature=0 draws nothing", dict(top_k=3)),
    ],
)
def test_settings_that_make_no_sense(match, settings):
    with pytest.raises(UserError, match=match):
        Sampling(**settings)


# ---- Text ------------------------------------------------------------------------------------------------------------

TOKENIZER = ByteTokenizer()
TEXT_MODEL = t5("tiny", TOKENIZER.vocab_size, **SMALL)
SPANS = SpanCorruption(TEXT_MODEL, 40).bind(TOKENIZER.vocabulary)


@pytest.fixture
def answers(monkeypatch):
    """Lets the model answer with given text in which <X> .. are sentinels; records what it was given."""
    given = {}

    def answer(text):
        def rows(objective, variables, prompts, new, sampling, vocabulary, seed=0, inputs=None, prefix=False):
            given.update(prompts=prompts, inputs=inputs)
            return [TOKENIZER.encode_prompt(text)] * len(prompts)

        for name in ("text", "samples"):
            monkeypatch.setattr(importlib.import_module(f"t5like.decode.{name}"), "decode_rows", rows)
        return given

    return answer


@pytest.mark.parametrize(
    "text, read, answer, wanted",
    [
        (
            "The <X> sat on <Y> mat",
            "The<X> sat on<Y> mat",
            "<X> cat<Y> the<Z> no",
            ("The cat sat on the mat", ("cat", "the")),
        ),
        ("The <X> sat", "The<X> sat", "<X>cat", ("The cat sat", ("cat",))),  # no space from the model: the text's stays
        ("f(<X>)", "f(<X>)", "<X>x, y<Y>", ("f(x, y)", ("x, y",))),
        ("a <Y> b <X> c", "a<Y> b<X> c", "<X> one<Y> two", ("a two b one c", ("two", "one"))),
        ("a <extra_id_12> b", "a<extra_id_12> b", "before<extra_id_12> one<X> two", ("a one b", ("one",))),
        ("a <X> b <Y>", "a<X> b<Y>", "<X> one<X> again", ("a one b ", ("one", ""))),  # said twice; not said
    ],
)
def test_infill_maps_blanks_to_sentinels(answers, text, read, answer, wanted):
    given = answers(answer)
    found = infill(ModelAlone(TEXT_MODEL), {}, TOKENIZER, text)
    assert found == Infill(*wanted) and str(found) == wanted[0]
    assert given["inputs"][0].tolist() == [*TOKENIZER.encode_prompt(read), EOS] and len(given["prompts"][0]) == 0


MORE = ByteTokenizer(specials=("mask", "bos", "nlu", "nlg", "s2s"))
WIDE, V = {**SMALL, "vocab_size": None}, MORE.vocabulary
BART = Bart(bart("tiny", **WIDE), 64).bind(V)
PEGASUS = Pegasus(t5("tiny", **WIDE), 32, 16).bind(V)
RESTORED = ("the <X> sat on <Y>", "the cat sat on a mat")


@pytest.mark.parametrize(
    "objective, text, answer, wanted",
    [
        (BART, *RESTORED, Infill("the cat sat on a mat", ("cat", "a mat"))),
        (BART, "the <X> sat", "the sat", Infill("the  sat", ("",))),
        (BART, RESTORED[0], "a cat sat on a mat", Infill("a cat sat on a mat", ())),  # another text
        (BART, RESTORED[0], "so the cat sat on it", Infill("so the cat sat on it", ())),
        (PEGASUS, "It rained. <X> So I left.", " Much.", Infill("It rained. Much. So I left.", ("Much.",))),
        (UL2(t5("tiny", **WIDE), 32), RESTORED[0], "<X> cat<Y> a mat", Infill(RESTORED[1], ("cat", "a mat"))),
        (UL2(gpt("tiny", **WIDE), 32), RESTORED[0], "<X> cat<Y> a mat", Infill(RESTORED[1], ("cat", "a mat"))),
    ],
)
def test_each_denoiser_is_asked_to_fill_blanks_in_its_own_way(objective, text, answer, wanted, monkeypatch):
    given = {}

    def rows(objective, variables, **asked):
        given.update(asked)
        return [MORE.encode_prompt(answer)]

    monkeypatch.setattr(importlib.import_module("t5like.decode.text"), "decode_rows", rows)
    objective = objective.bind(V)
    assert infill(objective, {}, MORE, text, max_new_tokens=9) == wanted
    hidden = [V.mask if i in V.sentinels else i for i in MORE.encode_prompt(text.replace(" <", "<")).tolist()]
    kind, (prompt,) = type(objective).__name__, given["prompts"]
    if kind == "Bart":
        assert given["inputs"][0].tolist() == [V.bos, *hidden, V.end] and list(prompt) == [V.bos]
        assert given["vocabulary"].start == V.end and given["new"] == 9 + len(hidden)
    elif kind == "Pegasus":
        assert given["inputs"][0].tolist() == [*hidden, V.end] and given["new"] == 9
    else:
        read = given["inputs"][0][:-1] if "inputs" in given else prompt
        assert read[0] == V.nlu and [V.mask if i in V.sentinels else i for i in read[1:]] == hidden
        assert given.get("prefix", False) == ("inputs" not in given)


def test_infill_by_a_whole_text_runs():
    variables = {"params": jax.jit(BART.init)(jax.random.key(0))}
    assert isinstance(infill(BART, variables, MORE, RESTORED[0], max_new_tokens=2).text, str)
    with pytest.raises(UserError, match="pegasus writes sentences one after the other .*: 2 are too many, leave one"):
        infill(PEGASUS, {}, MORE, RESTORED[0])


def test_infill_and_generate_run():
    filled = infill(
        *alone(TEXT_MODEL),
        TOKENIZER,
        "The <X> sat on <Y> mat",
        max_new_tokens=8,
    )
    assert filled.text.startswith("The ") and filled.text.endswith(" mat") and len(filled.pieces) == 2
    model = gpt("tiny", TOKENIZER.vocab_size, **SMALL)
    how = dict(max_new_tokens=8, temperature=1.0)
    text = generate(*alone(model), TOKENIZER, "Once ", seed=1, **how)
    assert text.startswith("Once ") and text == generate(*alone(model), TOKENIZER, "Once ", seed=1, **how)
    assert text != generate(*alone(model), TOKENIZER, "Once ", seed=2, **how)
    assert generate(*alone(model), TOKENIZER, "", max_new_tokens=1) is not None


def test_text_that_cannot_be_decoded():
    gpt2 = gpt("tiny", TOKENIZER.vocab_size, style="gpt2", max_length=20, **SMALL)
    with pytest.raises(UserError, match="no blank in the text; write <X>"):
        infill(ModelAlone(TEXT_MODEL), {}, TOKENIZER, "The cat sat")
    with pytest.raises(UserError, match="<extra_id_0> stands more than once|<X> stands more than once"):
        infill(ModelAlone(TEXT_MODEL), {}, TOKENIZER, "The <X> sat on <extra_id_0> mat")
    with pytest.raises(UserError, match="sentinel 100"):
        infill(ModelAlone(TEXT_MODEL), {}, TOKENIZER, "The <extra_id_100> sat")
    with pytest.raises(UserError, match=r"^infill does not work with a Decoder: use generate\(prompt\), which it can$"):
        infill(ModelAlone(gpt2), {}, TOKENIZER, "The <X> sat")
    with pytest.raises(UserError, match="^generate does not work with a EncoderDecoder: use infill.*, which it can$"):
        generate(ModelAlone(TEXT_MODEL), {}, TOKENIZER, "The cat")
    encoder = Encoder(vocab_size=TOKENIZER.vocab_size, positions="relative", **SMALL)
    for call in infill, generate:
        wanted = f"^{call.__name__} does not work with a Encoder: it can neither infill nor generate$"
        with pytest.raises(UserError, match=wanted):
            call(ModelAlone(encoder), {}, TOKENIZER, "The <X> sat")
    with pytest.raises(UserError, match="the tokenizer has 359 ids, but the model 40"):
        infill(ModelAlone(MODELS["t5"]), {}, TOKENIZER, "The <X> sat")
    with pytest.raises(UserError, match="max_new_tokens=0"):
        generate(*alone(gpt2), TOKENIZER, "The cat", max_new_tokens=0)
    with pytest.raises(UserError, match="15 tokens and max_new_tokens=6 do not fit into max_length=20 positions"):
        generate(*alone(gpt2), TOKENIZER, "x" * 15, max_new_tokens=6)
    assert len(generate(*alone(gpt2), TOKENIZER, "x" * 15, max_new_tokens=5)) >= 15  # all 20 positions


def test_samples_that_cannot_be_had_are_told_before_the_first_step():
    gpt2 = NextToken(gpt("tiny", TOKENIZER.vocab_size, style="gpt2", max_length=20, **SMALL), 20)
    GenerateSamples(prompt_tokens=15, max_new_tokens=5).check(gpt2, None)
    with pytest.raises(UserError, match="a prompt of 15 tokens and max_new_tokens=6 do not fit into max_length=20 pos"):
        GenerateSamples(prompt_tokens=15, max_new_tokens=6).check(gpt2, None)
    with pytest.raises(
        UserError, match="^GenerateSamples: SpanCorruption cannot continue a text, .*NextToken.* can: tak"
    ):
        GenerateSamples().check(SPANS, None)
    with pytest.raises(
        UserError, match="^InfillSamples: NextToken cannot fill the spans that sentinels hide, SpanCorruption can: take"
    ):
        InfillSamples().check(gpt2, None)
    for kind, objective in ((GenerateSamples, gpt2), (InfillSamples, SPANS)):
        with pytest.raises(UserError, match="^top_k and top_p choose what is drawn from, and temperature=0 draws noth"):
            kind(top_k=5).check(objective, None)


class Data:
    """What evaluators are given: some validation examples."""

    tokenizer = TOKENIZER

    def __init__(self, **rows):
        self.rows = rows

    def examples(self, count, phase=None):
        real = np.flatnonzero(self.rows["mask"])[:count]
        return {name: x[real] for name, x in self.rows.items()}


def padded(*texts, width=40):
    ids = [TOKENIZER.encode_prompt(text) for text in texts]
    return np.stack([np.pad(row, (0, width - len(row))) for row in ids]).astype(np.int32)


def test_infill_samples(answers):
    answers("<X> truths<Y> free")
    inputs = padded("We hold these<X> to be\n<Y>", "a<X> b", "c<X>", "")
    targets = padded("<X> truths<Y> self evident", "<X> truths", "<X> other", "")
    data = Data(
        encoder_inputs=inputs,
        encoder_segments=np.int32(inputs > 0),
        targets=targets,
        segments=np.int32(targets > 0),
        mask=np.array([1, 1, 1, 0], np.float32),
    )
    metrics, (artefact,) = InfillSamples(count=3).run(SPANS, {}, data)
    assert metrics == {"infill_exact": 2 / 4}
    assert (artefact.name, artefact.kind) == ("infill", "text")
    assert artefact.value.splitlines()[:3] == [
        "example 1: We hold these<X> to be⏎<Y>",
        "  <X>  model: ' truths'  truth: ' truths'",
        "  <Y>  model: ' free'  truth: ' self evident'",
    ]
    assert "example 3" in artefact.value
    _, (few,) = InfillSamples(count=1).run(SPANS, {}, data)
    assert "example 2" not in few.value
    metrics, (both,) = InfillSamples(count=1, temperature=0.5).run(SPANS, {}, data)
    assert metrics == {"infill_exact": 1 / 2}  # of the most probable
    assert both.value.splitlines()[1] == "  <X>  model: ' truths'  at temperature 0.5: ' truths'  truth: ' truths'"


def test_infill_samples_show_where_documents_end(answers):
    answers("<X> one")
    end = [TOKENIZER.eos_id]
    inputs = np.r_[TOKENIZER.encode("A cat.\n"), end, TOKENIZER.encode_prompt("Dogs<X>"), end][None].astype(np.int32)
    targets = np.r_[TOKENIZER.encode_prompt("<X> bark."), end, TOKENIZER.encode("End"), end][None].astype(np.int32)
    ones = {"encoder_segments": np.ones_like(inputs), "segments": np.ones_like(targets), "mask": np.ones(1, np.float32)}
    _, (shown,) = InfillSamples().run(SPANS, {}, Data(encoder_inputs=inputs, targets=targets, **ones))
    assert shown.value.splitlines() == [
        "example 1: A cat.⏎</s>Dogs<X>",
        "  <X>  model: ' one'  truth: ' bark.</s>End'",
    ]


def test_generate_samples():
    model = gpt("tiny", TOKENIZER.vocab_size, **SMALL)
    tokens = padded("To be or not to be", "That is the question", "x", "")
    segments = (tokens > 0).astype(np.int32)
    segments[0, 9:18] = 2  # a second document begins after "To be or "
    data = Data(targets=tokens, segments=segments, mask=np.array([1, 1, 1, 0], np.float32))
    for kind in (NextToken, PrefixLM):
        objective = kind(model, tokens.shape[1])
        evaluator = GenerateSamples(count=9, prompt_tokens=6, max_new_tokens=4)
        metrics, (artefact,) = evaluator.run(objective, alone(model)[1], data)
        lines = artefact.value.splitlines()
        assert metrics == {} and len(lines) == 9
        assert lines[0] == "example 1: To be " and lines[2] == "  truth: 'or '"
        assert lines[3] == "example 2: That i" and lines[5] == "  truth: 's th'"


def test_ids_that_the_tokenizer_lacks_are_never_chosen():
    """A model's vocabulary may be rounded up beyond its tokenizer's."""
    logits = jnp.arange(8.0)[None]  # the largest are of ids that do not exist
    assert Sampling(vocab_size=5).choose(logits, None)[0] == 4
    keys = jax.random.split(jax.random.key(0), 50)
    drawn = Sampling(temperature=5.0, vocab_size=5).choose(jnp.repeat(logits, 50, 0), keys)
    assert set(np.asarray(drawn).tolist()) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("beams", [1, 3])
def test_tokens_are_counted_by_the_clock(beams, monkeypatch):
    """Ends included, filling rows not; a call that compiles first is left out."""
    ticks = itertools.count()
    monkeypatch.setattr(steps, "time", types.SimpleNamespace(perf_counter=lambda: 0.5 * next(ticks)))
    how = dict(new=5, **arguments("rope"))

    def run(eos):
        if beams == 1:
            return decode.decode_rows(*alone(MODELS["rope"]), sampling=Sampling(), vocabulary=ended_by(eos), **how)
        found = decode.beam_rows(*alone(MODELS["rope"]), vocabulary=ended_by(eos), beams=beams, **how)
        return [texts[0][0] for texts in found]

    with progress.timed() as rates:
        eos = int(run(VOCAB)[0][2])
    assert rates.per_second() == {}
    with progress.timed() as outer, progress.timed() as rates:
        rows = run(eos)
    assert len(rows[0]) < 5
    count = sum(min(len(row) + 1, 5) for row in rows)
    assert rates.per_second() == outer.per_second() == {"decoded_tokens_per_second": count / 0.5}
