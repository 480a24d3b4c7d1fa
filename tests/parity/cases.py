"""The models that are compared with the transformers library: tiny configurations, weights and inputs. numpy only.

The configurations are written as the released checkpoints write them. Weights are drawn from a generator seeded by the
leaf's name, so a golden file holds only their names and shapes beside the inputs and the outputs.
"""

import json
import pathlib
import zlib

import numpy as np

HERE = pathlib.Path(__file__).parent
NEW = 12  # tokens that are generated
BEAMS = {"num_beams": 3, "length_penalty": 0.6}  # of generate, which returns them all
PAD = -100  # the label that the transformers library does not score

# Widths that differ from one another, so that a transpose can't go unseen; lengths beyond the last bucket.
T5_V1_0 = {
    "architectures": ["T5ForConditionalGeneration"],
    "model_type": "t5",
    "vocab_size": 40,
    "d_model": 12,
    "d_kv": 4,
    "d_ff": 20,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 3,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-06,
    "feed_forward_proj": "relu",
    "dropout_rate": 0.1,
    "initializer_factor": 1.0,
    "is_encoder_decoder": True,
    "decoder_start_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "use_cache": True,
}
T5_V1_1 = {
    **T5_V1_0,
    "d_kv": 8,
    "num_heads": 2,
    "num_layers": 3,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
}
GPT2 = {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "activation_function": "gelu_new",
    "vocab_size": 40,
    "n_positions": 24,
    "n_embd": 12,
    "n_layer": 3,
    "n_head": 3,
    "n_inner": None,
    "layer_norm_epsilon": 1e-05,
    "attn_pdrop": 0.1,
    "embd_pdrop": 0.1,
    "resid_pdrop": 0.1,
    "initializer_range": 0.02,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 40,
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "head_dim": 6,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0,
    "max_position_embeddings": 64,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
# Settings that released models have: each with key heads for groups of heads, and what else tells it from LLAMA.
_GROUPED = {**LLAMA, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 3}
_LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA_31 = {
    **{**_GROUPED, "num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    "rope_theta": 50.0,
    "rope_scaling": {**_LLAMA3, "original_max_position_embeddings": 16},
}
LLAMA_YARN = {
    **{**_GROUPED, "hidden_act": "gelu"},
    "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 30.0},
}
_NO_BIAS = {name: x for name, x in _GROUPED.items() if not name.endswith("bias")}
MISTRAL = {
    **{**_NO_BIAS, "architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 5},
    "rope_scaling": {"type": "linear", "factor": 3.0},
}
QWEN2 = {
    **{**_NO_BIAS, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "rope_theta": 1e6},
    **{"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0},
}
QWEN3 = {
    **{**_NO_BIAS, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "tie_word_embeddings": True},
    **{"use_sliding_window": False, "sliding_window": None, "max_window_layers": 2},
}
MT5 = {
    **T5_V1_1,
    "architectures": ["MT5ForConditionalGeneration"],
    "model_type": "mt5",
    "feed_forward_proj": "gated-silu",
}
UMT5 = {**T5_V1_1, "architectures": ["UMT5ForConditionalGeneration"], "model_type": "umt5", "num_decoder_layers": 2}
GPT2_SILU = {**GPT2, "activation_function": "silu", "attn_pdrop": 0.3, "n_inner": 20}
BERT = {
    "architectures": ["BertForMaskedLM"],
    "model_type": "bert",
    "vocab_size": 40,
    "hidden_size": 12,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.2,
    "max_position_embeddings": 23,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
}
ROBERTA = {
    **{**BERT, "architectures": ["RobertaForMaskedLM"], "model_type": "roberta", "hidden_act": "gelu_new"},
    **{"type_vocab_size": 1, "layer_norm_eps": 1e-5, "pad_token_id": 1},
}
BART = {
    "architectures": ["BartForConditionalGeneration"],
    "model_type": "bart",
    "vocab_size": 40,
    "d_model": 12,
    "encoder_layers": 3,
    "decoder_layers": 2,
    "encoder_attention_heads": 3,
    "decoder_attention_heads": 3,
    "encoder_ffn_dim": 20,
    "decoder_ffn_dim": 20,
    "activation_function": "gelu",
    "dropout": 0.1,
    "attention_dropout": 0.2,
    "max_position_embeddings": 29,
    "scale_embedding": False,
    "is_encoder_decoder": True,
    "bos_token_id": 0,
    "pad_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
}
MBART = {
    **{**BART, "architectures": ["MBartForConditionalGeneration"], "model_type": "mbart"},
    **{"activation_function": "relu", "scale_embedding": True},
}
ELECTRA = {**BERT, "architectures": ["ElectraForPreTraining"], "model_type": "electra", "embedding_size": 10}
ELECTRA_GENERATOR = {**ELECTRA, "architectures": ["ElectraForMaskedLM"], "embedding_size": 18, "hidden_act": "gelu_new"}
MODERNBERT = {
    "architectures": ["ModernBertForMaskedLM"],
    "model_type": "modernbert",
    "vocab_size": 40,
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 5,
    "num_attention_heads": 3,
    "hidden_activation": "gelu",
    "norm_eps": 1e-5,
    "local_attention": 6,
    "global_attn_every_n_layers": 3,
    "global_rope_theta": 160000.0,
    "local_rope_theta": 50.0,
    "attention_dropout": 0.0,
    "pad_token_id": 0,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
}
CONFIGS = {
    **{"bart": BART, "mbart": MBART, "modernbert": MODERNBERT},
    **{"bert": BERT, "roberta": ROBERTA, "electra": ELECTRA, "electra_generator": ELECTRA_GENERATOR},
    **{"t5_v1_0": T5_V1_0, "t5_v1_1": T5_V1_1, "mt5": MT5, "umt5": UMT5, "gpt2": GPT2, "gpt2_silu": GPT2_SILU},
    **{
        "llama": LLAMA,
        "llama_31": LLAMA_31,
        "llama_yarn": LLAMA_YARN,
        "mistral": MISTRAL,
        "qwen2": QWEN2,
        "qwen3": QWEN3,
    },
}


def weight(name, shape):
    """float32 [shape], the same on every machine: a function of the leaf's name."""
    draw = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    if len(shape) == 1:
        return (draw * np.float32(0.1) + np.float32(name.endswith("weight"))).astype(np.float32)
    if any(
        part in name
        for part in (
            "_embeddings",
            "shared",
            "embed_tokens",
            "embed_positions",
            "wte",
            "wpe",
            "relative_attention_bias",
        )
    ):
        return draw
    return draw / np.float32(np.sqrt(min(shape)))


def inputs(case):
    """Arguments of the transformers model, as numpy: one full row and one with padding in it.

    T5: input_ids [B, S], attention_mask [B, S] (padded at the end), decoder_input_ids [B, L], labels [B, L].
    Decoders: input_ids [B, L], attention_mask [B, L] (padded at the front), position_ids [B, L], labels [B, L].
    """
    if masked(case):
        return _masked_inputs(case)
    rng = np.random.default_rng(zlib.crc32(case.encode()))
    draw = lambda *shape: rng.integers(3, 40, size=shape)
    if "decoder_start_token_id" not in CONFIGS[case]:
        mask = np.ones((2, 21), np.int64)
        mask[1, :6] = 0
        tokens = draw(2, 21) * mask
        positions = np.maximum(np.cumsum(mask, 1) - 1, 0)
        return {
            "input_ids": tokens,
            "attention_mask": mask,
            "position_ids": positions,
            "labels": np.where(positions > 0, tokens, PAD),  # a first token is predicted by nothing
        }
    source, target = (150, 140) if case == "t5_v1_1" else (27, 24)
    mask = np.ones((2, source), np.int64)
    mask[1, source - 9 :] = 0
    labels = draw(2, target)
    labels[1, target - 5 :] = PAD
    pad, start = (CONFIGS[case][f"{name}_token_id"] for name in ("pad", "decoder_start"))
    shifted = np.pad(np.where(labels == PAD, pad, labels)[:, :-1], ((0, 0), (1, 0)), constant_values=start)
    return {
        "input_ids": np.where(mask, draw(2, source), pad),
        "attention_mask": mask,
        "decoder_input_ids": shifted,
        "labels": labels,
    }


def masked(case):
    """Whether the model predicts hidden tokens, or which are replaced, and generates nothing."""
    return CONFIGS[case]["architectures"][0].endswith(("MaskedLM", "PreTraining"))


def _masked_inputs(case):
    """input_ids, attention_mask (padded at the end) and labels [B, L], PAD but where a token is hidden; of ELECTRA 1
    where one is replaced."""
    rng = np.random.default_rng(zlib.crc32(case.encode()))
    mask = np.ones((2, 21), np.int64)
    mask[1, 15:] = 0
    tokens, pad = rng.integers(3, 40, mask.shape), CONFIGS[case]["pad_token_id"]
    hidden = (rng.random(mask.shape) < 0.4) & (mask > 0)
    if CONFIGS[case]["architectures"][0].endswith("PreTraining"):
        return {"input_ids": np.where(mask, tokens, pad), "attention_mask": mask, "labels": hidden.astype(np.int64)}
    return {
        "input_ids": np.where(mask, np.where(hidden, 4, tokens), pad),
        "attention_mask": mask,
        "labels": np.where(hidden, tokens, PAD),
    }


def prompt(case):
    """Of `inputs`, what greedy decoding starts from: T5's source with its mask, or half of the decoders' full row."""
    given = inputs(case)
    if "decoder_input_ids" in given:
        return {name: given[name] for name in ("input_ids", "attention_mask")}
    return {name: given[name][:1, :10] for name in ("input_ids", "attention_mask")}


def load(case):
    """The golden of a case: {config, weights, inputs: name -> array, logits [B, L, V], loss [], generated [B, NEW]}."""
    with np.load(HERE / f"{case}.npz", allow_pickle=False) as stored:
        golden = dict(stored)
    shapes = json.loads(str(golden["shapes"]))
    return {
        "config": CONFIGS[case],
        "weights": {name: weight(name, shape) for name, shape in shapes.items()},
        "inputs": inputs(case),
        "logits": golden["logits"],
        "loss": golden["loss"],
        "generated": golden["generated"],
    }
