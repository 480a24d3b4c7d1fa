"""SILC as its paper writes it: CLIP's or SigLIP's loss of each global view, and local views that follow the teacher."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multimodal.zero_shot import Retrieval
from paradigm.errors import UserError
from paradigm.objective import EVALUATION, Context
from tests import contract
from tests.compiled import compiled
from tests.multimodal import tiny
from tests.multimodal.pairs import opened, plain
from tests.vision.tiny import Opened, params

TRAIN = Context(jnp.int32(0))
BATCH = tiny.batch_of(masked=5)(0)
REAL = 3
look = jax.jit(lambda augment, *args: augment(*args), static_argnums=0)
KINDS = {"silc": tiny.silc, "silc_sigmoid": tiny.silc_sigmoid}


def started(objective):
    """(params, extra of a teacher of its own and a centre that is somewhere)."""
    p = params(objective)
    extra = jax.jit(objective.init_extra)(p, jax.random.key(0))
    extra["teacher"]["params"] = jax.tree.map(lambda x: 0.7 * x + 0.05, extra["teacher"]["params"])
    centre = {"class": jnp.linspace(-0.3, 0.3, 8), "patches": jnp.linspace(0.2, -0.2, 8)}
    return p, {**extra, "centre": {name: centre[name] for name in extra["centre"]}}


def vectors(objective, p, views):
    """z [V, REAL, E] of views of one size of each picture, before they are made unit vectors."""
    x, found = objective.encoder.apply({"params": p["encoder"]}, jnp.concatenate([view[:REAL] for view in views]))
    x = found["patches"] if objective.image_pool == "map" else x
    z = objective.modules()["image_head"][0].apply({"params": p["image_head"]}, x)[0]
    return z.reshape(len(views), REAL, -1)


def unit(x):
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def scores(objective, p, z):
    """[REAL, K]: cosines with the prototypes."""
    h, _ = objective.modules()["projector"][0].apply({"params": p["projector"]}, z)
    return unit(h) @ unit(p["prototypes"]["kernel"].T).T


def pairs(objective, p, z, text):
    """CLIP's or SigLIP's loss of unit vectors, pair by pair."""
    logits, total = jnp.exp(p["log_scale"]) * z @ text.T, 0.0
    for i in range(REAL):
        for j in range(REAL):
            if "bias" in p:
                total += jnp.log1p(jnp.exp(-(1 if i == j else -1) * (logits[i, j] + p["bias"])))
        if "bias" not in p:
            total -= jax.nn.log_softmax(logits[i])[i] / 2 + jax.nn.log_softmax(logits[:, i])[i] / 2
    return total / REAL


@pytest.mark.parametrize("name", ["silc", pytest.param("silc_sigmoid", marks=pytest.mark.slow)])
def test_the_loss_is_the_papers(name):
    """In value and gradient: two global views and two local ones, the teacher sees the first, the student the last."""
    objective = KINDS[name](distillation=0.5)
    p, extra = started(objective)
    aspect = np.ones(8) if objective.ignore_aspect else BATCH["aspect"]
    views = [
        look(augment, BATCH["image"], aspect, TRAIN.keys(f"view/{i}", BATCH["index"]))
        for i, augment in enumerate(objective.views)
    ]

    @jax.jit
    @jax.value_and_grad
    def slow(p):
        teacher, text = extra["teacher"]["params"], objective.embed_texts({"params": p}, BATCH["tokens"])[:REAL]
        aligned = sum(pairs(objective, p, unit(z), text) / 2 for z in vectors(objective, p, views[:2]))
        local, distilled = [scores(objective, p, z) for z in vectors(objective, p, views[2:])], 0.0
        for z in vectors(objective, teacher, views[:2]):
            taught = scores(objective, teacher, z)
            for row in range(REAL):
                q = jax.nn.softmax((taught[row] - extra["centre"]["class"]) / 0.2)
                distilled -= sum(jnp.sum(q * jax.nn.log_softmax(s[row] / 0.1)) for s in local) / 4 / REAL
        return aligned + 0.5 * distilled

    fast = jax.jit(jax.value_and_grad(lambda p: objective.loss(p, extra, BATCH, TRAIN).value()))
    (value, slope), (wanted, wanted_slope) = fast(p), slow(p)
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    contract.assert_trees_close(slope, wanted_slope, 5e-5)


def test_hidden_patches_are_found_as_the_teacher_sees_them():
    """SigLIP 2's last term, in value and gradient, by a loop over pictures and views."""
    encoder = tiny.siglip().encoder.clone(mask_token=True)
    objective = tiny.silc_sigmoid(encoder=encoder, masked=0.25)
    p, extra = started(objective)
    teacher = extra["teacher"]["params"]
    assert {"patch_projector", "patch_prototypes"} <= teacher.keys()
    views = [
        look(augment, BATCH["image"], np.ones(8), TRAIN.keys(f"view/{i}", BATCH["index"]))
        for i, augment in enumerate(objective.views[:2])
    ]
    noise = [
        np.stack([jax.random.uniform(k, (16,)) for k in TRAIN.keys(f"hidden/{i}", BATCH["index"])]) for i in (0, 1)
    ]
    masks = [np.argsort(np.argsort(x, 1), 1) < 8 for x in noise]

    def scored(p, mask):
        """[V, REAL, N, K] of the patches of both views."""
        both = jnp.concatenate([view[:REAL] for view in views])
        patches = objective.encoder.apply({"params": p["encoder"]}, both, mask=mask)[1]["patches"]
        h = objective.modules()["patch_projector"][0].apply({"params": p["patch_projector"]}, patches)[0]
        return (unit(h) @ unit(p["patch_prototypes"]["kernel"].T).T).reshape(2, REAL, 16, -1)

    def slow(p):
        total = 0.0
        student, taught_all = scored(p, np.concatenate([mask[:REAL] for mask in masks])), scored(teacher, None)
        for found, taught, mask in zip(student, taught_all, masks):
            for row in range(REAL):
                at = np.flatnonzero(mask[row])
                q = jax.nn.softmax((taught[row][at] - extra["centre"]["patches"]) / 0.2)
                total -= jnp.sum(q * jax.nn.log_softmax(found[row][at] / 0.1)) / 8 / 2 / REAL
        return 0.25 * total

    def fast(p):
        term = objective.loss(p, extra, BATCH, TRAIN).terms["patches"]
        return term.coefficient * term.sum / term.weight

    (value, slope), (wanted, wanted_slope) = (jax.jit(jax.value_and_grad(f))(p) for f in (fast, slow))
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    contract.assert_trees_close(slope, wanted_slope, 5e-5)
    with pytest.raises(UserError, match="SILCSigmoid.masked hides patches of a ViT: set the encoder's mask_token=True"):
        tiny.silc_sigmoid(masked=0.25)
    with pytest.raises(UserError, match="SILCSigmoid.mask_ratio=0.0 hides 0 of 16 patches"):
        tiny.silc_sigmoid(encoder=encoder, masked=0.25, mask_ratio=0.0)


def test_the_teacher_keeps_pace_and_has_no_text_tower():
    objective = tiny.silc()
    p, extra = started(objective)
    assert set(extra["teacher"]["params"]) == {"encoder", "image_head", "projector", "prototypes"}
    new = jax.tree.map(lambda x: x + 1.0, p)
    loss = jax.jit(lambda: objective.loss(p, extra, BATCH, TRAIN))()
    for step in (0, 10**6):
        moved = compiled(objective.update_extra, extra, new, loss, Context(jnp.int32(step)))["teacher"]["params"]
        old, seen = (tree["image_head"]["project"]["kernel"] for tree in (extra["teacher"]["params"], moved))
        np.testing.assert_allclose(seen, 0.966 * old + 0.034 * new["image_head"]["project"]["kernel"], atol=1e-6)


def test_it_finds_captions_by_the_student_and_by_the_teacher(tmp_path):
    prepared, objective = opened(plain(tmp_path), valid=0.5), tiny.silc()
    data = Opened(prepared.source)
    data.tokenizer = prepared.tokenizer
    p, extra = started(objective)
    for which in ("online", "teacher"):
        numbers, _ = Retrieval(random=False).run(objective, objective.variables(p, extra, which), data)
        assert numbers["image_to_text@10"] == 1.0
    seen = [
        objective.embed_images(objective.variables(p, extra, w), compiled(objective.view, BATCH))
        for w in ("online", "teacher")
    ]
    assert np.any(seen[0] != seen[1])
    loss = jax.jit(lambda: objective.loss(p, extra, BATCH, EVALUATION))()
    alone = tiny.clip()
    wanted = jax.jit(lambda: alone.loss(p, {}, BATCH, EVALUATION))()
    np.testing.assert_allclose(loss.terms["pairs"].sum, wanted.terms["pairs"].sum, rtol=1e-5)


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"augment": tiny.CROPS["augment"][:1]}, "SILC: 2 views are the teacher's, and none is left for the student"),
        ({"patch_drop": 0.5}, "SILC.patch_drop=0.5: all patches of a view are read here"),
    ],
)
def test_what_a_person_can_set_wrong(changes, text):
    with pytest.raises(UserError, match=text):
        tiny.silc(**changes)
