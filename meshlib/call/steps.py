"""What a call asks its shell to do."""

from dataclasses import dataclass

from meshlib.model.endpoint import Endpoint
from meshlib.model.outcome import Failure, LocalReply, Response
from meshlib.model.request import RequestHead
from meshlib.model.secret import ClientTls
from meshlib.view import ClusterState

__all__ = ["Attempt", "Done", "RaceStep", "Sleep", "Step", "Wait"]

# The steps are not frozen: that triples the cost of making one, and every call makes two. Treat them as frozen.


@dataclass(slots=True, eq=False)
class Attempt:
    """Send the request to an endpoint.

    Attributes:
        number: 1 for the first.
        tls: How to reach the endpoint; None: plaintext.
        timeout_s: Until the response headers are there; None: no limit. When it is over, report `Failure(TIMEOUT)`.
        head: As it goes out.
        is_raced: Do not wait for its end, others may run beside it: start it and ask `Call.racing`.
    """

    number: int
    cluster: ClusterState
    endpoint: Endpoint
    tls: ClientTls | None
    timeout_s: float | None
    head: RequestHead
    is_raced: bool = False


@dataclass(slots=True, eq=False)
class Sleep:
    """Wait, then call `slept`."""

    seconds: float


@dataclass(slots=True, eq=False)
class Wait:
    """Wait for the attempts that run beside each other: `ended` when one has ended, `waited` when the time is over.

    Attributes:
        seconds: None: only an attempt's end matters.
    """

    seconds: float | None


@dataclass(slots=True, eq=False)
class Done:
    """The call has its result. Of attempts that still run nobody wants to know any more.

    Attributes:
        result: The response; or the last failure, for which the caller gets an exception (`Call.error`); or the mesh's
            own answer.
        flag: Envoy's response flags, comma separated; empty: none.
    """

    result: Response | Failure | LocalReply
    flag: str


Step = Attempt | Sleep | Done
RaceStep = Attempt | Wait | Done
"""Of calls whose attempts run beside each other, once the first is there."""
