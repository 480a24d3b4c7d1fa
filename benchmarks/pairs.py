"""Memory of the pairwise losses and their gradient alone, compiled ahead of time for TPU slices, no TPU needed.

    python -m benchmarks.pairs
    python -m benchmarks.pairs --rows=1024 --dtype=bfloat16 --topology=v5e:2x4 --topology=v5e:8x8

Embeddings are the input, the mesh has a data axis only, and the batch per chip is fixed: bytes per chip must not depend
on the number of chips. One JSON line for each loss and slice: `temporaries` is what the compiler puts into HBM, `peak`
counts the arguments, the results and the vector memory too. Wants libtpu (`pip install 'jax[tpu]'`).
"""

import json
import time

import jax
import jax.numpy as jnp
from absl import flags
from jax.sharding import NamedSharding, PartitionSpec

from launch.aot.topology import parse_topology
from launch.run import cli
from launch.run.mesh import make_mesh
from paradigm import partition
from paradigm.contrastive import info_nce, nt_xent, sigmoid_pairs

SLICES = ("v5e:2x4", "v5e:8x8", "v5e:16x16")
LOSSES = {  # (a, b, scale, bias) -> [rows]
    "nt_xent": lambda a, b, scale, bias: nt_xent(a, b, scale)[0],
    "info_nce": lambda a, b, scale, bias: info_nce(a, b, scale)[0],
    "clip": lambda a, b, scale, bias: info_nce(a, b, scale)[0] + info_nce(b, a, scale)[0],
    "sigmoid_pairs": lambda a, b, scale, bias: sigmoid_pairs(a, b, scale, bias)[0],
}


def main(argv):
    del argv
    for name in LOSSES:
        for topology in TOPOLOGIES.value:
            start = time.perf_counter()
            memory = compiled(
                name, parse_topology(topology).devices(), ROWS.value, WIDTH.value, DTYPE.value
            ).memory_analysis()
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
    mesh = make_mesh("data:-1", devices)
    by_row, everywhere = NamedSharding(mesh, PartitionSpec(partition.BATCH)), NamedSharding(mesh, PartitionSpec())
    layout = by_row, by_row, everywhere, everywhere
    embedding = jax.ShapeDtypeStruct((rows * mesh.size, width), dtype)
    scalar = jax.ShapeDtypeStruct((), jnp.float32)
    gradient = jax.value_and_grad(lambda *args: LOSSES[name](*args).mean(), (0, 1, 2, 3))
    with jax.set_mesh(mesh):
        run = jax.jit(gradient, in_shardings=layout, out_shardings=(everywhere, layout))
        return run.lower(embedding, embedding, scalar, scalar).compile()


if __name__ == "__main__":
    ROWS = flags.DEFINE_integer("rows", 128, "Examples per chip.", lower_bound=1)
    WIDTH = flags.DEFINE_integer("width", 512, "Width of an embedding.", lower_bound=1)
    DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of the embeddings.")
    TOPOLOGIES = flags.DEFINE_multi_string("topology", SLICES, "A slice; repeatable.")
    cli.run(main)
