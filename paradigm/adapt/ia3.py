"""(IA)3: Liu et al. 2022, "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper", section 3.3.

    softmax(q (l_k * k)) (l_v * v),   W_down (l_ff * act(W_up x)),   all l are 1 at first

One leaf ia3 beside each kernel: of its outputs, or of its inputs where `inputs` has it.
"""

import dataclasses
import re

import jax.numpy as jnp
from flax import linen as nn

from paradigm import trees
from paradigm.adapt.base import Adaptation, by_module, module_path, per_layer
from paradigm.layers import Dense

SCALE = "ia3"


@dataclasses.dataclass(frozen=True, kw_only=True)
class IA3(Adaptation):
    """Learned factors on keys, values and the MLP's hidden units.

    outputs: regexes of kernels whose outputs, bias included, are scaled: keys and values. inputs: of kernels whose
    inputs are: the MLP's last.
    """

    outputs: tuple[str, ...] = (r"(attention|cross)/(key|value)/kernel$",)
    inputs: tuple[str, ...] = (r"mlp/down/kernel$",)

    own = (SCALE,)
    carriers = "scales the outputs and inputs of paradigm.layers' Dense"
    partition_rules = (
        (r"(attention|cross)/(query|key|value)/ia3$", ("tensor", "fsdp?")),
        (r"mlp/(gate|up|down)/ia3$", (("tensor", "fsdp?"),)),
        (r"/ia3$", ("fsdp?",)),
    )

    def __post_init__(self):
        super().__post_init__()
        for name in ("outputs", "inputs"):
            trees.check_patterns(getattr(self, name), f"IA3.{name}")

    def place(self, name):
        """'inputs', 'outputs' or None: what of the kernel of this name is scaled."""
        for place in ("inputs", "outputs"):
            if any(re.search(pattern, name) for pattern in getattr(self, place)):
                return place

    def settings_of(self, name):
        return {"place": place} if (place := self.place(f"{name.rpartition('/')[0]}/kernel")) else {}

    def check(self, objective, params, heads):
        self.check_patterns(objective, params, heads, ("/kernel",), outputs=self.outputs, inputs=self.inputs)
        super().check(objective, params, heads)

    def interceptor(self, name):
        def call(next_fun, args, kwargs, context):
            module = context.module
            if not isinstance(module, Dense) or context.method_name != "__call__":
                return next_fun(*args, **kwargs)
            path = module_path(name, module)
            place = self.place(f"{path}/kernel")
            if place is None:
                return next_fun(*args, **kwargs)
            (x,) = args
            leaf = lambda shape: module.param(SCALE, nn.initializers.ones, shape, jnp.float32)
            factor = lambda shape: self.in_use(f"{path}/{SCALE}", leaf(shape)).astype(module.dtype)
            if place == "inputs":
                return next_fun(x.astype(module.dtype) * factor(x.shape[-module.inputs :]))
            return next_fun(x) * factor(module.features)

        return call

    # ---- Merging -----------------------------------------------------------------------------------------------------

    def effective(self, params, where=""):
        base, own = self.split(params)
        return _scaled(self, base, own, where, lambda x, factor: x * factor)

    def merge(self, params):
        return self.effective(params)

    def unmerge(self, merged, own):
        """What `merge` was given, of what it made and of the leaves that it left out (`split`), within rounding."""
        return trees.merge(_scaled(self, merged, own, "", lambda x, factor: x / factor), own)


def _scaled(ia3, base, own, where, how):
    changes = {}
    for path, leaves in by_module(own).items():
        inputs = ia3.place(f"{path}/kernel") == "inputs"

        def one(x, factor, inputs=inputs):
            return how(x, factor.reshape(*factor.shape, *(1,) * (x.ndim - factor.ndim)) if inputs else factor)

        for kind, x in by_module(base)[path].items():
            if re.search(where, f"{path}/{kind}") and (kind == "kernel" or kind == "bias" and not inputs):
                changes[f"{path}/{kind}"] = per_layer(path, one)(jnp.asarray(x), jnp.asarray(leaves[SCALE]))
    return trees.named_map(lambda name, x: changes.get(name, x), base)
