"""Runs one agent on each machine of a run: `python -m raylink.ray agents`.

Standard input is a pipe. Its first line is a JSON request to check what the cluster has, the next one
to start the agents:

    {"address": "", "bundles": [{"CPU": 2}, ...], "strategy": "", "wait": false}
    {"brain": "HOST:PORT", "token": "...", "raylink": "PATH", "machines": [{"name": "...", "flags": [...]}, ...], "restarts": 0}

The line `stop` stops all agents gracefully. The end of the pipe without it ends everything at once.
Standard output has a JSON object a line: {"event": ...} is `checked` (with the address to listen on
and the strategy), `refused`, `output`, `note`, `lost`, `failed` or `stopped`.

The process is one driver of Ray's: its placement group and its actors end with it, also if it is killed.
"""

import asyncio
import hashlib
import json
import os
import signal
import sys
import threading

from . import cluster

# How long agents have to stop gracefully, in seconds; nodes have ten for their calls.
STOP = 25
# After how long without room a note reports it, in seconds.
PATIENCE = 5
# How often an actor that Ray calls unavailable is asked again, in seconds, and for how long: until
# Ray has decided whether its node is dead.
AGAIN, UNDECIDED = 0.5, 120


class Events:
    """Writes events to what was standard output; what Ray prints goes to standard error instead."""

    def __init__(self):
        self.lock = threading.Lock()
        self.out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def __call__(self, event, **fields):
        with self.lock:
            try:
                self.out.write(json.dumps({"event": event, **fields}) + "\n")
                self.out.flush()
            except OSError:
                pass  # the reader has ended, and so does standard input


class Run:
    """The agents of a run."""

    def __init__(self, ray, check, strategy, bundles, request, events):
        self.ray, self.events, self.request = ray, events, request
        self.restarts = request["restarts"]
        self.stopping = False
        from ray.util.placement_group import placement_group

        from . import machine

        ray.cloudpickle.register_pickle_by_value(machine)
        self.actor = ray.remote(machine.Machine)
        self.group = placement_group(bundles, strategy=strategy, name=f"raylink-{os.getpid()}")
        self.bundles = bundles
        # Ray takes most of a second to start an actor's process: the program is stored meanwhile.
        self.actors = {index: self.create(index) for index in range(len(request["machines"]))}
        with open(request["raylink"], "rb") as file:
            program = file.read()
        self.sha256 = hashlib.sha256(program).hexdigest()
        # Ray's nodes on this computer need not fetch it, nor write it once each.
        machine.install(self.sha256, lambda: program)
        self.executable = ray.put(program)

    def create(self, index):
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        bundle = dict(self.bundles[index])
        placed = PlacementGroupSchedulingStrategy(self.group, index)
        cpus, gpus, memory = bundle.pop("CPU", 0), bundle.pop("GPU", 0), bundle.pop("memory", 0)
        return self.actor.options(
            num_cpus=cpus, num_gpus=gpus, memory=memory or None, resources=bundle, scheduling_strategy=placed, max_concurrency=4
        ).remote()

    async def machine(self, index):
        """Runs one machine, and runs it again when it is lost as long as there are restarts."""
        asked = self.request["machines"][index]
        # Ray keeps the arguments of an actor's creation, but not those of its methods.
        request = {"brain": self.request["brain"], "token": self.request["token"], "flags": asked["flags"], "sha256": self.sha256}
        while not self.stopping:
            actor, cause = self.actors[index], ""
            try:
                async for ref in actor.run.options(num_returns="streaming").remote(request, [self.executable]):
                    line, previous = await ref, cause
                    if previous:
                        self.events("output", machine=asked["name"], line=previous)
                    cause = line
            except Exception as error:  # of Ray's many types all are the end of the machine
                cause = "Ray: " + cluster.words(await self.decided(actor, error))
            self.ray.kill(actor)
            if self.stopping:
                return
            self.restarts -= 1
            again = self.restarts >= 0
            self.events("lost", machine=asked["name"], cause=cause, again=again)
            if not again:
                return
            self.actors[index] = self.create(index)

    async def decided(self, actor, error):
        """Returns the error once Ray has decided what has become of an actor that it calls unavailable."""
        for _ in range(int(UNDECIDED / AGAIN)):
            if self.stopping or not isinstance(error, self.ray.exceptions.ActorUnavailableError):
                break
            await asyncio.sleep(AGAIN)
            try:
                await actor.ping.remote()
                break
            except Exception as later:
                error = later
        return error

    async def stop(self, machines):
        """Stops the agents gracefully."""
        self.stopping = True
        for actor in self.actors.values():
            actor.stop.remote()
        await asyncio.wait(machines, timeout=STOP)

    def remove(self):
        from ray.util.placement_group import remove_placement_group

        remove_placement_group(self.group)

    def note_room(self):
        """Reports it if there is no room for the placement group."""
        if not self.group.wait(PATIENCE) and not self.stopping:
            free = self.ray.available_resources()
            free = {name: amount for name, amount in free.items() if not name.startswith(("node:", "bundle_")) and "_group_" not in name}
            wanted = ", ".join(cluster.amounts(bundle) for bundle in self.bundles[:8])
            self.events("note", line=f"Ray has no room yet for {wanted}: free in the whole cluster is {cluster.amounts(free)}")


def checked(events):
    """Connects, checks, and returns Ray, the first request, the strategy and the bundles."""
    check = json.loads(sys.stdin.readline())
    ray = cluster.connect(check["address"])
    # Ray stops a job by signals to all of its processes; this one ends by its pipe.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    nodes = cluster.alive(ray)
    bundles, strategy = cluster.plan(check["bundles"], [node["Resources"] for node in nodes], check["strategy"], check["wait"])
    events("checked", listen=cluster.listen_address(ray, nodes), strategy=strategy, address=ray.get_runtime_context().gcs_address)
    return ray, check, strategy, bundles


async def serve(run, loop, lines):
    threading.Thread(target=run.note_room, daemon=True).start()
    machines = [asyncio.ensure_future(run.machine(i)) for i in range(len(run.request["machines"]))]
    line = await lines.get()
    if line.strip() == "stop":
        await run.stop(machines)
    run.stopping = True
    for task in machines:
        task.cancel()
    await asyncio.gather(*machines, return_exceptions=True)


def main():
    events = Events()
    ray = None
    try:
        ray, *plan = checked(events)
        line = sys.stdin.readline()
        if not line.strip() or line.strip() == "stop":
            return 0
        run = Run(ray, *plan, json.loads(line), events)

        async def begin():
            loop, lines = asyncio.get_running_loop(), asyncio.Queue()
            reader = threading.Thread(target=lambda: loop.call_soon_threadsafe(lines.put_nowait, sys.stdin.readline()), daemon=True)
            reader.start()
            await serve(run, loop, lines)

        try:
            asyncio.run(begin())
        finally:
            run.remove()
        events("stopped")
        return 0
    except cluster.Refused as error:
        events("refused", error=str(error))
        return 1
    except Exception as error:
        events("failed", error=f"{type(error).__name__}: {cluster.words(error)}")
        return 1
    finally:
        if ray is not None:
            ray.shutdown()
