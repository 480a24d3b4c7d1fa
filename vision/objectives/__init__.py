"""The image objectives, one file and one line each."""

from vision.objectives.aim import AIM as AIM
from vision.objectives.barlow_twins import BarlowTwins as BarlowTwins
from vision.objectives.beit import BEiT as BEiT
from vision.objectives.byol import BYOL as BYOL
from vision.objectives.classify import Classify as Classify
from vision.objectives.data2vec import Data2Vec as Data2Vec
from vision.objectives.dino import DINO as DINO
from vision.objectives.dvae import DVAE as DVAE
from vision.objectives.i_jepa import IJEPA as IJEPA
from vision.objectives.ibot import IBOT as IBOT
from vision.objectives.ibot import DINOv2 as DINOv2
from vision.objectives.igpt import IGPT as IGPT
from vision.objectives.mae import MAE as MAE
from vision.objectives.maskfeat import MaskFeat as MaskFeat
from vision.objectives.moco import MoCoV1 as MoCoV1
from vision.objectives.moco import MoCoV2 as MoCoV2
from vision.objectives.moco_v3 import MoCoV3 as MoCoV3
from vision.objectives.nnclr import NNCLR as NNCLR
from vision.objectives.rotation import Rotation as Rotation
from vision.objectives.segmentation import Segmentation as Segmentation
from vision.objectives.simclr import SimCLR as SimCLR
from vision.objectives.simmim import SimMIM as SimMIM
from vision.objectives.simsiam import SimSiam as SimSiam
from vision.objectives.swav import SwAV as SwAV
from vision.objectives.vicreg import VICReg as VICReg
from vision.objectives.vq import VQ as VQ
