"""A mesh that server adapters can ask, with rules given by the test, and certificates."""

import datetime
from collections.abc import Callable

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from meshlib.errors import UnavailableError
from meshlib.events import Event, RequestServed
from meshlib.model.authorization import All, And, Header, Or, Policy, Principal, Rbac, RbacAction, UrlPath
from meshlib.model.filters import ListedLimit
from meshlib.model.listener import ServerListener
from meshlib.model.matcher import HeaderMatcher, PathKind, PathMatcher, StringKind, StringMatcher
from meshlib.model.route import NonForwarding, Route, RouteConfiguration, RouteMatcher, VirtualHost
from meshlib.model.secret import SanMatcher, SanType, SecretRef, ServerTls
from meshlib.model.snapshot import ConfigFault, InboundConfig
from meshlib.runtime.context import HANDED_ON
from meshlib.runtime.tracing import Tracing
from meshlib.testing import FakeClock, SeededRng

GATEWAY = "spiffe://cluster.local/ns/default/sa/gateway"
STRANGER = "spiffe://cluster.local/ns/default/sa/stranger"


class Handle:
    def __init__(self) -> None:
        self.current: InboundConfig | ConfigFault | None = None
        self.waited_s: list[float] = []
        self.on_wait: Callable[[], None] = lambda: None

    def wait_ready(self, timeout_s: float) -> InboundConfig:
        self.waited_s.append(timeout_s)
        self.on_wait()
        if isinstance(self.current, InboundConfig):
            return self.current
        raise UnavailableError("not there")


class FakeServerMesh:
    def __init__(self) -> None:
        self.clock = FakeClock()
        self.rng = SeededRng(1)
        self.is_disabled = False
        self.tracing = Tracing()
        self.handed_on = HANDED_ON
        self.has_inbound = True
        self.default_inbound_address: str | None = None
        self.announced_addresses: dict[str, str] = {}
        self.leaving_addresses: dict[str, InboundConfig] = {}
        self.forwarded: dict[str, str] = {}
        self._inbound_limiters: dict[str, object] = {}
        self.handles: dict[str, Handle] = {}
        self.events: list[Event] = []

    def inbound(self, address: str) -> Handle:
        return self.handles.setdefault(address, Handle())

    def emit(self, event: Event) -> None:
        self.events.append(event)

    @property
    def served(self) -> list[RequestServed]:
        return [event for event in self.events if isinstance(event, RequestServed)]

    def rules(
        self,
        *rbac: Rbac,
        address: str = "127.0.0.1:80",
        tls: ServerTls | None = None,
        prefix: str = "/",
        takes_plaintext: bool = False,
        limits: tuple[ListedLimit, ...] = (),
    ) -> InboundConfig:
        route = Route(RouteMatcher(PathMatcher(PathKind.PREFIX, prefix)), NonForwarding())
        routes = RouteConfiguration("inbound", (VirtualHost("inbound", ("*",), (route,)),))
        config = InboundConfig(
            ServerListener("inbound", address, tls, rbac, routes, limits=limits, takes_plaintext=takes_plaintext),
            routes,
        )
        self.inbound(address).current = config
        return config


def allow_gateway(*methods: str) -> Rbac:
    """As the example's AuthorizationPolicy: one principal, some methods."""
    exact = lambda text: StringMatcher(StringKind.EXACT, text)  # noqa: E731
    permission = Or(tuple(Header(HeaderMatcher(":method", exact(method))) for method in methods))
    return Rbac("rbac", RbacAction.ALLOW, (Policy("p", And((permission, All())), Principal(exact(GATEWAY))),))


STRICT = ServerTls(
    SecretRef(sds_name="default"),
    SecretRef(sds_name="ROOTCA"),
    sans=(SanMatcher(SanType.URI, StringMatcher(StringKind.PREFIX, "spiffe://cluster.local/")),),
    require_client_certificate=True,
)


def certificate_pem(*uris: str) -> str:
    """A self-signed certificate; adapters trust what TLS has verified and only read names."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(x509.Name([]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in uris]), critical=True
        )
    )
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


@pytest.fixture
def server_mesh() -> FakeServerMesh:
    return FakeServerMesh()


@pytest.fixture
def gateway_rules() -> Callable[..., Rbac]:
    return allow_gateway


@pytest.fixture
def deny_users() -> Rbac:
    """Nobody may ask for anything under `/users/`."""
    users = UrlPath(StringMatcher(StringKind.PREFIX, "/users/"))
    return Rbac("rbac.DENY", RbacAction.DENY, (Policy("p", users, All()),))


@pytest.fixture
def strict() -> ServerTls:
    return STRICT


@pytest.fixture(scope="session")
def gateway_pem() -> str:
    return certificate_pem(GATEWAY)


@pytest.fixture(scope="session")
def stranger_pem() -> str:
    return certificate_pem(STRANGER)


@pytest.fixture(scope="session")
def two_ids_pem() -> str:
    return certificate_pem(GATEWAY, STRANGER)


@pytest.fixture(scope="session")
def foreign_pem() -> str:
    return certificate_pem("spiffe://elsewhere/ns/default/sa/gateway")
