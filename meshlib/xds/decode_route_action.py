"""What a route does with a request that it forwards: cluster choice, timeouts, rewrites, hashing, mirroring."""

from typing import Any, Final

from meshlib.model.matcher import Fraction
from meshlib.model.route import (
    ClusterHeader,
    ClusterWeight,
    MirrorPolicy,
    RouteAction,
    SingleCluster,
    WeightedClusters,
)
from meshlib.xds.decode_common import cover, duration, join, wrapped
from meshlib.xds.decode_fault import fault_override
from meshlib.xds.decode_hash_policy import hash_policies
from meshlib.xds.decode_headers import MUTATION_FIELDS, header_mutation
from meshlib.xds.decode_matcher import regex_rewrite, runtime_fraction
from meshlib.xds.decode_retry import hedge_policy, retry_policy
from meshlib.xds.decode_session import session_override
from meshlib.xds.decode_subset import match_criteria
from meshlib.xds.problems import Problems

__all__ = ["mirror_policies", "route_action"]

MAX_WEIGHT_SUM: Final = 2**32 - 1

_USED: Final = frozenset(
    {
        "cluster",
        "cluster_header",
        "weighted_clusters",
        "cluster_not_found_response_code",
        "prefix_rewrite",
        "regex_rewrite",
        "host_rewrite_literal",
        "host_rewrite_header",
        "auto_host_rewrite",
        "append_x_forwarded_host",
        "timeout",
        "idle_timeout",
        "retry_policy",
        "request_mirror_policies",
        "priority",
        "hash_policy",
        "max_grpc_timeout",
        "grpc_timeout_offset",
        "hedge_policy",
        "max_stream_duration",
        "metadata_match",
    }
)
_HARMLESS: Final = frozenset(
    {
        "rate_limits",  # without the filter, which is refused, they have no effect
        "include_vh_rate_limits",
        "cors",
        "upgrade_configs",  # which upgrades a proxy lets through
        "early_data_policy",
        "flush_timeout",
        "max_internal_redirects",  # internal redirects themselves are refused
    }
)
_WEIGHT_USED: Final = MUTATION_FIELDS | {
    "name",
    "weight",
    "typed_per_filter_config",
    "host_rewrite_literal",
    "metadata_match",
}
_NOT_FOUND_STATUS: Final = {0: 503, 1: 404, 2: 500}


def route_action(message: Any, path: str, problems: Problems) -> RouteAction:
    """Decode a RouteAction."""
    cover(message, path, problems, used=_USED, harmless=_HARMLESS)
    _check_legacy_grpc_timeout(message, path, problems)
    if message.prefix_rewrite and message.HasField("regex_rewrite"):
        problems.error(join(path, "regex_rewrite"), "cannot be given together with prefix_rewrite")
    cluster = _cluster(message, path, problems)
    hashing = hash_policies(message.hash_policy, join(path, "hash_policy"), problems)
    limits = message.max_stream_duration
    limits_path = join(path, "max_stream_duration")
    retry = rewrite = hedge = None
    if message.HasField("retry_policy"):
        retry = retry_policy(message.retry_policy, join(path, "retry_policy"), problems)
    if message.HasField("hedge_policy"):
        hedge = hedge_policy(message.hedge_policy, join(path, "hedge_policy"), problems)
    if message.HasField("regex_rewrite"):
        rewrite = regex_rewrite(message.regex_rewrite, join(path, "regex_rewrite"), problems)
    stream_s = duration(limits, "max_stream_duration", limits_path, problems)
    return RouteAction(
        cluster=cluster,
        timeout_s=duration(message, "timeout", path, problems),
        idle_timeout_s=duration(message, "idle_timeout", path, problems),
        retry=retry,
        hedge=hedge,
        # The message itself switches the global timeout off, also when it says nothing about the stream: no limit then.
        max_stream_duration_s=0.0 if stream_s is None and message.HasField("max_stream_duration") else stream_s,
        grpc_timeout_header_max_s=duration(limits, "grpc_timeout_header_max", limits_path, problems),
        grpc_timeout_header_offset_s=duration(limits, "grpc_timeout_header_offset", limits_path, problems) or 0.0,
        prefix_rewrite=message.prefix_rewrite,
        regex_rewrite=rewrite,
        host_rewrite_literal=message.host_rewrite_literal,
        host_rewrite_header=message.host_rewrite_header.lower(),
        auto_host_rewrite=bool(wrapped(message, "auto_host_rewrite")),
        append_x_forwarded_host=message.append_x_forwarded_host,
        hash_policies=hashing,
        mirrors=mirror_policies(message.request_mirror_policies, join(path, "request_mirror_policies"), problems),
        cluster_not_found_status=_NOT_FOUND_STATUS.get(message.cluster_not_found_response_code, 503),
        high_priority=message.priority == 1,
        metadata_match=match_criteria(message, path, problems),
    )


def mirror_policies(messages: Any, path: str, problems: Problems) -> tuple[MirrorPolicy, ...]:
    """Decode a repeated RequestMirrorPolicy field."""
    return tuple(_mirror(message, f"{path}[{index}]", problems) for index, message in enumerate(messages))


def _mirror(message: Any, path: str, problems: Problems) -> MirrorPolicy:
    used = frozenset({"cluster", "runtime_fraction", "disable_shadow_host_suffix_append"})
    cover(message, path, problems, used=used, harmless=frozenset({"trace_sampled"}))
    if not message.cluster:
        problems.error(join(path, "cluster"), "must not be empty")
    share = Fraction(100)
    if message.HasField("runtime_fraction"):
        share = runtime_fraction(message.runtime_fraction, join(path, "runtime_fraction"), problems)
    return MirrorPolicy(message.cluster, share, keeps_host=message.disable_shadow_host_suffix_append)


def _check_legacy_grpc_timeout(message: Any, path: str, problems: Problems) -> None:
    """Accept `max_grpc_timeout` where it says what holds anyway, refuse it elsewhere.

    It makes the caller's `grpc-timeout`, capped, the route's timeout. Here the caller's deadline always bounds the call,
    so a cap that equals the route's timeout (what Istio writes) changes nothing. With `max_stream_duration` Envoy does
    not look at it at all.
    """
    if not message.HasField("max_grpc_timeout"):
        if message.HasField("grpc_timeout_offset"):
            problems.unused(join(path, "grpc_timeout_offset"))
        return
    place = join(path, "max_grpc_timeout")
    if message.HasField("max_stream_duration"):
        problems.unused(place)
        return
    if message.HasField("grpc_timeout_offset"):
        problems.error(join(path, "grpc_timeout_offset"), "is not supported")
    limit_s = duration(message, "max_grpc_timeout", path, problems)
    timeout_s = duration(message, "timeout", path, problems)
    if limit_s != (15.0 if timeout_s is None else timeout_s):
        problems.error(place, "is not supported unless it equals timeout; use max_stream_duration")
    else:
        problems.unused(place)


def _cluster(message: Any, path: str, problems: Problems) -> SingleCluster | WeightedClusters | ClusterHeader:
    match message.WhichOneof("cluster_specifier"):
        case "cluster_header":
            return ClusterHeader(message.cluster_header.lower())
        case "weighted_clusters":
            return _weighted(message.weighted_clusters, join(path, "weighted_clusters"), message, problems)
        case _:
            # Missing, empty and unsupported ones have been reported by the constraints and the coverage.
            return SingleCluster(message.cluster)


def _weighted(message: Any, path: str, action: Any, problems: Problems) -> WeightedClusters:
    used = frozenset({"clusters", "header_name", "use_hash_policy", "runtime_key_prefix"})
    cover(message, path, problems, used=used, harmless=frozenset({"total_weight"}))
    total = 0
    clusters = []
    for index, entry in enumerate(message.clusters):
        place = f"{join(path, 'clusters')}[{index}]"
        weight = _cluster_weight(entry, place, problems)
        total += weight.weight
        # An entry that is never chosen need not be subscribed to, nor be waited for (gRPC drops it as well).
        if weight.weight or message.runtime_key_prefix:
            clusters.append(weight)
    if message.clusters and not 0 < total <= MAX_WEIGHT_SUM:
        problems.error(join(path, "clusters"), f"the sum of weights must be from 1 to {MAX_WEIGHT_SUM}, is {total}")
    uses_hash = bool(wrapped(message, "use_hash_policy"))
    if uses_hash and any(policy.cookie.HasField("ttl") for policy in action.hash_policy):
        problems.error(join(path, "use_hash_policy"), "is not supported together with cookies that are made up (ttl)")
    return WeightedClusters(tuple(clusters), message.header_name.lower(), uses_hash, message.runtime_key_prefix)


def _cluster_weight(message: Any, path: str, problems: Problems) -> ClusterWeight:
    cover(message, path, problems, used=_WEIGHT_USED, harmless=frozenset())
    if not message.name:
        problems.error(join(path, "name"), "must not be empty")
    if not message.HasField("weight"):
        problems.error(join(path, "weight"), "is required")
    return ClusterWeight(
        name=message.name,
        weight=message.weight.value,
        mutation=header_mutation(message, path, problems),
        host_rewrite=message.host_rewrite_literal,
        fault=fault_override(message.typed_per_filter_config, join(path, "typed_per_filter_config"), problems),
        metadata_match=match_criteria(message, path, problems),
        session=session_override(message.typed_per_filter_config, join(path, "typed_per_filter_config"), problems),
    )
