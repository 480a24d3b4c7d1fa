"""Pairs of towers: writes the goldens by running the transformers library live, then has it read files that we wrote.

    python -m tests.parity.pairs --reference=PYTHON      as `make parity` does

PYTHON is an interpreter with torch, transformers and safetensors; ours needs none of them.
"""

import argparse
import pathlib
import subprocess
import tempfile

import jax
import numpy as np

from multimodal import hf
from tests.parity import pairs_cases as cases
from tests.parity.make import released


def run(case, objective, params):
    """Our side, name -> array, of what a golden holds."""
    pixels, ids = cases.inputs(case)

    @jax.jit
    def both(params, pixels, ids):
        image = objective.embed_images({"params": params}, pixels)
        text = objective.embed_texts({"params": params}, ids)
        return {"image": image, "text": text, "logits": objective.logits(params, image, text)}

    return both(params, pixels.transpose(0, 2, 3, 1), ids.astype(np.int32))


def largest(ours, golden):
    return max(float(np.abs(np.asarray(x) - golden[name]).max()) for name, x in ours.items())


def main(python):
    subprocess.run([python, "-m", "tests.parity.pairs_reference", "goldens"], check=True)
    with tempfile.TemporaryDirectory() as root:
        for case in cases.CONFIGS:
            golden = cases.load(case)
            objective, params = hf.read_objective(released(golden, pathlib.Path(root, case + "_released")))
            far = largest(run(case, objective, params), golden)
            print(f"{case}: our model from its files; largest difference {far:.1e}")
            hf.write_objective(pathlib.Path(root, case), objective, params)
        subprocess.run([python, "-m", "tests.parity.pairs_reference", "check", root], check=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", required=True, help="a Python that has torch, transformers and safetensors")
    main(parser.parse_args().reference)
