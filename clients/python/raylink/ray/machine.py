"""The actor of a machine: it runs an agent as its child.

Ray's nodes need not have this package: the module travels by value, so that it imports the standard
library and Ray only.
"""

import os
import re
import subprocess
import tempfile
import threading
import uuid

import ray

# Labels of Ray's nodes that RayLink accepts.
LABEL = re.compile(r"([a-z0-9][a-z0-9.-]{0,251}[a-z0-9]/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?\Z")
VALUE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?\Z")

# Runs an agent, and removes its directory when it has ended, whatever ended it: so the shell is no
# child of this process, which Ray may kill with its children. After a kill the processes of the
# agent's nodes end a moment later than the agent.
SHELL = """exec 3<&0
{
  directory=$1; shift
  "$@"; code=$?
  trap '' PIPE
  rm -rf "$directory"
  [ $code = 0 ] || { sleep 1; rm -rf "$directory"; }
  echo "raylink-ended $code"
} <&3 3<&- &"""
ENDED = "raylink-ended "


class Machine:
    """Runs the agent of one machine."""

    def __init__(self):
        self.lock = threading.Lock()
        self.stdin = None
        self.stopped = False

    def run(self, request, executable):
        """Runs the agent, and generates the lines that it prints; the last one is how it has ended.

        The token is in the request. executable is a list with the reference to raylink's executable.
        """
        path = install(request["sha256"], lambda: ray.get(executable[0]))
        directory = tempfile.mkdtemp(prefix="raylink-")
        env = {name: value for name, value in os.environ.items() if not name.startswith("RAYLINK_") or name == "RAYLINK_LOG"}
        env["RAYLINK_MACHINE"] = "ray-" + uuid.uuid4().hex
        env["RAYLINK_RUNTIME_DIR"] = directory
        env["RAYLINK_DATA"] = os.path.join(directory, "data")
        env["CUDA_VISIBLE_DEVICES"] = ",".join(str(gpu) for gpu in ray.get_gpu_ids())
        flags = list(request["flags"])
        given = {flag.partition("=")[0] for flag in flags}
        for key, value in sorted(ray.get_runtime_context().get_node_labels().items()):
            if LABEL.match(key) and VALUE.match(value) and key not in given:
                flags += ["--label", f"{key}={value}"]
        command = [path, "agent", "--attached", "-o", "json", "--brain", request["brain"], *flags]
        process = subprocess.Popen(
            ["/bin/sh", "-c", SHELL, "sh", directory, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=env,
            start_new_session=True,
        )
        process.wait()  # the shell that has started the other one
        with self.lock:
            self.stdin = process.stdin
            self._send(request["token"])
            if self.stopped:
                self._send("stop")
        ended = "it was killed"
        for line in process.stdout:
            text = line.decode(errors="replace").rstrip("\n")
            if text.startswith(ENDED):
                code = int(text.removeprefix(ENDED))
                ended = "it has ended" if code == 0 else f"it has failed with exit code {code}"
                if code > 128:
                    ended = f"it was ended by the signal {code - 128}"
            elif not text.startswith("{"):
                yield text
        yield "its agent has ended: " + ended

    def stop(self):
        """Asks the agent to stop gracefully."""
        with self.lock:
            self.stopped = True
            if self.stdin is not None:
                self._send("stop")

    def ping(self):
        """Answers if the actor is there."""

    def _send(self, line):
        try:
            self.stdin.write(line.encode() + b"\n")
            self.stdin.flush()
        except OSError:
            pass  # the agent has ended, which `run` reports


def install(sha256, fetch):
    """Returns the path of an executable in the cluster's session directory, which Ray's nodes on one computer share.

    If it is not there, it becomes what `fetch` returns.
    """
    directory = os.path.join(ray._private.worker._global_node.get_session_dir_path(), "raylink")
    os.makedirs(directory, mode=0o700, exist_ok=True)
    if os.stat(directory).st_uid != os.getuid():
        raise PermissionError(f"{directory} belongs to another user")
    path = os.path.join(directory, sha256)
    if not os.path.exists(path):
        fd, temporary = tempfile.mkstemp(dir=directory)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(fetch())
            os.chmod(temporary, 0o700)
            os.rename(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    return path
