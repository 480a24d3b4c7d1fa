"""Image models: writes the goldens by running the transformers library live, then has it read files that we wrote.

    python -m tests.parity.vision --reference=PYTHON      as `make parity` does

PYTHON is an interpreter with torch, transformers and safetensors; ours needs none of them.
"""

import argparse
import functools
import pathlib
import re
import subprocess
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

from paradigm import trees
from tests.parity import vision_cases as cases
from tests.parity.make import released
from vision import hf
from vision.augment import no_views
from vision.hf.mae import MAE_FAMILY
from vision.objectives.mae import MAE
from vision.resnet import resnet

RESNETS = {
    "resnet_18": resnet("18", depths=(1, 2, 1), width=1 / 8),
    "resnet_50": resnet("50", depths=(2, 1), width=1 / 8),
}


def channels_last(pixels):
    return jnp.asarray(pixels.transpose(0, 2, 3, 1))


def run(modules, params, golden):
    """Our side, name -> array, of what a golden of an encoder, ViT-MAE or BEiT holds."""
    images, mask = channels_last(golden["inputs"]["pixel_values"]), golden["inputs"].get("bool_masked_pos")
    if golden["config"]["model_type"] == "data2vec-vision":
        found = _data2vec(modules["encoder"], params["encoder"], images, mask)
        return {name: found[name] for name in ("hidden", "pooled") if name in golden}
    if mask is not None:
        return {"logits": _logits(*modules.values(), params, images, jnp.asarray(mask))}
    return (_mae if "decoder" in modules else _vit)(modules, params, images, golden)


@functools.partial(jax.jit, static_argnums=0)
def _hidden(encoder, params, images):
    _, intermediates = encoder.apply({"params": params}, images)
    first = [intermediates["class"][:, None]] if encoder.class_token else []
    return jnp.concatenate([*first, intermediates["patches"]], 1)


@functools.partial(jax.jit, static_argnums=0)
def _data2vec(encoder, params, images, mask):
    pooled, seen = encoder.apply({"params": params}, images, mask=mask)
    return {"hidden": jnp.concatenate([seen["class"][:, None], seen["patches"]], 1), "pooled": pooled}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _logits(encoder, decoder, params, images, mask):
    _, intermediates = encoder.apply({"params": params["encoder"]}, images, mask=mask)
    return decoder.apply({"params": params["decoder"]}, intermediates["patches"])[0]


def _vit(modules, params, images, golden):
    del golden
    hidden = lambda images: _hidden(modules["encoder"], params["encoder"], images)
    if modules["encoder"].registers:  # read by nobody, and resized in another way
        return {"hidden": hidden(images)}
    return {"hidden": hidden(images), "larger": hidden(channels_last(cases.larger()))}


@functools.partial(jax.jit, static_argnums=0)
@functools.partial(jax.value_and_grad, argnums=1, has_aux=True)
def _compare(objective, params, images, ids_shuffle):
    """((loss, predicted), gradient) of MAE for these ids_shuffle."""
    predicted = objective.predict({"params": params}, images, ids_shuffle)
    return jnp.mean(jnp.square(predicted - objective.target(images, ids_shuffle)[0])), predicted


def _mae(modules, params, images, golden):
    """With the library's noise in place of our own; what it predicts for visible patches, which we do not, is left."""
    encoder, decoder = modules["encoder"], modules["decoder"]
    objective = MAE(
        encoder=encoder,
        augment=no_views(encoder.image_size),
        host_image_size=encoder.image_size,
        decoder_width=decoder.width,
        decoder_layers=decoder.layers,
        decoder_heads=decoder.heads,
        decoder_d_ff=decoder.d_ff,
        decoder_positions=decoder.positions,
    )
    ids_shuffle = jnp.argsort(jnp.asarray(golden["inputs"]["noise"]), 1)
    (loss, predicted), slopes = _compare(objective, params, images, ids_shuffle)
    logits = np.array(golden["logits"])
    hidden = np.asarray(ids_shuffle[:, objective.kept :])
    np.put_along_axis(logits, hidden[..., None], np.asarray(predicted), 1)
    mask = np.zeros(ids_shuffle.shape, np.float32)
    np.put_along_axis(mask, hidden, 1.0, 1)
    slopes, leaves = dict(trees.named_leaves(slopes)), {x.name: x for x in MAE_FAMILY.leaves(modules)}
    packed = {f"slope:{n}": leaves[n].how.pack([np.asarray(slopes[leaves[n].paths[0]])]) for n in cases.SLOPES}
    return {"loss": loss, "logits": logits, "mask": mask, **packed}


def resnet_variables(tensors):
    """{"params", "batch_stats"} of ours from the library's ResNetModel."""
    ordinal, out = ("first", "second", "third"), {}
    kinds = {
        "convolution.weight": ("params", "conv/kernel"),
        "normalization.weight": ("params", "norm/scale"),
        "normalization.bias": ("params", "norm/bias"),
        "normalization.running_mean": ("batch_stats", "norm/mean"),
        "normalization.running_var": ("batch_stats", "norm/var"),
    }
    for name, x in tensors.items():
        place, kind = name.rsplit(".", 2)[0], ".".join(name.rsplit(".", 2)[1:])
        if kind not in kinds:
            continue  # num_batches_tracked
        if found := re.fullmatch(r"encoder\.stages\.(\d+)\.layers\.(\d+)\.(?:layer\.(\d)|shortcut)", place):
            stage, block, layer = found.groups()
            place = f"stage{stage}_block{block}/{'shortcut' if layer is None else ordinal[int(layer)]}"
        else:
            assert place == "embedder.embedder", name
            place = "stem"
        collection, leaf = kinds[kind]
        out[f"{collection}/{place}/{leaf}"] = x.transpose(2, 3, 1, 0) if x.ndim == 4 else x
    return trees.nested(out)


def run_resnet(case, golden):
    """Our side of a ResNet's golden."""
    model, variables = RESNETS[case], resnet_variables(golden["weights"])
    images = channels_last(golden["inputs"]["pixel_values"])
    wanted = jax.eval_shape(model.init, jax.random.key(0), images)
    variables = jax.tree.map(jnp.asarray, trees.merge_strict(wanted, variables, case))
    pooled, intermediates = model.apply(variables, images)
    (trained, _), _ = model.apply(variables, images, train=True, mutable=["moments"])
    as_theirs = lambda x: np.asarray(x)[..., None, None]
    last = np.asarray(intermediates["stages"][-1]).transpose(0, 3, 1, 2)
    return {"pooled": as_theirs(pooled), "last": last, "trained": as_theirs(trained)}


def largest(ours, golden):
    return max(float(np.abs(np.asarray(x) - golden[name]).max()) for name, x in ours.items())


def write_goldens(python):
    """All of it, under the interpreter that has the library."""
    subprocess.run([python, "-m", "tests.parity.vision_reference", "goldens"], check=True)
    with tempfile.TemporaryDirectory() as root:
        for case in cases.CONFIGS:
            golden = cases.load(case)
            if case in RESNETS:
                print(f"{case}: our model; largest difference {largest(run_resnet(case, golden), golden):.1e}")
                continue
            source = pathlib.Path(root, case + "_released")
            source.mkdir()
            modules, params = hf.read(released(golden, source))
            far = largest(run(modules, params, golden), golden)
            print(f"{case}: our model from its files; largest difference {far:.1e}")
            hf.write(pathlib.Path(root, case), modules, params)
        subprocess.run([python, "-m", "tests.parity.vision_reference", "check", root], check=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", required=True, help="a Python that has torch, transformers and safetensors")
    write_goldens(parser.parse_args().reference)
