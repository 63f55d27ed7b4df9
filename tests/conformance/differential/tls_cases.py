"""Random certificates, and random validation contexts to judge them by."""

import base64
import datetime
import random
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from peers.authority import Authority, Leaf, bundle_map

from differential.generate import TYPE, Json

__all__ = ["Case", "CaseMaker"]

_TLS = TYPE + "envoy.extensions.transport_sockets.tls.v3."
_MINUTES = datetime.timedelta(minutes=1)
_EKU = x509.ExtendedKeyUsageOID
_URIS = (
    "spiffe://a.example/ns/default/sa/checkout",
    "spiffe://a.example/ns/default/sa/orders",
    "spiffe://b.example/ns/default/sa/checkout",
    "https://a.example/x",
)
# Ids which break SPIFFE's rules; meshlib looks at none of such a certificate's URIs, which is a difference on purpose.
_ODD_URIS = ("spiffe://A.example/x", "spiffe://a.example", "spiffe://a.example//x")
_DNS = ("a.example", "x.a.example", "*.a.example", "b.example", "*.example", "X.A.Example")
_IPS = ("127.0.0.1", "10.1.2.3", "::1")
_EMAILS = ("a@a.example", "b@b.example")
_ODD = "SPIFFE ids that break the rules"
_PURPOSE = "a purpose that Envoy's SPIFFE validator does not ask for"


@dataclass(frozen=True, slots=True)
class Case:
    """One meeting.

    Attributes:
        socket: Fields of the Upstream- or DownstreamTlsContext, proto3 JSON, without our own certificate.
        authority: Of the request (HTTP's `Host`).
        options: `upstream_http_protocol_options` of the cluster.
        story: What it is about, for reports.
        odd: A rule that meshlib has and Envoy has not may refuse the peer; names it.
    """

    leaf: Leaf
    socket: Json
    authority: str
    options: Json
    story: str
    odd: str = ""


class CaseMaker:
    """Makes cases out of a seed; the authorities are the same for all of them."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        a, b = Authority("root"), Authority("root")  # two roots of one name, as SPIRE makes them
        other, old = Authority("other"), Authority("old", not_after=-_MINUTES)
        middle = Authority("middle", parent=a)
        lower = Authority("lower", parent=middle)
        deep = Authority("deep", parent=lower)
        short = Authority("below short", parent=Authority("short", parent=a, path_length=0))
        dns = Authority("dns", parent=a, permitted=[x509.DNSName("a.example")])
        uri = Authority("uri", parent=a, permitted=[x509.UniformResourceIdentifier("a.example")])
        self._roots = {"a": a, "b": b, "other": other, "old": old}
        self._issuers = {
            "a": a,
            "b": b,
            "old": old,
            "middle": middle,
            "lower": lower,
            "deep": deep,
            "short": short,
            "dns": dns,
            "uri": uri,
            "no-ca": Authority("no CA", parent=a, is_ca=False),
        }
        self._lists_for = (a, b, middle, lower, deep)

    def _maybe(self, chance: float) -> bool:
        return self._random.random() < chance

    def _some(self, of: Sequence[str], chance: float) -> tuple[str, ...]:
        if not self._maybe(chance):
            return ()
        return (of[0],) if self._maybe(0.5) else tuple(self._random.sample(of, self._random.choice((1, 1, 2))))

    def case(self, *, is_server: bool) -> Case:
        """Make a case.

        Args:
            is_server: The certificate is a client's, and a listener judges it.
        """
        odd = ""
        issuer = self._random.choice(
            (
                *("a",) * 6,
                *("b",) * 3,
                "middle",
                "middle",
                "lower",
                "lower",
                "deep",
                "short",
                "dns",
                "uri",
                "no-ca",
                "old",
            )
        )
        uris = self._some(_URIS, 0.75)
        if self._maybe(0.06):
            uris = (self._random.choice(_ODD_URIS),)
        spiffe = [one for one in uris if one.startswith("spiffe://")]
        if spiffe and (len(uris) > 1 or spiffe[0] in _ODD_URIS):
            odd = _ODD
        starts, ends = self._random.choice(((-60, 60),) * 14 + ((-60, -30), (30, 60)))
        usage = self._random.choice((*((("digital_signature",),) * 16), None, ("digital_signature", "key_cert_sign")))
        extended = self._random.choice(
            (*((),) * 6, (_EKU.SERVER_AUTH,), (_EKU.CLIENT_AUTH,), (_EKU.SERVER_AUTH, _EKU.CLIENT_AUTH))
        )
        is_ca = self._maybe(0.03)
        dns, ips, emails = self._some(_DNS, 0.5), self._some(_IPS, 0.2), self._some(_EMAILS, 0.2)
        subject = self._random.choice(("", "leaf"))
        leaf = self._issuers[issuer].issue(
            *uris,
            dns=dns,
            ips=ips,
            emails=emails,
            subject=subject,
            starts=starts * _MINUTES,
            ends=ends * _MINUTES,
            usage=usage,
            extended=extended,
            is_ca=is_ca,
        )
        context, words = self._context(leaf, is_server=is_server)
        if "custom_validator_config" in context and extended and not odd:
            wanted = _EKU.CLIENT_AUTH if is_server else _EKU.SERVER_AUTH
            odd = "" if wanted in extended else _PURPOSE
        socket: Json = {"common_tls_context": {"validation_context": context}}
        options: Json = {}
        if not is_server:
            words += self._server_names(socket, options, context)
        names = (*uris, *dns, *ips, *emails)
        purposes = [one._name for one in extended]
        story = (
            f"issuer {issuer}, subject {subject!r}, names {names}, minutes {starts} to {ends}, usage {usage} {purposes}, "
            f"ca {is_ca}; {'; '.join(words)}"
        )
        authority = self._random.choice(("a.example", "x.a.example:8080", "127.0.0.1", "q.example"))
        return Case(leaf, socket, authority, options, story, odd)

    def _server_names(self, socket: Json, options: Json, context: Json) -> list[str]:
        words = []
        if self._maybe(0.4):
            socket["sni"] = self._random.choice(("a.example", "x.a.example", "b.example"))
            words.append(f"sni {socket['sni']}")
        has_roots = "trusted_ca" in context and "custom_validator_config" not in context
        if has_roots and self._maybe(0.15):
            socket["auto_sni_san_validation"] = True
            words.append("SNI is a name")
        if self._maybe(0.15):
            options["auto_sni"] = True
            words.append("authority is SNI")
        if has_roots and self._maybe(0.15):
            options["auto_san_validation"] = True
            words.append("authority is a name")
        return words

    def _context(self, leaf: Leaf, *, is_server: bool) -> tuple[Json, list[str]]:
        context: Json = {}
        if self._maybe(0.25):
            words = self._spiffe(context)
        else:
            roots = self._random.choice(
                (*((("a", "b"),) * 6), ("a",), ("a",), ("b",), ("middle",), ("other",), ("old", "a"))
            )
            words = [f"trusts {roots}"]
            authorities = [self._roots.get(name) or self._issuers[name] for name in roots]
            pem = b"".join(one.pem for one in authorities)
            if self._maybe(0.1):
                pem += self._lists(leaf, words)
            context["trusted_ca"] = {"inline_string": pem.decode()}
            if self._maybe(0.2):
                context["crl"] = {"inline_string": self._lists(leaf, words).decode()}
            if self._maybe(0.4):
                context["only_verify_leaf_cert_crl"] = True
                words.append("leaf lists only")
            if self._maybe(0.2):
                self._pins(context, leaf, words)
        # Envoy asks for it in listeners, and in clusters not: meshlib does in both.
        if is_server and "trusted_ca" in context and self._maybe(0.2):
            context["max_verify_depth"] = self._random.choice((0, 1, 2, 3, 4))
            words.append(f"depth {context['max_verify_depth']}")
        if self._maybe(0.5):
            self._names(context, words)
        return context, words

    def _lists(self, leaf: Leaf, words: list[str]) -> bytes:
        found = b""
        for one in self._random.sample(self._lists_for, self._random.choice((1, 3, 5, 5))):
            is_issuer = one.name == leaf.certificate.issuer
            revoked: list[Leaf | Authority] = [leaf] if is_issuer and self._maybe(0.4) else []
            if self._maybe(0.1):
                revoked.append(self._issuers["middle"])
            ends = -_MINUTES if self._maybe(0.1) else 60 * _MINUTES
            found += one.revoke(*revoked, ends=ends)
            words.append(f"list of {one.name.rfc4514_string()} with {len(revoked)} entries, ends {ends}")
        return found

    def _pins(self, context: Json, leaf: Leaf, words: list[str]) -> None:
        is_right = self._maybe(0.6)
        certificate = leaf.certificate_hash if is_right else bytes(32)
        if self._maybe(0.5):
            text = certificate.hex()
            context["verify_certificate_hash"] = [
                ":".join(text[at : at + 2] for at in range(0, 64, 2)) if self._maybe(0.5) else text
            ]
        else:
            key = leaf.spki_hash if is_right else bytes(32)
            context["verify_certificate_spki"] = [base64.b64encode(key).decode()]
            if self._maybe(0.3):
                context["verify_certificate_hash"] = ["00" * 32]
        words.append(f"pin {'right' if is_right else 'wrong'}")

    def _spiffe(self, context: Json) -> list[str]:
        domains = {"a.example": "a", "b.example": "b"}
        if self._maybe(0.3):
            domains = {"a.example": "b", "c.example": "a"}
        if self._maybe(0.3):
            domains.pop("b.example", None)
        config: Json = {"@type": _TLS + "SPIFFECertValidatorConfig"}
        if self._maybe(0.5):
            config["trust_bundles"] = {
                "inline_string": bundle_map({name: [self._roots[root]] for name, root in domains.items()})
            }
        else:
            config["trust_domains"] = [
                {"name": name, "trust_bundle": {"inline_string": self._roots[root].pem.decode()}}
                for name, root in domains.items()
            ]
        context["custom_validator_config"] = {"name": "envoy.tls.cert_validator.spiffe", "typed_config": config}
        return [f"trust domains {domains}"]

    def _names(self, context: Json, words: list[str]) -> None:
        matchers = []
        for _ in range(self._random.choice((1, 1, 2))):
            kind, names = self._random.choice(
                (("URI", _URIS),)
                if "custom_validator_config" in context
                else (("URI", _URIS), ("URI", _URIS), ("DNS", _DNS), ("IP_ADDRESS", _IPS), ("EMAIL", _EMAILS))
            )
            # Every other time a name that the certificate may well have.
            name = self._random.choice(names[:1] if self._maybe(0.5) else names)
            matcher = self._random.choice(
                (
                    {"exact": name},
                    {"exact": name},
                    {"prefix": name[:-3] or name},
                    {"suffix": name[3:] or name},
                    {"contains": name[2:-2] or name},
                    {"safe_regex": {"regex": f".*{name[-4:]}"}},
                    {"exact": name.upper(), "ignore_case": True},
                )
            )
            matchers.append({"san_type": kind, "matcher": matcher})
        context["match_typed_subject_alt_names"] = matchers
        words.append(f"names {[(one['san_type'], one['matcher']) for one in matchers]}")
