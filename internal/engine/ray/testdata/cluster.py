"""A Ray cluster for tests: `cluster.py NODES DASHBOARD`.

It prints a line of JSON when the cluster is there, answers each line of standard input, and ends the
cluster when that ends. A command is `kill N`, which kills the raylet of a node beside the head,
`add`, or `left`, which says what is in the cluster. Ray starts only what runs and jobs need: without
that its own processes take most of the time of a test.
"""

import json
import os
import sys

from ray._private import ray_constants, services
from ray.cluster_utils import Cluster

STORE = 100 << 20
CONFIG = {
    # Ray decides within a few seconds that a node is dead.
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 4000,
    "health_check_failure_threshold": 3,
    # Each driver would have a worker started for each CPU.
    "enable_worker_prestart": False,
    "prestart_worker_first_driver": False,
}


def node(**extra):
    return {"num_cpus": 4, "object_store_memory": STORE, "resources": {"Licence": 1}, **extra}


def jobs_only(start):
    """Wraps services.start_ray_process: the dashboard has what jobs need, and none of its eight other parts."""

    def wrapped(command, process_type, *args, **kwargs):
        if process_type == ray_constants.PROCESS_TYPE_DASHBOARD and "--disable-frontend" not in command:
            command = [*command, "--modules-to-load=JobHead,NodeHead"]
        return start(command, process_type, *args, **kwargs)

    return wrapped


def main():
    nodes, dashboard = int(sys.argv[1]), sys.argv[2] == "1"
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(**fields):
        out.write(json.dumps(fields) + "\n")
        out.flush()

    services.start_ray_process = jobs_only(services.start_ray_process)
    head = node(include_dashboard=dashboard, _system_config=CONFIG, dashboard_port=0, no_monitor=True, include_log_monitor=False)
    cluster = Cluster(initialize_head=True, head_node_args=head)
    workers = [cluster.add_node(**node(wait=False)) for _ in range(nodes - 1)]
    cluster.wait_for_nodes()
    answer(address=cluster.address, dashboard=cluster.head_node.webui_url or "")
    import ray

    for line in sys.stdin:
        words = line.split()
        if words[0] == "kill":
            victim = workers.pop(int(words[1]))
            victim.all_processes[ray_constants.PROCESS_TYPE_RAYLET][0].process.kill()
            cluster.worker_nodes.discard(victim)
            victim.kill_all_processes(check_alive=False, allow_graceful=False)
            answer()
        elif words[0] == "add":
            workers.append(cluster.add_node(**node()))
            answer()
        elif words[0] == "left":
            if not ray.is_initialized():
                ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
            from ray._private.state import actors
            from ray.util import placement_group_table

            alive = [a["ActorID"] for a in actors().values() if a["State"] != "DEAD"]
            groups = [g["placement_group_id"] for g in placement_group_table().values() if g["state"] != "REMOVED"]
            answer(actors=alive, groups=groups)
    ray.shutdown()
    cluster.shutdown()


main()
