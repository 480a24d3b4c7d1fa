"""Small encoders, views and batches for the tests of image objectives."""

import functools

import jax
import numpy as np

from paradigm.step import init_state, make_train_step
from vision.augment import Augment
from vision.resnet import resnet
from vision.vit import vit

SIZE, HOST_SIZE, CHANNELS = 16, 20, 3


def encoder(**changes):
    fields = {"d_model": 16, "heads": 2, "d_ff": 32, "layers": 2, "channels": CHANNELS, "pool": "mean"}
    return vit("tiny", SIZE, 4, **fields | changes)


def small_resnet():
    return resnet("tiny", depths=(1, 1), width=0.25)


def views(**changes):
    return Augment(SIZE, **{"scale": (0.5, 1.0), **changes})


def batch_of(size=8, host_size=HOST_SIZE, channels=CHANNELS, classes=3):
    """step -> the numpy batch of that step."""

    def make(step):
        draw = np.random.default_rng(step)
        image = draw.integers(0, 256, (size, 5, 5, channels)).repeat(host_size // 5, 1).repeat(host_size // 5, 2)
        return {
            "image": np.uint8(image),
            "aspect": np.float32(draw.uniform(0.7, 1.4, size)),
            "label": np.int32(draw.integers(0, classes, size)),
            "index": np.stack([np.zeros(size), step * size + np.arange(size)], 1).astype(np.uint32),
            "mask": np.ones(size, np.float32),
        }

    return make


def masked(step):
    """A batch of eight whose last rows are padding."""
    batch = batch_of()(step)
    batch["mask"][6:] = 0
    return batch


@functools.lru_cache
def params(objective):
    return jax.jit(objective.init)(jax.random.key(1))


def traced(objective, optimizer, batch_size=8, freeze=(), **settings):
    """(state, metrics) after a step, as shapes: what refuses an objective does so before anything is compiled."""
    state = jax.eval_shape(lambda: init_state(objective, optimizer, 0, freeze=freeze))
    return jax.eval_shape(make_train_step(objective, optimizer, **settings), state, objective.batch_spec(batch_size))


class Opened:
    """Data as launch hands them to evaluators: records(split), and what a test needs beside."""

    def __init__(self, records, train=None, batch=None):
        self.records, self.train, self._batch = records, train, batch

    def examples(self, count, phase=None):
        return {name: x[:count] for name, x in self._batch.items()}
