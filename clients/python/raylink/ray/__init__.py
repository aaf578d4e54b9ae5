"""RayLink on the machines of a Ray cluster.

`run` starts a system of RayLink on the cluster that the calling program is connected to, and returns
a handle to it. The command line uses `python -m raylink.ray`, see __main__.py.
"""

from .nodes import Client, Node, NodeError
from .system import Group, RunError, System, run

__all__ = ["Client", "Group", "Node", "NodeError", "RunError", "System", "run"]
