"""T5 (v1.0, v1.1), mT5, UMT5, BART, mBART, BERT, RoBERTa, ELECTRA, ModernBERT, GPT-2, Llama and its like: the
transformers library's files.

modules, params = hf.read("flan-t5-small")
logits, intermediates = modules["model"].apply({"params": params["model"]}, inputs, decoder_inputs)
hf.write("exported", modules, params)
"""

import functools

from paradigm import hf
from paradigm.capabilities import parts
from t5like.hf.bart import BART, MBART
from t5like.hf.bert import BERT, ROBERTA
from t5like.hf.electra import DISCRIMINATOR, GENERATOR
from t5like.hf.gpt2 import GPT2
from t5like.hf.llama import LLAMAS
from t5like.hf.modernbert import MODERNBERT
from t5like.hf.t5 import MT5, T5, UMT5
from t5like.models import Decoder, Encoder, EncoderDecoder
from t5like.objectives.base import OnText

FAMILIES = (T5, MT5, UMT5, BART, MBART, BERT, ROBERTA, DISCRIMINATOR, GENERATOR, MODERNBERT, GPT2, *LLAMAS)
read = functools.partial(hf.read, families=FAMILIES)
write = functools.partial(hf.write, families=FAMILIES)


def write_objective(path, objective, params):
    """Writes the model of an objective; as `paradigm.hf.write`."""
    modules = {name: module for name, (module, _) in objective.modules().items()}
    return write(path, modules, params, **ids(objective))


def ids(objective):
    """Entries of config.json that its vocabulary decides: with what the library's `generate` begins, ends and pads."""
    v, (model, _) = objective.data_vocabulary, objective.modules().get("model", (None, None))
    if v is None or model is None:
        return {}
    if isinstance(model, Encoder):  # one whose positions have an offset counts them from its padding's id
        return {} if model.position_offset else {"pad_token_id": v.filler}
    end = v.sep if v.eos is None else v.eos
    if isinstance(model, Decoder):
        return {"pad_token_id": v.filler, "bos_token_id": v.start, "eos_token_id": end}
    known = {"pad_token_id": v.filler, "bos_token_id": v.bos, "eos_token_id": end}
    first = next(part.objective for part in parts(objective) if isinstance(part.objective, OnText))
    known["decoder_start_token_id"] = first.decoder_start
    return known | ({"forced_eos_token_id": end} if model.logits_bias else {})


def texts_end(objective):
    """Whether texts end with eos, as the run's tokenizer, which goes along, is to have it."""
    return type(objective.modules()["model"][0]) is EncoderDecoder
