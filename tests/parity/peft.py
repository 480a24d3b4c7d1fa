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

from launch.run import pretrained
from multimodal.hf import Absent
from multimodal.objectives import CLIP
from paradigm import trees
from paradigm.hf import peft
from t5like.decode import ModelAlone
from tests.parity import make, peft_cases
from vision.augment import no_views
from vision.objectives import Classify

FAMILIES = pretrained.families()


def released(case, directory):
    """The directory, with the golden's adapter as peft writes it."""
    directory, golden = pathlib.Path(directory), peft_cases.load(case)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / peft.CONFIG).write_text(json.dumps(golden["config"]))
    save_file(golden["tensors"], directory / peft.TENSORS, metadata={"format": "pt"})
    return directory


def base(case, directory):
    """(modules, params) of the model that a case adapts."""
    name = peft_cases.CASES[case][0]
    return pretrained.read(make.released(peft_cases.source(name).load(name), directory))


def see(modules, adapt, params, given):
    """Hidden states [B, 1 + N, D] of a ViT, or unit vectors [B + T, E] of CLIP."""
    size = modules["encoder"].image_size
    common = {"encoder": modules["encoder"], "augment": no_views(size), "host_image_size": size, "adapt": adapt}
    images = given["pixel_values"].transpose(0, 2, 3, 1)
    if "text" in modules:
        text = modules["text"]
        how = {"text": text, "width": modules["text_head"].width, "tokenizer": Absent(text.vocab_size, text.end_id)}
        objective = CLIP(**common, **how)
        ids = given["input_ids"].astype(np.int32)
        both = lambda v: (objective.embed_images(v, images), objective.embed_texts(v, ids))
        return np.concatenate(jax.jit(both)({"params": params}))
    objective = Classify(**common, classes=2)
    _, seen = jax.jit(lambda v: objective.features(v, images))({"params": params})
    return np.concatenate([seen["class"][:, None], seen["patches"]], 1)


def run(modules, adapt, params, given):
    """(what a golden holds, see peft_cases.load; bool [B, L] of the places that have a meaning) by our side."""
    if "pixel_values" in given:
        found = see(modules, adapt, params, given)
        return found, np.ones(found.shape, bool)
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
            adapt, own = peft.read(released(case, pathlib.Path(root, f"{case}_read")), modules, FAMILIES, params)
            both = trees.merge(params, own)
            logits, scored = run(modules, adapt, both, peft_cases.inputs(case))
            far = np.abs(logits - peft_cases.load(case)["logits"])[scored].max()
            print(f"{case}: our model under peft's adapter; largest difference {far:.1e}")
            peft.write(pathlib.Path(root, case), modules, FAMILIES, adapt, both)
        subprocess.run([python, "-m", "tests.parity.peft_reference", "check", root], check=True)


if __name__ == "__main__":
    main()
