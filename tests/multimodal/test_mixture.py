"""Several data sets of pairs as one, and a text tower that is told which of them a text is of."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multimodal.data import PairData
from multimodal.mixture import PairMixture
from multimodal.towers import clip_text
from paradigm.attention import AttentionMask
from paradigm.dataset import Dataset
from paradigm.errors import UserError
from paradigm.objective import EVALUATION
from tests import contract
from tests.compiled import compiled
from tests.multimodal import tiny
from tests.vision.tiny import params
from vision.synthetic_scenes import Shapes

CONDITIONED = tiny.clip(text=clip_text("tiny", None, tiny.LENGTH, **tiny.TOWER, sources=2))
BATCH = tiny.batch_of(masked=5)(0) | {"source": np.int32([0, 1, 1, 0, 1, 0, 0, 0])}


def scenes(text=("caption",), **settings):
    return PairData(shapes=Shapes(size=16, **{"scenes": 24, "valid_scenes": 4} | settings), text=text, label="pair")


def of(tokenizer):
    return dataclasses.replace(scenes(), tokenizer=tokenizer)


def test_the_tokenizer_of_the_parts_is_theirs():
    assert mixture(parts=(of("bpe:9"), of("bpe:9"))).tokenizer == "bpe:9" and mixture().tokenizer == "bytes"
    assert mixture(tokenizer="bpe:8").tokenizer == "bpe:8"


def mixture(**changes):
    parts = scenes(), scenes(("a photo of a {class}.",), scenes=12, seed=1)
    return PairMixture(**{"parts": parts} | changes)


def test_a_text_is_read_behind_the_vector_of_its_data_set():
    """In value and gradient: the stack on the vector and the tokens, row by row, and CLIP's loss of what it gives."""
    objective, batch = CONDITIONED, BATCH

    @jax.jit
    @jax.value_and_grad
    def slow(p):
        tower, images = p["text"], objective.views[0].plain(batch["image"], batch["aspect"])
        image = objective.embed_images({"params": p}, images)[:3]
        rows = []
        for row in range(3):
            tokens = batch["tokens"][row]
            x = tower["embed"]["embedding"][tokens] + tower["positions"]["embedding"]
            x = jnp.concatenate([tower["sources"]["embedding"][batch["source"][row]][None], x])[None]
            x = objective.text.apply({"params": tower}, x, method=lambda m, x: m.decoder(x, AttentionMask(True)))[0][0]
            z = x[1 + tokens.tolist().index(1)] @ p["text_head"]["project"]["kernel"]
            rows.append(z / jnp.linalg.norm(z))
        z = jnp.exp(p["log_scale"]) * image @ jnp.stack(rows).T
        nll = [jax.nn.logsumexp(z[i]) + jax.nn.logsumexp(z[:, i]) - 2 * z[i, i] for i in range(3)]
        return sum(nll) / 2 / 3

    fast = jax.jit(jax.value_and_grad(lambda p: objective.loss(p, {}, batch, EVALUATION).value()))
    (value, slope), (wanted, wanted_slope) = fast(params(objective)), slow(params(objective))
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    contract.assert_trees_close(slope, wanted_slope, 2e-5)


def test_texts_of_evaluation_are_read_as_those_of_one_data_set():
    variables, tokens = {"params": params(CONDITIONED)}, BATCH["tokens"]
    of_one = lambda k: dataclasses.replace(CONDITIONED, asked_as=k)
    read = [compiled(of_one(k).embed_texts, variables, tokens) for k in (0, 1)]
    told = compiled(CONDITIONED.encode, variables["params"], {}, BATCH, EVALUATION)[0]["text"]
    of = lambda k: BATCH["source"] == k
    for k in (0, 1):
        np.testing.assert_allclose(read[k][of(k)], told[of(k)], rtol=1e-5, atol=1e-6)
    assert np.all(np.any(read[0] != read[1], 1))


def test_every_pair_says_which_data_set_it_is_of():
    prepared = mixture(tokenizer="bytes").build(progress=False)
    source = prepared.source("train")
    assert len(source) == 36 and [source[i]["source"] for i in (0, 23, 24, 35)] == [0, 0, 1, 1]
    assert source.captions(30)[0] == source[30]["caption"] and source[30]["caption"].startswith("a photo of a ")
    assert source[3]["label"] >= 0 and source[30]["label"] == -1, "labels are the first part's"
    assert len(prepared.source("valid")) == 8 and len(source.classes) == 72
    objective = dataclasses.replace(CONDITIONED, tokenizer=None).bind(prepared.tokenizer.vocabulary)
    batch = Dataset(source, objective.preprocess, 12).batch(0)
    assert sorted(batch["source"]) == [0] * 8 + [1] * 4, "by their sizes"
    assert batch.keys() == objective.batch_spec(12).keys()


def test_an_objective_asks_a_mixture_what_it_asks_one_data_set():
    """NLVR reads name, classes and records of either."""
    truths = mixture(parts=(dataclasses.replace(scenes(), label="truth"),) * 2).build(progress=False)
    assert tiny.nlvr().check_data(truths) == ("NLVR: 'true' is true and 'false' false",)
    with pytest.raises(UserError, match="NLVR tells true from false, and shapes and shapes has 72 classes"):
        tiny.nlvr().check_data(mixture().build(progress=False))


def test_batches_may_be_of_one_data_set_by_turns():
    source = mixture(alternate=True).build(progress=False).source("train")
    dataset = Dataset(source, lambda example, *_: {"source": np.int32(example["source"])}, 4)
    assert [set(dataset.batch(step)["source"]) for step in range(4)] == [{0}, {1}, {0}, {1}]


@pytest.mark.parametrize(
    "make, text",
    [
        (lambda: PairMixture(parts=(scenes(),)), "PairMixture.parts are 1: give two PairData or more"),
        (
            lambda: mixture(parts=(scenes(), of("bpe:9"))),
            "has one tokenizer, and bpe:9 and bytes are named: keep to one",
        ),
        (
            lambda: mixture(parts=(of("bpe:9"), of("bpe:9")), tokenizer="bpe:8"),
            "and bpe:8 and bpe:9 are named: keep to",
        ),
        (lambda: mixture(weights=(1.0,)), "PairMixture.weights are 1 for 2 parts: give each one"),
        (lambda: mixture(weights=(1.0, 1.0), alternate=True), "alternate takes parts by turns: leave PairMixture.weig"),
        (lambda: mixture(parts=(scenes(), dataclasses.replace(scenes(), channels=1))), "differ in channels"),
        (lambda: tiny.clip(asked_as=1), "CLIP.asked_as=1, and the text tower tells 0 data sets apart"),
        (lambda: scenes(("{clas}",)).build(progress=False), "class"),
        (lambda: prepared({}), "tells 2 data sets apart, and a record does not say which it is of"),
        (lambda: prepared({"source": 2}), "a record is of data set 2, and the text tower tells 2 apart: set its sour"),
    ],
)
def test_what_a_person_can_set_wrong(make, text):
    with pytest.raises(UserError, match=text):
        make()


def prepared(more):
    record = {"image": np.zeros((4, 4, 3), np.uint8), "captions": ("a",), **more}
    return CONDITIONED.preprocess(record, None, 0, False)
