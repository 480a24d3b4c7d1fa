"""The flags of a run of several processes, and the words by which its processes know each other."""

import socket

import pytest
from absl import flags

from launch.run import distributed
from paradigm.errors import UserError


@pytest.mark.parametrize("given, text", [
    (dict(process=1), "--coordinator=HOST:PORT, --processes=N and --process=I go together; --distributed asks"),
    (dict(coordinator="h:1", processes=2), "go together"),
    (dict(coordinator="foo", processes=2, process=1), "--coordinator=foo must be HOST:PORT of process 0, as in 10"),
    (dict(coordinator="h:1", processes=2, process=2), "--process=2 must lie between 0 and 1"),
    (dict(distributed=True, process=1), "leave --coordinator, --processes and --process out"),
])  # fmt: skip
def test_flags_that_do_not_go_together(given, text, monkeypatch):
    for name, value in given.items():
        monkeypatch.setattr(flags.FLAGS[name], "value", value)
    with pytest.raises(UserError) as error:
        distributed.join()
    assert text in str(error.value)


def test_without_flags_nothing_is_joined():
    import jax

    distributed.join()
    assert not jax.distributed.is_initialized()


def test_one_process_has_no_peers(tmp_path):
    with distributed.Peers("a = 1\n", {"jax": "1"}) as alone, alone.telling():
        alone.share(tmp_path)
        alone.tell("nothing")
    assert not list(tmp_path.iterdir())


def test_a_difference_is_told_by_its_lines():
    assert distributed._difference("a = 1\nb = 2\n", "a = 1\nb = 3\n") == ["- b = 2", "+ b = 3"]
    assert distributed._difference({"jax": "0.10"}, {"jax": "0.11"}) == ["- jax 0.10", "+ jax 0.11"]
    assert not distributed._difference("a = 1\n", "a = 1\n")


def test_messages_come_whole_however_they_are_cut():
    one, other = socket.socketpair()
    connection = distributed._Connection(other)
    text = b'{"gone": "process 3"}\n{"heartbeat": true}\n'
    for at in range(len(text)):
        one.sendall(text[at : at + 1])
    assert connection.receive(5) == {"gone": "process 3"} and connection.receive(5) == {"heartbeat": True}
    with pytest.raises(TimeoutError):
        connection.receive(0.05)
    one.close()
    with pytest.raises(OSError):
        connection.receive(5)


def test_a_platform_that_is_half_set_is_one_line(monkeypatch):
    """mpirun's address without the number of processes, as in a shell that was started below one of them."""
    import jax

    def initialize(*_, **__):
        raise KeyError("OMPI_COMM_WORLD_SIZE")  # as jax does, which reads one variable after the other

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    monkeypatch.setattr(flags.FLAGS["distributed"], "value", True)
    with pytest.raises(UserError, match="the others: 'OMPI_COMM_WORLD_SIZE' is not set, of what the platform sets"):
        distributed.join()
