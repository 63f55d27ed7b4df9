"""Clusters (CDS): one for each port and subset of a service."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from xds_server.model import NOWHERE, Place, Position, Profile
from xds_server.translate.destination_rule import Rule
from xds_server.translate.endpoints import load_assignment
from xds_server.translate.load_balancing import balancer_fields
from xds_server.translate.locality import depends_on_place, locality_groups, setting_of
from xds_server.translate.messages import Json, ads, origin
from xds_server.translate.names import cluster_name, sni
from xds_server.translate.peer_authentication import MutualTls, PeerAuthentications
from xds_server.translate.pools import outlier_fields, pool_fields
from xds_server.translate.report import Report
from xds_server.translate.services import Endpoint, Service
from xds_server.translate.tls import RAW_BUFFER, client_mutual, client_simple, spiffe_id

DNS_FIELDS: Json = {
    # Istio's times: as long as an answer is good, and clients apart from each other.
    "respect_dns_ttl": True,
    "dns_jitter": "0.1s",
    # Envoy's default takes IPv6 addresses even where they lead nowhere; Istio, too, says IPv4 on machines that have it.
    "dns_lookup_family": "V4_PREFERRED",
}


@dataclass(frozen=True, slots=True)
class Target:
    """What one cluster stands for.

    Attributes:
        endpoints: Those of the subset.
    """

    service: Service
    port: int
    subset: str
    rule: Rule
    endpoints: tuple[Endpoint, ...]

    @property
    def name(self) -> str:
        return cluster_name(self.port, self.subset, self.service.host)

    @property
    def policy(self) -> Mapping[str, Any]:
        return self.rule.policy_of(self.port, self.subset)

    @property
    def place(self) -> Position | None:
        """Where its policy is written, or the service."""
        if (subset := self.rule.subsets.get(self.subset)) is not None and subset.policy is not None:
            return subset.position
        if self.rule.policy_config is not None:
            return self.rule.policy_config.position("trafficPolicy")
        return self.service.origin.document.position() if self.service.origin else None


@dataclass(frozen=True, slots=True)
class ClusterBuilder:
    """Turns targets into clusters and endpoint resources for clients of one profile and place."""

    profile: Profile
    trust_domain: str
    authentications: PeerAuthentications
    report: Report
    place: Place = NOWHERE

    def depends_on_place(self, target: Target) -> bool:
        """Tell whether clients elsewhere are to be sent something else."""
        return depends_on_place(target.endpoints, setting_of(target.policy))

    def _assignment(self, target: Target, endpoints: tuple[Endpoint, ...]) -> Json:
        groups = locality_groups(endpoints, setting_of(target.policy), self.place)
        return load_assignment(target.name, groups, self.uses_tls, self.profile)

    def uses_tls(self, endpoint: Endpoint) -> bool:
        """Tell whether calls to an endpoint are made over mTLS: it takes nothing else, or can take it.

        Stock gRPC, which is told for a whole cluster, uses it only where it is demanded.
        """
        if not endpoint.internal:
            return False
        place = (endpoint.namespace, endpoint.labels, endpoint.port)
        if self.profile is Profile.GRPC:
            return self.authentications.mode(*place) is MutualTls.STRICT
        return self.authentications.offers_tls(*place)

    def build(self, target: Target) -> Json:
        """Return a target's cluster."""
        policy = target.policy
        result: Json = {"name": target.name, **self._origin(target), **self._discovery(target)}
        result |= balancer_fields(policy.get("loadBalancer", {}), self.profile, self.report, target.place)
        result |= pool_fields(
            policy, self.profile, self.report, target.place, http2=target.service.is_http2(target.port)
        )
        if "outlierDetection" in policy:
            result |= outlier_fields(policy["outlierDetection"], self.profile, self.report, target.place)
        if self.profile is Profile.MESHLIB and target.service.is_grpc(target.port):
            self._lost_in_grpc_calls(target)
        if "distribute" in (setting_of(policy) or ()):
            common = result.get("common_lb_config", {})
            result["common_lb_config"] = {**common, "locality_weighted_lb_config": {}}
        return result | self._tls_fields(target, policy.get("tls", {}))

    def _lost_in_grpc_calls(self, target: Target) -> None:
        pool = target.policy.get("connectionPool", {})
        for block, name in (("tcp", "maxConnections"), ("http", "http1MaxPendingRequests")):
            if name in pool.get(block, {}):
                instead = "only http2MaxRequests limits (gRFC A32)"
                self.report.dropped_by_grpc_calls(f"connectionPool.{block}.{name}", instead, target.place)
        if "outlierDetection" in target.policy:
            instead = "runs of errors are not counted (gRFC A50), so nothing is ejected"
            self.report.dropped_by_grpc_calls("outlierDetection", instead, target.place)

    def endpoints(self, target: Target) -> Json | None:
        """Return a target's endpoint resource, or nothing if its cluster holds the endpoints itself."""
        if not self._uses_eds(target):
            return None
        return self._assignment(target, () if self._is_cut_off(target) else target.endpoints)

    def _uses_eds(self, target: Target) -> bool:
        return target.service.resolution == "STATIC" or not target.endpoints or self._is_cut_off(target)

    def _discovery(self, target: Target) -> Json:
        if self._uses_eds(target):
            return {"type": "EDS", "eds_cluster_config": {"eds_config": ads(), "service_name": target.name}}
        endpoints = target.endpoints
        # LOGICAL_DNS takes one name; it is also the only kind that gRPC knows (gRFC A37).
        logical = self.profile is Profile.GRPC or target.service.resolution == "DNS_ROUND_ROBIN"
        if logical and len(endpoints) > 1:
            what = f"{target.service.host}: several DNS names"
            self.report.dropped(self.profile, what, "only the first is used", target.place)
            endpoints = endpoints[:1]
        result: Json = {
            "type": "LOGICAL_DNS" if logical else "STRICT_DNS",
            "load_assignment": self._assignment(target, endpoints),
        }
        # gRPC's clients look at nothing of this.
        return result if self.profile is Profile.GRPC else result | DNS_FIELDS

    def _is_cut_off(self, target: Target) -> bool:
        """Tell whether the profile's clients could reach the endpoints only less securely than the documents say."""
        tls = target.policy.get("tls", {})
        if tls.get("mode") != "SIMPLE" or self.profile is Profile.ENVOY:
            return False
        what = "tls.mode SIMPLE"
        if self.profile is Profile.MESHLIB:
            if "caCertificates" not in tls:
                return False
            what = "tls.caCertificates"
        instead = "the cluster gets no endpoints, since the only way to them would be less secure"
        self.report.dropped(self.profile, f"{target.service.host}: {what}", instead, target.place)
        return True

    def _origin(self, target: Target) -> Json:
        service, rule = target.service, target.rule
        if (subset := rule.subsets.get(target.subset)) is not None:
            return origin(self.profile, subset.position, subset.config.resource)
        config = rule.policy_config or (rule.configs[0] if rule.configs else service.origin)
        if config is None:
            return origin(self.profile, None, f"/v1/registrations/{service.namespace}/{service.host}")
        return origin(self.profile, config.document.position(), config.resource)

    def _tls_fields(self, target: Target, tls: Mapping[str, Any]) -> Json:
        """Return what the DestinationRule asks for; without a word from it, TLS to those endpoints that take it."""
        mode = tls.get("mode")
        if mode == "DISABLE" or self._is_cut_off(target):
            return {}
        if mode == "SIMPLE":
            name = tls.get("sni", "") or ("" if target.service.host.startswith("*") else target.service.host)
            names = tls.get("subjectAltNames", ()) or target.service.subject_alt_names
            return {"transport_socket": client_simple(tls.get("caCertificates", ""), name, names)}
        if mode == "ISTIO_MUTUAL":
            return {"transport_socket": self._mutual(target, tls)}
        # An empty subset is like its service, so that its cluster does not change with the first endpoint.
        endpoints = target.endpoints or target.service.endpoints.get(target.port, ())
        secure = [endpoint for endpoint in endpoints if self.uses_tls(endpoint)]
        if not secure:
            return {}
        if self.profile is Profile.GRPC:
            if len(secure) == len(endpoints):
                return {"transport_socket": self._mutual(target, tls)}
            what = f"{target.service.host}: mTLS for some endpoints only"
            self.report.dropped(self.profile, what, "plaintext to all of them", target.place)
            return {}
        return {
            "transport_socket_matches": [
                {
                    "name": "tlsMode-istio",
                    "match": {"tlsMode": "istio"},
                    "transport_socket": self._mutual(target, tls),
                },
                {"name": "tlsMode-disabled", "match": {}, "transport_socket": RAW_BUFFER},
            ]
        }

    def _mutual(self, target: Target, tls: Mapping[str, Any]) -> Json:
        service = target.service
        # Of the whole service, so that the certificate check does not depend on how subsets cut it up.
        identities = tls.get("subjectAltNames") or [
            spiffe_id(self.trust_domain, endpoint.namespace, endpoint.service_account)
            for endpoint in service.endpoints.get(target.port, ())
            if endpoint.service_account
        ]
        name = tls.get("sni") or sni(target.port, target.subset, service.host)
        http2 = service.is_http2(target.port)
        return client_mutual(self.profile, identities, service.namespace, self.trust_domain, name, http2=http2)
