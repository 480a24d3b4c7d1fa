"""The host process: huge pages for the memory that XLA's CPU backend maps and returns at every step."""

import ctypes
import hashlib
import os
import pathlib
import platform
import sys

from paradigm.storage import expand

_TUNABLE = "glibc.malloc.hugetlb=1"


def enable_huge_pages():
    """Restarts this program with glibc's malloc asking for transparent huge pages. Call it first in a main, before jax.

    XLA allocates all temporaries of a step at its start and frees them at its end, and glibc returns such blocks to the
    kernel: every step takes over a hundred thousand page faults. Huge pages make them some hundreds; a step on CPU
    takes 10 to 20 % less time. glibc reads the setting (GLIBC_TUNABLES, since 2.35) only when a process starts, hence
    the restart: some 20 ms, the same process id, arguments and environment otherwise. Nothing happens where it is set
    already, where GLIBC_TUNABLES sets something else for hugetlb, or off Linux with glibc.
    """
    set_now = os.environ.get("GLIBC_TUNABLES", "")
    if "malloc.hugetlb" in set_now or platform.libc_ver()[0] != "glibc":
        return
    os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, (set_now, _TUNABLE)))
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def return_pages():
    """Gives the kernel what malloc holds free: 100 to 200 MB after an initialisation or a compilation."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def enable_compilation_cache(place):
    """Has jax keep compiled programs below a directory for the next start; '' keeps none.

    A program for a CPU is made for that CPU's instructions, and one home directory may serve several kinds of machine:
    each kind has a directory of its own. A damaged or foreign entry is compiled anew, with a warning.
    """
    import jax

    if place:
        found = pathlib.Path("/proc/cpuinfo")
        lines = found.read_text().splitlines() if found.exists() else [platform.processor()]
        kind = next((line for line in lines if line.startswith(("flags", "Features"))), lines[0])
        kind = hashlib.sha256(f"{platform.machine()} {kind}".encode()).hexdigest()[:8]
        jax.config.update("jax_compilation_cache_dir", str(expand(place) / kind))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def compiler_options(platform_name):
    """For `lowered.compile(...)` of a step on this platform; the one place where such options are set.

    On CPU, operations ordered for the least memory. On TPU none: what MaxText sets beside the defaults
    (benchmarks/xla_flags_library.py) did not help a scan of four MLPs as libtpu 0.0.42 compiles it for v5e:4x4.
    CF_FOR_ALL_REDUCE over data:16 left the all-reduces synchronous; with LAYOUT_FOR_ALL_REDUCE_SCATTER over fsdp:16,
    gathers stayed as they were; the estimate of launch.compile moved by 1 % and not at all.
    """
    return {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"} if platform_name == "cpu" else {}
