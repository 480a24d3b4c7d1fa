"""Image-text retrieval fine-tuning: towers of a run go, by way of the transformers library's format, to other pairs."""

import pytest
from safetensors.numpy import load_file

from launch import convert
from launch.evaluate import evaluate
from launch.run import loop, registry
from paradigm.errors import UserError

TINY = [
    "size = 16",
    *(f"clip_vit.{line}" for line in ("d_model = 16", "heads = 2", "d_ff = 32", "layers = 1", "patch = 8")),
    *(f"clip_text.{line}" for line in ("d_model = 16", "heads = 2", "d_ff = 32", "layers = 1", "length = 24")),
    "CLIP.width = 16",
    "Shapes.scenes = 64",
    "Shapes.valid_scenes = 24",
    "Experiment.batch_size = 8",
    "Experiment.total_steps = 2",
    "Experiment.eval_batches = 1",
]
OTHER = ["Shapes.seed = 1", "Shapes.objects = 6"]


def run(name, directory, *more, **how):
    experiment = registry.parse([f"runs/smoke/{name}.gin"], [*TINY, *more])
    return loop.train(experiment, directory, config=registry.operative_config(), **how)


@pytest.mark.slow
def test_towers_go_into_retrieval_from_a_run_and_from_the_librarys_files(tmp_path):
    asked = "Experiment.evaluators = (@Retrieval(),)"
    run("clip", tmp_path / "base", "Experiment.evaluators = ()", "PairData.tokenizer = 'bytes'")
    wanted = evaluate(tmp_path / "base", gin_params=[asked, "Retrieval.random = False", *OTHER])[1]
    assert "valid/image_to_text@1" in wanted and "valid/text_to_image@10" in wanted
    convert.to_hf(tmp_path / "base", tmp_path / "exported")
    tokenizer = f"PairData.tokenizer = '{tmp_path}/exported/tokenizer'"
    how = [*OTHER, tokenizer, "Cosine.peak = 1e-30", "LoRA.rank = 2"]
    done = run("retrieval", tmp_path / "tuned", *how, init_from=str(tmp_path / "exported"))
    assert {name for name in done.state.params} == {"encoder", "image_head", "text", "text_head"}
    found = evaluate(tmp_path / "tuned")[1]
    same = wanted.keys() & found.keys()
    assert {name: found[name] for name in same} == pytest.approx({name: wanted[name] for name in same}, rel=1e-4)
    convert.to_peft(tmp_path / "tuned", tmp_path / "adapter")
    names = " ".join(load_file(tmp_path / "adapter" / "adapter_model.safetensors"))
    assert "vision_model.encoder.layers.0.self_attn.q_proj" in names and "text_model.encoder.layers.0.mlp.fc2" in names
    with pytest.raises(UserError, match="does not fit the model: text/embed/embedding: wanted .300, 16., found"):
        run("retrieval", tmp_path / "wrong", *OTHER, "PairData.tokenizer = 'bpe:300'", init_from=str(tmp_path / "base"))
