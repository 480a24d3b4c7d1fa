"""Text in, text out: `infill` and `generate`."""

import re
from typing import NamedTuple

import numpy as np

from paradigm.capabilities import Infilling
from paradigm.errors import UserError
from t5like.decode.beam import chosen_by, write_rows
from t5like.decode.blanks import BySentinels
from t5like.decode.sampled import Sampling, decode_rows
from t5like.decode.steps import check_count
from t5like.models import Decoder, EncoderDecoder
from t5like.tokenizers.base import check_texts

_BLANK = re.compile(r"( ?)(<[XYZ]>|<extra_id_\d+>)")


class Infill(NamedTuple):
    """text: with its blanks filled. pieces: what filled them, in the order of the text; () of a model that writes the
    whole text (BART) and wrote what is around them anew."""

    text: str
    pieces: tuple

    def __str__(self):
        return self.text


def infill(objective, variables, tokenizer, text, max_new_tokens=64, temperature=0.0, top_k=None, top_p=None, seed=0):
    """Fills the blanks <X>, <Y>, <Z>, <extra_id_3> ... of a text: "The <X> sat on <Y> mat".

    A space before a blank belongs to the blank, since it is the beginning of a word that the model learns to write.

    Args:
        objective: one of Infilling, or with an EncoderDecoder that was trained by span corruption. variables: of
            objective.apply. tokenizer: the one that it was trained with.
        max_new_tokens: for all blanks together. temperature, top_k, top_p: see Sampling. seed: of the draws.

    Returns:
        Infill.

    Raises:
        UserError: no blank in the text, one of them twice, or more of them than the objective tells apart; a model that
            fills none, or of another vocabulary.
    """
    check_texts("infill", [text], "a text is wanted")
    way = objective if isinstance(objective, Infilling) else BySentinels()
    if way is not objective:
        _check(objective.model, EncoderDecoder, tokenizer, "infill")
    v = tokenizer.vocabulary
    ids = tokenizer.encode_prompt(_BLANK.sub(r"\2", text))
    blanks = [i for i in ids.tolist() if i in v.sentinels]
    if not blanks:
        raise UserError("infill: there is no blank in the text; write <X>, <Y>, <Z> or <extra_id_3> where one is")
    if len(set(blanks)) < len(blanks):
        twice = next(match[2] for match, i in zip(_BLANK.finditer(text), blanks) if blanks.count(i) > 1)
        raise UserError(f"infill: {twice} stands more than once in the text; give each blank a name of its own")
    asked = {"vocabulary": v, **way.with_blanks(ids.tolist(), v)}
    _check(objective.model, EncoderDecoder if "inputs" in asked else Decoder, tokenizer, "infill")
    sampling = Sampling(temperature, top_k, top_p, v.size)
    check_count("max_new_tokens", max_new_tokens, "ask for")
    new = max_new_tokens + asked.pop("given", 0)
    (found,) = decode_rows(objective, variables, new=new, sampling=sampling, seed=seed, **asked)
    filled = way.fillings(ids.tolist(), found, v)
    if filled is None:  # it wrote another text, whose pieces nobody can tell
        return Infill(tokenizer.decode(found), ())
    spaces = [match[1] for match in _BLANK.finditer(text)]
    pieces = [tokenizer.decode(piece).removeprefix(space) for piece, space in zip(filled, spaces)]
    filled = iter(pieces)
    return Infill(_BLANK.sub(lambda match: match[1] + next(filled), text), tuple(pieces))


def generate(
    objective,
    variables,
    tokenizer,
    prompt,
    max_new_tokens=64,
    temperature=0.0,
    top_k=None,
    top_p=None,
    seed=0,
    prefix=False,
    beams=1,
    length_penalty=1.0,
):
    """The prompt and its continuation, to eos or max_new_tokens.

    Args:
        objective: one with a Decoder. variables: of objective.apply. tokenizer: the one that it was trained with.
        temperature, top_k, top_p: see Sampling. seed: of the draws. prefix: for a model trained as a prefix LM.
        beams, length_penalty: above 1 beam, the best text that beam search finds (see beam.py), with no draws.

    Returns:
        str.

    Raises:
        UserError: a prompt longer than the model's positions; draws and beams at once; a model with an encoder, or of
            another vocabulary.
    """
    _check(objective.model, Decoder, tokenizer, "generate")
    check_texts("generate", [prompt], "a text is wanted")
    ids = tokenizer.encode(prompt)
    how, v = chosen_by(tokenizer.vocab_size, temperature, top_k, top_p, beams, length_penalty), tokenizer.vocabulary
    (found,) = write_rows(objective, variables, [ids], max_new_tokens, how, v, seed, prefix=prefix)
    return tokenizer.decode(np.r_[ids, found])


def instead(infills, generates):
    """The end of the sentence "this cannot infill: ...", for a model that can do one of them, or neither."""
    if infills:
        return 'use infill("The <X> sat"), which it can'
    return "use generate(prompt), which it can" if generates else "it can neither infill nor generate"


def _check(model, kind, tokenizer, what):
    if not isinstance(model, kind):
        able = instead(isinstance(model, EncoderDecoder), isinstance(model, Decoder))
        raise UserError(f"{what} does not work with a {type(model).__name__}: {able}")
    if tokenizer.vocab_size > model.vocab_size:
        sizes = f"{tokenizer.vocab_size} ids, but the model {model.vocab_size}"
        raise UserError(f"{what}: the tokenizer has {sizes}; take the one that the model was trained with")
