"""Filling masks: the choices are those of the model's own logits, and texts come back whole."""

import jax
import numpy as np
import pytest

from paradigm.errors import UserError
from t5like.fill_mask import fill_mask
from t5like.models import bert, gpt
from t5like.objectives import MaskedLM, NextToken
from t5like.tokenizers import ByteTokenizer
from tests.compiled import compiled

TOKENIZER = ByteTokenizer(specials=("mask", "cls", "sep"))
MODEL = bert("tiny", d_model=16, heads=2, d_ff=24, layers=1, init_std=0.5, embed_std=1.0, max_length=70, dropout=0.0)
OBJECTIVE = MaskedLM(MODEL, 32).bind(TOKENIZER.vocabulary)


@pytest.fixture(scope="module")
def variables():
    return OBJECTIVE.variables(jax.jit(OBJECTIVE.init)(jax.random.key(0)), {})


def test_choices_are_the_model_s(variables):
    v, text = TOKENIZER.vocabulary, "a <mask>b[MASK]"
    found = fill_mask(OBJECTIVE, variables, TOKENIZER, text, top=3)
    ids = np.array([[v.cls, *TOKENIZER.encode("a "), v.mask, *TOKENIZER.encode("b"), v.mask, v.sep]], np.int32)
    logits = np.array(compiled(OBJECTIVE.model.apply, {"params": variables["params"]["model"]}, ids)[0])[0]
    assert len(found.choices) == 2
    for place, choices in zip((3, 5), found.choices):
        row = np.where(v.is_text(np.arange(v.size)), logits[place, : v.size], -np.inf)
        best = np.argsort(-row)[:3]
        assert [piece for piece, _ in choices] == [TOKENIZER.decode([i]) for i in best]
        chances = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
        np.testing.assert_allclose([p for _, p in choices], chances[best], rtol=1e-4)
        ids[0, place] = best[0]
    assert str(found) == TOKENIZER.decode(ids[0])


@pytest.mark.parametrize(
    "text, how, error",
    [
        ("none", {}, "write <mask> where"),
        ("a<mask>", {"top": 0}, "top=0"),
        ("a" * 68 + "<mask>", {}, "a text of 71 tokens, and the model has 70 learned positions"),
    ],
)
def test_what_cannot_be_filled(variables, text, how, error):
    with pytest.raises(UserError, match=error):
        fill_mask(OBJECTIVE, variables, TOKENIZER, text, **how)


def test_a_text_up_to_the_last_position(variables):
    assert len(fill_mask(OBJECTIVE, variables, TOKENIZER, "a" * 67 + "<mask>").choices) == 1


def test_other_models_and_tokenizers(variables):
    decoder = NextToken(gpt("tiny", d_model=16, heads=2, layers=1), 8).bind(TOKENIZER.vocabulary)
    with pytest.raises(UserError, match="the model is a Decoder: use infill or generate"):
        fill_mask(decoder, {}, TOKENIZER, "<mask>")
    with pytest.raises(UserError, match="the tokenizer has no mask"):
        fill_mask(OBJECTIVE, variables, ByteTokenizer(), "<mask>")
