"""Writes the goldens by running the transformers library live, then has it read files that we wrote.

    python -m tests.parity.make --reference=PYTHON      as `make parity` does

PYTHON is an interpreter with torch, transformers and safetensors; ours needs none of them.
"""

import argparse
import functools
import json
import pathlib
import subprocess
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from paradigm.hf import CONFIG, TENSORS
from t5like import hf
from tests.parity import cases


def released(golden, directory):
    """The directory, with the golden's config.json and weights as a released checkpoint has them."""
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / CONFIG).write_text(json.dumps(golden["config"]))
    save_file(golden["weights"], directory / TENSORS, metadata={"format": "pt"})
    return directory


_apply = jax.jit(lambda model, variables, arguments: model.apply(variables, **arguments), static_argnums=0)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _detect(model, detector, params, arguments):
    hidden, _ = model.apply({"params": params["model"]}, **arguments, method="hidden")
    return detector.apply({"params": params["detector"]}, hidden)[..., 0]


def run(modules, params, inputs):
    """Our side: (logits float32 [B, L, V], loss [], bool [B, L] of the positions that have a meaning); of ELECTRA's
    discriminator logits [B, L]."""
    x = {name: jnp.asarray(value, jnp.int32) for name, value in inputs.items()}
    if "decoder_input_ids" in x:
        arguments = dict(
            inputs=x["input_ids"],
            decoder_inputs=x["decoder_input_ids"],
            input_segments=x["attention_mask"],
            target_segments=jnp.ones_like(x["labels"]),
        )
        labels, scored = x["labels"], jnp.ones_like(x["labels"])
    elif "position_ids" not in x:
        arguments = dict(tokens=x["input_ids"], segments=x["attention_mask"])
        labels, scored = x["labels"], x["attention_mask"]
    else:
        arguments = dict(tokens_in=x["input_ids"], segments=x["attention_mask"], positions=x["position_ids"])
        labels = jnp.pad(x["labels"][:, 1:], ((0, 0), (0, 1)), constant_values=cases.PAD)  # position t predicts t + 1
        scored = x["attention_mask"]
    if "detector" in modules:
        logits = _detect(modules["model"], modules["detector"], params, arguments)
        nll = jax.nn.softplus(logits) - labels * logits
        loss = jnp.sum(nll * scored) / jnp.sum(scored)
        return np.asarray(logits), float(loss), np.asarray(scored, bool)
    logits, _ = _apply(modules["model"], {"params": params["model"]}, arguments)
    weight = labels != cases.PAD
    nll = -jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.maximum(labels, 0)[..., None], axis=-1)[..., 0]
    return np.asarray(logits), float(jnp.sum(nll * weight) / jnp.sum(weight)), np.asarray(scored, bool)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", required=True, help="a Python that has torch, transformers and safetensors")
    python = parser.parse_args().reference
    for what in ("goldens", "beams", "configs"):
        subprocess.run([python, "-m", "tests.parity.reference", what], check=True)
    with tempfile.TemporaryDirectory() as root:
        for case in cases.CONFIGS:
            golden, source = cases.load(case), pathlib.Path(root, case + "_released")
            source.mkdir()
            modules, params = hf.read(released(golden, source))
            logits, loss, scored = run(modules, params, golden["inputs"])
            far = max(np.abs(logits - golden["logits"])[scored].max(), abs(loss - golden["loss"]))
            print(f"{case}: our model from its files; largest difference {far:.1e}")
            hf.write(pathlib.Path(root, case), modules, params)
        subprocess.run([python, "-m", "tests.parity.reference", "check", root], check=True)
    for others in ("vision", "pairs"):
        subprocess.run([sys.executable, "-m", f"tests.parity.{others}", f"--reference={python}"], check=True)


if __name__ == "__main__":
    main()
