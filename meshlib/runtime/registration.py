"""Leases: announcing that an instance of a service is here, for as long as it is.

A thread per instance puts the announcement to the management server's HTTP address, again every third of its time to
live, and deletes it at the end. The server being away is normal: the instance goes on and announces itself when it is
back. A refusal of the first announcement is an error of the caller's; later ones are logged and tried again.

An instance that is not listening yet may be announced all the same: clients learn of it, and choose it not before its
address takes connections, which a second thread tries out.
"""

import logging
import os
import socket
import threading
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import httpx
import tenacity

from meshlib.errors import ConfigError
from meshlib.ports import Rng, WallClock
from meshlib.runtime import clock as clocks
from meshlib.runtime.credentials import is_local, read_token
from meshlib.runtime.exit import close_at_exit
from meshlib.xds.bootstrap import Bootstrap

__all__ = ["Instance", "Registration"]

_LOG = logging.getLogger(__name__)
FIRST_WAIT_S: Final = 5.0
"""How long the first announcement may keep its caller."""
REQUEST_TIMEOUT_S: Final = 2.0
MAX_RETRY_WAIT_S: Final = 2.0
"""While the server is away. Short: the instance gets no traffic until it is announced again."""
PROBE_EVERY_S: Final = 0.1
"""How often to try whether the instance listens; a refused connection on the same machine costs next to nothing."""
PROBE_TIMEOUT_S: Final = 1.0
PROBE_WARNING_S: Final = 15.0
"""After so long without a connection it is logged that nobody calls the instance."""


class _Refused(Exception):
    """The server answered with a client error; trying the same again does not help."""


@dataclass(frozen=True, slots=True)
class Instance:
    """One instance of a service; see `Mesh.register` for the fields."""

    service: str
    address: str
    namespace: str = "default"
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    service_account: str = ""
    protocol: str = "http"
    service_port: int = 80
    weight: int = 1
    ttl_s: float = 5.0
    ready: bool = True
    when_listening: bool = False

    def body(self, locality: Mapping[str, str]) -> dict[str, Any]:
        """Return the announcement.

        Raises:
            ConfigError: The address is not `host:port`, or two options contradict each other.
        """
        host, _, port = self.address.rpartition(":")
        if not host or not port.isdecimal():
            raise ConfigError(f"register: address must be IP:port, not {self.address!r}")
        if self.when_listening and not self.ready:
            raise ConfigError("register: ready=False leaves it to set_ready, when_listening to the port; choose one")
        return {
            "service": self.service,
            "namespace": self.namespace,
            "address": host.strip("[]"),
            "port": int(port),
            "labels": dict(self.labels),
            "service_account": self.service_account,
            "service_port": self.service_port,
            "protocol": self.protocol,
            "weight": self.weight,
            "locality": dict(locality),
            "ttl_s": self.ttl_s,
            **({} if self.ready and not self.when_listening else {"ready": False}),
        }


class Registration:
    """An announcement that is kept up until `close` or the end of the process."""

    closes_first = True

    def __init__(
        self,
        instance: Instance,
        bootstrap: Bootstrap,
        *,
        rng: Rng,
        lease_id: str | None = None,
        wall_clock: WallClock = clocks.wall,
        client: httpx.Client | None = None,
    ) -> None:
        """Make a registration; `start` announces it.

        Args:
            instance: What to announce.
            bootstrap: Says where, and with which token.
            rng: For the jitter of retries.
            lease_id: Name of the lease; None: a new one. Processes that share an address share its lease.
            wall_clock: Seconds since the epoch, for the token's lifetime.
            client: For tests.

        Raises:
            ConfigError: There is nowhere to register, or the instance is malformed.
        """
        if bootstrap.registry_uri is None:
            raise ConfigError("register: the bootstrap has no meshlib.registry_uri")
        locality = bootstrap.node.locality
        self.id = lease_id or f"{instance.service}-{uuid.uuid4().hex[:12]}"
        self.instance = instance
        self._body = instance.body({"region": locality.region, "zone": locality.zone, "sub_zone": locality.sub_zone})
        self._uri = f"{bootstrap.registry_uri.rstrip('/')}/v1/registrations/{self.id}"
        call_creds = bootstrap.servers[0].call_creds
        self._token_path = call_creds[0].path if call_creds else ""
        self._is_plain = bootstrap.registry_uri.startswith("http://")
        self._host = httpx.URL(bootstrap.registry_uri).netloc.decode()
        self._rng = rng
        self._wall_clock = wall_clock
        self._client = client or self._new_client()
        self._pid = os.getpid()
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._keeps_lease = False
        self._answered = threading.Event()
        self._thread: threading.Thread | None = None
        # Written by the thread.
        self.is_registered = False
        self.error = ""
        self._refusal: ConfigError | None = None

    def __repr__(self) -> str:
        state = "registered" if self.is_registered else f"not registered: {self.error or 'not announced yet'}"
        return f"<Registration {self.id} {self.instance.address} {state}>"

    def start(self, wait_s: float = FIRST_WAIT_S) -> None:
        """Announce the instance, and wait for the first answer for a while; it may be that nobody answers.

        Raises:
            ConfigError: The server refuses it.
        """
        self._thread = threading.Thread(target=self._run, name="meshlib-registration", daemon=True)
        self._thread.start()
        close_at_exit(self)
        self._answered.wait(wait_s)
        if self._refusal is not None:
            self.close()
            raise self._refusal
        if not self.is_registered:
            _LOG.warning("%s is not announced yet: %s", self.instance.address, self.error or "no answer")
        if self.instance.when_listening:
            threading.Thread(target=self._wait_listening, name="meshlib-listening", daemon=True).start()

    def close(self) -> None:
        """Take the instance out. Safe to call twice; never raises for a server that is away.

        In a forked child it does nothing: the instance belongs to the parent.
        """
        if os.getpid() != self._pid:
            return
        self._stop.set()
        self._wake.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(REQUEST_TIMEOUT_S * 2)

    def set_ready(self) -> None:
        """Let clients choose the instance from now on, if it was announced as not ready. Returns at once."""
        if self._body.pop("ready", True) is False:
            self._wake.set()

    def add_label(self, name: str, value: str) -> None:
        """Announce one more label from the next renewal on, which is made now. Returns at once."""
        if self._body["labels"].get(name) != value:
            # One assignment: the thread may be writing the body out.
            self._body["labels"] = {**self._body["labels"], name: value}
            self._wake.set()

    def release(self) -> None:
        """Stop renewing, but leave the lease to the others that renew it, or to its time."""
        if os.getpid() == self._pid:
            self._keeps_lease = True
            self.close()

    def withdraw(self) -> None:
        """After `release`: end the lease that was left. Never raises for a server that is away."""
        with suppress(httpx.HTTPError, ConfigError), self._new_client() as client:
            client.delete(self._uri, headers=self._headers())

    def hold(self, ttl_s: float) -> None:
        """After `release`: renew the lease once more, for whoever follows. Never raises for a server that is away."""
        with suppress(httpx.HTTPError, ConfigError), self._new_client() as client:
            client.put(self._uri, json=self._body | {"ttl_s": ttl_s}, headers=self._headers())

    def _wait_listening(self) -> None:
        """Try connections until one is taken, and have clients choose the instance from then on."""
        host, port = self._body["address"], self._body["port"]
        since = clocks.monotonic()
        has_warned = False
        while not is_listening(host, port):
            if not has_warned and clocks.monotonic() - since > PROBE_WARNING_S:
                has_warned = True
                _LOG.warning("%s takes no connections yet, so nobody calls it", self.instance.address)
            if self._stop.wait(PROBE_EVERY_S):
                return
        self.set_ready()

    def _run(self) -> None:
        first = True
        while not self._stop.is_set():
            self._announce(first)
            first = False
            self._wake.wait(self.instance.ttl_s / 3.0)
            self._wake.clear()
        if self.is_registered and not self._keeps_lease:
            # The lease ends by itself soon when this does not get through.
            with suppress(httpx.HTTPError, ConfigError):
                self._client.delete(self._uri, headers=self._headers())
        self.is_registered = False
        self._client.close()

    def _announce(self, is_first: bool) -> None:
        """Put the announcement, again and again while the server is away."""
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type((httpx.HTTPError, OSError)),
            wait=self._wait,
            stop=tenacity.stop_when_event_set(self._stop),
            sleep=tenacity.sleep_using_event(self._stop),
            reraise=True,
        )
        try:
            retrying(self._put)
        except _Refused as refusal:
            if is_first:
                self._refusal = ConfigError(f"register {self.instance.service} at {self.instance.address}: {refusal}")
            self._lost(str(refusal))
        except ConfigError as error:
            if is_first:
                self._refusal = error
            self._lost(str(error))
        except (httpx.HTTPError, OSError):
            pass  # closed meanwhile; _put has noted why
        finally:
            self._answered.set()

    def _new_client(self) -> httpx.Client:
        # A proxy from the environment must not stand between an instance and its lease on the same machine.
        return httpx.Client(timeout=REQUEST_TIMEOUT_S, trust_env=not is_local(self._host))

    def _put(self) -> None:
        try:
            response = self._client.put(self._uri, json=self._body, headers=self._headers())
            if response.status_code >= 500:
                response.raise_for_status()
        except httpx.HTTPError as error:
            self._lost(f"{self._uri}: {str(error) or type(error).__name__}")
            raise
        if not response.is_success:
            raise _Refused(f"{response.status_code} from {self._uri}: {_reason(response)}")
        if self.error:
            _LOG.info("%s is announced again", self.instance.address)
        self.is_registered, self.error = True, ""
        self._answered.set()

    def _lost(self, error: str) -> None:
        if error != self.error:
            _LOG.warning("%s cannot be announced: %s", self.instance.address, error)
        self.is_registered, self.error = False, error
        self._answered.set()  # whoever starts while the server is away is not kept waiting

    def _headers(self) -> dict[str, str]:
        if not self._token_path:
            return {}
        if self._is_plain and not is_local(self._host):
            raise ConfigError(f"a bearer token may not go to {self._uri} in the clear; use an https registry_uri")
        return {"authorization": f"Bearer {read_token(self._token_path, self._wall_clock())}"}

    def _wait(self, state: tenacity.RetryCallState) -> float:
        """0.1 s, doubling up to 2 s, with full jitter above half."""
        limit = min(0.1 * 2.0 ** min(state.attempt_number - 1, 10), MAX_RETRY_WAIT_S)
        return limit * (0.5 + 0.5 * self._rng.random())


def is_listening(host: str, port: int) -> bool:
    """Return whether connections to an address are taken; connects once."""
    try:
        with socket.create_connection((host, port), PROBE_TIMEOUT_S) as made:
            # Where nobody listens, a port that the system gives out may meet itself.
            return bool(made.getsockname() != made.getpeername())
    except OSError:
        return False


def _reason(response: httpx.Response) -> str:
    try:
        body = response.json()
    except ValueError:
        return response.reason_phrase
    return str(body.get("error", response.reason_phrase)) if isinstance(body, dict) else response.reason_phrase
