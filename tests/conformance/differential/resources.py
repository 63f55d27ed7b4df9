"""Random resources that both sides take: clusters, endpoints, connection managers and listeners of servers.

They are the seeds of `rejection`: each is broken in a place or two before it is judged. What they hold is wide rather
than deep: every part of a resource that has rules of its own comes up.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from peers.authority import Authority
from peers.envoy import socket_address
from peers.upstreams import LOOPBACK

from differential.generate import TYPE, Json

__all__ = ["ResourceMaker"]

_POLICIES = TYPE + "envoy.extensions.load_balancing_policies."
_TLS = TYPE + "envoy.extensions.transport_sockets.tls.v3."
_MANAGER = TYPE + "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_HTTP = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_FILTERS = TYPE + "envoy.extensions.filters.http."
_ADS: Json = {"ads": {}, "resource_api_version": "V3"}


@cache
def _pem() -> tuple[str, str, str]:
    """Return a root, a certificate and its key."""
    root = Authority("root")
    leaf = root.issue("spiffe://a.example/ns/x/sa/y", dns=["a.example"])
    return root.pem.decode(), leaf.chain_pem.decode(), leaf.key_pem.decode()


class ResourceMaker:
    """Makes resources out of a seed, in proto3 JSON."""

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed)

    def _maybe(self, chance: float = 0.5) -> bool:
        return self._random.random() < chance

    def _pick(self, *items: Any) -> Any:
        return self._random.choice(items)

    def _some(self, fields: Mapping[str, Any], chance: float = 0.35) -> Json:
        """Return some of the fields; a function is called for its value."""
        chosen = {name: value for name, value in fields.items() if self._maybe(chance)}
        return {name: value() if callable(value) else value for name, value in chosen.items()}

    # Endpoints.

    def assignment(self, name: str = "subject", *, addresses: Callable[[int], str] | None = None) -> Json:
        """Return a ClusterLoadAssignment."""
        groups = []
        number = 0
        for priority in range(self._pick(1, 1, 2, 3)):
            for zone in self._random.sample("abcd", self._pick(1, 2)):
                hosts = []
                for _ in range(self._pick(0, 1, 2, 3)):
                    number += 1
                    address = addresses(number) if addresses else f"127.77.0.{number}"
                    hosts.append(self._endpoint(address))
                weight = {"load_balancing_weight": self._pick(1, 7, 100)} if self._maybe() else {}
                locality = {"region": "r", "zone": zone, **self._some({"sub_zone": "s"}, 0.2)}
                groups.append({"priority": priority, "locality": locality, "lb_endpoints": hosts, **weight})
        drop = {"category": "c", "drop_percentage": {"numerator": self._pick(0, 5, 100), "denominator": "TEN_THOUSAND"}}
        policy = self._some({"drop_overloads": [drop], "overprovisioning_factor": 200})
        return {"cluster_name": name, "endpoints": groups, **({"policy": policy} if self._maybe() else {})}

    def _endpoint(self, address: str) -> Json:
        endpoint: Json = {
            "address": socket_address(f"{address}:{self._pick(9, 80, 65535)}"),
            **self._some(
                {
                    "hostname": "host.name",
                    "health_check_config": {"port_value": 9, **self._some({"hostname": "check.me"})},
                },
                0.2,
            ),
        }
        result: Json = {"endpoint": endpoint}
        if self._maybe(0.4):
            result["health_status"] = self._pick("HEALTHY", "UNHEALTHY", "DRAINING", "DEGRADED", "TIMEOUT", "UNKNOWN")
        if self._maybe(0.4):
            result["load_balancing_weight"] = self._pick(1, 3, 100)
        if self._maybe(0.2):
            result["metadata"] = {"filter_metadata": {"envoy.lb": {"version": "v1", "stage": "prod"}}}
        return result

    # Clusters.

    def cluster(self) -> Json:
        """Return a Cluster."""
        kind = self._pick("STATIC", "STATIC", "EDS", "STRICT_DNS", "LOGICAL_DNS", "aggregate")
        result: Json = {"name": "subject", "connect_timeout": self._pick("1s", "0.25s", "10s")}
        if kind == "aggregate":
            packed = {"@type": TYPE + "envoy.extensions.clusters.aggregate.v3.ClusterConfig", "clusters": ["a", "b"]}
            result["cluster_type"] = {"name": "envoy.clusters.aggregate", "typed_config": packed}
            result["lb_policy"] = "CLUSTER_PROVIDED"
        else:
            if kind != "EDS" and self._maybe(0.2):
                result["cluster_type"] = {"name": f"envoy.cluster.{kind.lower()}"}
            else:
                result["type"] = kind
            result |= self._discovery(kind) | self._balancing(kind)
        result |= self._some(
            {
                "circuit_breakers": self._breakers,
                "outlier_detection": self._outlier,
                "common_lb_config": self._common,
                "typed_extension_protocol_options": lambda: {_HTTP: self._protocol()},
                "metadata": {"filter_metadata": {"ns": {"k": "v"}}},
                "lrs_server": {"self": {}},
                "alt_stat_name": "other",
                "per_connection_buffer_limit_bytes": 32768,
                "ignore_health_on_host_removal": True,
                "wait_for_warm_on_init": False,
                "upstream_connection_options": {"tcp_keepalive": {"keepalive_time": 30}},
            },
            0.25,
        )
        if kind not in ("aggregate",) and self._maybe(0.3):
            result["health_checks"] = [self._check() for _ in range(self._pick(1, 1, 2))]
        if self._maybe(0.35):
            result["transport_socket"] = self._socket(self._client_tls())
        elif self._maybe(0.1):
            matched = self._socket(self._client_tls())
            match = {"name": "m", "match": {"tls": "on"}, "transport_socket": matched}
            result["transport_socket_matches"] = [match]
        return result

    def _discovery(self, kind: str) -> Json:
        if kind == "EDS":
            return {"eds_cluster_config": {"eds_config": _ADS, **self._some({"service_name": "other"})}}
        if kind == "STATIC":
            return {"load_assignment": self.assignment()}
        timing = self._some(
            {
                "dns_refresh_rate": "3s",
                "dns_jitter": "0.1s",
                "respect_dns_ttl": True,
                "dns_lookup_family": self._pick("V4_ONLY", "V6_ONLY", "AUTO", "ALL"),
                "dns_failure_refresh_rate": {"base_interval": "1s", "max_interval": "5s"},
            },
            0.25,
        )
        if kind == "LOGICAL_DNS":
            hosts = [self._endpoint("localhost")]
            assignment: Json = {"cluster_name": "subject", "endpoints": [{"lb_endpoints": hosts}]}
        else:
            assignment = self.assignment(addresses=lambda number: self._pick("localhost", f"127.77.0.{number}"))
        return {"load_assignment": assignment, **timing}

    def _balancing(self, kind: str) -> Json:
        if self._maybe(0.5):
            policy = self._policy(depth=0)
            return {"load_balancing_policy": self._list(policy)}
        by_field = {
            "ROUND_ROBIN": ("round_robin_lb_config", lambda: self._some({"slow_start_config": self._slow_start})),
            "LEAST_REQUEST": ("least_request_lb_config", self._least_request),
            "RANDOM": ("", dict),
            "RING_HASH": ("ring_hash_lb_config", self._ring),
            "MAGLEV": ("maglev_lb_config", lambda: self._some({"table_size": self._pick(11, 101, 65537)})),
        }
        name = self._pick(*by_field)
        key, make = by_field[name]
        result: Json = {"lb_policy": name}
        if key and self._maybe():
            result[key] = make()
        if self._maybe(0.2):
            result["lb_subset_config"] = self._subset()
        return result

    def _list(self, policy: Json, name: str = "p") -> Json:
        return {"policies": [{"typed_extension_config": {"name": name, "typed_config": policy}}]}

    def _policy(self, depth: int) -> Json:
        kinds: dict[str, Callable[[], Json]] = {
            "round_robin.v3.RoundRobin": lambda: self._some(
                {"slow_start_config": self._slow_start, "locality_lb_config": self._locality}
            ),
            "least_request.v3.LeastRequest": lambda: {
                **self._least_request(),
                **self._some({"locality_lb_config": self._locality}),
            },
            "random.v3.Random": lambda: self._some({"locality_lb_config": self._locality}),
            "ring_hash.v3.RingHash": lambda: {**self._ring(), **self._consistent()},
            "maglev.v3.Maglev": lambda: {
                **self._some({"table_size": self._pick(11, 101, 65537)}),
                **self._consistent(),
            },
            "client_side_weighted_round_robin.v3.ClientSideWeightedRoundRobin": lambda: self._some(
                {
                    "enable_oob_load_report": False,
                    "blackout_period": "10s",
                    "weight_expiration_period": "180s",
                    "weight_update_period": "1s",
                    "error_utilization_penalty": 1.0,
                    "metric_names_for_computing_utilization": ["named_metrics.a"],
                }
            ),
        }
        if not depth:
            kinds["wrr_locality.v3.WrrLocality"] = lambda: {"endpoint_picking_policy": self._list(self._policy(1))}
            kinds["subset.v3.Subset"] = lambda: {
                **self._subset(),
                "subset_lb_policy": self._list(self._policy(1)),
            }
        name = self._pick(*kinds)
        return {"@type": _POLICIES + name, **kinds[name]()}

    def _locality(self) -> Json:
        zone = self._some({"routing_enabled": {"value": 50}, "min_cluster_size": "3", "fail_traffic_on_panic": True})
        return {"zone_aware_lb_config": zone} if self._maybe() else {"locality_weighted_lb_config": {}}

    def _consistent(self) -> Json:
        hashing = self._some({"use_hostname_for_hashing": True, "hash_balance_factor": 150})
        result: Json = {"consistent_hashing_lb_config": hashing} if self._maybe(0.4) else {}
        if self._maybe(0.3):
            result["locality_weighted_lb_config"] = {}
        return result

    def _ring(self) -> Json:
        return self._some(
            {
                "minimum_ring_size": self._pick("1", "10", "1024"),
                "maximum_ring_size": self._pick("1024", "8388608"),
                "hash_function": self._pick("XX_HASH", "MURMUR_HASH_2"),
            }
        )

    def _least_request(self) -> Json:
        bias = {"default_value": 1.5, "runtime_key": "bias"}
        return self._some(
            {"choice_count": self._pick(2, 5), "active_request_bias": bias, "slow_start_config": self._slow_start}
        )

    def _slow_start(self) -> Json:
        return self._some(
            {
                "slow_start_window": "60s",
                "aggression": {"default_value": 0.9, "runtime_key": "k"},
                "min_weight_percent": {"value": 20},
            }
        )

    def _subset(self) -> Json:
        selectors = [{"keys": ["version"]}, {"keys": ["stage", "version"], "fallback_policy": "ANY_ENDPOINT"}]
        reduced = {"keys": ["a", "b"], "fallback_policy": "KEYS_SUBSET", "fallback_keys_subset": ["a"]}
        return {
            "subset_selectors": [*selectors, reduced] if self._maybe(0.3) else selectors,
            **self._some(
                {
                    "fallback_policy": self._pick("NO_FALLBACK", "ANY_ENDPOINT", "DEFAULT_SUBSET"),
                    "default_subset": {"version": "v1"},
                    "list_as_any": True,
                    "panic_mode_any": True,
                    "scale_locality_weight": True,
                }
            ),
        }

    def _common(self) -> Json:
        return self._some(
            {
                "healthy_panic_threshold": {"value": self._pick(0, 50, 100)},
                "update_merge_window": "1s",
                "ignore_new_hosts_until_first_hc": True,
                "close_connections_on_host_set_change": True,
                "override_host_status": {"statuses": ["HEALTHY", "DEGRADED"]},
                "consistent_hashing_lb_config": {"use_hostname_for_hashing": True},
            }
        )

    def _breakers(self) -> Json:
        budget = {"budget_percent": {"value": 20}, "min_retry_concurrency": 3}
        names = ("max_connections", "max_pending_requests", "max_requests", "max_retries")
        limits = {**{name: self._pick(0, 1, 1024) for name in names}, "retry_budget": budget, "track_remaining": True}
        thresholds = [{"priority": priority, **self._some(limits)} for priority in ("DEFAULT", "HIGH")]
        per_host = {"per_host_thresholds": [{"max_connections": 3}]} if self._maybe(0.2) else {}
        return {"thresholds": thresholds, **per_host}

    def _outlier(self) -> Json:
        numbers = {
            "consecutive_5xx": 5,
            "enforcing_consecutive_5xx": 100,
            "max_ejection_percent": 10,
            "enforcing_success_rate": 100,
            "success_rate_minimum_hosts": 5,
            "success_rate_stdev_factor": 1900,
            "failure_percentage_threshold": 85,
            "enforcing_failure_percentage": 0,
        }
        durations = {"interval": "10s", "base_ejection_time": "30s", "max_ejection_time": "300s"}
        jitter = {"max_ejection_time_jitter": "1s", "split_external_local_origin_errors": True}
        return self._some({**numbers, **durations, **jitter})

    def _check(self) -> Json:
        kinds: dict[str, Callable[[], Json]] = {
            "http_health_check": lambda: {
                "path": "/health",
                **self._some(
                    {
                        "host": "h",
                        "expected_statuses": [{"start": "200", "end": "300"}],
                        "retriable_statuses": [{"start": "400", "end": "500"}],
                        "method": self._pick("GET", "HEAD"),
                        "request_headers_to_add": [{"header": {"key": "x-a", "value": "1"}}],
                        "codec_client_type": self._pick("HTTP1", "HTTP2"),
                        "service_name_matcher": {"prefix": "s"},
                    },
                    0.2,
                ),
            },
            "tcp_health_check": lambda: self._some({"send": {"text": "000000FF"}, "receive": [{"text": "01"}]}),
            "grpc_health_check": lambda: self._some({"service_name": "s", "authority": "a"}),
        }
        kind = self._pick(*kinds)
        return {
            "timeout": "1s",
            "interval": self._pick("60s", "30s"),
            "unhealthy_threshold": 2,
            "healthy_threshold": 1,
            kind: kinds[kind](),
            **self._some(
                {
                    "initial_jitter": "1s",
                    "interval_jitter": "1s",
                    "interval_jitter_percent": 5,
                    "no_traffic_interval": "60s",
                    "unhealthy_interval": "5s",
                    "reuse_connection": False,
                    "always_log_health_check_failures": True,
                },
                0.15,
            ),
        }

    def _protocol(self) -> Json:
        kind = self._pick("http1", "http2", "auto")
        result: Json = {"@type": TYPE + _HTTP}
        if kind == "auto":
            result["auto_config"] = {}
        else:
            name = "http2_protocol_options" if kind == "http2" else "http_protocol_options"
            result["explicit_http_config"] = {name: {}}
        common = {
            "idle_timeout": "3600s",
            "max_requests_per_connection": 10,
            "max_stream_duration": "5s",
            "max_connection_duration": "60s",
        }
        names = {"auto_sni": True, "auto_san_validation": True, "override_auto_sni_header": "x-sni"}
        return result | self._some(
            {
                "common_http_protocol_options": lambda: self._some(common),
                "upstream_http_protocol_options": lambda: self._some(names),
            }
        )

    # TLS.

    def _socket(self, config: Json) -> Json:
        return {"name": "envoy.transport_sockets.tls", "typed_config": config}

    def _data(self, text: str) -> Json:
        return {"inline_string": text}

    def _common_tls(self) -> Json:
        root, chain, key = _pem()
        result: Json = self._some(
            {
                "alpn_protocols": ["h2", "http/1.1"],
                "tls_params": lambda: self._some(
                    {
                        "tls_minimum_protocol_version": "TLSv1_2",
                        "tls_maximum_protocol_version": "TLSv1_3",
                        "cipher_suites": ["ECDHE-RSA-AES128-GCM-SHA256", "ECDHE-ECDSA-AES256-GCM-SHA384"],
                        "ecdh_curves": ["X25519", "P-256"],
                    }
                ),
            }
        )
        if self._maybe(0.4):
            result["tls_certificates"] = [{"certificate_chain": self._data(chain), "private_key": self._data(key)}]
        elif self._maybe(0.3):
            result["tls_certificate_sds_secret_configs"] = [{"name": "own", "sds_config": _ADS}]
        kind = self._pick("", "inline", "inline", "sds", "combined")
        if kind == "inline":
            result["validation_context"] = self._validation(root)
        elif kind == "sds":
            result["validation_context_sds_secret_config"] = {"name": "root", "sds_config": _ADS}
        elif kind == "combined":
            context = self._validation(root)
            secret = {"name": "root", "sds_config": _ADS}
            both = {"default_validation_context": context, "validation_context_sds_secret_config": secret}
            result["combined_validation_context"] = both
        return result

    def _validation(self, root: str) -> Json:
        names = [
            {"san_type": "URI", "matcher": {"exact": "spiffe://a.example/x"}},
            {"san_type": "DNS", "matcher": {"suffix": ".example"}},
            {"san_type": "IP_ADDRESS", "matcher": {"exact": "127.0.0.1"}},
        ]
        return {
            "trusted_ca": self._data(root),
            **self._some(
                {
                    "match_typed_subject_alt_names": self._random.sample(names, self._pick(1, 2)),
                    "verify_certificate_hash": ["a" * 64],
                    "verify_certificate_spki": ["NvqYIYSbgK2vCJpQhObf77vv+bQWtc5ek5RIOwPiC9A="],
                    "max_verify_depth": 3,
                    "allow_expired_certificate": True,
                },
                0.2,
            ),
        }

    def _client_tls(self) -> Json:
        return {
            "@type": f"{_TLS}UpstreamTlsContext",
            "common_tls_context": self._common_tls(),
            **self._some({"sni": "a.example", "auto_host_sni": True, "max_session_keys": 1}, 0.3),
        }

    def _server_tls(self) -> Json:
        _, chain, key = _pem()
        common = self._common_tls()
        if "tls_certificate_sds_secret_configs" not in common:
            common["tls_certificates"] = [{"certificate_chain": self._data(chain), "private_key": self._data(key)}]
        return {
            "@type": f"{_TLS}DownstreamTlsContext",
            "common_tls_context": common,
            **self._some({"require_client_certificate": True, "session_timeout": "60s"}, 0.3),
        }

    # Listeners.

    def manager(self, *, is_server: bool = False) -> Json:
        """Return an HttpConnectionManager."""
        routes: Json = {"rds": {"route_config_name": "routes", "config_source": _ADS}}
        if self._maybe(0.4):
            action = {"cluster": "nobody"} if not is_server else {}
            entry = {"match": {"prefix": "/"}, **({"route": action} if action else {"non_forwarding_action": {}})}
            host = {"name": "v", "domains": ["*"], "routes": [entry]}
            routes = {"route_config": {"name": "inline", "virtual_hosts": [host]}}
        return {
            "@type": _MANAGER,
            "stat_prefix": "m",
            **routes,
            "http_filters": self._filters(is_server),
            **self._some(
                {
                    "codec_type": self._pick("AUTO", "HTTP1", "HTTP2"),
                    "common_http_protocol_options": lambda: self._some(
                        {"max_stream_duration": "5s", "idle_timeout": "60s", "max_headers_count": 50}
                    ),
                    "request_timeout": "5s",
                    "stream_idle_timeout": "5s",
                    "use_remote_address": True,
                    "server_name": "s",
                    "generate_request_id": True,
                    "delayed_close_timeout": "1s",
                    "max_request_headers_kb": 60,
                    "drain_timeout": "5s",
                    **(
                        {}
                        if is_server
                        else {
                            "strip_any_host_port": True,
                            "strip_trailing_host_dot": True,
                            "merge_slashes": True,
                            "scheme_header_transformation": {"scheme_to_overwrite": "https"},
                        }
                    ),
                },
                0.15,
            ),
        }

    def _filters(self, is_server: bool) -> list[Json]:
        share = {"numerator": 5, "denominator": "HUNDRED"}
        abort = {"percentage": share, **self._pick({"http_status": 503}, {"grpc_status": 14}, {"header_abort": {}})}
        delay = {"percentage": share, **self._pick({"fixed_delay": "1s"}, {"header_delay": {}})}
        cookie = {
            "@type": TYPE + "envoy.extensions.http.stateful_session.cookie.v3.CookieBasedSessionState",
            "cookie": {"name": "s", **self._some({"path": "/", "ttl": "60s"})},
        }
        bucket = {"max_tokens": 10, "tokens_per_fill": 5, "fill_interval": "1s"}
        on = {"default_value": {"numerator": 100}}
        kinds: dict[str, Callable[[], Json]] = {
            "fault.v3.HTTPFault": lambda: self._some({"abort": abort, "delay": delay, "max_active_faults": 5}, 0.6),
            "header_mutation.v3.HeaderMutation": lambda: {
                "mutations": {
                    "request_mutations": [{"remove": "x-1"}, {"append": {"header": {"key": "a", "value": "b"}}}]
                }
            },
            "stateful_session.v3.StatefulSession": lambda: {
                "session_state": {"name": "envoy.http.stateful_session.cookie", "typed_config": cookie}
            },
            "local_ratelimit.v3.LocalRateLimit": lambda: {
                "stat_prefix": "l",
                "token_bucket": bucket,
                "filter_enabled": on,
                "filter_enforced": on,
            },
            "admission_control.v3.AdmissionControl": lambda: {
                "success_criteria": {"http_criteria": {"http_success_status": [{"start": 200, "end": 400}]}},
                **self._some({"sampling_window": "10s", "aggression": {"default_value": 1.5, "runtime_key": "a"}}),
            },
        }
        if is_server:
            kinds = {"rbac.v3.RBAC": self._rbac}
        chosen: Sequence[str] = self._random.sample(list(kinds), self._random.randrange(min(3, len(kinds) + 1)))
        made = [
            {"name": name.split(".")[0], "typed_config": {"@type": _FILTERS + name, **kinds[name]()}} for name in chosen
        ]
        return [*made, {"name": "router", "typed_config": {"@type": _FILTERS + "router.v3.Router"}}]

    def _rbac(self) -> Json:
        permissions = (
            {"any": True},
            {"header": {"name": "x-a", "string_match": {"exact": "b"}}},
            {"url_path": {"path": {"prefix": "/a"}}},
            {"and_rules": {"rules": [{"any": True}, {"destination_port": 80}]}},
            {"not_rule": {"destination_ip": {"address_prefix": "10.0.0.0", "prefix_len": 8}}},
            {"requested_server_name": {"suffix": ".example"}},
        )
        principals = (
            {"any": True},
            {"authenticated": {"principal_name": {"exact": "spiffe://a.example/x"}}},
            {"direct_remote_ip": {"address_prefix": "127.0.0.0", "prefix_len": 8}},
            {"remote_ip": {"address_prefix": "::1", "prefix_len": 128}},
            {"header": {"name": ":method", "string_match": {"exact": "GET"}}},
            {"or_ids": {"ids": [{"any": True}]}},
            {"not_id": {"authenticated": {}}},
            {"url_path": {"path": {"safe_regex": {"regex": "/a.*"}}}},
        )
        policy = {"permissions": [self._pick(*permissions)], "principals": [self._pick(*principals)]}
        rules = {"action": self._pick("ALLOW", "DENY"), "policies": {"p": policy}}
        return {"rules": rules} if self._maybe(0.9) else {}

    def listener(self) -> Json:
        """Return a Listener of a server."""
        chain: Json = {"filters": [{"name": "m", "typed_config": self.manager(is_server=True)}]}
        if self._maybe(0.5):
            chain["transport_socket"] = self._socket(self._server_tls())
        address = {"socket_address": {"address": LOOPBACK, "port_value": self._pick(8080, 9090)}}
        return {"name": "subject", "address": address, "filter_chains": [chain]}
