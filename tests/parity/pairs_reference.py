"""The transformers library's side of the comparison; needs torch and transformers, and none of our packages.

python -m tests.parity.pairs_reference goldens        writes tests/parity/CASE.npz
python -m tests.parity.pairs_reference check ROOT     loads ROOT/CASE, which we wrote, and compares it with the goldens
"""

import json
import pathlib
import sys
import tempfile

import numpy as np
import torch
import transformers
from safetensors.numpy import save_file

from tests.parity import pairs_cases as cases

TOLERANCE = 1e-4


def _class(case):
    return getattr(transformers, cases.CONFIGS[case]["architectures"][0])


def run(case, directory):
    """name -> array: what the checkpoint in `directory` makes of the inputs."""
    model, report = _class(case).from_pretrained(directory, dtype=torch.float32, output_loading_info=True)
    problems = {k: v for k, v in report.items() if v}
    assert not problems, f"{case}: transformers reports {problems}"
    pixels, ids = cases.inputs(case)
    with torch.no_grad():
        out = model.eval()(pixel_values=torch.tensor(pixels), input_ids=torch.tensor(ids))
    named = {"image": out.image_embeds, "text": out.text_embeds, "logits": out.logits_per_image}
    return {name: x.numpy() for name, x in named.items()}


def goldens():
    for case, config in cases.CONFIGS.items():
        kind = _class(case)
        shapes = {n: list(x.shape) for n, x in kind(kind.config_class(**config)).state_dict().items()}
        shapes = {n: s for n, s in shapes.items() if "position_ids" not in n}
        with tempfile.TemporaryDirectory() as directory:
            pathlib.Path(directory, "config.json").write_text(json.dumps(config))
            weights = {n: cases.weight(n, s) for n, s in shapes.items()}
            save_file(weights, pathlib.Path(directory, "model.safetensors"), metadata={"format": "pt"})
            outputs = run(case, directory)
        path = cases.HERE / f"{case}.npz"
        np.savez_compressed(path, shapes=json.dumps(shapes), **outputs)
        print(f"{path.name}: {path.stat().st_size} bytes; logits {outputs['logits'].round(2).tolist()}")


def check(root):
    for case in cases.CONFIGS:
        golden, outputs = cases.load(case), run(case, pathlib.Path(root, case))
        far = max(np.abs(x - golden[name]).max() for name, x in outputs.items())
        print(f"{case}: transformers reads our files; largest difference {far:.1e}")
        if not far <= TOLERANCE:
            sys.exit(f"{case}: what transformers reads from our files is not the model that was written")


if __name__ == "__main__":
    check(sys.argv[2]) if sys.argv[1] == "check" else goldens()
