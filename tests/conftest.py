"""What every test stands on: eight virtual CPU devices, parsed absl flags, and a compilation cache shared between runs.

The environment is set before anything imports jax. `PJRT_NPROC` sizes XLA's thread pool: with fewer threads than about
twice the devices, collectives between virtual devices deadlock on a small machine.
"""

import os
import pathlib

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["PJRT_NPROC"] = "32"
os.environ["XLA_FLAGS"] = (os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8").strip()
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parent.parent / ".cache" / "xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

from absl import flags

flags.FLAGS.mark_as_parsed()  # grain and absl.logging read flags; pytest never parses them
