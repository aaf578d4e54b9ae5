"""Runs a program of RayLink's from a Python program that is connected to a Ray cluster.

`run` starts `raylink run --on ray` as a child that ends with this process, and has one more process of
Python's beside it: see agents.py.
"""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading

from .nodes import Client


class RunError(Exception):
    """Why a system could not be started."""


@dataclasses.dataclass
class Group:
    """A number of machines that are alike: see `raylink run --group`.

    memory is a text such as "16GiB"; resources are others, by Ray's names for them in lower case.
    """

    name: str = "machines"
    machines: int = 1
    cpus: float | None = None
    gpus: float | None = None
    memory: str | None = None
    resources: dict = dataclasses.field(default_factory=dict)
    labels: dict = dataclasses.field(default_factory=dict)

    def text(self):
        settings = {"machines": self.machines, "cpus": self.cpus, "gpus": self.gpus, "memory": self.memory, **self.resources}
        settings |= {f"label.{key}": value for key, value in self.labels.items()}
        return self.name + ":" + ",".join(f"{key}={value}" for key, value in settings.items() if value is not None)


def run(program=None, *args, groups=None, address=None, restart_machines=0, raylink=None, timeout=600):
    """Starts a system over machines of the Ray cluster, and returns once they have joined.

    program is the driver, with its arguments; None for a system without one, which runs until `stop`.
    groups are of type Group; one machine by default. address is that of the cluster that this program is
    connected to, if it is connected. raylink is the executable, else that of PATH. timeout is in seconds.
    It raises RunError, in Ray's words where the cluster can't provide the machines.
    """
    raylink = raylink or shutil.which("raylink")
    if raylink is None:
        raise RunError("raylink is not in PATH")
    if address is None and "ray" in sys.modules and sys.modules["ray"].is_initialized():
        address = sys.modules["ray"].get_runtime_context().gcs_address
    env = dict(os.environ, RAYLINK_PYTHON=sys.executable)
    env["PYTHONPATH"] = os.pathsep.join([os.path.abspath(os.path.join(os.path.dirname(__file__), "..", "..")), *sys.path[1:]])
    if address is not None:
        env["RAY_ADDRESS"] = address
    directory = tempfile.mkdtemp(prefix="raylink-")
    fifo = os.path.join(directory, "system")
    os.mkfifo(fifo, 0o600)
    command = [raylink, "run", "--on", "ray", "--restart-machines", str(restart_machines)]
    groups = groups or [Group()]
    for group in groups:
        command += ["--group", group.text()]
    command += ["--", sys.executable, "-m", "raylink.ray", "driver", fifo, raylink]
    if program is not None:
        command += [program, *map(str, args)]
    return System(command, env, directory, fifo, groups, timeout)


class System:
    """A running system: a context manager, which stops it.

    address is Brain's, machines the names of the machines. Threads may share it.
    """

    def __init__(self, command, env, directory, fifo, groups, timeout):
        self.machines = [f"{group.name}-{i}" for group in groups for i in range(group.machines)]
        self._directory = directory
        self._said = []
        self._process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            where = self._await(fifo, timeout)
        except BaseException:
            self.stop()
            raise
        self.address = where["address"]
        self.client = Client(self.address, where["token"], where["ca"])

    def _read(self):
        for line in self._process.stderr:
            self._said = [*self._said[-19:], line.strip()]
            sys.stderr.write(line)

    def _await(self, fifo, timeout):
        """Returns what the driver writes before it becomes the program."""
        found = []
        reader = threading.Thread(target=lambda: found.append(open(fifo).read()), daemon=True)
        reader.start()
        ended = threading.Thread(target=self._unblock, args=(fifo,), daemon=True)
        ended.start()
        reader.join(timeout)
        if not found:
            raise RunError(f"the system did not start within {timeout} s")
        if not found[0]:
            self._reader.join(5)
            raise RunError("the system did not start: " + (self._said[-1] if self._said else "raylink run has ended"))
        return json.loads(found[0])

    def _unblock(self, fifo):
        self._process.wait()
        try:
            os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
        except OSError:
            pass  # nothing reads it

    def node(self, path):
        """Returns a handle to a node: see Client.node."""
        return self.client.node(path)

    def wait(self, timeout=None):
        """Waits until the program has ended and everything is taken down, and returns its exit code."""
        code = self._process.wait(timeout)
        self._reader.join(5)
        shutil.rmtree(self._directory, ignore_errors=True)
        return code if code >= 0 else 128 - code

    def stop(self):
        """Stops the system in order, and returns the exit code of the program."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        return self.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


def drive(fifo, raylink, command):
    """Is the driver of a run: it writes where the system is, and becomes the program."""
    where = {"address": os.environ["RAYLINK_BRAIN"], "token": "", "ca": ""}
    for field in ("token", "ca"):
        answer = subprocess.run([raylink, field], capture_output=True, text=True, check=False)
        if answer.returncode == 0:
            where[field] = answer.stdout.strip()
    with open(fifo, "w") as out:
        json.dump(where, out)
    if command:
        os.execvp(command[0], command)
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    ended.wait()
