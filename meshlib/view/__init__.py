"""The view: one snapshot with all that calls need of it, ready to use.

`build_view` is pure and makes only what changed: route tables and pickers of what stayed the same are taken over. What
must outlast an update lives in `ClusterState`: requests in flight, ejections, breakers. A call reads one view, once;
the cluster states it finds there are shared with the views before and after, so a new picker serves the retries of old
calls too.
"""

from meshlib.view.aggregate_state import AggregateState
from meshlib.view.build import View, build_view
from meshlib.view.cluster_state import ClusterState
from meshlib.view.target import ActiveFaults, RoutePlan, TargetView

__all__ = ["ActiveFaults", "AggregateState", "ClusterState", "RoutePlan", "TargetView", "View", "build_view"]
