"""BYOL, SimSiam, Barlow Twins and VICReg: what every objective passes, and the official losses as loops."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradigm.errors import UserError
from paradigm.objective import Context
from paradigm.optim import LARS
from paradigm.schedule import Cosine
from tests import contract
from tests.compiled import compiled
from tests.vision import tiny
from vision.objectives import BYOL, BarlowTwins, SimSiam, VICReg

BATCH = tiny.batch_of()
CTX = Context(jnp.int32(0), 0, True)
HEADS = {
    BYOL: {"hidden": 16, "output": 12, "momentum": Cosine(0.9, total_steps=5, final=1.0)},
    SimSiam: {"hidden": 16, "output": 4},
    BarlowTwins: {"widths": (12, 12), "redundancy": 0.1},
    VICReg: {"widths": (16, 12)},
}
PARTS = dict.fromkeys(HEADS, 2) | {SimSiam: 1}  # whose gradient is small: cut and sharded at once its rounding adds up
every = contract.one_by_one("kind", HEADS, ids=lambda kind: kind.__name__)


def small(kind, **changes):
    # Without LayerNorm's last bias, whose gradient is nothing but rounding: the head's BatchNorm takes it off again.
    fields = {"encoder": tiny.encoder(norm="rms"), "augment": tiny.views(), "host_image_size": 20}
    return kind(**fields | HEADS[kind] | changes)


@functools.cache
def centred(kind):
    """Without running means that are nothing but rounding: a norm before the predictor centres its input."""

    class Centred(kind):
        def update_extra(self, extra, params, loss, ctx):
            extra = super().update_extra(extra, params, loss, ctx)
            if kind is SimSiam:
                extra["batch_stats"]["predictor"]["norm0"]["mean"] *= 0.0
            return extra

        def full_batch_loss(self, *args):
            """A mean of cosines may be nothing but rounding; 1 + it is not."""
            loss = super().full_batch_loss(*args)
            add = lambda term: term.replace(sum=term.sum + term.weight)
            return loss.replace(terms={k: add(v) if k == "cosine" else v for k, v in loss.terms.items()})

    Centred.__name__ = kind.__name__
    return Centred(**{f: getattr(small(kind), f) for f in kind.__dataclass_fields__})


KINDS = dict.fromkeys((BYOL, SimSiam), "teacher and BatchNorm")
KINDS |= dict.fromkeys((BarlowTwins, VICReg), "dimensions that are compared")
CASES = {
    kind.__name__: contract.Case(
        centred(kind), BATCH, what, tiny.masked, PARTS[kind], parts=(2,), meshes=("mixed", "data")
    )
    for kind, what in KINDS.items()
}
globals().update(contract.tests(CASES))


# ---- The official losses, from projections in float64, a number at a time ------------------------------------------


def norm(x, p=None):
    y = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
    return y if p is None else y * p["scale"] + p["bias"]


def head(params, x, last_norm=False):
    """A Head with norms and ReLU between its layers, its BatchNorm by these rows."""
    params, layers = jax.tree.map(np.float64, params), sum(name.startswith("fc") for name in params)
    for i in range(layers):
        x = x @ params[f"fc{i}"]["kernel"] + params[f"fc{i}"].get("bias", 0.0)
        if i < layers - 1:
            x = np.maximum(norm(x, params[f"norm{i}"]), 0)
    return norm(x) if last_norm else x


def cosine(a, b):
    return (a @ b) / (np.linalg.norm(a) * np.linalg.norm(b))


def byol(params, teacher, online, target, rows):
    total, q, k = 0.0, [], []
    for view in (0, 1):
        q.append(head(params["predictor"], head(params["projector"], online[:, view])))
        k.append(head(teacher["projector"], target[:, view]))
    for i in range(rows):
        total += 2 - 2 * cosine(q[0][i], k[1][i]) + 2 - 2 * cosine(q[1][i], k[0][i])
    return total / rows


def simsiam(params, online, stopped, rows):
    """stopped: the projections that are targets, which no gradient reaches."""
    p = [head(params["predictor"], head(params["projector"], online[:, view], True)) for view in (0, 1)]
    return -sum(cosine(p[0][i], stopped[1][i]) + cosine(p[1][i], stopped[0][i]) for i in range(rows)) / (2 * rows)


def barlow(z1, z2, redundancy):
    total, (n, width) = 0.0, z1.shape
    for i in range(width):
        for j in range(width):
            c = sum(norm(z1)[row, i] * norm(z2)[row, j] for row in range(n)) / n
            total += (1 - c) ** 2 if i == j else redundancy * c**2
    return total


def vicreg(z1, z2):
    total, width = 25 * np.mean((z1 - z2) ** 2), z1.shape[1]
    for z in (z1, z2):
        cov = np.cov(z.T)
        for i in range(width):
            total += 25 * max(0.0, 1 - np.sqrt(cov[i, i] + 1e-4)) / width / 2
            total += sum(cov[i, j] ** 2 for j in range(width) if j != i) / width
    return total


@pytest.mark.parametrize("rows", [8, 6])
@every
def test_the_loss_and_its_gradient_are_the_official_ones(kind, rows):
    objective, batch = small(kind), BATCH(0) if rows == 8 else tiny.masked(0)
    params = tiny.params(objective)
    extra = compiled(objective.init_extra, params, jax.random.key(0))
    draw = np.random.default_rng(1)
    pooled = {"online": draw.normal(size=(8, 2, 16)).astype(np.float32)}
    teacher = None
    if kind is BYOL:
        pooled["teacher"] = draw.normal(size=(8, 2, 16)).astype(np.float32)
        teacher = extra["teacher"]["params"] = jax.tree.map(lambda x: 0.7 * x + 0.05, extra["teacher"]["params"])
    value = lambda z: objective.full_batch_loss(params, extra, z, batch, CTX).value()
    got, slopes = jax.jit(jax.value_and_grad(value))(pooled)
    if kind is BYOL:
        np.testing.assert_array_equal(slopes["teacher"], 0)

    stopped = [head(params["projector"], np.float64(pooled["online"][:, view]), True) for view in (0, 1)]

    def by_loops(online):
        online = np.float64(online)
        if kind is BYOL:
            return byol(params, teacher, online, np.float64(pooled["teacher"]), rows)
        if kind is SimSiam:
            return simsiam(params, online, stopped, rows)
        z = [head(params["projector"], online[:, view])[:rows] for view in (0, 1)]
        return barlow(*z, 0.1) if kind is BarlowTwins else vicreg(*z)

    np.testing.assert_allclose(got, by_loops(pooled["online"]), rtol=1e-4)
    for at in ((0, 0, 3), (2, 1, 7), (5, 0, 0)):
        nudge = np.zeros((8, 2, 16))
        nudge[at] = 1e-4
        step = (by_loops(pooled["online"] + nudge) - by_loops(pooled["online"] - nudge)) / 2e-4
        np.testing.assert_allclose(slopes["online"][at], step, rtol=2e-3, atol=2e-4)


def test_byols_teacher_follows_encoder_and_projector():
    state, _ = contract.run(small(BYOL, momentum=0.5), LARS(1.0), BATCH, 0, 1)
    assert set(state.extra["teacher"]["params"]) == {"encoder", "projector"}
    assert set(state.extra["batch_stats"]) == {"projector", "predictor"}
    assert set(state.extra["teacher"]["batch_stats"]) == {"projector"}


@every
def test_batch_norm_in_the_encoder_takes_no_microbatches(kind):
    with pytest.raises(UserError, match=f"{kind.__name__} couples the examples of a batch"):
        tiny.traced(small(kind, encoder=tiny.small_resnet()), LARS(0.1), microbatches=2)


@every
def test_a_copy_in_the_batch_is_no_wrong_negative(kind):
    assert not small(kind).contrasts
