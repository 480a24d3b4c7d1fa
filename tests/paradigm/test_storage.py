"""A file is the old one or the new one at any moment, and the new one durable under its name."""

import errno
import os
import pathlib

import pytest

from multimodal.data import PairData
from paradigm import storage
from paradigm.errors import UserError
from t5like.data import TextData
from t5like.prepare import prepare
from t5like.records import TextRecords
from vision.data import ImageData


@pytest.fixture
def calls(monkeypatch):
    """What is flushed and renamed, in order: names of files as they are called at that time."""
    seen, replace = [], os.replace
    named = lambda handle: pathlib.Path(os.readlink(f"/proc/self/fd/{handle}")).name
    monkeypatch.setattr(os, "fsync", lambda handle: seen.append(f"flush {named(handle)}"))
    monkeypatch.setattr(os, "replace", lambda a, b: (seen.append(f"{a.name} -> {b.name}"), replace(a, b)))
    return seen


def test_the_content_is_flushed_before_the_name_and_the_name_after_it(tmp_path, calls):
    folder = tmp_path / "folder"
    folder.mkdir()
    whole = ["flush a.tmp", "a.tmp -> a", "flush folder"]
    storage.replace(folder / "a", b"one")
    assert calls == whole and (folder / "a").read_bytes() == b"one"
    with storage.replacing(folder / "a") as file:
        file.write(b"two")
        file.flush()
        assert (folder / "a").read_bytes() == b"one"
    assert calls == 2 * whole and (folder / "a").read_bytes() == b"two"
    calls.clear()
    (folder / "b.tmp").mkdir()
    (folder / "b.tmp" / "inside").touch()
    storage.commit(folder / "b.tmp", folder / "b")
    assert calls == ["flush inside", "flush b.tmp", "b.tmp -> b", "flush folder"] and (folder / "b" / "inside").exists()
    assert sorted(path.name for path in folder.iterdir()) == ["a", "b"]


def test_what_was_not_finished_is_not_there(tmp_path, monkeypatch):
    storage.replace(tmp_path / "a", b"old")
    with pytest.raises(KeyError), storage.replacing(tmp_path / "a") as file:
        file.write(b"new")
        raise KeyError
    assert (tmp_path / "a").read_bytes() == b"old"

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        storage.replace(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old"


def test_a_flush_that_fails_in_passing_is_tried_again(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "WAITS", (0, 0))
    left, fsync = [2], os.fsync

    def flaky(handle):
        left[0] -= 1
        if left[0] >= 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", flaky)
    storage.replace(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new" and left[0] < -1


def test_a_home_directory(monkeypatch):
    monkeypatch.setenv("HOME", "/somebody")
    assert [str(storage.expand(path)) for path in ("~/x", "x", "/x/~", pathlib.Path("~"))] == [
        "/somebody/x",
        "x",
        "/x/~",
        "/somebody",
    ]


def test_a_home_directory_of_nobody_is_told():
    with pytest.raises(
        UserError, match="^~nobody-of-this-name/x: there is no such home directory: write the whole path"
    ):
        storage.expand("~nobody-of-this-name/x")


def test_urls_are_no_folders_of_this_machine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text, records = TextData("stdlib", window=16), TextRecords(source="gs://bucket/x", input="{text}")
    calls = [
        lambda: prepare(text, "gs://bucket/out"),
        lambda: TextData("s3://bucket/x.jsonl").build("data", 16),
        lambda: records.build("data"),
        lambda: ImageData(source="gs://bucket/x").build(),
        lambda: PairData(source="https://host/x.csv").build(),
    ]
    for call in calls:
        with pytest.raises(UserError, match=r"://\S+: a path on this machine is wanted, and no URL: copy it here"):
            call()
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="file is a file: give a directory for what is prepared"):
        prepare(text, tmp_path / "file")
