"""Reading and writing the transformers library's files: equal, frugal, strict, and clear about what is wrong."""

import builtins
import gc
import json
import tracemalloc

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from paradigm import hf as files
from paradigm import trees
from paradigm.errors import UserError
from paradigm.hf.family import abstract
from t5like import hf
from t5like.bart import bart
from t5like.models import Encoder, bert, gpt, t5
from t5like.objectives import Bart, MaskedLM, NextToken, SpanCorruption
from t5like.tasks import TextToText
from t5like.vocabulary import Vocabulary
from tests.parity import cases, make

SMALL = dict(d_model=12, heads=3, head_dim=4, d_ff=20, layers=2)
MODELS = {
    "t5_v1_1": t5("tiny", 40, **SMALL),
    "t5_v1_1_silu": t5("tiny", 40, activation="gated_silu", decoder_layers=1, **SMALL),
    "t5_v1_0": t5("tiny", 40, version="1.0", **SMALL),
    "gpt2": gpt("tiny", 40, style="gpt2", max_length=16, **SMALL),
    "gpt2_untied": gpt("tiny", 40, style="gpt2", max_length=16, tied=False, **SMALL),
    "llama": gpt("tiny", 40, **SMALL),
    "llama_tied": gpt("tiny", 40, tied=True, activation="gated_gelu", **SMALL),
}


def random_params(model, seed=0):
    rng = np.random.default_rng(seed)
    [family, *_] = files.family_of({"model": model}, hf.FAMILIES)
    wanted = abstract(family, {"model": model})["model"]
    return jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32), wanted)


def read(path, model=None):
    modules, params = hf.read(path, modules=None if model is None else {"model": model})
    return modules["model"], params["model"]


def write(path, model, params, **entries):
    return hf.write(path, {"model": model}, {"model": params}, **entries)


def same_meaning(a, b):
    family, _ = files.config_of({"model": a}, hf.FAMILIES)
    return not files.differences(family, {"model": a}, {"model": b})


def equal(a, b):
    a, b = dict(trees.named_leaves(a)), dict(trees.named_leaves(b))
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("name", MODELS)
def test_what_is_written_is_read(name, tmp_path):
    params = random_params(MODELS[name])
    write(tmp_path, MODELS[name], jax.tree.map(jnp.asarray, params))
    model, found = read(tmp_path)
    assert equal(found, params)
    assert same_meaning(MODELS[name], model)
    assert not list(tmp_path.glob("*.tmp"))
    model, found = read(tmp_path, MODELS[name])
    assert model is MODELS[name] and equal(found, params)


@pytest.mark.parametrize("case", cases.CONFIGS)
def test_what_is_read_is_written(case, tmp_path):
    """Our file holds the released file's tensors, bit for bit, in the released names; and its config."""
    golden = cases.load(case)
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    hf.write(target, *hf.read(make.released(golden, source)), bos_token_id=golden["config"].get("bos_token_id", 1))
    ours, theirs = load_file(target / files.TENSORS), golden["weights"]
    assert ours.keys() == theirs.keys() and all(np.array_equal(ours[n], theirs[n]) for n in theirs)
    config = json.loads((target / files.CONFIG).read_text())
    # What says nothing about the model, and what can be said in more than one way; that they agree, the model tells.
    unsaid = {"initializer_factor", "initializer_range", "use_cache", "max_position_embeddings", "attention_bias"}
    unsaid |= {"mlp_bias", "rope_theta", "rope_scaling", "rope_parameters", "max_window_layers"}
    unsaid |= {"model_type", "architectures"} if case == "mt5" else set()  # a T5 that never scales its logits
    same = {k: v for k, v in golden["config"].items() if k not in unsaid and v is not None}
    assert {k: config[k] for k in same} == same
    assert hf.read(target)[0] == hf.read(source)[0]


def test_the_library_begins_and_ends_as_the_objective_does(tmp_path):
    """The ids of its `generate` are the vocabulary's; they were those of released models, whatever it had."""
    learnt = Vocabulary(40, pad=0, eos=1, unk=2, mask=3, sentinels=range(20, 40))
    barts = Vocabulary(40, pad=3, eos=5, bos=4, unk=6, mask=7, sentinels=range(20, 40))
    small = dict(d_model=8, heads=2, d_ff=8, layers=1)
    denoising, writing = (kind(bart("tiny", max_length=66, **small), 32) for kind in (Bart, TextToText))
    decoder = gpt("tiny", style="gpt2", max_length=32, **small)
    for objective, vocabulary, wanted in (
        (denoising, learnt, {"decoder_start": 0, "eos": 1, "forced_eos": 1, "pad": 0, "bos": None}),
        (denoising, barts, {"decoder_start": 5, "eos": 5, "forced_eos": 5, "pad": 3, "bos": 4}),
        (writing, barts, {"decoder_start": 4, "eos": 5, "forced_eos": 5, "pad": 3, "bos": 4}),
        (SpanCorruption(t5("tiny", **small), 32), learnt, {"decoder_start": 0, "eos": 1, "pad": 0, "bos": None}),
        (MaskedLM(bert("tiny", max_length=32, **small), 32), barts, {"pad": 3}),
        (NextToken(decoder, 32), learnt, {"bos": 0, "eos": 1, "pad": 0}),
        (NextToken(decoder, 32), barts, {"bos": 4, "eos": 5, "pad": 3}),
    ):
        bound = objective.bind(vocabulary)
        found = hf.ids(bound)
        assert found == {f"{name}_token_id": i for name, i in wanted.items()}, (objective, vocabulary)
    hf.write_objective(tmp_path / "out", bound, {"model": random_params(bound.model)})
    assert json.loads((tmp_path / "out" / "config.json").read_text()).items() >= found.items()


def test_host_holds_the_parameters_once(tmp_path):
    model = t5("tiny", 4000, layers=6)
    params = random_params(model)
    size = sum(x.nbytes for x in jax.tree.leaves(params))
    largest = model.vocab_size * model.d_model * 4

    def peak(function):
        gc.collect()
        often = gc.get_threshold()
        gc.set_threshold(700, 10, 10)  # as a process has it that nobody has set
        tracemalloc.start()
        try:
            function()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
            gc.set_threshold(*often)

    assert size > 4 * largest
    assert peak(lambda: write(tmp_path, model, params)) < 1.5 * largest
    assert peak(lambda: read(tmp_path)) < size + 3.2 * largest


def released(case, directory, config=(), drop=(), **tensors):
    """A released checkpoint with some of its entries changed, and the path to it."""
    golden = cases.load(case)
    golden["config"] = {k: v for k, v in {**golden["config"], **dict(config)}.items() if k not in drop}
    golden["weights"] = {k: v for k, v in {**golden["weights"], **tensors}.items() if k not in drop}
    return make.released(golden, directory)


def test_old_names_copies_and_leftovers(tmp_path):
    """GPT-2's first files have no prefix and hold masks; T5's hold the embedding three times and an unused bias."""
    golden = cases.load("gpt2")
    bare = {name.removeprefix("transformer."): x for name, x in golden["weights"].items()}
    bare |= {
        f"h.{n}.attn.{kind}": np.ones((1, 1, 4, 4), np.float32) for n in range(3) for kind in ("bias", "masked_bias")
    }
    wanted = read(make.released(golden, tmp_path))[1]
    found = read(make.released(golden | {"weights": bare}, tmp_path))[1]
    assert equal(found, wanted)

    embedding = cases.load("t5_v1_0")["weights"]["shared.weight"]
    copies = {f"{name}.weight": embedding for name in ("encoder.embed_tokens", "decoder.embed_tokens", "lm_head")}
    unused = {"decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": np.ones((32, 3), np.float32)}
    wanted = read(released("t5_v1_0", tmp_path))[1]
    assert equal(read(released("t5_v1_0", tmp_path, **copies, **unused))[1], wanted)
    copies["shared.weight"] = embedding
    assert equal(
        read(released("t5_v1_0", tmp_path, drop=["shared.weight"], **{"lm_head.weight": embedding}))[1], wanted
    )
    with pytest.raises(UserError, match="shared.weight and lm_head.weight differ"):
        read(released("t5_v1_0", tmp_path, **{"lm_head.weight": embedding + 1}))


def test_old_llamas_hold_frequencies_and_bare_ones_no_prefix(tmp_path):
    wanted = read(released("llama_31", tmp_path))[1]
    golden = cases.load("llama_31")
    old = {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": np.ones(3, np.float32) for n in range(3)}
    assert equal(read(make.released(golden | {"weights": golden["weights"] | old}, tmp_path))[1], wanted)
    bare = {name.removeprefix("model."): x for name, x in golden["weights"].items()}
    assert equal(read(make.released(golden | {"weights": bare}, tmp_path))[1], wanted)


def test_a_bare_bart_has_no_prefix_and_no_bias_of_logits(tmp_path):
    """As the files of bart-base and bart-large, whose bias the library then has at zero."""
    wanted, golden = read(released("bart", tmp_path))[1], cases.load("bart")
    bare = {name.removeprefix("model."): x for name, x in golden["weights"].items() if name != "final_logits_bias"}
    bare["classification_head.dense.weight"] = np.zeros(3, np.float32)  # as bart-large-mnli's
    found = read(make.released(golden | {"weights": bare}, tmp_path))[1]
    assert not found["head"]["bias"].any()
    found["head"]["bias"] = wanted["head"]["bias"]
    assert equal(found, wanted)


@pytest.mark.parametrize("case, head", [
    ("gpt2", "score.weight"), ("gpt2", "qa_outputs.bias"), ("gpt2", "multiple_choice_head.summary.bias"),
    ("qwen3", "score.weight"), ("t5_v1_1", "qa_outputs.weight"), ("bart", "qa_outputs.weight"),
])  # fmt: skip
def test_the_head_of_a_task_stays_behind(case, head, tmp_path):
    golden = cases.load(case)
    wanted = read(released(case, tmp_path))[1]
    tuned = golden["weights"] | {head: np.zeros((2, 12), np.float32)}
    assert equal(read(make.released(golden | {"weights": tuned}, tmp_path))[1], wanted)


@pytest.mark.parametrize("case, prefix, head, beside", [
    ("bert", "bert.", ("cls.",), ("pooler.dense.weight", "pooler.dense.bias")),
    ("roberta", "roberta.", ("lm_head.",), ("pooler.dense.weight",)),
    ("modernbert", "model.", ("head.", "decoder."), ()),
])  # fmt: skip
def test_an_encoder_is_read_with_its_head_and_without(case, prefix, head, beside, tmp_path):
    """bert-base-uncased holds a pooler and a next-sentence head beside the head for hidden tokens; a sentence encoder's
    file the bare model, without a prefix; a classifier's a head of its own."""
    golden = cases.load(case)
    weights = golden["weights"]
    of = lambda weights: read(make.released(golden | {"weights": weights}, tmp_path / "theirs"))
    model, wanted = of(weights)
    left = np.zeros(3, np.float32)
    more = {prefix + name: left for name in beside} | ({"cls.seq_relationship.weight": left} if case == "bert" else {})
    assert equal(of(weights | more)[1], wanted)
    bare = {name: x for name, x in weights.items() if not name.startswith(head)}
    without, found = of({name.removeprefix(prefix): x for name, x in bare.items()} | dict.fromkeys(beside, left))
    assert model.head and not without.head
    assert equal(found, {name: x for name, x in wanted.items() if name != "head"})
    if case != "modernbert":
        assert equal(of(bare | {"classifier.dense.weight": left, "qa_outputs.bias": left})[1], found)
    write(tmp_path / "ours", without, found)
    assert json.loads((tmp_path / "ours" / files.CONFIG).read_text())["architectures"][0].endswith("Model")
    again, theirs = read(tmp_path / "ours")
    assert not again.head and equal(theirs, found)


def test_a_modernbert_s_head_has_an_activation_of_its_own(tmp_path):
    """The library's is classifier_activation, of the head for hidden tokens too (ModernBertPredictionHead)."""
    model = lambda **config: read(released("modernbert", tmp_path, config))[0]
    assert model(hidden_activation="silu").head_activation == "gelu_exact"
    relu = model(classifier_activation="relu")
    assert (relu.activation, relu.head_activation) == ("gated_gelu_exact", "relu")
    write(tmp_path / "new", relu, random_params(relu))
    assert same_meaning(relu, read(tmp_path / "new")[0])


def test_what_a_mistral_leaves_out(tmp_path):
    """Its library's defaults are a window of 4096 and 8 key heads; null is no window, and a key head for each head."""
    family = {f.model_type: f for f in hf.FAMILIES}["mistral"]
    config = {k: v for k, v in cases.MISTRAL.items() if k not in ("sliding_window", "num_key_value_heads")}
    config |= {"num_attention_heads": 16}
    model = lambda **more: family.modules(files.Config(config | more, family.title), {})["model"]
    assert (model().window, model().kv_heads) == (4096, 8)
    bare = model(sliding_window=None, num_key_value_heads=None)
    assert (bare.window, bare.kv_heads) == (None, 16)


@pytest.mark.parametrize(
    "fields, model_type",
    [
        ({}, "llama"),
        ({"kv_heads": 1, "bias": True, "qkv_bias": False, "out_bias": False}, "llama"),
        ({"window": 5}, "mistral"),
        ({"qkv_bias": True}, "qwen2"),
        ({"qkv_bias": True, "window": 5}, "qwen2"),
        ({"qk_norm": True}, "qwen3"),
        ({"qk_norm": True, "window": 5}, "qwen3"),
    ],
)
def test_a_decoder_is_written_as_the_family_that_can_say_it(fields, model_type, tmp_path):
    model = gpt("tiny", 40, **SMALL, **fields)
    write(tmp_path, model, random_params(model))
    assert json.loads((tmp_path / files.CONFIG).read_text())["model_type"] == model_type
    assert same_meaning(model, read(tmp_path)[0])


def test_version_5_says_tied_where_it_is_not(tmp_path):
    """It writes tie_word_embeddings=True for every T5; scale_decoder_outputs and the file itself tell."""
    config = {"tie_word_embeddings": True, "scale_decoder_outputs": False}
    model, _ = read(released("t5_v1_1", tmp_path, config))
    assert not model.tied and not model.tied_scale
    model, _ = read(released("t5_v1_1", tmp_path, config, drop=["lm_head.weight"]))
    assert model.tied and not model.tied_scale
    with pytest.raises(UserError, match="lm_head.weight: wanted .40, 12., found nothing"):
        read(released("t5_v1_1", tmp_path, drop=["lm_head.weight"]))


@pytest.mark.parametrize("kind", [ml_dtypes.bfloat16, np.float16])
def test_shards_and_half_precision(kind, tmp_path):
    golden = cases.load("llama")
    half = {name: x.astype(kind) for name, x in golden["weights"].items()}
    names = list(half)
    (tmp_path / files.CONFIG).write_text(json.dumps(golden["config"]))
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in shards.items():
        save_file({name: half[name] for name in part}, tmp_path / file)
    weight_map = {name: file for file, part in shards.items() for name in part}
    (tmp_path / files.INDEX).write_text(json.dumps({"weight_map": weight_map}))
    _, params = read(tmp_path)
    found = params["embed"]["embedding"]
    assert found.dtype == np.float32
    assert np.array_equal(found, half["model.embed_tokens.weight"].astype(np.float32))
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(UserError, match="b.safetensors cannot be read as safetensors: it is missing, and .* names it"):
        read(tmp_path)
    for index in ({}, [], {"weight_map": {}}, {"weight_map": ["a.safetensors"]}, {"weight_map": {"a": 1}}):
        (tmp_path / files.INDEX).write_text(json.dumps(index))
        with pytest.raises(UserError, match="index.json has no weight_map, which says the file of each tensor"):
            read(tmp_path)
    (tmp_path / files.INDEX).unlink()
    with pytest.raises(UserError, match="holds a.safetensors and no model.safetensors.index.json"):
        read(tmp_path)


def test_of_two_tensors_of_one_name_the_index_says_which(tmp_path):
    golden = cases.load("llama")
    (tmp_path / files.CONFIG).write_text(json.dumps(golden["config"]))
    other = {name: x + 1 for name, x in golden["weights"].items()}
    save_file(golden["weights"], tmp_path / "b.safetensors")
    found = []
    for stale in ("a.safetensors", "c.safetensors"):  # before and behind it
        save_file(other, tmp_path / stale)
        listed = dict.fromkeys(golden["weights"], "b.safetensors") | {"model.norm.weight": stale}
        (tmp_path / files.INDEX).write_text(json.dumps({"weight_map": listed}))
        found.append(read(tmp_path)[1])
        (tmp_path / stale).unlink()
    for params in found:
        assert np.array_equal(params["embed"]["embedding"], golden["weights"]["model.embed_tokens.weight"])


def broken(case, match, **changes):
    return pytest.param(case, match, changes, id=match[:30])


@pytest.mark.parametrize(
    "case, match, changes",
    [
        broken(
            "t5_v1_0",
            r"shared.weight: wanted \(40, 12\), found \(41, 12\)",
            **{"shared.weight": np.ones((41, 12), "f4")},
        ),
        broken(
            "gpt2", r"attn.c_attn.weight: wanted \(12, 36\), found nothing", drop=["transformer.h.1.attn.c_attn.weight"]
        ),
        broken("llama", r"model.extra: wanted nothing, found \(2,\)", **{"model.extra": np.ones(2, "f4")}),
        broken(
            "llama",
            "model.norm.weight: wanted F32 or F16 or BF16, found I64",
            **{"model.norm.weight": np.ones(12, "i8")},
        ),
        broken("gpt2", "lacks 'n_embd', which a GPT-2 needs", drop=["n_embd"]),
        broken("t5_v1_0", "is 't55', which is none of .*: t5, mt5, .*, gpt2, llama", config={"model_type": "t55"}),
        broken("t5_v1_0", "model_type in .* is 'deberta-v2', which is none of", config={"model_type": "deberta-v2"}),
        broken("t5_v1_0", "relative_attention_num_buckets=16 is not", config={"relative_attention_num_buckets": 16}),
        broken(
            "t5_v1_0",
            "='gated-relu' is not .*: they have one of relu, ",
            config={"feed_forward_proj": "gated-relu"},
        ),
        broken("gpt2", "scale_attn_by_inverse_layer_idx=True is not", config={"scale_attn_by_inverse_layer_idx": True}),
        broken("gpt2", "embd_pdrop=0.3 is not", config={"embd_pdrop": 0.3}),
        broken("t5_v1_0", "pad_token_id=3 is not one of our models: they have 0", config={"pad_token_id": 3}),
        broken("t5_v1_0", "decoder_start_token_id=3 is not", config={"decoder_start_token_id": 3}),
        broken("t5_v1_0", "is_gated_act=True is not", config={"is_gated_act": True}),
        broken("t5_v1_1", "scale_decoder_outputs=True is not", config={"scale_decoder_outputs": True}),
        *(
            broken("llama", f"{where}.{name}='{kind}' is not .*: they have one of default, linear, llama3, yarn",
                   config={where: {name: kind, "factor": 2.0}})
            for where in ("rope_parameters", "rope_scaling")
            for name, kind in (("type", "dynamic"), ("rope_type", "longrope"))
        ),
        broken("llama", "rope_scaling.type='yarn' is not",
               config={"rope_scaling": {"rope_type": "linear", "type": "yarn"}}),
        broken("llama", "lacks 'rope_scaling.factor'", config={"rope_scaling": {"type": "yarn"}}),
        broken("llama", "rope_scaling.mscale=0.7 is not",
               config={"rope_scaling": {"type": "yarn", "factor": 2.0, "mscale": 0.7}}),
        broken("llama", "rope_parameters beside it says the same",
               config={"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_theta": 5.0}}),
        broken("llama", "rope_parameters.factor=2.0 is not", config={"rope_parameters": {"factor": 2.0}}),
        broken("llama", "partial_rotary_factor=0.5 is not", config={"partial_rotary_factor": 0.5}),
        broken("llama", "partial_rotary_factor=0.5 is not", config={"rope_scaling": {"partial_rotary_factor": 0.5}}),
        broken("llama", "rope_scaling is 'x' and no table", config={"rope_scaling": "x"}),
        broken("llama", "hidden_size='12' is not .*: it is one int", config={"hidden_size": "12"}),
        broken("llama", "head_dim=-4 is not .*: it is at least 0", config={"head_dim": -4}),
        broken("llama", "hidden_size=0 is not .*: it is at least 1", config={"hidden_size": 0}),
        broken("llama", "model.norm.weight holds NaN", **{"model.norm.weight": np.full(12, np.nan, "f4")}),
        broken("gpt2", "transformer.ln_f.bias holds infinity", **{"transformer.ln_f.bias": np.full(12, np.inf, "f4")}),
        broken("llama", "quantization_config=.* we do not know what this entry does",
               config={"quantization_config": {"bits": 4}}),
    ],
)  # fmt: skip
def test_files_that_do_not_fit(case, match, changes, tmp_path):
    with pytest.raises(UserError, match=match):
        read(released(case, tmp_path, **changes))


def test_places_that_hold_no_weights(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="config.json is missing"):
        read(tmp_path)
    (tmp_path / files.CONFIG).write_text("{")
    with pytest.raises(UserError, match="config.json cannot be read"):
        read(tmp_path)
    (tmp_path / files.CONFIG).write_text(json.dumps(cases.T5_V1_0))
    with pytest.raises(UserError, match="model.safetensors cannot be read"):
        read(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(UserError, match="a pickle, pytorch_model.bin, which is not loaded"):
        read(tmp_path)
    (tmp_path / files.TENSORS).write_bytes(b"nothing of the kind" * 9)
    with pytest.raises(UserError, match="model.safetensors cannot be read as safetensors"):
        read(tmp_path)

    def absent(name, *args, real=builtins.__import__, **kwargs):
        if name == "safetensors":
            raise ModuleNotFoundError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(UserError, match=r'pip install -e "\.\[weights\]"'):
        read(tmp_path)


def test_models_and_files_that_disagree(tmp_path):
    write(tmp_path, MODELS["t5_v1_1"], random_params(MODELS["t5_v1_1"]))
    with pytest.raises(
        UserError, match="holds a T5 with activation='gated_gelu'; the model has activation='gated_silu'"
    ):
        read(tmp_path, t5("tiny", 40, activation="gated_silu", **SMALL))
    with pytest.raises(UserError, match="holds a T5, and the modules are model: Decoder"):
        read(tmp_path, MODELS["gpt2"])
    with pytest.raises(UserError, match="config.json exists and is not written over"):
        write(tmp_path, MODELS["t5_v1_1"], random_params(MODELS["t5_v1_1"]))


def test_what_cannot_be_written(tmp_path):
    out = lambda model: write(tmp_path / "new", model, random_params(model))
    with pytest.raises(UserError, match="T5 has scale_attention=False; a model with scale_attention=True cannot"):
        out(t5("tiny", 40, scale_attention=True, **SMALL))
    with pytest.raises(UserError, match="GPT-2 has norm='layer'; a model with norm='rms' cannot"):
        out(gpt("tiny", 40, style="gpt2", norm="rms", **SMALL))
    with pytest.raises(UserError, match="Llama has activation='gated_silu'; a model with activation='relu' cannot"):
        out(gpt("tiny", 40, activation="relu", **SMALL))
    with pytest.raises(UserError, match="no model: Encoder; what can be written: T5 .model: EncoderDecoder"):
        hf.write(tmp_path / "new", {"model": Encoder(vocab_size=40, positions="relative", **SMALL)}, {})
    params = random_params(MODELS["llama"])
    del params["logits"]
    with pytest.raises(UserError, match="params does not fit the model: model/logits/kernel: wanted .* found nothing"):
        write(tmp_path / "new", MODELS["llama"], params)
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written: Not a directory"):
        write(tmp_path / "file" / "new", MODELS["llama"], random_params(MODELS["llama"]))
