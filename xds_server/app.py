"""The whole server in one event loop: sources, publisher, streams, leases, certificates and the HTTP side."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import grpc

from xds_server.addresses import Address, bind, check_free
from xds_server.admin import AdminState, build_admin
from xds_server.admission import Admission, StreamLimits
from xds_server.authentication import Authentication
from xds_server.ca import CertificateAuthority, utc_now
from xds_server.csds import ClientStatusService
from xds_server.groups import Group, group_of
from xds_server.http import HttpServer
from xds_server.hub import Hub
from xds_server.identity import Speakers
from xds_server.load_reports import LoadReports
from xds_server.lrs import DEFAULT_INTERVAL_S, LoadReportService
from xds_server.model import Finding, Profile, Severity
from xds_server.ordering import CDS
from xds_server.private_files import private_folder
from xds_server.publisher import Compile, Load, Publisher
from xds_server.registrations import load_leases, save_leases
from xds_server.registry import Registry
from xds_server.secrets import SECRET_NAMES, Secrets
from xds_server.server import AdsServer
from xds_server.server_certificate import ServerCertificate
from xds_server.statistics import Statistics
from xds_server.tokens import Tokens
from xds_server.waiting import wait_for
from xds_server.wire import Node

_log = logging.getLogger(__name__)

# A file that changes while the watch on it is being set up would go unseen; this long after it we look again.
_SECOND_LOOK_S = 0.5

# How often certificates are compared with the wall clock.
_CLOCK_LOOK_S = 30.0


@dataclass(frozen=True, slots=True)
class Config:
    """What `xds-server serve` was told.

    Attributes:
        secure_listen: None without a state directory: the certificate authority lives there.
        cert_ttl: Lifetime of the clients' certificates.
        quiet_s: Pause after which a change of files is acted on, in seconds.
        load_interval_s: Seconds between two load reports of a client.
        speakers: Who may register instances of what.
        stream_limits: Of one client's streams for discovery and load reports.
    """

    paths: tuple[str, ...]
    listen: Address
    admin: Address
    secure_listen: Address | None = None
    state_dir: Path | None = None
    trust_domain: str = "cluster.local"
    cert_ttl: timedelta = timedelta(hours=24)
    quiet_s: float = 0.1
    load_interval_s: float = DEFAULT_INTERVAL_S
    admin_allow_remote: bool = False
    speakers: Speakers = field(default_factory=Speakers)
    stream_limits: StreamLimits = field(default_factory=StreamLimits)


@dataclass(frozen=True, slots=True)
class Source:
    """Where documents come from and how they become resources.

    Attributes:
        watch: Yields after each change.
    """

    load: Load
    watch: Callable[[], AsyncIterator[None]]
    compile_group: Compile


def file_source(config: Config) -> Source:
    """Return the source that reads the configured paths and translates what is in them."""
    from xds_server import translate
    from xds_server.sources import files

    return Source(
        load=lambda: files.load(config.paths),
        watch=lambda: files.watch(config.paths),
        compile_group=lambda documents, instances, group: translate.compile_documents(
            documents,
            instances,
            profile=group.profile,
            trust_domain=config.trust_domain,
            outbound_listen=group.outbound_listen,
            place=group.place,
            has_certificates=config.state_dir is not None,
        ),
    )


class StartError(Exception):
    """The server cannot start; the text says why and what to do.

    Attributes:
        findings: What is wrong with the documents, if that is the reason.
    """

    def __init__(self, message: str, findings: tuple[Finding, ...] = ()) -> None:
        super().__init__(message)
        self.findings = findings


class App:
    """One running server.

    Attributes:
        listen: Where it really listens, once started; likewise `secure_listen` and `admin`.
    """

    def __init__(self, config: Config, source: Source | None = None) -> None:
        self.config = config
        self._source = source or file_source(config)
        self.listen = config.listen
        self.secure_listen = config.secure_listen
        self.admin = config.admin
        self.hub = Hub()
        self.registry = Registry()
        self.statistics = Statistics()
        self._leases_changed = asyncio.Event()
        self._authority, self._tokens = _open_state(config)
        self._secrets = Secrets(self._authority, ttl=config.cert_ttl) if self._authority is not None else None
        self.publisher = Publisher(
            self.hub,
            load=self._source.load,
            compile_group=self._source.compile_group,
            instances=self.registry.instances,
            secrets=SECRET_NAMES if self._secrets is not None else frozenset(),
            statistics=self.statistics,
            quiet_s=config.quiet_s,
        )
        authentication = None
        if self._tokens is not None and self._secrets is not None:
            authentication = Authentication(self._tokens, self._secrets)
        self.load_reports = LoadReports()
        admission = Admission(config.stream_limits)
        self.load_reporting = LoadReportService(
            self.load_reports,
            self._clusters,
            authentication,
            interval_s=config.load_interval_s,
            admission=admission,
            statistics=self.statistics,
        )
        self.ads = AdsServer(
            self.hub,
            self.publisher.snapshot,
            authentication=authentication,
            statistics=self.statistics,
            admission=admission,
            others=(ClientStatusService(self.hub, authentication), self.load_reporting),
        )
        self._http: HttpServer | None = None
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def ready_line(self) -> str:
        """The one line that says that the server is ready, and where."""
        snapshot = self.hub.snapshot(Group(Profile.MESHLIB))
        count = snapshot.resource_count if snapshot is not None else 0
        secure = self.secure_listen if self.secure_listen is not None else "off"
        return f"xds-server ready: xds={self.listen} secure={secure} admin=http://{self.admin} resources={count}"

    async def start(self) -> None:
        """Load everything, publish it, then listen.

        Raises:
            StartError: It cannot be done.
        """
        config = self.config
        try:
            check_free(config.listen, "--listen")
            if config.secure_listen is not None:
                check_free(config.secure_listen, "--secure-listen")
            admin_socket = bind(config.admin, "--admin")
        except OSError as error:
            raise StartError(error.strerror or str(error)) from error
        try:
            await self._start(admin_socket)
        except BaseException:
            admin_socket.close()
            await self.stop(drain_s=0.0)
            raise

    async def _start(self, admin_socket: socket.socket) -> None:
        config = self.config
        loop = asyncio.get_running_loop()
        if config.state_dir is not None:
            try:
                self.registry.restore(load_leases(_leases_path(config.state_dir)), loop.time())
            except (OSError, ValueError) as error:
                raise StartError(str(error)) from error
        self._spawn("watch", self._watch)
        if not await self.publisher.publish("start", reload=True):
            findings = tuple(each for each in self.publisher.findings if each.severity is Severity.ERROR)
            if not findings:
                raise StartError("the configuration could not be compiled, a fault of the server: see its log")
            raise StartError("the configuration has errors", findings)
        self._spawn("publish", self.publisher.run)
        loop.call_later(_SECOND_LOOK_S, self.publisher.sources_changed)
        self._spawn("leases", self._keep_leases)
        try:
            self.listen = config.listen.with_port(await self.ads.listen(str(config.listen)))
            if config.secure_listen is not None and self._authority is not None:
                port = await self.ads.listen(str(config.secure_listen), self._credentials(config.secure_listen))
                self.secure_listen = config.secure_listen.with_port(port)
        except OSError as error:
            raise StartError(str(error)) from error
        if self._secrets is not None:
            self._spawn("rotate", self._rotate)
        self.admin = config.admin.with_port(admin_socket.getsockname()[1])
        state = AdminState(
            hub=self.hub,
            publisher=self.publisher,
            registry=self.registry,
            statistics=self.statistics,
            load_reports=self.load_reports,
            load_reporting=self.load_reporting,
            tokens=self._tokens,
            speakers=config.speakers,
            registrations_changed=self.publisher.registrations_changed,
            leases_changed=self._leases_changed.set,
        )
        hosts = ("localhost", "127.0.0.1", "[::1]", _in_url(config.admin)) if config.admin.is_loopback else None
        self._http = HttpServer(build_admin(state, hosts=hosts))
        try:
            await self._http.start(admin_socket)
        except RuntimeError as error:
            raise StartError(str(error)) from error

    async def stop(self, drain_s: float = 0.2) -> None:
        """Drain and stop; harmless when it never started."""
        await self.ads.stop(drain_s)
        if self._http is not None:
            await self._http.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._tasks and self.config.state_dir is not None:
            self._save_leases(
                _leases_path(self.config.state_dir)
            )  # the last change may have come too late for its task
        self._tasks.clear()

    def _clusters(self, node: Node) -> tuple[str, ...]:
        snapshot = self.hub.snapshot(group_of(node))
        return tuple(snapshot.state(CDS).resources) if snapshot is not None else ()

    def _credentials(self, address: Address) -> grpc.ServerCredentials:
        assert self._authority is not None
        certificate = ServerCertificate(self._authority, ("localhost", "127.0.0.1", address.host))
        return grpc.dynamic_ssl_server_credentials(certificate.configuration(), certificate.configuration)

    def _spawn(self, name: str, body: Callable[[], Awaitable[None]]) -> None:
        self._tasks.append(asyncio.create_task(_guarded(name, body), name=name))

    async def _watch(self) -> None:
        async for _ in self._source.watch():
            self.publisher.sources_changed()

    async def _keep_leases(self) -> None:
        """Expire leases in time and write them down when they change."""
        loop = asyncio.get_running_loop()
        saved = None
        while True:
            self._leases_changed.clear()
            sweep = self.registry.sweep(loop.time())
            for instance in sweep.expired:
                _log.warning("registration %s of %s expired", instance.id, instance.service)
            for instance in sweep.held:
                _log.error(
                    "registration %s of %s is overdue with most of its service: held for one more lifetime, since the "
                    "usual cause is that renewals do not reach this server",
                    instance.id,
                    instance.service,
                )
            if sweep.expired:
                self.publisher.registrations_changed()
            if self.config.state_dir is not None:
                current = [(lease.instance, lease.ttl_s) for lease in self.registry.leases()]
                if current != saved:
                    await asyncio.to_thread(self._save_leases, _leases_path(self.config.state_dir))
                    saved = current
            expiry = self.registry.next_expiry()
            await wait_for(self._leases_changed, None if expiry is None else max(0.0, expiry - loop.time()))

    def _save_leases(self, path: Path) -> None:
        try:
            save_leases(path, self.registry.leases())
        except OSError as error:
            _log.error("cannot write %s: %s; registrations do not survive a restart", path, error)

    async def _rotate(self) -> None:
        assert self._secrets is not None
        loop = asyncio.get_running_loop()
        while True:
            for identity, state in self._secrets.sweep(loop.time()):
                _log.info("new certificate for %s", identity)
                self.hub.publish_secrets(identity, state)
            rotation = self._secrets.next_rotation()
            # A stream that opens meanwhile cannot need a rotation before half of a new certificate's lifetime; that the
            # wall clock was set, or the machine slept, only shows when one looks.
            limit = min(self.config.cert_ttl.total_seconds() / 4, _CLOCK_LOOK_S)
            due = limit if rotation is None else min(limit, max(0.0, rotation - loop.time()))
            await asyncio.sleep(due)


async def _guarded(name: str, body: Callable[[], Awaitable[None]]) -> None:
    """Run a background task; a fault in it is logged and it starts again, so that the rest goes on."""
    while True:
        try:
            await body()
            return
        except Exception:
            _log.exception("the %s task failed and starts again", name)
            await asyncio.sleep(1.0)


def _open_state(config: Config) -> tuple[CertificateAuthority | None, Tokens | None]:
    if config.state_dir is None:
        return None, None
    try:
        private_folder(config.state_dir)
        return CertificateAuthority.open(config.state_dir, config.trust_domain, utc_now()), Tokens.open(
            config.state_dir
        )
    except (OSError, ValueError) as error:
        raise StartError(f"--state-dir: {error}") from error


def _leases_path(state_dir: Path) -> Path:
    return state_dir / "leases.json"


def _in_url(address: Address) -> str:
    return f"[{address.host}]" if ":" in address.host else address.host
