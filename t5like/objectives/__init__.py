"""The text objectives, one file and one line each."""

from t5like.objectives.bart import Bart as Bart
from t5like.objectives.electra import ELECTRA as ELECTRA
from t5like.objectives.masked_lm import MaskedLM as MaskedLM
from t5like.objectives.masked_next_token import MaskedNextToken as MaskedNextToken
from t5like.objectives.multi_token import MultiToken as MultiToken
from t5like.objectives.mutor import MuToR as MuToR
from t5like.objectives.next_token import NextToken as NextToken
from t5like.objectives.pegasus import Pegasus as Pegasus
from t5like.objectives.position_prediction import PositionPrediction as PositionPrediction
from t5like.objectives.prefix_lm import PrefixLM as PrefixLM
from t5like.objectives.replaced_tokens import ReplacedTokens as ReplacedTokens
from t5like.objectives.simcse import SimCSE as SimCSE
from t5like.objectives.spactor import SpacTor as SpacTor
from t5like.objectives.span_corruption import SpanCorruption as SpanCorruption
from t5like.objectives.ul2 import UL2 as UL2
