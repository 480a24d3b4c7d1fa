"""Reading and writing the transformers library's image models: equal, strict, and clear about what is wrong."""

import json

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
from tests.parity import make
from tests.parity import vision_cases as cases
from vision import hf
from vision.augment import no_views
from vision.objectives import Data2Vec, MaskFeat, SimMIM
from vision.objectives.mae import Decoder
from vision.resnet import resnet
from vision.vit import vit

SMALL = {"d_model": 12, "heads": 3, "d_ff": 20, "layers": 2, "image_size": 8, "patch": 4}


def mae(**fields):
    encoder = vit("tiny", **SMALL | fields)
    return {"encoder": encoder, "decoder": Decoder(encoder, 8, 1, 2)}


MODELS = {
    "learned": {"encoder": vit("tiny", **SMALL, positions="learned")},
    "fixed": {"encoder": vit("tiny", **SMALL, activation="gelu", channels=1)},
    "dinov2": {"encoder": vit("tiny", **SMALL | {"d_ff": 24}, positions="learned", mask_token=True, layer_scale=0.5)},
    "registers": {
        "encoder": vit(
            "tiny", **SMALL | {"d_ff": 24}, positions="learned", mask_token=True, registers=2, layer_scale=0.5
        )
    },
    "mae": mae(),
    "mae_learned": mae(positions="learned", eps=1e-12),
}


def random_params(modules, seed=0):
    rng = np.random.default_rng(seed)
    [family] = files.family_of(modules, hf.FAMILIES)
    return jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32), abstract(family, modules))


def read(path, modules=None):
    return hf.read(path, modules=modules)


def equal(a, b):
    a, b = dict(trees.named_leaves(a)), dict(trees.named_leaves(b))
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("name", MODELS)
def test_what_is_written_is_read(name, tmp_path):
    modules, params = MODELS[name], random_params(MODELS[name])
    hf.write(tmp_path, modules, jax.tree.map(jnp.asarray, params))
    found, again = read(tmp_path, modules)
    assert found is modules and equal(again, params)
    assert not list(tmp_path.glob("*.tmp"))
    if name in ("learned", "mae"):  # what config.json alone makes
        found, again = read(tmp_path)
        assert equal(again, params) and not files.differences(files.family_of(modules, hf.FAMILIES)[0], modules, found)


@pytest.mark.parametrize(
    "kind, how",
    [
        (Data2Vec, {"top": 1, "block_smallest": 1}),
        (SimMIM, {"mask_unit": 1}),
        (MaskFeat, {"cell": 2, "block_smallest": 1}),
    ],
)
def test_a_decoder_of_no_tokens_is_not_written_as_beits(kind, how, tmp_path):
    """Though the modules are named as BEiT's are: a head that predicts pixels would be read as logits of tokens."""
    encoder = vit("tiny", **SMALL, mask_token=True, grid_bias="shared", positions="none")
    objective = kind(encoder=encoder, augment=no_views(8), **how)
    params = jax.jit(objective.init)(jax.random.key(0))
    assert hf.write_objective(tmp_path, objective, params) == ["decoder"]
    found, again = read(tmp_path)
    assert not files.differences(hf.DATA2VEC, {"encoder": encoder}, found)
    again["encoder"]["blocks"]["layers"]["attention"]["key"]["bias"] = params["encoder"]["blocks"]["layers"][
        "attention"
    ]["key"]["bias"]
    assert equal(again["encoder"], params["encoder"])
    assert json.loads((tmp_path / files.CONFIG).read_text())["model_type"] == "data2vec-vision"


def test_a_fixed_table_is_read_as_a_learned_one(tmp_path):
    """The library's ViT has no other kind: same outputs from a model that holds the table."""
    modules, params = MODELS["fixed"], random_params(MODELS["fixed"])
    hf.write(tmp_path, modules, params)
    found, again = read(tmp_path)
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
    hidden = lambda modules, params: modules["encoder"].apply({"params": params["encoder"]}, x)[0]
    assert found["encoder"].positions == "learned" and again["encoder"]["positions"]["embedding"].shape == (5, 12)
    np.testing.assert_allclose(hidden(found, again), hidden(modules, params), atol=1e-5)


@pytest.mark.parametrize("case", cases.VITS)
def test_what_is_read_is_written(case, tmp_path):
    """Our file holds the released file's tensors, bit for bit, in the released names; and its config."""
    golden = cases.load(case)
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    hf.write(target, *read(make.released(golden, source)), norm_pix_loss=True)
    ours, theirs = load_file(target / files.TENSORS), golden["weights"]
    kept = {name for name in theirs if not name.startswith("pooler") or case == "data2vec_pooled"}
    assert ours.keys() == kept
    for name in kept:
        exact = not name.endswith(("position_embeddings", "decoder_pos_embed")) or case != "vit_mae"
        np.testing.assert_allclose(ours[name], theirs[name], atol=0 if exact else 1e-6, err_msg=name)
    config = json.loads((target / files.CONFIG).read_text())
    assert {k: config[k] for k in golden["config"]} == golden["config"]


def released(case, directory, config=(), drop=(), rename=lambda name: name, **tensors):
    """A released checkpoint with some of its entries changed, and the path to it."""
    golden = cases.load(case)
    golden["config"] = {k: v for k, v in {**golden["config"], **dict(config)}.items() if k not in drop}
    every = {**golden["weights"], **tensors}
    golden["weights"] = {rename(k): v for k, v in every.items() if k not in drop}
    return make.released(golden, directory)


def test_prefixes_heads_and_the_newest_names(tmp_path):
    """A classifier's file has a prefix and a head; version 5.23 writes another name for the decoder's layers."""
    wanted = read(released("vit", tmp_path))[1]
    head = {"classifier.weight": np.ones((5, 12), "f4"), "classifier.bias": np.ones(5, "f4")}
    found = read(released("vit", tmp_path, rename=lambda n: n if n in head else "vit." + n, **head))[1]
    assert equal(found, wanted)
    wanted = read(released("vit_mae", tmp_path))[1]
    newest = lambda n: n.replace("decoder_layers", "decoder_encoder.layer")
    assert equal(read(released("vit_mae", tmp_path, rename=newest))[1], wanted)


def half(golden, directory, kind):
    """The golden as a file of half precision, and its tensors as float32."""
    tensors = {name: x.astype(kind) for name, x in golden["weights"].items()}
    (directory / files.CONFIG).write_text(json.dumps(golden["config"]))
    save_file(tensors, directory / files.TENSORS)
    return {name: x.astype(np.float32) for name, x in tensors.items()}


@pytest.mark.parametrize("kind", [ml_dtypes.bfloat16, np.float16])
def test_half_precision_keeps_the_files_own_numbers(kind, tmp_path):
    """Tables of positions too: rounded, they are no longer the formula's, and the library computes with them."""
    tensors = half(cases.load("vit_mae"), tmp_path, kind)
    modules, params = read(tmp_path)
    assert modules["encoder"].positions == modules["decoder"].positions == "learned"
    for name, found in (
        ("vit.embeddings.cls_token", params["encoder"]["class_token"]),
        ("vit.embeddings.position_embeddings", params["encoder"]["positions"]["embedding"]),
        ("decoder.decoder_pos_embed", params["decoder"]["positions"]["embedding"]),
    ):
        assert found.dtype == np.float32 and np.array_equal(found.ravel(), tensors[name].ravel()), name
    hf.write(tmp_path / "out", modules, params)
    ours = load_file(tmp_path / "out" / files.TENSORS)
    assert all(np.array_equal(ours[name], x) for name, x in tensors.items())


def test_a_decoder_of_any_width_and_the_formulas_tables(tmp_path):
    modules, _ = read(released("vit_mae", tmp_path))
    assert (modules["encoder"].positions, modules["decoder"].positions) == ("sincos", "sincos")
    modules, _ = read(released("vit_mae_odd", tmp_path))
    assert modules["decoder"].hidden == 20 and modules["decoder"].positions == "learned"
    fixed = {"encoder": modules["encoder"].clone(positions="sincos")}
    fixed["decoder"] = modules["decoder"].clone(encoder=fixed["encoder"])
    with pytest.raises(UserError, match="position_embeddings is not the table .* give one with positions='learned'"):
        read(tmp_path, fixed)
    fixed = {**modules, "decoder": modules["decoder"].clone(positions="sincos")}
    with pytest.raises(UserError, match="decoder_pos_embed is not the table of fixed sine and cosine positions"):
        read(tmp_path, fixed)


def broken(case, match, **changes):
    return pytest.param(case, match, changes, id=match[:30])


@pytest.mark.parametrize(
    "case, match, changes",
    [
        broken("vit", r"cls_token: wanted \(1, 1, 12\), found \(1, 2, 12\)",
               **{"embeddings.cls_token": np.ones((1, 2, 12), "f4")}),
        broken("vit", r"patch_embeddings.projection.weight: wanted \(12, 3, 4, 4\), found nothing",
               drop=["embeddings.patch_embeddings.projection.weight"]),
        broken("vit", r"vit.embeddings.extra: wanted nothing, found \(2,\)",
               **{"embeddings.extra": np.ones(2, "f4")}),
        broken("vit", r"vit.layernorm.bias: wanted F32 or F16 or BF16, found I64",
               **{"layernorm.bias": np.ones(12, "i8")}),
        broken("vit", "lacks 'hidden_size', which a ViT needs", drop=["hidden_size"]),
        broken("vit", "is 'vits', which is none of .*: vit, vit_mae", config={"model_type": "vits"}),
        broken("vit", "attention.key.bias: wanted nothing", config={"qkv_bias": False}),
        broken("vit", r"a ViT with image_size=\[16, 8\] is not one of our", config={"image_size": [16, 8]}),
        broken("beit", r"architectures in .* is \['BeitForImageClassification'\]; of beit, these .*: BeitForMasked",
               config={"architectures": ["BeitForImageClassification"]}),
        broken("beit", "use_mask_token=False is not one of our models: they have a mask token",
               config={"use_mask_token": False}),
        broken("beit", "use_relative_position_bias=True is not .* one for each, not both",
               config={"use_relative_position_bias": True}),
        broken("beit", "architectures in .* is 1.5; of beit, these can be read", config={"architectures": 1.5}),
        broken("beit", "we do not know what this entry does", config={"rope": True}),
        broken("ijepa", r"position_embeddings: wanted \(1, 16, 12\), found \(1, 17, 12\)",
               **{"embeddings.position_embeddings": np.ones((1, 17, 12), "f4")}),
        broken("dinov2", "use_swiglu_ffn=True is not .*: they have one of False", config={"use_swiglu_ffn": True}),
        broken("data2vec_pooled", r"pooler.layernorm.weight: wanted \(12,\), found nothing",
               drop=["pooler.layernorm.weight"]),
        broken("vit", "='gelu_fast' is not .*: they have one of gelu, ", config={"hidden_act": "gelu_fast"}),
    ],
)  # fmt: skip
def test_files_that_do_not_fit(case, match, changes, tmp_path):
    with pytest.raises(UserError, match=match):
        read(released(case, tmp_path, **changes))


def test_places_that_hold_no_weights(tmp_path):
    with pytest.raises(UserError, match="config.json is missing"):
        read(tmp_path)
    (tmp_path / files.CONFIG).write_text(json.dumps(cases.VIT))
    with pytest.raises(UserError, match="model.safetensors cannot be read"):
        read(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(UserError, match="a pickle, pytorch_model.bin, which is not loaded"):
        read(tmp_path)


def test_models_and_files_that_disagree(tmp_path):
    hf.write(tmp_path, MODELS["learned"], random_params(MODELS["learned"]))
    with pytest.raises(UserError, match="holds a ViT with encoder.activation='gelu_exact'; the model has .*'relu'"):
        read(tmp_path, {"encoder": vit("tiny", **SMALL, positions="learned", activation="relu")})
    with pytest.raises(UserError, match="holds a ViT, and the modules are encoder: .*, decoder: Decoder"):
        read(tmp_path, MODELS["mae"])
    with pytest.raises(UserError, match="config.json exists and is not written over"):
        hf.write(tmp_path, MODELS["learned"], random_params(MODELS["learned"]))


def test_what_cannot_be_written(tmp_path):
    write = lambda modules: hf.write(tmp_path / "new", modules, random_params(modules))
    with pytest.raises(UserError, match="ViT has encoder.registers=0; a model with encoder.registers=2 cannot"):
        write({"encoder": vit("tiny", **SMALL, registers=2)})
    with pytest.raises(UserError, match="ViT-MAE has encoder.norm='layer'; a model with encoder.norm='rms' cannot"):
        write(mae(norm="rms"))
    with pytest.raises(
        UserError,
        match="no encoder: ResNet; what can be written: ViT .encoder: ViT.; ViT-MAE",
    ):
        hf.write(tmp_path / "new", {"encoder": resnet("tiny")}, {})
    params = random_params(MODELS["mae"])
    del params["decoder"]["predict"]
    with pytest.raises(UserError, match="params does not fit the model: decoder/predict/.*: wanted .* found nothing"):
        hf.write(tmp_path / "new", MODELS["mae"], params)
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written: Not a directory"):
        hf.write(tmp_path / "file" / "new", MODELS["mae"], random_params(MODELS["mae"]))
