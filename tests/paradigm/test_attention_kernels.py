"""The choice of an attention kernel, and what is handed to it: masks, odd lengths.

The kernel itself needs a GPU (`python -m benchmarks.gpu --attention_table` compares it there); here jax's own form of
the same call stands in for it.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradigm import attention, attention_kernels
from paradigm.attention import AttentionMask

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


def test_what_the_kernel_cannot_do_goes_the_plain_way(kernel):
    q = draw(0, 1, 2, 4, 8)
    assert attention_kernels.pick(q, dropout=False) == ("cudnn", "flash attention")
    assert attention_kernels.pick(q, dropout=True) == ("plain", "weights are dropped")
    assert attention_kernels.pick(q.astype(jnp.float32), dropout=False) == ("plain", "the arithmetic is float32")
    assert attention_kernels.pick(draw(0, 1, 2, 4, 6), dropout=False) == ("plain", "heads are 6 wide")
    assert attention_kernels.pick(q, False, draw(1, 1, 2, 4, 4)) == ("plain", "there is a bias")
    with attention_kernels.use("plain"):
        assert attention_kernels.pick(q, dropout=False) == ("plain", "it was asked for")
    plain = attention_kernels.attend(q, q, q, AttentionMask(), dropped=lambda p: p * 0)
    assert not kernel and not plain.any()


def test_a_cpu_takes_the_plain_path():
    assert attention_kernels.pick(draw(0, 1, 2, 4, 8), dropout=False) == ("plain", "the device is a cpu")
