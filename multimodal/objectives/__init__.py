"""The objectives on pairs of image and text, one file and one line each."""

from multimodal.objectives.cappa import CapPa as CapPa
from multimodal.objectives.clip import CLIP as CLIP
from multimodal.objectives.coca import CoCa as CoCa
from multimodal.objectives.magma import Magma as Magma
from multimodal.objectives.nlvr import NLVR as NLVR
from multimodal.objectives.siglip import SigLIP as SigLIP
from multimodal.objectives.silc import SILC as SILC
from multimodal.objectives.silc import SILCSigmoid as SILCSigmoid
from multimodal.objectives.simvlm import SimVLM as SimVLM
from multimodal.objectives.unified_vlp import UnifiedVLP as UnifiedVLP
from multimodal.objectives.vilt import ViLT as ViLT
