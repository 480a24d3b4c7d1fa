"""True or false of two pictures: the loss as ViLT's code has it, the drawn sentences, and tables with two pictures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multimodal.data import PairData
from paradigm.attention import AttentionMask
from paradigm.dataset import Dataset
from paradigm.errors import UserError
from paradigm.objective import EVALUATION
from tests import contract
from tests.multimodal import tiny
from tests.multimodal.pairs import opened, table
from tests.vision.pictures import folder, pixels
from tests.vision.tiny import params
from vision.synthetic_scenes import COLOURS, SHAPES, Shapes

OBJECTIVE = tiny.nlvr()
BOTH = (("image", "aspect"), ("second", "second_aspect"))


@pytest.mark.parametrize("pictures", [2, 1])
def test_the_loss_is_vilts(pictures):
    """In value and gradient, by a loop over rows that reads the real tokens alone."""
    objective, batch = tiny.nlvr(pictures=pictures), tiny.two_pictures(masked=5, pictures=pictures)(0)
    batch["label"][1] = -1
    assert batch.keys() == objective.batch_spec(8).keys()

    @jax.jit
    @jax.value_and_grad
    def slow(p):
        total, count, e = 0.0, 0, p["encoder"]
        for row in range(3):
            tokens = batch["tokens"][row]
            n = (tokens.tolist() + [1]).index(1) + 1
            if batch["label"][row] < 0:
                continue
            states = []
            for name, aspect in BOTH[:pictures]:
                image = objective.views[0].plain(batch[name][row : row + 1], batch[aspect][row : row + 1])
                x = objective.apply("encoder", {"params": p}, image, method="see")[0]
                x = x + p["second"]["second_token"] if name == "second" else x
                text = (e["embed"]["embedding"][tokens] + e["positions"]["embedding"])[None, :n]
                x = jnp.concatenate([x, text], 1)
                x = objective.encoder.apply({"params": e}, x, method=lambda m, x: m.blocks(x, AttentionMask()))[0]
                states.append(jnp.tanh(x[0, -n] @ p["truth"]["dense"]["kernel"] + p["truth"]["dense"]["bias"]))
            x = jnp.concatenate(states) @ p["truth"]["both"]["kernel"] + p["truth"]["both"]["bias"]
            x = (x - x.mean()) / jnp.sqrt(x.var() + 1e-5) * p["truth"]["norm"]["scale"] + p["truth"]["norm"]["bias"]
            z = jax.nn.gelu(x, approximate=False) @ p["truth"]["out"]["kernel"] + p["truth"]["out"]["bias"]
            total, count = total + jax.nn.logsumexp(z) - z[batch["label"][row]], count + 1
        return total / count

    fast = jax.jit(jax.value_and_grad(lambda p: objective.loss(p, {}, batch, EVALUATION).value()))
    (value, slope), (wanted, wanted_slope) = fast(params(objective)), slow(params(objective))
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    contract.assert_trees_close(slope, wanted_slope, 2e-5)


def test_drawn_sentences_are_what_their_labels_say_and_tell_nothing_alone():
    shapes = Shapes(size=8, objects=1, scenes=2000, valid_scenes=100)
    source = PairData(shapes=shapes, label="truth").build(progress=False).source("train")
    assert source.classes == ("false", "true")
    truths = {}
    for position in range(400):
        sentence, truth, left, right = source.records.made(position)
        pair = [shapes.scene(k).labels for k in (left, right)]
        words = [f"{list(COLOURS)[one['colour']]} {SHAPES[one['shape']]}" for one in pair]
        subject = sentence.rsplit(" a ")[-1]
        holds = {
            "one of": subject in words,
            "the left": subject == words[0],
            "the right": subject == words[1],
            "they have": pair[0][sentence.split()[-1]] == pair[1][sentence.split()[-1]] if "same" in sentence else None,
        }
        kind = " ".join(sentence.split()[:2])
        assert holds[kind] == truth and left != right, sentence
        truths.setdefault(sentence.split()[-1] if "same" in sentence else kind, []).append(truth)
    assert len(truths) == 5 and all(0.35 < np.mean(found) < 0.65 for found in truths.values()), truths
    record = source[3]
    assert record["second"].shape == record["image"].shape and np.any(record["second"] != record["image"])


def test_a_table_may_name_two_pictures(tmp_path):
    folder(tmp_path, {f"{i}.png": pixels(i) for i in range(4)})
    lines = [(f"{i}.png", f"{(i + 1) % 4}.png", f"sentence {i}", ("True", "False")[i % 2], "train") for i in range(4)]
    lines += [("0.png", "9.png", "lost", "True", "train"), ("0.png", "1.png", "held out", "True", "valid")]
    path = table(tmp_path, ("left", "right", "caption", "truth", "split"), *lines)
    prepared = opened(path, image="left", second="right", label="truth")
    source = prepared.source("train")
    assert source[1]["label"] == 0 and source[2]["label"] == 1
    np.testing.assert_array_equal(source[1]["second"], source[2]["image"])
    assert "1 lines without a picture, first line 6 (0.png and 9.png)" in prepared.note
    with pytest.raises(ValueError, match="one is not there of the pictures 0.png and 9.png"):
        source[4]
    objective = tiny.nlvr(tokenizer=None).bind(prepared.tokenizer.vocabulary)
    assert objective.check_data(prepared) == ("NLVR: 'True' is true and 'False' false",)
    batch = Dataset(source, objective.preprocess, 4).batch(0)
    assert batch.keys() == objective.batch_spec(4).keys()


@pytest.mark.parametrize(
    "make, text",
    [
        (
            lambda path: opened("shapes", second="right"),
            "PairData.second='right' says nothing of shapes, only of tsv, csv",
        ),
        (lambda path: OBJECTIVE.check_data(opened("shapes")), "NLVR tells true from false, and shapes has 8 classes"),
        (lambda path: OBJECTIVE.preprocess({"image": pixels(0), "captions": ("a",)}, None, 0, False), "reads two pict"),
        (lambda path: tiny.nlvr(pictures=3), "NLVR.pictures=3: a sentence is of 1 picture or of 2"),
    ],
)
def test_what_a_person_can_set_wrong(make, text, tmp_path):
    with pytest.raises(UserError, match=text):
        make(tmp_path)
