"""Every text task through the same contract as every objective, on tiny models with dropout on."""

import functools

import numpy as np

from paradigm.attentive import Attentive
from paradigm.dataset import Dataset
from t5like.models import bert, gpt, t5
from t5like.tasks import SpanQA, TextClassification, TextToText, TokenTagging
from t5like.tokenizers import ByteTokenizer
from tests import contract

B = 8
TINY = {"d_model": 16, "heads": 4, "head_dim": 4, "d_ff": 32, "layers": 1, "dropout": 0.1}
TOKENIZER = ByteTokenizer(extra_ids=4, specials=("cls", "sep"))
BERT, GPT, T5 = bert("tiny", 384, **TINY), gpt("tiny", 384, **TINY), t5("tiny", 384, **TINY)
TASKS = {
    "class": TextClassification(BERT, classes=3, length=16, hidden=True),
    "classes": TextClassification(GPT, classes=3, kind="classes", length=16),
    "number": TextClassification(T5, kind="number", length=16, pair=True, pool="mean"),
    "attentive": TextClassification(BERT, classes=3, length=16, pool=Attentive()),
    "tags": TokenTagging(BERT, classes=3, length=16),
    "answer": SpanQA(BERT, length=24, dropout=0.1),
    "texts": TextToText(T5, length=16, target_length=8),
    "prefix": TextToText(GPT, length=16, target_length=8, prefix=True),
}
TASKS = {name: task.bind(TOKENIZER.vocabulary) for name, task in TASKS.items()}


class Records:
    """40 records of random bytes, every fifth without a label and some too long."""

    fingerprint = "records"

    def __init__(self, kind):
        self.kind = kind

    def __len__(self):
        return 40

    def __getitem__(self, i):
        rng = np.random.default_rng(i)
        text = lambda most: rng.integers(3, 259, rng.integers(3, most)).astype(np.int32)
        inputs, targets, known = text(20), text(14), i % 5 > 0
        words = np.arange(0, len(targets if self.kind == "answer" else inputs), 3, dtype=np.int32)
        label = {
            "class": np.int32(i % 3 if known else -1),
            "classes": np.float32(rng.integers(0, 2, 3) if known else -np.ones(3)),
            "number": np.float32(rng.normal() if known else np.nan),
            "tags": rng.integers(0, 3, len(words) * known).astype(np.int32),
            "answer": np.int32([[0, len(words) // 2]] * known).reshape(-1, 2),
        }.get(self.kind)
        more = {"words": words} if self.kind in ("tags", "answer") else {}
        return {"inputs": inputs, "targets": targets, "label": label, "byte_lengths": TOKENIZER.byte_lengths, **more}


@functools.cache
def batch_of(name):
    return functools.cache(Dataset(Records(TASKS[name].label_kind), TASKS[name].preprocess, B, seed=1).batch)


VARIANTS = ("classes", "number", "texts", "attentive")  # of which another stands for most
KINDS = dict.fromkeys(("class", "classes", "number", "attentive", "tags", "answer"), "labels of texts")
KINDS |= {"prefix": "decoder", "texts": "encoder-decoder"}
CASES = {
    name: contract.Case(task, batch_of(name), KINDS[name], variant=name in VARIANTS) for name, task in TASKS.items()
}
globals().update(contract.tests(CASES))
