"""Text out of a model: greedy, sampled and beam decoding with a cache, likelihoods of given texts, `infill` and
`generate`, and evaluators that show them."""

from t5like.decode.beam import beam_rows as beam_rows
from t5like.decode.beam import beam_search as beam_search
from t5like.decode.beam import chosen_by as chosen_by
from t5like.decode.beam import write_rows as write_rows
from t5like.decode.blanks import spans_of as spans_of
from t5like.decode.likelihood import Score as Score
from t5like.decode.likelihood import score as score
from t5like.decode.likelihood import score_rows as score_rows
from t5like.decode.sampled import Sampling as Sampling
from t5like.decode.sampled import decode as decode
from t5like.decode.sampled import decode_rows as decode_rows
from t5like.decode.samples import GenerateSamples as GenerateSamples
from t5like.decode.samples import InfillSamples as InfillSamples
from t5like.decode.samples import Writing as Writing
from t5like.decode.steps import ModelAlone as ModelAlone
from t5like.decode.text import Infill as Infill
from t5like.decode.text import generate as generate
from t5like.decode.text import infill as infill
from t5like.decode.text import instead as instead
