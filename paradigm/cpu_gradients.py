"""Functions whose gradients are spelled out: the usual ones, in the form that XLA's CPU compiler handles well.

Each is what the lines of its forward pass say, on every backend; the letter table of shapes is in transformer.py.
"""

import functools
import math

import jax
import jax.numpy as jnp

# ---- Products and sums -----------------------------------------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def product(x, kernel, inputs):
    """[..., *in] times [*in, *out] -> [..., *out], `inputs` being the number of axes in `in`.

    The gradient is the usual one, spelled out to choose which factor stands first in the kernel's: the narrower. XLA's
    CPU compiler transposes that one, element by element with all that is computed on the way to it (a slope of GELU).
    """
    return jax.lax.dot_general(x, kernel, ((range(x.ndim - inputs, x.ndim), range(inputs)), ((), ())))


def _product_gradients(inputs, factors, g):
    x, kernel = factors
    rows, outputs = x.ndim - inputs, kernel.ndim - inputs
    to_x = jax.lax.dot_general(g, kernel, ((range(rows, g.ndim), range(inputs, kernel.ndim)), ((), ())))
    over = range(rows)
    if math.prod(kernel.shape[:inputs]) <= math.prod(kernel.shape[inputs:]):
        return to_x, jax.lax.dot_general(x, g, ((over, over), ((), ())))
    to_kernel = jax.lax.dot_general(g, x, ((over, over), ((), ())))  # [*out, *in]
    return to_x, jnp.moveaxis(to_kernel, range(outputs), range(inputs, kernel.ndim))


product.defvjp(lambda x, kernel, inputs: (product(x, kernel, inputs), (x, kernel)), _product_gradients)


@jax.custom_vjp
def add_bias(logits_BxHxLxS, bias):
    """logits + bias [B or 1, H, L, S].

    The gradient's sum over B is a product with ones: over an outer axis, XLA's CPU reduction takes ten times as long.
    """
    return logits_BxHxLxS + bias


def _bias_gradients(bias, g):
    if bias.shape[0] == g.shape[0]:
        return g, g
    return g, jnp.einsum("b,bhls->hls", jnp.ones(g.shape[0], g.dtype), g)[None]


add_bias.defvjp(lambda logits, bias: (logits + bias, bias), _bias_gradients)


# ---- Normalisation ---------------------------------------------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def normalise(x, scale, bias, eps):
    """float32 [..., C] -> (normalised, mean [C], biased variance [C]); the moments pass no gradient on.

    The gradient is the usual one (Ioffe and Szegedy 2015, section 3), spelled out: it reads x and the moments alone, in
    a third of the time that XLA's CPU compiler takes for what differentiation makes of the lines below.
    """
    over = tuple(range(x.ndim - 1))
    mean = jnp.mean(x, over)
    var = jnp.mean(jnp.square(x - mean), over)
    return (x - mean) * (jax.lax.rsqrt(var + eps) * scale) + bias, mean, var


def _normalise_forward(x, scale, bias, eps):
    y, mean, var = normalise(x, scale, bias, eps)
    return (y, mean, var), (x, scale, mean, jax.lax.rsqrt(var + eps))


def _normalise_gradients(eps, kept, slopes):
    (x, scale, mean, inverse), (g, _, _) = kept, slopes
    over, count = tuple(range(x.ndim - 1)), x.size // x.shape[-1]
    h = (x - mean) * inverse
    to_bias, to_scale = jnp.sum(g, over), jnp.sum(g * h, over)
    return (scale * inverse) * (g - to_bias / count - h * (to_scale / count)), to_scale, to_bias


normalise.defvjp(_normalise_forward, _normalise_gradients)


# ---- Activations -----------------------------------------------------------------------------------------------------

_GELU = math.sqrt(2.0 / math.pi)


@jax.custom_vjp
def gelu(x):
    """The tanh form of GELU (Hendrycks and Gimpel 2016, section 2), which T5 v1.1 and GPT-2 use.

    x Phi(x) with Phi(x) = (1 + tanh u) / 2 = 1 / (1 + exp(-2u)), u = sqrt(2 / pi) (x + 0.044715 x^3). The gradient
    needs nothing but x.
    """
    return x * _phi(x)


def _phi(x):
    return 1.0 / (1.0 + jnp.exp(-2.0 * _GELU * (x + 0.044715 * x * x * x)))


def _gelu_gradient(x, g):
    # By tanh, though _phi would do: compilers would merge it with the forward pass's and keep it in memory until here.
    phi = (1.0 + jnp.tanh(_GELU * (x + 0.044715 * x * x * x))) / 2.0
    return (g * (phi + x * phi * (1.0 - phi) * 2.0 * _GELU * (1.0 + 3.0 * 0.044715 * x * x)),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_gradient)


@jax.custom_vjp
def gelu_exact(x):
    """GELU itself, x Phi(x) with the normal distribution's Phi (Hendrycks and Gimpel 2016, section 2), as ViTs have it.

    The gradient, Phi(x) + x phi(x), needs nothing but x.
    """
    return x * (0.5 + 0.5 * jax.lax.erf(x * math.sqrt(0.5)))


def _gelu_exact_gradient(x, g):
    # erf of -x and not of x, for the reason that is given in _gelu_gradient.
    phi = 0.5 - 0.5 * jax.lax.erf(x * -math.sqrt(0.5))
    return (g * (phi + x * jnp.exp(-0.5 * x * x) * math.sqrt(0.5 / math.pi)),)


gelu_exact.defvjp(lambda x: (gelu_exact(x), x), _gelu_exact_gradient)


@jax.custom_vjp
def gated_gelu(a, b):
    """gelu(a) * b (Shazeer 2020, section 2), whose gradient needs nothing but a and b."""
    return gelu(a) * b


def _gated_gelu_gradients(inputs, g):
    a, b = inputs
    phi = (1.0 + jnp.tanh(_GELU * (a + 0.044715 * a * a * a))) / 2.0
    return *_gelu_gradient(a, g * b), g * a * phi


gated_gelu.defvjp(lambda a, b: (gated_gelu(a, b), (a, b)), _gated_gelu_gradients)
