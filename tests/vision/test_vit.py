"""The ViT: what its pooling, masks, positions, registers and settings do; sizes, sharding, FLOPs, mistakes."""

import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from paradigm import partition, trees
from paradigm.attention import AttentionMask
from paradigm.cpu_gradients import gelu, gelu_exact
from paradigm.errors import UserError
from paradigm.objective import Loss, Objective, Term, rows_spec
from paradigm.rng import fold
from tests import contract
from vision.partition import PARTITION_RULES
from vision.patches import patchify, relative_bias, relative_entries, resize_table, sincos, unpatchify
from vision.vit import ViT, vit

SMALL = {"image_size": 16, "patch": 4, "d_model": 16, "heads": 4, "d_ff": 32, "layers": 2}


@functools.cache
def made(**fields):
    """(model, its variables), every leaf random so that none can hide."""
    model = vit("tiny", **SMALL | fields)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 16, 16, model.channels)))
    draw = lambda name, x: 0.3 * jax.random.normal(fold(jax.random.key(1), name), x.shape)
    return model, trees.named_map(draw, shapes)


apply = jax.jit(lambda model, *args, **how: model.apply(*args, **how), static_argnums=0)


def images(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape or (3, 16, 16, 3))


def close(a, b, tolerance=2e-5):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=tolerance, rtol=tolerance)


def test_output_and_named():
    model, variables = made(registers=2)
    pooled, intermediates = apply(model, variables, images())
    assert pooled.shape == (3, model.features) and intermediates["patches"].shape == (3, 16, 16)
    assert intermediates["layers"].shape == (2, 3, 1 + 2 + 16, 16)
    assert np.array_equal(pooled, intermediates["class"])
    mean, intermediates = apply(made(pool="mean")[0], made()[1], images())
    close(mean, intermediates["patches"].mean(1))


def test_embedding_is_a_convolution():
    """Of patch x patch with that stride, as every reference has it; then positions, then the class token in front."""
    model, variables = made()
    x, p = images(), variables["params"]
    kernel = p["embed"]["kernel"].reshape(4, 4, 3, 16)
    dims = ("NHWC", "HWIO", "NHWC")
    wanted = jax.lax.conv_general_dilated(x, kernel, (4, 4), "VALID", dimension_numbers=dims).reshape(3, 16, 16)
    wanted = wanted + p["embed"]["bias"] + sincos(16, 4, 4)
    wanted = jnp.concatenate([jnp.broadcast_to(p["class_token"], (3, 1, 16)), wanted], 1)
    seen = {}

    def spy(call, args, kwargs, context):
        if type(context.module).__name__ == "Stack" and context.method_name == "__call__":
            seen["x"] = args[0]
        return call(*args, **kwargs)

    with nn.intercept_methods(spy):
        model.apply(variables, x)
    close(seen["x"], wanted)


def test_kept_patches_are_all_that_is_read():
    """Same output as a model that never had the others; their pixels have no gradient; order does not matter."""
    model, variables = made()
    x, keep = images(), jnp.asarray([[3, 0, 7], [1, 2, 15], [9, 8, 4]])
    pooled, intermediates = apply(model, variables, x, keep=keep)
    assert intermediates["patches"].shape == (3, 3, 16)
    again, swapped = apply(model, variables, x, keep=keep[:, ::-1])
    close(pooled, again)
    close(intermediates["patches"], swapped["patches"][:, ::-1])
    slope = jax.jit(jax.grad(lambda x: jnp.sum(apply(model, variables, x, keep=keep)[0] ** 2)))(x)
    read = np.abs(np.asarray(slope)).reshape(3, 4, 4, 4, 4, 3).max((2, 4, 5)).reshape(3, 16) > 0
    assert all(set(np.flatnonzero(row)) == set(np.asarray(wanted)) for row, wanted in zip(read, keep))
    everything, _ = apply(model, variables, x, keep=jnp.tile(jnp.arange(16), (3, 1)))
    close(everything, apply(model, variables, x)[0])


@pytest.mark.parametrize("positions", ["sincos", "learned"])
def test_positions_tell_patches_apart(positions):
    """Without them a shuffle of patches would leave the class token alone; kept patches keep their own positions."""
    model, variables = made(positions=positions)
    x = images()
    shuffled = x[:, ::-1]
    assert np.abs(apply(model, variables, x)[0] - apply(model, variables, shuffled)[0]).max() > 1e-3
    keep = jnp.asarray([[5, 6], [7, 8], [1, 0]])
    wrong = jnp.roll(keep, 1, axis=0)
    there = lambda k: np.asarray(apply(model, variables, jnp.ones_like(x), keep=k)[0])
    assert np.abs(there(keep) - there(wrong)).max() > 1e-3
    close(there(keep)[1], there(wrong)[2])


def test_learned_positions_are_trained_and_resized():
    model, variables = made(positions="learned")
    slope = jax.jit(jax.grad(lambda v: jnp.sum(apply(model, v, images())[0] ** 2)))(variables)["params"]
    slope = slope["positions"]["embedding"]
    assert slope.shape == (17, 16) and (np.abs(slope).max(1) > 0).all()
    for fields in ({"positions": "learned"}, {}):
        model, variables = made(**fields)
        pooled, intermediates = apply(model, variables, images(2, 24, 32, 3))
        assert intermediates["patches"].shape == (2, 48, 16) and np.isfinite(pooled).all()


def test_another_resolution_sees_the_same_picture():
    """A flat picture at twice the size, learned positions all equal: four times the tokens, all of them as before."""
    model, variables = made(positions="learned", pool="mean", class_token=False)
    params = {**variables["params"], "positions": {"embedding": jnp.full((16, 16), 0.1)}}
    small, large = (apply(model, {"params": params}, jnp.ones((1, side, side, 3)))[0] for side in (16, 32))
    close(small, large)


def test_the_norm_may_stand_after_the_mean():
    """One norm of the same numbers, of the mean and not of each patch."""
    model, variables = made(pool="mean_norm")
    assert "norm" not in variables["params"]["blocks"]
    pooled, found = apply(model, variables, images())
    close(found["patches"], found["layers"][-1][:, 1:])
    mean = np.asarray(found["patches"].mean(1), np.float64)
    wanted = (mean - mean.mean(1, keepdims=True)) / np.sqrt(mean.var(1, keepdims=True) + model.eps)
    close(pooled, wanted * variables["params"]["norm"]["scale"] + variables["params"]["norm"]["bias"])


@pytest.mark.parametrize("registers", [0, 2])
def test_positions_at_another_size_are_antialiased_with_registers(registers):
    model, variables = made(positions="learned", registers=registers)
    table, half = variables["params"]["positions"]["embedding"], model.clone(image_size=8)
    small = resize_table(table[1:], model.grid, half.grid, antialias=registers > 0)
    own = {**variables["params"], "positions": {"embedding": jnp.concatenate([table[:1], small])}}
    x = images(3, 8, 8, 3)
    close(apply(model, variables, x)[0], apply(half, {"params": own}, x)[0])


def test_registers_are_read_by_the_stack_and_left_out():
    model, variables = made(registers=3, pool="mean")
    pooled, intermediates = apply(model, variables, images())
    assert intermediates["patches"].shape[1] == 16
    close(pooled, intermediates["patches"].mean(1))
    slope = jax.jit(jax.grad(lambda v: jnp.sum(apply(model, v, images())[0] ** 2)))(variables)["params"]["registers"]
    assert slope.shape == (1, 3, 16) and (np.abs(slope).max((0, 2)) > 0).all()


def test_everything_has_a_gradient_but_what_is_frozen():
    """MoCo v3's frozen patch projection: neither kernel nor bias; all else has."""
    model, variables = made()
    for freeze in ((), (("^embed/", True),)):
        trained, frozen = trees.split(variables["params"], freeze)
        output = lambda p, frozen=frozen: apply(model, {"params": trees.merge(p, frozen)}, images())[0]
        slope = dict(trees.named_leaves(jax.jit(jax.grad(lambda p: jnp.sum(output(p) ** 2)))(trained)))
        silent = {name for name, g in slope.items() if not np.abs(g).max() > 0}
        assert silent <= {"blocks/layers/attention/key/bias"}
        missing = {name for name, _ in trees.named_leaves(variables["params"])} - set(slope)
        assert missing == ({"embed/kernel", "embed/bias"} if freeze else set())


def test_the_mask_token_stands_for_patches():
    model, variables = made(mask_token=True)
    x, mask = images(), jax.random.bernoulli(jax.random.key(5), 0.5, (3, 16))
    run = lambda variables, x, **how: apply(model, variables, x, **how)[0]
    slope = jax.jit(jax.grad(lambda x: jnp.sum(run(variables, x, mask=mask) ** 2)))(x)
    read = np.abs(slope).reshape(3, 4, 4, 4, 4, 3).max((2, 4, 5)).reshape(3, 16) > 0
    np.testing.assert_array_equal(read, ~mask)
    # Embedded pixels that equal the token say the same: the positions are the patches' own.
    p = variables["params"]
    token = jnp.linalg.lstsq(p["embed"]["kernel"].T, p["mask_token"][0, 0] - p["embed"]["bias"])[0]
    filled = jnp.where(mask[..., None], token, patchify(x, 4))
    close(run(variables, unpatchify(filled, 4, (16, 16, 3))), run(variables, x, mask=mask), 1e-3)
    keep = jnp.asarray([[3, 0, 7], [1, 2, 15], [9, 8, 4]])
    close(run(variables, unpatchify(filled, 4, (16, 16, 3)), keep=keep), run(variables, x, mask=mask, keep=keep), 1e-3)
    close(run(variables, x, mask=jnp.zeros((3, 16), bool)), run(variables, x))


def test_a_mask_of_attention():
    """AIM's: the first patches see each other, later ones what came before."""
    model, variables = made(class_token=False, pool="mean", layers=1)
    attention = AttentionMask(causal=True, prefix=jnp.array([5, 0, 16]))
    patches = lambda x: apply(model, variables, x, attention=attention)[1]["patches"][0] @ jnp.arange(1.0, 17.0)
    slope = jax.jit(jax.jacobian(lambda x0: patches(images().at[0].set(x0))))(images()[0])  # [N, H, W, C]
    seen = np.abs(slope).reshape(16, 4, 4, 4, 4, 3).max((2, 4, 5)).reshape(16, 16) > 0
    wanted = np.tri(16, dtype=bool)
    wanted[:, :5] = True
    np.testing.assert_array_equal(seen, wanted)


@pytest.mark.parametrize("positions", ["sincos", "learned"])
def test_pixels_beyond_the_last_patch_are_not_read(positions):
    model, variables = made(image_size=19, positions=positions)
    x = images(2, 19, 19, 3)
    assert model.grid == (4, 4)
    close(apply(model, variables, x)[0], apply(made(positions=positions)[0], variables, x[:, :16, :16])[0])
    close(apply(model, variables, x[:, :, :18])[0], apply(model, variables, x)[0])


def test_settings_reach_the_stack():
    model, variables = made(layer_scale=0.1, drop_path=0.5)
    assert variables["params"]["blocks"]["layers"]["attention_layer_scale"].shape == (2, 16)
    keys = jax.random.split(jax.random.key(7), 8)
    pooled, _ = apply(model, variables, jnp.tile(images(1, 16, 16, 3), (8, 1, 1, 1)), keys=keys)
    assert model.is_random and 1 < len({x.tobytes() for x in np.round(np.asarray(pooled), 4)}) <= 4


def test_dropout_is_by_example():
    model, variables = made(dropout=0.3)
    keys = jax.random.split(jax.random.key(5), 3)
    base, _ = apply(model, variables, images(), keys=keys)
    assert np.abs(base - apply(model, variables, images())[0]).max() > 1e-3
    order = jnp.asarray([2, 0, 1])
    close(base[order], apply(model, variables, images()[order], keys=keys[order])[0])


@pytest.mark.parametrize("fields", [{}, {"grid_bias": "layers", "positions": "none"}])
def test_scanned_is_unrolled_and_remat_changes_nothing(fields):
    model, variables = made(**fields)
    slope = lambda m: jax.jit(jax.grad(lambda v: jnp.sum(apply(m, v, images())[0] ** 2)))(variables)
    for changes in ({"scan": False}, {"remat": "full"}):
        other = made(**fields, **changes)[0]
        jax.tree.map(lambda a, b: close(a, b, 1e-4), slope(model), slope(other))


def test_the_grids_bias_is_beits():
    """Entry by entry as the official code's relative_position_index: by a query's place less its key's."""
    rows, columns = 3, 2
    table = np.arange(2 * (5 * 3 + 3), dtype=np.float32).reshape(2, -1).T  # [E, H]
    bias = relative_bias(jnp.asarray(table), (rows, columns), (rows, columns), 1)
    assert relative_entries(rows, columns) == 18 and bias.shape == (2, 7, 7)
    for i in range(7):
        for j in range(7):
            (yi, xi), (yj, xj) = divmod(i - 1, columns), divmod(j - 1, columns)
            entry = (yi - yj + rows - 1) * (2 * columns - 1) + xi - xj + columns - 1
            entry = 17 if i == j == 0 else 15 if i == 0 else 16 if j == 0 else entry
            np.testing.assert_array_equal(bias[:, i, j], table[entry])
    wide = relative_bias(jnp.ones((18, 2)), (rows, columns), (4, 5), 0)
    assert wide.shape == (2, 20, 20)
    close(wide, jnp.ones_like(wide))


def test_one_table_for_all_layers_is_as_many_equal_ones():
    one, shared = made(grid_bias="shared", positions="none")
    many, own = made(grid_bias="layers", positions="none")
    table = shared["params"]["relative_bias"]["embedding"]
    assert own["params"]["relative_bias"]["embedding"].shape == (2, *table.shape)
    own = {"params": {**shared["params"], "relative_bias": {"embedding": jnp.stack([table, table])}}}
    close(apply(one, shared, images())[0], apply(many, own, images())[0])
    moved = {"params": {**shared["params"], "relative_bias": {"embedding": jnp.stack([table, 2 * table])}}}
    assert np.abs(apply(many, own, images())[0] - apply(many, moved, images())[0]).max() > 1e-3


def test_initialisers():
    """He et al. 2022's official code: Xavier uniform everywhere, 0.02 for the class token, zero biases."""
    model = vit("s", 32, 8, layers=2, positions="learned", registers=4)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    bounds = {
        "embed/kernel": (192, 384),
        "blocks/layers/attention/query/kernel": (384, 384),
        "blocks/layers/attention/out/kernel": (384, 384),
        "blocks/layers/mlp/up/kernel": (384, 1536),
        "blocks/layers/mlp/down/kernel": (1536, 384),
    }
    leaves = dict(trees.named_leaves(params))
    for name, fans in bounds.items():
        bound = (6 / sum(fans)) ** 0.5
        assert 0.98 * bound < np.abs(leaves[name]).max() <= bound, name
        assert leaves[name].std() == pytest.approx(bound / 3**0.5, rel=0.03), name
    for name in ("class_token", "registers", "positions/embedding"):
        assert leaves[name].std() == pytest.approx(0.02, rel=0.15), name
    assert not any(np.abs(x).max() for n, x in leaves.items() if n.endswith("bias"))


@pytest.mark.parametrize("scaled", [True, False])
def test_a_normal_initialiser_may_be_smaller_on_residual_branches(scaled):
    """A half of 0.02 with two layers, or DINO's 0.02 everywhere."""
    model = vit("s", 32, 8, layers=2, init_std=0.02, scaled_init=scaled)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    layers = params["blocks"]["layers"]
    for x in (layers["attention"]["out"]["kernel"], layers["mlp"]["down"]["kernel"]):
        assert x.std() == pytest.approx(0.01 if scaled else 0.02, rel=0.03)
    assert layers["mlp"]["up"]["kernel"].std() == pytest.approx(0.02, rel=0.03)


# Parameters without a head, in millions: Dosovitskiy et al. 2021, table 1 (86, 307, 632), Touvron et al. 2021, table 1
# (5 and 22 with theirs), Zhai et al. 2022, table 2 (1011 and 1843), all of images of 224.
@pytest.mark.parametrize(
    "size, patch, millions",
    [
        ("ti", 16, 5.52),
        ("s", 16, 21.7),
        ("b", 16, 85.8),
        ("l", 16, 303.3),
        ("h", 14, 630.8),
        ("g", 14, 1012),
        ("G", 14, 1844),
    ],
)
def test_named_sizes_have_the_published_parameter_counts(size, patch, millions):
    model = vit(size, patch=patch, positions="learned")
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    assert sum(x.size for x in jax.tree.leaves(shapes)) / 1e6 == pytest.approx(millions, rel=0.003)


def test_exact_gelu():
    """x Phi(x), and the gradient that is spelled out; the tanh form is another function."""
    x = jnp.linspace(-9.0, 9.0, 2001)
    plain = lambda x: x * jax.scipy.stats.norm.cdf(x)
    close(gelu_exact(x), plain(x), 2e-6)
    slope = lambda f: jax.grad(lambda x: jnp.sum(f(x) * jnp.cos(x)))(x)
    close(slope(gelu_exact), slope(plain), 5e-6)
    assert 1e-4 < np.abs(gelu_exact(x) - gelu(x)).max() < 1e-3
    assert vit("b").activation == "gelu_exact"


def test_bfloat16():
    model, variables = made(dtype=jnp.bfloat16, registers=1, positions="learned")
    pooled, _ = apply(model, variables, images())
    assert pooled.dtype == jnp.bfloat16
    close(pooled.astype(jnp.float32), apply(made(registers=1, positions="learned")[0], variables, images())[0], 0.1)


# ---- Sharding and FLOPs ----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class MeanSquare(Objective):
    """The least objective on an encoder: (pooled - target)^2, the target a constant of the example."""

    encoder: Any

    def batch_spec(self, batch_size, phase="main"):
        image = (batch_size, 16, 16, 3)
        return {"image": jax.ShapeDtypeStruct(image, jnp.float32), **rows_spec(batch_size)}

    def modules(self):
        return {"encoder": (self.encoder, jnp.zeros((1, 16, 16, 3)))}

    def loss(self, params, extra, batch, ctx):
        keys, keep = ctx.keys("dropout", batch["index"]), None
        if self.encoder.registers:
            draw = jax.vmap(lambda k: jax.random.permutation(k, 16)[:5])
            keep = draw(ctx.keys("mask", batch["index"]))
        pooled, _, _ = self.apply("encoder", {"params": params}, batch["image"], ctx=ctx, keys=keys, keep=keep)
        target = jnp.sin(jnp.arange(pooled.shape[1]))
        error = jnp.mean(jnp.square(pooled - target), 1)
        return Loss({"error": Term(jnp.sum(error * batch["mask"]), batch["mask"].sum())})

    @property
    def partition_rules(self):
        return PARTITION_RULES


def batch_of(step):
    draw = np.random.default_rng(step)
    index = np.stack([np.zeros(8), np.arange(8) + 8 * step], 1).astype(np.uint32)
    return {"image": draw.standard_normal((8, 16, 16, 3)).astype("f4"), "index": index, "mask": np.ones(8, "f4")}


@pytest.mark.parametrize(
    "fields",
    [
        {"positions": "learned", "registers": 1, "pool": "mean"},
        pytest.param(
            {"dropout": 0.1, "grid_bias": "layers"}, marks=pytest.mark.slow
        ),  # BEiT has a grid's bias on a mesh
    ],
)
@contract.every_mesh
def test_sharded_equals_one_device(fields, mesh):
    encoder = vit("tiny", **SMALL | {"d_model": 32, "heads": 8} | fields)
    contract.check_sharding(MeanSquare(encoder), batch_of, mesh)


def test_every_matrix_has_a_rule_and_every_rule_a_matrix():
    mesh = contract.mesh_of("mixed")
    params = {"encoder": made(positions="learned", registers=2)[1]["params"]}
    found = dict(trees.named_leaves(partition.shardings(params, PARTITION_RULES, mesh)))
    for name, sharding in found.items():
        assert "fsdp" in sharding.spec or not re.search("kernel|embedding", name), (name, sharding.spec)
        assert not trees.is_stacked(name) or not len(sharding.spec) or sharding.spec[0] is None
    assert found["encoder/class_token"].spec == jax.sharding.PartitionSpec(None, None, None)


@pytest.mark.parametrize("keep", [None, 20])
def test_flops_are_what_xla_counts(keep):
    """Unrolled, for XLA counts a scan's body once; wide layers, for it counts norms and softmax too."""
    model = vit("tiny", 64, 8, d_model=256, heads=2, d_ff=512, layers=2, scan=False, registers=2)
    x = jnp.zeros((2, 64, 64, 3))
    keep = None if keep is None else jnp.zeros((2, keep), jnp.int32)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    run = jax.jit(lambda v, x: model.apply(v, x, keep=keep)[0])
    count = run.lower(variables, x).compile().cost_analysis()["flops"]
    formula = model.flops(2, None if keep is None else keep.shape[1])
    assert 1.0 < count / formula < 1.05, count / formula


# ---- Mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make, text",
    [
        (lambda: vit("tinny"), r"unknown ViT size 'tinny': did you mean 'tiny'\?"),
        (lambda: vit("b", 14, 15), "an image of 14 x 14 is smaller than a patch of 15 x 15: choose a larger"),
        (lambda: vit("b", pach=3), r"unknown field of ViT 'pach': did you mean 'patch'\?"),
        (lambda: vit("b", positions="sincoss"), r"unknown positions 'sincoss': did you mean 'sincos'\?"),
        (lambda: vit("b", pool="max"), "unknown pool 'max': choose from class, mean"),
        (lambda: vit("b", class_token=False), "pool='class' without a class token: set class_token=True"),
        (lambda: vit("b", d_model=90, heads=3), "a width divisible by 4, and it is 90: choose"),
        (lambda: vit("b", heads=7), "7 heads do not divide d_model=768"),
        (lambda: made()[0].apply(made()[1], images(1, 16, 16, 1)), "images of 1 channels, and the ViT reads 3"),
        (lambda: made()[0].apply(made()[1], images(1, 3, 16, 3)), "3 x 16 is smaller than a patch of 4 x 4"),
        (lambda: vit("b", grid_bias="all"), "unknown grid_bias 'all'"),
        (lambda: made(grid_bias="shared")[0].apply(made(grid_bias="shared")[1], images(), keep=jnp.zeros((3, 2), int)),
         "grid_bias='shared' is by the whole grid, and only some patches are read here: set grid_bias='none'"),
        (lambda: made()[0].apply(made()[1], images(1, 16, 16, 3), mask=jnp.ones((1, 16), bool)),
         "the ViT has no mask token: set mask_token=True"),
    ],
)  # fmt: skip
def test_errors_name_the_mistake(make, text):
    with pytest.raises(UserError, match=text):
        make()


def test_sizes_by_case():
    assert vit("B") == vit("b") and vit("g") != vit("G") and isinstance(vit("Ti"), ViT)
