"""A run in a bucket has the numbers of one on a disk, however it is interrupted and whatever the store answers."""

import dataclasses
import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import time
import types

import jax
import numpy as np
import pytest

from launch import convert, load, show
from launch.clusters import Pod
from launch.clusters.tpu import TPU
from launch.evaluate import evaluate
from launch.run import loop, registry
from launch.storage import filesystem, sync
from launch.storage.checkpoint import Checkpoints
from launch.storage.sync import WorkdirSync
from paradigm import storage
from paradigm.errors import UserError
from paradigm.evaluator import Evaluator
from tests import contract
from tests.launch import small
from tests.launch.storage.emulator import Emulator
from tests.launch.test_load import SPANS, make_run

ROOT = pathlib.Path(__file__).parents[3]
STEPS = 12


@dataclasses.dataclass(frozen=True)
class Tells(Evaluator):
    """An evaluator whose artefact goes to samples/."""

    def run(self, objective, variables, data):
        return {}, [types.SimpleNamespace(name="tells", kind="text", value="something")]


@pytest.fixture(scope="module")
def emulator(tmp_path_factory):
    """A bucket called bucket; the caches of this module's runs lie in a home of their own."""
    with Emulator("bucket") as emulator, pytest.MonkeyPatch.context() as patch:
        for name, value in {**emulator.environment, "HOME": str(tmp_path_factory.mktemp("home"))}.items():
            patch.setenv(name, value)
        yield emulator


@pytest.fixture(autouse=True)
def at_once(emulator, monkeypatch):
    """Nobody waits before trying again, but TensorStore, which cannot be told."""
    import asyncio

    import gcsfs.retry

    monkeypatch.setattr(storage, "WAITS", (0.0, 0.0, 0.0))
    monkeypatch.setattr(gcsfs.retry, "asyncio", types.SimpleNamespace(sleep=lambda _: asyncio.sleep(0)))
    emulator.seen.clear()
    emulator.history.clear()


def experiment(**settings):
    return small.experiment(total_steps=STEPS, evaluators=(Tells(),), **settings)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(state, rows) of the run on a disk, never interrupted."""
    workdir = tmp_path_factory.mktemp("whole")
    return jax.device_get(loop.train(experiment(), workdir).state), small.rows(workdir)


@pytest.fixture(scope="module")
def objects(emulator):
    """{name: content} of the whole run in the bucket: a test puts it where it needs one."""
    loop.train(experiment(), "gs://bucket/objects")
    found = emulator.buckets["bucket"].items()
    return {name.removeprefix("objects/"): content for name, (_, content) in found if name.startswith("objects/")}


def rows(url):
    lines = filesystem.as_path(f"{url}/metrics.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name != "speed"} for line in lines]


def assert_ends_like(whole, url):
    """Goes on with the run, or begins it; it must end with the bits and the rows of the other."""
    done = loop.train(experiment(), url)
    contract.assert_trees_equal(jax.device_get(done.state), whole[0])
    assert rows(url) == whole[1]
    assert Checkpoints(f"{url}/checkpoints").find() == STEPS


def dies(monkeypatch, step):
    """The process is killed before that step: nothing is saved, pushed or closed any more."""
    asked = loop.Stop.asked

    def check(self, at):
        if at == step:
            raise MemoryError
        return asked(self, at)

    monkeypatch.setattr(loop.Stop, "asked", check)
    monkeypatch.setattr(WorkdirSync, "__exit__", lambda *_: None)


def upload(emulator, directory, name):
    for path in directory.rglob("*"):
        if path.is_file():
            key = f"{name}/{path.relative_to(directory).as_posix()}"
            emulator.buckets["bucket"][key] = (next(emulator.generations), path.read_bytes())


# The run


def test_it_equals_the_run_on_a_disk(emulator, whole):
    assert_ends_like(whole, "gs://bucket/plain")
    names = [name.removeprefix("plain/") for name in emulator.names("plain/") if "/state/" not in name]
    assert [name for name in names if "tensorboard" not in name] == [
        *(f"checkpoints/{step}/manifest.json" for step in (12, 3, 6, 9)),
        "config.gin", "environment.json", "loss.png", "metrics.jsonl",
        "samples/00000006/tells.txt", "samples/00000012/tells.txt",
    ]  # fmt: skip
    assert len(names) == 11
    assert_ends_like(whole, "gs://bucket/plain")  # nothing is left to do, and nothing is lost
    assert names == [name.removeprefix("plain/") for name in emulator.names("plain/") if "/state/" not in name]


@pytest.mark.parametrize(
    "step", [pytest.param(step, marks=[pytest.mark.slow] * (step in (2, 11))) for step in (2, 5, 9, 11)]
)
def test_killed_and_gone_on(emulator, whole, step, monkeypatch):
    """At 2 nothing is saved yet; at 5 and 11 rows after the checkpoint were lost with the machine; 9 is being saved."""
    url = f"gs://bucket/killed{step}"
    with monkeypatch.context() as patch:
        dies(patch, step)
        with pytest.raises(MemoryError):
            loop.train(experiment(), url)
    monkeypatch.setenv("HOME", os.environ["HOME"] + "-other")  # another machine
    assert_ends_like(whole, url)


def test_stopped_and_gone_on(emulator, whole, monkeypatch):
    asked = loop.Stop.asked
    with monkeypatch.context() as patch:
        patch.setattr(loop.Stop, "asked", lambda self, step: step == 5 or asked(self, step))
        done = loop.train(experiment(), "gs://bucket/stopped")
    assert done.interrupted and Checkpoints("gs://bucket/stopped/checkpoints").find() == 5
    monkeypatch.setenv("HOME", os.environ["HOME"] + "-other")
    assert_ends_like(whole, "gs://bucket/stopped")


@pytest.mark.slow
def test_every_moment_of_a_run_is_a_safe_one(emulator, whole):
    """After each change to the bucket the newest checkpoint is whole, and the rows that it knows of are there."""
    url = "gs://bucket/moments"
    loop.train(experiment(keep=2), url)
    history, now = list(emulator.history), emulator.buckets["bucket"]
    assert len(history) > 60
    resumed, last, before = [], -1, {}
    try:
        for moment in history:
            (name,) = {name for name, _ in before.items() ^ moment["bucket"].items()} if before else [""]
            before = emulator.buckets["bucket"] = moment["bucket"]
            if "/state/" in name and name in before:  # arrays of a checkpoint that has no manifest yet
                assert f"{name.split('/state/')[0]}/manifest.json" not in before
                continue
            checkpoints = Checkpoints(f"{url}/checkpoints")
            found = checkpoints.find()
            if found is None:
                continue
            assert found >= max(last, 3)
            assert checkpoints.find(checkpoints.steps()[0])  # and so is the one that is about to go
            progress = checkpoints.meta(found)[0]["progress"]
            wanted = [r for r in whole[1] if r["step"] <= progress["logged" if "train/loss" in r else "evaluated"]]
            assert [row for row in rows(url) if row in wanted] == wanted
            if found > last:
                resumed.append(dict(moment["bucket"]))
            last = found
        assert last == STEPS and len(resumed) == 4
        for moment in resumed[1:3]:
            emulator.buckets["bucket"] = moment
            assert_ends_like(whole, url)
    finally:
        emulator.buckets["bucket"] = now


def flip(content):
    return content[:-40] + bytes([content[-40] ^ 4]) + content[-39:]


DAMAGES = {
    "unfinished": ("manifest.json", None),
    "manifest_cut": ("manifest.json", lambda content: content[:99]),
    "file_gone": ("state/_METADATA", None),
    "flipped_bit": ("state/_METADATA", flip),
}


# How a whole file is told from a damaged one is the manifest's, and tried on a disk (test_checkpoint.py).
@pytest.mark.parametrize(
    "damage", [pytest.param(d, marks=[pytest.mark.slow] * (d in ("manifest_cut", "file_gone"))) for d in DAMAGES]
)
def test_what_is_no_whole_checkpoint_is_passed_over(emulator, whole, objects, damage, caplog):
    url, there, prefix = f"gs://bucket/{damage}", emulator.buckets["bucket"], f"{damage}/checkpoints/12/"
    there |= {f"{damage}/{name}": (next(emulator.generations), content) for name, content in objects.items()}
    name, act = DAMAGES[damage]
    generation, content = there.pop(prefix + name)
    if act:
        there[prefix + name] = (generation, act(content))
    there[f"{prefix}state/left"] = (generation, b"by a save that was interrupted")
    before = dict(there)
    assert Checkpoints(f"{url}/checkpoints").steps() == [3, 6, 9] + [12] * (name != "manifest.json")
    assert Checkpoints(f"{url}/checkpoints").find() == 9 and there == before  # a reader removes nothing
    assert ("checkpoint 12 is damaged" in caplog.text) == (damage != "unfinished")
    assert_ends_like(whole, url)
    assert f"{prefix}state/left" not in there


@pytest.mark.slow
def test_two_processes_on_two_machines(emulator, tmp_path):
    """Stopped at step 4 and gone on. Neither sees a file of the other but in the bucket."""
    loop.train(small.experiment(total_steps=8), tmp_path / "one")

    def start(steps):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        processes = []
        for index in range(2):
            command = [
                sys.executable,
                "-m",
                "tests.launch.run.two_processes",
                str(index),
                port,
                "gs://bucket/two",
                steps,
            ]
            log = open(tmp_path / f"log{index}", "w")
            home = {**os.environ, "HOME": str(tmp_path / f"home{index}")}
            processes.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=home))
        try:
            return [process.wait(120) for process in processes]
        finally:
            for process in processes:
                process.kill()

    logs = lambda: [(tmp_path / f"log{index}").read_text() for index in range(2)]
    assert start("4") == [0, 0], logs()
    assert start("8") == [0, 0], logs()
    losses = lambda rows: {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}
    one, two = losses(small.rows(tmp_path / "one")), losses(rows("gs://bucket/two"))
    assert one.keys() == two.keys() == {4, 8}
    np.testing.assert_allclose(list(two.values()), list(one.values()), rtol=1e-5)
    assert "resumed from step 4" in logs()[0]


# A store that errs


def test_a_busy_store_changes_nothing(emulator, whole):
    """Of every kind of request some are answered 503, 429 or 500; one more often than gcsfs tries by itself."""
    kinds = {}

    def fault(method, path, query):
        kind = (method, "alt" in query, re.sub(r"[\d/]+|[0-9a-f]{32}", "", path.rsplit("/", 1)[-1]))
        kinds[kind] = kinds.get(kind, 0) + 1
        if path.endswith("/o") and query.get("name", "").endswith("6/manifest.json"):
            kinds["manifest"] = kinds.get("manifest", 0) + 1
            return 503 if kinds["manifest"] <= 8 else None
        return (503, 429, 500)[kinds[kind] % 3] if kinds[kind] in (2, 9) else None

    emulator.fault = fault
    try:
        assert_ends_like(whole, "gs://bucket/busy")
    finally:
        emulator.fault = lambda *_: None
    assert kinds["manifest"] > 8 and len(kinds) > 10


def test_a_save_that_the_store_refuses_is_made_up_for(emulator, whole, caplog):
    manifest = lambda method, path, query: query.get("name", "").endswith("checkpoints/6/manifest.json")
    with emulator.failing([503] * 24, manifest) as left:
        assert_ends_like(whole, "gs://bucket/refused")
    assert not left and "gs://bucket/refused/checkpoints: saving step 6 failed: injected, 503; " in caplog.text
    assert Checkpoints("gs://bucket/refused/checkpoints").steps() == [3, 9, 12]
    assert not emulator.names("refused/checkpoints/6/")


def test_a_store_out_of_reach_is_no_damage(emulator, whole, tmp_path):
    """Otherwise an older checkpoint would be taken."""
    with Checkpoints("gs://bucket/away/checkpoints") as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, {"w": np.arange(4.0) + step}, {})
    for status in (403, 502, 503):
        with emulator.failing([status] * 1000, lambda method, path, query: "/2/state" in path):
            with pytest.raises(UserError, match="gs://bucket/away/checkpoints cannot be used"):
                Checkpoints("gs://bucket/away/checkpoints").find()
    assert Checkpoints("gs://bucket/away/checkpoints").find() == 2


def test_rows_that_cannot_be_pushed_now_are_pushed_later(emulator, tmp_path, caplog):
    with WorkdirSync(filesystem.as_path("gs://bucket/later")) as files:
        (files.local / "metrics.jsonl").write_text("one\n")
        files.push()
        (files.local / "metrics.jsonl").write_text("one\ntwo\n")
        with emulator.failing([503] * 1000, lambda method, *_: method == "POST"):
            files.offer()
            assert "gs://bucket/later: not all files are up to date there: injected, 503" in caplog.text
            with pytest.raises(Exception, match="injected, 503"):
                files.push()
    assert filesystem.as_path("gs://bucket/later/metrics.jsonl").read_bytes() == b"one\ntwo\n"


def test_what_passes(emulator):
    import aiohttp
    import gcsfs.retry
    import requests

    for error in (
        *(gcsfs.retry.HttpError({"code": code, "message": "no"}) for code in (408, 429, 500, 503)),
        aiohttp.ServerDisconnectedError(), requests.exceptions.ProxyError(), ConnectionResetError(), TimeoutError(),
        ValueError("Error writing ... UNAVAILABLE: no [http_response_code='503']"),
    ):  # fmt: skip
        assert storage.is_transient(error) and (storage.is_storage(error) or isinstance(error, ValueError))
    for error in (
        *(gcsfs.retry.HttpError({"code": code, "message": "no"}) for code in (400, 401, 403)),
        FileNotFoundError("b/x"), OSError("Forbidden: b/x"), ValueError("NOT_FOUND: x [http_response_code='404']"),
    ):  # fmt: skip
        assert not storage.is_transient(error)


# The files on this machine


def test_the_bucket_is_the_truth(emulator):
    upload_one = lambda name, content: emulator.buckets["bucket"].update({name: (next(emulator.generations), content)})
    for name in ("config.gin", "samples/00000006/tells.txt", "checkpoints/6/manifest.json", "data/meta.json"):
        upload_one(f"truth/{name}", b"old")
    upload_one("truth2/config.gin", b"another run")
    local = sync.local("gs://bucket/truth")
    (local / "data").mkdir(parents=True)
    (local / "data" / "tokens").write_text("prepared")
    (local / "metrics.jsonl").write_text("of an earlier start\n")
    with WorkdirSync(filesystem.as_path("gs://bucket/truth")) as files:
        here = lambda: sorted(p.relative_to(local).as_posix() for p in local.rglob("*") if p.is_file())
        assert here() == ["config.gin", "data/tokens", "samples/00000006/tells.txt"]
        emulator.history.clear()
        files.push()
        assert not emulator.history
        (local / "samples" / "00000006" / "tells.txt").unlink()
        (local / "config.gin").write_text("new")
        (local / "loss.png.tmp").write_text("half")
    assert len(emulator.history) == 2
    assert emulator.names("truth/") == ["truth/checkpoints/6/manifest.json", "truth/config.gin", "truth/data/meta.json"]
    assert emulator.buckets["bucket"]["truth/config.gin"][1] == b"new"


def test_on_a_disk_nothing_is_copied(tmp_path):
    with WorkdirSync(filesystem.as_path(tmp_path)) as files:
        assert files.local == files.workdir == tmp_path
        (tmp_path / "metrics.jsonl").write_text("one\n")
        files.push()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


# Reading


def test_show_and_evaluate(emulator, whole, tmp_path, monkeypatch):
    done = loop.train(experiment(), tmp_path / "run")
    loop.train(experiment(), "gs://bucket/read")
    upload(emulator, tmp_path / "run", "copied")  # a run may be copied into a bucket
    text, facts = show.show(tmp_path / "run")
    monkeypatch.setattr(registry, "parse_text", lambda *_, **__: experiment())
    last = [row for row in whole[1] if "valid/loss" in row][-1]
    for name in emulator.names("read/"):  # and out of it
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(emulator.buckets["bucket"][name][1])
    assert show.show(tmp_path / "read")[1] == facts
    for url in ("gs://bucket/read", "gs://bucket/copied"):
        found = show.show(url)
        assert found[1] == facts and found[0].startswith(f"{url}: step 12, TwoTerms")
        step, metrics, _ = evaluate(url)
        assert {"step": step, **metrics} == last
        with pytest.raises(UserError, match=r"checkpoints: none of the checkpoints \[3, 6, 9, 12\] is of step 5"):
            evaluate(url, 5)
        run = load(url, 9)
        assert run.step == 9 and str(run.workdir) == url
        contract.assert_trees_equal(load(url).params, jax.device_get(done.state.params))
    emulator.history.clear()
    command = [sys.executable, "-m", "launch.show", "--workdir=gs://bucket/read", "--step=best"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert shown.returncode == 0 and json.loads(shown.stdout.splitlines()[-1])["step"] == 12, shown.stderr
    assert not emulator.history


def test_a_new_run_starts_from_a_bucket(emulator, tmp_path):
    loop.train(experiment(), "gs://bucket/first")
    zero = {"optimizer": dataclasses.replace(experiment().optimizer, learning_rate=0.0)}
    starts = {"init_from": "gs://bucket/first", "init_partly_from": "gs://bucket/first/checkpoints/9"}
    for step, (how, url) in zip((12, 9), starts.items()):
        params = Checkpoints("gs://bucket/first/checkpoints").arrays(step, only=("params",))[1]["params"]
        done = loop.train(dataclasses.replace(experiment(**zero), total_steps=1), tmp_path / how, **{how: url})
        contract.assert_trees_equal(jax.device_get(done.state.params), params)
    with pytest.raises(UserError, match="gs://bucket/absent: no checkpoint there"):
        loop.train(experiment(), tmp_path / "third", init_from="gs://bucket/absent")


def test_load_with_its_tokenizer_and_convert(emulator, tmp_path):
    make_run(tmp_path / "run", SPANS)
    upload(emulator, tmp_path / "run", "spans")
    run = load("gs://bucket/spans", "best")
    assert run.step == 2 and run.tokenizer.decode(run.tokenizer.encode("The cat")) == "The cat"
    assert "gs://bucket/spans" in convert.to_hf("gs://bucket/spans", tmp_path / "hf")
    assert (tmp_path / "hf" / "tokenizer").is_dir()
    with pytest.raises(UserError, match="--out=gs://bucket/hf: write to a directory of this machine"):
        convert.to_hf("gs://bucket/spans", "gs://bucket/hf")
    with pytest.raises(UserError, match="gs://bucket/nothing: no such run directory"):
        load("gs://bucket/nothing")
    with pytest.raises(UserError, match="--workdir=gs://bucket/nothing: no run is here"):
        evaluate("gs://bucket/nothing")


def test_a_pod_installs_what_a_bucket_needs():
    setup = lambda workdir: TPU(Pod("mine", zone="us-west4-a", train=(f"--workdir={workdir}",)), None).setup()
    assert "'.[tpu,gcs]'" in setup("gs://bucket/run") and "'.[tpu]'" in setup("/mnt/paradigm/run")


# Refusals


def test_refusals(emulator, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for url in ("s3://bucket/run", "gs:///run", "http://host/run"):
        with pytest.raises(UserError, match=f"{url}: write a path, or gs://BUCKET/RUN"):
            loop.train(experiment(), url)
    with pytest.raises(UserError, match="^gs://absent: no such bucket; create it, or correct the name$"):
        loop.train(experiment(), "gs://absent/run")
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="gs://bucket/other holds the run of another experiment.*batch_size"):
        loop.train(dataclasses.replace(experiment(), total_steps=4), "gs://bucket/other")
        loop.train(dataclasses.replace(experiment(), total_steps=4, batch_size=8), "gs://bucket/other")
    filesystem._reach.cache_clear()
    for status in (401, 403):
        with emulator.failing([status] * 10):
            with pytest.raises(UserError, match="gs://bucket cannot be used: .*injected.*login"):
                loop.train(experiment(), "gs://bucket/run")
    with emulator.failing([403] * 10, lambda method, *_: method == "POST"):
        with pytest.raises(UserError, match="--workdir=gs://bucket/run cannot be written .Forbidden.*injected"):
            loop.train(experiment(), "gs://bucket/run")
    filesystem._gcs.cache_clear()
    filesystem._reach.cache_clear()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "gcsfs", None)
        with pytest.raises(UserError, match=r'gs:// needs gcsfs: pip install -e ".\[gcs\]"'):
            loop.train(experiment(), "gs://bucket/run")


def test_a_store_that_says_nothing_is_not_waited_for(emulator, monkeypatch):
    import fsspec

    filesystem.as_path("gs://bucket")
    monkeypatch.delitem(fsspec.config.conf["gcs"], "requests_timeout")  # made by the line before
    monkeypatch.setattr(filesystem, "SILENCE", 0.2)
    filesystem._gcs.cache_clear()
    try:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{silent.getsockname()[1]}")
            with pytest.raises(UserError, match="gs://silent cannot be used: .*[Tt]imeout"):
                filesystem.as_path("gs://silent/run")
    finally:
        filesystem._gcs.cache_clear()


@pytest.mark.parametrize("case", [pytest.param("no such bucket", marks=pytest.mark.slow), "no credentials"])
def test_the_command_says_it_in_one_line(emulator, tmp_path, case):
    environment = {**os.environ, "HOME": str(tmp_path)}
    if case == "no credentials":
        del environment["STORAGE_EMULATOR_HOST"]  # nothing is asked of the store before there are credentials
        environment |= {"GCE_METADATA_HOST": "127.0.0.1:1", "GCE_METADATA_IP": "127.0.0.1:1", "NO_GCE_CHECK": "false"}
    command = [
        sys.executable,
        "-m",
        "launch.train",
        "--gin_file=runs/smoke/next_token.gin",
        "--workdir=gs://absent/run",
    ]
    start = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    text = {"no such bucket": "no such bucket", "no credentials": "default credentials were not found"}[case]
    assert done.returncode == 2 and text in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert time.monotonic() - start < 60
