"""The objectives on pairs of image and text, one file and one line each."""

from multimodal.objectives.clip import CLIP as CLIP
from multimodal.objectives.siglip import SigLIP as SigLIP
