"""The choice of an attention kernel, and what is handed to it: masks, odd lengths.

The kernel itself needs a GPU (`python -m benchmarks.gpu --attention_table` compares it there); here jax's own form of
the same call stands in for it.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradigm import attention, attention_kernels, cudnn, splash
from paradigm.attention import AttentionMask, DistanceBias, pad_bias
from paradigm.errors import UserError
from paradigm.testing import assert_trees_close
from paradigm.transformer import Stack

SEGMENTS = jnp.array([[1, 1, 1, 2, 2, 2, 2, 3, 3, 0], [1, 1, 2, 2, 2, 2, 2, 2, 0, 0]])


def draw(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape, jnp.float16)


@pytest.fixture
def kernel(monkeypatch):
    """A GPU by name, and the arguments of every call of the kernel."""
    calls, real = [], jax.nn.dot_product_attention

    def stand_in(*args, implementation, **kwargs):
        assert implementation == "cudnn"
        calls.append((args, kwargs))
        return real(*args, implementation="xla", **kwargs)

    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    return calls


MASKS = {
    "all": (lambda n: AttentionMask(), False),
    "causal": (lambda n: AttentionMask(True), False),
    "prefix": (lambda n: AttentionMask(True, jnp.array([3, 5])), True),
    "packed": (lambda n: AttentionMask(True, None, SEGMENTS[:, :n], SEGMENTS[:, :n]), True),
    "window": (lambda n: AttentionMask(True, window=3), True),
    "local": (lambda n: AttentionMask(window=3), True),
    "padded": (lambda n: AttentionMask(keys=SEGMENTS[:, :n]), True),
    "alone": (lambda n: AttentionMask(True, alone=jnp.arange(n)[None] % 2 == 1), True),
}


@pytest.mark.parametrize("length", [10, 9])
@pytest.mark.parametrize("name", MASKS)
def test_the_kernel_is_given_what_the_plain_path_computes(kernel, name, length):
    make, masked = MASKS[name]
    mask, seen = make(length), SEGMENTS[:, None, :length, None] > 0
    q, k, v = (draw(i, 2, heads, length, 8) for i, heads in enumerate((4, 2, 2)))  # two heads read one key

    def both(attend):
        loss = lambda *qkv: jnp.where(seen, attend(*qkv, mask, None, 0.3), 0).astype(jnp.float32).sum()
        return [attend(q, k, v, mask, None, 0.3), *jax.grad(loss, (0, 1, 2))(q, k, v)]

    for ours, plain in zip(both(attention_kernels.attend), both(attention.attend)):
        assert ours.shape == plain.shape
        np.testing.assert_allclose(np.where(seen, ours, 0), np.where(seen, plain, 0), atol=4e-3)
    (query, *_, given), kwargs = kernel[0]
    assert query.shape[1] % 2 == 0 and (given is not None) == masked
    assert kwargs["is_causal"] == (name == "causal")


ROWS = {  # whether documents are told apart by place, queries' segments, keys'
    "three and padding": (True, [[1] * 9 + [2] * 8 + [3] * 5 + [0] * 2] * 2, None),
    "one": (True, [[1] * 24, [5] * 24], None),
    "sixteen": (True, [[*range(1, 16), *[16] * 9], [1] * 24], None),
    "seventeen": (False, [[*range(1, 17), *[17] * 8], [1] * 24], None),
    "one in two pieces": (False, [[1] * 8 + [2] * 8 + [1] * 8, [1] * 24], None),
    "padding in front": (False, [[0] * 8 + [1] * 16, [1] * 24], None),
    "other keys": (False, [[1] * 8 + [2] * 16] * 2, [[1] * 9 + [2] * 15] * 2),
}


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("name", ROWS)
def test_documents_are_given_to_the_kernel_by_their_places(kernel, monkeypatch, name, causal):
    by_place, queries, keys = ROWS[name]
    mask = AttentionMask(causal, None, jnp.array(queries), jnp.array(queries if keys is None else keys))

    def stand_in(q, k, v, starts, lengths, scale, causal):
        """The kernel, from what it is told alone: and twice what it gives, to be told from the array's way."""
        place = jnp.arange(24)[None, :, None]
        own = (place >= starts[:, None, :-1]) & (place < (starts[:, :-1] + lengths)[:, None]) & (lengths >= 0)[:, None]
        parts = jnp.argmax(own, -1) + 1
        rows = (x.swapaxes(1, 2) for x in (q, k, v))
        return 2 * attention.attend(*rows, AttentionMask(causal, None, parts, parts), None, scale).swapaxes(1, 2)

    monkeypatch.setattr(cudnn, "packed", stand_in)
    monkeypatch.setattr(cudnn, "takes_documents", lambda: True)
    q, k, v, g = jax.random.normal(jax.random.key(0), (4, 2, 4, 24, 8))

    def both(attend):
        value = lambda *qkv: (lambda y: ((y * g).sum(), y))(attend(*qkv))
        grads, y = jax.jit(jax.grad(value, (0, 1, 2), has_aux=True))(q, k, v)
        return y, *grads

    ours = both(lambda *qkv: cudnn.attend(*qkv, mask, 0.3))
    for x, plain in zip(ours, both(lambda *qkv: attention.attend(*qkv, mask, None, 0.3))):
        np.testing.assert_allclose(x, plain * (1 + by_place), atol=1e-5)


@pytest.mark.parametrize("change", [{"prefix": jnp.array([2, 3])}, {"window": 4}, {"offset": jnp.array([0, 0])}])
def test_other_masks_are_arrays_to_the_kernel(kernel, monkeypatch, change):
    monkeypatch.setattr(cudnn, "packed", None)
    monkeypatch.setattr(cudnn, "takes_documents", lambda: True)
    segments = jnp.ones((2, 24), jnp.int32)
    q = draw(0, 2, 4, 24, 8)
    attention_kernels.attend(q, q, q, AttentionMask(True, None, segments, segments).replace(**change))
    attention_kernels.attend(q, q[:, :2], q[:, :2], AttentionMask(True, None, segments, segments))  # two heads a key
    assert [args[-1].shape for args, _ in kernel] == [(2, 1, 24, 24)] * 2


def test_a_cpu_takes_no_documents_by_place():
    assert not cudnn.takes_documents()


def pick(q, dropout=False, bias=None, mask=AttentionMask(), k=None):  # noqa: B008
    return attention_kernels.pick(q, q if k is None else k, mask, dropout, bias)


def test_what_the_kernel_cannot_do_goes_the_plain_way(kernel):
    q = draw(0, 1, 2, 4, 8)
    assert pick(q) == ("cudnn", "flash attention")
    assert pick(q, dropout=True) == ("plain", "weights are dropped")
    assert pick(q.astype(jnp.float32)) == ("plain", "the arithmetic is float32, and cuDNN takes bfloat16 and float16")
    assert pick(draw(0, 1, 2, 4, 6)) == ("plain", "heads are 6 wide, and cuDNN takes multiples of 8 up to 128")
    assert pick(q, bias=draw(1, 1, 2, 4, 4)) == ("plain", "there is a bias")
    with attention_kernels.use("plain") as picked:
        assert pick(q) == ("plain", "it was asked for")
    assert picked == {"plain: it was asked for": 1}
    plain = attention_kernels.attend(q, q, q, AttentionMask(), dropped=lambda p, start: p * 0)
    assert not kernel and not plain.any()


def test_a_cpu_takes_the_plain_path():
    assert pick(draw(0, 1, 2, 4, 8)) == ("plain", "the device is a cpu")


def test_a_tpu_takes_splash_for_long_rows(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert pick(draw(0, 1, 2, 512, 8)) == ("splash", "blocks on the chip")
    assert pick(draw(0, 1, 2, 511, 8)) == ("plain", "rows are shorter than 512")
    decoding = AttentionMask(True, offset=jnp.zeros(1, jnp.int32))
    assert pick(draw(0, 1, 2, 600, 8), mask=decoding) == ("plain", "it decodes with a cache")
    with attention_kernels.use("splash"):
        assert pick(draw(0, 1, 2, 256, 8))[0] == "splash"


# What splash cannot take, by the changes to a call that it can.
UNFIT = {
    "a prefix is no static mask": {"mask": AttentionMask(True, jnp.array([3]))},
    "keys that one query sees are no static mask": {"mask": AttentionMask(True, alone=jnp.arange(128)[None] > 5)},
    "it decodes with a cache": {"mask": AttentionMask(True, offset=jnp.array([3]))},
    "rows are shorter than 128": {"k": draw(0, 1, 2, 127, 8)},
    "128 queries are masked by their place among 130 keys": {"mask": AttentionMask(True), "k": draw(0, 1, 2, 130, 8)},
    "there is a bias": {"bias": jnp.zeros((1, 2, 128, 128))},
    "weights are dropped": {"dropout": True},
}


@pytest.mark.parametrize("reason", UNFIT)
def test_a_kernel_that_is_asked_for_and_cannot_serve_is_refused(reason):
    q = draw(0, 1, 2, 128, 8)
    with attention_kernels.use("splash"):
        assert pick(q)[0] == "splash"
        with pytest.raises(UserError, match=re.escape(f"attention='splash' cannot serve here: {reason}; 'auto'")):
            pick(q, **UNFIT[reason])
    with attention_kernels.use("cudnn"), pytest.raises(UserError, match="cannot serve here: the device is a cpu"):
        pick(q)
    with pytest.raises(UserError, match="unknown attention"), attention_kernels.use("flash"):
        pass


PACKED = jnp.concatenate([jnp.ones(90), jnp.full(50, 2), jnp.zeros(60)]).astype(jnp.int32)[None]
SPLASH = {  # length, source, mask
    "all": (200, 200, lambda n: AttentionMask()),
    "a source of another length": (128, 200, lambda n: AttentionMask(keys=PACKED[:, :n])),
    "causal": (256, 256, lambda n: AttentionMask(True)),
    "causal, packed": (200, 200, lambda n: AttentionMask(True, None, PACKED[:, :n], PACKED[:, :n])),
    "window": (200, 200, lambda n: AttentionMask(True, window=70)),
    "local, padded": (200, 200, lambda n: AttentionMask(keys=PACKED[:, :n], window=70)),
    "layer with a window": (200, 200, lambda n: AttentionMask(window=70, everywhere=jnp.bool_(False))),
    "layer without it": (200, 200, lambda n: AttentionMask(window=70, everywhere=jnp.bool_(True))),
}


@pytest.mark.parametrize("name", SPLASH)
def test_splash_computes_what_the_plain_path_does(name):
    """Its blocks, skipped blocks and padding, interpreted: lengths that are no multiple of 128, two heads to a key."""
    length, source, make = SPLASH[name]
    mask = make(source)
    q, k, v = (
        draw(i, 1, *shape).astype(jnp.float32) for i, shape in enumerate(((4, length, 8), *[(2, source, 8)] * 2))
    )
    g = draw(3, 1, 4, length, 8).astype(jnp.float32)
    if mask.queries is not None:  # what padding sees is nobody's
        g *= (mask.queries > 0)[:, None, :, None]

    def both(attend):
        y, back = jax.vjp(lambda *qkv: attend(*qkv, mask, None, 0.3), q, k, v)
        return [y * (g != 0), *back(g)]

    with attention_kernels.use("splash") as picked:
        ours = jax.jit(lambda: both(attention_kernels.attend))()
    assert picked == {"splash: blocks on the chip": 1}
    for x, plain in zip(ours, both(attention.attend)):
        np.testing.assert_allclose(x, plain, atol=2e-5)


def test_splash_on_a_mesh_is_splash_on_one_device():
    mask = AttentionMask(True, None, *[jnp.tile(PACKED[:, :128], (4, 1))] * 2)
    q, k = draw(0, 4, 4, 128, 8).astype(jnp.float32), draw(1, 4, 2, 128, 8).astype(jnp.float32)
    run = jax.jit(jax.grad(lambda q, k: attention_kernels.attend(q, k, k, mask, None, 0.3).sum(), (0, 1)))
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 3)
    with attention_kernels.use("splash"):
        one = run(q, k)
        with jax.set_mesh(mesh):
            cut = run(q, k)
            with pytest.raises(UserError, match="3 rows do not divide over data x fsdp"):
                pick(q[:3], k=k[:3])
            with pytest.raises(UserError, match="1 key heads do not divide over tensor"):
                pick(q, k=k[:, :1])
    for a, b in zip(one, cut):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_the_share_of_blocks_that_splash_goes_through():
    # What launch/aot/hlo.py counts by: of 4 x 4 blocks.
    share = lambda length, *args: splash._share(range(0, length, args[1]), *args)
    assert share(512, 512, 128, 128, False, None) == 1
    assert share(512, 512, 128, 128, True, None) == 10 / 16
    assert share(512, 512, 128, 128, True, 129) == 7 / 16
    assert share(512, 512, 128, 128, False, 130) == 14 / 16


LONG = 41  # two blocks of 16 and a part of a third
DOCUMENTS = jnp.concatenate([jnp.ones(20), jnp.full(15, 2), jnp.zeros(6)]).astype(jnp.int32)[None]
BLOCKS = {
    "all": AttentionMask(),
    "prefix": AttentionMask(True, jnp.array([22])),
    "prefix, packed": AttentionMask(True, jnp.array([17]), DOCUMENTS, DOCUMENTS),
    "window, padded": AttentionMask(True, keys=DOCUMENTS, window=7),
    "alone, packed": AttentionMask(True, None, DOCUMENTS, DOCUMENTS, alone=jnp.arange(LONG)[None] % 2 == 1),
}


@pytest.fixture
def short_blocks(monkeypatch):
    monkeypatch.setattr(attention_kernels, "BLOCKED", 32)
    monkeypatch.setattr(attention_kernels, "BLOCK", 16)


@pytest.mark.parametrize("name, biased", [("all", "no"), *((name, "by distance") for name in BLOCKS), ("all", "array")])
def test_blocks_compute_what_the_plain_path_does(short_blocks, name, biased):
    """Rows of no multiple of a block, heads that share keys, and a bias, its own gradient too."""
    mask = BLOCKS[name]
    q, k, v, g = (draw(i, 1, heads, LONG, 4).astype(jnp.float32) for i, heads in enumerate((4, 2, 2, 4)))
    if mask.queries is not None:  # what padding sees is nobody's
        g *= (mask.queries > 0)[:, None, :, None]
    values = draw(4, 1, 4, 2 * LONG - 1).astype(jnp.float32)
    if biased == "array":
        values = draw(4, 1, 4, LONG, LONG).astype(jnp.float32)

    def both(attend, whole):
        def fn(q, k, v, values):
            bias = {"no": None, "by distance": DistanceBias(values, LONG), "array": values}[biased]
            bias = bias.expand() if whole and biased == "by distance" else bias
            return attend(q, k, v, mask, bias, 0.3)

        y, back = jax.vjp(fn, q, k, v, values)
        return [y * (g != 0), *back(g)]

    with attention_kernels.use("auto") as picked:
        ours = jax.jit(lambda: both(attention_kernels.attend, False))()
    assert picked == {"blocks: the device is a cpu": 1}
    for x, wanted in zip(ours, jax.jit(lambda: both(attention.attend, True))()):
        np.testing.assert_allclose(x, wanted, atol=2e-5)
    assert bool(ours[-1].any()) == (biased != "no")


def test_which_rows_go_in_blocks(monkeypatch):
    q = draw(0, 1, 2, 1024, 8)
    assert pick(q) == ("blocks", "the device is a cpu") and pick(q[:, :, :1023])[0] == "plain"
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    prefix = AttentionMask(True, jnp.array([3]))
    assert pick(q) == ("splash", "blocks on the chip")
    assert pick(q, mask=prefix) == ("blocks", "a prefix is no static mask")
    assert pick(q, bias=DistanceBias(jnp.zeros((1, 2, 2047)), 1024)) == ("blocks", "there is a bias")
    with attention_kernels.use("plain"):
        assert pick(q) == ("plain", "it was asked for")
    with attention_kernels.use("blocks"):
        assert pick(q[:, :, :4]) == ("blocks", "it was asked for")


def test_a_block_is_told_where_it_starts(short_blocks):
    """So that dropout can give each a mask of its own."""
    q = jnp.ones((1, 2, 32, 4))
    y = attention_kernels.attend(q, q, q, AttentionMask(), dropped=lambda p, start: p * start)
    np.testing.assert_allclose(y[0, 0, :, 0], [0.0] * 16 + [16.0] * 16, rtol=1e-5)


@pytest.mark.parametrize("positions", ["relative", "relative_per_layer", "alibi"])
def test_a_stack_in_blocks_is_the_stack(monkeypatch, positions):
    """Its bias by distance, through scan and remat: output and gradients, the table's among them."""
    stack = Stack(d_model=8, heads=2, d_ff=8, layers=2, positions=positions, remat="full")
    x, mask = jax.random.normal(jax.random.key(0), (2, LONG, 8)), AttentionMask(True, jnp.array([9, 30]))
    variables = stack.init(jax.random.key(1), x, mask)

    def run():
        loss = lambda v: (jnp.sin(stack.apply(v, x, mask)[0]).sum(), stack.apply(v, x, mask)[0])
        return jax.jit(jax.grad(loss, has_aux=True))(variables)

    plain = run()
    monkeypatch.setattr(attention_kernels, "BLOCKED", 32)
    monkeypatch.setattr(attention_kernels, "BLOCK", 16)
    with attention_kernels.use("auto") as picked:
        blocks = run()
    assert list(picked) == ["blocks: the device is a cpu"]
    assert_trees_close(blocks, plain, 2e-6)


def test_a_bias_by_distance_is_padded_as_an_array_is():
    """Soft tokens stand in front of the keys, and queries of nobody fill the last block."""
    bias = DistanceBias(draw(0, 1, 2, 5 + 7 - 1), 5)
    np.testing.assert_array_equal(pad_bias(bias, keys=3).expand(), pad_bias(bias.expand(), keys=3))
    np.testing.assert_array_equal(
        pad_bias(bias, queries=2, keys=3).cut(1, 4).expand(), pad_bias(bias.expand(), keys=3)[:, :, 1:5]
    )
    assert pad_bias(None, 1, 1) is None


def temporaries(length, positions, mask, remat):
    """Bytes that a step of a small stack needs beside its arguments, as compiled."""
    stack = Stack(d_model=8, heads=2, d_ff=8, layers=2, positions=positions, remat=remat)
    x = jax.ShapeDtypeStruct((1, length, 8), jnp.float32)
    variables = jax.eval_shape(lambda x: stack.init(jax.random.key(0), x, mask), x)
    loss = lambda v, x: stack.apply(v, x, mask)[0].sum()
    return jax.jit(jax.grad(loss)).lower(variables, x).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("positions, mask, remat", [
    ("relative", AttentionMask(True), "full"),
    ("relative_per_layer", AttentionMask(True, jnp.array([9])), "none"),
    ("alibi", AttentionMask(), "none"),
])  # fmt: skip
def test_memory_is_linear_in_the_length(positions, mask, remat):
    """With a bias and with a prefix. Weights as a whole would be four times as large at twice the length."""
    short, long = (temporaries(n, positions, mask, remat) for n in (4096, 8192))
    assert long < 2.1 * short and long < 4 * 8192**2  # bytes: less than one head's weights
