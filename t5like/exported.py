"""Our tokenizers as the transformers library's: tokenizer.json and tokenizer_config.json, which AutoTokenizer reads.

The ids are ours, sentinels included, which that library calls <extra_id_0>, <extra_id_1> and so on.
"""

import base64
import json
import pathlib

from paradigm.errors import UserError
from t5like.tokenizers import ByteTokenizer, SentencePieceTokenizer

FILES = ("tokenizer.json", "tokenizer_config.json")
_SPACE = "\u2581"
_UNIGRAM = 1  # SentencePiece's number for it
_NEVER = -1e5  # the score of '<0x41>', which that library would otherwise read in a text that spells it
_SPECIAL = ("<pad>", "</s>", "<unk>")


def write(directory, tokenizer, ends=False):
    """Writes the two files of a tokenizer into a directory that is there; returns what they cannot say, as lines.

    ends: whether the library should put </s> after a text, as T5 has it; our `encode` does not.

    Raises:
        UserError: the library cannot say what the tokenizer does.
    """
    if isinstance(tokenizer, ByteTokenizer):
        parts, remarks = _bytes(tokenizer), []
    elif isinstance(tokenizer, SentencePieceTokenizer):
        parts, remarks = _sentencepiece(tokenizer)
    else:
        raise UserError(f"the transformers library's files cannot be written for a {type(tokenizer).__name__}")
    added = dict(enumerate(_SPECIAL))
    added |= {tokenizer.sentinel(i): f"<extra_id_{i}>" for i in range(tokenizer.extra_ids)}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    end = {"SpecialToken": {"id": "</s>", "type_id": 0}}
    text = lambda name, kind: [{"Sequence": {"id": name, "type_id": kind}}, *([end] if ends else [])]
    template = {
        "type": "TemplateProcessing",
        "single": text("A", 0),
        "pair": text("A", 0) + text("B", 0),
        "special_tokens": {"</s>": {"id": "</s>", "ids": [tokenizer.eos_id], "tokens": ["</s>"]}},
    }
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": name, **flags} for i, name in sorted(added.items())],
        "post_processor": template,
        **parts,
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "extra_special_tokens": [f"<extra_id_{i}>" for i in range(tokenizer.extra_ids)],
        "clean_up_tokenization_spaces": False,
        "model_max_length": 10**9,
    }
    for name, value in zip(FILES, (content, config)):
        (pathlib.Path(directory) / name).write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", "utf-8")
    return remarks


def _bytes(tokenizer):
    """Bytes as the letters that stand for them in byte-level BPE (GPT-2's encoder.py), and no merges."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    odd = [b for b in range(256) if b not in plain]
    letters = {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(odd)}
    vocabulary = {name: i for i, name in enumerate(_SPECIAL)} | {letters[b]: b + 3 for b in range(256)}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    model = {"type": "BPE", "unk_token": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    return {
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": {**model, "vocab": vocabulary, "merges": []},
    }


def _sentencepiece(tokenizer):
    """(a Unigram model with the pieces and scores of SentencePiece's, [what it does otherwise])."""
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto.FromString(tokenizer.model)
    if proto.trainer_spec.model_type != _UNIGRAM:
        raise UserError(
            "the tokenizer is a SentencePiece model, and not a unigram one: the transformers library's files cannot be "
            "written for it; give that library the .model file"
        )
    spec, steps = proto.normalizer_spec, []
    replace = lambda pattern, content: {"type": "Replace", "pattern": pattern, "content": content}
    if spec.precompiled_charsmap:
        charsmap = base64.b64encode(spec.precompiled_charsmap).decode()
        steps.append({"type": "Precompiled", "precompiled_charsmap": charsmap})
    if spec.remove_extra_whitespaces:
        steps += [
            {"type": "Strip", "strip_left": True, "strip_right": True},
            replace({"Regex": " {2,}"}, " "),
        ]
    if spec.add_dummy_prefix:
        steps.append({"type": "Prepend", "prepend": " "})
    steps.append(replace({"String": " "}, _SPACE))
    back = [{"type": "ByteFallback"}, {"type": "Fuse"}, replace({"String": _SPACE}, " ")]
    if spec.add_dummy_prefix:
        back.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": back},
        "model": {
            "type": "Unigram",
            "unk_id": tokenizer.unk_id,
            "vocab": [[p.piece, _NEVER if p.type == p.BYTE else p.score] for p in proto.pieces],
            "byte_fallback": bool(proto.trainer_spec.byte_fallback),
        },
    }, [
        f"the transformers library's tokenizer reads {_SPACE} (U+2581) in a text as a space; ours keeps it",
        "it adds in float64 and SentencePiece in float32: near ties in texts of many thousand tokens may differ",
    ]
