"""An adapted run from its base run to merged weights: what it starts from, trains, saves, resumes and refuses."""

import functools
import json
import shutil

import jax
import numpy as np
import pytest

from launch import convert, load
from launch.evaluate import evaluate
from launch.run import loop, registry
from launch.run.catalogue import by_kind
from launch.storage.checkpoint import Checkpoints
from paradigm import trees
from paradigm.adapt import PromptTuning
from paradigm.errors import UserError
from t5like import hf
from t5like.tokenizers import ByteTokenizer
from tests import contract

BASE = """
Experiment.objective = @NextToken()
Experiment.data = @TextData()
Experiment.optimizer = @AdamW()
Experiment.total_steps = 3
Experiment.batch_size = 8
Experiment.eval_batches = 2
NextToken.model = @gpt()
NextToken.length = 32
gpt.size = 'tiny'
gpt.style = 'gpt2'
gpt.layers = 2
gpt.d_model = 16
gpt.heads = 2
gpt.d_ff = 32
gpt.max_length = 64
AdamW.learning_rate = 0.01
TextData.source = '{source}'
"""
LORA = "Experiment.adapt = @LoRA()\nLoRA.rank = 4\n"
PROMPT = "Experiment.adapt = @PromptTuning()\nPromptTuning.length = 8\n"


def run(directory, source, text="", params=(), **how):
    experiment = registry.parse_text(BASE.format(source=source) + text, params)
    return loop.train(experiment, directory, config=registry.operative_config(), **how)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    root = tmp_path_factory.mktemp("adapted")
    (root / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 400)
    (root / "other.txt").write_text("A lazy dog sleeps while the brown fox is quick. " * 400)
    run(root / "base", root / "text.txt")
    return root


@functools.cache
def adapted(root):
    return run(root / "lora", root / "other.txt", LORA, init_from=str(root / "base"))


def named(tree):
    return dict(trees.named_leaves(jax.device_get(tree)))


def test_the_base_is_taken_strictly_and_kept_once(places, capsys):
    done = adapted(places)
    out = capsys.readouterr().out
    base, state = load(places / "base"), done.state
    trained = named(state.params)
    count, total = (sum(x.size for x in tree.values()) for tree in (trained, named(state.all_params)))
    assert all(name.endswith(("/lora_a", "/lora_b")) for name in trained)
    assert f"{total:,} parameters, {count:,} of them trained ({100 * count / total:.3g} %)" in out
    assert "drawn are model/decoder/layers/attention/query/lora_a and 3 more" in out
    contract.assert_trees_equal(jax.device_get(state.frozen), jax.device_get(base.params))
    size = lambda path: sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    steps = places / "lora" / "checkpoints"
    newest = max(steps.iterdir(), key=lambda path: path.stat().st_mtime)
    assert size(newest / "state") < size(places / "lora" / "frozen") + 3 * 4 * count


def test_it_loads_decodes_and_merges(places):
    adapted(places)
    found = load(places / "lora")
    merged = found.merged()
    assert merged.objective.adapt is None and named(merged.params).keys() == named(load(places / "base").params).keys()
    assert found.generate("The quick", max_new_tokens=12) == merged.generate("The quick", max_new_tokens=12)
    batch = {"tokens": np.arange(3, 35)[None]}
    logits = lambda run: run.objective.apply("model", run.variables(), batch["tokens"])[0]
    np.testing.assert_allclose(logits(found), logits(merged), atol=2e-5)
    assert np.abs(logits(found) - logits(load(places / "base"))).max() > 1e-3
    told = convert.to_hf(places / "lora", places / "exported")
    assert "its LoRA merged" in told
    modules, params = hf.read(places / "exported")
    read = modules["model"].apply({"params": params["model"]}, batch["tokens"])[0]
    np.testing.assert_allclose(read, logits(merged), atol=1e-5)


def test_it_resumes_bit_for_bit_and_refuses_another_base(places, tmp_path):
    whole = adapted(places)
    half = functools.partial(run, tmp_path / "half", places / "other.txt", LORA, init_from=str(places / "base"))
    experiment = "Experiment.total_steps = 2"
    half(params=[experiment])
    done = half()
    contract.assert_trees_equal(named(done.state.all_params), named(whole.state.all_params))
    contract.assert_trees_equal(named(done.state.opt_state), named(whole.state.opt_state))
    shutil.rmtree(tmp_path / "half" / "frozen")
    with Checkpoints(tmp_path / "half" / "frozen", keep=1) as other:
        other.save(0, jax.tree.map(lambda x: 2 * x, jax.device_get(done.state.frozen)), {})
    with pytest.raises(UserError, match="frozen is not what checkpoint 3 was made with .* put back the frozen"):
        half(params=["Experiment.total_steps = 4"])


def test_a_source_with_the_same_shapes_and_other_settings_is_told_or_refused(places, tmp_path, capsys):
    adapted(places)
    changes = ["LoRA.alpha = 64.0", "gpt.activation = 'relu'", "gpt.dropout = 0.5"]
    with pytest.raises(UserError, match="/lora at step 3 has .*lora_a with scale=4.0, and .* LoRA has scale=16.0: set"):
        run(tmp_path / "again", places / "other.txt", LORA, changes, init_from=str(places / "lora"))
    with pytest.raises(
        UserError, match="lora at step 3 is adapted by LoRA: set Experiment.adapt = @LoRA.. as .*merged"
    ):
        run(tmp_path / "plain", places / "other.txt", init_from=str(places / "lora"))
    (note,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("note: "))
    assert note.endswith(
        "/lora at step 3 was made with other settings: model.activation is 'relu' here and 'gelu' there"
    )


def test_soft_tokens_begin_as_a_text_that_the_datas_tokenizer_reads(places, tmp_path):
    """Trained, evaluated and loaded by the same ids."""
    words = PROMPT + "PromptTuning.text = 'a fox'\n"
    run(tmp_path / "run", places / "other.txt", words, init_from=str(places / "base"))
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert load(tmp_path / "run").experiment.adapt == PromptTuning(
        length=8, tokens=tuple(ByteTokenizer().encode("a fox"))
    )
    assert evaluate(tmp_path / "run")[1]["valid/loss"] == last["valid/loss"]
    with pytest.raises(UserError, match="PromptTuning.text=' ' has no tokens"):
        run(tmp_path / "empty", places / "other.txt", PROMPT + "PromptTuning.text = ' '\n")


def test_what_it_refuses(places, tmp_path):
    with pytest.raises(UserError, match="model is frozen, and without Experiment.init .* give the run"):
        run(tmp_path / "alone", places / "other.txt", LORA)
    with pytest.raises(UserError, match="gpt.d_model|wanted .*32.*found"):
        run(tmp_path / "wide", places / "other.txt", LORA, ["gpt.d_ff = 64"], init_from=str(places / "base"))
    with pytest.raises(UserError, match="PromptTuning.length=40 and 32 tokens do not fit into the model's 64 learned"):
        run(
            tmp_path / "long",
            places / "other.txt",
            PROMPT,
            ["PromptTuning.length = 40"],
            init_from=str(places / "base"),
        )
    with pytest.raises(UserError, match="PromptTuning computes what no parameters of the base can"):
        run(tmp_path / "prompt", places / "other.txt", PROMPT, init_from=str(places / "base"))
        load(tmp_path / "prompt").merged()


def test_what_was_forgotten_is_told_by_pretrainings_own_validation(places, tmp_path):
    """As of a run on the base's text that begins with the merged weights and does not move."""
    adapted(places)
    before, after = (evaluate(places / "base", adapted=other) for other in (None, places / "lora"))
    convert.to_hf(places / "lora", tmp_path / "merged")
    run(tmp_path / "still", places / "text.txt", "", ["AdamW.learning_rate = 0.0"], init_from=str(tmp_path / "merged"))
    wanted = evaluate(tmp_path / "still")[1]
    assert after[0] == before[0] == 3 and after[1].keys() == before[1].keys()
    assert after[1] == pytest.approx(wanted, rel=1e-5) and abs(after[1]["valid/nll"] - before[1]["valid/nll"]) > 1e-3
    whole = evaluate(places / "base", adapted=tmp_path / "still")[1]  # all of whose parameters are others
    assert whole == pytest.approx(wanted, rel=1e-6)
    with pytest.raises(UserError, match="lora was not adapted from this run: model/decoder/layers/mlp/.* of shape"):
        evaluate(places / "base", gin_params=["gpt.d_ff = 64"], adapted=places / "lora")
    (tmp_path / "begun").mkdir()
    shutil.copy(places / "lora" / "config.gin", tmp_path / "begun")
    with pytest.raises(UserError, match="begun/checkpoints: there is no checkpoint yet; train until the first save"):
        evaluate(places / "base", adapted=tmp_path / "begun")
    with pytest.raises(UserError, match="--adapted=.*nowhere: no run is here"):
        evaluate(places / "base", adapted=tmp_path / "nowhere")


def test_a_run_without_its_optimizers_state_is_a_base_and_is_evaluated_and_loaded(places, tmp_path):
    adapted(places)
    for name in ("base", "lora"):
        told = convert.to_parameters(places / name, tmp_path / name)
        assert told == f"step 3 of {places / name}, without its optimizer's state -> {tmp_path / name}"
        assert evaluate(tmp_path / name)[:2] == evaluate(places / name)[:2]
        contract.assert_trees_equal(named(load(tmp_path / name, "best").params), named(load(places / name).params))
    size = lambda path: sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    assert size(tmp_path / "base" / "checkpoints") < 0.5 * size(places / "base" / "checkpoints" / "3")
    assert load(tmp_path / "lora").generate("The", max_new_tokens=4) == load(places / "lora").generate(
        "The", max_new_tokens=4
    )
    again = run(tmp_path / "again", places / "other.txt", LORA, init_from=str(tmp_path / "base"))
    contract.assert_trees_equal(named(again.state.all_params), named(adapted(places).state.all_params))
    with pytest.raises(UserError, match="checkpoints/3 holds no optimizer's state.* with --init_from="):
        run(tmp_path / "base", places / "text.txt", params=["Experiment.total_steps = 4"])


def test_they_are_listed():
    assert {"LoRA", "IA3", "BitFit", "LinearProbe", "Full", "PromptTuning"} <= by_kind()["adaptations"].keys()
