"""A process of the benchmark for Reverb or cpprb: Reverb's server, or a caller that inserts or samples.

usage: buffers.py server ROWS SIZE
       buffers.py SYSTEM KIND ROWS SIZE ADDRESS
It speaks the protocol of the benchmark's other processes (role.go): lines of JSON on standard input
and output. It exits when its input ends.
"""

import json
import os
import sys
import time

import numpy as np

INSERT, SAMPLE = "write", "sample"


class Cpprb:
    """A buffer in this process. Rows are added together."""

    def __init__(self, kind, rows, size, address):
        import cpprb

        self.buffer = cpprb.ReplayBuffer(rows, {"data": {"shape": size, "dtype": np.uint8}})

    def insert(self, data):
        self.buffer.add(data=data)

    def sample(self, n):
        if self.buffer.sample(n)["data"].shape[0] != n:
            raise RuntimeError("the sample has another size")

    def flush(self):
        pass


class Reverb:
    """A client of a server. Each row is an item; it has a table for each kind."""

    def __init__(self, kind, rows, size, address):
        import reverb

        self.reverb, self.kind, self.address = reverb, kind, address
        self.writer = reverb.Client(address).trajectory_writer(num_keep_alive_refs=1)
        self.batches = None

    def insert(self, data):
        for row in data:
            self.writer.append({"data": row})
            self.writer.create_item(self.kind, priority=1.0, trajectory={"data": self.writer.history["data"][-1:]})

    def sample(self, n):
        if self.batches is None:
            dataset = self.reverb.TrajectoryDataset.from_table_signature(
                self.address, self.kind, max_in_flight_samples_per_worker=2 * n
            )
            self.batches = dataset.batch(n).prefetch(4).as_numpy_iterator()
        if next(self.batches).data["data"].shape[0] != n:
            raise RuntimeError("the sample has another size")

    def flush(self):
        self.writer.flush()


class Caller:
    def __init__(self, system, kind, rows, size, address):
        self.system = {"cpprb": Cpprb, "reverb": Reverb}[system](kind, rows, size, address)
        self.kind, self.rows, self.filled = kind, rows, False
        self.data = np.random.default_rng().integers(0, 256, (256, size), np.uint8)
        self.job = {}

    def fill(self):
        """Inserts as many rows as there is room for."""
        if not self.filled:
            for _ in range(0, self.rows, len(self.data)):
                self.system.insert(self.data)
            self.system.flush()
            self.filled = True

    def run(self, seconds):
        n = self.job["inflight"]
        data = self.data[:n]
        times = []
        begun = last = time.perf_counter()
        while last < begun + seconds:
            if self.kind == INSERT:
                self.system.insert(data)
            else:
                self.system.sample(n)
            now = time.perf_counter()
            times.append(now - last)
            last = now
        if self.kind == INSERT:
            self.system.flush()
            last = time.perf_counter()
        p50, p99 = np.quantile(times, (0.5, 0.99)) * 1e9
        return {"outcome": {"ops": n * len(times), "seconds": last - begun, "p50": p50, "p99": p99}}

    def do(self, request):
        op = request["op"]
        if op == "prepare":
            self.job = request["job"]
            self.fill()
            self.run(self.job["duration"] / 5e9)
            return {}
        if op == "run":
            return self.run(self.job["duration"] / 1e9)
        if op in ("usage", "collect"):
            return {}
        raise RuntimeError(f"a caller of a buffer does not support {op}")


class Server:
    def __init__(self, rows, size):
        import reverb
        import tensorflow as tf

        signature = {"data": tf.TensorSpec([1, size], tf.uint8)}
        self.server = reverb.Server(
            [
                reverb.Table(
                    name=kind,
                    sampler=reverb.selectors.Uniform(),
                    remover=reverb.selectors.Fifo(),
                    max_size=rows,
                    rate_limiter=reverb.rate_limiters.MinSize(1),
                    signature=signature,
                )
                for kind in (INSERT, SAMPLE)
            ]
        )

    def do(self, request):
        raise RuntimeError(f"Reverb's server does not support {request['op']}")


def main():
    # What libraries print is dropped: Reverb's writer warns of each item that it has yet to send.
    out = os.fdopen(os.dup(1), "w")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)

    def answer(response):
        out.write(json.dumps(response) + "\n")
        out.flush()

    try:
        if sys.argv[1] == "server":
            process = Server(int(sys.argv[2]), int(sys.argv[3]))
            answer({"address": f"localhost:{process.server.port}"})
        else:
            system, kind, rows, size, address = sys.argv[1:]
            process = Caller(system, kind, int(rows), int(size), address)
            answer({})
    except Exception as error:  # the driver of the benchmark reports it
        answer({"error": f"{type(error).__name__}: {error}"})
        return
    for line in sys.stdin:
        try:
            answer(process.do(json.loads(line)))
        except Exception as error:
            answer({"error": f"{type(error).__name__}: {error}"})
    out.flush()
    os._exit(0)  # threads of libraries must not keep it


main()
