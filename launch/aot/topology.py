"""Accelerators that a program can be compiled for on a machine that has none: 'v5e:16x16' -> devices to compile for.

What a chip can do is from Google Cloud's pages on each TPU version (docs.cloud.google.com/tpu/docs/v5e, v5p, v6e, v4)
and NVIDIA's data sheet of the H100 SXM. What a program may use of its memory is what the compiler says it may.
"""

import dataclasses
import importlib.util
import math
import os
import re

from paradigm.errors import UserError

GIB = 1 << 30


@dataclasses.dataclass(frozen=True)
class Chip:
    """What one chip can do.

    Attributes:
        flops: bfloat16 FLOP/s.
        hbm: bytes that a program may use, as its compiler says.
        bandwidth: bytes/s of that memory.
        link: bytes/s that one chip sends in a ring along one axis of the torus, both directions together.
        network: bytes/s a chip of the data-center network, between slices.
        shapes: the slices that are sold; any shape of the same rank compiles.
        host: chips of one host of a slice of several hosts.
    """

    flops: float
    hbm: int
    bandwidth: float
    link: float
    network: float
    shapes: tuple[str, ...]
    host: int = 4


FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16")
CHIPS = {  # link: bidirectional bandwidth of all ports, over their number
    "v4": Chip(275e12, int(30.75 * GIB), 1200e9, 600e9 / 6, 6.25e9, CUBES),
    "v5e": Chip(197e12, int(15.75 * GIB), 819e9, 400e9 / 4, 3.125e9, FLAT),
    "v5p": Chip(459e12, int(95.74 * GIB), 2765e9, 1200e9 / 6, 6.25e9, CUBES),
    "v6e": Chip(918e12, int(31.25 * GIB), 1600e9, 800e9 / 4, 12.5e9, FLAT),
    "h100": Chip(989e12, int(79 * GIB), 3352e9, 450e9, 50e9, ("8", "16", "32", "64", "128", "256"), 8),
}
# The compiler asks for a description of a GPU that it cannot see: XLA's GpuTargetConfigProto in its text form.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448 threads_per_core_limit: 2048
  core_count: 132 fpus_per_core: 128 registers_per_core_limit: 65536 registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98 device_memory_size: 84978434048
  cuda_compute_capability { major: 9 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
runtime_version { major: 12 minor: 8 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


@dataclasses.dataclass(frozen=True)
class Topology:
    """`slices` slices of a shape of chips. chip: None for virtual CPU devices, of which nothing is known."""

    name: str
    kind: str
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def chip(self):
        return CHIPS.get(self.kind)

    @property
    def chips(self):
        return math.prod(self.shape) * self.slices

    def devices(self):
        """Devices that can be compiled for and on which nothing can run (the virtual ones of a CPU can). Call it before
        anything uses a device.

        Raises:
            UserError: the compiler is not installed, or refuses the shape.
        """
        import jax

        jax.config.update("jax_platforms", "cpu")
        if self.kind == "cpu":
            jax.config.update("jax_num_cpu_devices", self.chips)
            return jax.devices()
        from jax.experimental import topologies

        call = self._gpu if self.kind == "h100" else self._tpu
        try:
            return topologies.get_topology_desc(**call()).devices
        except (RuntimeError, NotImplementedError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"--topology={self.name}: its compiler refuses it: {str(error).splitlines()[0]}") from error

    def _tpu(self):
        if not importlib.util.find_spec("libtpu"):
            raise UserError(f"--topology={self.name}: no TPU compiler here: pip install -e '.[aot]' (cpu:N needs none)")
        # libtpu looks for a TPU's metadata server and a host's name, and complains where there are none.
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
        os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # a compiler holds no chip that it must not share
        os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")
        os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
        call = {"platform": "tpu", "topology_name": f"{self.kind}:{_text(self.shape)}"}
        if self.slices > 1:
            call["num_slices"] = self.slices
        if self.kind == "v4":  # one device a chip; without it two
            call["chip_config_name"] = "megacore"
        if self.shape == (1, 1):  # a part of a host
            call["chips_per_host_bounds"] = [1, 1, 1]
        return call

    def _gpu(self):
        if not importlib.util.find_spec("jax_plugins.xla_cuda12"):
            raise UserError(
                f"--topology={self.name}: no GPU compiler here: pip install -e '.[cuda]' (cpu:N needs none)"
            )
        (count,) = self.shape
        hosts = -(-count // CHIPS[self.kind].host)
        return {
            "platform": "cuda",
            "topology_name": "",
            "topology": f"{self.slices}x{hosts}x{count // hosts}",
            "target_config": H100,
        }


def parse_topology(name, slices=1):
    """'v5e:16x16' -> Topology. Raises UserError, which lists the known ones."""
    kind, _, shape = name.partition(":")
    known = [*CHIPS, "cpu"]
    rank = 1 if kind == "cpu" else len(CHIPS[kind].shapes[0].split("x")) if kind in CHIPS else 0
    if kind not in known or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape) or shape.count("x") + 1 != rank:
        listed = "; ".join(f"{k}:{{{','.join(chip.shapes)}}}" for k, chip in CHIPS.items())
        raise UserError(f"--topology={name} is not known; there are {listed}; cpu:N for N virtual devices")
    if slices < 1:
        raise UserError(f"--slices={slices} must be at least 1")
    return Topology(name, kind, tuple(map(int, shape.split("x"))), slices)


def _text(shape):
    return "x".join(map(str, shape))
