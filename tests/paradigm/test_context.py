"""Rows that the mesh's `context` axis cuts along their length: attention and whole steps as on one device."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch.run.experiment import validate
from paradigm import attention, attention_kernels, context, splash
from paradigm.adapt import PromptTuning
from paradigm.attention import AttentionMask, DistanceBias
from paradigm.dataset import Dataset
from paradigm.errors import UserError
from tests import contract
from tests.launch import small
from tests.t5like.test_contract import OBJECTIVES
from tests.t5like.windows import Windows

LENGTH, HEADS = 64, 4
DOCUMENTS = jnp.concatenate([jnp.ones(20), jnp.full(30, 2), jnp.zeros(14)]).astype(jnp.int32)[None].repeat(4, 0)
MASKS = {
    "all": AttentionMask(),
    "causal, packed": AttentionMask(True, None, DOCUMENTS, DOCUMENTS),
    "prefix": AttentionMask(True, jnp.array([3, 22, 60, 1])),
    "window, padded": AttentionMask(keys=DOCUMENTS, window=21),
    "layer with its window": AttentionMask(True, window=7, everywhere=jnp.bool_(False)),
    "layer without it": AttentionMask(True, window=7, everywhere=jnp.bool_(True)),
}


def draw(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.fixture
def short_blocks(monkeypatch):
    monkeypatch.setattr(attention_kernels, "BLOCKED", 32)
    monkeypatch.setattr(attention_kernels, "BLOCK", 8)


BIASED = [*((name, "by distance") for name in MASKS), ("all", "array"), ("prefix", "none")]
PLAIN = [("causal, packed", "by distance"), ("all", "array"), ("prefix", "none")]  # the mask is one array there


@pytest.mark.parametrize(
    "kernel, mask, bias",
    [*(("blocks", *pair) for pair in BIASED)]
    + [pytest.param("plain", *pair, marks=[pytest.mark.slow] * (pair not in PLAIN)) for pair in BIASED],
)
def test_attention_is_that_of_one_device(short_blocks, kernel, mask, bias):
    """Four parts, and in blocks two blocks of queries in each; heads that share keys, and a bias' own gradient."""
    q, k, v, g = (draw(i, 4, heads, LENGTH, 8) for i, heads in enumerate((HEADS, 2, 2, HEADS)))
    values = draw(4, 1, HEADS, LENGTH, LENGTH) if bias == "array" else draw(4, 1, HEADS, 2 * LENGTH - 1)

    def both(q, k, v, values):
        def fn(q, k, v, values):
            given = {"none": None, "by distance": DistanceBias(values, LENGTH), "array": values}[bias]
            return attention_kernels.attend(q, k, v, MASKS[mask], given, 0.3)

        y, back = jax.vjp(fn, q, k, v, values)
        return y, *back(g)

    with attention_kernels.use(kernel) as picked:
        one = jax.jit(both)(q, k, v, values)
        with jax.set_mesh(contract.mesh_of("context")):
            cut = jax.jit(both)(q, k, v, values)
    assert list(picked.values()) == [2] and next(iter(picked)).startswith(kernel)
    for a, b in zip(cut, one):
        np.testing.assert_allclose(a, b, atol=2e-5)
    assert bool(one[-1].any()) == (bias != "none")


def test_each_device_has_its_queries_alone(short_blocks):
    """What a device computes of [H, L, S] is its own queries' part: no product has all of the queries in it."""
    q = draw(0, 2, HEADS, LENGTH, 8)
    mesh = contract.mesh_of("context")
    with attention_kernels.use("blocks"), jax.set_mesh(mesh):
        placed = jax.device_put(q, jax.sharding.NamedSharding(mesh, jax.P("fsdp", None, "context")))
        call = jax.jit(lambda q: attention_kernels.attend(q, q, q, AttentionMask(True)))
        compiled = call.lower(placed).compile()
    logits = {int(n) for n in re.findall(r"f32\[1,4,(\d+),64\]", compiled.as_text())}
    assert logits == {8}  # blocks of 8 of its own 16 queries, and all 64 keys
    assert compiled(placed).sharding.shard_shape(q.shape) == (1, HEADS, 16, 8)


def test_dropped_weights_want_whole_blocks():
    """By blocks of queries on one device, and by the same blocks where parts are made of whole ones."""
    q, keys = draw(0, 2, HEADS, LENGTH, 8), jax.random.split(jax.random.key(1), 2)
    fold = jax.vmap(jax.random.fold_in, (0, None))

    def dropped(p, start):
        keep = jax.vmap(lambda key: jax.random.bernoulli(key, 0.5, p.shape[1:]))(fold(keys, start))
        return p * keep

    cut = lambda block: jax.jit(lambda: context.attend(q, q, q, AttentionMask(True), None, 0.3, dropped, block))()
    with jax.set_mesh(contract.mesh_of("context")):
        found = cut(8)
        with pytest.raises(UserError, match="rows of 64 tokens in 4 parts of 16: attention weights are dropped"):
            cut(32)
    wanted = jax.jit(lambda: attention.attend(q, q, q, AttentionMask(True), None, 0.3, dropped, 8))()
    np.testing.assert_allclose(found, wanted, atol=2e-5)


def test_a_model_by_blocks_with_remat(short_blocks):
    """The whole step of a decoder whose rows go in blocks, its layers scanned and computed again backwards."""
    next_token = OBJECTIVES["next_token"]
    objective = dataclasses.replace(next_token, length=64, model=next_token.model.clone(remat="dots", dropout=0.0))
    data = Dataset(Windows(64), objective.preprocess, 8, seed=1)
    contract.check_sharding(objective, data.batch, "context, mixed", microbatches=2)


def test_what_cannot_be_cut_is_refused_by_name():
    def complaint(name, mesh):
        with pytest.raises(UserError) as error:
            validate(small.experiment(objective=OBJECTIVES[name], mesh=mesh), 8)
        return str(error.value)

    assert "mesh context:8 cuts rows of tokens along their length, and those of SpanCorruption are not read by" in (
        complaint("span_corruption", "context:8")
    )
    validate(small.experiment(objective=OBJECTIVES["next_token"], mesh="context:8"), 8)
    soft = OBJECTIVES["next_token"].adapted(PromptTuning(length=8))
    with pytest.raises(UserError, match="rows of 24 tokens along their length, and PromptTuning puts others before"):
        validate(small.experiment(objective=soft, mesh="context:8"), 8)
    with pytest.raises(UserError, match="mesh context:16 does not divide the length 24 of NextToken: choose a length"):
        validate(small.experiment(objective=OBJECTIVES["next_token"], mesh="context:16"), 16)


LONG = {  # mesh, length, mask
    "causal": ("context, mixed", 512, AttentionMask(True)),
    "causal, packed, four parts": ("context", 1024, AttentionMask(True)),
    "causal, parts that have no halves": ("context, mixed", 200, AttentionMask(True)),
    "window": ("context, mixed", 512, AttentionMask(True, window=150)),
    "padded": ("context, mixed", 512, AttentionMask()),
}


@pytest.mark.parametrize("name", LONG)
def test_splash_is_that_of_one_device(name):
    """The kernel, interpreted, on parts that exchange queries where the mask is causal: the plain path's numbers."""
    mesh, length, mask = LONG[name]
    ends = jnp.array([[length // 3, length - 40], [length // 2, length]])[:, :, None]
    documents = (jnp.arange(length) >= ends).sum(1) + 1
    if "packed" in name:
        mask = mask.replace(queries=documents, keys=documents)
    if "padded" in name:
        mask = mask.replace(keys=jnp.where(documents == 3, 0, 1))
    q, k, g = (draw(i, 2, heads, length, 8) for i, heads in enumerate((2, 2, 2)))

    def both(q, k):
        y, back = jax.vjp(lambda q, k: attention_kernels.attend(q, k, k, mask, None, 0.3), q, k)
        return y, *back(g)

    with attention_kernels.use("splash") as picked, jax.set_mesh(contract.mesh_of(mesh)):
        cut = jax.jit(both)(q, k)
    assert picked == {"splash: blocks on the chip": 1}
    with attention_kernels.use("plain"):
        one = jax.jit(both)(q, k)
    for a, b in zip(cut, one):
        np.testing.assert_allclose(a, b, atol=3e-5)


def test_a_causal_mask_is_as_much_work_for_every_part():
    """Of 16 blocks of queries, part 0 has the first two and the last two; in the order of the text it would see 10 of
    64 blocks of keys, and the last part 58."""
    share = lambda order, part: splash._share(order[::16].reshape(4, 4)[part], 256, 16, 16, True, None)
    balanced, plain = splash._order(256, 4), np.arange(256)
    assert balanced[::16].reshape(4, 4)[0].tolist() == [0, 16, 224, 240]
    assert [share(balanced, part) for part in range(4)] == [34 / 64] * 4
    assert [share(plain, part) for part in range(4)] == [10 / 64, 26 / 64, 42 / 64, 58 / 64]
