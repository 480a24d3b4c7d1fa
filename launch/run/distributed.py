"""Distributed runs: several processes start with one configuration, and when one ends the others say which and end.

jax alone finds out late or not at all: a process that dies leaves the others in a collective or in a barrier for
minutes, and the line that ends them names nobody. So the processes also hold one TCP connection each to process 0, by
which they greet, send heartbeats and take leave. A connection that breaks is a process that died; one without a
heartbeat for SILENCE seconds hangs. Then process 0 tells the others, and each prints one line and ends at once: state
on the disk is whole at any moment.

Exit codes: 2 a person's mistake, 3 another process ended, 4 a step over its bound (watchdog.py), 1 anything else.
"""

import contextlib
import json
import os
import secrets
import socket
import sys
import threading
import time
import traceback

import numpy as np
from absl import flags

from paradigm.errors import UserError
from paradigm.storage import retry

COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, in a run of several processes.")
PROCESSES = flags.DEFINE_integer("processes", None, "How many processes the run has.")
PROCESS = flags.DEFINE_integer("process", None, "Which of them this is, from 0.")
DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Several processes, as a TPU pod, GKE, SLURM or MPI says; instead of the three flags above."
)
JOIN_TIMEOUT = flags.DEFINE_integer("join_timeout", 300, "Seconds to wait until all processes are there.", 1)

GONE = 3  # exit code
HEARTBEAT, SILENCE = 2.0, 25.0  # seconds between heartbeats, and without one until a process counts as hung
ECHO, UNWIND = 2.0, 10.0  # seconds to learn of another's end, and to close files after an error
MESSAGE = 2048  # bytes of what process 0 makes known at the start


def join():
    """jax.distributed as the flags say; nothing when they say nothing. Call it before anything uses a device.

    Raises:
        UserError: flags that do not go together, or nobody at --coordinator within --join_timeout.
    """
    given = [COORDINATOR.value, PROCESSES.value, PROCESS.value]
    if not DISTRIBUTED.value and given == [None] * 3:
        return
    if DISTRIBUTED.value and given != [None] * 3:
        raise UserError("--distributed asks the platform; leave --coordinator, --processes and --process out")
    if None in given and not DISTRIBUTED.value:
        raise UserError(
            "--coordinator=HOST:PORT, --processes=N and --process=I go together; --distributed asks the platform"
        )
    if not DISTRIBUTED.value:
        host, _, port = COORDINATOR.value.rpartition(":")
        if not host or not port.isdecimal():
            raise UserError(f"--coordinator={COORDINATOR.value} must be HOST:PORT of process 0, as in 10.0.0.2:8476")
        if not 0 <= PROCESS.value < PROCESSES.value:
            raise UserError(f"--process={PROCESS.value} must lie between 0 and {PROCESSES.value - 1}")
        if PROCESS.value:
            _reach(host, int(port), JOIN_TIMEOUT.value)
    import jax

    # jax's own bound ends the process from C++, past every `except`; ours comes first and says what to look at.
    bound = threading.Timer(JOIN_TIMEOUT.value, _nobody)
    bound.daemon = True
    bound.start()
    try:
        jax.distributed.initialize(*given, initialization_timeout=JOIN_TIMEOUT.value + 60, shutdown_timeout_seconds=60)
    except (ValueError, RuntimeError, KeyError) as error:
        why = f"{error} is not set, of what the platform sets together" if isinstance(error, KeyError) else str(error)
        raise UserError(
            f"this process cannot join the others: {why.splitlines()[0]}; where no platform says who they are, "
            "give --coordinator, --processes and --process"
        ) from error
    finally:
        bound.cancel()


def _reach(host, port, seconds):
    end = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((host, port), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > end:
                raise UserError(
                    f"nobody answered at --coordinator={host}:{port} within {seconds} s ({error.strerror or error}): "
                    "is process 0 running, is this its address, and may this host reach that port?"
                ) from error
        time.sleep(0.2)


def _nobody():
    count = f"all {PROCESSES.value}" if PROCESSES.value else "all"
    _end(
        f"error: after {JOIN_TIMEOUT.value} s not {count} processes are there: was the same command started on every "
        "host, once, and does each have a --process of its own? (--join_timeout waits longer)",
        2,
    )


def leave(code):
    """Ends one of several processes: at once, for at an ordinary exit jax would wait for those that hang."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _end(line, code):
    """Prints and ends the process, from any thread."""
    os.write(2, f"{line}\n".encode())
    os._exit(code)


class Peers:
    """The other processes of a run, watched; nothing in a run of one. Use it in `with`, in every process.

    Args:
        config: the run's configuration as text. All must have the same.
        versions: {package: version}. All must have the same.

    Raises:
        UserError: on entering, in every process: configurations or versions differ, and in whom.
    """

    def __init__(self, config, versions):
        import jax

        self.index, self.count = jax.process_index(), jax.process_count()
        self._hello = {"process": self.index, "host": socket.gethostname(), "config": config, "versions": versions}
        self._left, self._connections, self._threads = False, {}, []

    def __enter__(self):
        if self.count > 1:
            self._meet()
            self._watch(self._serve if self.index == 0 else self._follow)
        return self

    def __exit__(self, kind, error, _):
        if self.count > 1 and error is None:
            self._send({"bye": True})
            self._left = True

    @contextlib.contextmanager
    def telling(self):
        """Tells the others of an error that passes, before anything that the error unwinds waits for them."""
        try:
            yield
        except BaseException as error:
            if self.count > 1:
                if not isinstance(error, (UserError, KeyboardInterrupt)):
                    time.sleep(ECHO)  # a collective broke? Whose end it was is about to be known, and ends this process
                name = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
                self.tell(name + (str(error).splitlines() or [""])[0])
                last = threading.Timer(UNWIND, _end, (traceback.format_exc().rstrip(), 1))
                last.daemon = True
                last.start()
            raise

    def tell(self, text):
        """Makes known that this process ends, and why."""
        if self.count > 1:
            self._left = True
            self._send({"gone": f"{self._name(self._hello)} ended: {text}"})

    def share(self, workdir):
        """Raises UserError where the run directory is not the one that process 0 sees; all call it."""
        if self.count == 1:
            return
        path, found = workdir / "processes.json", None
        if self.index == 0:
            self.token = secrets.token_hex(8)
            names = [c.hello["host"] for _, c in sorted(self._connections.items())]
            content = json.dumps({"token": self.token, "hosts": [self._hello["host"], *names]})
            retry(path.write_bytes, content.encode())
        token = _broadcast({"token": getattr(self, "token", None)})["token"]
        for _ in range(100):  # a network file system shows new files late
            try:
                found = json.loads(retry(path.read_bytes))["token"]
            except (OSError, ValueError, KeyError):
                pass
            if found == token:
                return
            time.sleep(0.1)
        raise UserError(
            f"--workdir={workdir} is not the directory that process 0 writes to ({self._name(self._hello)} does not "
            "see its files): all processes need one shared file system there, or a bucket (gs://...)"
        )

    # --- meeting ------------------------------------------------------------------------------------------------------

    def _meet(self):
        if self.index == 0:
            server = socket.create_server(("", 0), backlog=self.count)
            secret = secrets.token_hex(8)
            _broadcast({"addresses": _addresses(), "port": server.getsockname()[1], "secret": secret})
            server.settimeout(60)
            verdict = self._greet(server, secret)
            server.close()
            self._send({"verdict": verdict})
        else:
            known = _broadcast({})
            connection = self._connections[0] = _connect(known["addresses"], known["port"])
            connection.send({**self._hello, "secret": known["secret"]})
            connection.hello = {"process": 0, "host": known["addresses"][0]}
            verdict = connection.receive(60)["verdict"]
        if verdict:
            self._left = True
            raise UserError(verdict)

    def _greet(self, server, secret):
        """Takes everybody's greeting; what is wrong with them, or ''."""
        try:
            while len(self._connections) < self.count - 1:
                connection = _Connection(server.accept()[0])
                hello = connection.receive(10)
                if hello.pop("secret", None) == secret:
                    connection.hello = hello
                    self._connections[hello["process"]] = connection
        except OSError:
            missing = sorted(set(range(1, self.count)) - self._connections.keys())
            return f"processes {missing} cannot reach process 0 by TCP: open all ports between the hosts of a run"
        for _, connection in sorted(self._connections.items()):
            for what in ("config", "versions"):
                if lines := _difference(self._hello[what], connection.hello[what]):
                    return (
                        f"{self._name(connection.hello)} has another {what} than process 0 "
                        f"({self._hello['host']}): {'; '.join(lines)}. Give every process the same command"
                    )
        return ""

    # --- watching -----------------------------------------------------------------------------------------------------

    def _watch(self, how):
        threading.Thread(target=self._heartbeat, daemon=True).start()
        for connection in self._connections.values():
            threading.Thread(target=how, args=(connection,), daemon=True).start()

    def _heartbeat(self):
        while not self._left:
            self._send({"heartbeat": True})
            time.sleep(HEARTBEAT)

    def _serve(self, connection):
        if why := self._listen(connection):
            self._left = True
            self._send({"gone": why})
            self._stop(why)

    def _follow(self, connection):
        if why := self._listen(connection):
            self._stop(why)

    def _listen(self, connection):
        """Until the process at the other end takes leave (None), or is lost: why."""
        name = self._name(connection.hello)
        while True:
            try:
                message = connection.receive(SILENCE)
            except TimeoutError:
                message = {"gone": f"{name} gave no sign of life for {SILENCE:.0f} s: it hangs, or its host is cut off"}
            except (OSError, ValueError):
                message = {"gone": f"{name} is gone: killed, out of memory, or its host was lost"}
            if self._left or "bye" in message:
                return None
            if "gone" in message:
                return message["gone"]

    def _stop(self, why):
        _end(f"error: {why}. This is process {self.index}, which ends too; the same command goes on", GONE)

    def _send(self, message):
        for connection in list(self._connections.values()):
            try:
                connection.send(message)
            except OSError:
                pass  # who listens to it finds out

    def _name(self, hello):
        return f"process {hello['process']} of {self.count} ({hello['host']})"


class _Connection:
    """A socket that carries JSON, one object a line."""

    def __init__(self, connected):
        self._socket, self._buffer, self._lock = connected, b"", threading.Lock()
        self.hello = None

    def send(self, message):
        with self._lock:
            self._socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, seconds):
        self._socket.settimeout(seconds)
        while b"\n" not in self._buffer:
            data = self._socket.recv(1 << 16)
            if not data:
                raise ConnectionResetError
            self._buffer += data
        line, self._buffer = self._buffer.split(b"\n", 1)
        return json.loads(line)


def _connect(addresses, port):
    for address in addresses:
        try:
            return _Connection(socket.create_connection((address, port), timeout=10))
        except OSError:
            continue
    raise UserError(
        f"process 0 cannot be reached at port {port} of {', '.join(addresses)}: open all ports between the run's hosts"
    )


def _addresses():
    """By what names other hosts may know this one."""
    found = [socket.gethostname()]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("10.255.255.255", 1))  # sends nothing; the kernel picks the interface
            found.append(probe.getsockname()[0])
        except OSError:
            pass
    return [*found, "127.0.0.1"]


def _broadcast(message):
    """Process 0's dict, in all."""
    from jax.experimental import multihost_utils

    text = json.dumps(message).encode()
    padded = np.frombuffer(text.ljust(MESSAGE), np.uint8)
    return json.loads(bytes(np.asarray(multihost_utils.broadcast_one_to_all(padded))))


def _difference(mine, theirs):
    """The lines, or entries, by which two differ: '-' process 0's, '+' the other's."""
    as_lines = lambda x: x.splitlines() if isinstance(x, str) else [f"{name} {value}" for name, value in x.items()]
    mine, theirs = as_lines(mine), as_lines(theirs)
    return [f"- {line}" for line in mine if line not in theirs] + [f"+ {line}" for line in theirs if line not in mine]
