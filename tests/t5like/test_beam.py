"""Beam search on ragged batches against the plain forward pass, and likelihoods of given texts. That beams are the
transformers library's is in test_parity.py."""

import jax
import numpy as np
import pytest

from paradigm.errors import UserError
from t5like import decode
from t5like.decode import Sampling, beam_rows, decode_rows, score, score_rows
from t5like.models import Encoder, gpt, t5
from t5like.tokenizers import ByteTokenizer
from tests.t5like.test_decode import INPUTS, MODELS, NEVER, NEW, SMALL, VOCAB, alone, arguments, ended_by, forward

# "prefix" is "rope" that sees its prompt whole.
every_kind = pytest.mark.parametrize("name", ["t5", pytest.param("rope", marks=pytest.mark.slow), "gpt2", "prefix"])


def log_p(name, prompt, text):
    """[n] of each token of a text, by whole sequences and no cache. prompt: of a Decoder, or the encoder's inputs."""
    model, variables = MODELS[name], alone(MODELS[name])[1]["params"]
    pad = lambda row, width: np.array([[*row, *[0] * (width - len(row))]], np.int32)
    encoder = name.startswith("t5")
    before, source = ([0], pad(prompt, 7)) if encoder else ([0, *prompt], None)
    visible = np.array([len(before)]) if name == "prefix" else None
    logits = forward(model, {"params": variables["model"]}, pad([*before, *text], 24), source, visible)[0]
    rows = np.asarray(jax.nn.log_softmax(logits))[len(before) - 1 :]
    return np.array([row[token] for row, token in zip(rows, text)]), rows


@every_kind
def test_beams_of_ragged_prompts(name):
    """Every text has the score of its own uncached forward pass; a row does not depend on its neighbours."""
    how = dict(new=NEW, beams=3, length_penalty=0.7, n_best=3)
    given, model = arguments(name), alone(MODELS[name])
    free = beam_rows(*model, vocabulary=NEVER, **how, **given)
    eos = int(free[0][0][0][4])
    found = beam_rows(*model, vocabulary=ended_by(eos), **how, **given)
    prompts = INPUTS if name.startswith("t5") else given["prompts"]
    lengths = set()
    for prompt, texts in zip(prompts, found):
        assert [s for _, s in texts] == sorted((s for _, s in texts), reverse=True)
        assert len({tuple(text) for text, _ in texts}) == 3
        for text, value in texts:
            whole = text.tolist() if len(text) == NEW else [*text.tolist(), eos]
            lengths.add(len(whole))
            assert value == pytest.approx(log_p(name, prompt, whole)[0].sum() / len(whole) ** 0.7, abs=1e-4)
    assert len(lengths) > 1
    rows = lambda i: arguments(name, slice(i, i + 1))
    apart = [beam_rows(*model, vocabulary=ended_by(eos), **how, **rows(i))[0] for i in range(len(prompts))]
    for together, lonely in zip(found, apart):
        for (a, x), (b, y) in zip(together, lonely):
            assert a.tolist() == b.tolist() and x == pytest.approx(y, abs=1e-4)


@every_kind
def test_one_beam_is_greedy(name):
    given, model = arguments(name), alone(MODELS[name])
    greedy = decode_rows(*model, new=NEW, sampling=Sampling(vocab_size=VOCAB), vocabulary=NEVER, **given)
    one = beam_rows(*model, new=NEW, vocabulary=NEVER, beams=1, **given)
    assert [text.tolist() for [(text, _)] in one] == [row.tolist() for row in greedy]


@every_kind
def test_scores_are_those_of_whole_sequences(name):
    continuations = [[4, 5, 6], [7], [8, 9, 10, 11, 12]]
    prompts = [row[:-1] for row in INPUTS] if name.startswith("t5") else arguments(name)["prompts"]
    found = score_rows(*alone(MODELS[name]), prompts, continuations, ended_by(1), prefix=name == "prefix")
    for prompt, text, one in zip(prompts, continuations, found, strict=True):
        values, _ = log_p(name, [*prompt, 1] if name.startswith("t5") else prompt, text)
        assert one.log_likelihood == pytest.approx(values.sum(), abs=1e-4) and one.tokens == len(text)
    assert not any(one.greedy for one in found)
    best = decode_rows(*alone(MODELS[name]), new=4, sampling=Sampling(), vocabulary=ended_by(1), **arguments(name))
    found = score_rows(*alone(MODELS[name]), prompts, best, ended_by(1), prefix=name == "prefix")
    assert all(one.greedy for one in found)


def test_text_in():
    tokenizer = ByteTokenizer()
    model = alone(gpt("tiny", tokenizer.vocab_size, **SMALL))
    short, long = score(*model, tokenizer, ["ab", "ab"], [" c", " cd"])
    assert (short.tokens, long.tokens) == (2, 3) and long.log_likelihood < short.log_likelihood < 0
    text = decode.generate(*model, tokenizer, "ab", max_new_tokens=4, beams=3)
    [[(ids, _)]] = beam_rows(*model, [tokenizer.encode("ab")], 4, tokenizer.vocabulary, beams=3)
    assert text == "ab" + tokenizer.decode(ids)


def test_what_cannot_be_searched_or_scored():
    tokenizer = ByteTokenizer()
    model = alone(gpt("tiny", tokenizer.vocab_size, style="gpt2", max_length=8, **SMALL))
    for call, match in (
        (lambda: beam_rows(*model, [[5]], 4, tokenizer.vocabulary, beams=2, n_best=3), "n_best=3 of beams=2"),
        (lambda: beam_rows(*model, [[5] * 6], 4, tokenizer.vocabulary), "a prompt of 6 tokens and .* do not fit"),
        (lambda: beam_rows(*model, [], 4, tokenizer.vocabulary), "there is no prompt"),
        (lambda: decode.generate(*model, tokenizer, "a", temperature=1.0, beams=2), "beams=2 searches and temp.*draws"),
        (lambda: decode.generate(*model, tokenizer, "a", length_penalty=2.0), "length_penalty=2 chooses among"),
        (lambda: decode.generate(*model, tokenizer, "a", top_k=5, beams=2), "top_k and top_p choose what is drawn"),
        (lambda: score(*model, tokenizer, ["a"], ["b", "c"]), "1 prompts and 2 continuations"),
        (lambda: score(*model, tokenizer, ["a"], [""]), "continuation 0 is empty"),
        (lambda: score(*model, tokenizer, ["abcd"], ["efghijk"]), "do not fit into max_length=8"),
        (lambda: score_rows(*alone(t5("tiny", 40, **SMALL)), [], [], NEVER), "there is no prompt"),
    ):
        with pytest.raises(UserError, match=match):
            call()
    encoder = decode.ModelAlone(Encoder(vocab_size=VOCAB, **SMALL))
    with pytest.raises(UserError, match="score does not work with a Encoder"):
        score_rows(encoder, {}, [[5]], [[6]], NEVER)
