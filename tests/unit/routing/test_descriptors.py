import pytest

from meshlib.model.descriptors import (
    DescriptorAction,
    DestinationCluster,
    GenericKey,
    HeaderMatch,
    HeaderValue,
    LimitRule,
    QueryMatch,
    QueryValue,
    RemoteAddress,
    RouteMetadata,
)
from meshlib.model.matcher import HeaderMatcher, QueryMatcher, StringKind, StringMatcher
from meshlib.model.request import Headers, RequestHead
from meshlib.routing.descriptors import Descriptor, compile_rules
from meshlib.routing.format import Facts

HEAD = RequestHead("GET", "svc", "/a?q=x%20y&q=z&p", Headers((("x-1", "one"), ("x-hits", "2.9"))))
KEY = GenericKey("generic_key", "v")
FACTS = Facts(cluster="c", metadata={"ns": {"tier": "gold", "n": 1.0}})


def described(*rules: LimitRule, remote: str = "10.1.2.3", facts: Facts = FACTS) -> tuple[Descriptor, ...]:
    describe = compile_rules(rules, facts)
    assert describe is not None
    return describe(HEAD, remote)


EXACT = StringMatcher(StringKind.EXACT, "x y")


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        (KEY, ("generic_key", "v")),
        (DestinationCluster(), ("destination_cluster", "c")),
        (RemoteAddress(), ("remote_address", "10.1.2.3")),
        (RemoteAddress(16), ("masked_remote_address", "10.1.0.0/16")),
        (HeaderValue("x-1", "k"), ("k", "one")),
        (HeaderValue("x-2", "k"), None),
        (QueryValue("q", "k"), ("k", "x y")),
        (QueryValue("p", "k"), ("k", "")),
        (QueryValue("r", "k"), None),
        (HeaderMatch("k", "v", (HeaderMatcher("x-1", True),)), ("k", "v")),
        (HeaderMatch("k", "v", (HeaderMatcher("x-2", True),)), None),
        (HeaderMatch("k", "v", (HeaderMatcher("x-2", True),), is_expected=False), ("k", "v")),
        (QueryMatch("k", "v", (QueryMatcher("q", EXACT),)), ("k", "v")),
        (QueryMatch("k", "v", (QueryMatcher("p", True),), is_expected=False), None),
        (RouteMetadata("k", ("ns", "tier")), ("k", "gold")),
        (RouteMetadata("k", ("ns", "n")), None),
        (RouteMetadata("k", ("ns", "n"), "silver"), ("k", "silver")),
        (RouteMetadata("k", ()), None),
    ],
)
def test_actions(action: DescriptorAction, expected: tuple[str, str] | None) -> None:
    found = described(LimitRule((KEY, action)))
    assert found == (() if expected is None else (((("generic_key", "v"), expected), 1),))


def test_a_part_that_may_be_absent_is_left_out() -> None:
    rules = (HeaderValue("x-2", "k", True), QueryValue("r", "k", True), RouteMetadata("k", ("no",), "", True))
    assert described(LimitRule((KEY, *rules))) == (((("generic_key", "v"),), 1),)


def test_a_caller_without_an_address_has_no_descriptor_of_it() -> None:
    assert described(LimitRule((RemoteAddress(),)), LimitRule((KEY,)), remote="") == (((("generic_key", "v"),), 1),)


def test_the_cluster_that_a_header_names() -> None:
    facts = Facts(cluster=None, cluster_header="x-1")
    assert described(LimitRule((DestinationCluster(),)), facts=facts) == (((("destination_cluster", "one"),), 1),)


@pytest.mark.parametrize(("form", "hits"), [("%REQ(x-hits)%", 2), ("%REQ(x-1)%", None), ("%REQ(x-9)%", None)])
def test_hits_by_a_format(form: str, hits: int | None) -> None:
    expected = () if hits is None else (((("generic_key", "v"),), hits),)
    assert described(LimitRule((KEY,), hits_format=form)) == expected
