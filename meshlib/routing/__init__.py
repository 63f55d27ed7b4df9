"""Decides where a request goes: its virtual host, its route, the cluster, and what is changed on the way.

A `RouteTable` is compiled once per configuration and answers each request with a `RouteMatch`, which holds everything
that the route says about the request, or with a `LocalReply`. Faults and mirrors are decided here too.
"""

from meshlib.routing.fault import NO_FAULT, FaultDecision, decide_fault
from meshlib.routing.replies import cluster_not_found
from meshlib.routing.rewrite import check_regex_rewrite
from meshlib.routing.table import InboundTable, RouteMatch, RouteTable, RouteTrace
from meshlib.routing.trace import RouteStep, Verdict

__all__ = [
    "NO_FAULT",
    "FaultDecision",
    "InboundTable",
    "RouteMatch",
    "RouteStep",
    "RouteTable",
    "RouteTrace",
    "Verdict",
    "check_regex_rewrite",
    "cluster_not_found",
    "decide_fault",
]
