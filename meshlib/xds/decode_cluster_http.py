"""Which HTTP a cluster speaks and how long its connections live."""

from dataclasses import dataclass, replace
from typing import Any, Final

from meshlib.model.cluster import AuthorityNames
from meshlib.model.retry import RetryPolicy
from meshlib.model.route import HashPolicy, MirrorPolicy
from meshlib.xds.decode_common import any_type, cover, duration, join, pass_over, unpack, wrapped
from meshlib.xds.decode_hash_policy import hash_policies
from meshlib.xds.decode_matcher import check_upgrades
from meshlib.xds.decode_mirror import mirror_policies
from meshlib.xds.decode_retry import retry_policy
from meshlib.xds.problems import Problems

__all__ = ["HTTP_OPTIONS_KEY", "HTTP_OPTIONS_TYPE", "Protocol", "decode_protocol"]

HTTP_OPTIONS_TYPE: Final = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
HTTP_OPTIONS_KEY: Final = HTTP_OPTIONS_TYPE
UPSTREAM_CODEC_TYPE: Final = "envoy.extensions.filters.http.upstream_codec.v3.UpstreamCodec"

_OPTIONS_USED: Final = frozenset(
    {
        "common_http_protocol_options",
        "upstream_http_protocol_options",
        "explicit_http_config",
        "use_downstream_protocol_config",
        "auto_config",
        "http_filters",
        "retry_policy",
        "hash_policy",
        "request_mirror_policies",
    }
)
_OPTIONS_HARMLESS: Final = frozenset({"header_validation_config"})
_COMMON_HARMLESS: Final = frozenset(
    {"max_connection_duration", "max_headers_count", "max_response_headers_kb", "headers_with_underscores_action"}
)
_UPSTREAM_FIELDS: Final = frozenset({"auto_sni", "auto_san_validation", "override_auto_sni_header"})


@dataclass(frozen=True, slots=True)
class Protocol:
    """Attributes:
    may_be_http2: Requests may go by HTTP/2, if both sides agree on it.
    idle_timeout_s: None: Envoy's default.
    """

    http2: bool = False
    may_be_http2: bool = False
    max_requests_per_connection: int | None = None
    idle_timeout_s: float | None = None
    authority_names: AuthorityNames | None = None
    max_stream_duration_s: float | None = None
    retry: RetryPolicy | None = None
    hash_policies: tuple[HashPolicy, ...] = ()
    mirrors: tuple[MirrorPolicy, ...] = ()


def decode_protocol(message: Any, path: str, problems: Problems, *, has_tls: bool, is_all_tls: bool) -> Protocol:
    """Decode the protocol options of a Cluster message: the typed ones, else the cluster's own deprecated fields.

    Args:
        message: The cluster.
        path: Its field path.
        problems: Takes the errors.
        has_tls: Some endpoints are spoken to over TLS.
        is_all_tls: All of them are.
    """
    place = join(path, "typed_extension_protocol_options")
    for key in sorted(message.typed_extension_protocol_options):
        if key != HTTP_OPTIONS_KEY:
            problems.unused(f'{place}["{key}"]')
    legacy_limit = wrapped(message, "max_requests_per_connection") or None
    if HTTP_OPTIONS_KEY not in message.typed_extension_protocol_options:
        names = _authority_names(message, path, problems, has_tls)
        protocol = _common(message, path, problems)
        limit = protocol.max_requests_per_connection or legacy_limit
        _check_limits(message, message, path, problems)
        pass_over(message.http2_protocol_options, join(path, "http2_protocol_options"), problems)
        check_upgrades(message.http_protocol_options, join(path, "http_protocol_options"), problems)
        return replace(
            protocol,
            http2=message.HasField("http2_protocol_options"),
            may_be_http2=message.HasField("http2_protocol_options"),
            max_requests_per_connection=limit,
            authority_names=names,
        )
    for name in ("http2_protocol_options", "common_http_protocol_options", "upstream_http_protocol_options"):
        if message.HasField(name):
            problems.unused(join(path, name), f"{HTTP_OPTIONS_TYPE} replaces it")
    place = f'{place}["{HTTP_OPTIONS_KEY}"]'
    options = unpack(message.typed_extension_protocol_options[HTTP_OPTIONS_KEY], place, problems)
    if options is None:
        return Protocol()
    if options.DESCRIPTOR.full_name != HTTP_OPTIONS_TYPE:
        problems.error(place, f"must be a {HTTP_OPTIONS_TYPE}")
        return Protocol()
    cover(options, place, problems, used=_OPTIONS_USED, harmless=_OPTIONS_HARMLESS)
    names = _authority_names(options, place, problems, has_tls)
    _check_filters(options.http_filters, join(place, "http_filters"), problems)
    protocol = _common(options, place, problems)
    limit = protocol.max_requests_per_connection or legacy_limit
    _check_limits(message, options, path, problems)
    kind = options.WhichOneof("upstream_protocol_options")
    if kind == "auto_config":
        _check_auto(options.auto_config, join(place, kind), problems, is_all_tls=is_all_tls)
    followed = options.use_downstream_protocol_config.HasField("http2_protocol_options")
    _pass_over_settings(options, kind, place, problems)
    retry = None
    if options.HasField("retry_policy"):
        retry = retry_policy(options.retry_policy, join(place, "retry_policy"), problems)
    return replace(
        protocol,
        http2=(is_http2 := _is_http2(options, place, problems)),
        may_be_http2=is_http2 or kind == "auto_config" or followed,
        max_requests_per_connection=limit,
        authority_names=names,
        retry=retry,
        hash_policies=hash_policies(options.hash_policy, join(place, "hash_policy"), problems),
        mirrors=_mirrors(options.request_mirror_policies, join(place, "request_mirror_policies"), problems),
    )


def _check_filters(filters: Any, path: str, problems: Problems) -> None:
    """Check that the codec is the last filter, which it has to be, and the only one."""
    for index, item in enumerate(filters):
        if any_type(item.typed_config) != UPSTREAM_CODEC_TYPE:
            problems.error(f"{path}[{index}]", f"filter {item.name!r} is not supported")
        elif index < len(filters) - 1:
            problems.error(f"{path}[{index}]", "the codec must be the last filter")
        elif item.disabled:
            problems.error(f"{path}[{index}].disabled", "the codec cannot be disabled")


def _pass_over_settings(options: Any, kind: str | None, path: str, problems: Problems) -> None:
    """Report how connections of each version would be set up; that a version is named is another matter."""
    if kind is None:
        return
    config, place = getattr(options, kind), join(path, kind)
    for field, value in config.ListFields():
        if field.name == "http3_protocol_options":
            problems.error(join(place, field.name), "is not supported")  # Envoy wants a transport socket for QUIC
            continue
        # With `auto_config` HTTP/1.1 is spoken, so that the others say nothing at all.
        if kind == "auto_config" and field.name != "http_protocol_options":
            problems.unused(join(place, field.name), "HTTP/1.1 is spoken")
        pass_over(value, join(place, field.name), problems)
        if field.name == "http_protocol_options":
            check_upgrades(value, join(place, field.name), problems)


def _mirrors(messages: Any, path: str, problems: Problems) -> tuple[MirrorPolicy, ...]:
    found = mirror_policies(messages, path, problems)
    for index, mirror in enumerate(found):
        if mirror.cluster_header:  # what routes name by a header is subscribed to when a request has it
            problems.error(f"{path}[{index}].cluster_header", "is not supported")
    return found


def _check_limits(message: Any, owner: Any, path: str, problems: Problems) -> None:
    """Envoy: "Only one of max_requests_per_connection from Cluster or HttpProtocolOptions can be specified"."""
    name = "max_requests_per_connection"
    if message.HasField(name) and owner.common_http_protocol_options.HasField(name):
        problems.error(join(path, name), "cannot be given together with that of the HTTP protocol options")


def _check_auto(message: Any, path: str, problems: Problems, *, is_all_tls: bool) -> None:
    """`auto_config` leaves the version to ALPN, so there has to be TLS."""
    if not is_all_tls:
        problems.error(path, "needs TLS for every endpoint (ALPN chooses the version)")


def _is_http2(options: Any, path: str, problems: Problems) -> bool:
    """Only an explicit choice of HTTP/2 counts.

    With `auto_config` a peer may choose HTTP/1.1, which is what is spoken then; with `use_downstream_protocol_config` it
    is the caller's own version, and callers that speak HTTP/2 (gRPC) do so in any case.
    """
    if options.WhichOneof("upstream_protocol_options") != "explicit_http_config":
        return False
    config = options.explicit_http_config
    return bool(config.WhichOneof("protocol_config") == "http2_protocol_options")


def _common(owner: Any, path: str, problems: Problems) -> Protocol:
    common, place = owner.common_http_protocol_options, join(path, "common_http_protocol_options")
    used = frozenset({"idle_timeout", "max_requests_per_connection", "max_stream_duration"})
    cover(common, place, problems, used=used, harmless=_COMMON_HARMLESS)
    return Protocol(
        # Zero means no limit.
        max_requests_per_connection=wrapped(common, "max_requests_per_connection") or None,
        idle_timeout_s=duration(common, "idle_timeout", place, problems),
        max_stream_duration_s=duration(common, "max_stream_duration", place, problems) or None,
    )


def _authority_names(owner: Any, path: str, problems: Problems, has_tls: bool) -> AuthorityNames | None:
    """Return what TLS takes from requests; in plaintext that has no effect."""
    place = join(path, "upstream_http_protocol_options")
    if not owner.HasField("upstream_http_protocol_options"):
        return None
    options = owner.upstream_http_protocol_options
    cover(options, place, problems, used=_UPSTREAM_FIELDS if has_tls else frozenset(), refused=frozenset())
    header = options.override_auto_sni_header.lower()
    if not (options.auto_sni or options.auto_san_validation):
        if header and has_tls:
            problems.unused(join(place, "override_auto_sni_header"), "neither auto_sni nor auto_san_validation is set")
        return None
    return AuthorityNames(options.auto_sni, options.auto_san_validation, header) if has_tls else None
