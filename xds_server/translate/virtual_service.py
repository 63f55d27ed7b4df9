"""A VirtualService's HTTP rules as xDS routes.

Source: Istio, pilot/pkg/networking/core/route/route.go; what differs says so.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from xds_server.codes import PORT_NEEDED
from xds_server.model import Position, Profile
from xds_server.translate.destination_rule import Rule
from xds_server.translate.documents import Config
from xds_server.translate.load_balancing import hash_policies
from xds_server.translate.messages import Json, origin
from xds_server.translate.names import cluster_name, fqdn
from xds_server.translate.report import Report
from xds_server.translate.route_match import is_catch_all, route_matches
from xds_server.translate.route_policies import (
    authority_of,
    fault_config,
    header_operations,
    mirror_policies,
    retry_policy,
)
from xds_server.translate.services import HTTP2_PROTOCOLS, Service

GRPC_ATTEMPTS = 5
"""The most that gRPC makes of one call, whatever is configured."""

# What stock gRPC clients get where no rule is left that they can evaluate: a route whose RPCs fail at once. An empty
# virtual host would do the same by accident; this one has a name.
NO_ROUTE: Json = {"name": "no-supported-route", "match": {"prefix": ""}, "direct_response": {"status": 404}}


@dataclass(frozen=True, slots=True)
class RouteBuilder:
    """Makes routes for one profile.

    Attributes:
        rules: The DestinationRule of each service's host.
    """

    profile: Profile
    services: Mapping[str, Service]
    rules: Mapping[str, Rule]
    report: Report

    def default_route(self, service: Service, port: int) -> Json:
        """Return the route to a service without a VirtualService."""
        name = cluster_name(port, "", service.host)
        config = service.origin
        place = config.document.position() if config else None
        resource = config.resource if config else f"/v1/registrations/{service.namespace}/{service.host}"
        action = {"cluster": name, **self._timeout(None), **self._hashing(service.host, port, "", None)}
        return {
            "name": "default",
            "match": {"prefix": "/"},
            "route": action,
            **origin(self.profile, place, resource),
        }

    def routes(self, config: Config, port: int) -> list[Json]:
        """Return the routes that a VirtualService has for requests to a port, the first that matches applies.

        Rules behind one that takes everything are left out, and catch-alls move behind the rest.
        """
        specific: list[Json] = []
        catch_all: list[Json] = []
        for index, http in enumerate(config.spec["http"]):
            is_last = False
            for number, match in enumerate(http.get("match") or [{}]):
                path = ("http", index, "match", number) if http.get("match") else ("http", index)
                if not _applies(match, port):
                    continue
                place = config.position(*path)
                everything = is_catch_all({name: value for name, value in match.items() if name != "port"})
                routes = [
                    self._route(config, http, index, match, one, port)
                    for one in route_matches(match, self.profile, self.report, place)
                ]
                (catch_all if everything else specific).extend(routes)
                if everything:
                    is_last = True
                    break
            if is_last:
                break
        result = specific + catch_all
        return result or ([NO_ROUTE] if self.profile is Profile.GRPC else [])

    def _route(
        self, config: Config, http: Mapping[str, Any], index: int, match: Mapping[str, Any], one: Json, port: int
    ) -> Json:
        place = config.position("http", index)
        name = ".".join(part for part in (http.get("name"), match.get("name")) if part)
        result: Json = {"match": one, **({"name": name} if name else {})}
        result |= origin(self.profile, place, config.resource)
        for word in ("redirect", "directResponse"):
            if word in http:
                self._lacks_answers(config, index, word, port)
        if "redirect" in http:
            return result | {"redirect": _redirect(http["redirect"])}
        blocks = [http.get("headers", {})]
        if "directResponse" in http:
            result["direct_response"] = _direct_response(http["directResponse"])
        else:
            if len(http["route"]) == 1:
                blocks.append(http["route"][0].get("headers", {}))
            result["route"] = self._action(config, http, index, port, blocks)
        if "fault" in http:
            result["typed_per_filter_config"] = fault_config(http["fault"])
        if any(blocks):
            self._lacks(config.position("http", index, "headers"), "headers", "no header is changed")
            if self.profile is not Profile.GRPC:
                result |= header_operations(*blocks)
        return result

    def _action(self, config: Config, http: Mapping[str, Any], index: int, port: int, blocks: list[Any]) -> Json:
        targets = [(item, self._destination(config, item["destination"], port)) for item in http["route"]]
        first, _, first_port = targets[0][1]
        service = self.services[first]
        result = self._timeout(http.get("timeout"), is_grpc=service.ports.get(first_port) in HTTP2_PROTOCOLS)
        if self.profile is Profile.MESHLIB and service.is_grpc(first_port):
            self._lost_in_grpc_calls(config, http, index)
        if len(targets) == 1:
            result["cluster"] = cluster_name(*_key(targets[0][1]))
        else:
            result["weighted_clusters"] = {
                "clusters": [
                    self._weighted(item, key, config.position("http", index, "route"))
                    for item, key in targets
                    if item.get("weight")
                ]
            }
        host, subset, key_port = targets[0][1]
        result |= self._hashing(host, key_port, subset, http.get("retries"), config.position("http", index, "retries"))
        rewrite = http.get("rewrite", {})
        if rewrite:
            self._lacks(config.position("http", index, "rewrite"), "rewrite", "nothing is rewritten")
        if "mirror" in http or "mirrors" in http:
            word = "mirror" if "mirror" in http else "mirrors"
            self._lacks(config.position("http", index, word), "mirror", "nothing is mirrored")
        if self.profile is Profile.GRPC:
            return result
        if "uri" in rewrite:
            result["prefix_rewrite"] = rewrite["uri"]
        if (regex := rewrite.get("uriRegexRewrite")) is not None:
            result["regex_rewrite"] = {"pattern": {"regex": regex["match"]}, "substitution": regex["rewrite"]}
        by_headers = next((text for text in map(authority_of, reversed(blocks)) if text), None)
        if authority := rewrite.get("authority") or by_headers:
            result["host_rewrite_literal"] = authority
        mirrors = mirror_policies(
            http, self.profile, lambda destination: cluster_name(*_key(self._destination(config, destination, port)))
        )
        return result | ({"request_mirror_policies": mirrors} if mirrors else {})

    def _lacks_answers(self, config: Config, index: int, word: str, port: int) -> None:
        place = config.position("http", index, word)
        self._lacks(place, word, "RPCs that take it fail")
        hosts = (self.services.get(fqdn(host, config.namespace)) for host in config.spec["hosts"])
        if self.profile is Profile.MESHLIB and any(host is not None and host.is_grpc(port) for host in hosts):
            self.report.dropped_by_grpc_calls(word, "those that take it fail (gRFC A28)", place)

    def _lost_in_grpc_calls(self, config: Config, http: Mapping[str, Any], index: int) -> None:
        for word in {"mirror", "mirrors"} & http.keys():
            self.report.dropped_by_grpc_calls("mirror", "nothing is mirrored", config.position("http", index, word))
        if http.get("retries", {}).get("attempts", 0) >= GRPC_ATTEMPTS:
            instead = f"there are {GRPC_ATTEMPTS} attempts at most (gRFC A6)"
            self.report.dropped_by_grpc_calls("retries.attempts", instead, config.position("http", index, "retries"))

    def _destination(self, config: Config, destination: Mapping[str, Any], port: int) -> tuple[str, str, int]:
        """Return host, subset and port; the port defaults to the service's only one, else to the one of the request."""
        host = fqdn(destination["host"], config.namespace)
        number = destination.get("port", {}).get("number")
        if number is None:
            service = self.services[host]
            number = next(iter(service.ports)) if len(service.ports) == 1 else port
            if number not in service.ports:
                # Istio would name a cluster that does not exist.
                number = service.main_port
                known = ", ".join(str(one) for one in sorted(service.ports))
                message = (
                    f"VirtualService {config.name}: {host} has the ports {known}; give the destination a port.number"
                )
                self.report.warning(PORT_NEEDED, f"{message}. {number} is used", config.position("http"))
        return host, destination.get("subset", ""), number

    def _weighted(self, item: Mapping[str, Any], key: tuple[str, str, int], place: Position | None) -> Json:
        result: Json = {"name": cluster_name(*_key(key)), "weight": item["weight"]}
        if headers := item.get("headers"):
            if self.profile is not Profile.GRPC:
                result |= header_operations(headers)
                if authority := authority_of(headers):
                    result["host_rewrite_literal"] = authority
            self._lacks(place, "headers", "no header is changed")
        return result

    def _timeout(self, timeout: str | None, *, is_grpc: bool = False) -> Json:
        """Return the time limits: without a timeout there is none but what a gRPC caller asks for itself.

        gRPC reads `max_stream_duration` only (gRFC A31), and where that is present Envoy and meshlib turn the `timeout` of
        HTTP requests off. So it is for clients, or destinations, that speak nothing but gRPC.
        """
        limit = timeout or "0s"
        if self.profile is Profile.GRPC or (self.profile is Profile.MESHLIB and is_grpc):
            return (
                {"timeout": limit, "max_stream_duration": {"max_stream_duration": limit}}
                if timeout
                else {"timeout": limit}
            )
        if self.profile is Profile.MESHLIB:
            return {"timeout": limit}  # where a gRPC caller's own deadline always holds
        return {"timeout": limit, "max_grpc_timeout": limit}

    def _hashing(
        self, host: str, port: int, subset: str, retries: Mapping[str, Any] | None, place: Position | None = None
    ) -> Json:
        """Return the hash policy of the destination's DestinationRule, and the retry policy, which depends on it."""
        rule = self.rules.get(host, Rule())
        balancer = rule.policy_of(port, subset).get("loadBalancer", {})
        rule_place = rule.policy_config.position("trafficPolicy", "loadBalancer") if rule.policy_config else None
        policies = hash_policies(balancer, self.profile, self.report, rule_place)
        by_grpc = self.profile is Profile.MESHLIB and host in self.services and self.services[host].is_grpc(port)
        if by_grpc and policies and "header" not in policies[0]:
            what, instead = "consistentHash on anything but a header", "each hashes at random (gRFC A42)"
            self.report.dropped_by_grpc_calls(what, instead, rule_place)
        retry = retry_policy(retries, self.profile, self.report, place, hashed="consistentHash" in balancer)
        return ({"hash_policy": policies} if policies else {}) | ({"retry_policy": retry} if retry else {})

    def _lacks(self, place: Position | None, feature: str, instead: str) -> None:
        if self.profile is Profile.GRPC:
            self.report.dropped(self.profile, feature, instead, place)


def _key(destination: tuple[str, str, int]) -> tuple[int, str, str]:
    host, subset, port = destination
    return port, subset, host


def _applies(match: Mapping[str, Any], port: int) -> bool:
    gateways = match.get("gateways")
    return match.get("port", port) == port and (not gateways or "mesh" in gateways)


def applies_to_mesh(config: Config) -> bool:
    gateways = config.spec.get("gateways")
    return not gateways or "mesh" in gateways


def _redirect(block: Mapping[str, Any]) -> Json:
    codes = {
        301: "MOVED_PERMANENTLY",
        302: "FOUND",
        303: "SEE_OTHER",
        307: "TEMPORARY_REDIRECT",
        308: "PERMANENT_REDIRECT",
    }
    result: Json = {"response_code": codes[block.get("redirectCode", 301)]}
    for name, field in (
        ("uri", "path_redirect"),
        ("prefixRewrite", "prefix_rewrite"),
        ("authority", "host_redirect"),
        ("scheme", "scheme_redirect"),
        ("port", "port_redirect"),
    ):
        if name in block:
            result[field] = block[name]
    if block.get("derivePort") == "FROM_PROTOCOL_DEFAULT" and "scheme" in block:
        result["port_redirect"] = {"http": 80, "https": 443}[block["scheme"]]
    return result


def _direct_response(block: Mapping[str, Any]) -> Json:
    body = {"body": {"inline_string": block["body"]["string"]}} if "body" in block else {}
    return {"status": block["status"], **body}
