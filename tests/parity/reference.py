"""The transformers library's side of the comparison; run by tests.parity.make under a Python that has torch.

python -m tests.parity.reference goldens        writes tests/parity/CASE.npz
python -m tests.parity.reference beams          writes tests/parity/beams.npz
python -m tests.parity.reference configs        writes tests/parity/configs.json
python -m tests.parity.reference check ROOT     loads ROOT/CASE, which we wrote, and compares it with the goldens
"""

import json
import pathlib
import sys
import tempfile

import numpy as np
import torch
import transformers
from safetensors.numpy import save_file

from tests.parity import cases, pairs_cases, vision_cases

TOLERANCE = 1e-4


def model_class(case):
    return getattr(transformers, cases.CONFIGS[case]["architectures"][0])


def shapes(case):
    """name -> shape of what a released checkpoint of this kind holds: each tied matrix once, under its first name."""
    config = model_class(case).config_class(**cases.CONFIGS[case])
    state = {name: list(x.shape) for name, x in model_class(case)(config).state_dict().items()}
    tied = [
        f"{model}{side}.embed_tokens.weight" for model in ("", "model.") for side in ("encoder", "decoder")
    ]  # always
    tied += [f"{head}.decoder.{kind}" for head in ("cls.predictions", "lm_head") for kind in ("weight", "bias")]
    if cases.CONFIGS[case].get("tie_word_embeddings", True):  # mT5's says nothing: it has an output matrix or none
        tied.append("lm_head.weight")
    return {name: shape for name, shape in state.items() if name not in tied}


def run(case, directory):
    """(logits float32 [B, L, V], loss float32 [], greedily generated [B, NEW]) of the checkpoint in `directory`."""
    model, report = model_class(case).from_pretrained(directory, dtype=torch.float32, output_loading_info=True)
    problems = {k: v for k, v in report.items() if v}
    assert not problems, f"{case}: transformers reports {problems}"
    tensors = lambda arrays: {name: torch.tensor(x) for name, x in arrays.items()}
    how = {"max_new_tokens": cases.NEW, "min_new_tokens": cases.NEW, "do_sample": False, "pad_token_id": 0}
    how |= {"forced_bos_token_id": None, "forced_eos_token_id": None}
    with torch.no_grad():
        out = model.eval()(**tensors(cases.inputs(case)))
        if cases.masked(case):
            return out.logits.numpy(), out.loss.numpy(), np.zeros((0, cases.NEW), np.int32)
        generated = model.generate(**tensors(cases.prompt(case)), **how)[:, -cases.NEW :]
    return out.logits.numpy(), out.loss.numpy(), generated.numpy().astype(np.int32)


def goldens():
    for case, config in cases.CONFIGS.items():
        names = shapes(case)
        with tempfile.TemporaryDirectory() as directory:
            pathlib.Path(directory, "config.json").write_text(json.dumps(config))
            weights = {name: cases.weight(name, shape) for name, shape in names.items()}
            save_file(weights, pathlib.Path(directory, "model.safetensors"), metadata={"format": "pt"})
            logits, loss, generated = run(case, directory)
        path = cases.HERE / f"{case}.npz"
        np.savez_compressed(path, shapes=json.dumps(names), logits=logits, loss=loss, generated=generated)
        print(f"{path.name}: {path.stat().st_size} bytes, loss {loss:.4f}, largest logit {np.abs(logits).max():.2f}")


def beams():
    """Texts and scores of the library's beam search, and its arguments, of every model that generates: beams.npz."""
    found = {}
    for case in cases.CONFIGS:
        if cases.masked(case):
            continue
        golden = cases.load(case)
        with tempfile.TemporaryDirectory() as directory:
            pathlib.Path(directory, "config.json").write_text(json.dumps(golden["config"]))
            save_file(golden["weights"], pathlib.Path(directory, "model.safetensors"), metadata={"format": "pt"})
            model = model_class(case).from_pretrained(directory, dtype=torch.float32).eval()
        given = {name: torch.tensor(x) for name, x in cases.prompt(case).items()}
        how = {"max_new_tokens": cases.NEW, "do_sample": False, "pad_token_id": 0, "return_dict_in_generate": True}
        how |= {"forced_bos_token_id": None, "forced_eos_token_id": None, "output_scores": True}
        with torch.no_grad():
            out = model.generate(**given, **how, **cases.BEAMS, num_return_sequences=cases.BEAMS["num_beams"])
        new = out.sequences[:, (1 if model.config.is_encoder_decoder else given["input_ids"].shape[1]) :].numpy()
        ended = np.cumsum(new == golden["config"].get("eos_token_id", 1), axis=1)
        new = np.where(
            np.pad(ended, ((0, 0), (1, 0)))[:, :-1] > 0, 0, new
        )  # the library goes on with eos, for pad is 0
        found[case] = np.pad(new, ((0, 0), (0, cases.NEW - new.shape[1]))).astype(np.int32)
        found[f"{case}_scores"] = out.sequences_scores.numpy()
        print(case, found[case][0], found[f"{case}_scores"])
    np.savez_compressed(cases.HERE / "beams.npz", **found)


def configs():
    """Every entry that the library writes for these models, and for those of the other files: configs.json."""
    found = {}
    for of_kind in (cases, vision_cases, pairs_cases):
        for case, config in of_kind.CONFIGS.items():
            if config["model_type"] != "resnet":
                kind = getattr(transformers, config["architectures"][0]).config_class
                found[case] = kind(**config).to_dict() | {"architectures": config["architectures"]}
    (cases.HERE / "configs.json").write_text(json.dumps(found, indent=1) + "\n")


def check(root):
    for case in cases.CONFIGS:
        golden = cases.load(case)
        logits, loss, generated = run(case, pathlib.Path(root, case))
        far = max(np.abs(logits - golden["logits"]).max(), np.abs(loss - golden["loss"]))
        print(f"{case}: transformers reads our files; largest difference {far:.1e}")
        if not (far <= TOLERANCE and np.array_equal(generated, golden["generated"])):
            sys.exit(f"{case}: what transformers reads from our files is not the model that was written")


if __name__ == "__main__":
    {"goldens": goldens, "beams": beams, "configs": configs, "check": check}[sys.argv[1]](*sys.argv[2:])
