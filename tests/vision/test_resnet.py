"""ResNets: sizes and FLOPs as published, what a block is, batch statistics, sharding, mistakes."""

import dataclasses
import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradigm import partition, trees
from paradigm.errors import UserError
from paradigm.objective import Loss, Objective, Term, rows_spec
from paradigm.teacher import update_batch_stats
from tests import contract
from tests.compiled import compiled
from vision.partition import PARTITION_RULES
from vision.resnet import Block, ResNet, resnet


@functools.cache
def made(depth="tiny", **fields):
    """(model, its variables), every leaf random and variances positive."""
    model = resnet(depth, **fields)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, model.channels)))

    def draw(name, x):
        y = np.random.default_rng(zlib.crc32(name.encode())).normal(size=x.shape).astype(np.float32)
        return 0.5 + np.abs(y) if name.endswith(("var", "scale")) else 0.3 * y

    return model, trees.named_map(draw, shapes)


def images(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape or (4, 16, 16, 3))


# torchvision's resnet18 and resnet50: parameters without `fc` (11,689,512 - 513,000; 25,557,032 - 2,049,000) and
# multiply-adds of its model pages (1.81 and 4.09 billion with the last layer's thousandths).
@pytest.mark.parametrize("depth, count, billions", [("18", 11_176_512, 1.81), ("50", 23_508_032, 4.09)])
def test_sizes_as_published(depth, count, billions):
    model = resnet(depth)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    assert sum(x.size for x in jax.tree.leaves(shapes["params"])) == count
    assert model.flops(1) / 2e9 == pytest.approx(billions, abs=0.005)
    assert resnet(int(depth)) == model


@pytest.mark.parametrize("depth, stem", [("18", "imagenet"), ("50", "small"), ("tiny", "small")])
def test_flops_are_what_xla_counts(depth, stem):
    """XLA leaves out the taps on padding: the same convolutions without padding around them are a little more."""
    model = resnet(depth, stem=stem, width=0.25)
    x = jnp.zeros((2, 64, 64, 3))
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    count = jax.jit(lambda v, x: model.apply(v, x)[0]).lower(variables, x).compile().cost_analysis()["flops"]
    assert 0.75 < count / model.flops(2, 64) < 1.08, count / model.flops(2, 64)


def test_shapes():
    x = jnp.zeros((2, 64, 64, 3))
    shapes = lambda model: jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), x))[0]
    pooled, intermediates = shapes(resnet("50"))
    assert pooled.shape == (2, 2048) == (2, resnet("50").features)
    wanted = [(2, 16, 16, 256), (2, 8, 8, 512), (2, 4, 4, 1024), (2, 2, 2, 2048)]
    assert [s.shape for s in intermediates["stages"]] == wanted
    pooled, intermediates = shapes(resnet("18", stem="small", width=2))
    assert pooled.shape == (2, 1024) and [s.shape[1] for s in intermediates["stages"]] == [64, 32, 16, 8]


@pytest.mark.parametrize("bottleneck", [False, True])
def test_a_block_whose_last_norm_is_zero_passes_its_input_on(bottleneck):
    """zero_init: every branch starts at nothing; without it, not."""
    x = jnp.abs(images(2, 8, 8, 16))
    for zero in (True, False):
        block = Block(16, 1, bottleneck, zero, jnp.float32)
        y = compiled(block.apply, compiled(block.init, jax.random.key(0), x, False), x, False)
        assert np.allclose(y, x) == zero


def test_the_stride_is_in_the_3x3():
    """v1.5: the first 1 x 1 convolution of a bottleneck reads every place."""
    block = Block(32, 2, True, False, jnp.float32)
    x = images(1, 8, 8, 16)
    variables = compiled(block.init, jax.random.key(0), x, False)
    assert set(variables["params"]) == {"first", "second", "third", "shortcut"}
    slope = jax.jit(jax.grad(lambda x: jnp.sum(jnp.sin(block.apply(variables, x, False)))))(x)
    assert (np.abs(slope).max((0, 3)) > 0).all()


def test_training_moves_statistics_that_evaluation_reads():
    model, variables = made()
    x = images()
    (pooled, _), seen = compiled(model.apply, variables, x, train=True, mutable=["moments"])
    moments = dict(trees.named_leaves(seen["moments"]))
    stats = variables["batch_stats"]
    assert moments.keys() == dict(trees.named_leaves(stats)).keys()
    evaluated = jax.jit(lambda stats: model.apply({**variables, "batch_stats": stats}, x)[0])
    np.testing.assert_allclose(evaluated(update_batch_stats(stats, moments, 0.0)), pooled, rtol=1e-4)
    assert np.abs(evaluated(stats) - pooled).max() > 1e-2
    alone = compiled(model.apply, variables, x[:1])[0]
    np.testing.assert_allclose(alone, evaluated(stats)[:1], rtol=1e-4)


def test_every_parameter_is_used():
    model, variables = made()
    loss = lambda p: jnp.sum(jnp.sin(model.apply({**variables, "params": p}, images())[0]))
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(jax.jit(jax.grad(loss))(variables["params"])))


def test_initialiser():
    """He et al. 2015 (arXiv:1502.01852), section 2.2, by outputs: variance 2 / (3 * 3 * out)."""
    drawn = lambda key: resnet("18").init(key, jnp.zeros((1, 32, 32, 3)))["params"]["stage3_block0"]
    block = jax.jit(drawn)(jax.random.key(0))
    kernel = block["first"]["conv"]["kernel"]
    assert kernel.shape == (3, 3, 256, 512) and kernel.std() == pytest.approx((2 / (9 * 512)) ** 0.5, rel=0.01)
    assert not block["second"]["norm"]["scale"].any()
    assert block["first"]["norm"]["scale"].all()


# ---- Sharding --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class MeanSquare(Objective):
    """The least objective on an encoder with batch statistics: (pooled - target)^2."""

    encoder: ResNet

    def batch_spec(self, batch_size, phase="main"):
        image = (batch_size, 16, 16, 3)
        return {"image": jax.ShapeDtypeStruct(image, jnp.float32), **rows_spec(batch_size)}

    def modules(self):
        return {"encoder": (self.encoder, jnp.zeros((1, 16, 16, 3)))}

    def loss(self, params, extra, batch, ctx):
        pooled, _, moments = self.apply("encoder", self.variables(params, extra), batch["image"], ctx=ctx)
        error = jnp.mean(jnp.square(pooled - jnp.sin(jnp.arange(pooled.shape[1]))), 1)
        term = Term(jnp.sum(error * batch["mask"]), batch["mask"].sum())
        return Loss({"error": term}, stats=moments)

    @property
    def partition_rules(self):
        return PARTITION_RULES


def batch_of(step):
    # Not 0: that batch has an activation within rounding of ReLU's kink, and a mesh that sums in another order takes
    # the other side, of a gradient 2 % off. The others agree to 2e-6.
    draw = np.random.default_rng(step + 1)
    index = np.stack([np.zeros(8), np.arange(8) + 8 * step], 1).astype(np.uint32)
    # Another brightness for each row: moments of a part of the batch would be quite different ones.
    image = draw.standard_normal((8, 16, 16, 3)) * np.linspace(0.3, 2, 8)[:, None, None, None] + 0.1 * np.arange(3)
    return {"image": image.astype("f4"), "index": index, "mask": np.ones(8, "f4")}


@pytest.mark.parametrize("bottleneck", [pytest.param(False, marks=pytest.mark.slow), True])  # Classify's is of False
@contract.every_mesh
def test_sharded_equals_one_device(bottleneck, mesh):
    encoder = resnet("tiny", depths=(1, 1), bottleneck=bottleneck, zero_init=False, width=0.5)
    contract.check_sharding(MeanSquare(encoder), batch_of, mesh)


@pytest.mark.parametrize("depth", ["18", "50", "tiny"])
def test_every_kernel_is_cut(depth):
    params = {"encoder": made(depth)[1]["params"]}
    for name, sharding in trees.named_leaves(partition.shardings(params, PARTITION_RULES, contract.mesh_of("fsdp"))):
        assert ("fsdp" in sharding.spec) == name.endswith("kernel"), name


# ---- Mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make, text",
    [
        (lambda: resnet(51), r"unknown ResNet depth 51: did you mean '50'\?|unknown ResNet depth '51'"),
        (lambda: resnet("18", stem="cifar"), "unknown stem 'cifar': choose from imagenet, small"),
        (lambda: resnet("18", witdh=2), r"unknown field of ResNet 'witdh': did you mean 'width'\?"),
        (lambda: resnet("18", width=0.01), "a ResNet of width 0.01 would have 0.64 channels: choose 0.015625"),
        (lambda: made()[0].apply(made()[1], images(1, 16, 16, 1)), "images of 1 channels, and the ResNet reads 3"),
    ],
)
def test_errors_name_the_mistake(make, text):
    with pytest.raises(UserError, match=text):
        make()
