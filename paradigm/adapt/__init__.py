"""Ways to adapt a pre-trained model: frozen values, set as `objective.adapt` or, in a run, as Experiment.adapt."""

from paradigm.adapt.base import Adaptation, BitFit, Full, LinearProbe
from paradigm.adapt.bottleneck import BottleneckAdapter
from paradigm.adapt.ia3 import IA3
from paradigm.adapt.lora import LoRA
from paradigm.adapt.prompt import PromptTuning

__all__ = ["IA3", "Adaptation", "BitFit", "BottleneckAdapter", "Full", "LinearProbe", "LoRA", "PromptTuning"]
