import pytest

from meshlib.identity.san import PeerNames, describe_sans, match_san
from meshlib.model.matcher import StringKind, StringMatcher
from meshlib.model.secret import SanMatcher, SanType

EXACT, PREFIX, SUFFIX, REGEX = StringKind.EXACT, StringKind.PREFIX, StringKind.SUFFIX, StringKind.REGEX
CHECKOUT = "spiffe://cluster.local/ns/default/sa/checkout"


def san(kind: SanType, value: str, string: StringKind = EXACT) -> SanMatcher:
    return SanMatcher(kind, StringMatcher(string, value))


@pytest.mark.parametrize(
    ("names", "matcher", "expected"),
    [
        (PeerNames(uris=(CHECKOUT,)), san(SanType.URI, CHECKOUT), True),
        (PeerNames(uris=(CHECKOUT,)), san(SanType.URI, CHECKOUT + "x"), False),
        (PeerNames(uris=(CHECKOUT,)), san(SanType.URI, CHECKOUT.replace("checkout", "Checkout")), False),
        (PeerNames(uris=(CHECKOUT,)), san(SanType.URI, "spiffe://cluster.local/", PREFIX), True),
        (PeerNames(uris=(CHECKOUT,)), san(SanType.URI, ".*/sa/checkout", REGEX), True),
        (PeerNames(uris=(CHECKOUT,)), san(SanType.DNS, CHECKOUT), False),
        (PeerNames(uris=(CHECKOUT,)), san(SanType.ANY, CHECKOUT), True),
        # a SPIFFE certificate has one URI, and it is a valid id
        (PeerNames(uris=(CHECKOUT, "spiffe://cluster.local/ns/default/sa/admin")), san(SanType.URI, CHECKOUT), False),
        (PeerNames(uris=(CHECKOUT, "https://x")), san(SanType.URI, CHECKOUT), False),
        (PeerNames(uris=("https://x", "Spiffe://td/a")), san(SanType.URI, "https://x"), False),
        (PeerNames(uris=("spiffe://td/a/../b",)), san(SanType.URI, "spiffe://td/", PREFIX), False),
        (PeerNames(uris=("https://x", "https://y")), san(SanType.URI, "https://y"), True),
        # DNS names ignore case; a wildcard in the certificate is one left-most label
        (PeerNames(dns=("Foo.example.com",)), san(SanType.DNS, "foo.EXAMPLE.com"), True),
        (PeerNames(dns=("*.example.com",)), san(SanType.DNS, "foo.example.com"), True),
        (PeerNames(dns=("*.example.com",)), san(SanType.DNS, "example.com"), False),
        (PeerNames(dns=("*.example.com",)), san(SanType.DNS, "a.b.example.com"), False),
        (PeerNames(dns=("*",)), san(SanType.DNS, "foo"), False),
        (PeerNames(dns=("f*.example.com",)), san(SanType.DNS, "foo.example.com"), False),
        (PeerNames(dns=("*.*.com",)), san(SanType.DNS, "a.b.com"), False),
        (PeerNames(dns=("*.example.com",)), san(SanType.DNS, "xn--bcher-kva.example.com"), False),
        (PeerNames(dns=("foo.example.com",)), san(SanType.DNS, ".example.com", SUFFIX), True),
        # addresses by value
        (PeerNames(ips=("10.0.0.1",)), san(SanType.IP, "10.0.0.1"), True),
        (PeerNames(ips=("::1",)), san(SanType.IP, "0:0:0:0:0:0:0:1"), True),
        (PeerNames(ips=("10.0.0.1",)), san(SanType.IP, "10.0.0.2"), False),
        (PeerNames(ips=("10.0.0.1",)), san(SanType.IP, "10.", PREFIX), True),
        (PeerNames(emails=("a@b",)), san(SanType.ANY, "a@b"), True),
        (PeerNames(dns=("a",)), san(SanType.ANY, "a"), True),
        (PeerNames(ips=("::1",)), san(SanType.ANY, "::1"), True),
        # the subject is no alternative name
        (PeerNames(subject="CN=a"), san(SanType.ANY, "CN=a"), False),
        (PeerNames(), san(SanType.ANY, ".*", REGEX), False),
    ],
)
def test_one_matcher(names: PeerNames, matcher: SanMatcher, expected: bool) -> None:
    assert match_san(names, [matcher]) == expected


def test_one_of_several_matchers_is_enough() -> None:
    matchers = [san(SanType.URI, "spiffe://td/a"), san(SanType.URI, "spiffe://td/b")]
    assert match_san(PeerNames(uris=("spiffe://td/b",)), matchers) is True
    assert match_san(PeerNames(uris=("spiffe://td/c",)), matchers) is False


def test_no_matchers_accept_every_trusted_certificate() -> None:
    assert match_san(PeerNames(), []) is True


def test_description() -> None:
    assert describe_sans([san(SanType.URI, "spiffe://td/", PREFIX), san(SanType.DNS, "a")]) == (
        'URI prefix "spiffe://td/" or DNS exact "a"'
    )
