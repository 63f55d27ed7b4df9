"""One request as a state machine: what to do next, as values. Shells do it and report back.

    step = call.start(now)
    Attempt -> send it, then call.finished(outcome, now)
    Sleep   -> wait, then call.slept(now)
    Done    -> give the result to the caller
    ... and in any case, at the end: call.close(now)

A call whose route has hedging may have several attempts in flight. It says so on its first one:

    Attempt(is_raced=True) -> start it, then call.racing(now)
    Wait    -> wait for one of them to end (call.ended) or for the time to be over (call.waited)

The order of steps is Envoy's: route, fault, cluster, drops, then per attempt the deadline, the pick, the circuit
breaker. A fault comes before everything that can be repeated, so it happens once and is never retried; the timeouts of
the route begin after its delay. The pick comes before the breaker, so a cluster without endpoints says `UH`, not `UO`.

What a call holds (a request permit with the endpoint's count, a retry permit, an active fault) is given back exactly
once: the request permit when its attempt fails or is repeated, else by `close`, since a response goes on until its body
has been read.
"""

from meshlib.call.machine import Call
from meshlib.call.mirror import mirror_call
from meshlib.call.steps import Attempt, Done, RaceStep, Sleep, Step, Wait

__all__ = ["Attempt", "Call", "Done", "RaceStep", "Sleep", "Step", "Wait", "mirror_call"]
