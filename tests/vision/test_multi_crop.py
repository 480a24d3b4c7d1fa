"""DINO, iBOT, DINOv2, SwAV and NNCLR: what every objective passes, and the official losses as loops."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradigm.errors import UserError
from paradigm.objective import Context
from paradigm.optim import AdamW
from paradigm.schedule import Cosine, Linear
from tests import contract
from tests.compiled import compiled
from tests.vision import tiny
from vision.augment import Augment
from vision.masking import block_mask
from vision.objectives import DINO, IBOT, NNCLR, DINOv2, SwAV

BATCH = tiny.batch_of()
CTX = Context(jnp.int32(0), 0, True)
CROPS = ((tiny.views(), 2), (Augment(8, scale=(0.2, 0.5)), 2))
HEAD = {"prototypes": 8, "hidden": 16, "bottleneck": 12, "teacher_temperature": Linear(0.2, total_steps=4, final=0.4)}
HEAD |= {"momentum": Cosine(0.9, total_steps=5, final=1.0)}
MASKED = {**HEAD, "mask_ratio": (0.2, 0.6), "mask_probability": 0.8}
SETTINGS = {
    DINO: HEAD,
    IBOT: {**MASKED, "patch_temperature": 0.3},
    DINOv2: {**MASKED, "patch_temperature": 0.3},
    SwAV: {"prototypes": 8, "hidden": 16, "output": 12, "queue": 16, "epsilon": 0.3},
    NNCLR: {"queue": 16, "projector_widths": (16, 16, 12), "hidden": 16},
}


def small(kind, norm="layer", **changes):
    views = tiny.views(scale=(0.1, 1.0)) if issubclass(kind, NNCLR) else CROPS
    encoder = tiny.encoder(norm="rms" if issubclass(kind, NNCLR | SwAV) else norm, mask_token=kind in (IBOT, DINOv2))
    fields = {"encoder": encoder, "augment": views, "host_image_size": tiny.HOST_SIZE}
    return kind(**fields | SETTINGS[kind] | changes)


class Centred(NNCLR):
    """Without a running mean that is nothing but rounding: the projector's last norm centres the predictor's input."""

    def update_extra(self, extra, params, loss, ctx):
        extra = super().update_extra(extra, params, loss, ctx)
        extra["batch_stats"]["predictor"]["norm0"]["mean"] *= 0.0
        return extra


SETTINGS[Centred] = SETTINGS[NNCLR]
KINDS = {DINO: "teacher and centre", IBOT: "teacher and centre", DINOv2: "teacher and centre"}
KINDS |= {SwAV: "balanced assignments", Centred: "teacher and queue"}
CASES = {
    "NNCLR" if kind is Centred else kind.__name__: contract.Case(
        small(kind), BATCH, what, tiny.masked, parts=(2,), meshes=("mixed",)
    )
    for kind, what in KINDS.items()
}
globals().update(contract.tests(CASES))


# ---- The official losses, a number at a time -----------------------------------------------------------------------


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def official_sinkhorn(scores, iterations=3):
    """distributed_sinkhorn of main_swav.py, one process: scores [B, K]."""
    Q = np.exp(scores).T
    Q /= Q.sum()
    K, B = Q.shape
    for _ in range(iterations):
        Q = Q / Q.sum(1, keepdims=True) / K
        Q = Q / Q.sum(0, keepdims=True) / B
    return (Q / Q.sum(0, keepdims=True)).T


def cross_views(q, s):
    """Mean over pairs and rows of the cross-entropy of targets q [n, 2, K] and logits s [n, V, K]."""
    total, pairs = 0.0, 0
    for i in range(2):
        for v in range(s.shape[1]):
            if v != i:
                pairs += 1
                total += np.mean([-np.sum(q[n, i] * np.log(softmax(s[n, v]))) for n in range(len(q))])
    return total / pairs


def started(objective, step=0):
    params = tiny.params(objective)
    extra = compiled(objective.init_extra, params, jax.random.key(0))
    if objective.teacher is not None:
        extra["teacher"]["params"] = jax.tree.map(lambda x: 0.7 * x + 0.05, extra["teacher"]["params"])
    return params, extra, Context(jnp.int32(step), 0, True)


def embeddings(*shapes):
    draw = np.random.default_rng(1)
    return [unit(draw.normal(size=shape)).astype(np.float32) for shape in shapes]


def check(objective, params, extra, ctx, given, batch, by_loops, argument, places):
    """The value and some slopes of full_batch_loss against a function of one of the given embeddings."""
    value = lambda z: objective.full_batch_loss(params, extra, {**given, argument: z}, batch, ctx).value()
    if argument == "":
        value = lambda z: objective.full_batch_loss(params, extra, z, batch, ctx).value()
    x = given if argument == "" else given[argument]
    got, slope = jax.jit(jax.value_and_grad(value))(x)
    np.testing.assert_allclose(got, by_loops(np.float64(x)), rtol=1e-4)
    for at in places:
        nudge = np.zeros(x.shape)
        nudge[at] = 1e-4
        step = (by_loops(x + nudge) - by_loops(x - nudge)) / 2e-4
        np.testing.assert_allclose(slope[at], step, rtol=5e-3, atol=2e-4)


@pytest.mark.parametrize("rows", [8, 6])
def test_the_loss_of_dino(rows):
    objective, batch = small(DINO), BATCH(0) if rows == 8 else tiny.masked(0)
    params, extra, ctx = started(objective, step=2)
    extra["centre"]["class"] = np.linspace(-0.3, 0.3, 8).astype(np.float32)
    student, teacher = embeddings((8, 4, 12), (8, 2, 12))
    kernel, taught = (unit(np.float64(p["prototypes"]["kernel"]).T) for p in (params, extra["teacher"]["params"]))
    q = softmax((teacher @ taught.T - extra["centre"]["class"]) / 0.3)[:rows]  # half-way from 0.2 to 0.4

    def by_loops(student):
        return cross_views(q, (student @ kernel.T / 0.1)[:rows])

    given = {"student": student, "teacher": teacher}
    check(objective, params, extra, ctx, given, batch, by_loops, "student", ((0, 0, 3), (2, 3, 7), (5, 1, 0)))
    loss = compiled(objective.full_batch_loss, params, extra, given, batch, ctx)
    new = compiled(objective.update_extra, extra, params, loss, ctx)["centre"]["class"]
    wanted = 0.9 * extra["centre"]["class"] + 0.1 * (teacher @ taught.T)[:rows].mean((0, 1))
    np.testing.assert_allclose(new, wanted, rtol=1e-4, atol=1e-6)


def patches(draw, rows):
    """Hidden patches, padded: each view has another number of them, one none."""
    counts = draw.integers(0, 5, (rows, 2))
    counts[0, 0] = 0
    return np.float32(np.arange(4) < counts[..., None])


@pytest.mark.parametrize("kind", [IBOT, DINOv2], ids=lambda kind: kind.__name__)
def test_the_loss_of_ibot_and_dinov2(kind):
    objective, batch, rows = small(kind), tiny.masked(0), 6
    params, extra, ctx = started(objective, step=2)
    centre = np.linspace(-0.3, 0.3, 8).astype(np.float32)
    extra["centre"] = {"class": centre, "patches": centre[::-1]}
    names = ("student", "teacher", "patches", "teacher_patches", "teacher_mean", "class")
    shapes = ((8, 4, 12), (8, 2, 12), (8, 2, 4, 12), (8, 2, 4, 12), (8, 2, 12), (8, 2, 16))
    given = dict(zip(names, embeddings(*shapes)))
    given["hidden"] = patches(np.random.default_rng(3), 8)
    head = "" if kind is IBOT else "patch_"
    taught_params = extra["teacher"]["params"]
    prototypes = lambda p, head: unit(np.float64(p[f"{head}prototypes"]["kernel"]).T)
    t, u = (
        given["teacher"] @ prototypes(taught_params, "").T,
        given["teacher_patches"] @ prototypes(taught_params, head).T,
    )
    seen = given["hidden"][:rows] > 0
    if kind is IBOT:
        q, patch_q = softmax((t - centre) / 0.3)[:rows], softmax((u - centre[::-1]) / 0.3)[:rows]
    else:
        q = official_sinkhorn((t / 0.3)[:rows].reshape(12, 8)).reshape(rows, 2, 8)
        patch_q = np.zeros((rows, 2, 4, 8))
        patch_q[seen] = official_sinkhorn(u[:rows][seen] / 0.3)

    def by_loops(student_patches):
        total = cross_views(q, (given["student"] @ prototypes(params, "").T / 0.1)[:rows])
        s = student_patches @ prototypes(params, head).T / 0.1
        for n in range(rows):
            for v in range(2):
                own = [-np.sum(patch_q[n, v, i] * np.log(softmax(s[n, v, i]))) for i in range(4) if seen[n, v, i]]
                total += sum(own) / max(len(own), 1) / rows / 2
        for v in range(2 if kind is DINOv2 else 0):
            x = unit(np.float64(given["class"][:rows, v]))
            for n in range(rows):
                total += -0.1 * np.log(min(np.linalg.norm(x[n] - x[m]) for m in range(rows) if m != n)) / rows
        return total

    places = [(n, 1, 0, 3) for n in range(rows) if seen[n, 1, 0]][:3]
    check(objective, params, extra, ctx, given, batch, by_loops, "patches", places)


@pytest.mark.parametrize("step", [0, 2])
def test_the_loss_of_swav(step):
    """At step 2 the queue of two batches is full and takes part."""
    objective, batch, rows = small(SwAV), tiny.masked(0), 6
    params, extra, ctx = started(objective, step)
    draw = np.random.default_rng(1)
    pooled = draw.normal(size=(8, 4, 16)).astype(np.float32)
    p, kernel = jax.tree.map(np.float64, params["projector"]), unit(np.float64(params["prototypes"]["kernel"]).T)

    def scores(pooled):
        h = pooled.reshape(-1, 16) @ p["fc0"]["kernel"]
        h = np.maximum((h - h.mean(0)) / np.sqrt(h.var(0) + 1e-5) * p["norm0"]["scale"] + p["norm0"]["bias"], 0)
        return unit((h @ p["fc1"]["kernel"]).reshape(8, 4, 12)) @ kernel.T

    s, q = scores(np.float64(pooled))[:rows], []
    for i in range(2):
        older = np.asarray(extra["queue"][i], np.float64) @ kernel.T if step else np.zeros((0, 8))
        q.append(official_sinkhorn(np.concatenate([older, s[:, i]]) / 0.3)[-rows:])
    by_loops = lambda pooled: cross_views(np.stack(q, 1), scores(pooled)[:rows] / 0.1)
    objective = small(SwAV, freeze_steps=0)
    check(objective, params, extra, ctx, pooled, batch, by_loops, "", ((0, 0, 3), (2, 3, 7), (5, 1, 0)))


def test_the_loss_of_nnclr():
    objective, batch, rows = small(NNCLR), tiny.masked(0), 6
    params, extra, ctx = started(objective)
    pooled = np.random.default_rng(1).normal(size=(8, 2, 16)).astype(np.float32)
    p = jax.tree.map(np.float64, {name: params[name] for name in ("projector", "predictor")})
    norm = lambda x: (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)

    def heads(x):
        for i in range(3):
            x = norm(x @ p["projector"][f"fc{i}"]["kernel"])
            if i < 2:
                x = np.maximum(x * p["projector"][f"norm{i}"]["scale"] + p["projector"][f"norm{i}"]["bias"], 0)
        h = (
            norm(x @ p["predictor"]["fc0"]["kernel"]) * p["predictor"]["norm0"]["scale"]
            + p["predictor"]["norm0"]["bias"]
        )
        return x, unit(np.maximum(h, 0) @ p["predictor"]["fc1"]["kernel"])[:rows]

    queue = np.float64(extra["queue"])
    near = [[max(queue, key=lambda k, z=z: k @ z) for z in heads(np.float64(pooled[:, i]))[0][:rows]] for i in (0, 1)]

    def by_loops(online):
        total = 0.0
        for i in (0, 1):
            predicted = heads(online[:, 1 - i])[1]
            for row in range(rows):
                logits = predicted @ near[i][row] / 0.1
                total += (np.log(np.exp(logits).sum()) - logits[row]) / rows / 2
        return total

    check(objective, params, extra, ctx, {"online": pooled}, batch, by_loops, "online", ((0, 0, 3), (2, 1, 7)))


# ---- What surrounds them -------------------------------------------------------------------------------------------


def test_prototypes_rest_for_the_first_steps():
    objective, kernels = small(DINO, freeze_steps=1), []
    for steps in (0, 1, 2):
        state, _ = contract.run(objective, AdamW(1e-2), BATCH, 0, steps)
        kernels.append(state.params["prototypes"]["kernel"])
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert np.abs(kernels[2] - kernels[1]).max() > 1e-3


def test_an_adaptation_knows_what_the_heads_are():
    """They are new and trained whole, whatever is adapted beside them."""
    assert set(small(DINO).heads) == {"projector", "prototypes"}
    assert set(small(DINOv2).heads) == {"projector", "prototypes", "patch_projector", "patch_prototypes"}


def test_the_student_does_not_see_what_is_hidden():
    """By gradient: a hidden patch's pixels reach no output of the student, all of the teacher's."""
    objective, batch = small(IBOT, mask_probability=1.0), BATCH(0)
    params, extra, ctx = started(objective)
    mask = np.asarray(compiled(objective.draw_masks, batch, ctx))
    counts = mask.sum(-1)
    assert counts.min() >= 1 and counts.max() <= objective.hidden_patches == 9 and mask.shape == (8, 2, 16)
    views = compiled(objective.augment_views, batch, ctx)

    def reached(views):
        tokens, patches = objective._large_views({"params": params}, views, ctx, None, mask)
        return jnp.sum(jnp.sin(tokens)) + jnp.sum(jnp.sin(patches))

    slope = np.abs(jax.jit(jax.grad(reached))(views[:2])[0]).sum(-1).reshape(8, 4, 4, 4, 4).sum((2, 4)).reshape(8, 16)
    np.testing.assert_array_equal(slope > 0, ~mask[:, 0])


def test_block_masks():
    """As many as each picture's own count says, or somewhat fewer."""
    keys = jax.random.split(jax.random.key(0), 200)
    ratio = jnp.linspace(0.0, 0.5, 200)
    draw = lambda key, ratio: block_mask(key, (14, 14), 196 * ratio, 16)
    masks = np.asarray(jax.jit(jax.vmap(draw))(keys, ratio))
    counts, most = masks.sum(1), np.asarray(ratio) * 196
    assert (counts <= most).all() and counts[0] == 0 and np.mean(counts[40:] / most[40:]) > 0.8
    picture = masks.reshape(200, 14, 14)
    neighbours = (picture[:, 1:] & picture[:, :-1]).sum() / picture[:, 1:].sum()
    assert neighbours > 0.7, "blocks, not dust"
    left, top = picture[:, :, :7].sum() / picture.sum(), picture[:, :7].sum() / picture.sum()
    assert masks.any(0).all() and 0.42 < left < 0.58 and 0.42 < top < 0.58, "and anywhere"


@pytest.mark.parametrize(
    "kind, changes, text",
    [
        (DINO, {"augment": ((Augment(24), 2),)}, "DINO: a crop of 24 pixels is larger than the pictures of 20"),
        (
            DINO,
            {"augment": ((tiny.views(), 1), (Augment(8), 2))},
            "the first two views are the targets and must be of one",
        ),
        (SwAV, {"prototypes": 1}, "SwAV.prototypes=1: to choose between takes two at least"),
        (DINO, {"centring": "sinkhorm"}, "did you mean 'sinkhorn'"),
        (IBOT, {"encoder": tiny.encoder()}, "IBOT hides patches of a ViT: set vit.mask_token = True"),
        (IBOT, {"mask_ratio": (0.0, 0.01)}, "leaves nothing to predict or to see"),
        (NNCLR, {"temperature": 0}, "NNCLR.temperature=0 must be positive"),
    ],
)
def test_what_a_person_can_set_wrong(kind, changes, text):
    with pytest.raises(UserError, match=text):
        small(kind, **changes)


@pytest.mark.parametrize("kind", [SwAV, NNCLR], ids=lambda kind: kind.__name__)
def test_a_queue_that_batches_do_not_fill(kind):
    with pytest.raises(UserError, match=f"{kind.__name__}.queue=16 is not a multiple of the batch of 12"):
        small(kind).batch_spec(12)


def test_the_end_at_high_resolution_reads_larger_crops_with_the_positions_that_it_has():
    """Crops of 24 pixels for an encoder of 16: the same parameters, the positions between those that were learned."""
    encoder = tiny.encoder(mask_token=True, positions="learned")
    larger = ((tiny.views(), 2), (Augment(12, scale=(0.2, 0.5)), 2))
    larger = tuple((dataclasses.replace(view, size=24) if view.size == 16 else view, n) for view, n in larger)
    before = small(DINOv2, encoder=encoder)
    after = small(DINOv2, encoder=encoder, augment=larger, host_image_size=32)
    shapes = lambda objective: jax.eval_shape(objective.init, jax.random.key(0))
    assert shapes(before) == shapes(after)
    state, metrics = tiny.traced(after, AdamW(0.1))
    assert metrics["loss"][0].shape == () and after.hidden_patches == int(0.6 * 36)
    with pytest.raises(UserError, match="a crop of 24 pixels is larger than the pictures of 20"):
        small(DINOv2, encoder=encoder, augment=larger)
