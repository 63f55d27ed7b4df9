"""Where the hosts of a request are a matter of chance: what meshlib might have done, by many tries without a wire."""

import random
import time
from collections.abc import Sequence
from typing import NamedTuple

from peers.upstreams import Step

from differential.combination_cases import Ask, Case, is_dead
from differential.combination_sides import End, snapshot_of
from meshlib.call import Attempt, Call, Done
from meshlib.model.outcome import Failure, FailureKind, Outcome, Response
from meshlib.model.request import Headers, RequestHead
from meshlib.model.retry import Safety
from meshlib.routing.internal_redirect import InternalRedirects
from meshlib.view import TargetView, build_view

__all__ = ["Chances"]

Hosts = tuple[str, ...]
TRIES, MANY_TRIES = 200, 5000


class Way(NamedTuple):
    """What came of one try."""

    status: int
    flags: frozenset[str]
    hosts: Hosts


class Chances:
    """The ways that the requests of a case may take."""

    def __init__(self, case: Case) -> None:
        self._case = case
        safety = Safety(budget=None, one_layer=False)
        view = build_view(snapshot_of([case]), None, now=0.0, wall_offset_s=time.time(), safety=safety)
        target = view.targets[case.domain]
        assert isinstance(target, TargetView)
        self._target = target

    def doubt(self, ask: Ask, end: End) -> str:
        """Return why what Envoy did cannot be what meshlib might have done; empty: it can."""
        there = Way(end.status, end.flags, end.hosts)
        for count in (TRIES, MANY_TRIES):
            rng = random.Random(1)
            found = []
            for _ in range(count):
                if rng.random() < 0.5:
                    self._pass_turn(ask, rng)
                found.append(self._try(ask, rng))
            if _is_possible(there, found):
                return ""
        return f"{sorted(map(str, set(found)))[:20]}"

    def _pass_turn(self, ask: Ask, rng: random.Random) -> None:
        """Let others go first, and retry: hosts that take turns would always be met at the same attempt."""
        self._try(ask, rng, most=rng.randrange(1, 4))

    def _try(self, ask: Ask, rng: random.Random, most: int = 1000) -> Way:
        """Make a request, which is given up with attempt number `most`."""
        head: RequestHead | None = RequestHead(ask.method, self._case.domain, ask.path, Headers(ask.headers))
        redirects, script, hosts = InternalRedirects(), list(ask.script), []
        while head is not None:
            call = Call(self._target, head, rng=rng, now=0.0, guard_unsafe=False)
            step = call.start(0.0)
            while not isinstance(step, Done):
                if isinstance(step, Attempt):
                    hosts.append(step.endpoint.address)
                    if len(hosts) == most:
                        call.close(0.0)
                        return Way(0, frozenset(), tuple(hosts))
                    step = call.finished(_outcome(step, script), 0.0)
                else:
                    step = call.slept(0.0)
            result, flags, head = step.result, step.flag, None
            policy = None if call.match is None else call.match.action.internal_redirect
            if policy is not None and isinstance(result, Response):
                assert call.match is not None
                head = redirects.follow(policy, call.match, call.sent_head, result, self._target.routes, rng)
            call.close(0.0)
        status = 503 if isinstance(result, Failure) else result.status
        return Way(status, frozenset(flags.split(",")) - {"", "-"}, tuple(hosts))


def _outcome(attempt: Attempt, script: list[Step]) -> Outcome:
    if is_dead(attempt.endpoint.address):
        return Failure(FailureKind.CONNECT, request_sent=False)
    if not script:
        return Response(200)
    step = script.pop(0)
    if step.is_reset:
        return Failure(FailureKind.RESET, request_sent=True)
    here = f"{attempt.head.authority}{attempt.head.path}"
    return Response(step.status, Headers((name, value.replace("{here}", here)) for name, value in step.headers))


def _is_possible(there: Way, found: Sequence[Way]) -> bool:
    """Whether a way may be taken: it was, or each of its hosts may be met where it has it.

    The latter, as hosts that take turns by weights are met in rows that depend on where their turns began.
    """
    if there in found:
        return True
    alike = [way for way in found if way[:2] == there[:2] and len(way.hosts) == len(there.hosts)]
    return bool(alike) and all(host in {way.hosts[place] for way in alike} for place, host in enumerate(there.hosts))
