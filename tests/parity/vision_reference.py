"""The transformers library's side of the comparison of image models; run by tests.parity.vision.

python -m tests.parity.vision_reference goldens        writes tests/parity/CASE.npz
python -m tests.parity.vision_reference check ROOT     loads ROOT/CASE, which we wrote, and compares it with the goldens
"""

import json
import pathlib
import sys
import tempfile

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file, save_file

from tests.parity import vision_cases as cases

TOLERANCE = 1e-4
POOLED = {"data2vec_pooled": {"add_pooling_layer": True}}  # whose pooler is not left aside
FIXED = ("position_embeddings", "decoder_pos_embed")  # of ViT-MAE, which a new model has and no draw replaces


def model_class(case):
    return getattr(transformers, cases.CONFIGS[case]["architectures"][0])


def released(case, directory):
    """name -> tensor of what a released checkpoint of a new model holds."""
    model = model_class(case)(model_class(case).config_class(**cases.CONFIGS[case]), **POOLED.get(case, {}))
    model.save_pretrained(directory)
    # Version 5.23 gives the decoder's layers a name that no released file has, and that it reads as well.
    rename = lambda name: name.replace("decoder_encoder.layer", "decoder_layers")
    new = {rename(name): x for name, x in load_file(pathlib.Path(directory, "model.safetensors")).items()}
    if case.startswith("vit_mae"):
        del model.vit.embeddings.patch_embeddings.projection._is_hf_initialized  # 5.23 then leaves positions at zero
        model.vit.embeddings.initialize_weights()
        model.decoder.initialize_weights(16)
        new["vit.embeddings.position_embeddings"] = model.vit.embeddings.position_embeddings.detach().numpy()
        new["decoder.decoder_pos_embed"] = model.decoder.decoder_pos_embed.detach().numpy()
    return new


def run(case, directory):
    """name -> array: what the checkpoint in `directory` makes of the inputs."""
    how = {"add_pooling_layer": False} if case in ("vit", "vit_odd", "ijepa") else POOLED.get(case, {})
    model, report = model_class(case).from_pretrained(directory, dtype=torch.float32, output_loading_info=True, **how)
    problems = {k: v for k, v in report.items() if v and k != "unexpected_keys"}
    assert not problems, f"{case}: transformers reports {problems}"
    assert all("pooler" in name for name in report["unexpected_keys"]), report["unexpected_keys"]
    given = {name: torch.tensor(x) for name, x in cases.inputs(case).items()}
    model.eval()
    if case.startswith("vit_mae"):
        out = model(**given)
        out.loss.backward()
        named = dict(zip((name for name, _ in model.named_parameters()), model.parameters()))
        slopes = {f"slope:{name}": named[name].grad.numpy() for name in cases.SLOPES}
        outputs = {"loss": out.loss, "logits": out.logits, "mask": out.mask}
        return {name: x.detach().numpy() for name, x in outputs.items()} | slopes
    with torch.no_grad():
        out = model(**given)
        if case == "dinov2_registers":
            registers = cases.CONFIGS[case]["num_register_tokens"]
            x = out.last_hidden_state
            outputs = {"hidden": torch.cat([x[:, :1], x[:, 1 + registers :]], 1)}
        elif case == "dinov2":
            resized = model(pixel_values=torch.tensor(cases.larger()))
            outputs = {"hidden": out.last_hidden_state, "larger": resized.last_hidden_state}
        elif case.startswith("beit"):
            outputs = {"logits": out.logits}
        elif case.startswith("data2vec"):
            outputs = {"hidden": out.last_hidden_state} | ({"pooled": out.pooler_output} if case in POOLED else {})
        elif case.startswith(("vit", "ijepa")):
            resized = model(pixel_values=torch.tensor(cases.larger()), interpolate_pos_encoding=True)
            outputs = {"hidden": out.last_hidden_state, "larger": resized.last_hidden_state}
        else:
            outputs = {"pooled": out.pooler_output, "last": out.last_hidden_state}
            outputs["trained"] = model.train()(**given).pooler_output
    return {name: x.numpy() for name, x in outputs.items()}


def goldens():
    for case, config in cases.CONFIGS.items():
        with tempfile.TemporaryDirectory() as directory:
            new = released(case, directory)
            shapes = {name: list(x.shape) for name, x in new.items()}
            fixed = {name: x for name, x in new.items() if case == "vit_mae" and name.endswith(FIXED)}
            weights = {name: cases.weight(name, shape) for name, shape in shapes.items()} | fixed
            pathlib.Path(directory, "config.json").write_text(json.dumps(config))
            save_file(weights, pathlib.Path(directory, "model.safetensors"), metadata={"format": "pt"})
            outputs = run(case, directory)
        stored = {f"fixed:{name}": x for name, x in fixed.items()}
        path = cases.HERE / f"{case}.npz"
        np.savez_compressed(path, shapes=json.dumps(shapes), **stored, **outputs)
        largest = {name: f"{np.abs(x).max():.2f}" for name, x in outputs.items()}
        print(f"{path.name}: {path.stat().st_size} bytes; largest {largest}")


def check(root):
    for case in cases.VITS:
        golden, outputs = cases.load(case), run(case, pathlib.Path(root, case))
        far = max(np.abs(x - golden[name]).max() for name, x in outputs.items())
        print(f"{case}: transformers reads our files; largest difference {far:.1e}")
        if not far <= TOLERANCE:
            sys.exit(f"{case}: what transformers reads from our files is not the model that was written")


if __name__ == "__main__":
    check(sys.argv[2]) if sys.argv[1] == "check" else goldens()
