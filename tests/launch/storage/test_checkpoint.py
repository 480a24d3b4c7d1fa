"""Checkpoints: what is committed is whole, what was damaged is named and passed over, what does not fit is refused."""

import errno
import json
import logging
import os
import pathlib
import re
import resource
import shutil
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from launch.storage import manifest
from launch.storage.checkpoint import Checkpoints, tree_sha256
from paradigm import trees
from paradigm.errors import UserError

ROOT = pathlib.Path(__file__).parents[3]


@struct.dataclass
class State:
    step: jax.Array
    params: dict
    opt_state: tuple
    extra: dict


def make_state(seed, rows=64):
    key = jax.random.key(seed)
    params = {"encoder": {"kernel": jax.random.normal(key, (rows, 32)), "scale": jnp.full((32,), seed, jnp.bfloat16)}}
    opt_state = (jax.tree.map(lambda x: x * 2, params), (), [jnp.uint32(seed), np.arange(3, dtype=np.int32)])
    extra = {"queue": jax.random.bits(key, (4, 8)), "seen": jnp.array([True, False])}
    return State(jnp.int32(seed), params, opt_state, extra)


ABSTRACT = jax.eval_shape(lambda: make_state(0))


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """Checkpoints 10, 20 and 30."""
    directory = tmp_path_factory.mktemp("original") / "checkpoints"
    with Checkpoints(directory, best_metric="valid/loss") as checkpoints:
        for step in (10, 20, 30):
            checkpoints.save(step, make_state(step), {"next_index": step * 8}, {"valid/loss": abs(step - 20)})
    return directory


@pytest.fixture
def directory(original, tmp_path):
    return shutil.copytree(original, tmp_path / "checkpoints")


def assert_is(state, step):
    assert tree_sha256(state) == tree_sha256(make_state(step))


def data_file(path):
    """The largest file of arrays below a step's directory."""
    return max((p for p in path.rglob("*") if p.is_file() and "/d/" in str(p)), key=lambda p: p.stat().st_size)


# What comes back


def test_round_trip_keeps_every_bit_and_type(directory):
    state, meta = Checkpoints(directory).restore(ABSTRACT)
    assert meta == {"next_index": 240}
    assert jax.tree.structure(state) == jax.tree.structure(make_state(30))
    assert_is(state, 30)


def test_restores_a_chosen_step_and_the_best(directory):
    checkpoints = Checkpoints(directory, best_metric="valid/loss")
    assert checkpoints.steps() == [10, 20, 30] and checkpoints.best_step() == 20
    assert Checkpoints(directory).best_step() == 20  # the checkpoints know by which metric
    assert Checkpoints(directory, best_metric="valid/loss", best_mode="max").best_step() == 30
    assert_is(checkpoints.restore(ABSTRACT, 10)[0], 10)
    state, meta = checkpoints.restore(ABSTRACT, "best")
    assert_is(state, 20)
    assert meta == {"next_index": 160} and checkpoints.meta(20)[1] == {"valid/loss": 0.0}


def test_nothing_there_is_none(tmp_path):
    assert Checkpoints(tmp_path / "absent").restore(ABSTRACT) is None
    assert Checkpoints(tmp_path / "absent").steps() == []
    (tmp_path / "7.tmp" / "state").mkdir(parents=True)  # a first save that was interrupted
    assert Checkpoints(tmp_path).restore(ABSTRACT) is None


def test_arrays_without_a_model(directory):
    step, tree, meta = Checkpoints(directory).arrays()
    assert step == 30 and meta == {"next_index": 240}
    assert tree_sha256(tree) == tree_sha256(make_state(30))
    assert isinstance(tree["params"]["encoder"]["kernel"], np.ndarray)
    _, tree, _ = Checkpoints(directory).arrays(10, only=("params", "extra"))
    assert tree.keys() == {"params", "extra"}
    assert tree_sha256(tree["params"]) == tree_sha256(make_state(10).params)


def test_restores_onto_another_mesh(tmp_path):
    mesh = lambda *shape: jax.make_mesh(shape, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    array = jnp.arange(64 * 32, dtype=jnp.float32).reshape(64, 32)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"w": jax.device_put(array, NamedSharding(mesh(2, 4), P("data", "fsdp")))}, {})
    for sharding in (NamedSharding(mesh(1, 8), P("fsdp")), NamedSharding(mesh(8, 1), P()), None):
        struct = jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)
        found = Checkpoints(tmp_path).restore({"w": struct})[0]["w"]
        assert sharding is None or found.sharding.is_equivalent_to(sharding, 2)
        np.testing.assert_array_equal(found, array)


def test_buffers_may_be_donated_at_once(tmp_path):
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(AxisType.Auto,))
    bump = jax.jit(lambda t: jax.tree.map(lambda x: x * 1.5 + 1, t), donate_argnums=0)
    whole = {f"w{i}": jnp.full((512, 1024), i, jnp.float32) for i in range(4)}
    tree = {k: jax.device_put(v, NamedSharding(mesh, P("fsdp"))) if k > "w1" else v for k, v in whole.items()}
    hashes = {}
    with Checkpoints(tmp_path, keep=4) as checkpoints:
        for step in range(1, 5):
            hashes[step] = tree_sha256(jax.tree.map(lambda x: np.array(x, copy=True), tree))
            assert checkpoints.save(step, tree, {})
            for _ in range(3):
                tree = bump(tree)
    for step, sha256 in hashes.items():
        assert tree_sha256(Checkpoints(tmp_path).arrays(step)[1]) == sha256


def test_a_writable_array_is_copied(tmp_path):
    array = np.zeros(100_000)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"w": array}, {})
        array += 1
    assert not Checkpoints(tmp_path).arrays()[1]["w"].any()


# What stays


def test_keeps_the_newest_and_the_best(tmp_path):
    losses = {1: float("nan"), 2: 1.0, 3: 4.0, 4: float("-inf"), 5: None, 6: 3.0}
    with Checkpoints(tmp_path, keep=2, best_metric="loss") as checkpoints:
        for step, loss in losses.items():
            checkpoints.save(step, {"w": jnp.ones(3)}, {}, None if loss is None else {"loss": loss})
            checkpoints.wait()
            assert checkpoints.best_step() == (None if step == 1 else 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["2", "5", "6"]


def test_older_ones_go_only_after_the_newer_is_committed(tmp_path, monkeypatch):
    seen, names, write = [], lambda: sorted(p.name for p in tmp_path.iterdir()), manifest.write
    monkeypatch.setattr(manifest, "write", lambda *args: (seen.append(names()), write(*args)))
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, {"w": jnp.ones(3)}, {})
    assert seen == [["1.tmp"], ["1", "2.tmp"], ["2", "3.tmp"]] and names() == ["3"]


def test_the_step_saved_last_is_not_saved_again(tmp_path):
    with Checkpoints(tmp_path, best_metric="loss") as checkpoints:
        assert checkpoints.save(1, {"w": jnp.ones(3)}, {"evaluated": 0})
        assert not checkpoints.save(1, {"w": jnp.ones(3)}, {"evaluated": 0})
        assert checkpoints.save(2, {"w": jnp.zeros(3)}, {"evaluated": 0})
    checkpoints = Checkpoints(tmp_path, best_metric="loss")
    checkpoints.restore({"w": jax.ShapeDtypeStruct((3,), jnp.float32)})
    assert not checkpoints.save(2, {"w": jnp.zeros(3)}, {"evaluated": 2}, {"loss": 5.0})  # evaluated after it was saved
    assert not checkpoints.save(2, {"w": jnp.zeros(3)}, {"evaluated": 0})  # no news
    assert Checkpoints(tmp_path).find("best") == 2 and checkpoints.meta(2) == ({"evaluated": 2}, {"loss": 5.0})


def test_leftovers_go_with_the_next_save(directory):
    for name in ("40.tmp", "5.old"):
        shutil.copytree(directory / "10", directory / name)
    (directory / "notes.tmp").mkdir()  # not ours
    checkpoints = Checkpoints(directory)
    assert checkpoints.steps() == [10, 20, 30] and (directory / "40.tmp").exists()  # a reader removes nothing
    with checkpoints:
        checkpoints.save(40, make_state(40), {})
    assert sorted(p.name for p in directory.iterdir()) == ["20", "30", "40", "notes.tmp"]


# Damage


def truncate(path):
    file = data_file(path)
    os.truncate(file, file.stat().st_size // 2)


def flip_a_bit(path):
    file = data_file(path)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)


def alter_manifest(path):
    text = (path / "manifest.json").read_text()
    (path / "manifest.json").write_text(text.replace('"next_index": 240', '"next_index": 241'))


DAMAGES = {
    "truncated": (truncate, r"30 is damaged: state/.*/d/\w+ has \d+ bytes instead of \d+"),
    "emptied": (lambda path: os.truncate(data_file(path), 0), r"/d/\w+ has 0 bytes instead of \d+"),
    "missing file": (lambda path: data_file(path).unlink(), r"/d/\w+: No such file or directory"),
    "flipped bit": (flip_a_bit, r"/d/\w+ was altered: its sha256 differs"),
    "metadata": (lambda path: (path / "state" / "_METADATA").write_text("{"), r"state/_METADATA has 1 bytes"),
    "state gone": (lambda path: shutil.rmtree(path / "state"), r"state/\S+: No such file or directory"),
    "no manifest": (lambda path: (path / "manifest.json").unlink(), r"30 is damaged: it has no manifest.json"),
    "manifest cut": (lambda path: os.truncate(path / "manifest.json", 99), r"its manifest.json cannot be read"),
    "manifest emptied": (lambda path: os.truncate(path / "manifest.json", 0), r"its manifest.json cannot be read"),
    "manifest altered": (alter_manifest, r"its manifest.json was altered"),
    "all emptied": (lambda path: (shutil.rmtree(path), path.mkdir()), r"30 is damaged: it has no manifest.json"),
    "stray empty": (lambda path: (path.parent / "99").mkdir(), r"99 is damaged: it has no manifest.json"),
    "stray copy": (lambda path: shutil.copytree(path, path.parent / "99"), r"99 is damaged: it holds step 30"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_once_and_the_one_before_is_used(directory, caplog, damage):
    act, text = DAMAGES[damage]
    act(directory / "30")
    with caplog.at_level(logging.WARNING):
        state, meta = Checkpoints(directory).restore(ABSTRACT)
    step = 30 if damage.startswith("stray") else 20
    assert_is(state, step)
    assert meta == {"next_index": step * 8}
    (record,) = caplog.records
    assert record.name == "launch.storage.catalogue"
    found = record.getMessage()
    assert found.startswith(f"{directory}: ") and found.endswith(f"; using checkpoint {step} instead")
    assert len(re.findall(text, found)) == 1, found


def test_every_file_is_covered(directory):
    files = [p for p in (directory / "30").rglob("*") if p.is_file() and p.stat().st_size]
    assert len(files) > 5
    for file in files:
        data = file.read_bytes()
        file.write_bytes(bytes([data[0] ^ 1]) + data[1:])
        assert Checkpoints(directory).find() == 20, file
        file.write_bytes(data)
    assert Checkpoints(directory).find() == 30


def test_what_is_no_newer_step_does_not_matter(directory, caplog):
    for name in ("7", "25", "0099", "99a", "99.5"):
        (directory / name).mkdir()
    (directory / "98").write_text("a file")
    assert Checkpoints(directory).find() == 30
    with Checkpoints(directory, keep=2) as checkpoints:
        checkpoints.save(40, make_state(40), {})
    assert Checkpoints(directory).steps() == [30, 40] and not caplog.records


def test_two_damaged_ones_are_one_warning(directory, caplog):
    flip_a_bit(directory / "30")
    truncate(directory / "20")
    assert_is(Checkpoints(directory).restore(ABSTRACT)[0], 10)
    (record,) = caplog.records
    assert "checkpoint 30 is damaged" in record.getMessage() and "checkpoint 20 is damaged" in record.getMessage()


def test_none_readable_stops(directory):
    for step in (10, 20, 30):
        flip_a_bit(directory / str(step))
    with pytest.raises(UserError, match=r"checkpoint 30 is damaged.*20 is damaged.*10 is damaged.*never starts over"):
        Checkpoints(directory).restore(ABSTRACT)


def test_an_emptied_only_checkpoint_stops(tmp_path):
    (tmp_path / "30").mkdir()
    with pytest.raises(UserError, match="checkpoint 30 is damaged: it has no manifest.json; a run never starts over"):
        Checkpoints(tmp_path).restore(ABSTRACT)


def test_a_step_asked_for_is_not_replaced_by_another(directory):
    flip_a_bit(directory / "20")
    with pytest.raises(UserError, match=r"20 is damaged.*; choose another of \[10, 20, 30\]"):
        Checkpoints(directory).restore(ABSTRACT, 20)
    with pytest.raises(UserError, match=r"none of the checkpoints \[10, 20, 30\] is of step 25"):
        Checkpoints(directory).restore(ABSTRACT, 25)
    with pytest.raises(UserError, match=r"none of the checkpoints \[.*\] has 'valid/accuracy', so none is the best"):
        Checkpoints(directory, best_metric="valid/accuracy").restore(ABSTRACT, "best")


def test_the_next_best_stands_in_for_a_damaged_best(directory, caplog):
    flip_a_bit(directory / "20")
    assert_is(Checkpoints(directory, best_metric="valid/loss").restore(ABSTRACT, "best")[0], 30)
    assert "using checkpoint 30 instead" in caplog.text


def test_a_damaged_checkpoint_protects_nothing_and_goes(directory):
    flip_a_bit(directory / "30")
    with Checkpoints(directory, keep=2) as checkpoints:
        assert_is(checkpoints.restore(ABSTRACT)[0], 20)
        checkpoints.save(40, make_state(40), {})
    assert Checkpoints(directory).steps() == [20, 40]


def test_later_steps_are_left_alone_until_they_are_reached_again(directory):
    with Checkpoints(directory, keep=1) as checkpoints:
        assert_is(checkpoints.restore(ABSTRACT, 10)[0], 10)
        checkpoints.save(15, make_state(15), {})
        checkpoints.wait()
        assert checkpoints.steps() == [15, 20, 30]
        checkpoints.save(30, make_state(31), {})
    assert sorted(p.name for p in directory.iterdir()) == ["30"]
    assert_is(Checkpoints(directory).restore(ABSTRACT)[0], 31)


def test_a_newer_format_is_refused(directory):
    path = directory / "30" / "manifest.json"
    content = json.loads(path.read_text()) | {"format_version": 3}
    del content["sha256"]
    path.write_text(json.dumps({**content, "sha256": manifest.digest(content)}))
    with pytest.raises(UserError, match=r"30: format 3, and this version reads up to 2: update paradigm"):
        Checkpoints(directory).restore(ABSTRACT)


def test_a_checkpoint_of_before_the_names_changed_is_told(directory):
    path = directory / "30" / "manifest.json"
    content = json.loads(path.read_text()) | {"format_version": 1}
    del content["sha256"]
    path.write_text(json.dumps({**content, "sha256": manifest.digest(content)}))
    with pytest.raises(UserError, match=r"30: format 1, of an earlier version of paradigm .* had other names: go on"):
        Checkpoints(directory).restore(ABSTRACT)


# What does not fit


def altered(name, to):
    return trees.named_map(lambda n, x: to(x) if n == name else x, ABSTRACT)


@pytest.mark.parametrize(
    "wanted, text",
    [
        (
            altered("params/encoder/kernel", lambda x: jax.ShapeDtypeStruct((64, 16), x.dtype)),
            r"params/encoder/kernel: wanted \(64, 16\) float32, found \(64, 32\) float32$",
        ),
        (
            altered("params/encoder/kernel", lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16)),
            r"params/encoder/kernel: wanted \(64, 32\) bfloat16, found \(64, 32\) float32$",
        ),
        (
            ABSTRACT.replace(extra={"queue": ABSTRACT.extra["queue"], "cursor": ABSTRACT.step}),
            r"extra/cursor: wanted \(\) int32, found nothing; extra/seen: wanted nothing, found \(2,\) bool$",
        ),
        (ABSTRACT.replace(extra={}, opt_state=()), r"; and 3 more$"),
    ],
)
def test_another_model_is_refused_with_leaf_wanted_and_found(directory, wanted, text):
    with pytest.raises(UserError, match=rf"^{directory}/30 is of another model: .*{text}"):
        Checkpoints(directory).restore(wanted)


def test_bad_settings():
    with pytest.raises(UserError, match="keep=0: at least the newest checkpoint must stay"):
        Checkpoints("x", keep=0)
    with pytest.raises(UserError, match="best_mode='low': write 'min' or 'max'"):
        Checkpoints("x", best_mode="low")


# Disks that fill up, directories that cannot be written


@pytest.mark.parametrize("name", ["lr[0.1]", "[!x]", "a\\b"])
def test_a_name_that_orbax_takes_for_a_pattern_is_refused(tmp_path, name):
    with pytest.raises(UserError, match=r"with brackets or a backslash in its name, '.*', are not written whole"):
        Checkpoints(tmp_path / name / "checkpoints")


@pytest.mark.parametrize("name", ["a[b", "[]", "a*?b", "ü %41 {x}, 'y'=1"])
def test_other_odd_names_are_read_again(tmp_path, name):
    directory = tmp_path / name / "checkpoints"
    with Checkpoints(directory) as checkpoints:
        checkpoints.save(1, {"params": {"a": np.arange(3)}}, {})
    with Checkpoints(directory) as checkpoints:
        np.testing.assert_array_equal(checkpoints.arrays()[1]["params"]["a"], np.arange(3))


def test_too_little_space_is_seen_before_writing(directory, monkeypatch):
    usage = shutil.disk_usage(directory)._replace(free=5000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    text = r"step 40 failed: No space left on device: [\d,]+ bytes are needed and 5,000 are free; .* still step 30"
    with pytest.raises(UserError, match=text):
        Checkpoints(directory).save(40, make_state(40), {})
    assert Checkpoints(directory).find() == 30


def test_a_disk_that_fills_up_during_the_save(directory, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(directory / "40.tmp"))

    checkpoints = Checkpoints(directory)
    with monkeypatch.context() as patch:
        patch.setattr(manifest, "write", full)
        checkpoints.save(40, make_state(40), {})
        checkpoints._thread.join()
    with pytest.raises(UserError, match=r"step 40 failed: No space left on device \(.*40.tmp\); .*still step 30"):
        checkpoints.save(41, make_state(41), {})
    assert sorted(p.name for p in directory.iterdir()) == ["10", "20", "30"]
    with checkpoints:  # and when there is space again, it goes on
        assert checkpoints.save(40, make_state(40), {})
    assert Checkpoints(directory).find() == 40


def test_a_write_that_the_system_refuses_inside_orbax(tmp_path):
    """No file over a size may be written, so tensorstore itself fails, in its own thread and with its own text."""
    script = (
        "import resource, signal, jax.numpy as jnp\n"
        "from launch.storage.checkpoint import Checkpoints\n"
        "from paradigm.errors import UserError\n"
        f"checkpoints = Checkpoints({str(tmp_path)!r})\n"
        "checkpoints.save(1, {'w': jnp.ones(10)}, {}); checkpoints.wait()\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "for limit in (4096, 16):\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))\n"
        "    checkpoints.save(2, {'w': jnp.arange(1e5)}, {})\n"
        "    try:\n        checkpoints.wait()\n    except UserError as error:\n        print('REFUSED', error)\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)\n"
        "with checkpoints:\n    checkpoints.save(3, {'w': jnp.arange(1e5)}, {})\n"
        "print('STEPS', checkpoints.steps())\n"
    )
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    refused = f"REFUSED {tmp_path}: saving step 2 failed: File too large; the newest checkpoint is still step 1\n"
    assert done.stdout.count(refused) == 2, done.stdout + done.stderr
    assert "STEPS [1, 3]" in done.stdout and "ERROR:absl" not in done.stderr, done.stderr


def test_an_unwritable_directory(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"saving step 1 failed: Not a directory .*there is no checkpoint yet"):
        Checkpoints(tmp_path / "file" / "checkpoints").save(1, {"w": jnp.ones(3)}, {})


# kill -9

SAVER = """
import sys, jax, jax.numpy as jnp
from launch.storage.checkpoint import Checkpoints
checkpoints = Checkpoints(sys.argv[1], keep=2)
tree = {f"w{i}": jnp.zeros(200_000) for i in range(8)}
step, restored = 0, checkpoints.restore(jax.eval_shape(lambda: tree))
if restored is not None:
    tree, meta = restored
    step = meta["step"]
while True:
    step += 1
    tree = jax.tree.map(lambda x: x + 1, tree)
    checkpoints.save(step, tree, {"step": step})
    print(step, flush=True)
"""


def test_kill_in_the_middle_of_a_save(tmp_path):
    """The save that was running is there as a whole or not at all, and all before it are committed."""
    rng, last = np.random.default_rng(0), 0
    for target in (1, 3, 5, 7):
        command = [sys.executable, "-c", SAVER, str(tmp_path)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            first = int(process.stdout.readline())
            assert first == last + 1
            for step in range(first, target):
                assert int(process.stdout.readline()) == step + 1
            time.sleep(rng.uniform(0, 0.05))
            process.kill()
            later = [int(line) for line in process.stdout]
        begun = later[-1] if later else max(first, target)
        last = Checkpoints(tmp_path).find() or 0
        assert last in (begun - 1, begun, begun + 1), (last, begun)  # begun + 1: killed before it could say so
        if last:
            _, tree, meta = Checkpoints(tmp_path).arrays()
            assert meta == {"step": last} and all((x == last).all() for x in tree.values())
    assert last >= 6


class Moments:
    """A copy of a directory before every change that Python makes in it, as kill -9 would leave it.

    What lies in N.tmp is left out: it is never read, and tensorstore writes there meanwhile.
    """

    CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.copyfile"}

    def __init__(self, directory, copies):
        self.directory, self.copies, self.count = directory, copies, 0
        self.on, self.lock, self.copying = True, threading.Lock(), threading.local()
        sys.addaudithook(self.hook)

    def hook(self, event, args):
        if not self.on or hasattr(self.copying, "now"):
            return
        if event == "open":
            changes = isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
        else:
            changes = event in self.CHANGES
        if changes and any(self.ours(path) for path in args[:2]):
            with self.lock:
                self.copying.now = True
                unread = shutil.ignore_patterns("[0-9]*.tmp")
                shutil.copytree(self.directory, self.copies / str(self.count), ignore=unread)
                self.count += 1
                del self.copying.now

    def ours(self, path):
        if not isinstance(path, (str, os.PathLike)):
            return False
        path = str(path)  # a relative one is rmtree's, which holds its directory open
        return path.startswith(f"{self.directory}/") and ".tmp/" not in path or not path.startswith("/")


def test_every_moment_of_a_commit_is_a_safe_one(tmp_path, caplog):
    directory = tmp_path / "checkpoints"
    directory.mkdir()
    moments = Moments(directory, tmp_path)
    with Checkpoints(directory, keep=1, best_metric="loss") as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, make_state(step), {}, {"loss": -step})
            checkpoints.save(step, make_state(step), {}, {"loss": -step - 0.5})  # amends the manifest
    moments.on = False
    found = [Checkpoints(tmp_path / str(i)).find() for i in range(moments.count)]
    assert sorted(found, key=lambda step: step or 0) == found and {None, 1, 2} <= set(found) <= {None, 1, 2, 3}
    assert moments.count > 30 and not caplog.records
    for i in range(moments.count):
        copy = Checkpoints(tmp_path / str(i))
        for step in copy.steps():
            assert tree_sha256(copy.arrays(step)[1]) == tree_sha256(make_state(step))


# Hashes


def test_tree_sha256_sees_names_types_shapes_and_bytes():
    tree = {"b": jnp.zeros((2, 3)), "a": {"c": jnp.ones((), jnp.bfloat16)}}
    same = {"a": {"c": np.ones((), jnp.bfloat16)}, "b": np.asfortranarray(np.zeros((2, 3), np.float32))}
    assert tree_sha256(tree) == tree_sha256(same)
    others = [
        {"b": jnp.zeros((2, 3)), "a": {"d": jnp.ones((), jnp.bfloat16)}},
        {"b": jnp.zeros((3, 2)), "a": {"c": jnp.ones((), jnp.bfloat16)}},
        {"b": jnp.zeros((2, 3), jnp.int32), "a": {"c": jnp.ones((), jnp.bfloat16)}},
        {"b": jnp.zeros((2, 3)).at[1, 1].set(-0.0), "a": {"c": jnp.ones((), jnp.bfloat16)}},
        {"b": jnp.zeros((2, 3))},
    ]
    assert len({tree_sha256(t) for t in [tree, *others]}) == 6
