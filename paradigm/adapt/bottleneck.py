"""Bottleneck adapters: h + U act(D h + b) + c, with U = 0 and c = 0 at first, so that nothing changes.

houlsby   after attention and after the MLP, on each branch before it is added (Houlsby et al. 2019, section 2.1)
pfeiffer  once a layer: on the layer's output, added to the MLP's branch (Pfeiffer et al. 2020, "MAD-X", section 4.2.1,
          equation 1; where norms follow branches, it reads the norm's output, and that norm follows it again)
mlp       after the MLP alone, on its branch (Eichenberg et al. 2022, "MAGMA", section 3.3; configs/MAGMA_v1.yml)
parallel  beside the MLP, on what the MLP reads, times `scale` (He et al. 2022, "Towards a Unified View", 3.3, 4.6)

Leaves `adapter/down` and `adapter/up`, kernel and bias, below the module whose output they follow. The adapters library
(configuration/adapter_config.py) gives the widths, activations and the scale of 4; its U is drawn with a deviation of
0.02 as D is, ours is He et al.'s, zero.
"""

import dataclasses
import re
from typing import Any

from flax import linen as nn

from paradigm import trees
from paradigm.adapt.base import Adaptation, module_path
from paradigm.errors import UserError, choose
from paradigm.layers import ACTIVATIONS, NORMS, Dense
from paradigm.partition import constrain_tokens
from paradigm.transformer import MLP, Attention, Block

# style: (dims of the model for one unit, activation, scale); adapters' DoubleSeqBnConfig, SeqBnConfig, ParBnConfig, and
# downsample_factor of MAGMA's config.
STYLES = {
    "houlsby": (16, "silu", 1.0),
    "pfeiffer": (16, "relu", 1.0),
    "mlp": (4, "relu", 1.0),
    "parallel": (2, "relu", 4.0),
}


class Adapter(nn.Module):
    """[..., D] -> [..., D]: scale * up(act(down(x))), which is added to what there is."""

    width: int
    activation: str
    scale: float
    dtype: Any

    @nn.compact
    def __call__(self, x):
        act, _ = choose("activation", self.activation, {n: (f, k) for n, (f, k) in ACTIVATIONS.items() if k == 1})
        h = act(Dense((self.width,), 1, True, 0.02, self.dtype, name="down")(x))
        h = constrain_tokens(h)
        return self.scale * Dense((x.shape[-1],), 1, True, 0.0, self.dtype, name="up")(h)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BottleneckAdapter(Adaptation):
    """Small networks inside every layer, the model around them frozen.

    style: houlsby, pfeiffer, mlp or parallel (see above). width: units of the bottleneck; None: d_model divided by 16,
    by 4 in mlp and by 2 in parallel. activation, scale: None is the style's. cross: whether houlsby has one after
    attention to a source too. where: regex on the layers' names, such as '^text/' or 'decoder/'.
    """

    style: str = "houlsby"
    width: int | None = None
    activation: str | None = None
    scale: float | None = None
    cross: bool = False
    where: str = ""

    own = ("adapter",)
    carriers = "stands in a transformer's layers"
    partition_rules = (
        (r"adapter/down/kernel$", ("fsdp", None)),
        (r"adapter/up/kernel$", (None, "fsdp")),
        (r"adapter/(down|up)/bias$", ()),
    )

    def __post_init__(self):
        super().__post_init__()
        choose("BottleneckAdapter.style", self.style, STYLES)
        trees.check_patterns([self.where], "BottleneckAdapter.where")
        if self.width is not None and self.width < 1:
            raise UserError(f"BottleneckAdapter.width={self.width} must be at least 1, or None")

    @property
    def how(self):
        """(activation, scale) as they are used."""
        _, activation, scale = STYLES[self.style]
        return self.activation or activation, scale if self.scale is None else self.scale

    def settings_of(self, name):
        return {"style": self.style, **dict(zip(("activation", "scale"), self.how))}

    def interceptor(self, name):
        after = {"attention", *(["cross"] if self.cross else [])} if self.style == "houlsby" else set()

        def call(next_fun, args, kwargs, context):
            module = context.module
            here = context.method_name == "__call__" and re.search(self.where, module_path(name, module))
            if not here:
                return next_fun(*args, **kwargs)
            if isinstance(module, Attention) and module.name in after:
                y, memory = next_fun(*args, **kwargs)
                return y + self._adapter(module)(y), memory
            if isinstance(module, MLP) and self.style != "pfeiffer":
                y = next_fun(*args, **kwargs)
                return y + self._adapter(module)(args[0] if self.style == "parallel" else y)
            if self.style == "pfeiffer" and isinstance(module, Block) and module.norm_place == "pre":
                x, more = next_fun(*args, **kwargs)
                x = constrain_tokens(x + self._adapter(module)(x))
                return x, {**more, "out": x}
            if self.style == "pfeiffer" and isinstance(module, tuple(NORMS.values())) and _follows_the_mlp(module):
                normed = next_fun(*args)
                x = args[0] + self._adapter(module.parent, module.parent.d_model)(normed)
                again = type(module)(module.eps, module.dtype, parent=None)
                own = {kind: module.get_variable("params", kind) for kind in ("scale", "bias")}
                return again.apply({"params": {kind: p for kind, p in own.items() if p is not None}}, x)
            return next_fun(*args, **kwargs)

        return call

    def _adapter(self, module, d_model=None):
        """The adapter below a module whose fields are an Architecture's."""
        width = self.width or max(1, (d_model or module.d_model) // STYLES[self.style][0])
        return Adapter(width, *self.how, module.dtype, parent=module, name="adapter")


def _follows_the_mlp(module):
    return module.name == "mlp_norm" and isinstance(module.parent, Block) and module.parent.norm_place == "post"
