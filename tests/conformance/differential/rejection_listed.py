"""Where Envoy and meshlib differ on purpose about which resource to take; DIFFERENCES.md has the reasons.

Each entry names a field and a reason, whole. What is "not supported" is not here: the features page lists it.
"""

import re
from typing import Any

from differential.features import is_listed, is_rule_of_policy

__all__ = ["ENVOYS", "OF_ROUTES", "OF_SERVERS", "WAITING", "is_ours"]


def _ours(*paths: str, reason: str) -> re.Pattern[str]:
    """Return a pattern for errors of meshlib's at fields whose paths end like this."""
    return re.compile(rf"(?:.*[.\]])?(?:{'|'.join(paths)})(?:\[\d+\])?: (?:{reason})", re.DOTALL)


OURS = (
    # Values of fields of which the features page says which ones there are.
    _ours("type", reason="(ORIGINAL_DST|[0-9]+) is not supported"),
    _ours("cluster_type", reason=r".* is not supported"),
    _ours("lb_policy", reason="(CLUSTER_PROVIDED|[0-9]+) is not supported"),
    _ours("lrs_server", reason="only `self` is supported"),
    _ours("health_checks", reason="only one is supported"),
    _ours("codec_client_type", reason="HTTP3 is not supported"),
    _ours(r"header\.value", reason="substitutions are not supported here"),
    _ours("max_grpc_timeout", reason="is not supported unless it equals timeout; use max_stream_duration"),
    _ours("use_hash_policy", reason=r"is not supported together with cookies that are made up \(ttl\)"),
    _ours("hash_policy", reason=r"cookies that are made up \(ttl\) are not supported here"),
    _ours("request_mirror_policies", reason="is not supported together with vhds"),
    _ours("leds_cluster_locality_config", reason="is only supported in EDS"),
    _ours("filename", "environment_variable", reason=r"is not supported \(only inline_bytes and inline_string\)"),
    _ours("path", "path_config_source", "api_config_source", reason=r"is not supported \(only ads and self\)"),
    _ours(r"socket_address\.protocol", reason=r"is not supported \(only TCP\)"),
    _ours("ecdh_curves", reason="is not supported with more than one curve"),
    _ours("ecdh_curves", reason=r"is not supported \(only X25519, P-256, P-384, P-521\)"),
    _ours("san_type", reason=r"is not supported \(only EMAIL, DNS, URI and IP_ADDRESS\)"),
    _ours("custom_validator_config", reason=r".* is not supported \(only [\w.]+SPIFFECertValidatorConfig\)"),
    _ours("common_tls_context", reason=r"has \d+ certificates, only one is supported"),
    # A filter that is not there; a cluster's codec is the only one of clusters.
    _ours("http_filters", reason=r"filter .* is not supported"),
    _ours("http_filters", reason="is a second (fault filter|filter for stateful sessions), only one is supported"),
    _ours("session_state.typed_config", reason=r".* is not supported"),
    _ours(
        "retry_host_predicate",
        "retry_priority",
        "predicates",
        "cluster_specifier_plugins",
        reason=".* is not supported",
    ),
    # Policies inside of a list, and rings, tables and weights that cannot be made.
    _ours(r"load_balancing_policy(?:\..*)?", reason=r"no supported policy among: .*"),
    _ours(r"load_balancing_policy\..*", reason="is not a duration between 0 and 9223372035 s"),
    _ours("minimum_ring_size", reason=r"must be from 1 to 65536 here, is \d+"),
    _ours("maximum_ring_size", reason=r"is \d+, less than minimum_ring_size, \d+"),
    _ours("table_size", reason=r"must be (from 2 to 131071 here|a prime number), is \d+"),
    _ours("fallback_keys_subset", reason="is only for the fallback policy KEYS_SUBSET"),
    _ours("fallback_keys_subset", reason="must not be empty with the fallback policy KEYS_SUBSET"),
    _ours("fallback_keys_subset", reason="must be some of the keys, and not all"),
    _ours(r"active_request_bias\.default_value", reason="must be at least 0"),
    _ours("error_utilization_penalty", reason="must be at least 0"),
    _ours(r"zone_aware_lb_config\.locality_basis", "selection_method", "hash_function", reason=r"unknown value \d+"),
    # In DNS clusters.
    _ours(r"lb_endpoints\[\d+\]\.endpoint", reason="is required"),
    _ours(r"endpoint\.address\.address", reason="is required"),
    _ours(r"socket_address\.address", reason=".* is not an IP address"),
    # What the protos promise, and gRPC's clients refuse.
    _ours("endpoints", reason=r"priority \d+ is empty, but there are lower ones"),
    _ours("endpoints", reason=r"the sum of (locality|endpoint) weights of priority \d+ is more than 4294967295"),
    _ours(r"lb_endpoints\[\d+\]\.health_status", reason=r"unknown value \d+"),
    _ours("http_filters", reason="is empty; the router filter is required"),
    _ours(r"http_filters\[\d+\]\.name", reason=".* is the name of an earlier filter"),
    _ours(r"rds\.route_config_name", reason="must not be empty"),
    _ours(r"abort\.grpc_status", reason="must be at most 16"),
    # gRPC's providers of certificates, which Envoy does not look at.
    _ours(r"\w*certificate_provider_instance\.instance_name", reason="must not be empty"),
    _ours("ca_certificate_provider_instance", reason="cannot be given together with trusted_ca"),
    # TLS.
    _ours(
        "cipher_suites", reason=r"'\\x00.*' is not a cipher suite of TLS 1.2"
    ),  # what follows a NUL Envoy does not see
    _ours("cipher_suites", reason="'' is not a cipher suite of TLS 1.2"),
    _ours(r"tls_certificates\[\d+\]\.(certificate_chain|private_key)", reason="is required"),
    _ours("crl", reason="is not a PEM certificate revocation list"),  # Envoy takes it for a list of nothing
    _ours("upstream_http_protocol_options", reason="auto_san_validation needs a trusted CA"),
    _ours("auto_sni_san_validation", reason="needs a trusted CA"),
    _ours("require_client_certificate", reason="needs a validation context"),
    _ours("tls_maximum_protocol_version", reason="leaves no version of TLS to use"),
    # Envoy's own limits, which it applies to whole milliseconds and seconds only.
    _ours(r"token_bucket\.fill_interval", reason="must be at least 0.05 s"),
    _ours("sampling_window", reason="must be at least 1 s"),
    _ours("path_with_escaped_slashes_action", reason=r"unknown value \d+"),
    # A header that a request stands on, taken away by a filter: Envoy notices when there is one.
    _ours(r"(request|response)_mutations\[\d+\]\.remove", reason=".* may not be changed"),
)
OF_SERVERS = (
    _ours("filters", reason="must be exactly one HttpConnectionManager"),
    _ours("filter_chains", reason=r"one filter chain is supported, .*; there are \d+"),
    _ours(r"filter_chain_match\.transport_protocol", reason="must be tls or raw_buffer, is .*"),
    _ours(r"filter_chain_match\.transport_protocol", reason="(tls|raw_buffer) needs (a|no) TLS transport_socket"),
    _ours("route_config", reason=r"virtual host .*: a server cannot tell: .*"),
    _ours("validation_context", reason="pins are not supported in a server without a trusted CA"),
)
"""Of servers alone."""
WAITING = (
    _ours(r"(certificate_chain|private_key|trusted_ca)", reason="is (empty|not .*)"),
    _ours("cipher_suites", reason=".* is not a cipher suite of TLS 1.2"),
    _ours("ignore_case", reason="has no effect with safe_regex"),
    _ours("alpn_protocols", reason="must have at most 254 bytes"),
)
"""Faults beside a secret that has not come, which Envoy finds when it has."""


def is_ours(resource: Any, error: str, more: tuple[re.Pattern[str], ...]) -> bool:
    """Whether an error of meshlib's is listed.

    Args:
        resource: The message that was decoded.
        error: Path and reason.
        more: Patterns beside those for all.
    """
    path, _, reason = error.partition(": ")
    if reason == "is not supported":
        return is_listed(resource, path)
    return is_rule_of_policy(resource, path, reason) or any(one.fullmatch(error) for one in (*OURS, *more))


def _rule(message: str, field: str, reason: str) -> re.Pattern[str]:
    """Return a pattern for a broken rule of a proto, which Envoy's text ends with."""
    return re.compile(rf"{message}ValidationError\.{field}: {reason}\)$")


_NO_TEXT = "value length must be at least 1 characters"
ENVOYS = (
    # Names that only label things; management servers for gRPC leave them out.
    _rule(r"\bTransportSocket", "Name", _NO_TEXT),
    _rule(r"[ (]Filter", "Name", _NO_TEXT),
    _rule("HttpConnectionManager", "StatPrefix", _NO_TEXT),
    # gRPC's providers of certificates may take its place.
    _rule("CombinedCertificateValidationContext", "ValidationContextSdsSecretConfig", "value is required"),
    # What gRPC's clients take: another policy than this one in WrrLocality, options for clients without
    # load_balancing_policy beside it, several categories of drops, `self` as a source.
    re.compile(
        "Currently WrrLocalityLoadBalancer only supports ClientSideWeightedRoundRobinLoadBalancer as its endpoint picking"
    ),
    re.compile(r"cluster provided LB not specified but cluster 'subject' provided one\."),
    re.compile(r"load_balancing_policy cannot be combined with partial fields \(.*\) of common_lb_config$"),
    re.compile(r"Cluster drop_overloads config has \d+ categories\. Envoy only support one\.$"),
    re.compile(r"Cluster drop_overloads config is invalid\. drop_ratio=.* The valid range is 0~1\.$"),
    re.compile(r"Missing config source specifier in envoy::config::core::v3::ConfigSource$"),
    # A matter of this machine's files or of what the process of a proxy did before.
    re.compile(
        "unable to open file|Invalid path: |Environment variable doesn't exist|reuse port cannot be changed during an update$"
    ),
    # The name of an extension for sessions, which gRPC and meshlib look up by type.
    re.compile(r"Didn't find a registered implementation for name: '"),
)
OF_ROUTES = (
    # Management servers for gRPC name no virtual hosts.
    _rule("VirtualHost", "Name", _NO_TEXT),
    re.compile(r"route: unknown ((shadow|weighted) )?cluster '"),
    re.compile(r"regex '.*' RE2 program size of \d+ > max program size of 100 set for the error level", re.DOTALL),
)
"""Of Envoy's."""
