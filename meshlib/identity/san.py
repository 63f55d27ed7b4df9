"""Whether a peer's certificate has a name that we expect.

Names are compared as they are, letter case included, except DNS names with `exact`: those ignore case, and a wildcard
in the certificate stands for one left-most label. A certificate with a SPIFFE URI must have no other URI, and the
SPIFFE id must be well-formed, else none of its URIs counts.

Source: Envoy `DefaultCertValidator::matchSubjectAltName`, `dnsNameMatch`; X509-SVID.md, section 2.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from meshlib.identity.spiffe import SCHEME, parse_spiffe_id
from meshlib.matching import StringTest, ascii_lower, compile_string, describe_string
from meshlib.model.matcher import StringKind, StringMatcher
from meshlib.model.secret import SanMatcher, SanType

__all__ = ["PeerNames", "compile_authority", "compile_sans", "compile_sni", "describe_sans", "match_san"]


@dataclass(frozen=True, slots=True)
class PeerNames:
    """The names in a verified certificate.

    Attributes:
        ips: In canonical text.
        subject: RFC 4514 name; may be empty.
    """

    uris: tuple[str, ...] = ()
    dns: tuple[str, ...] = ()
    ips: tuple[str, ...] = ()
    emails: tuple[str, ...] = ()
    subject: str = ""

    @property
    def usable_uris(self) -> tuple[str, ...]:
        """The URIs that may identify the peer; none if one of them is a SPIFFE id and breaks the rules for it."""
        if not any(ascii_lower(uri).startswith(SCHEME) for uri in self.uris):
            return self.uris
        if len(self.uris) != 1:
            return ()
        try:
            parse_spiffe_id(self.uris[0])
        except ValueError:
            return ()
        return self.uris


def _canonical_ip(text: str) -> str:
    try:
        return str(ip_address(text.strip()))
    except ValueError:
        return text


def _dns_exact(wanted: str) -> StringTest:
    wanted = ascii_lower(wanted)
    first, _, parent = wanted.partition(".")
    # RFC 6125 6.4.3: a wildcard does not stand for an encoded international label.
    may_be_wildcard = "xn--" not in first

    def fits(name: str) -> bool:
        name = ascii_lower(name)
        if name == wanted:
            return True
        # `*.example.com` covers one label; `*` alone, `a*.x` and `*.*.x` cover nothing.
        label, _, rest = name.partition(".")
        return label == "*" and bool(rest) and "*" not in rest and rest == parent and may_be_wildcard

    return fits


def _ip_test(matcher: StringMatcher) -> StringTest:
    if matcher.kind is StringKind.EXACT:
        wanted = _canonical_ip(matcher.value)
        return lambda text: text == wanted
    return compile_string(matcher)


def _compile(matcher: SanMatcher) -> Callable[[PeerNames], bool]:
    plain = compile_string(matcher.matcher)
    dns = _dns_exact(matcher.matcher.value) if matcher.matcher.kind is StringKind.EXACT else plain
    ip = _ip_test(matcher.matcher)
    match matcher.san_type:
        case SanType.URI:
            return lambda names: any(map(plain, names.usable_uris))
        case SanType.DNS:
            return lambda names: any(map(dns, names.dns))
        case SanType.IP:
            return lambda names: any(map(ip, names.ips))
        case SanType.EMAIL:
            return lambda names: any(map(plain, names.emails))
        case SanType.ANY:
            return lambda names: (
                any(map(plain, names.usable_uris))
                or any(map(dns, names.dns))
                or any(map(ip, names.ips))
                or any(map(plain, names.emails))
            )


def compile_sans(matchers: Iterable[SanMatcher]) -> Callable[[PeerNames], bool]:
    """Compile matchers: one name that satisfies one of them is enough.

    No matchers: every certificate that is trusted passes. With matchers, a certificate without names never does.

    Raises:
        ValueError: A regex that is not valid RE2.
    """
    tests = tuple(_compile(matcher) for matcher in matchers)
    if not tests:
        return lambda names: True
    return lambda names: any(test(names) for test in tests)


def compile_authority(name: str) -> Callable[[PeerNames], bool]:
    """Compile the rule that a certificate must be for the host that a request names.

    DNS names are compared as hosts are, with the certificate's wildcards; every other kind exactly.

    Source: Envoy `DefaultCertValidator::verifySubjectAltName`.
    """
    dns, address = _dns_exact(name), _canonical_ip(name)
    return lambda names: (
        any(map(dns, names.dns)) or address in names.ips or name in names.usable_uris or name in names.emails
    )


def compile_sni(name: str) -> Callable[[PeerNames], bool]:
    """Compile the rule that a certificate must have the server name sent to it as a DNS name (A101)."""
    dns = _dns_exact(name)
    return lambda names: any(map(dns, names.dns))


def match_san(names: PeerNames, matchers: Sequence[SanMatcher]) -> bool:
    """Whether a peer's names satisfy matchers; for a check per connection prefer `compile_sans`.

    Raises:
        ValueError: A regex that is not valid RE2.
    """
    return compile_sans(matchers)(names)


def describe_sans(matchers: Sequence[SanMatcher]) -> str:
    """Say which names are expected, for errors."""
    return " or ".join(f"{matcher.san_type.value} {describe_string(matcher.matcher)}" for matcher in matchers) or "any"
