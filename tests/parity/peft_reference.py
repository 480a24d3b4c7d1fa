"""The peft library's side of the comparison; run by tests.parity.peft under a Python that has torch and peft.

python -m tests.parity.peft_reference goldens        writes tests/parity/peft.npz and peft.json
python -m tests.parity.peft_reference check ROOT     loads the adapters ROOT/CASE, which we wrote
"""

import json
import pathlib
import sys
import tempfile

import numpy as np
import peft
import torch
import transformers
from safetensors.numpy import load_file, save_file

from tests.parity import peft_cases
from tests.parity.reference import TOLERANCE


def base(case, directory):
    """The transformers model that a case adapts."""
    name = peft_cases.CASES[case][0]
    directory = pathlib.Path(directory)
    golden = peft_cases.source(name).load(name)
    (directory / "config.json").write_text(json.dumps(golden["config"]))
    save_file(golden["weights"], directory / "model.safetensors", metadata={"format": "pt"})
    how = {"add_pooling_layer": False} if name == "vit" else {}
    kind = getattr(transformers, golden["config"]["architectures"][0])
    return kind.from_pretrained(directory, dtype=torch.float32, **how)


def run(case, adapter):
    """What a golden holds of a case (peft_cases.load), under the adapter in a directory."""
    with tempfile.TemporaryDirectory() as directory, torch.no_grad():
        model = peft.PeftModel.from_pretrained(base(case, directory), adapter).eval()
        given = {name: torch.tensor(x) for name, x in peft_cases.inputs(case).items()}
        out = model(**given)
        if "pixel_values" in given:
            pair = "input_ids" in given
            return (torch.cat([out.image_embeds, out.text_embeds]) if pair else out.last_hidden_state).numpy()
        logits = out.logits.numpy()
    return logits[:, -given.get("decoder_input_ids", given["input_ids"]).shape[1] :]


def goldens():
    names, logits = {}, {}
    for case, (_, kind, how) in peft_cases.CASES.items():
        with tempfile.TemporaryDirectory() as directory, tempfile.TemporaryDirectory() as adapter:
            made = peft.get_peft_model(base(case, directory), getattr(peft, kind)(**how))
            made.save_pretrained(adapter)
            file = pathlib.Path(adapter, "adapter_model.safetensors")
            shapes = {name: list(x.shape) for name, x in load_file(file).items()}
            save_file(peft_cases.drawn(shapes), file, metadata={"format": "pt"})
            config = json.loads(pathlib.Path(adapter, "adapter_config.json").read_text())
            own = {
                "base_model_name_or_path": None,
                "target_modules": sorted(config.get("target_modules") or ()) or None,
            }
            config = {name: x for name, x in (config | own).items() if x is not None}
            names[case], logits[case] = {"config": config, "shapes": shapes}, run(case, adapter)
            print(f"{case}: largest logit {np.abs(logits[case]).max():.2f}")
    np.savez_compressed(peft_cases.GOLDENS, **logits)
    peft_cases.NAMES.write_text(json.dumps(names, indent=1, sort_keys=True) + "\n")


def check(root):
    for case in peft_cases.CASES:
        far = np.abs(run(case, pathlib.Path(root, case)) - peft_cases.load(case)["logits"]).max()
        print(f"{case}: peft reads our adapter; largest difference {far:.1e}")
        if not far <= TOLERANCE:
            sys.exit(f"{case}: what peft reads from our files is not the adapter that was written")


if __name__ == "__main__":
    {"goldens": goldens, "check": check}[sys.argv[1]](*sys.argv[2:])
