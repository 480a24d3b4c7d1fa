"""CoCa: writes the golden by running open_clip live, then has it read files that we wrote.

    python -m tests.parity.coca --reference=PYTHON

PYTHON is an interpreter with torch, safetensors and open_clip (pip install open_clip_torch); ours needs none of them.
"""

import argparse
import json
import pathlib
import subprocess
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from multimodal import hf
from paradigm.hf import OPEN_CLIP
from tests.parity import coca_cases as cases


def released(golden, directory):
    """The directory, with the golden's configuration and weights as open_clip's files have them."""
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / OPEN_CLIP[0]).write_text(json.dumps(golden["config"]))
    save_file(golden["weights"], directory / OPEN_CLIP[1], metadata={"format": "pt"})
    return directory


def run(objective, params):
    """Our side, name -> array, of what the golden holds."""
    pixels, ids = cases.inputs()
    tokens = jnp.int32(np.pad(ids, ((0, 0), (0, 1))))  # of the last one nothing is predicted, here it is not read

    @jax.jit
    def both(params, pixels):
        variables = {"params": params}
        image, text = objective.embed_images(variables, pixels), objective.embed_texts(variables, tokens)
        seen = objective.see(variables, pixels)
        hidden = objective.apply("text", variables, seen, tokens[:, :-2], method="decode")[0]
        logits = objective.apply("text", variables, hidden, method="score")[0]
        return {"image": image, "text": text, "logits": jnp.where(cases.real(ids), logits, 0.0)}

    return both(params, pixels.transpose(0, 2, 3, 1))


def largest(ours, golden):
    return max(float(np.abs(np.asarray(x) - golden[name]).max()) for name, x in ours.items())


def main(python):
    subprocess.run([python, "-m", "tests.parity.coca_reference", "golden"], check=True)
    with tempfile.TemporaryDirectory() as root:
        golden = cases.load()
        objective, params = hf.read_objective(released(golden, pathlib.Path(root, "released")))
        print(f"coca: our model from its files; largest difference {largest(run(objective, params), golden):.1e}")
        hf.write_objective(pathlib.Path(root, "coca"), objective, params)
        subprocess.run([python, "-m", "tests.parity.coca_reference", "check", f"{root}/coca"], check=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", required=True, help="a Python that has torch, open_clip and safetensors")
    main(parser.parse_args().reference)
