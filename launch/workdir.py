"""The run directory: whose it is, and what it was made with.

config.gin holds the operative configuration, environment.json the versions, the commit, the devices and the time of
every start. Both are there before the first step.
"""

import contextlib
import datetime
import functools
import json
import pathlib
import platform
import subprocess
import sys
from importlib import metadata

import jax

from launch import store
from launch.experiment import config_diff
from launch.writers import replace
from paradigm import storage
from paradigm.errors import UserError
from paradigm.storage import patiently

PACKAGES = "jax jaxlib flax optax orbax-checkpoint grain numpy".split()


def check(workdir, config):
    """Raises UserError where a run directory holds another experiment's run, or things of no known run.

    Args:
        workdir: the directory, a path or a bucket's.
        config: the experiment as text: gin's operative one, or a notebook's resolved settings.
    """
    with _accessible(workdir):
        path = workdir / "config.gin"
        exists = lambda name: patiently((workdir / name).exists)
        begun = [name for name in ("checkpoints", "metrics.jsonl") if exists(name)]
        if begun and exists("config.gin"):  # a start that failed before its first row claims nothing
            if lines := config_diff(patiently(functools.partial(path.read_text, encoding="utf-8")), config):
                raise UserError(
                    f"--workdir={workdir} holds the run of another experiment, which differs in: {'; '.join(lines)}. "
                    "Take another directory, or give the settings of that run"
                )
        elif begun:
            raise UserError(f"--workdir={workdir} has {begun[0]} but no config.gin: take another directory")


def claim(files, config):
    """Makes a run directory where there is none, and writes its two files: call `check` first.

    Args:
        files: the directory, as launch.staging has it. config: as in `check`.

    Raises:
        UserError: the directory cannot be written.
    """
    workdir = files.workdir
    with _accessible(workdir):
        if not store.remote(workdir):
            workdir.mkdir(parents=True, exist_ok=True)
        if jax.process_index() == 0:
            replace(files.local / "config.gin", config.encode())
            _record(files.local / "environment.json")
            files.push()


@contextlib.contextmanager
def _accessible(workdir):
    """What a disk or a bucket raises, as one line."""
    try:
        yield
    except Exception as error:
        if not storage.is_storage(error):
            raise
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:300]
        raise UserError(f"--workdir={workdir} cannot be written ({reason}): take a directory that can") from error


def versions():
    """Python's and those of the packages that decide the numbers."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        found[name] = metadata.version(name)
    return found


def _record(path):
    """This start's environment; those of earlier starts stay in `earlier`."""
    earlier = []
    if path.exists():
        try:
            last = json.loads(path.read_text("utf-8"))
            earlier = [*last.pop("earlier", []), last]
        except ValueError:  # cut off by a full disk: the new one is worth more
            pass
    devices = jax.devices()
    now = {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "versions": versions(),
        "git": _git(),
        "platform": platform.platform(),
        "devices": {"platform": devices[0].platform, "kind": devices[0].device_kind, "count": len(devices)},
        "processes": jax.process_count(),
        "earlier": earlier,
    }
    replace(path, json.dumps(now, indent=1).encode())


def _git():
    """{'commit', 'changed': files that differ from it} of the code, or None outside a repository."""
    git = ["git", "-C", str(pathlib.Path(__file__).parent)]
    call = lambda *args: subprocess.check_output([*git, *args], stderr=subprocess.DEVNULL, text=True, timeout=20)
    try:
        changed = [line[3:] for line in call("status", "--porcelain", "--untracked-files=no").splitlines()]
        return {"commit": call("rev-parse", "HEAD").strip(), "changed": changed}
    except (OSError, subprocess.SubprocessError):
        return None
