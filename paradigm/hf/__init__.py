"""Models and weights in the transformers library's format: config.json and safetensors, read and written once.

A package keeps its families, one for each model_type, as tables: config.json in both directions and a list of leaves.
`read` and `write` are the same for all.
"""

from paradigm.hf.config import Config
from paradigm.hf.family import MEANING, Family, config_of, differences, family_of, leaves_of, read, read_modules, write
from paradigm.hf.files import CONFIG, INDEX, OPEN_CLIP, TENSORS, moments
from paradigm.hf.leaves import Constant, Kernel, Leaf, Patches, Table, Vector, dense, norm, plain, stacked

__all__ = [
    "CONFIG", "INDEX", "MEANING", "OPEN_CLIP", "TENSORS", "Config", "Constant", "Family", "Kernel", "Leaf", "Patches",
    "Table", "Vector", "config_of", "dense", "differences", "family_of", "leaves_of", "moments", "norm", "plain",
    "read", "read_modules", "stacked", "write",
]  # fmt: skip
