"""The benchmark's process for Ray: a driver that puts, and four actors that get.

usage: ray.py DIRECTORY READERS
It speaks the protocol of the benchmark's other processes (role.go): lines of JSON on standard input
and output. It ends Ray's processes and exits when its input ends.
"""

import json
import os
import sys
import time

import numpy as np
import ray

STORE = 2 << 30  # the object store's size in bytes
LINE = 64  # a cache line


def monotonic():
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC)


@ray.remote(num_cpus=1)
class Reader:
    def read(self, refs):
        """Gets an array, reads each cache line, and returns the array's number and when it was read."""
        parameters = ray.get(refs[0])
        words = parameters.view(np.uint64)
        np.add.reduce(words[:: LINE // 8])
        read = monotonic()
        if words[0] != words[-1]:
            raise RuntimeError("the parameters are a mixture of two versions")
        return int(words[0]), read


class Driver:
    def __init__(self, readers):
        self.readers = [Reader.remote() for _ in range(readers)]
        self.parameters = np.zeros(0, np.uint8)
        # Write to all of the store's memory once, so that no put pays for new pages.
        held = [ray.put(np.zeros(STORE // 8, np.uint8)) for _ in range(7)]
        del held

    def deliver(self, size, stamp):
        if len(self.parameters) != size:
            self.parameters = np.full(size, 7, np.uint8)
        words = self.parameters.view(np.uint64)
        words[0] = words[-1] = stamp
        begun = monotonic()
        ref = ray.put(self.parameters)
        seen = ray.get([reader.read.remote([ref]) for reader in self.readers])
        if any(number != stamp for number, _ in seen):
            raise RuntimeError(f"put version {stamp}, and the readers got {seen}")
        return {"moment": {"begun": begun, "ended": max(read for _, read in seen)}}


def main():
    # Whatever Ray prints goes to standard error.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(response):
        out.write(json.dumps(response) + "\n")
        out.flush()

    directory, readers = sys.argv[1], int(sys.argv[2])
    try:
        ray.init(
            num_cpus=readers,
            include_dashboard=False,
            object_store_memory=STORE,
            _temp_dir=directory,
            log_to_driver=False,
            logging_level="error",
        )
        driver = Driver(readers)
    except Exception as error:  # the driver of the benchmark reports it
        answer({"error": f"{type(error).__name__}: {error}"})
        return
    answer({})
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["op"] != "deliver":
                raise RuntimeError(f"Ray's process does not support {request['op']}")
            answer(driver.deliver(request["job"]["size"], request["stamp"]))
        except Exception as error:
            answer({"error": f"{type(error).__name__}: {error}"})
    ray.shutdown()


main()
