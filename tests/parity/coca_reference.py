"""open_clip's side of the comparison; needs torch and open_clip, and none of our packages.

python -m tests.parity.coca_reference golden          writes tests/parity/coca.npz
python -m tests.parity.coca_reference check DIR       loads DIR, which we wrote, and compares it with the golden
"""

import json
import pathlib
import sys

import numpy as np
import torch
from open_clip.coca_model import CoCa
from safetensors.torch import load_file

from tests.parity import coca_cases as cases

TOLERANCE = 1e-4


def run(config, state):
    """name -> array: what the model makes of the inputs."""
    config = {name: x for name, x in config.items() if name != "custom_text"}
    names = ("embed_dim", "multimodal_cfg", "text_cfg", "vision_cfg")
    model = CoCa(*(config[name] for name in names), quick_gelu=config.get("quick_gelu", False)).eval()
    model.load_state_dict(state)
    pixels, ids = cases.inputs()
    with torch.no_grad():
        out = model(torch.tensor(pixels), torch.tensor(ids))
    logits = np.where(cases.real(ids), out["logits"].numpy(), 0.0)
    return {"image": out["image_features"].numpy(), "text": out["text_features"].numpy(), "logits": logits}


def golden():
    config = cases.CONFIG
    model = CoCa(config["embed_dim"], config["multimodal_cfg"], config["text_cfg"], config["vision_cfg"])
    shapes = {name: list(x.shape) for name, x in model.state_dict().items()}
    state = {name: torch.tensor(x) for name, x in cases.weights(shapes).items()}
    outputs = run(config, state)
    np.savez_compressed(cases.HERE / "coca.npz", shapes=json.dumps(shapes), **outputs)
    print(f"coca.npz: image {outputs['image'][0, :3]}, text {outputs['text'][0, :3]}")


def check(directory):
    entries = json.loads(pathlib.Path(directory, "open_clip_config.json").read_text())["model_cfg"]
    outputs = run(entries, load_file(pathlib.Path(directory, "open_clip_model.safetensors")))
    wanted = cases.load()
    far = max(np.abs(x - wanted[name]).max() for name, x in outputs.items())
    print(f"coca: open_clip reads our files; largest difference {far:.1e}")
    if not far <= TOLERANCE:
        sys.exit("coca: what open_clip reads from our files is not the model that was written")


if __name__ == "__main__":
    check(sys.argv[2]) if sys.argv[1] == "check" else golden()
