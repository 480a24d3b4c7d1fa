"""Writes the goldens of adapters by running the peft library live, then has it read adapters that we wrote.

python -m tests.parity.peft --reference=PYTHON      as `make parity` does
"""

import argparse
import json
import pathlib
import subprocess
import tempfile

import jax
import numpy as np
from safetensors.numpy import save_file

from paradigm import trees
from paradigm.hf import peft
from t5like import hf
from t5like.decode import ModelAlone
from tests.parity import cases, make, peft_cases


def released(case, directory):
    """The directory, with the golden's adapter as peft writes it."""
    directory, golden = pathlib.Path(directory), peft_cases.load(case)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / peft.CONFIG).write_text(json.dumps(golden["config"]))
    save_file(golden["tensors"], directory / peft.TENSORS, metadata={"format": "pt"})
    return directory


def base(case, directory):
    """(modules, params) of the model that a case adapts."""
    return hf.read(make.released(cases.load(peft_cases.CASES[case][0]), directory))


def run(modules, adapt, params, given):
    """(logits float32 [B, L, V], bool [B, L] of the places that have a meaning) by our side."""
    x = {name: value.astype(np.int32) for name, value in given.items()}
    if "decoder_input_ids" in x:
        how = {"inputs": x["input_ids"], "decoder_inputs": x["decoder_input_ids"]}
        how |= {"input_segments": x["attention_mask"], "target_segments": np.ones_like(x["decoder_input_ids"])}
        scored = how["target_segments"]
    else:
        name = "tokens_in" if hasattr(modules["model"], "new_cache") else "tokens"
        how = {name: x["input_ids"], "segments": x["attention_mask"]}
        how |= {"positions": x["position_ids"]} if "position_ids" in x else {}
        scored = x["attention_mask"]
    inputs = [how.pop(n) for n in ("inputs", "decoder_inputs", "tokens_in", "tokens") if n in how]
    objective = ModelAlone(modules["model"], adapt=adapt)
    logits = jax.jit(lambda params: objective.apply("model", {"params": params}, *inputs, **how)[0])(params)
    return np.asarray(logits), np.asarray(scored, bool)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", required=True, help="a Python that has torch, transformers and peft")
    python = parser.parse_args().reference
    subprocess.run([python, "-m", "tests.parity.peft_reference", "goldens"], check=True)
    with tempfile.TemporaryDirectory() as root:
        for case in peft_cases.CASES:
            modules, params = base(case, pathlib.Path(root, f"{case}_base"))
            adapt, own = peft.read(released(case, pathlib.Path(root, f"{case}_read")), modules, hf.FAMILIES, params)
            both = trees.merge(params, own)
            logits, scored = run(modules, adapt, both, peft_cases.inputs(case))
            far = np.abs(logits - peft_cases.load(case)["logits"])[scored].max()
            print(f"{case}: our model under peft's adapter; largest difference {far:.1e}")
            peft.write(pathlib.Path(root, case), modules, hf.FAMILIES, adapt, both)
        subprocess.run([python, "-m", "tests.parity.peft_reference", "check", root], check=True)


if __name__ == "__main__":
    main()
