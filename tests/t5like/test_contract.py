"""Span corruption and next token through the same contract as every objective, on tiny models with dropout on."""

import functools

import pytest

from paradigm import optim
from paradigm.combine import Alternate
from paradigm.dataset import Dataset
from paradigm.testing import CONTEXTS
from t5like.bart import bart
from t5like.models import bert, gpt, t5
from t5like.objectives.bart import Bart
from t5like.objectives.electra import ELECTRA
from t5like.objectives.masked_lm import MaskedLM
from t5like.objectives.masked_next_token import MaskedNextToken
from t5like.objectives.multi_token import MultiToken
from t5like.objectives.mutor import MuToR
from t5like.objectives.next_token import NextToken
from t5like.objectives.pegasus import Pegasus
from t5like.objectives.position_prediction import PositionPrediction
from t5like.objectives.prefix_lm import PrefixLM
from t5like.objectives.replaced_tokens import ReplacedTokens
from t5like.objectives.simcse import SimCSE
from t5like.objectives.spactor import SpacTor
from t5like.objectives.span_corruption import SpanCorruption
from t5like.objectives.ul2 import UL2
from t5like.tokenizers import ByteTokenizer
from t5like.vocabulary import MODES
from tests import contract
from tests.t5like.windows import Windows

B, VOCAB = 8, 384
TINY = {"d_model": 16, "heads": 4, "head_dim": 8, "d_ff": 32, "layers": 2, "dropout": 0.1}
T5 = t5("tiny", VOCAB, **TINY)
GPT = gpt("tiny", VOCAB, **TINY)
BERT = bert("tiny", VOCAB, **{**TINY, "head_dim": 4})
MASKED = ByteTokenizer(specials=("mask", "cls", "sep")).vocabulary
BART = bart("tiny", VOCAB, **TINY)
OBJECTIVES = {
    "span_corruption": SpanCorruption(T5, length=32).bind(ByteTokenizer().vocabulary),
    "next_token": NextToken(GPT, length=24).bind(ByteTokenizer().vocabulary),
    "masked_lm": MaskedLM(BERT, length=24, rate=0.3).bind(MASKED),
    "goldfish": NextToken(GPT, length=24, goldfish=4, goldfish_context=3).bind(ByteTokenizer().vocabulary),
    "multi_token": MultiToken(GPT, length=24, heads=3).bind(ByteTokenizer().vocabulary),
    "mutor": MuToR(GPT, length=16).bind(MASKED),
    "bart": Bart(BART, length=24).bind(ByteTokenizer(specials=("mask",)).vocabulary),
    "ul2": UL2(T5, length=24).bind(ByteTokenizer(specials=MODES).vocabulary),
    "ul2_decoder": UL2(GPT, length=24).bind(ByteTokenizer(specials=MODES).vocabulary),
    "pegasus": Pegasus(T5, length=32, target_length=16, choice="random").bind(
        ByteTokenizer(specials=("mask",)).vocabulary
    ),
    "prefix_lm": PrefixLM(GPT, length=24).bind(ByteTokenizer().vocabulary),
    "masked_pairs": MaskedLM(BERT, length=24, rate=0.3, pairs="next").bind(MASKED),
    "electra": ELECTRA(BERT.clone(head=False, embed_width=24), length=24, rate=0.3, generator_width=0.5).bind(MASKED),
    "replaced_tokens": ReplacedTokens(BERT.clone(head=False), length=24).bind(MASKED),
    "spactor": SpacTor(T5, length=32, hidden_rate=0.3).bind(MASKED),
    "c_rts": ReplacedTokens(BERT.clone(head=False), length=24, clusters=8).bind(MASKED),
    "position_prediction": PositionPrediction(BERT.clone(head=False), length=24, rate=0.4).bind(MASKED),
    "masked_next_token": MaskedNextToken(GPT, length=24, rate=0.3, causal=0.5).bind(MASKED),
    "simcse": SimCSE(BERT.clone(head=False), length=16, raw=24).bind(MASKED),
}
VARIANTS = ("goldfish", "ul2_decoder", "masked_pairs")  # settings of objectives that are there beside them


@functools.cache
def batch_of(name):
    objective = OBJECTIVES[name]
    data = Dataset(Windows(objective.raw_length), objective.preprocess, B, seed=1)
    return functools.cache(data.batch)


DECODERS = ("next_token", "goldfish", "multi_token", "mutor", "ul2_decoder", "prefix_lm", "masked_next_token")
KINDS = {
    **dict.fromkeys(DECODERS, "decoder"),
    **dict.fromkeys(("masked_lm", "masked_pairs", "replaced_tokens", "position_prediction"), "encoder"),
    **dict.fromkeys(("span_corruption", "bart", "ul2", "pegasus"), "encoder-decoder"),
    **dict.fromkeys(("electra", "spactor"), "two encoders"),
    "c_rts": "counts",
    "simcse": "texts that are compared",
}
CASES = {
    name: contract.Case(objective, batch_of(name), KINDS[name], variant=name in VARIANTS)
    for name, objective in OBJECTIVES.items()
}
globals().update(contract.tests(CASES))


CUT = [name for name, objective in OBJECTIVES.items() if objective.context_length]


BY_DEFAULT = ("context, mixed", "next_token", "masked_lm")
left_out = lambda names: [pytest.param(n, marks=[pytest.mark.slow] * (n not in BY_DEFAULT)) for n in names]


@pytest.mark.parametrize("mesh", left_out(CONTEXTS))
@contract.one_by_one("name", left_out(CUT))
def test_rows_cut_along_their_length_equal_one_device(name, mesh):
    contract.check_sharding(OBJECTIVES[name], batch_of(name), mesh, microbatches=2)


@pytest.mark.slow  # tests/paradigm/test_contract.py has objectives by turns
def test_one_decoder_learns_by_turns():
    """Objective and architecture are chosen apart: one set of weights, causal and prefix steps by turns."""
    parts = (("causal", OBJECTIVES["next_token"]), ("prefix", OBJECTIVES["prefix_lm"]))
    turns = Alternate(parts=parts, pattern=("causal", "prefix"))
    data = Dataset(Windows(24), turns.preprocess, B, seed=1)
    contract.check_resume(turns, optim.AdamW(1e-3), data.batch)


def test_throughput_is_counted_in_tokens():
    names = {name: o.throughput(o.batch_spec(B)) for name, o in OBJECTIVES.items()}
    targets = OBJECTIVES["span_corruption"].preprocess.target_length
    assert names["span_corruption"] == ("tokens", B * (32 + targets)) and names["next_token"] == ("tokens", B * 24)
