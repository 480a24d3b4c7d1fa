"""LoRA: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", section 4.1.

    y = W x + s B A x,   s = alpha / r,   A uniform in +-fan_in ** -0.5, B = 0 at first

(microsoft/LoRA layers.py and peft tuners/lora/layer.py: kaiming_uniform_ with a = sqrt(5); an embedding has A = 0 and B
normal.) Rank-stabilised: s = alpha / sqrt(r) (Kalajdzievski 2023, equation 6). DoRA (Liu et al. 2024, section 4):

    y = m / |W + s B A| (W + s B A) x,   norms over the inputs, the denominator held constant in the gradient

Leaves beside a kernel [*in, *out]: lora_a [*in, r], lora_b [r, *out], lora_magnitude [*out] = m - |W|: zero at first
whatever W is, and a step of it is a step of m.
"""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
from flax import linen as nn

from paradigm import trees
from paradigm.adapt.base import Adaptation, by_module, module_path, per_layer
from paradigm.cpu_gradients import product
from paradigm.errors import UserError
from paradigm.layers import Dense, Embed, drop, lookup
from paradigm.partition import constrain_tokens
from paradigm.transformer import MLP, Attention

A, B, MAGNITUDE = "lora_a", "lora_b", "lora_magnitude"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoRA(Adaptation):
    """A product of low rank beside kernels and embeddings; queries and values unless `targets` says otherwise.

    rank, alpha: r and the numerator of the scale. rank_stabilized: alpha / sqrt(r) for alpha / r.
    dropout: of what A reads, in the kernels of attention and MLP.
    targets: regexes on 'model/decoder/layers/attention/query/kernel' and the like; what the first of them found is
        adapted (section 4.2 has queries and values).
    ranks, alphas: ((regex, number), ...) in place of rank and alpha, the first match counts.
    dora: with a magnitude for each output.

    A tied output kernel stays the embedding's, unadapted, as in the peft library.
    """

    rank: int = 8
    alpha: float = 16.0
    rank_stabilized: bool = False
    dropout: float = 0.0
    targets: tuple[str, ...] = (r"(attention|cross)/(query|value)/kernel$",)
    ranks: tuple[tuple[str, int], ...] = ()
    alphas: tuple[tuple[str, float], ...] = ()
    dora: bool = False

    own = (A, B, MAGNITUDE)
    carriers = "adapts the kernels of paradigm.layers' Dense and Embed (no convolution)"
    partition_rules = (
        (r"(attention|cross)/(query|key|value)/lora_a$", ("fsdp", None)),
        (r"(attention|cross)/(query|key|value)/lora_b$", (None, "tensor", "fsdp?")),
        (r"(attention|cross)/out/lora_a$", ("tensor", "fsdp?", None)),
        (r"mlp/(gate|up)/lora_a$", ("fsdp", None)),
        (r"mlp/(gate|up)/lora_b$", (None, ("tensor", "fsdp?"))),
        (r"mlp/down/lora_a$", (("tensor", "fsdp?"), None)),
        (r"((attention|cross)/out|mlp/down)/lora_b$", (None, "fsdp")),
        (r"/lora_a$", ("fsdp?", None)),
        (r"/lora_(b|magnitude)$", ("fsdp?",)),
    )

    def __post_init__(self):
        super().__post_init__()
        trees.check_table(self.ranks, "LoRA.ranks", int)
        trees.check_table(self.alphas, "LoRA.alphas", float)
        trees.check_patterns(self.targets, "LoRA.targets")
        if min([self.rank, *(rank for _, rank in self.ranks)]) < 1:
            raise UserError(f"LoRA.rank={self.rank}, ranks={self.ranks}: a rank is at least 1")
        if not min([self.alpha, *(alpha for _, alpha in self.alphas)]) > 0:
            raise UserError(f"LoRA.alpha={self.alpha}, alphas={self.alphas}: what is added is times alpha, above 0")
        if not 0 <= self.dropout < 1:
            raise UserError(f"LoRA.dropout={self.dropout} must lie from 0 to below 1")

    @property
    def is_random(self):
        return self.dropout > 0

    def rank_of(self, name):
        """r of the kernel of this name; 0 where it is no target."""
        if not any(re.search(pattern, name) for pattern in self.targets):
            return 0
        return trees.first_match(self.ranks, name, self.rank)

    def scale_of(self, name):
        """s of the kernel of this name."""
        rank, alpha = self.rank_of(name), trees.first_match(self.alphas, name, self.alpha)
        return alpha / (rank**0.5 if self.rank_stabilized else rank)

    def settings_of(self, name):
        path = name.rpartition("/")[0]
        kernel = f"{path}/{'embedding' if lora_of_embedding(self, path) else 'kernel'}"
        return {"dora": self.dora, "scale": float(self.scale_of(kernel))} if self.rank_of(kernel) else {}

    def check(self, objective, params, heads):
        patterns = {name: getattr(self, name) for name in ("targets", "ranks", "alphas")}
        self.check_patterns(objective, params, heads, ("/kernel", "/embedding"), **patterns)
        super().check(objective, params, heads)

    def interceptor(self, name):
        keys = [None]  # of the Attention or MLP that is being called

        def call(next_fun, args, kwargs, context):
            module = context.module
            if context.method_name != "__call__":
                return next_fun(*args, **kwargs)
            if isinstance(module, Attention | MLP):
                keys.append(kwargs["keys"] if "keys" in kwargs else args[1] if isinstance(module, MLP) else None)
                try:
                    return next_fun(*args, **kwargs)
                finally:
                    keys.pop()
            if isinstance(module, Dense):
                return self._dense(next_fun, module, module_path(name, module), args[0], keys[-1])
            if isinstance(module, Embed):
                return self._embed(next_fun, module, module_path(name, module), args[0])
            return next_fun(*args, **kwargs)

        return call

    def _dense(self, next_fun, module, path, x, keys):
        y, rank = next_fun(x), self.rank_of(f"{path}/kernel")
        if not rank:
            return y
        kernel = module.get_variable("params", "kernel")
        into = kernel.shape[: module.inputs]
        self._check_rank(path, rank, kernel.shape, module.inputs)
        a, b = self._pair(module, path, (*into, rank), (rank, *module.features), first_a=_kaiming, first_b=_zeros)
        scale, dtype = self.scale_of(f"{path}/kernel"), module.dtype
        z = product(drop(x, keys, f"lora/{path}", self.dropout).astype(dtype), a.astype(dtype), module.inputs)
        z = constrain_tokens(z)
        more = product(z * jnp.asarray(scale, dtype), b.astype(dtype), 1)
        if not self.dora:
            return y + more
        more_magnitude = module.param(MAGNITUDE, _zeros, module.features, jnp.float32)
        more_magnitude = self.in_use(f"{path}/{MAGNITUDE}", more_magnitude)
        factor = magnitude_factor(kernel, a, b, scale, more_magnitude).astype(dtype)
        plain = y - module.get_variable("params", "bias").astype(dtype) if module.bias else y
        return y + (factor - 1) * plain + factor * more

    def _embed(self, next_fun, module, path, ids):
        y, rank = next_fun(ids), self.rank_of(f"{path}/embedding")
        if not rank:
            return y
        if self.dora:
            raise UserError(f"LoRA.dora: {path} is an embedding, whose rows have no magnitude: leave it out of targets")
        self._check_rank(path, rank, (module.count, module.features), 1)
        shapes = (module.count, rank), (rank, module.features)
        a, b = self._pair(module, path, *shapes, first_a=_zeros, first_b=_normal)
        z = a.astype(module.dtype) if ids is None else lookup(a, ids, module.dtype)
        return y + product(z * jnp.asarray(self.scale_of(f"{path}/embedding"), z.dtype), b.astype(module.dtype), 1)

    def _pair(self, module, path, shape_a, shape_b, first_a, first_b):
        a, b = module.param(A, first_a, shape_a, jnp.float32), module.param(B, first_b, shape_b, jnp.float32)
        return self.in_use(f"{path}/{A}", a), self.in_use(f"{path}/{B}", b)

    @staticmethod
    def _check_rank(path, rank, shape, inputs):
        rows, columns = math.prod(shape[:inputs]), math.prod(shape[inputs:])
        if rank > min(rows, columns):
            raise UserError(f"LoRA of rank {rank}: {path} is {rows} x {columns}, of rank {min(rows, columns)} at most")

    # ---- Merging -----------------------------------------------------------------------------------------------------

    def effective(self, params, where=""):
        """The parameters {module: tree} without its leaves, the adapted kernels that match `where` in their place."""
        base, own = self.split(params)
        changes = {}
        for path, leaves in by_module(own).items():
            for kind, kernel in by_module(base)[path].items():
                name = f"{path}/{kind}"
                if kind in ("kernel", "embedding") and re.search(where, name):
                    changes[name] = self._merged(name, kernel, leaves)
        return trees.named_map(lambda name, x: changes.get(name, x), base)

    def merge(self, params):
        return self.effective(params)

    def unmerge(self, merged, own):
        """What `merge` was given, of what it made and of the leaves that it left out (`split`), within rounding.

        With dora, where each output's change is smaller than its kernel (else two kernels give the same).
        """
        changes = {}
        for path, leaves in by_module(own).items():
            for kind, kernel in by_module(merged)[path].items():
                if kind in ("kernel", "embedding"):
                    changes[f"{path}/{kind}"] = self._merged(f"{path}/{kind}", kernel, leaves, back=True)
        return trees.merge(trees.named_map(lambda name, x: changes.get(name, x), merged), own)

    def _merged(self, name, kernel, leaves, back=False):
        scale = self.scale_of(name)

        def one(kernel, leaves):
            delta = product_of(leaves[A], leaves[B], scale)
            if MAGNITUDE not in leaves:
                return kernel - delta if back else kernel + delta
            if not back:
                return (kernel + delta) * magnitude_factor(kernel, leaves[A], leaves[B], scale, leaves[MAGNITUDE])
            # merged = m u for unit vectors u, and t u = W + delta for the t > 0 at which |t u - delta| = |W|
            over = tuple(range(leaves[A].ndim - 1))
            dot = lambda x, y: jnp.sum(x * y, over)
            m = jnp.sqrt(dot(kernel, kernel))
            unit, length = kernel / m, m - leaves[MAGNITUDE]
            along = dot(unit, delta)
            t = along + jnp.sqrt(along**2 - dot(delta, delta) + length**2)
            return t * unit - delta

        return per_layer(name, one)(jnp.asarray(kernel), jax.tree.map(jnp.asarray, leaves))


def product_of(a, b, scale):
    """s A B: [*in, r] and [r, *out] -> [*in, *out]."""
    return scale * jnp.tensordot(a, b, 1)


def magnitude_factor(kernel, a, b, scale, more):
    """m / |W + s A B| [*out] for W [*in, *out] and m = |W| + more.

    |W + D|^2 = |W|^2 (1 + (2 W D + D D) / |W|^2) is exactly |W|^2 where D = 0, and the factor then exactly 1.
    """
    over = tuple(range(a.ndim - 1))
    delta = product_of(a, b, scale)
    squares = jnp.sum(jnp.square(kernel), over)
    larger = 1.0 + jnp.sum((2 * kernel + delta) * delta, over) / squares
    norm = jnp.sqrt(squares)
    return (norm + more) / norm * jax.lax.stop_gradient(1.0 / jnp.sqrt(larger))


def added(parts):
    """(LoRA, its leaves) that computes the sum of several on one base, each times its weight.

    Args:
        parts: [(LoRA, its leaves, weight)], the leaves as `split` has them, of the same kernels, none with dora.

    Raises:
        UserError: kernels that differ, or a DoRA.
    """
    first, *_ = parts
    paths = [set(by_module(own)) for _, own, _ in parts]
    if any(lora.dora for lora, _, _ in parts) or any(p != paths[0] for p in paths):
        differ = sorted(set.union(*paths) - set.intersection(*paths))
        raise UserError(f"LoRAs that are added have the same kernels and no dora: {', '.join(differ[:3]) or 'one has'}")
    named, ranks = {}, {}
    for path in sorted(paths[0]):
        kernels = [by_module(own)[path] for _, own, _ in parts]
        kind = "embedding" if lora_of_embedding(first[0], path) else "kernel"
        scales = [weight * lora.scale_of(f"{path}/{kind}") for lora, _, weight in parts]
        named[f"{path}/{A}"] = jnp.concatenate([jnp.asarray(own[A]) for own in kernels], -1)
        axis = int(trees.is_stacked(path))
        named[f"{path}/{B}"] = jnp.concatenate([s * jnp.asarray(own[B]) for s, own in zip(scales, kernels)], axis)
        ranks[rf"^{path}/"] = named[f"{path}/{A}"].shape[-1]
    table = tuple(ranks.items())
    how = {"ranks": table, "alphas": tuple((p, float(r)) for p, r in table), "rank_stabilized": False, "dropout": 0.0}
    return dataclasses.replace(first[0], **how), trees.nested(named)


def lora_of_embedding(lora, path):
    """Whether what is adapted at this path is an embedding."""
    return not lora.rank_of(f"{path}/kernel") and bool(lora.rank_of(f"{path}/embedding"))


def _kaiming(key, shape, dtype):
    """kaiming_uniform_ with a = sqrt(5): uniform in +-fan_in ** -0.5."""
    bound = math.prod(shape[:-1]) ** -0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


_zeros, _normal = nn.initializers.zeros, nn.initializers.normal(1.0)
