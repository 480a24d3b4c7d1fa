"""Adapters that are compared with the peft library: on models of cases.py, configurations as it takes them. numpy only.

Weights are functions of their names, as the models' are.
"""

import json

import numpy as np

from tests.parity import cases, pairs_cases, vision_cases

GOLDENS, NAMES = cases.HERE / "peft.npz", cases.HERE / "peft.json"
CAUSAL, SEQ2SEQ = {"task_type": "CAUSAL_LM"}, {"task_type": "SEQ_2_SEQ_LM"}
ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
GPT2 = {"target_modules": ["c_attn", "c_fc", "mlp.c_proj"], "fan_in_fan_out": True}
BERT = {"target_modules": ["query", "value", "output.dense"]}
RANKS = {"rank_pattern": {"fc2": 2}}
PATTERNS = {"rank_pattern": {"c_fc": 3}, "alpha_pattern": {"c_fc": 2}}

# case: (the model's, the config's class, its arguments)
CASES = {
    "gpt2_lora": ("gpt2", "LoraConfig", {**CAUSAL, "r": 4, "lora_alpha": 6, **GPT2, **PATTERNS}),
    "gpt2_embedding": ("gpt2", "LoraConfig", {"r": 4, "target_modules": ["wte", "wpe"]}),
    "gpt2_dora": ("gpt2", "LoraConfig", {**CAUSAL, "r": 3, "use_dora": True, **GPT2}),
    "gpt2_ia3": ("gpt2", "IA3Config", {**CAUSAL, **GPT2, "target_modules": ["c_attn", "mlp.c_proj"],
                                       "feedforward_modules": ["mlp.c_proj"]}),
    "gpt2_prompt": ("gpt2", "PromptTuningConfig", {**CAUSAL, "num_virtual_tokens": 3}),
    "gpt2_prefix": ("gpt2", "PrefixTuningConfig", {**CAUSAL, "num_virtual_tokens": 3}),
    "llama_lora": ("llama", "LoraConfig", {**CAUSAL, "r": 2, "use_rslora": True, "target_modules": ALL_LINEAR}),
    "llama_ia3": ("llama", "IA3Config", {**CAUSAL, "target_modules": ["k_proj", "v_proj", "down_proj"],
                                         "feedforward_modules": ["down_proj"]}),
    "llama_prompt": ("llama", "PromptTuningConfig", {**CAUSAL, "num_virtual_tokens": 3}),
    "llama_prefix": ("llama", "PrefixTuningConfig", {**CAUSAL, "num_virtual_tokens": 3}),
    "t5_lora": ("t5_v1_0", "LoraConfig", {**SEQ2SEQ, "r": 2, "target_modules": ["q", "v", "wo"]}),
    "t5_ia3": ("t5_v1_0", "IA3Config", {**SEQ2SEQ, "target_modules": ["k", "v", "wo"], "feedforward_modules": ["wo"]}),
    "t5_prompt": ("t5_v1_0", "PromptTuningConfig", {**SEQ2SEQ, "num_virtual_tokens": 3}),
    "bert_lora": ("bert", "LoraConfig", {"r": 2, **BERT}),
    "bert_ia3": ("bert", "IA3Config", {"target_modules": ["key", "value"], "feedforward_modules": []}),
    "vit_lora": ("vit", "LoraConfig", {"r": 3, "target_modules": ["q_proj", "o_proj", "fc2"], **RANKS}),
    "clip_lora": ("clip", "LoraConfig", {"r": 2, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj", "fc1"]}),
    "clip_dora": ("clip", "LoraConfig", {"r": 2, "use_dora": True, "target_modules": ["out_proj", "fc2"]}),
    "roberta_lora": ("roberta", "LoraConfig", {"r": 2, **BERT, "use_dora": True}),
}  # fmt: skip


def source(base):
    """The module of cases that has this model."""
    return next(module for module in (cases, vision_cases, pairs_cases) if base in module.CONFIGS)


def inputs(case):
    """Arguments of the transformers model; a prompt's and a prefix's are one row without padding, where peft counts
    positions as we do."""
    base, kind, _ = CASES[case]
    if source(base) is vision_cases:
        return vision_cases.inputs(base)
    if source(base) is pairs_cases:
        return dict(zip(("pixel_values", "input_ids"), pairs_cases.inputs(base)))
    given = {name: x for name, x in cases.inputs(base).items() if name != "position_ids"}
    if kind in ("PromptTuningConfig", "PrefixTuningConfig") and base != "t5_v1_0":
        return {name: x[:1] for name, x in given.items() if name != "labels"}
    if "position_ids" in cases.inputs(base):
        given["position_ids"] = cases.inputs(base)["position_ids"]
    return {name: x for name, x in given.items() if name != "labels"}


def load(case):
    """{config, tensors: name -> array, logits [B, L, V]} of a golden; hidden [B, L, D] of a ViT, and vectors [B + T, E]
    of pictures and texts of CLIP."""
    found = json.loads(NAMES.read_text())[case]
    with np.load(GOLDENS, allow_pickle=False) as stored:
        logits = stored[case]
    return {"config": found["config"], "tensors": drawn(found["shapes"]), "logits": logits}


def drawn(shapes):
    return {name: cases.weight(name, shape) for name, shape in shapes.items()}
