"""Which endpoints gRPC's own TLS takes over from the relay, and when. `meshlib.runtime.core` says how it does it.

A TLS channel begins with the relay. A thread looks at those that are open: when the relay has verified a peer, the
configuration is one that core can check in full, and core has acknowledged the cluster made of it, new calls to the
endpoint go over core. An attempt that core could not send (it cannot connect, or refuses the peer) is made over the
relay instead, which says why, and the endpoint stays there for some seconds. So core only ever makes calls cheaper.

The thread starts with the first TLS channel and sleeps while nothing changes.
"""

import logging
import os
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from meshlib.clients.grpc_endpoint import ChannelSecrets, EndpointChannel
from meshlib.identity.certificates import parse_chain
from meshlib.model.secret import ClientTls, TlsCertificate
from meshlib.runtime.clock import monotonic, wall
from meshlib.runtime.core import STOPPED, CoreCluster, LocalAds, Slots, is_plain_trust, san_patterns, self_test

if TYPE_CHECKING:
    from meshlib.clients.grpc_channels import Channels

__all__ = ["SWITCH", "CorePath", "CoreStatus"]

_LOG = logging.getLogger(__name__)

SWITCH: Final = "MESHLIB_GRPC_TLS"
START_DELAY_S: Final = 0.5
"""A program that ends soon gains nothing from the self-test."""
TICK_S: Final = 0.1
"""While something is about to change over."""
IDLE_TICK_S: Final = 1.0
"""While channels of the relay wait for a peer that answers, or for distrust to end."""
REST_S: Final = 30.0
"""While all is well: certificates expire."""
DISTRUST_S: Final = 5.0
MIN_CONNECT_S: Final = 1.0
"""Core gives every connection this time; a cluster that gives less stays with the relay."""
CLUSTERS: Final = 500
"""Core looks at all of them in every change: 40 ms with 500."""


class CoreStatus(NamedTuple):
    """See `meshlib.admin.status.GrpcTls`."""

    mode: str
    text: str
    core: int
    relay: int


_FAILED: Final = "its thread failed"

# One verdict for the process; written under the lock.
_verdict: list[str] = []
_verdict_lock = threading.Lock()


@dataclass(eq=False, slots=True)
class _Group:
    """Endpoint channels whose peers must prove the same."""

    tls: ClientTls
    secrets: ChannelSecrets
    authority: str
    members: "list[tuple[Channels[Any], EndpointChannel[Any]]]" = field(default_factory=list)


class CorePath:
    """Core's part in the channels of one mesh.

    Args:
        all_channels: The kinds of channels: sync, and one for each event loop.
    """

    def __init__(self, all_channels: "Callable[[], Iterable[Channels[Any]]]") -> None:
        self._all_channels = all_channels
        self._lock = threading.Lock()
        # Guarded by the lock:
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()
        self._is_stopping = False
        # Of the thread:
        self._ads: LocalAds | None = None
        self._slots: Slots | None = None
        self._clusters: dict[Any, CoreCluster] = {}
        self._published: tuple[CoreCluster, ...] = ()
        self._number = 0
        self._is_early = False
        self._places: set[str] = set()
        # One assignment each, read by everyone.
        self._mode = "idle"
        self._text = ""

    def wake(self) -> None:
        """TLS channels have come or gone. Never blocks."""
        if self._mode == "relay":
            return
        with self._lock:
            if self._thread is None:
                self._is_stopping = False
                self._thread = threading.Thread(target=self._run, name="meshlib-core", daemon=True)
                self._thread.start()
        self._wake.set()

    def close(self) -> None:
        """End the thread, and core's management server. Channels must not be used any more; `wake` starts again."""
        with self._lock:
            thread, self._thread = self._thread, None
            self._is_stopping = True
        self._wake.set()
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        if not self._text.startswith(_FAILED):
            self._mode, self._text = "idle", ""

    def forget(self) -> None:
        """After a fork, in the child. `close` came before it."""
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._thread = None

    def status(self) -> CoreStatus:
        """Return how calls are made now."""
        core = relay = 0
        for channels in self._all_channels():
            for channel in channels.secured():
                core += channel.core is not None
                relay += channel.core is None
        return CoreStatus(self._mode, self._text, core, relay)

    # In the thread.

    def _run(self) -> None:
        try:
            wait_s = START_DELAY_S
            self._pause(wait_s)
            while not self._is_stopping:
                if self._mode != "core" and not self._begin():
                    return
                self._pause(self._look(monotonic()))
        except Exception:
            _LOG.exception("gRPC's own TLS is not used any more: its thread failed")
            self._text = f"{_FAILED}; the log says why"
            self._mode = "relay"
        finally:
            for channels in self._all_channels():
                channels.leave_core()
            self._end()

    def _pause(self, seconds: float) -> None:
        self._wake.wait(seconds)
        self._wake.clear()

    def _begin(self) -> bool:
        """Find out whether core can be used, and start its server."""
        asked = os.environ.get(SWITCH, "auto")
        if asked != "auto":
            self._text = f"{SWITCH}={asked}" if asked == "relay" else f"{SWITCH} must be auto or relay, not {asked!r}"
            self._mode = "relay"
            return False
        self._mode = "testing"
        with _verdict_lock:
            if not _verdict:
                found = self_test(lambda: self._is_stopping)
                if found == STOPPED:
                    return False
                _verdict.append(found)
                if found:
                    _LOG.warning("gRPC calls over TLS go through the relay: %s", found)
            self._text = _verdict[0]
        if self._text:
            self._mode = "relay"
            return False
        try:
            self._slots = Slots()
            self._ads = LocalAds()
        except (OSError, AttributeError, RuntimeError) as error:
            self._text, self._mode = f"core's server cannot be started: {error}", "relay"
            return False
        self._mode = "core"
        return True

    def _end(self) -> None:
        ads, self._ads = self._ads, None
        slots, self._slots = self._slots, None
        self._clusters, self._published = {}, ()
        if ads is not None:
            ads.close()
        if slots is not None:
            slots.close()

    def _look(self, now: float) -> float:
        """Bring what core knows up to date, and hand over what can be; returns how long nothing is to be done."""
        ads, slots = self._ads, self._slots
        assert ads is not None and slots is not None
        if ads.problem:
            raise RuntimeError(ads.problem)
        groups = self._groups(now)
        clusters: dict[Any, CoreCluster] = {}
        self._is_early = False
        self._places = set()
        for key, group in groups.items():
            cluster = self._cluster(slots, key, group, now)
            if cluster is not None:
                clusters[key] = cluster
                continue
            for channels, channel in group.members:
                if channel.core is not None:
                    channels.distrust(channel)
        self._publish(ads, slots, clusters)
        is_pending = self._is_early
        wants_relay = False
        for key, cluster in clusters.items():
            for channels, channel in groups[key].members:
                if channel.core is None:
                    wants_relay = True
                    if channel.route is not None and channel.route.has_verified:
                        is_pending = not channels.hand_over(channel, cluster, ads, slots.providers) or is_pending
        if is_pending:
            return TICK_S
        return IDLE_TICK_S if wants_relay else REST_S

    def _groups(self, now: float) -> dict[Any, _Group]:
        groups: dict[Any, _Group] = {}
        for channels in self._all_channels():
            channels.forgive(now, DISTRUST_S)
            for channel in channels.secured():
                tls, secrets, route = channel.key.tls, channel.secrets, channel.route
                if tls is None or secrets is None or channel.key.dials or not _is_ip(channel.key.address):
                    continue
                if route is not None and route.connect_timeout_s < MIN_CONNECT_S:
                    continue
                key = (tls, secrets.certificate, secrets.trust, channel.key.authority)
                group = groups.get(key)
                if group is None:
                    group = groups[key] = _Group(tls, secrets, channel.key.authority)
                group.members.append((channels, channel))
        return groups

    def _cluster(self, slots: Slots, key: Any, group: _Group, now: float) -> CoreCluster | None:
        """Return the cluster of a group; None: core cannot have it, or not yet."""
        certificate, trust = group.secrets.certificate, group.secrets.trust
        if certificate is not None and not _is_valid(certificate, wall()):
            return None  # what has expired is never used
        endpoints = tuple(sorted({channel.key.address for _, channel in group.members}))
        known = self._clusters.get(key)
        if known is not None:
            return known if known.endpoints == endpoints else replace(known, endpoints=endpoints)
        patterns = san_patterns(group.tls)
        if not patterns or trust is None or not is_plain_trust(trust) or len(self._clusters) >= CLUSTERS:
            return None
        places = [slots.bundle(trust.ca_pem, now)]
        if certificate is not None:
            places.append(slots.certificate(certificate.chain_pem, certificate.key_pem, now))
        found = [place for place in places if place is not None]
        self._places.update(name for name, _ in found)
        if len(found) < len(places):
            return None
        if any(now < ready_at for _, ready_at in found):
            self._is_early = True
            return None
        self._number += 1
        own = found[1][0] if certificate is not None else ""
        return CoreCluster(f"c{self._number:x}", patterns, group.tls.sni, own, found[0][0], group.authority, endpoints)

    def _publish(self, ads: LocalAds, slots: Slots, clusters: dict[Any, CoreCluster]) -> None:
        self._clusters = clusters
        found = tuple(clusters.values())
        if found and found != self._published:
            self._published = found
            ads.publish(found)
        named = (name for one in self._published for name in (one.certificate, one.trust))
        slots.keep(frozenset((*named, *self._places)))


@lru_cache(64)
def _validity(certificate: TlsCertificate) -> tuple[float, float]:
    leaf = parse_chain(certificate.chain_pem)[0]
    return leaf.not_before, leaf.not_after


def _is_valid(certificate: TlsCertificate, wall_now: float) -> bool:
    # The relay has used it, so it can be read and the key belongs to it.
    starts_at, ends_at = _validity(certificate)
    return starts_at <= wall_now <= ends_at


def _is_ip(address: str) -> bool:
    try:
        ip_address(address.rpartition(":")[0].strip("[]"))
    except ValueError:
        return False
    return True
