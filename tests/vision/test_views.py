"""Groups of views: the forms of the setting, what each view draws, and how views of several sizes are encoded."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradigm.errors import UserError
from paradigm.objective import Context
from tests.compiled import compiled
from tests.vision import tiny
from vision.objectives import BYOL, MAE, VQ, BEiT, Classify, MoCoV2, Rotation, Segmentation, SimCLR
from vision.objectives.base import ImageObjective
from vision.views import view_groups

BIG, SMALL = tiny.views(), dataclasses.replace(tiny.views(), size=8)
CTX = Context(jnp.int32(0), 0, True)


def objective(augment, **changes):
    return ImageObjective(encoder=tiny.encoder(**changes), augment=augment, host_image_size=tiny.HOST_SIZE)


def drawn(augment):
    return jax.jit(lambda batch: objective(augment).augment_views(batch, CTX))(tiny.batch_of()(0))


def test_forms():
    assert view_groups(BIG, 2) == (((BIG,), 2),)
    assert view_groups((BIG, SMALL), 2) == (((BIG,), 1), ((SMALL,), 1))
    assert view_groups(((BIG, 2), (SMALL, 8)), 2) == (((BIG,), 2), ((SMALL,), 8))
    assert view_groups((((BIG, SMALL), 1),), 2) == (((BIG, SMALL), 1),)
    assert objective(((BIG, 2), (SMALL, 3))).views == (BIG, BIG, SMALL, SMALL, SMALL)


def test_each_view_draws_by_its_number():
    views, pair = drawn(((BIG, 2), (SMALL, 2))), drawn(BIG)
    assert [view.shape for view in views] == [(8, 16, 16, 3)] * 2 + [(8, 8, 8, 3)] * 2
    for ours, alone in zip(views, pair):
        np.testing.assert_allclose(ours, alone, atol=2e-5)
    assert np.abs(views[2] - views[3]).max((1, 2, 3)).min() > 0.1
    batch = tiny.batch_of()(0)
    third = jax.jit(SMALL.__call__)(batch["image"], batch["aspect"], CTX.keys("view/2", batch["index"]))
    np.testing.assert_allclose(views[2], third, atol=2e-5)


def test_one_crop_at_two_sizes():
    """The small one is the large one's picture: the same box and the same flip, pixels averaged."""
    ((big, small),) = drawn((((BIG, SMALL), 1),))
    other = drawn((BIG, SMALL))[1]  # a crop of its own
    shrunk = big.reshape(8, 8, 2, 8, 2, 3).mean((2, 4))
    distance = lambda x: float(np.abs(x - shrunk).mean())
    assert distance(small) < 0.1 * distance(other)


def test_views_are_encoded_size_by_size():
    o, batch = objective(((BIG, 2), (SMALL, 3)), dropout=0.3), tiny.batch_of()(0)
    variables = {"params": tiny.params(o)}
    views, shapes = compiled(o.augment_views, batch, CTX), []

    class Noting(ImageObjective):
        def apply(self, name, variables, x, **how):
            shapes.append(x.shape)
            return super().apply(name, variables, x, **how)

    noting = Noting(encoder=o.encoder, augment=o.augment, host_image_size=o.host_image_size)
    pooled, moments = compiled(noting.encode_views, variables, views, batch["index"], CTX)
    assert shapes == [(16, 16, 16, 3), (24, 8, 8, 3)] and pooled.shape == (8, 5, 16) and not moments
    for i, view in enumerate(views):
        keys = CTX.keys(f"dropout/{i}", batch["index"])
        alone = compiled(o.apply, "encoder", variables, view, ctx=CTX, keys=keys)[0]
        np.testing.assert_allclose(pooled[:, i], alone, atol=1e-5)


def test_moments_count_each_view_once():
    o = dataclasses.replace(objective(((BIG, 1), (SMALL, 3))), encoder=tiny.small_resnet())
    batch, params = tiny.batch_of()(0), tiny.params(o)
    variables = {"params": params, **compiled(o.init_extra, params, jax.random.key(0))}
    views = compiled(o.augment_views, batch, CTX)
    _, moments = compiled(o.encode_views, variables, views, batch["index"], CTX)
    big, small = (compiled(o.encode_views, variables, v, batch["index"], CTX)[1] for v in (views[:1], views[1:]))
    for name, x in moments.items():
        np.testing.assert_allclose(x, 0.25 * big[name] + 0.75 * small[name], rtol=1e-5, atol=1e-6)
    assert len(moments) > 2


@pytest.mark.parametrize(
    "augment, text",
    [
        (((BIG, 0),), "is .Augment, count., with a count of 1 or more"),
        (((BIG, 1.5),), "with a count of 1 or more"),
        ((("big", 2),), "a group of views is .Augment, count."),
        ("big", "augment='big' is neither an Augment nor a tuple of Augments"),
        ((), r"augment=\(\) is neither"),
    ],
)
def test_what_is_no_group(augment, text):
    with pytest.raises(UserError, match=text):
        view_groups(augment, 2)


@pytest.mark.parametrize("augment, count", [(((BIG, 3),), 3), ((BIG,), 1), ((((BIG, SMALL), 1), BIG), 3)])
def test_a_pair_is_two_views(augment, count):
    with pytest.raises(UserError, match=f"SimCLR compares two views of a picture and its augment gives {count}"):
        SimCLR(encoder=tiny.encoder(), augment=augment, host_image_size=tiny.HOST_SIZE)


def _beit(encoder, **fields):
    parts = {"tokenizer": VQ(**fields, encoder=tiny.encoder()), "aggregate_from": 1, "block_smallest": 2}
    return BEiT(encoder=encoder.clone(mask_token=True), **fields, **parts)


RANDOM = {  # an objective of an encoder, and how many calls in training have that encoder's dropout
    "MAE": (lambda **fields: MAE(**fields, decoder_width=16, decoder_layers=1, decoder_heads=2), 1),
    "BEiT": (_beit, 2),
    "MoCoV2": (lambda **fields: MoCoV2(**fields, queue=16, output=8), 2),
    "BYOL": (lambda **fields: BYOL(**fields, hidden=8, output=8), 4),
}


@pytest.mark.parametrize("name", RANDOM)
def test_every_call_of_an_encoder_has_a_dropout_of_its_own(name, monkeypatch):
    """A teacher's masks too are others than the student's: a query does not share what it has dropped with its key."""
    make, calls = RANDOM[name]
    keys, asked = Context.keys, []
    monkeypatch.setattr(Context, "keys", lambda ctx, name, index: asked.append(name) or keys(ctx, name, index))

    def draws(**changes):
        o = make(encoder=tiny.encoder(**changes), augment=tiny.views(), host_image_size=tiny.HOST_SIZE)
        params = jax.eval_shape(o.init, CTX.key("params"))
        given = params, jax.eval_shape(o.init_extra, params, CTX.key("extra")), o.batch_spec(2)
        asked.clear()
        return str(jax.make_jaxpr(lambda *given: o.loss(*given, CTX).terms)(*given)).count("random_bits")

    without, more = draws(), draws(drop_path=0.5)
    streams = [stream for stream in asked if "dropout" in stream]
    assert len(streams) == len(set(streams)) == calls
    assert more > without, "what is asked for is drawn from"


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_flops_are_of_the_views_and_not_of_the_encoders_own_size(kind):
    large = dataclasses.replace(BIG, size=32)
    encoder = tiny.encoder() if kind == "vit" else tiny.small_resnet().clone(image_size=16)
    classes = {Classify: {"classes": 3}, SimCLR: {}, MoCoV2: {"queue": 8}, Rotation: {}}
    for made, fields in (classes | ({Segmentation: {"classes": 3}} if kind == "vit" else {})).items():
        small, wanted = (
            made(encoder=encoder.clone(image_size=size), augment=large, host_image_size=32, **fields).forward_flops(
                {"mask": np.zeros(8)}
            )
            for size in (16, 32)
        )
        assert small == wanted, made
