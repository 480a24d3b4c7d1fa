"""ELECTRA against a loop over tokens, its samples, what is shared, and its files."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradigm import hf as files
from paradigm.errors import UserError
from paradigm.objective import Context
from t5like import hf
from t5like.models import bert, gpt
from t5like.objectives import ELECTRA
from tests.t5like.test_masked_lm import FRAMED, LENGTH, VOCAB, make_batch
from tests.t5like.test_span_corruption import slow_token

TINY = {"d_model": 16, "heads": 4, "d_ff": 24, "layers": 2, "init_std": 0.3, "dropout": 0.0}
MODEL = bert("tiny", VOCAB, style="electra", embed_width=12, **TINY)
OBJECTIVE = ELECTRA(MODEL, LENGTH, rate=0.3, generator_width=0.5).bind(FRAMED)
PARAMS = jax.jit(OBJECTIVE.init)(jax.random.key(0))
BATCH = make_batch(OBJECTIVE)
EVALUATION = Context(jnp.int32(0), train=False)


gumbel = jax.jit(lambda key, n: jax.random.gumbel(jax.random.fold_in(key, n), (VOCAB,)))


@jax.jit
def guessed(params, batch):
    """The generator's logits."""
    own = {"params": OBJECTIVE.generator_params(params)}
    return OBJECTIVE.generator.apply(own, batch["encoder_inputs"], None, batch["encoder_segments"])[0]


@jax.jit
def detected(params, read, segments):
    """[1, L]: the probability of each token to be another."""
    states, _ = MODEL.apply({"params": params["model"]}, read, None, segments, method="hidden")
    dense, out = params["detector"]["dense"], params["detector"]["out"]
    h = jax.nn.gelu(states @ dense["kernel"] + dense["bias"], approximate=False)
    return jax.nn.sigmoid((h @ out["kernel"] + out["bias"])[..., 0])


def fakes_of(params, batch):
    """int [B, P]: what the generator puts in, drawn as the objective draws, from dense logits."""
    logits = np.asarray(guessed(params, batch))
    keys = EVALUATION.keys("electra", batch["index"])
    rows = []
    for b in range(len(keys)):
        noise = np.array([gumbel(keys[b], n) for n in range(len(batch["positions"][b]))])
        rows.append([int(np.argmax(logits[b, p] + g)) for p, g in zip(batch["positions"][b], noise)])
    return np.array(rows)


def slow_loss(params, batch, fakes, over):
    """One token at a time, of the three rows that are no padding."""
    guesses = guessed(params, batch)
    masked, told, hidden, seen, right, replaced, found = 0.0, 0.0, 0, 0, 0, 0, 0
    for b in range(3):
        read, at = np.array(batch["encoder_inputs"][b]), {}
        for n, place in enumerate(map(int, batch["positions"][b])):
            if batch["weights"][b, n]:
                target = int(batch["targets"][b, n])
                masked, hidden = masked + slow_token(guesses[b, place], target, 0.0)[0], hidden + 1
                read[place], at[place] = fakes[b, n], bool(fakes[b, n] != target)
        segments = batch["encoder_segments"][b : b + 1]
        replacements = detected(params, read[None], segments)
        for t in range(LENGTH):
            if batch["encoder_segments"][b, t] == 0 or (over == "hidden" and t not in at):
                continue
            p = replacements[0, t]
            told, seen = told - jnp.log(p if at.get(t) else 1 - p), seen + 1
            right += int((p > 0.5) == bool(at.get(t)))
            replaced, found = replaced + bool(at.get(t)), found + int(bool(at.get(t)) and p > 0.5)
    numbers = {"detection_accuracy": (right, seen), "replaced": (replaced, seen), "detection_recall": (found, replaced)}
    return masked / hidden + 50.0 * told / seen, numbers


@pytest.mark.parametrize("over", ["all", "hidden"])
def test_value_and_gradient(over):
    objective = dataclasses.replace(OBJECTIVE, over=over)
    fakes = fakes_of(PARAMS, BATCH)
    guessed = (BATCH["positions"] % 3 == 0) & (BATCH["weights"] > 0)  # where the sample is the original
    batch = BATCH | {"targets": jnp.where(guessed, fakes, BATCH["targets"])}
    assert 0.2 < np.mean((fakes != batch["targets"])[batch["weights"] > 0]) < 0.9
    run = lambda p: (lambda loss: (loss.value(), loss))(objective.loss(p, {}, batch, EVALUATION))
    (value, loss), grads = jax.jit(jax.value_and_grad(run, has_aux=True))(PARAMS)
    (expected, metrics), slow = jax.value_and_grad(slow_loss, has_aux=True)(PARAMS, batch, fakes, over)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for name, pair in metrics.items():
        np.testing.assert_allclose(loss.metrics[name], pair, err_msg=name)
    for path, x in jax.tree_util.tree_leaves_with_path(slow):
        fast = dict(jax.tree_util.tree_leaves_with_path(grads))[path]
        np.testing.assert_allclose(fast, x, atol=2e-4, rtol=1e-3, err_msg=jax.tree_util.keystr(path))


def test_samples_follow_the_generator():
    """Over many keys each token is drawn as often as its probability says, and no id beyond the vocabulary is."""
    objective = OBJECTIVE.bind(dataclasses.replace(FRAMED, size=VOCAB - 10))
    hidden, kernel = jax.random.normal(jax.random.key(1), (1, 2, 12)), jax.random.normal(jax.random.key(2), (12, VOCAB))
    many = jnp.broadcast_to(hidden, (4000, 2, 12))
    drawn = np.asarray(objective.sample(many, kernel / 4, jax.random.split(jax.random.key(3), 4000)))
    assert drawn.max() < VOCAB - 10 and len(np.unique(drawn[:, 0])) > 20
    assert 0.02 < np.mean(drawn[:, 0] == drawn[:, 1]) < 0.2  # two places draw apart
    for place in range(2):
        p = np.asarray(jax.nn.softmax(hidden[0, place] @ kernel[:, : VOCAB - 10] / 4))
        shares = np.bincount(drawn[:, place], minlength=VOCAB - 10) / 4000
        assert (np.abs(shares - p) < 5 * np.sqrt(p / 4000) + 1e-3).all()


def test_the_tables_are_one():
    assert {"embed", "positions", "token_types"} <= set(PARAMS["model"]) - set(PARAMS["generator"])
    apart = dataclasses.replace(OBJECTIVE, share="none")
    assert "embed" in jax.eval_shape(apart.init, jax.random.key(0))["generator"]
    moved = jax.tree.map(lambda x: x, PARAMS)
    moved["model"]["embed"]["embedding"] = PARAMS["model"]["embed"]["embedding"] * 1.5
    loss = jax.jit(lambda p: OBJECTIVE.loss(p, {}, BATCH, EVALUATION).metrics["generator/nll"][0])
    losses = [loss(p) for p in (PARAMS, moved)]
    assert abs(losses[0] - losses[1]) > 1e-3


def test_both_towers_are_written_and_read(tmp_path):
    modules = {name: module for name, (module, _) in OBJECTIVE.modules().items()}
    assert hf.write_objective(tmp_path / "model", OBJECTIVE, PARAMS) == ["generator"]
    hf.write(tmp_path / "generator", {"model": modules["generator"]}, {"model": OBJECTIVE.generator_params(PARAMS)})
    for name, tree in (("model", PARAMS["model"]), ("generator", OBJECTIVE.generator_params(PARAMS))):
        found, params = hf.read(tmp_path / name)
        jax.tree.map(np.testing.assert_array_equal, params["model"], tree)
        assert found["model"].head == (name == "generator")
    [family, *_] = files.family_of({"model": MODEL, "detector": OBJECTIVE.detector}, hf.FAMILIES)
    assert family.title == "ELECTRA discriminator"


@pytest.mark.parametrize(
    "settings, text",
    [
        (
            {"model": gpt("tiny", VOCAB)},
            "electra trains an Encoder, and the model is a Decoder: .*NextToken.* can train",
        ),
        ({"model": bert("tiny", VOCAB)}, "set the model's head=False"),
        ({"vocabulary": dataclasses.replace(FRAMED, mask=None)}, r"electra hides .*TextData.specials = \('mask',\)"),
        ({"share": "all"}, "ELECTRA.share"),
        ({"over": "some"}, "ELECTRA.over"),
        ({"temperature": 0.0}, "temperature=0 must be positive"),
        ({"generator_width": 0.8}, "heads do not divide d_model=13"),
        ({"length": 600}, "512 learned positions"),
        ({"rate": 1.5}, "rate must lie"),
    ],
)
def test_bad_settings(settings, text):
    with pytest.raises(UserError, match=text):
        dataclasses.replace(OBJECTIVE, **settings)
