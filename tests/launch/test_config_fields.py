"""Every entry of every family's config.json has an effect, is known to have none, or is refused by name."""

import copy
import json

import pytest

from launch.run import pretrained
from multimodal.hf.common import SIDE_IRRELEVANT
from paradigm.errors import UserError
from paradigm.hf import Config
from paradigm.hf.config import IRRELEVANT
from tests.parity import cases

CONFIGS = json.loads((cases.HERE / "configs.json").read_text())  # as the library writes them, with all its defaults
FAMILIES = {family.model_type: family for family in pretrained.families()}
# What the library does not read here either: the layers' kinds, which it has written down, say all of windows.
UNREAD = {
    "qwen2": ("max_window_layers",),
    "qwen3": ("max_window_layers", "sliding_window", "use_sliding_window"),
    "clip": ("text_config.model_type", "vision_config.model_type"),
    "siglip": ("text_config.model_type", "vision_config.model_type"),
}
# Entries that must agree: one that is changed may be refused by the other's name.
PARTNERS = {
    "encoder_ffn_dim": "decoder_ffn_dim",
    "encoder_attention_heads": "decoder_attention_heads",
    "resid_pdrop": "embd_pdrop",
    "tie_word_embeddings": "scale_decoder_outputs",
    "rope_type": "type",
    "use_shared_relative_position_bias": "use_relative_position_bias",
}
PARTNERS |= dict.fromkeys(("num_hidden_layers", "sliding_window", "use_sliding_window"), "layer_types")


def modules(config):
    """What config.json makes, for a file that holds no output matrix. Raises UserError as reading does."""
    family = FAMILIES[config["model_type"]]
    read = Config(config, family.title, irrelevant=family.irrelevant)
    found = family.modules(read, {})
    read.finish()
    return found


def entries(config, above=()):
    """The paths of all entries, those inside objects with settings too."""
    for name, value in config.items():
        if isinstance(value, dict) and name not in ("id2label", "label2id"):
            yield from entries(value, (*above, name))
        else:
            yield (*above, name)


def others(value):
    """Values that are not this one, of its kind where it has one."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, (int, float)):
        return [value + 1 if isinstance(value, int) else value + 0.125]  # a rate stays below 1
    if isinstance(value, str):
        return [value + "x"]
    if isinstance(value, list):
        return [value[:-1]]
    return [{"a": 1}] if isinstance(value, dict) else [3, True, "x"]


@pytest.mark.parametrize("case", CONFIGS)
def test_each_entry_counts(case):
    config = CONFIGS[case]
    base, kind = modules(config), config["model_type"]
    without = IRRELEVANT | set(FAMILIES[kind].irrelevant) | set(UNREAD.get(kind, ()))
    counted = 0
    for path in entries(config):
        *above, name = path
        value = config
        for part in path:
            value = value[part]
        for other in others(value):
            changed = copy.deepcopy(config)
            inner = changed
            for part in above:
                inner = inner[part]
            inner[name] = other
            if path == ("model_type",):
                continue  # it is what chose the family
            try:
                same = modules(changed) == base
            except UserError as error:
                assert any(n in str(error) for n in (name, PARTNERS.get(name, name))), (path, str(error))
                same = False
            free = {name, ".".join(path)} & (without | (set(SIDE_IRRELEVANT) if above else set()))
            assert not same or free, f"{'.'.join(path)}: {value!r} -> {other!r} changes nothing, and nobody says why"
            counted += not same
    assert counted > 9


@pytest.mark.parametrize("case", CONFIGS)
def test_an_entry_that_nobody_knows_is_refused(case):
    config = copy.deepcopy(CONFIGS[case])
    for where in ("", "rope_parameters", "text_config", "vision_config"):
        if where in config or not where:
            changed = copy.deepcopy(config)
            (changed[where] if where else changed)["some_new_trick"] = 7
            with pytest.raises(UserError, match="some_new_trick=7 is not one of our models: we do not know"):
                modules(changed)
            (changed[where] if where else changed)["some_new_trick"] = None
            assert modules(changed) == modules(config)


def test_what_old_released_files_hold_beside_it():
    """As t5-small's and CLIP's, of versions that wrote every default of the library, generation's too."""
    old = {"output_past": True, "pruned_heads": {}, "is_decoder": False, "add_cross_attention": False, "top_k": 50}
    old |= {"tie_encoder_decoder": False, "task_specific_params": {"translation": {"prefix": "x"}}, "num_beams": 1}
    assert modules(CONFIGS["t5_v1_0"] | old | {"n_positions": 512}) == modules(CONFIGS["t5_v1_0"])
    clip = copy.deepcopy(CONFIGS["clip"])
    for side in ("text_config", "vision_config"):
        clip[side] |= old | {"tie_word_embeddings": True, "dropout": 0.0}
        clip[f"{side}_dict"] = None
    assert modules(clip) == modules(CONFIGS["clip"])
    with pytest.raises(UserError, match="text_config.add_cross_attention=True is not one of our models"):
        modules(clip | {"text_config": clip["text_config"] | {"add_cross_attention": True}})
    for case, more in (
        ("qwen2", {"use_mrope": False}),
        ("llama", {"rope_interleaved": False, "is_llama_config": True}),
    ):
        assert modules(CONFIGS[case] | more) == modules(CONFIGS[case])  # Qwen2.5, SmolLM2
    large = {"hidden_size": 24, "intermediate_size": 36, "num_attention_heads": 3, "num_hidden_layers": 2}
    again = modules(clip | {"text_config_dict": large})["text"]  # clip-vit-large-patch14: the library reads it alone
    assert (again.d_model, again.d_ff, again.heads, again.layers) == (24, 36, 3, 2)
    assert (again.vocab_size, again.max_length, again.end_id) == (49408, 77, 49407)
    for case in ("bert", "roberta", "electra"):  # which then see what came before alone
        with pytest.raises(UserError, match="with is_decoder=True is not one of our models: they have False"):
            modules(CONFIGS[case] | {"is_decoder": True})
    with pytest.raises(UserError, match="a T5 with tie_encoder_decoder=True is not one of our models"):
        modules(CONFIGS["t5_v1_0"] | {"tie_encoder_decoder": True})
