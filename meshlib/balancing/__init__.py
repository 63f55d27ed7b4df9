"""Decides which endpoint of a cluster takes a request.

A picker is made whenever the configuration or the health of a cluster changes and is then only read: it draws a
priority, takes the turn of a locality, and lets the cluster's policy choose a host. What lasts is in `EndpointState`.
"""

from meshlib.balancing.build import build_picker
from meshlib.balancing.endpoint_state import EndpointState
from meshlib.balancing.picker import Picker

__all__ = ["EndpointState", "Picker", "build_picker"]
