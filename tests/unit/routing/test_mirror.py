import pytest

from meshlib.model.matcher import Fraction, StringKind, StringMatcher
from meshlib.model.request import Headers, RequestHead
from meshlib.model.route import HeaderAdd, HeaderChange, MirrorPolicy
from meshlib.routing.mirror import mirrored_head, pick_mirrors


def test_each_policy_has_its_share() -> None:
    every, half, never = (MirrorPolicy(name, Fraction(share)) for name, share in (("e", 100), ("h", 50), ("n", 0)))
    policies = (every, half, never)
    head = RequestHead("GET", "checkout", "/", Headers())
    assert pick_mirrors(policies, 49, head) == (every, half)
    assert pick_mirrors(policies, 50, head) == (every,)


def test_no_policy_no_mirror() -> None:
    assert pick_mirrors((), 1, RequestHead("GET", "checkout", "/", Headers())) == ()


def test_header_names_the_cluster_of_a_copy() -> None:
    policy = MirrorPolicy("", Fraction(100), cluster_header="x-to")
    (picked,) = pick_mirrors((policy,), 0, RequestHead("GET", "checkout", "/", Headers((("x-to", "b"),))))
    assert picked.cluster == "b"
    assert pick_mirrors((policy,), 0, RequestHead("GET", "checkout", "/", Headers((("x-to", ""),)))) == ()
    assert pick_mirrors((policy,), 0, RequestHead("GET", "checkout", "/", Headers())) == ()


def test_headers_and_host_of_a_copy_can_be_changed() -> None:
    changes = (
        HeaderChange(add=HeaderAdd("x-copy", "of %REQ(x-user)%")),
        HeaderChange(remove="x-user"),
        HeaderChange(add=HeaderAdd("x-late", "<%REQ(x-user)%>")),
        HeaderChange(remove_if=StringMatcher(StringKind.PREFIX, "x-a-")),
    )
    policy = MirrorPolicy("c", Fraction(100), host_rewrite="other.host", changes=changes)
    head = RequestHead("GET", "checkout:81", "/", Headers((("x-user", "ann"), ("x-a-b", "1"))))

    copy = mirrored_head(head, policy)

    assert copy.authority == "other.host"
    assert copy.headers.items == (("x-envoy-internal", "true"), ("x-copy", "of ann"), ("x-late", "<>"))


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("checkout", "checkout-shadow"),
        ("checkout:81", "checkout-shadow:81"),
        ("[::1]", "[::1]-shadow"),
        ("[::1]:80", "[::1]-shadow:80"),
    ],
)
def test_host_of_a_copy_is_a_shadow(host: str, expected: str) -> None:
    head = RequestHead("PUT", host, "/a?b", Headers((("x-user", "ann"), ("x-envoy-internal", "false"))))

    copy = mirrored_head(head, MirrorPolicy("c", Fraction(100)))

    assert (copy.method, copy.authority, copy.path) == ("PUT", expected, "/a?b")
    assert copy.headers.items == (("x-user", "ann"), ("x-envoy-internal", "true"))


def test_host_of_a_copy_can_stay() -> None:
    head = RequestHead("GET", "checkout:81", "/", Headers())

    assert mirrored_head(head, MirrorPolicy("c", Fraction(100), keeps_host=True)).authority == "checkout:81"
