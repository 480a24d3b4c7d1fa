import json
import os
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest

from launch.run.loader import ENDLESS, batches, reading_threads
from paradigm.dataset import Dataset, Mixture
from paradigm.errors import UserError
from t5like.corrupt import SpanNoise
from t5like.data import TextData
from t5like.tokenizers import ByteTokenizer

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[3])}

BYTES = ByteTokenizer().vocabulary


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    root = tmp_path_factory.mktemp("input")
    rng = np.random.default_rng(0)
    for i in range(12):
        (root / f"{i}.txt").write_text(" ".join(rng.choice(["harpoon", "whale", "sea", "captain"], 700)))
    return TextData(str(root), valid=0.2).build(root / "data", 40, progress=False)


class Backends:
    """A preparation that tells what this process has done with jax."""

    def __call__(self, example, rng, step, train):
        bridge = sys.modules.get("jax._src.xla_bridge")
        return {"backends": np.int32(len(bridge._backends) if bridge else 0)}


class Broken:
    """Every third record cannot be read."""

    fingerprint = "broken"

    def __len__(self):
        return 300

    def __getitem__(self, position):
        if position % 3 == 0:
            raise OSError("bad sector")
        return {"x": np.int64(position)}


class Same:
    def __call__(self, example, rng, step, train):
        return {"x": example["x"]}


class Far:
    """Records that take a while to come, as from a bucket."""

    fingerprint = "far"

    def __len__(self):
        return 300

    def __getitem__(self, position):
        time.sleep(0.02)
        return {"x": np.int64(position)}


def take(dataset, count, **kw):
    with batches(dataset, **kw) as stream:
        return [next(stream) for _ in range(count)]


def assert_equal(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b):
        assert x.keys() == y.keys()
        for name in x:
            assert type(y[name]) is np.ndarray and x[name].dtype == y[name].dtype
            np.testing.assert_array_equal(x[name], y[name], err_msg=name)


def test_so_many_read_at_once_as_the_wait_for_storage_asks_for(prepared):
    near, far = Dataset(prepared.source("train"), SpanNoise(BYTES, 34), 6), Dataset(Far(), Same(), 4, seed=1)
    assert reading_threads(near) == 1 and reading_threads(Dataset(Broken(), Same(), 4)) == 1
    assert (threads := reading_threads(far)) > 8
    begin = time.perf_counter()
    found = take(far, 40, threads=threads)
    passed = time.perf_counter() - begin
    assert_equal([far.batch(step) for step in range(40)], found)
    assert passed < 0.5 * 40 * 4 * 0.02  # one after the other


def test_same_batches_whatever_the_workers(prepared):
    noise = SpanNoise(BYTES, 34)
    mixed = Mixture([prepared.source("train"), prepared.source("valid")], [0.7, 0.3])
    dataset = Dataset(mixed, noise, 6, seed=1)
    wanted = [dataset.batch(step) for step in range(5, 12)]
    for workers in (0, 1, 2):
        assert_equal(wanted, take(dataset, 7, start_step=5, workers=workers, threads=1 + 3 * (workers > 1)))


def test_restart_and_rows(prepared):
    dataset = Dataset(prepared.source("train"), SpanNoise(BYTES, 34), 8, seed=1)
    assert_equal(take(dataset, 6)[4:], take(dataset, 2, start_step=4))
    rows = take(dataset, 3, rows=[5, 1], prefetch=1)
    assert_equal([{k: v[[5, 1]] for k, v in b.items()} for b in take(dataset, 3)], rows)
    far = ENDLESS - 5
    assert_equal([dataset.batch(far)], take(dataset, 1, start_step=far))


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_ends(prepared, workers):
    dataset = Dataset(prepared.source("valid"), SpanNoise(BYTES, 34), 8, train=False)
    with batches(dataset, workers=workers) as stream:
        found = list(stream)
    assert len(found) == len(dataset)
    assert sum(b["mask"].sum() for b in found) == len(prepared.source("valid"))


def test_data_workers_start_no_jax_backend(prepared):
    import jax

    jax.devices()
    dataset = Dataset(prepared.source("train"), Backends(), 4)
    assert take(dataset, 1, workers=0)[0]["backends"].all(), "the test would notice one"
    assert not any(b["backends"].any() for b in take(dataset, 4, workers=2))


@pytest.mark.parametrize("workers", [0, 1])
def test_broken_records_are_counted_and_named_once(workers, capfd):
    with batches(Dataset(Broken(), Same(), 10), workers=workers) as stream:
        found = np.concatenate([next(stream)["x"] for _ in range(20)])
        assert (found % 3 > 0).all() and 60 < stream.problems < 140
    *lines, last = [line for line in capfd.readouterr().err.splitlines() if line.startswith("warning")]
    assert last == f"warning: broken records were met and left out {stream.problems} times in all"
    assert len(lines) == 20 and lines[0].endswith("is broken and left out (bad sector)") and "record " in lines[0]
    assert lines[-1].endswith("; no more are named")


def test_one_broken_record_is_named_at_its_first_draw_only(capfd):
    class One(Broken):
        def __len__(self):
            return 5

        def __getitem__(self, position):
            return super().__getitem__(position) if position == 3 else {"x": np.int64(position)}

    with batches(Dataset(One(), Same(), 10)) as stream:
        for _ in range(20):
            next(stream)
        assert stream.problems > 20
    named, total = [line for line in capfd.readouterr().err.splitlines() if line.startswith("warning")]
    assert named.endswith("is broken and left out (bad sector)") and f"left out {stream.problems} times" in total


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_reach_the_caller(prepared, workers):
    dataset = Dataset(prepared.source("train"), SpanNoise(BYTES, 600), 4)
    with pytest.raises(UserError, match="a window holds 40 tokens but the objective reads"):
        take(dataset, 1, workers=workers)


def test_close_is_quiet_and_final(prepared, tmp_path):
    script = tmp_path / "script.py"  # a file: spawned workers import the main module again
    script.write_text(
        "import sys\n"
        "from launch.run.loader import batches\n"
        "from paradigm.dataset import Dataset\n"
        "from t5like.corrupt import SpanNoise\n"
        "from t5like.tokenizers import ByteTokenizer\n"
        "from t5like.windows import PreparedText\n"
        "if __name__ == '__main__':\n"
        f"    data = Dataset(PreparedText({str(prepared.directory)!r}).source('train'),\n"
        "                   SpanNoise(ByteTokenizer().vocabulary, 34), 64)\n"
        "    stream = batches(data, workers=1)\n"
        "    batch = next(stream)\n"
        "    stream.close()\n"
        "    stream.close()\n"
        "    forgotten, in_a_thread = batches(data, workers=1), batches(data)\n"
        "    next(forgotten), next(in_a_thread)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, env=ENVIRONMENT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_workers_end_with_a_parent_that_was_killed(prepared, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing, time\n"
        "from launch.run.loader import batches\n"
        "from paradigm.dataset import Dataset\n"
        "from t5like.corrupt import SpanNoise\n"
        "from t5like.tokenizers import ByteTokenizer\n"
        "from t5like.windows import PreparedText\n"
        "if __name__ == '__main__':\n"
        f"    data = Dataset(PreparedText({str(prepared.directory)!r}).source('train'),\n"
        "                   SpanNoise(ByteTokenizer().vocabulary, 34), 64)\n"
        "    stream = batches(data, workers=1)\n"
        "    next(stream)\n"
        "    print(*(c.pid for c in multiprocessing.active_children()), flush=True)\n"
        "    time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)
    [worker] = map(int, process.stdout.readline().split())
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 20
    while alive(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(worker)


def alive(pid):
    """Whether it runs; one that ended but that nobody has waited for does not."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_benchmark_prints_one_json_line(prepared):
    command = [
        sys.executable,
        "-m",
        "benchmarks.input",
        f"--data={prepared.directory}",
        "--length=34",
        "--batch_size=4",
    ]
    done = subprocess.run([*command, "--seconds=0.2"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["inputs"] == 34 and result["raw_tokens_per_s"] > 0 and result["workers"] == 0
