"""The image objectives, one file and one line each."""

from vision.objectives.aim import AIM as AIM
from vision.objectives.beit import BEiT as BEiT
from vision.objectives.classify import Classify as Classify
from vision.objectives.data2vec import Data2Vec as Data2Vec
from vision.objectives.dvae import DVAE as DVAE
from vision.objectives.i_jepa import IJEPA as IJEPA
from vision.objectives.igpt import IGPT as IGPT
from vision.objectives.mae import MAE as MAE
from vision.objectives.maskfeat import MaskFeat as MaskFeat
from vision.objectives.moco import MoCoV1 as MoCoV1
from vision.objectives.moco import MoCoV2 as MoCoV2
from vision.objectives.moco_v3 import MoCoV3 as MoCoV3
from vision.objectives.rotation import Rotation as Rotation
from vision.objectives.simclr import SimCLR as SimCLR
from vision.objectives.simmim import SimMIM as SimMIM
from vision.objectives.vq import VQ as VQ
