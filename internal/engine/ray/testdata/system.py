"""A program of Ray's that has a system of RayLink's beside it."""

import ray
import raylink.ray

ray.init(logging_level="error", log_to_driver=False)
with raylink.ray.run("counter", "serve", groups=[raylink.ray.Group(machines=2, cpus=1, labels={"role": "test"})]) as system:
    assert system.machines == ["machines-0", "machines-1"], system.machines
    counter = system.node("counter-0")
    while True:
        try:
            counter.call("counter.v1.Counter/Add", {"by": 5}, timeout=10)
            break
        except raylink.ray.NodeError as error:  # the program has not created it yet
            assert error.code in ("not_found", "unavailable"), error
    print("the node counts to", counter.call("counter.v1.Counter/Get", timeout=10)["sum"])
    try:
        counter.call("counter.v1.Counter/Add", {"by": 5000}, timeout=10)
        raise AssertionError("it was not refused")
    except raylink.ray.NodeError as error:
        assert error.code == "out_of_range", error
try:
    raylink.ray.run("true", groups=[raylink.ray.Group(cpus=50)])
except raylink.ray.RunError as error:
    print("no room:", str(error).removeprefix("the system did not start: raylink: "))
ray.shutdown()
