import random

import pytest

from meshlib.model.matcher import Fraction, HeaderMatcher, StringKind, StringMatcher
from meshlib.model.outcome import LocalReply
from meshlib.model.request import Headers, RequestHead
from meshlib.model.route import FaultAbort, FaultDelay, FaultPolicy, FaultRateLimit
from meshlib.routing.fault import NO_FAULT, FaultDecision, abort_reply, decide_fault

ALWAYS, NEVER = Fraction(100), Fraction(0)
HEAD = RequestHead("GET", "svc", "/", Headers((("x-user", "jason"),)))
DELAY = FaultDelay(2.0, ALWAYS)
ABORT = FaultAbort(ALWAYS, http_status=503)
REPLY = LocalReply(503, "FI", "fault_filter_abort", b"fault filter abort", (("content-type", "text/plain"),))


class Draws:
    """Gives the numbers that a test lays out."""

    def __init__(self, *numbers: int) -> None:
        self.numbers = list(numbers)

    def random(self) -> float:
        raise AssertionError("shares are drawn as integers")

    def getrandbits(self, k: int, /) -> int:
        return self.numbers.pop(0)


def decide(policy: FaultPolicy | None, *, active: int = 0) -> FaultDecision:
    return decide_fault(policy, HEAD, random.Random(1), active=active)


def test_no_policy_is_no_fault() -> None:
    assert decide(None) is NO_FAULT
    assert decide(FaultPolicy()) is NO_FAULT


def test_abort_answers_as_envoy_does() -> None:
    assert decide(FaultPolicy(abort=ABORT)) == FaultDecision(0.0, REPLY)


def test_delay_then_abort() -> None:
    found = decide(FaultPolicy(DELAY, ABORT))
    assert found == FaultDecision(2.0, REPLY)
    assert found.flags == ("DI", "FI")


def test_delay_alone() -> None:
    found = decide(FaultPolicy(DELAY, FaultAbort(NEVER, http_status=503)))
    assert (found, found.flags) == (FaultDecision(2.0), ("DI",))


def test_delay_and_abort_are_drawn_apart() -> None:
    policy = FaultPolicy(FaultDelay(1.0, Fraction(50)), FaultAbort(Fraction(50), http_status=500))
    outcomes = {
        numbers: decide_fault(policy, HEAD, Draws(*numbers)) for numbers in ((0, 0), (0, 50), (50, 0), (50, 50))
    }
    assert [(found.delay_s, found.abort is not None) for found in outcomes.values()] == [
        (1.0, True),
        (1.0, False),
        (0.0, True),
        (0.0, False),
    ]


@pytest.mark.parametrize("denominator", [100, 10_000])
def test_share_is_exact_over_all_residues(denominator: int) -> None:
    policy = FaultPolicy(abort=FaultAbort(Fraction(7, denominator), http_status=500))
    hits = sum(decide_fault(policy, HEAD, Draws(number)).abort is not None for number in range(denominator))
    assert hits == 7


def test_grpc_status_of_an_abort() -> None:
    reply = abort_reply(FaultAbort(ALWAYS, grpc_status=8))
    assert (reply.status, reply.grpc_status, reply.flag, reply.body) == (200, 8, "FI", b"fault filter abort")


@pytest.mark.parametrize(("user", "expected"), [("jason", REPLY), ("anna", None)])
def test_headers_narrow_a_fault(user: str, expected: LocalReply | None) -> None:
    matcher = HeaderMatcher("x-user", StringMatcher(StringKind.EXACT, user))
    assert decide(FaultPolicy(abort=ABORT, headers=(matcher,))).abort == expected


def test_all_header_conditions_must_hold() -> None:
    matchers = (HeaderMatcher("x-user", True), HeaderMatcher("x-other", True))
    assert decide(FaultPolicy(abort=ABORT, headers=matchers)) is NO_FAULT


def test_active_faults_are_limited() -> None:
    policy = FaultPolicy(abort=ABORT, max_active=2)
    assert decide(policy, active=1).abort == REPLY
    assert decide(policy, active=2) is NO_FAULT


def asked(policy: FaultPolicy, *, grpc: bool = False, cluster: str = "", **headers: str) -> FaultDecision:
    """Decide about a request with headers; `_` stands for `-`."""
    items = Headers((name.replace("_", "-"), value) for name, value in headers.items())
    head = RequestHead("POST" if grpc else "GET", "svc", "/", items, is_grpc=grpc)
    return decide_fault(policy, head, random.Random(1), cluster=cluster)


BY_HEADER = FaultPolicy(
    FaultDelay(0.0, ALWAYS, by_header=True),
    FaultAbort(ALWAYS, by_header=True),
    rate_limit=FaultRateLimit(0, ALWAYS, by_header=True),
)


@pytest.mark.parametrize(("text", "delay_s"), [("250", 0.25), ("0", 0.0), ("x", 0.0), ("-1", 0.0)])
def test_request_asks_for_its_delay(text: str, delay_s: float) -> None:
    assert asked(BY_HEADER, x_envoy_fault_delay_request=text).delay_s == delay_s
    assert asked(FaultPolicy(DELAY), x_envoy_fault_delay_request=text).delay_s == 2.0


def test_request_that_asks_for_nothing_has_no_fault() -> None:
    assert asked(BY_HEADER) is NO_FAULT


@pytest.mark.parametrize(
    ("http", "grpc", "for_http", "for_grpc"),
    [
        ("503", None, (503, None), (503, None)),
        (None, "5", (200, 5), (200, 5)),
        ("503", "5", (503, None), (200, 5)),
        ("199", None, None, None),
        ("600", None, None, None),
        ("x", "y", None, None),
    ],
)
def test_request_asks_for_its_abort(http: str | None, grpc: str | None, for_http: object, for_grpc: object) -> None:
    headers = {"x_envoy_fault_abort_request": http, "x_envoy_fault_abort_grpc_request": grpc}
    given = {name: value for name, value in headers.items() if value is not None}
    found = [asked(BY_HEADER, grpc=is_grpc, **given).abort for is_grpc in (False, True)]
    assert [None if reply is None else (reply.status, reply.grpc_status) for reply in found] == [for_http, for_grpc]


def test_runtime_values_count_whatever_the_request_asks_for() -> None:
    delay = FaultDelay(0.0, ALWAYS, by_header=True, instead_s=0.5, is_share_fixed=True)
    fixed = FaultPolicy(delay, FaultAbort(ALWAYS, 429, 8, by_header=True))
    never = {"x_envoy_fault_delay_request_percentage": "0"}
    assert asked(fixed, x_envoy_fault_delay_request="250", **never).delay_s == 0.5
    assert asked(fixed, **never) is NO_FAULT
    for name, grpc_status in (("x_envoy_fault_abort_request", None), ("x_envoy_fault_abort_grpc_request", 8)):
        found = asked(fixed, **{name: "405" if grpc_status is None else "5"}).abort
        assert found is not None
        assert (found.status, found.grpc_status) == (429 if grpc_status is None else 200, grpc_status)


def test_faults_of_a_downstream_cluster() -> None:
    web, others = FaultPolicy(abort=FaultAbort(ALWAYS, 418)), FaultPolicy(abort=FaultAbort(ALWAYS, 503))
    policy = FaultPolicy(abort=FaultAbort(NEVER, 429), by_caller={"web": web, "a,b": web}, for_callers=others)

    def status(*names: str) -> int | None:
        items = Headers(("x-envoy-downstream-service-cluster", name) for name in names)
        reply = decide_fault(policy, RequestHead("GET", "svc", "/", items), random.Random(1)).abort
        return None if reply is None else reply.status

    assert (status(), status("web"), status("other"), status(""), status("a", "b")) == (None, 418, 503, 503, 418)


@pytest.mark.parametrize(("text", "expected"), [("0", False), ("100", True), ("999", True), ("x", True)])
def test_request_asks_how_often(text: str, expected: bool) -> None:
    found = asked(BY_HEADER, x_envoy_fault_abort_request="500", x_envoy_fault_abort_request_percentage=text)
    assert (found.abort is not None) is expected


def test_request_cannot_ask_for_more_than_is_configured() -> None:
    policy = FaultPolicy(abort=FaultAbort(NEVER, by_header=True))
    found = asked(policy, x_envoy_fault_abort_request="500", x_envoy_fault_abort_request_percentage="100")
    assert found is NO_FAULT


def test_limit_of_the_response() -> None:
    limit = FaultPolicy(rate_limit=FaultRateLimit(3, ALWAYS))
    assert asked(limit) == FaultDecision(rate_bytes_s=3072)
    assert asked(limit, grpc=True) is NO_FAULT
    assert asked(BY_HEADER, x_envoy_fault_throughput_response="2").rate_bytes_s == 2048
    assert asked(BY_HEADER, x_envoy_fault_throughput_response="0") is NO_FAULT


def test_cluster_and_node_narrow_a_fault() -> None:
    policy = FaultPolicy(abort=ABORT, upstream_cluster="c", downstream_nodes=("n",))
    assert asked(policy, cluster="c", x_envoy_downstream_service_node="n").abort == REPLY
    assert asked(policy, cluster="d", x_envoy_downstream_service_node="n") is NO_FAULT
    assert asked(policy, cluster="c", x_envoy_downstream_service_node="m") is NO_FAULT
    assert asked(policy, cluster="c") is NO_FAULT


def test_the_status_ok_aborts_no_grpc_call() -> None:
    """As in gRPC's own client; Envoy answers the call, which then has no message."""
    policy = FaultPolicy(abort=FaultAbort(ALWAYS, grpc_status=0))
    call = RequestHead("POST", "svc", "/a/B", Headers(), is_grpc=True)
    assert decide_fault(policy, call, random.Random(1)) is NO_FAULT
    assert decide(policy).abort is not None
