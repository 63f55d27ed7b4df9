"""Who a client is: a service account, as Kubernetes and SPIFFE name it."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

# A DNS label (RFC 1123): what Kubernetes allows as a namespace or service account name.
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]{1,255}")
_SUBJECT_PREFIX = "system:serviceaccount:"


def is_label(name: str) -> bool:
    """Tell whether a name can be a namespace, service or service account: lower-case letters, digits and `-`."""
    return _LABEL.fullmatch(name) is not None


def parse_trust_domain(text: str, option: str) -> str:
    """Return a SPIFFE trust domain.

    Raises:
        ValueError: It is none; the text names the option.

    Source: SPIFFE-ID, section 2.1.
    """
    if _TRUST_DOMAIN.fullmatch(text) is None:
        raise ValueError(f"{option} must be 1 to 255 of lower-case letters, digits and '.', '-', '_', not {text!r}")
    return text


@dataclass(frozen=True, slots=True, order=True)
class Identity:
    """A service account in a namespace.

    Raises:
        ValueError: A part is no DNS label.
    """

    namespace: str
    service_account: str

    def __post_init__(self) -> None:
        for what, name in (("namespace", self.namespace), ("service account", self.service_account)):
            if not is_label(name):
                raise ValueError(f"{what} {name!r} is not a DNS label (lower-case letters, digits and '-')")

    @classmethod
    def from_subject(cls, subject: str) -> "Identity":
        """Parse the `sub` of a token, `system:serviceaccount:<namespace>:<service account>`.

        Raises:
            ValueError: It is none.
        """
        parts = subject.removeprefix(_SUBJECT_PREFIX).split(":")
        if not subject.startswith(_SUBJECT_PREFIX) or len(parts) != 2:
            raise ValueError(f"subject {subject!r} is not system:serviceaccount:<namespace>:<service account>")
        return cls(*parts)

    @property
    def subject(self) -> str:
        return f"{_SUBJECT_PREFIX}{self.namespace}:{self.service_account}"

    def spiffe_id(self, trust_domain: str) -> str:
        return f"spiffe://{trust_domain}/ns/{self.namespace}/sa/{self.service_account}"

    def __str__(self) -> str:
        return f"{self.namespace}/{self.service_account}"


@dataclass(frozen=True, slots=True)
class Speakers:
    """Which service accounts may register instances of which services, within their namespace.

    An account speaks for the service of its own name. Anything more must be granted: a workload with a certificate of
    its own could otherwise draw the traffic of any service to itself.

    Attributes:
        grants: (service account, service); the service `*` stands for all.
    """

    grants: frozenset[tuple[str, str]] = frozenset()

    @classmethod
    def parse(cls, texts: Iterable[str], option: str) -> "Speakers":
        """Read grants of the form `account=service`.

        Raises:
            ValueError: One is not of that form; the text names the option.
        """
        grants = set()
        for text in texts:
            account, separator, service = text.partition("=")
            if not separator or not is_label(account) or not (service == "*" or is_label(service)):
                raise ValueError(f"{option} {text!r} is not of the form account=service or account=*")
            grants.add((account, service))
        return cls(frozenset(grants))

    def may_register(self, identity: Identity, service: str) -> bool:
        """Whether an account may register instances of a service."""
        account = identity.service_account
        return account == service or not self.grants.isdisjoint({(account, service), (account, "*")})
