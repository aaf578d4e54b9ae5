"""The benchmark's process for a Ray cluster of three nodes on this machine.

usage: engines.py DIRECTORY | engines.py up ADDRESS
It speaks the protocol of the benchmark's other processes (role.go), and ends the cluster when its
input ends. Its first answer has the cluster's address. With `up` it is a program of a cluster: it
prints a line when its actors have answered, and ends.
"""

import json
import os
import subprocess
import sys
import time

NODES = 3
STORE = 1536 << 20  # the object store's size of each node in bytes
LINE = 64  # a cache line
BATCH = 1000  # how many asynchronous calls are outstanding


def monotonic():
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC)


def outcome(times, took):
    """The result of operations that took some times in nanoseconds."""
    times = sorted(times)
    at = lambda q: times[min(len(times) - 1, int(q * len(times)))]
    return {"outcome": {"ops": len(times), "seconds": took / 1e9, "p50": at(0.5), "p99": at(0.99)}}


class Node:
    def answer(self):
        return b""

    def read(self, refs):
        """Gets an array, reads each cache line, and returns the array's number and when it was read."""
        import numpy as np
        import ray

        parameters = ray.get(refs[0])
        words = parameters.view(np.uint64)
        np.add.reduce(words[:: LINE // 8])
        read = monotonic()
        if words[0] != words[-1]:
            raise RuntimeError("the parameters are a mixture of two versions")
        return int(words[0]), read


def connect(address):
    import ray

    ray.init(address=address, log_to_driver=False, logging_level="error")


def gang():
    """A placement group of a bundle on each node, and an actor in each bundle, which has answered."""
    import ray
    from ray.util.placement_group import placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    group = placement_group([{"CPU": 1}] * NODES, strategy="STRICT_SPREAD")
    actor = ray.remote(Node)
    actors = [
        actor.options(num_cpus=1, scheduling_strategy=PlacementGroupSchedulingStrategy(group, i)).remote() for i in range(NODES)
    ]
    group.wait()
    ray.get([a.answer.remote() for a in actors])
    return actors


class Peer:
    def __init__(self, directory):
        import ray
        from ray.cluster_utils import Cluster

        self.ray = ray
        node = {"num_cpus": 2, "object_store_memory": STORE}
        os.makedirs(os.path.join(directory, "ray"))
        self.cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
        for _ in range(NODES - 1):
            self.cluster.add_node(**node)
        self.cluster.wait_for_nodes()
        self.actor = self.readers = self.parameters = None

    def connect(self):
        if not self.ray.is_initialized():
            connect(self.cluster.address)

    def up(self):
        """From the command, as for RayLink."""
        if self.ray.is_initialized():
            self.ray.shutdown()
            self.actor = self.readers = None
        begun = monotonic()
        with subprocess.Popen([sys.executable, __file__, "up", self.cluster.address], stdout=subprocess.PIPE) as program:
            line = program.stdout.readline()
            took = monotonic() - begun
        if line != b"up\n" or program.returncode != 0:
            raise RuntimeError(f"the program has ended with {program.returncode}")
        return outcome([took], took)

    def create(self, job):
        self.connect()
        actor, times, end = self.ray.remote(Node).options(num_cpus=0), [], monotonic() + job["duration"]
        while not times or monotonic() < end:
            begun = monotonic()
            made = actor.remote()
            self.ray.get(made.answer.remote())
            times.append(monotonic() - begun)
            self.ray.kill(made)
        return outcome(times, sum(times))

    def call(self, job):
        self.connect()
        if self.actor is None:
            self.actor = self.ray.remote(Node).options(num_cpus=1).remote()
        get, answer = self.ray.get, self.actor.answer.remote
        get([answer() for _ in range(BATCH)])
        times, begun = [], monotonic()
        last, end = begun, begun + job["duration"]
        while last < end:
            if job["kind"] == "async":
                get([answer() for _ in range(BATCH)])
            else:
                get(answer())
            now = monotonic()
            times.append(now - last)
            last = now
        result = outcome(times, last - begun)
        if job["kind"] == "async":
            result["outcome"]["ops"] *= BATCH
        return result

    def deliver(self, job, stamp):
        import numpy as np

        self.connect()
        if self.readers is None:
            self.readers = gang()
        size = job["size"]
        if self.parameters is None or len(self.parameters) != size:
            self.parameters = np.full(size, 7, np.uint8)
        words = self.parameters.view(np.uint64)
        words[0] = words[-1] = stamp
        begun = monotonic()
        ref = self.ray.put(self.parameters)
        seen = self.ray.get([reader.read.remote([ref]) for reader in self.readers])
        if any(number != stamp for number, _ in seen):
            raise RuntimeError(f"put version {stamp}, and the readers got {seen}")
        return {"moment": {"begun": begun, "ended": max(read for _, read in seen)}}

    def do(self, request):
        op, job = request["op"], request["job"]
        if op == "deliver":
            return self.deliver(job, request["stamp"])
        if op == "away":  # another driver has the nodes
            if self.ray.is_initialized():
                self.ray.shutdown()
            self.actor = self.readers = None
            return {}
        if op != "run":
            raise RuntimeError(f"Ray's process does not support {op}")
        if job["kind"] == "up":
            return self.up()
        return self.create(job) if job["kind"] == "create" else self.call(job)


def main():
    if sys.argv[1] == "up":
        connect(sys.argv[2])
        gang()
        print("up", flush=True)
        return
    # Whatever Ray prints is dropped: it reports nodes' ends at length.
    out = os.fdopen(os.dup(1), "w")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)

    def answer(response):
        out.write(json.dumps(response) + "\n")
        out.flush()

    try:
        peer = Peer(sys.argv[1])
    except Exception as error:  # the driver of the benchmark reports it
        answer({"error": f"{type(error).__name__}: {error}"})
        return
    answer({"address": peer.cluster.address})
    for line in sys.stdin:
        try:
            answer(peer.do(json.loads(line)))
        except Exception as error:
            answer({"error": f"{type(error).__name__}: {error}"})
    peer.ray.shutdown()
    peer.cluster.shutdown()


main()
