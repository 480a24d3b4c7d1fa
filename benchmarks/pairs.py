"""Memory of the pairwise losses and their gradient alone, compiled ahead of time for TPU slices, no TPU needed.

    python -m benchmarks.pairs
    python -m benchmarks.pairs --rows=1024 --dtype=bfloat16 --topology=v5e:2x4 --topology=v5e:8x8

Embeddings are the input, the mesh has a data axis only, and the batch per chip is fixed: bytes per chip must not depend
on the number of chips. One JSON line for each loss and slice: `temporaries` is what the compiler puts into HBM, `peak`
counts the arguments, the results and the vector memory too. Wants libtpu (`pip install 'jax[tpu]'`).
"""

import json
import os
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.sharding import NamedSharding, PartitionSpec

from launch import cli
from paradigm import partition
from paradigm.contrastive import info_nce, nt_xent, sigmoid_pairs

SLICES = ("v5e:2x4", "v5e:8x8", "v5e:16x16")
# libtpu looks for its host's metadata, and complains at length where there is none.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}

LOSSES = {  # (a, b, scale, bias) -> [rows]
    "nt_xent": lambda a, b, scale, bias: nt_xent(a, b, scale)[0],
    "info_nce": lambda a, b, scale, bias: info_nce(a, b, scale)[0],
    "clip": lambda a, b, scale, bias: info_nce(a, b, scale)[0] + info_nce(b, a, scale)[0],
    "sigmoid_pairs": lambda a, b, scale, bias: sigmoid_pairs(a, b, scale, bias)[0],
}


def main(argv):
    del argv
    os.environ.update(ENVIRONMENT)
    jax.config.update("jax_platforms", "cpu")
    for name in LOSSES:
        for topology in TOPOLOGIES.value:
            start = time.perf_counter()
            memory = compiled(name, slice_of(topology), ROWS.value, WIDTH.value, DTYPE.value).memory_analysis()
            row = {
                "loss": name,
                "topology": topology,
                "rows": ROWS.value,
                "dtype": DTYPE.value,
                "temporaries": memory.temp_size_in_bytes,
                "peak": memory.peak_memory_in_bytes,
                "seconds": round(time.perf_counter() - start, 1),
            }
            print(json.dumps(row), flush=True)


def compiled(name, devices, rows, width=512, dtype="float32"):
    """Loss and gradient (by both embeddings, scale and bias) over a data axis of these devices."""
    grid = np.array(devices).reshape(-1, 1, 1)
    mesh = jax.sharding.Mesh(grid, partition.AXES, axis_types=(jax.sharding.AxisType.Auto,) * 3)
    by_row, everywhere = NamedSharding(mesh, PartitionSpec(partition.BATCH)), NamedSharding(mesh, PartitionSpec())
    layout = by_row, by_row, everywhere, everywhere
    embedding = jax.ShapeDtypeStruct((rows * mesh.size, width), dtype)
    scalar = jax.ShapeDtypeStruct((), jnp.float32)
    gradient = jax.value_and_grad(lambda *args: LOSSES[name](*args).mean(), (0, 1, 2, 3))
    with jax.set_mesh(mesh):
        run = jax.jit(gradient, in_shardings=layout, out_shardings=(everywhere, layout))
        return run.lower(embedding, embedding, scalar, scalar).compile()


def slice_of(topology):
    """The chips of a slice with an even side, each a neighbour of the one before it and the last of the first.

    Along such a ring the compiler overlaps a step's permutes with its products. In row-major order, whose ends of rows
    are far apart, it does not (seen from 8 x 8 on), and each turn waits.
    """
    from jax.experimental import topologies

    chips = {tuple(d.coords[:2]): d for d in topologies.get_topology_desc(topology, platform="tpu").devices}
    width, height = (max(axis) + 1 for axis in zip(*chips))
    if height % 2:
        sys.exit(f"{topology}: a closed path over its chips is only known here for an even second side")
    path = [(0, y) for y in range(height)]  # down the first column, and back in turns over the rest
    for y in reversed(range(height)):
        across = range(1, width) if (height - 1 - y) % 2 == 0 else range(width - 1, 0, -1)
        path += [(x, y) for x in across]
    return [chips[at] for at in path]


if __name__ == "__main__":
    ROWS = flags.DEFINE_integer("rows", 128, "Examples per chip.", lower_bound=1)
    WIDTH = flags.DEFINE_integer("width", 512, "Width of an embedding.", lower_bound=1)
    DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of the embeddings.")
    TOPOLOGIES = flags.DEFINE_multi_string("topology", SLICES, "A slice; repeatable.")
    cli.run(main)
