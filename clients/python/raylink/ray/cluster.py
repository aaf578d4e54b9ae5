"""Connects to a Ray cluster, and checks that it can provide what is asked for."""

import json
import os
import socket

OLDEST = (2, 60)

# Where Ray's jobs find their configuration.
JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"

# How long connecting to the cluster's address may take, in seconds.
REACH = 10

# Ray reports its use over the internet unless this is set; what a user has set remains.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


class Refused(Exception):
    """Why the cluster can't provide what is asked for."""


def load():
    """Imports Ray; an unsuitable version is refused."""
    try:
        import ray
    except ImportError as error:
        raise Refused(f"Python has no Ray ({error}): pip install 'raylink[ray]', or set RAYLINK_PYTHON to a Python that has it") from error
    version = ray.__version__
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        raise Refused(f"this Python has Ray {version}; RayLink needs {OLDEST[0]}.{OLDEST[1]} or newer")
    return ray


def words(error):
    """The text of an error in one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 700 else text[:700] + " ..."


def connect(address):
    """Connects to the cluster at an address; without one to that of RAY_ADDRESS or of this machine."""
    ray = load()
    address = address or os.environ.get("RAY_ADDRESS") or "auto"
    if address.startswith("ray://"):
        raise Refused(f"{address} is an address of Ray Client, which can't be used: use --detach with the address of Ray's dashboard, http://HOST:8265")
    reach(address)
    leave_working_directory()
    try:
        ray.init(address=address, log_to_driver=False, logging_level="error", configure_logging=False)
    except Exception as error:  # Ray raises many types, RuntimeError for another version
        raise Refused(f"there is no cluster to connect to at {address}: {words(error)}") from error
    return ray


def reach(address):
    """Refuses an address at which nothing listens: Ray itself tries for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return  # `auto`, or what Ray refuses by itself
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACH).close()
    except OSError as error:
        raise Refused(f"there is no cluster to connect to at {address}: {error}") from error


def leave_working_directory():
    """Keeps the nodes from fetching the working directory of the job that this process is a part of.

    It has what the head needs. Where several nodes share a computer, they would even replace it.
    """
    config = json.loads(os.environ.get(JOB_CONFIG) or "{}")
    if config.get("runtime_env"):
        config["runtime_env"] = {}
        os.environ[JOB_CONFIG] = json.dumps(config)


def amounts(resources):
    return "{" + ", ".join(f"{name}: {amount:g}" for name, amount in sorted(resources.items())) + "}"


def fits(bundle, node):
    return all(node.get(name, 0) >= amount for name, amount in bundle.items())


def translate(bundles, nodes):
    """Returns the bundles with the names that the nodes' resources have: RayLink's are in lower case."""
    names = sorted({name for node in nodes for name in node if not name.startswith("node:")})
    translated = []
    for bundle in bundles:
        translated.append({})
        for name, amount in bundle.items():
            same = [name] if name in names else [other for other in names if other.lower() == name.lower()]
            if len(same) != 1 and name not in ("CPU", "GPU", "memory"):
                raise Refused(f"no node of the cluster has a resource {name!r}; there are {', '.join(names)}")
            translated[-1][same[0] if len(same) == 1 else name] = amount
    return translated


def separate(bundles, nodes):
    """Reports whether each bundle can have a node of its own. It may fail to see a way where there is one."""
    free = sorted(nodes, key=lambda node: sum(node.values()))
    for bundle in sorted(bundles, key=lambda bundle: -sum(bundle.values())):
        for i, node in enumerate(free):
            if fits(bundle, node):
                del free[i]
                break
        else:
            return False
    return True


def plan(bundles, nodes, strategy, wait):
    """Returns the bundles and the strategy of the placement group.

    nodes are the resources of the nodes that are alive. What they could not have even if they were idle
    is refused, unless wait is set: then an autoscaler may add nodes.
    """
    if wait:
        return bundles, strategy or "SPREAD"
    bundles = translate(bundles, nodes)
    what = "; the nodes have " + ", ".join(amounts({k: v for k, v in node.items() if not k.startswith("node:")}) for node in nodes[:8])
    for bundle in bundles:
        if not any(fits(bundle, node) for node in nodes):
            raise Refused(f"no node of the cluster has {amounts(bundle)}, so that Ray could never place it{what}")
    for name in sorted({name for bundle in bundles for name in bundle}):
        asked, there = sum(bundle.get(name, 0) for bundle in bundles), sum(node.get(name, 0) for node in nodes)
        if asked > there:
            raise Refused(f"{len(bundles)} machines need {asked:g} of {name}, and the cluster has {there:g}{what}")
    if strategy == "STRICT_SPREAD" and len(nodes) < len(bundles):
        raise Refused(f"STRICT_SPREAD needs a node for each of {len(bundles)} machines, and the cluster has {len(nodes)}")
    return bundles, strategy or ("STRICT_SPREAD" if separate(bundles, nodes) else "SPREAD")


def alive(ray):
    return [node for node in ray.nodes() if node["Alive"]]


def listen_address(ray, nodes):
    """The address that a process of this machine should listen on, so that all nodes reach it."""
    here = ray.util.get_node_ip_address()
    if all(node["NodeManagerAddress"] == here for node in nodes):
        return "127.0.0.1:0"
    return f"[{here}]:0" if ":" in here else f"{here}:0"
