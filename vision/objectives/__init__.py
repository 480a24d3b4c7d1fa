"""The image objectives, one file and one line each."""

from vision.objectives.classify import Classify as Classify
from vision.objectives.mae import MAE as MAE
