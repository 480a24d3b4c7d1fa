"""CLIP and SigLIP as their papers write them, what is locked, what a caption is, and what does not fit."""

import math
import pickle
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch.run import registry
from multimodal.objectives.clip import clamped
from multimodal.towers import clip_text, clip_vit, siglip_text
from paradigm import trees
from paradigm.errors import UserError
from paradigm.objective import Context
from paradigm.optim import AdamW
from paradigm.step import init_state
from t5like.models import Encoder, gpt
from t5like.objectives import NextToken
from t5like.tokenizers import ByteTokenizer
from tests import contract
from tests.compiled import compiled
from tests.multimodal import tiny
from tests.vision import tiny as pictures
from vision.resnet import resnet

EVALUATE = Context(0, train=False)
BATCH = tiny.batch_of()(0)
LIT = (("^encoder/", True),)


def params_of(objective, seed=1):
    return jax.jit(objective.init)(jax.random.key(seed))


def embedded(objective, params, batch):
    z, _ = jax.jit(lambda p, b: objective.encode(p, {}, b, EVALUATE))(params, batch)
    return np.float64(z["image"]), np.float64(z["text"])


# ---- The losses ------------------------------------------------------------------------------------------------------


def test_clip_is_the_papers():
    """Figure 3's pseudocode on the five real pairs, padding left out."""
    objective, batch = tiny.clip(), tiny.batch_of(masked=3)(0)
    params = params_of(objective)
    loss = compiled(objective.loss, params, {}, batch, EVALUATE)
    image, text = (z[:5] for z in embedded(objective, params, batch))
    np.testing.assert_allclose(np.linalg.norm(image, axis=1), 1.0, rtol=1e-5)
    logits = image @ text.T / 0.07
    rows = [-math.log(np.exp(logits[i, i]) / np.exp(logits[i]).sum()) for i in range(5)]
    columns = [-math.log(np.exp(logits[i, i]) / np.exp(logits[:, i]).sum()) for i in range(5)]
    np.testing.assert_allclose(loss.terms["pairs"].sum, (sum(rows) + sum(columns)) / 2, rtol=1e-5)
    assert loss.terms["pairs"].weight == 5
    assert loss.metrics["image_to_text"] == (sum(np.argmax(logits[i]) == i for i in range(5)), 5)
    assert loss.metrics["text_to_image"] == (sum(np.argmax(logits[:, i]) == i for i in range(5)), 5)
    np.testing.assert_allclose(loss.metrics["scale"][0], 1 / 0.07, rtol=1e-6)
    np.testing.assert_allclose(
        compiled(objective.logits, params, np.float32(image), np.float32(text)), logits, rtol=1e-4
    )


def test_siglip_is_the_papers():
    """Algorithm 1, a pair at a time."""
    objective, batch = tiny.siglip(), tiny.batch_of(masked=3)(0)
    params = params_of(objective)
    loss = compiled(objective.loss, params, {}, batch, EVALUATE)
    image, text = (z[:5] for z in embedded(objective, params, batch))
    total = 0.0
    for i in range(5):
        for j in range(5):
            z = 1 if i == j else -1
            total += math.log(1 + math.exp(-z * (10 * image[i] @ text[j] - 10)))
    np.testing.assert_allclose(loss.terms["pairs"].sum, total, rtol=1e-5)
    assert loss.terms["pairs"].weight == 5
    np.testing.assert_allclose(loss.metrics["scale"][0], 10, rtol=1e-6)
    np.testing.assert_allclose(loss.metrics["bias"][0], -10, rtol=1e-6)


def test_the_scale_is_clamped_and_can_come_back():
    objective = tiny.clip()
    for log_scale, expected in ((9.0, 100.0), (-1.0, 1.0), (2.0, math.exp(2.0))):
        np.testing.assert_allclose(objective.scale({"log_scale": jnp.float32(log_scale)}), expected, rtol=1e-5)
    slope = lambda x, sign: float(jax.grad(lambda x: sign * clamped(x, 0.0, 4.0))(x))
    assert (slope(5.0, -1.0), slope(5.0, 1.0)) == (0.0, 1.0)  # descent may only lead back
    assert (slope(-1.0, -1.0), slope(-1.0, 1.0)) == (-1.0, 0.0)
    assert (slope(2.0, -1.0), slope(2.0, 1.0)) == (-1.0, 1.0)


def test_a_caption_that_occurs_twice_shares_its_probability():
    objective, batch = tiny.clip(), tiny.batch_of(2)(0)
    batch["tokens"][1] = batch["tokens"][0]
    params = params_of(objective)
    z, _ = compiled(objective.encode, params, {}, batch, EVALUATE)
    z["image"] = z["image"].at[1].set(z["image"][0])
    loss = compiled(objective.full_batch_loss, params, {}, z, batch, EVALUATE)
    np.testing.assert_allclose(loss.value(), math.log(2), rtol=1e-5)


def test_siglip_asks_a_caption_that_occurs_twice_for_a_yes_and_a_no():
    """No answer is right for both: even chances are the best, as the class says."""
    objective, same = tiny.siglip(), jnp.tile(jnp.array([1.0, 0.0]), (2, 1))

    def loss(logit):
        params = {"log_scale": jnp.float32(0.0), "bias": logit - 1.0}  # of a cosine of 1
        z = {"image": same, "text": same}
        return compiled(objective.full_batch_loss, params, {}, z, {"mask": jnp.ones(2)}, EVALUATE).value()

    value, slope = jax.value_and_grad(loss)(0.0)
    np.testing.assert_allclose([value, slope], [2 * math.log(2), 0.0], atol=1e-6)
    assert loss(0.3) > value < loss(-0.3)


def test_training_draws_views_and_evaluation_does_not():
    objective, batch = tiny.clip(), tiny.batch_of()(0)
    params = params_of(objective)
    look = lambda ctx: compiled(objective.encode, params, {}, batch, ctx)[0]["image"]
    assert np.any(look(Context(jnp.int32(0))) != look(EVALUATE))
    plain = objective.embed_images({"params": params}, compiled(objective.view, batch))
    rounding = 0 if jax.__version_info__ < (0, 12) else 1e-6  # of one program beside operation by operation
    np.testing.assert_allclose(look(EVALUATE), plain, rtol=0, atol=rounding)


def test_siglip_resizes_whole_pictures_and_clip_cuts_their_middle():
    batch = tiny.batch_of()(0)
    square = {**batch, "aspect": np.ones_like(batch["aspect"])}
    for objective, whole in ((tiny.clip(), False), (tiny.siglip(), True), (tiny.clip(ignore_aspect=True), True)):
        assert np.array_equal(compiled(objective.view, batch), compiled(objective.view, square)) == whole
        params, ctx = params_of(objective), Context(jnp.int32(0))
        drawn = [compiled(objective.encode, params, {}, b, ctx)[0]["image"] for b in (batch, square)]
        assert np.array_equal(*drawn) == whole


# ---- Text ------------------------------------------------------------------------------------------------------------


def test_clip_reads_up_to_the_end_token():
    objective = tiny.clip()
    variables = {"params": params_of(objective)}
    row = np.array([[7, 8, 1, 0, 0, 0, 0, 0]], np.int32)
    read = jax.jit(lambda row: objective.embed_texts(variables, row))
    after, before = row.copy(), row.copy()
    after[0, 3], before[0, 0] = 9, 9
    np.testing.assert_array_equal(read(after), read(row))
    assert np.any(read(before) != read(row))
    no_end = np.array([[7, 8, 5, 5, 5, 5, 5, 5]], np.int32)
    last = no_end.copy()
    last[0, -1] = 9
    assert np.any(read(last) != read(no_end))  # where there is no end token the last place is it


def test_siglip_reads_all():
    objective = tiny.siglip()
    read = jax.jit(lambda row: objective.embed_texts({"params": params_of(objective)}, row))
    row = np.array([[7, 8, 1, 0, 0, 0, 0, 0]], np.int32)
    for i in range(tiny.LENGTH):
        other = row.copy()
        other[0, i] = 9
        assert np.any(read(other) != read(row))


def test_long_captions_are_cut_and_keep_their_end():
    preprocess = tiny.clip().preprocess
    record = {"image": np.zeros((4, 6, 3), np.uint8), "label": 2, "caption": "abcdefghijk"}
    example = pickle.loads(pickle.dumps(preprocess))(record, None, 0, True)
    assert example["tokens"].tolist() == [ord(c) + 3 for c in "abcdefg"] + [1] and example["cut"] == 1.0
    example = preprocess({**record, "caption": "ab"}, None, 0, True)
    assert example["tokens"].tolist() == [100, 101, 1, 0, 0, 0, 0, 0] and example["cut"] == 0.0
    assert example["image"].shape == (pictures.HOST_SIZE,) * 2 + (3,) and example["label"] == 2
    exact = preprocess({**record, "caption": "abcdefg"}, None, 0, True)
    assert exact["tokens"][-1] == 1 and exact["cut"] == 0.0
    np.testing.assert_array_equal(tiny.clip().tokenize(["ab", "abcdefg"])[1], exact["tokens"])
    no_tokenizer = tiny.clip(tokenizer=None).bind(ByteTokenizer(0).vocabulary)
    np.testing.assert_array_equal(no_tokenizer.tokenize(["abcdefg"], ByteTokenizer(0))[0], exact["tokens"])
    batch = tiny.batch_of(masked=3)(0)
    loss = compiled(tiny.clip().loss, params_of(tiny.clip()), {}, batch, EVALUATE)
    assert loss.metrics["captions_cut"] == (batch["cut"][:5].sum(), 5)


def test_a_tokenizer_with_a_first_token():
    class Bos(ByteTokenizer):
        own = {"pad": 0, "eos": 1, "bos": 2}

    row, cut = tiny.clip(tokenizer=Bos(0)).preprocess.tokens("abcdefg")
    assert row.tolist() == [2, *[ord(c) + 3 for c in "abcdef"], 1] and cut


# ---- Towers ----------------------------------------------------------------------------------------------------------


def names(tree):
    return [name for name, _ in trees.named_leaves(tree)]


def shapes(params):
    return {name: x.shape for name, x in trees.named_leaves(params)}


def test_text_towers_have_the_parameters_of_text_models():
    """So that a language model's weights can start a text tower."""
    own = shapes(params_of(tiny.clip())["text"])
    style = {"activation": "gelu", "tied": True, "max_length": tiny.LENGTH, **tiny.TOWER}
    model = gpt("tiny", tiny.VOCAB, "gpt2", **style)
    run = shapes(jax.eval_shape(NextToken(model=model, length=4).init, jax.random.key(0)))
    renamed = {re.sub("^model/", "text/", name): shape for name, shape in run.items()}  # as Init.rename does
    assert renamed == {f"text/{name}": shape for name, shape in own.items()}
    fields = {"vocab_size": tiny.VOCAB, "positions": "learned", "max_length": tiny.LENGTH, "tied": True}
    encoder = Encoder(**fields, **tiny.TOWER, activation="gelu", norm="layer", bias=True)
    own = shapes(params_of(tiny.siglip())["text"])
    assert own == shapes(compiled(encoder.init, jax.random.key(0), jnp.ones((1, 4), jnp.int32))["params"])


def test_first_values():
    """Deviations of openai/CLIP's and big_vision's first weights, and the scalars."""
    clip = params_of(tiny.clip(text=clip_text("tiny", 2000, 200, d_model=64)))
    text = clip["text"]
    for x, std in (
        (text["embed"]["embedding"], 0.02),
        (text["positions"]["embedding"], 0.01),
        (text["decoder"]["layers"]["attention"]["query"]["kernel"], 64**-0.5),
        (text["decoder"]["layers"]["mlp"]["down"]["kernel"], 64**-0.5 / 2),  # of 2 layers
        (clip["text_head"]["project"]["kernel"], 64**-0.5),
    ):
        np.testing.assert_allclose(np.std(x), std, rtol=0.1)
    assert clip["log_scale"].shape == () and np.isclose(clip["log_scale"], 2.6593, atol=1e-4)
    siglip = params_of(tiny.siglip(text=siglip_text("ti", 2000, 200, layers=1), text_projection="linear"))
    np.testing.assert_allclose(np.std(siglip["text"]["embed"]["embedding"]), 192**-0.5, rtol=0.1)
    np.testing.assert_allclose(np.std(siglip["text"]["positions"]["embedding"]), 192**-0.5, rtol=0.1)
    assert "image_head" in siglip and "project" not in siglip["image_head"]
    assert np.isclose(siglip["log_scale"], math.log(10)) and siglip["bias"] == -10


def test_clip_normalises_before_its_blocks():
    encoder = params_of(tiny.clip())["encoder"]
    assert set(encoder["blocks"]["pre_norm"]) == {"scale", "bias"}
    tower = tiny.clip().encoder
    image = jax.random.normal(jax.random.key(0), (1, 16, 16, 3))
    scaled = jax.tree.map(jnp.copy, encoder)
    for name in ("embed", "positions"):
        scaled[name] = jax.tree.map(lambda x: 3 * x, scaled[name])
    scaled["class_token"] = 3 * scaled["class_token"]
    one, three = (compiled(tower.apply, {"params": p}, image)[0] for p in (encoder, scaled))
    np.testing.assert_allclose(one, three, atol=1e-3)


# ---- Locked towers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("microbatches", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_locked_tower_does_not_move(microbatches):
    """Neither by its gradient nor by weight decay; all else does."""
    objective, optimizer = tiny.clip(), AdamW(1e-2, weight_decay=0.1)
    state = jax.jit(lambda: init_state(objective, optimizer, 0, freeze=LIT))()
    after, _ = contract.run(objective, optimizer, tiny.batch_of(), 0, 1, state, microbatches=microbatches)
    assert after.frozen_modules == ("encoder",) and "encoder" not in after.params
    assert set(names(after.frozen)) == {n for n in names(params_of(objective)) if n.startswith("encoder/")}
    contract.assert_trees_equal(after.frozen, jax.device_get(state.frozen))
    for name in ("image_head", "text", "text_head", "log_scale"):
        pairs = zip(jax.tree.leaves(after.params[name]), jax.tree.leaves(state.params[name]))
        assert all(np.any(new != old) for new, old in pairs), name
    assert not any("encoder/" in name.replace("text/", "") for name in names(after.opt_state))
    spec = objective.batch_spec(8)
    assert objective.flops(spec, after.frozen_modules) < 0.75 * objective.flops(spec)


def test_the_file_that_locks_the_image_tower_freezes_all_of_it():
    run = registry.parse(["runs/smoke/clip.gin", "objectives/lit.gin"])
    objective = run.objective.bind(ByteTokenizer(0).vocabulary)
    state = jax.eval_shape(lambda: init_state(objective, run.optimizer, run.seed, run.ema, freeze=run.freeze))
    every = names(jax.eval_shape(objective.init, jax.random.key(0)))
    assert names(state.frozen) == [name for name in every if name.startswith("encoder/")]
    assert len(names(state.frozen)) == 24 and state.frozen_modules == ("encoder",)
    assert names(state.params) == [name for name in every if not name.startswith("encoder/")]


@pytest.mark.parametrize("locked", [("encoder",), pytest.param(("text", "text_head"), marks=pytest.mark.slow)])
def test_locked_parameters_get_no_gradient(locked):
    """The others have the gradient that they would have without."""
    objective, optimizer = tiny.siglip(), contract.UnitStep()
    _, _, whole = contract.gradients(objective, tiny.batch_of(), "main")
    freeze = (("^(" + "|".join(locked) + ")/", True),)
    state = jax.jit(lambda: init_state(objective, optimizer, 0, freeze=freeze))()
    assert state.frozen_modules == locked
    grads = contract.run(objective, optimizer, tiny.batch_of(), 0, 1, state)[0].opt_state
    assert set(grads) == set(whole) - set(locked)
    for name, tree in whole.items():
        assert any(np.any(g) for g in jax.tree.leaves(tree)), name
    contract.assert_trees_close(grads, {name: whole[name] for name in grads}, 1e-5)


def test_a_locked_resnet_keeps_its_statistics():
    """And then its examples do not couple, so that microbatches are allowed."""
    objective, optimizer = (
        tiny.clip(encoder=resnet("tiny", depths=(1,), width=0.125, image_size=pictures.SIZE)),
        AdamW(1e-3),
    )
    assert objective.has_batch_norm() and not objective.has_batch_norm(("encoder",))
    with pytest.raises(UserError, match="CLIP couples the examples of a batch"):
        pictures.traced(objective, optimizer, microbatches=2)
    with pytest.raises(UserError, match="CLIP couples the examples of a batch"):  # one kernel of it is not all of it
        pictures.traced(objective, optimizer, freeze=(("^encoder/stem/", True),), microbatches=2)
    start = jax.jit(lambda: init_state(objective, optimizer, 0, freeze=LIT))()
    moments = {f"encoder/{name}" for name in names(start.extra["batch_stats"]["encoder"])}
    for frozen in ((), ("encoder",)):
        ctx = Context(0, frozen=frozen)
        loss = jax.eval_shape(lambda p, e: objective.loss(p, e, BATCH, ctx), start.all_params, start.extra)
        assert set(loss.stats) == (set() if frozen else moments)
    after, _ = contract.run(objective, optimizer, tiny.batch_of(), 0, 1, start, microbatches=2)
    contract.assert_trees_equal((after.frozen, after.extra), jax.device_get((start.frozen, start.extra)))
    assert np.any(after.params["text_head"]["project"]["kernel"] != start.params["text_head"]["project"]["kernel"])


# ---- What does not fit -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change,message",
    [
        ({"image_projection": "none", "width": 32}, "the image tower gives 16 features and the shared space has 32"),
        ({"text_projection": "none", "width": 32}, "set width=16, or text_projection='linear'"),
        (
            {"text": clip_text("tiny", 100, 8)},
            "the tokenizer has 259 ids but the text tower of CLIP 100: set its vocab_size to 259",
        ),
        ({"text": clip_text("tiny", 300, 8, end_id=7)}, "pooled at 7: set the tower's end_id=1"),
        (
            {"text": clip_text("tiny", 300, 8, pool="highest")},
            "captions end with the id 1, which is not the highest",
        ),
        ({"image_pool": "max"}, "CLIP.image_pool"),
        ({"encoder": resnet("tiny"), "image_pool": "map"}, "CLIP.image_pool='map' reads patches: choose a ViT"),
        ({"text_projection": "line"}, "CLIP.text_projection.*linear"),
        ({"augment": pictures.views(), "encoder": clip_vit("tiny", 32, 4)}, "views of 16 pixels.*the encoder reads 32"),
    ],
)
def test_settings_that_do_not_fit(change, message):
    with pytest.raises(UserError, match=message):
        tiny.clip(**change)


def test_a_batch_of_one():
    with pytest.raises(UserError, match="CLIP: a batch of 1 has no pair to tell from another: take at least 2"):
        tiny.clip().batch_spec(1)


def test_sizes_that_do_not_exist():
    with pytest.raises(UserError, match="CLIP text size"):
        clip_text("x", 300)
    for tower in (clip_vit, lambda size: siglip_text(size, 300)):
        with pytest.raises(UserError, match="unknown ViT size 'xl': did you mean 'l'"):
            tower("xl")
    with pytest.raises(UserError, match="field of TextTower.*causal"):
        clip_text("b", 300, casual=True)
    with pytest.raises(UserError, match="pool"):
        siglip_text("b", 300, pool="first")
    tower = clip_text("tiny", 300, 4, end_id=1)
    with pytest.raises(UserError, match="5 tokens, but max_length=4 learned positions: raise max_length"):
        compiled(tower.init, jax.random.key(0), jnp.ones((1, 5), jnp.int32))


def test_a_resnet_tower_reads_views_of_any_size():
    objective = tiny.clip(encoder=pictures.small_resnet())
    assert objective.encoder.image_size != pictures.SIZE and objective.views[0].size == pictures.SIZE
    assert objective.flops(objective.batch_spec(8)) > 0 and "image_head" in objective.modules()


def test_they_contrast_the_pairs_of_a_batch():
    assert tiny.clip().contrasts and tiny.siglip().contrasts


@pytest.mark.parametrize(
    "name, models, sizes",
    [
        ("slip", ("clip",), ()),
        ("siglip_captions", ("siglip", "cappa"), ("SigLIP.width = 96",)),
        ("siglip2", ("siglip", "cappa"), ("SILCSigmoid.width = 96", "dino_views.local_size = 16")),
    ],
)
def test_parts_that_share_an_encoder_show_it_the_same_pixels(name, models, sizes):
    run = ["Experiment.total_steps = 1", "Experiment.batch_size = 8", "Experiment.data = @PairData()", "size = 32"]
    run += ["Experiment.optimizer = @AdamW()", "AdamW.learning_rate = 1e-3", *sizes]
    files = [f"objectives/{name}.gin", *(f"models/{model}_tiny.gin" for model in models)]
    views = [view for _, part in registry.parse(files, run).objective.parts for view in part.views]
    assert len(views) > 1 and len({(view.mean, view.std) for view in views}) == 1
