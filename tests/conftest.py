"""What every test stands on: eight virtual CPU devices, parsed absl flags, and a compilation cache shared between runs.

With JAX_PLATFORMS=cuda the tests marked `gpu` run, on the GPU, and no others: `JAX_PLATFORMS=cuda pytest tests -m gpu`.

The environment is set before anything imports jax. `PJRT_NPROC` sizes XLA's thread pool: with fewer threads than about
twice the devices, collectives between virtual devices deadlock on a small machine.

Nearly all of the tests' time is the compiler's, so it optimises nothing here and takes the emitter of fused loops that
compiles in half the time and memory, where there is a choice, and cuts no program into parts, which costs a quarter
more; unless XLA_FLAGS names a level, as `make test-all` does to compile as a run does. Tests that compare bits compare
two programs of one level. What a program keeps of the lines that it comes from is the innermost: the other nine are a
third of what it takes to write it down.
"""

import gc
import importlib.metadata
import math
import os
import pathlib
import sys

GPU = os.environ.get("JAX_PLATFORMS") == "cuda"
if not GPU:
    os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["PJRT_NPROC"] = "32"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
if "--xla_backend_optimization_level" not in os.environ["XLA_FLAGS"]:
    os.environ["XLA_FLAGS"] += " --xla_backend_optimization_level=0"
    if importlib.metadata.version("jax").startswith("0.10."):
        os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "1")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parent.parent / ".cache" / "xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

import jax
import pytest
from absl import flags

from tests import long

flags.FLAGS.mark_as_parsed()  # grain and absl.logging read flags; pytest never parses them


# A file is one worker's: what takes a minute and more begins first, or one worker works alone at the end.
LONGEST = ("launch/test_configs", "launch/storage/test_gcs", "adapt/test_methods", "launch/run/test_two_processes",
           "multimodal/test_contract", "multimodal/test_captioners", "vision/test_beit", "launch/test_tasks",
           "paradigm/test_transformer", "t5like/test_sentences", "t5like/test_contract", "launch/run/test_loop",
           "vision/test_multi_crop", "launch/run/test_resume")  # fmt: skip


def pytest_collection_modifyitems(items):
    ranks = {pathlib.Path(__file__).parent / f"{name}.py": rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path, len(ranks)))
    left = long.listed()
    for item in items:
        if long.is_long(item.nodeid, left):
            item.add_marker(pytest.mark.long)
        if (item.get_closest_marker("gpu") is not None) != GPU:
            why = "JAX_PLATFORMS=cuda runs those marked gpu alone" if GPU else "it needs a GPU, and JAX_PLATFORMS=cuda"
            item.add_marker(pytest.mark.skip(reason=why))


# Tracing makes many objects and hardly any garbage: with Python's own bounds a seventh of its time is spent looking.
gc.set_threshold(50_000, 20, 20)
MOST = 2.5e9  # bytes of a worker


def pytest_collection_finish(session):
    gc.freeze()  # modules and tests, which stay


@pytest.fixture(autouse=True, scope="module")
def little_memory_of_other_modules():
    """What is compiled is most of a worker's memory; the next file needs the same small programs again."""
    yield
    if _resident() > MOST:  # to look for garbage takes a second with as many objects as there are by then
        jax.clear_caches()
        gc.collect()


def _resident():
    """Bytes of memory that this process has; where that is not to be read, more than any bound."""
    try:
        return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return math.inf


@pytest.fixture(autouse=True)
def no_curves(request, monkeypatch):
    """loss.png takes half the time of a small run: it is drawn where a test is about it, and elsewhere merely there."""
    writers = sys.modules.get("launch.run.writers")
    if writers is not None and request.path.name != "test_writers.py":
        there = lambda rows: any(row.get(f"{part}/loss") is not None for row in rows for part in ("train", "valid"))
        write = lambda path, rows, title="": writers.replace(path, b"\x89PNG") if there(rows) else None
        monkeypatch.setattr(writers, "draw_loss", write)
