"""A real Envoy that is given clusters, endpoints and listeners out of files, and says which of them it takes."""

import json
from pathlib import Path

import httpx
from peers.envoy import Envoy
from peers.processes import poll
from peers.upstreams import LOOPBACK

from differential.decision import Refusal
from differential.generate import TYPE, Json

__all__ = ["EnvoyEndedError", "ResourceSide"]

CLUSTERS, ENDPOINTS, LISTENERS = "clusters", "endpoints", "listeners"
_KINDS = {
    CLUSTERS: "envoy.config.cluster.v3.Cluster",
    ENDPOINTS: "envoy.config.endpoint.v3.ClusterLoadAssignment",
    LISTENERS: "envoy.config.listener.v3.Listener",
}
_STATISTICS = {
    CLUSTERS: "cluster_manager.cds.",
    ENDPOINTS: "cluster.subject_of_files.",
    LISTENERS: "listener_manager.lds.",
}
_SOON_S = 0.002


class EnvoyEndedError(Exception):
    """What Envoy was given made its process end: it neither takes nor refuses that."""


class ResourceSide:
    """Asks a real Envoy. Use as a context manager."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._version = 0

    def __enter__(self) -> "ResourceSide":
        for kind in _KINDS:
            (self._folder / kind).mkdir()
            self._write(kind, [])
        self._write(ENDPOINTS, [{"cluster_name": "subject_of_files"}])
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self._envoy.stop()

    def install(self, kind: str, resource: Json) -> Refusal | None:
        """Give Envoy a resource in the place of the one before; None: it took it.

        Raises:
            EnvoyEndedError: Its process ended; there is a new one.
        """
        try:
            before = self._counters(kind)
        except httpx.TransportError:  # the one before was too much for it, a moment later
            self._restart(kind)
            before = self._counters(kind)
        self._write(kind, [resource])
        try:
            poll(lambda: self._counters(kind) != before, f"Envoy to read {kind}", every_s=_SOON_S)
            is_taken = self._counters(kind)[0] > before[0]
        except (httpx.TransportError, AssertionError, ValueError) as error:
            self._restart(kind)
            raise EnvoyEndedError(kind) from error
        if is_taken:
            return None
        return Refusal(self._envoy.reason("rejected: ", "update failure: ", every_s=_SOON_S))

    def _restart(self, kind: str) -> None:
        self._envoy.stop()
        self._write(kind, [{"cluster_name": "subject_of_files"}] if kind == ENDPOINTS else [])
        self._start()

    def _start(self) -> None:
        # Under a new name: it writes its admin address into a file.
        self._envoy = Envoy(f"resources-{self._version}", self._bootstrap(), self._folder)

    def _counters(self, kind: str) -> tuple[int, int]:
        prefix = _STATISTICS[kind]
        found = self._envoy.stats(prefix.replace(".", "[.]") + "update_(success|rejected|failure)$")
        refused = found.get(prefix + "update_rejected", 0) + found.get(prefix + "update_failure", 0)
        return found.get(prefix + "update_success", 0), refused

    def _write(self, kind: str, resources: list[Json]) -> None:
        self._version += 1
        packed = [{"@type": TYPE + _KINDS[kind], **resource} for resource in resources]
        content = {"version_info": str(self._version), "resources": packed}
        temporary = self._folder / kind / "new"
        temporary.write_text(json.dumps(content))
        temporary.replace(self._folder / kind / "now.json")

    def _source(self, kind: str) -> Json:
        folder = self._folder / kind
        watched = {"path": str(folder / "now.json"), "watched_directory": {"path": str(folder)}}
        return {"resource_api_version": "V3", "path_config_source": watched}

    def _bootstrap(self) -> Json:
        http2 = {
            "@type": TYPE + "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": {}},
        }
        nobody = {
            "name": "nobody",
            "type": "STATIC",
            "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http2},
            "load_assignment": {"cluster_name": "nobody"},
        }
        subject = {
            "name": "subject_of_files",
            "type": "EDS",
            "eds_cluster_config": {"eds_config": self._source(ENDPOINTS)},
        }
        ads = {
            "api_type": "GRPC",
            "transport_api_version": "V3",
            "grpc_services": [{"envoy_grpc": {"cluster_name": "nobody"}}],
        }
        # Names are asked of nobody: nothing leaves this machine.
        resolver = {
            "@type": TYPE + "envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig",
            "resolvers": [{"socket_address": {"address": LOOPBACK, "port_value": 1, "protocol": "UDP"}}],
            "dns_resolver_options": {"no_default_search_domain": True},
        }
        return {
            "node": {"id": "rejection", "cluster": "conformance"},
            "dynamic_resources": {
                # What resources refer to by `ads` never comes; they are taken before that.
                "ads_config": ads,
                "cds_config": self._source(CLUSTERS),
                "lds_config": self._source(LISTENERS),
            },
            "typed_dns_resolver_config": {"name": "envoy.network.dns_resolver.cares", "typed_config": resolver},
            "static_resources": {"clusters": [nobody, subject]},
        }
