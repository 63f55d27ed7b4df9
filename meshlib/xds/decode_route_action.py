"""What a route does with a request that it forwards: cluster choice, timeouts, rewrites, hashing, mirroring."""

from collections.abc import Mapping
from typing import Any, Final

from meshlib.model.matcher import PathKind, PathMatcher
from meshlib.model.route import (
    ClusterHeader,
    ClusterWeight,
    RouteAction,
    SingleCluster,
    WeightedClusters,
)
from meshlib.path_template import compile_template_rewrite
from meshlib.substitution import check_format
from meshlib.xds.decode_common import any_type, cover, duration, join, unpack_extension, wrapped
from meshlib.xds.decode_descriptors import route_rules
from meshlib.xds.decode_fault import fault_override
from meshlib.xds.decode_hash_policy import hash_policies
from meshlib.xds.decode_header_filter import header_filter_overrides
from meshlib.xds.decode_headers import MUTATION_FIELDS, header_mutation
from meshlib.xds.decode_internal_redirect import internal_redirect
from meshlib.xds.decode_limits import limit_overrides
from meshlib.xds.decode_matcher import regex_rewrite
from meshlib.xds.decode_mirror import mirror_policies
from meshlib.xds.decode_retry import hedge_policy, retry_policy
from meshlib.xds.decode_session import session_override
from meshlib.xds.decode_subset import match_criteria
from meshlib.xds.problems import Problems

__all__ = ["check_template_rewrite", "cluster_plugins", "route_action"]

MAX_WEIGHT_SUM: Final = 2**32 - 1

_USED: Final = frozenset(
    {
        "cluster",
        "cluster_header",
        "cluster_specifier_plugin",
        "inline_cluster_specifier_plugin",
        "weighted_clusters",
        "cluster_not_found_response_code",
        "prefix_rewrite",
        "regex_rewrite",
        "path_rewrite_policy",
        "path_rewrite",
        "host_rewrite_literal",
        "host_rewrite_header",
        "host_rewrite_path_regex",
        "host_rewrite",
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
        "internal_redirect_policy",
        "max_stream_duration",
        "metadata_match",
        "rate_limits",
        "include_vh_rate_limits",
    }
)
_HARMLESS: Final = frozenset(
    {
        "cors",
        "upgrade_configs",  # which upgrades a proxy lets through
        "early_data_policy",
        "flush_timeout",
        "max_internal_redirects",  # of the deprecated internal_redirect_action, which is refused
    }
)
_WEIGHT_USED: Final = MUTATION_FIELDS | {
    "name",
    "cluster_header",
    "weight",
    "typed_per_filter_config",
    "host_rewrite_literal",
    "metadata_match",
}
_TEMPLATE_REWRITE_TYPE: Final = "envoy.extensions.path.rewrite.uri_template.v3.UriTemplateRewriteConfig"
_NOT_FOUND_STATUS: Final = {0: 503, 1: 404, 2: 500}


def cluster_plugins(messages: Any, path: str, problems: Problems) -> Mapping[str, str]:
    """Return why each cluster specifier plugin of a route configuration cannot be used, by its name.

    There is none that can: gRPC's route look-up service asks a server for each call's cluster, the others run code in a
    proxy. One that is optional may stand there; requests that meet a route of it are answered, as in Envoy, with `NC`.
    """
    found = {}
    for index, message in enumerate(messages):
        extension = message.extension
        kind = any_type(extension.typed_config) or "(no type)"
        if extension.name in found:
            problems.error(f"{path}[{index}].extension.name", f"{extension.name!r} is the name of an earlier plugin")
        found[extension.name] = kind
        if not message.is_optional:
            problems.error(f"{path}[{index}]", f"cluster specifier plugin {extension.name!r} ({kind}) is not supported")
        else:
            problems.unused(f"{path}[{index}]", f"{kind} is not supported and optional")
    return found


def route_action(message: Any, path: str, problems: Problems, plugins: Mapping[str, str]) -> RouteAction:
    """Decode a RouteAction.

    Args:
        message: The message.
        path: Its field path.
        problems: Takes the errors.
        plugins: As `cluster_plugins` returns them.
    """
    cover(message, path, problems, used=_USED, harmless=_HARMLESS)
    _check_legacy_grpc_timeout(message, path, problems)
    _check_path_rewrites(message, path, problems)
    duration(message, "flush_timeout", path, problems)  # without effect here, but not without rules
    cluster = _cluster(message, path, problems, plugins)
    hashing = hash_policies(message.hash_policy, join(path, "hash_policy"), problems)
    limits = message.max_stream_duration
    limits_path = join(path, "max_stream_duration")
    retry = rewrite = hedge = None
    if message.HasField("retry_policy"):
        retry = retry_policy(message.retry_policy, join(path, "retry_policy"), problems)
    redirects = None
    if message.HasField("internal_redirect_policy"):
        redirects = internal_redirect(
            message.internal_redirect_policy, join(path, "internal_redirect_policy"), problems
        )
    if message.HasField("hedge_policy"):
        hedge = hedge_policy(message.hedge_policy, join(path, "hedge_policy"), problems)
    if message.HasField("regex_rewrite"):
        rewrite = regex_rewrite(message.regex_rewrite, join(path, "regex_rewrite"), problems)
    host_regex = None
    if message.HasField("host_rewrite_path_regex"):
        host_regex = regex_rewrite(message.host_rewrite_path_regex, join(path, "host_rewrite_path_regex"), problems)
    stream_s = duration(limits, "max_stream_duration", limits_path, problems)
    return RouteAction(
        cluster=cluster,
        timeout_s=duration(message, "timeout", path, problems),
        idle_timeout_s=duration(message, "idle_timeout", path, problems),
        retry=retry,
        hedge=hedge,
        internal_redirect=redirects,
        # The message itself switches the global timeout off, also when it says nothing about the stream: no limit then.
        max_stream_duration_s=0.0 if stream_s is None and message.HasField("max_stream_duration") else stream_s,
        grpc_timeout_header_max_s=duration(limits, "grpc_timeout_header_max", limits_path, problems),
        grpc_timeout_header_offset_s=duration(limits, "grpc_timeout_header_offset", limits_path, problems) or 0.0,
        prefix_rewrite=message.prefix_rewrite,
        regex_rewrite=rewrite,
        template_rewrite=_template_rewrite(message, path, problems),
        path_format=_format(message.path_rewrite, join(path, "path_rewrite"), problems),
        host_rewrite_literal=message.host_rewrite_literal,
        host_rewrite_header=message.host_rewrite_header.lower(),
        host_rewrite_regex=host_regex,
        host_format=_format(message.host_rewrite, join(path, "host_rewrite"), problems),
        auto_host_rewrite=bool(wrapped(message, "auto_host_rewrite")),
        is_trusted=problems.is_trusted,
        append_x_forwarded_host=message.append_x_forwarded_host,
        hash_policies=hashing,
        mirrors=mirror_policies(message.request_mirror_policies, join(path, "request_mirror_policies"), problems),
        cluster_not_found_status=_NOT_FOUND_STATUS.get(message.cluster_not_found_response_code, 503),
        high_priority=message.priority == 1,
        metadata_match=match_criteria(message, path, problems),
        limit_rules=route_rules(message.rate_limits, join(path, "rate_limits"), problems),
        includes_host_limits=wrapped(message, "include_vh_rate_limits") or False,
    )


def _check_path_rewrites(message: Any, path: str, problems: Problems) -> None:
    given = [name for name in ("prefix_rewrite", "path_rewrite") if getattr(message, name)]
    given += [name for name in ("regex_rewrite", "path_rewrite_policy") if message.HasField(name)]
    for name in given[1:]:
        problems.error(join(path, name), f"cannot be given together with {given[0]}")


def _format(text: str, path: str, problems: Problems) -> str:
    if fault := check_format(text):
        problems.error(path, fault)
    return text


def _template_rewrite(message: Any, path: str, problems: Problems) -> str:
    if not message.HasField("path_rewrite_policy"):
        return ""
    place = join(path, "path_rewrite_policy")
    config = unpack_extension(message.path_rewrite_policy, place, problems)
    if config is None:
        return ""
    if config.DESCRIPTOR.full_name != _TEMPLATE_REWRITE_TYPE:
        problems.error(place, f"{config.DESCRIPTOR.full_name} is not supported")
        return ""
    return str(config.path_template_rewrite)


def check_template_rewrite(action: RouteAction, path_matcher: PathMatcher, path: str, problems: Problems) -> None:
    """Check a `path_rewrite_policy` against the route's path template, which it needs."""
    if path_matcher.kind is not PathKind.TEMPLATE:
        problems.error(path, "needs a path_match_policy with a template")
        return
    try:
        compile_template_rewrite(path_matcher.value, action.template_rewrite)
    except ValueError as error:
        problems.error(path, str(error))


def _check_legacy_grpc_timeout(message: Any, path: str, problems: Problems) -> None:
    """Accept `max_grpc_timeout` where it says what holds anyway, refuse it elsewhere.

    It makes the caller's `grpc-timeout`, capped, the route's timeout. Here the caller's deadline always bounds the call,
    so a cap that equals the route's timeout (what Istio writes) changes nothing. With `max_stream_duration` Envoy does
    not look at it at all.
    """
    if not message.HasField("max_grpc_timeout"):
        if message.HasField("grpc_timeout_offset"):
            problems.unused(join(path, "grpc_timeout_offset"))
            duration(message, "grpc_timeout_offset", path, problems)
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


def _cluster(
    message: Any, path: str, problems: Problems, plugins: Mapping[str, str]
) -> SingleCluster | WeightedClusters | ClusterHeader:
    match message.WhichOneof("cluster_specifier"):
        case "cluster_specifier_plugin":
            name = message.cluster_specifier_plugin
            if name not in plugins:
                problems.error(join(path, "cluster_specifier_plugin"), f"there is no plugin {name!r}")
            return SingleCluster("")
        case "inline_cluster_specifier_plugin":
            place = join(path, "inline_cluster_specifier_plugin")
            cluster_plugins([message.inline_cluster_specifier_plugin], place, problems)
            return SingleCluster("")
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
    if bool(message.name) == bool(message.cluster_header):
        problems.error(join(path, "name"), "exactly one of name, cluster_header is required")
    if not message.HasField("weight"):
        problems.error(join(path, "weight"), "is required")
    return ClusterWeight(
        name=message.name,
        weight=message.weight.value,
        cluster_header=message.cluster_header.lower(),
        mutation=header_mutation(message, path, problems),
        host_rewrite=message.host_rewrite_literal,
        fault=fault_override(message.typed_per_filter_config, join(path, "typed_per_filter_config"), problems),
        metadata_match=match_criteria(message, path, problems),
        session=session_override(message.typed_per_filter_config, join(path, "typed_per_filter_config"), problems),
        limits=limit_overrides(message.typed_per_filter_config, join(path, "typed_per_filter_config"), problems),
        header_filters=header_filter_overrides(
            message.typed_per_filter_config, join(path, "typed_per_filter_config"), problems
        ),
    )
