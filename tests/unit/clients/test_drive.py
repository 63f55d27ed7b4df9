import asyncio
from collections.abc import Callable

import pytest

from meshlib.call import Attempt, Call
from meshlib.clients.drive import arun, run
from meshlib.model.outcome import Failure, FailureKind, LocalReply, Outcome, Response
from meshlib.model.request import Headers, RequestHead
from meshlib.model.retry import RetryPolicy
from meshlib.testing import mesh_source
from meshlib.testing.builders import service

REFUSED = Failure(FailureKind.CONNECT, False)
RETRY = RetryPolicy(frozenset({"5xx"}), num_retries=2, base_interval_s=0.5)


class Script:
    """A shell that gives the outcomes of a list, and notes what it is asked to do."""

    def __init__(self, *outcomes: Outcome | BaseException) -> None:
        self.outcomes = list(outcomes)
        self.log: list[str] = []

    def send(self, attempt: Attempt) -> Outcome:
        self.log.append(f"send {attempt.number}")
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def discard(self) -> None:
        self.log.append("discard")

    def sleep(self, seconds: float) -> None:
        assert 0 < seconds <= 1.0
        self.log.append("sleep")


class AsyncScript:
    """The same, awaiting."""

    def __init__(self, script: Script) -> None:
        self._script = script

    async def send(self, attempt: Attempt) -> Outcome:
        return self._script.send(attempt)

    async def discard(self) -> None:
        self._script.discard()

    async def sleep(self, seconds: float) -> None:
        self._script.sleep(seconds)


def blocking(call, script, clock):
    return run(call, script, clock=clock, sleep=script.sleep)


def awaiting(call, script, clock):
    shell = AsyncScript(script)
    return asyncio.run(arun(call, shell, clock=clock, sleep=shell.sleep))


@pytest.fixture(params=[blocking, awaiting])
def drive(request) -> Callable:
    return request.param


def make(*addresses: str, retry: RetryPolicy | None = RETRY):
    mesh = mesh_source(service("checkout", *addresses, retry=retry))
    head = RequestHead("GET", "checkout", "/", Headers())
    call = Call(mesh.wait_target("checkout"), head, rng=mesh.rng, now=mesh.clock(), hook=mesh.emit)
    (cluster,) = mesh.view.clusters.values()
    return mesh, call, cluster


def test_response_leaves_the_call_open_for_its_body(drive):
    mesh, call, cluster = make("10.0.0.1:80")
    script = Script(Response(200))
    assert drive(call, script, mesh.clock).result == Response(200)
    assert script.log == ["send 1"]
    assert cluster.breaker.active == 1
    call.close(mesh.clock())
    assert cluster.breaker.active == 0


def test_response_that_is_repeated_is_discarded_before_the_wait(drive):
    mesh, call, _ = make("10.0.0.1:80")
    script = Script(Response(503), REFUSED, Response(200))
    assert drive(call, script, mesh.clock).result == Response(200)
    assert script.log == ["send 1", "discard", "sleep", "send 2", "sleep", "send 3"]


def test_last_response_is_kept(drive):
    mesh, call, _ = make("10.0.0.1:80")
    script = Script(Response(503), Response(503), Response(503))
    done = drive(call, script, mesh.clock)
    assert (done.result, done.flag) == (Response(503), "URX")
    assert script.log == ["send 1", "discard", "sleep", "send 2", "discard", "sleep", "send 3"]


def test_answer_of_the_mesh_needs_no_attempt(drive):
    mesh, call, _ = make()
    script = Script()
    assert isinstance(drive(call, script, mesh.clock).result, LocalReply)
    assert script.log == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, asyncio.CancelledError])
def test_exceptions_close_the_call_and_pass_through(drive, error):
    mesh, call, cluster = make("10.0.0.1:80")
    with pytest.raises(error):
        drive(call, Script(Response(503), error()), mesh.clock)
    assert (cluster.breaker.active, cluster.breaker.retries) == (0, 0)
    assert type(mesh.events[-1]).__name__ == "CallFinished"
