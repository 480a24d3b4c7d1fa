"""T5 (v1.0, v1.1), mT5, UMT5, BART, mBART, BERT, RoBERTa, ELECTRA, ModernBERT, GPT-2, Llama and its like: the
transformers library's files.

modules, params = hf.read("flan-t5-small")
logits, intermediates = modules["model"].apply({"params": params["model"]}, inputs, decoder_inputs)
hf.write("exported", modules, params)
"""

import functools

from paradigm import hf
from t5like.hf.bart import BART, MBART
from t5like.hf.bert import BERT, ROBERTA
from t5like.hf.electra import DISCRIMINATOR, GENERATOR
from t5like.hf.gpt2 import GPT2
from t5like.hf.llama import LLAMAS
from t5like.hf.modernbert import MODERNBERT
from t5like.hf.t5 import MT5, T5, UMT5
from t5like.models import EncoderDecoder

FAMILIES = (T5, MT5, UMT5, BART, MBART, BERT, ROBERTA, DISCRIMINATOR, GENERATOR, MODERNBERT, GPT2, *LLAMAS)
read = functools.partial(hf.read, families=FAMILIES)
write = functools.partial(hf.write, families=FAMILIES)


def write_objective(path, objective, params):
    """Writes the model of an objective; as `paradigm.hf.write`."""
    return write(path, {name: module for name, (module, _) in objective.modules().items()}, params)


def texts_end(objective):
    """Whether texts end with eos, as the run's tokenizer, which goes along, is to have it."""
    return type(objective.modules()["model"][0]) is EncoderDecoder
