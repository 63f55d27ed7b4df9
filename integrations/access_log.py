"""A line for each call and each request, on the logger `meshlib.access` at INFO. Off until it is asked for.

meshlib.integrations.access_log.log_access(mesh)
logging.getLogger("meshlib.access").setLevel(logging.INFO)

The facts are fields of the log record too (`record.mesh`), for formatters that write JSON. Paths are without their
query, which is where tokens and names of people are.
"""

import logging
from typing import TYPE_CHECKING, Final

from meshlib.events import CallFinished, Event, RequestServed

if TYPE_CHECKING:
    from meshlib.mesh import Mesh

__all__ = ["log_access"]

_LOG: Final = logging.getLogger("meshlib.access")


def log_access(mesh: "Mesh") -> None:
    """Have a mesh log its calls and requests from now on."""
    mesh.add_hook(_log)


def _log(event: Event) -> None:
    if not isinstance(event, CallFinished | RequestServed) or not _LOG.isEnabledFor(logging.INFO):
        return
    facts: dict[str, str | int | float] = {
        "status": event.status if event.grpc_status is None else event.grpc_status,
        "duration_ms": round(event.duration_s * 1000, 3),
    }
    if isinstance(event, CallFinished):
        endpoint = "-" if event.endpoint is None else event.endpoint.address
        what = f"outbound {event.kind} {event.method} {event.target}"
        facts |= {"flags": event.flag, "cluster": event.cluster or "-", "endpoint": endpoint}
        facts |= {"attempts": event.attempts, "route": event.route or "-"}
    else:
        what = f"inbound {event.kind} {event.method} {event.path.partition('?')[0]}"
        facts |= {"denied": int(event.denied), "principal": event.principal or "-"}
    # Quoted like a Python string where a path has characters that would start a new line.
    line = what if what.isprintable() else repr(what)
    text = " ".join(f"{name}={value}" for name, value in facts.items())
    _LOG.info("%s %s", line, text, extra={"mesh": facts})
