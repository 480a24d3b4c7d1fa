"""Rotary positions: differences alone count; stretched frequencies are those of the transformers library."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradigm.errors import UserError
from paradigm.rope import LinearScaling, Llama3Scaling, YarnScaling, rope_angles, rotate


def test_rope_sees_differences_only():
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 8))
    score = lambda i, j: jnp.vdot(*(rotate(x, rope_angles(jnp.array([[n]]), 8)) for x, n in ((q, i), (k, j))))
    assert abs(score(3, 1) - score(103, 101)) < 1e-4 and abs(score(3, 1) - score(3, 2)) > 1e-3


# Frequencies and the factor on cos and sin for heads of 16, from the functions of the transformers library
# (5.x, modeling_rope_utils.py: _compute_linear_scaling_, _compute_llama3_ and _compute_yarn_ ... parameters).
REFERENCE = [
    (
        *(LinearScaling(2.5), 1e4, 1.0),
        [0.40000001, 0.1264911, 0.039999999, 0.012649111, 0.0039999997, 0.0012649111, 0.00040000002, 0.00012649111],
    ),
    (
        *(Llama3Scaling(8.0, 1.0, 4.0, 64), 1e4, 1.0),
        [1.0, 0.24438459, 0.013042256, 0.0039528473, 0.00125, 0.00039528473, 0.00012500001, 3.9528473e-05],
    ),
    (
        *(Llama3Scaling(factor=32.0), 5e5, 1.0),
        [1.0, 0.19392276, 0.037606031, 0.0072926651, 0.00042955671, 8.5702559e-06, 1.6619676e-06, 3.2229329e-07],
    ),
    (
        *(YarnScaling(4.0, 64), 1e4, 1.138629436111989),
        [1.0, 0.23717082, 0.049999997, 0.0079056947, 0.0024999999, 0.00079056947, 0.00025000001, 7.9056947e-05],
    ),
    (
        *(YarnScaling(4.0, 32768, beta_fast=16.0, beta_slow=2.0, attention_factor=1.3, truncate=False), 1e6, 1.3),
        [1.0, 0.17782794, 0.031622779, 0.0056234132, 0.00059567997, 4.4456985e-05, 7.9056936e-06, 1.4058534e-06],
    ),
]


@pytest.mark.parametrize("scaling, theta, factor, frequency", REFERENCE, ids=lambda x: getattr(x, "factor", ""))
def test_stretched_frequencies_are_the_reference_s(scaling, theta, factor, frequency):
    positions = jnp.array([[0, 1, 5]])
    cos, sin = rope_angles(positions, 16, theta, scaling)
    wanted = np.outer([0, 1, 5], np.array(frequency))
    np.testing.assert_allclose(cos[0, 0], factor * np.cos(wanted), rtol=2e-6)
    np.testing.assert_allclose(sin[0, 0], factor * np.sin(wanted), rtol=2e-6)


@pytest.mark.parametrize(
    "make, text",
    [
        (lambda: LinearScaling(0.0), "LinearScaling.factor=0.0 must be positive"),
        (lambda: Llama3Scaling(8.0, 4.0, 4.0), "Llama3Scaling.high_freq_factor=4.0 must be above low_freq_factor=4.0"),
        (lambda: YarnScaling(4.0, 0), "YarnScaling.original_length=0 must be positive"),
        (lambda: YarnScaling(4.0, 64, 1.0, 32.0), "YarnScaling.beta_fast=1.0 must not be below beta_slow=32.0"),
    ],
)
def test_errors_name_the_mistake(make, text):
    with pytest.raises(UserError, match=text):
        make()
