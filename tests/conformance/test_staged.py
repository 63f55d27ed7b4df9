"""Time-outs and hedging over upstreams that answer in stages, as a real Envoy: who ends a request, how, and what it costs.

A table: what the route and the cluster say, what the upstream does, and what the caller sends. Envoy, the blocking and the
async client have to come to the same end. Times are far apart: a limit is 1 s, what breaks it comes 1.4 s later or
not at all. What differs for a reason is in `differences`, which says so.
"""

from dataclasses import replace
from pathlib import Path

import pytest
from differential.generate import TYPE, Json
from differential.staged import Case, End, Upload, ends
from peers.staged import Stage

pytestmark = pytest.mark.envoy

LIMIT = "1s"
LATE_S, PAUSE_S = 2.4, 0.3
LENGTH = {"content-length": "2"}
BODY: Stage = ("body",)
Script = tuple[Stage, ...]


def answer(status: int = 200) -> Script:
    return ("head", status, LENGTH), ("data", b"ok"), ("end", {})


OK: Script = (BODY, *answer())
LATE: Script = (BODY, ("wait", LATE_S), *answer())
LAST: Script = (BODY, ("wait", 3.6), *answer())
STALLED: Script = (BODY, ("head", 200, {}), ("data", b"a"), ("stall",))
LATE_TRAILERS: Script = (BODY, ("head", 200, {}), ("data", b"a"), ("wait", LATE_S), ("end", {"x-sum": "1"}))
SLOW: Script = (BODY, ("head", 200, {}), *(("data", b"a"), ("wait", PAUSE_S)) * 5, ("end", {}))
CUT: Script = (BODY, ("head", 200, {}), ("data", b"a"), ("close",))
RESET: Script = (BODY, ("close",))
BAD: Script = (BODY, *answer(503))
EARLY: Script = (*answer(413), ("wait", 4.0), ("close",))
BEGUN: Script = (("head", 200, {}), ("data", b"a"), BODY, ("data", b"b"), ("end", {}))
EMPTY: Script = (BODY, ("head", 204, {}), ("end", {}))

NO_TIMEOUT: Json = {"timeout": "0s"}
BACK_OFF = {"base_interval": "0.001s", "max_interval": "0.001s"}
SLOWLY: Upload = tuple((PAUSE_S, b"piece") for _ in range(5))
MUCH = b"x" * 3_000_000


def retrying(**policy: object) -> Json:
    return {**NO_TIMEOUT, "retry_policy": {"retry_on": "5xx", "retry_back_off": BACK_OFF, **policy}}


def upload(case: Case, body: Upload) -> Case:
    return replace(case, method="PUT", upload=body)


TIMEOUT = Case({"timeout": LIMIT})
IDLE = Case({**NO_TIMEOUT, "idle_timeout": LIMIT})
IDLE_BY_MANAGER = Case(NO_TIMEOUT, manager={"stream_idle_timeout": LIMIT})
IDLE_OF_ROUTE_ALONE = Case({**NO_TIMEOUT, "idle_timeout": "0s"}, manager={"stream_idle_timeout": LIMIT})
PER_TRY = Case(retrying(per_try_timeout=LIMIT))
PER_TRY_IDLE = Case(retrying(per_try_idle_timeout=LIMIT))
STREAM = Case({"max_stream_duration": {"max_stream_duration": LIMIT}})
STREAM_BY_MANAGER = Case(NO_TIMEOUT, manager={"common_http_protocol_options": {"max_stream_duration": LIMIT}})
STREAM_OF_CLUSTER = Case(retrying(), options={"common_http_protocol_options": {"max_stream_duration": LIMIT}})
UNLIMITED = Case(NO_TIMEOUT)

LIMITS = {
    "timeout": TIMEOUT,
    "idle": IDLE,
    "idle by manager": IDLE_BY_MANAGER,
    "idle of the route alone": IDLE_OF_ROUTE_ALONE,
    "per try": PER_TRY,
    "per try idle": PER_TRY_IDLE,
    "stream": STREAM,
    "stream by manager": STREAM_BY_MANAGER,
    "stream of cluster": STREAM_OF_CLUSTER,
}
ANSWERS: dict[str, Script] = {
    "late": LATE,
    "stalled": STALLED,
    "late trailers": LATE_TRAILERS,
    "slow": SLOW,
    "reset": RESET,
    "cut": CUT,
    "empty": EMPTY,
}
# Where the upload is as slow, what can be compared is who begins when: another attempt with it is Envoy's alone.
SLOW_UPLOADS = {
    name: upload(case, SLOWLY)
    for name, case in LIMITS.items()
    if name in ("timeout", "idle", "idle by manager", "stream", "stream by manager")
}
ENDLESS = ("per try", "idle of the route alone")
"""These end nothing whose head is there."""
TIMES = {
    **{
        f"{a}, {b}": replace(case, scripts=[script])
        for a, case in LIMITS.items()
        for b, script in ANSWERS.items()
        if a not in ENDLESS or b != "stalled"
    },
    **{
        f"slow upload, {a}, {b}": replace(case, scripts=[ANSWERS.get(b, OK)])
        for a, case in SLOW_UPLOADS.items()
        for b in ("ok", "late", "stalled", "slow")
    },
    **{
        f"in memory, {a}": replace(upload(case, b"body"), scripts=[STALLED])
        for a, case in LIMITS.items()
        if a not in ENDLESS
    },
    "early, nothing read, in memory": replace(upload(UNLIMITED, MUCH), scripts=[EARLY]),
    "early, nothing read, in pieces": replace(upload(UNLIMITED, ((0.0, MUCH[:100_000]),) * 30), scripts=[EARLY]),
    "early, read": replace(upload(UNLIMITED, SLOWLY), scripts=[(*answer(), BODY)]),
    "begun early": replace(upload(UNLIMITED, SLOWLY), scripts=[BEGUN]),
    "interim": replace(UNLIMITED, scripts=[(BODY, ("head", 103, {"link": "x"}), *answer())]),
    "head": replace(TIMEOUT, method="HEAD", scripts=[(BODY, ("head", 200, LENGTH), ("end", {}))]),
    "late head": replace(TIMEOUT, method="HEAD", scripts=[(BODY, ("wait", LATE_S), ("head", 200, LENGTH))]),
    "read late": replace(
        Case({"timeout": "5s"}), scripts=[(BODY, ("head", 200, {}), ("data", MUCH), ("end", {}))], reads_after_s=1.0
    ),
}
HTTP2_TIMES = {
    name: replace(case, http2=True)
    for name, case in TIMES.items()
    if name.startswith(("timeout", "slow upload, timeout", "slow upload, stream,", "per try idle", "early", "begun"))
}

ROOM = dict.fromkeys(("max_connections", "max_pending_requests", "max_requests", "max_retries"), 1000)
PREVIOUS_HOSTS = {
    "retry_host_predicate": [
        {
            "name": "previous",
            "typed_config": {"@type": f"{TYPE}envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"},
        }
    ],
    "host_selection_retry_max_attempts": 30,
}
LATE_BAD: Script = (BODY, ("wait", LATE_S), *answer(503))
LATE_RESET: Script = (BODY, ("wait", LATE_S), ("close",))


def hedged(timeout: str = "0s", **policy: object) -> Case:
    """Attempts begin 1 s after each other, three at most."""
    route = retrying(**{"num_retries": 2, "per_try_timeout": LIMIT, **policy})
    return Case({**route, "timeout": timeout, "hedge_policy": {"hedge_on_per_try_timeout": True}})


def limited(**limits: object) -> Json:
    return {"circuit_breakers": {"thresholds": [{**ROOM, **limits}]}}


HEDGES = {
    "plain": hedged(),
    "end of all": hedged(timeout="1.6s"),
    "one request": replace(hedged(), cluster=limited(max_requests=1)),
    "two requests": replace(hedged(), cluster=limited(max_requests=2)),
    "no retry": replace(hedged(), cluster=limited(max_retries=0)),
    "one retry": replace(hedged(), cluster=limited(max_retries=1)),
    "budget": replace(
        hedged(), cluster=limited(retry_budget={"budget_percent": {"value": 100}, "min_retry_concurrency": 1})
    ),
    "no budget": replace(
        hedged(), cluster=limited(retry_budget={"budget_percent": {"value": 0}, "min_retry_concurrency": 0})
    ),
    "one connection, none waits": replace(hedged(), cluster=limited(max_connections=1, max_pending_requests=0)),
    "num_retries 0": hedged(num_retries=0),
    "num_retries 1": hedged(num_retries=1),
    "4xx": hedged(retry_on="retriable-4xx"),
    "codes": hedged(retry_on="retriable-status-codes", retriable_status_codes=[503]),
    "request headers": hedged(retriable_request_headers=[{"name": "x-may"}]),
    "request headers met": replace(hedged(retriable_request_headers=[{"name": "x-may"}]), headers={"x-may": "1"}),
    "previous hosts": replace(hedged(**PREVIOUS_HOSTS), hosts=3),
    "body": upload(hedged(), b"x" * 100_000),
    "idle": replace(hedged(), route={**hedged().route, "idle_timeout": "1.6s"}),
    "idle tries": Case({**retrying(per_try_idle_timeout=LIMIT), "hedge_policy": {"hedge_on_per_try_timeout": True}}),
    "http2": replace(hedged(), http2=True),
}
SCRIPTS: dict[str, list[Script]] = {
    "a good one second": [LAST, OK],
    "a bad one second": [LAST, BAD, OK],
    "a reset second": [LAST, RESET, OK],
    "all bad": [BAD, BAD, BAD],
    "bad, then slow": [BAD, LAST, OK],
    "bad at last": [LATE_BAD, LATE_BAD, LATE_BAD],
    "reset at last": [LATE_RESET, LATE_RESET, LATE_RESET],
}
HEDGED = {f"{a}, {b}": replace(case, scripts=s) for a, case in HEDGES.items() for b, s in SCRIPTS.items()}


def batches(cases: dict[str, Case], size: int) -> list[dict[str, Case]]:
    names = list(cases)
    return [{name: cases[name] for name in names[start : start + size]} for start in range(0, len(names), size)]


BATCHES = {
    f"{kind} {number}": batch
    for kind, cases in (("times", TIMES), ("http2", HTTP2_TIMES), ("hedged", HEDGED))
    for number, batch in enumerate(batches(cases, 36))
}


def seen(end: End, case: Case, *, is_hedged: bool = False) -> End:
    """What is compared of an end; what differs for a reason is the same for both afterwards."""
    # Envoy's caller is told that it sent too slowly, ours has an exception; for DT see `CallEndings._deadline_flag`.
    status = 504 if end.status == 408 else end.status
    # And Envoy's log may say that its caller has left, who has all he wants.
    flags = end.flags - {"DT", "DC"}
    if flags & {"UPE", "UC", "UR"}:
        # A body that ends too soon is a protocol error where it comes in chunks.
        flags = flags - {"UPE", "UC", "UR"} | {"lost"}
    result = replace(end, status=status, flags=flags, counted=min(end.counted, 1), failed=0, recorded=0)
    if case.http2 or is_hedged or not isinstance(case.upload, bytes | None):
        # HTTP/2: a connection with a time-out takes no new requests here. Else it is chance, or who got rid of the body.
        result = replace(result, is_reused=False)
    return result


@pytest.mark.parametrize("kind", BATCHES)
def test_ends_are_the_same(kind: str, tmp_path: Path) -> None:
    """All of a batch beside each other; what differs is tried again, with less beside it."""
    left = BATCHES[kind]
    compared: dict[str, list[End]] = {}
    for again in range(3):
        place = tmp_path / str(again)
        place.mkdir()
        found = ends(left, place)
        compared = {
            name: [seen(end, left[name], is_hedged=kind.startswith("hedged")) for end in three]
            for name, three in found.items()
        }
        left = {name: left[name] for name, three in compared.items() if len(set(three)) > 1}
        if not left:
            break
    assert {} == {name: compared[name] for name in left}
