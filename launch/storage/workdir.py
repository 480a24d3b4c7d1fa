"""The run directory: whose it is, and what it was made with.

config.gin holds the operative configuration, environment.json the versions, the commit, the devices and the time of
every start. Both are there before the first step, and not before all is found that a run needs. One run holds it.
"""

import contextlib
import datetime
import functools
import hashlib
import json
import pathlib
import platform
import re
import subprocess
import sys
from importlib import metadata

import jax

from launch.storage import filesystem, lock, sync
from launch.storage.checkpoint import Checkpoints
from paradigm import storage
from paradigm.errors import UserError
from paradigm.storage import replace, retry

# What a resumed run may set otherwise than the run that it continues: it changes no batch, no key and no update.
MAY_CHANGE = """total_steps mesh workers log_every eval_every eval_batches evaluators save_every keep best_metric
                best_mode""".split()
PACKAGES = "jax jaxlib flax optax orbax-checkpoint grain numpy".split()


def check(workdir, config, unset=()):
    """Raises UserError where a run directory holds another experiment's run, or things of no known run.

    Args:
        workdir: the directory, a path or a bucket's.
        config: the experiment as text: gin's operative one, or a notebook's resolved settings.
        unset: names of settings in it that are at their default because nobody has set them.
    """
    with _accessible(workdir):
        exists = lambda name: retry((workdir / name).exists)
        begun = [name for name in ("checkpoints", "metrics.jsonl") if exists(name)]
        if begun and exists("config.gin"):  # a start that failed before its first row claims nothing
            if lines := config_diff(config_of(workdir), config, unset):
                raise UserError(
                    f"--workdir={workdir} holds the run of another experiment, which differs in: {'; '.join(lines)}. "
                    "Take another directory, or give the settings of that run"
                )
        elif begun:
            raise UserError(f"--workdir={workdir} has {begun[0]} but no config.gin: take another directory")


def config_of(workdir):
    """What a run directory's config.gin says, or None where it has none; whatever a copy made of its line ends."""
    path = workdir / "config.gin"
    if not retry(path.exists):
        return None
    try:
        return retry(path.read_bytes).decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not as the run wrote it (byte {error.start} is no UTF-8): put it back") from None


@contextlib.contextmanager
def held(workdir):
    """Holds the run directory against other runs while the `with` lasts; process 0 does it for all of a run.

    Raises:
        UserError: another run holds it, or it cannot be made.
    """
    with contextlib.ExitStack() as stack:
        with _accessible(workdir):
            local = sync.local(workdir)
            if jax.process_index() == 0:
                stack.enter_context(lock.locked(local, workdir))
            else:
                local.mkdir(parents=True, exist_ok=True)
        yield


def claim(files, config, imports=(), parameters=None):
    """Writes the two files of a run directory, and the code that it imports: call `check` first.

    Args:
        files: the directory, a launch.storage.sync.WorkdirSync. config: as in `check`.
        imports: {module: files of its source} of code from outside.
        parameters: {"all": how many the model has, "trained": how many of them are trained}.

    Returns:
        Lines on code that is not what an earlier start of this run imported.

    Raises:
        UserError: the directory cannot be written.
    """
    workdir = files.workdir
    with _accessible(workdir):
        if jax.process_index() == 0:
            replace(files.local / "config.gin", config.encode())
            hashes = keep_imports(files.local / "imports", imports)
            before = _record(files.local / "environment.json", hashes, parameters)
            files.push()
            return [
                f"{name} (sha256 {new[:12]}) is not what this run imported before ({before[name][:12]}); both are in "
                f"{files.workdir / 'imports'}"
                for name, new in hashes.items()
                if before.get(name, new) != new
            ]
    return []


def keep_imports(directory, imports):
    """Copies source files into the directory, each under its name and hash; {module, or module/file: its sha256}.

    Args:
        directory: a pathlib.Path, made if need be. imports: {module: files of its source}.
    """
    hashes = {}
    for module, paths in dict(imports).items():
        for path in paths:
            content = path.read_bytes()
            below = path.relative_to(paths[0].parent).as_posix() if len(paths) > 1 else ""
            name = f"{module}/{below}" if below else module
            hashes[name] = hashlib.sha256(content).hexdigest()
            directory.mkdir(exist_ok=True)
            stem = name.removesuffix(".py").replace("/", ".")
            replace(directory / f"{stem}-{hashes[name][:12]}.py", content)
    return hashes


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


def open_run(workdir, step=None):
    """(Checkpoints, verified step) of a run directory, for those who only read.

    Args:
        workdir: a run directory, a path or a URL.
        step: an int or its digits, "best", or None for the newest that is whole.

    Raises:
        UserError: no such directory, nothing saved in it, or what `Checkpoints.find` raises.
    """
    workdir = filesystem.as_path(workdir)
    with filesystem.explained(workdir):
        if not workdir.is_dir():
            raise UserError(f"{workdir}: no such run directory")
    if step not in (None, "best"):
        if not str(step).strip().isdecimal():  # 240.7 and True are no steps either
            raise UserError(f"step={step!r}: write a number or 'best'")
        step = int(step)
    checkpoints = Checkpoints(workdir / "checkpoints")
    found = checkpoints.find(step)
    if found is None:
        run = next((path for path in list(workdir.parents)[:2] if (path / "config.gin").exists()), None)
        fix = f": the run is {run}, and a step is named beside it" if run else ""
        if (workdir / "config.json").exists():
            fix = f": weights of the transformers library begin a run, launch.train --init_from={workdir}"
        raise UserError(f"{checkpoints.directory}: no checkpoint there yet{fix}")
    return checkpoints, found


@functools.cache
def versions():
    """Python's and those of the packages that decide the numbers."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        found[name] = metadata.version(name)
    return found


def _record(path, imports, parameters):
    """This start's environment; those of earlier starts stay in `earlier`. The imports that the last one had."""
    earlier = []
    if path.exists():
        try:
            last = json.loads(path.read_text("utf-8"))
            earlier = [*last.pop("earlier", []), last]
        except (ValueError, TypeError, AttributeError):  # cut off by a full disk: the new one is worth more
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
        "parameters": parameters,
        "imports": imports,
        "earlier": earlier,
    }
    replace(path, json.dumps(now, indent=1).encode())
    return earlier[-1].get("imports", {}) if earlier else {}


def _git():
    """{'commit', 'changed': files that differ from it} of the code, or None outside a repository."""
    git = ["git", "-C", str(pathlib.Path(__file__).parent)]
    call = lambda *args: subprocess.check_output([*git, *args], stderr=subprocess.DEVNULL, text=True, timeout=20)
    try:
        changed = [line[3:] for line in call("status", "--porcelain", "--untracked-files=no").splitlines()]
        return {"commit": call("rev-parse", "HEAD").strip(), "changed": changed}
    except (OSError, subprocess.SubprocessError):
        return None


# --- comparing configurations ----------------------------------------------------------------------------------------


PLACES = ("source", "images", "test_images")  # settings of data that are paths


def config_diff(old: str, new: str, unset=()) -> list[str]:
    """The lines by which two operative gin texts differ in what a resumed run may not change; [] when it may go on.

    Free to change: `MAY_CHANGE` of Experiment, a macro of one of those names with all that follows from it (total_steps
    in a schedule), the settings of evaluators, and where data are: what they hold is compared when they are opened.
    A setting that the old text lacks and that is at its default today (`unset`) came with newer code: a run goes on.
    """
    old, new = bindings(old), bindings(new)
    free = {f"Experiment.{name}" for name in MAY_CHANGE} | set(MAY_CHANGE)
    evaluators = [n for side in (old, new) for n in re.findall(r"(\w+)\(\)", side.get("Experiment.evaluators", ""))]
    lines = []
    for key in sorted(old.keys() | new.keys()):
        name = key.split("/")[-1]
        if old.get(key) == new.get(key) or name in free or name.split(".")[0] in evaluators:
            continue
        if name.split(".")[-1] in PLACES or (key not in old and key in unset):
            continue
        lines += [f"{sign} {key} = {side[key]}" for sign, side in (("-", old), ("+", new)) if key in side]
    return lines


def compare(old: str, new: str) -> list[str]:
    """The settings in which two operative gin texts differ, 'name: old -> new' each; '(not set)' where one lacks it."""
    old, new = bindings(old), bindings(new)
    shown = lambda side, key: side.get(key, "(not set)")
    return [
        f"{k}: {shown(old, k)} -> {shown(new, k)}" for k in sorted(old.keys() | new.keys()) if old.get(k) != new.get(k)
    ]


def bindings(text: str) -> dict[str, str]:
    """'scope/Name.parameter' -> its value as written, of a text in the form that gin prints."""
    text = re.sub(r"\\\n\s*", "", text)
    pairs = re.findall(r"^([\w./]+) = (.*(?:\n[ \t]+.*)*)", text, re.MULTILINE)
    return {key: re.sub(r"\s+", " ", value) for key, value in pairs}
