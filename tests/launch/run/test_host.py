"""The compilation cache: of one kind of machine, harmless when damaged, and worth having."""

import os
import pathlib
import re
import subprocess
import sys

import jax

from launch.run import host

REPO = pathlib.Path(__file__).parents[3]
CODE = """
import jax, jax.numpy as jnp, jax.monitoring
from launch.run import host
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(1) if name.endswith("/cache_hits") else None)
host.enable_compilation_cache({place!r})
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
print(float(jax.jit(lambda x: jnp.tanh(x @ x).sum())(jnp.ones((64, 64)))), len(hits))
"""


def run(place):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_COMPILATION")}
    command = [sys.executable, "-c", CODE.format(place=str(place))]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    value, hits = done.stdout.split()
    return float(value), int(hits), done.stderr


def test_a_damaged_cache_is_compiled_anew(tmp_path):
    first, hits, _ = run(tmp_path)
    assert hits == 0
    again, hits, _ = run(tmp_path)
    assert again == first and hits > 0
    entries = [path for path in tmp_path.rglob("*-cache") if path.is_file()]
    assert entries
    for n, path in enumerate(sorted(entries)):
        path.write_bytes(path.read_bytes()[: 40 * (n % 2)])  # cut off, or empty
    value, hits, said = run(tmp_path)
    assert value == first and hits == 0 and "Traceback" not in said


def test_each_kind_of_machine_has_a_place_of_its_own(tmp_path, monkeypatch):
    before, kept = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs
    places = []
    for flags in ("flags : sse avx avx512f", "flags : sse avx", "flags : sse avx avx512f"):
        monkeypatch.setattr(pathlib.Path, "read_text", lambda *_, flags=flags: f"processor : 0\n{flags}\n")
        host.enable_compilation_cache(str(tmp_path))
        places.append(jax.config.jax_compilation_cache_dir)
    jax.config.update("jax_compilation_cache_dir", before)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", kept)
    assert places[0] == places[2] != places[1] and all(re.fullmatch(rf"{tmp_path}/[0-9a-f]{{8}}", p) for p in places)
