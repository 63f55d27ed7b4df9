"""What gRPC refuses about TLS and authorization; see `grpc_rules.py`."""

from typing import Any, Final

from meshlib.xds.decode_common import any_type, join, unpack
from meshlib.xds.grpc_rules_route import check_header
from meshlib.xds.problems import Problems

__all__ = ["check_client_socket", "check_rbac", "check_server_socket"]

_TLS: Final = "envoy.extensions.transport_sockets.tls.v3."
_REFUSED_OF_PEERS: Final = (
    "verify_certificate_spki",
    "verify_certificate_hash",
    "require_signed_certificate_timestamp",
    "crl",
    "custom_validator_config",
)
_PROVIDERS: Final = ("tls_certificate_provider_instance", "tls_certificate_certificate_provider_instance")
_SECRETS: Final = ("tls_certificates", "tls_certificate_sds_secret_configs")
MAX_CONDITION_DEPTH: Final = 16
"""C-core's limit for conditions inside of conditions."""
_UNKNOWN_CONDITIONS: Final = frozenset({"destination_port_range", "uri_template", "matcher", "sourced_metadata"})


def check_client_socket(socket: Any, path: str, problems: Problems, providers: frozenset[str] | None = None) -> None:
    """Check the TransportSocket of a cluster.

    Args:
        providers: Names of the bootstrap's certificate providers; None: any will do.
    """
    common, place = _common(socket, path, "UpstreamTlsContext", problems)
    if common is None:
        return
    _check_identity(common, place, problems)
    if providers is not None:
        _check_instances(common, place, problems, providers)
    context, here = _peers(common, place, problems)
    if context is None:
        problems.error(here, "validation_context or combined_validation_context is required for gRPC")
    elif not (_has_roots(common, context) or context.HasField("system_root_certs")):
        problems.error(here, "ca_certificate_provider_instance or system_root_certs is required for gRPC")


def check_server_socket(socket: Any, path: str, problems: Problems, providers: frozenset[str] | None = None) -> None:
    """Check the TransportSocket of a filter chain; `providers` as above."""
    common, place = _common(socket, path, "DownstreamTlsContext", problems)
    if common is None:
        return
    _check_identity(common, place, problems)
    if providers is not None:
        _check_instances(common, place, problems, providers)
    if not any(common.HasField(name) for name in _PROVIDERS):
        problems.error(join(place, _PROVIDERS[0]), "is required for gRPC")
    context, here = _peers(common, place, problems)
    if context is None:
        return
    if not _has_roots(common, context):
        problems.error(here, "ca_certificate_provider_instance is required for gRPC")
    if context.match_subject_alt_names:
        problems.error(join(here, "match_subject_alt_names"), "is not supported by gRPC in servers")


def _common(socket: Any, path: str, wanted: str, problems: Problems) -> tuple[Any, str]:
    """Return the CommonTlsContext, or None, and its path."""
    place = join(path, "typed_config")
    kind = any_type(socket.typed_config)
    if kind != f"{_TLS}{wanted}":
        problems.error(place, f"must be {_TLS}{wanted} for gRPC, is {kind or 'missing'}")
        return None, place
    message = unpack(socket.typed_config, place, Problems())
    return (None if message is None else message.common_tls_context), join(place, "common_tls_context")


def _check_identity(common: Any, path: str, problems: Problems) -> None:
    if not any(common.HasField(name) for name in _PROVIDERS):
        for name in _SECRETS:
            if getattr(common, name):
                problems.error(join(path, name), "is not supported by gRPC (only tls_certificate_provider_instance)")
    if common.HasField("tls_params"):
        problems.error(join(path, "tls_params"), "is not supported by gRPC")


def _check_instances(common: Any, path: str, problems: Problems, known: frozenset[str]) -> None:
    """Check that every provider that is named is one of the bootstrap's."""
    named = [(common, name, path) for name in _PROVIDERS]
    roots = "ca_certificate_provider_instance"
    named.append((common.validation_context, roots, join(path, "validation_context")))
    combined, place = common.combined_validation_context, join(path, "combined_validation_context")
    named.append((combined.default_validation_context, roots, join(place, "default_validation_context")))
    named.append((combined, "validation_context_certificate_provider_instance", place))
    for message, field, where in named:
        if message.HasField(field) and (instance := getattr(message, field).instance_name) not in known:
            problems.error(join(where, field), f"{instance!r} is not among the bootstrap's certificate_providers")


def _peers(common: Any, path: str, problems: Problems) -> tuple[Any, str]:
    """Return the CertificateValidationContext, or None, and its path, having checked what no peer may be asked for."""
    kind = common.WhichOneof("validation_context_type")
    if kind == "validation_context_sds_secret_config":
        problems.error(join(path, kind), "is not supported by gRPC")
    if kind == "validation_context":
        context, place = common.validation_context, join(path, kind)
    elif kind == "combined_validation_context":
        context = common.combined_validation_context.default_validation_context
        place = join(path, f"{kind}.default_validation_context")
    else:
        return None, join(path, kind or "validation_context")
    for field, _ in context.ListFields():
        if field.name in _REFUSED_OF_PEERS:
            problems.error(join(place, field.name), "is not supported by gRPC")
    return context, place


def _has_roots(common: Any, context: Any) -> bool:
    old = common.combined_validation_context.HasField("validation_context_certificate_provider_instance")
    return bool(context.HasField("ca_certificate_provider_instance") or old)


def check_rbac(packed: Any, path: str, problems: Problems) -> None:
    """Check an RBAC filter; its shadow rules do not count."""
    message = unpack(packed, path, Problems())
    if message is None:
        return
    for name, policy in sorted(message.rules.policies.items()):
        place = f'{join(path, "rules.policies")}["{name}"]'
        for field in ("permissions", "principals"):
            for index, condition in enumerate(getattr(policy, field)):
                _check_condition(condition, f"{place}.{field}[{index}]", problems, 0)


def _check_condition(message: Any, path: str, problems: Problems, depth: int) -> None:
    """Check a Permission or a Principal."""
    if depth > MAX_CONDITION_DEPTH:
        problems.error(path, f"conditions are nested more than {MAX_CONDITION_DEPTH} deep")
        return
    kind = message.WhichOneof("rule" if "rule" in message.DESCRIPTOR.oneofs_by_name else "identifier")
    place, value = join(path, str(kind)), getattr(message, kind) if kind else None
    match kind:
        case "and_rules" | "or_rules" | "and_ids" | "or_ids":
            name = "rules" if kind.endswith("rules") else "ids"
            for index, inner in enumerate(getattr(value, name)):
                _check_condition(inner, f"{place}.{name}[{index}]", problems, depth + 1)
        case "not_rule" | "not_id":
            _check_condition(value, place, problems, depth + 1)
        case "header":
            assert value is not None
            if value.name.lower().startswith("grpc-") or value.name == ":scheme":
                problems.error(join(place, "name"), f"{value.name!r} cannot be tested in gRPC")
            check_header(value, place, problems)
        case _ if kind in _UNKNOWN_CONDITIONS:
            problems.error(place, "is not supported by gRPC")
