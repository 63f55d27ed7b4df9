"""TLS contexts of clusters and listeners: where certificate and trust come from, and who the peer has to be.

What restricts the peers that are accepted is never ignored: it is honoured or the resource is refused.
"""

from collections.abc import Callable
from typing import Any, Final, TypeVar

from meshlib.model.secret import ClientTls, SanMatcher, SanType, SecretRef, ServerTls
from meshlib.xds.decode_common import any_type, cover, is_discovered_by_ads, join, unpack, wrapped
from meshlib.xds.decode_matcher import string_matcher
from meshlib.xds.decode_secret import tls_certificate, trusted_ca
from meshlib.xds.problems import Problems

__all__ = ["client_socket", "server_socket"]

T = TypeVar("T")

_TLS: Final = "envoy.extensions.transport_sockets.tls.v3."
_RAW_BUFFER: Final = "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer"
_RAW_BUFFER_NAME: Final = "envoy.transport_sockets.raw_buffer"

_COMMON_USED: Final = frozenset(
    {
        "tls_params",
        "tls_certificates",
        "tls_certificate_sds_secret_configs",
        "tls_certificate_provider_instance",
        "tls_certificate_certificate_provider_instance",
        "validation_context",
        "validation_context_sds_secret_config",
        "combined_validation_context",
        "validation_context_certificate_provider_instance",
        "alpn_protocols",
    }
)
_VALIDATION_USED: Final = frozenset(
    {
        "trusted_ca",
        "ca_certificate_provider_instance",
        "match_typed_subject_alt_names",
        "match_subject_alt_names",
    }
)
_VALIDATION_HARMLESS: Final = frozenset({"watched_directory", "only_verify_leaf_cert_crl"})
_UPSTREAM_HARMLESS: Final = frozenset({"allow_renegotiation", "max_session_keys", "enforce_rsa_key_usage"})
_DOWNSTREAM_HARMLESS: Final = frozenset(
    {
        # How sessions are resumed; the runtime decides that for itself.
        "session_ticket_keys",
        "session_ticket_keys_sds_secret_config",
        "disable_stateless_session_resumption",
        "disable_stateful_session_resumption",
        "session_timeout",
        "full_scan_certs_on_sni_mismatch",
        "prefer_client_ciphers",
    }
)
_SAN_TYPES: Final = {2: SanType.DNS, 3: SanType.URI, 4: SanType.IP}
_TLS_AUTO, _TLS_1_2, _TLS_1_3 = 0, 3, 4
_PLAINTEXT_NAMES: Final = frozenset({_RAW_BUFFER_NAME, "raw_buffer"})


def client_socket(socket: Any, path: str, problems: Problems) -> ClientTls | None:
    """Decode the TransportSocket of a cluster; None is plaintext."""
    return _socket(socket, path, problems, f"{_TLS}UpstreamTlsContext", _client_tls)


def server_socket(socket: Any, path: str, problems: Problems) -> ServerTls | None:
    """Decode the TransportSocket of a filter chain; None is plaintext."""
    return _socket(socket, path, problems, f"{_TLS}DownstreamTlsContext", _server_tls)


def _socket(
    socket: Any, path: str, problems: Problems, wanted: str, decode: Callable[[Any, str, Problems], T]
) -> T | None:
    place = join(path, "typed_config")
    if not socket.HasField("typed_config"):
        if socket.name not in _PLAINTEXT_NAMES:
            problems.error(place, "is required")
        return None
    kind = any_type(socket.typed_config)
    if kind == _RAW_BUFFER:
        return None
    if kind != wanted:
        problems.error(place, f"{kind or 'an empty Any'} is not supported (only {wanted} and {_RAW_BUFFER})")
        return None
    message = unpack(socket.typed_config, place, problems)
    return None if message is None else decode(message, place, problems)


def _client_tls(message: Any, path: str, problems: Problems) -> ClientTls:
    used = frozenset({"common_tls_context", "sni"})
    cover(message, path, problems, used=used, harmless=_UPSTREAM_HARMLESS)
    place = join(path, "common_tls_context")
    common = message.common_tls_context
    certificate, trust, sans = _common(common, place, problems)
    return ClientTls(
        certificate=certificate,
        trust=trust,
        sans=sans,
        sni=message.sni,
        alpn=tuple(common.alpn_protocols),
        minimum_version=_minimum_version(common, place, problems),
    )


def _server_tls(message: Any, path: str, problems: Problems) -> ServerTls:
    used = frozenset({"common_tls_context", "require_client_certificate"})
    if not wrapped(message, "require_sni"):
        used |= {"require_sni"}
    cover(message, path, problems, used=used, harmless=_DOWNSTREAM_HARMLESS)
    place = join(path, "common_tls_context")
    common = message.common_tls_context
    certificate, trust, sans = _common(common, place, problems)
    if certificate is None:
        problems.error(place, "a certificate is required")
        certificate = SecretRef()
    is_required = bool(wrapped(message, "require_client_certificate"))
    if is_required and trust is None:
        problems.error(join(path, "require_client_certificate"), "needs a validation context")
    return ServerTls(
        certificate=certificate,
        trust=trust,
        sans=sans,
        require_client_certificate=is_required,
        alpn=tuple(common.alpn_protocols),
        minimum_version=_minimum_version(common, place, problems),
    )


def _common(
    message: Any, path: str, problems: Problems
) -> tuple[SecretRef | None, SecretRef | None, tuple[SanMatcher, ...]]:
    """Return our certificate, the trust and the names of the peer."""
    cover(message, path, problems, used=_COMMON_USED, harmless=frozenset({"key_log"}))
    return _certificate(message, path, problems), *_validation(message, path, problems)


def _certificate(message: Any, path: str, problems: Problems) -> SecretRef | None:
    found: list[SecretRef] = []
    for index, item in enumerate(message.tls_certificates):
        place = f"{join(path, 'tls_certificates')}[{index}]"
        found.append(SecretRef(inline=tls_certificate(item, place, problems)))
    for index, item in enumerate(message.tls_certificate_sds_secret_configs):
        found.append(_sds(item, f"{join(path, 'tls_certificate_sds_secret_configs')}[{index}]", problems))
    for name in ("tls_certificate_provider_instance", "tls_certificate_certificate_provider_instance"):
        # The second is the first under its old name; a server that knows both clients sends both.
        if message.HasField(name) and not any(ref.provider for ref in found):
            found.append(_provider(getattr(message, name), join(path, name), problems))
    if len(found) > 1:
        problems.error(path, f"has {len(found)} certificates, only one is supported")
    return found[0] if found else None


def _validation(message: Any, path: str, problems: Problems) -> tuple[SecretRef | None, tuple[SanMatcher, ...]]:
    kind = message.WhichOneof("validation_context_type")
    place = join(path, kind or "validation_context_type")
    trust: SecretRef | None = None
    sans: tuple[SanMatcher, ...] = ()
    match kind:
        case "validation_context":
            trust, sans = _validation_context(message.validation_context, place, problems)
            if trust is None and not sans:
                problems.unused(place, "is empty")
        case "validation_context_sds_secret_config":
            trust = _sds(message.validation_context_sds_secret_config, place, problems)
        case "validation_context_certificate_provider_instance":
            trust = _provider(message.validation_context_certificate_provider_instance, place, problems)
        case "combined_validation_context":
            trust, sans = _combined(message.combined_validation_context, place, problems)
        case None:
            return None, ()
    if sans and trust is None:
        problems.error(place, "the names of the peer say nothing without a trusted CA")
    return trust, sans


def _combined(message: Any, path: str, problems: Problems) -> tuple[SecretRef | None, tuple[SanMatcher, ...]]:
    sds, instance = "validation_context_sds_secret_config", "validation_context_certificate_provider_instance"
    used = frozenset({"default_validation_context", sds, instance})
    cover(message, path, problems, used=used, harmless=frozenset())
    place = join(path, "default_validation_context")
    default, sans = _validation_context(message.default_validation_context, place, problems)
    # What is discovered is merged over the default.
    if message.HasField(sds):
        trust: SecretRef | None = _sds(message.validation_context_sds_secret_config, join(path, sds), problems)
    elif message.HasField(instance):
        trust = _provider(message.validation_context_certificate_provider_instance, join(path, instance), problems)
    else:
        trust = default
        if trust is None:
            problems.error(join(path, sds), "is required")
    if default is not None and trust is not default:
        problems.unused(place, f"its roots are replaced by those of {sds if message.HasField(sds) else instance}")
    return trust, sans


def _validation_context(message: Any, path: str, problems: Problems) -> tuple[SecretRef | None, tuple[SanMatcher, ...]]:
    cover(message, path, problems, used=_VALIDATION_USED, harmless=_VALIDATION_HARMLESS)
    trust: SecretRef | None = None
    if message.HasField("trusted_ca"):
        trust = SecretRef(inline=trusted_ca(message.trusted_ca, join(path, "trusted_ca"), problems))
    if message.HasField("ca_certificate_provider_instance"):
        place = join(path, "ca_certificate_provider_instance")
        if trust is not None:
            problems.error(place, "cannot be given together with trusted_ca")
        trust = _provider(message.ca_certificate_provider_instance, place, problems)
    return trust, _sans(message, path, problems)


def _sans(message: Any, path: str, problems: Problems) -> tuple[SanMatcher, ...]:
    result = []
    for index, item in enumerate(message.match_typed_subject_alt_names):
        place = f"{join(path, 'match_typed_subject_alt_names')}[{index}]"
        matcher = string_matcher(item.matcher, join(place, "matcher"), problems)
        san_type = _SAN_TYPES.get(item.san_type)
        if san_type is None:
            problems.error(join(place, "san_type"), "is not supported (only DNS, URI and IP_ADDRESS)")
            continue
        result.append(SanMatcher(san_type, matcher))
    if result:
        # The typed form replaces the deprecated one; with both Envoy takes the typed.
        if message.match_subject_alt_names:
            problems.unused(join(path, "match_subject_alt_names"))
        return tuple(result)
    for index, item in enumerate(message.match_subject_alt_names):
        place = f"{join(path, 'match_subject_alt_names')}[{index}]"
        result.append(SanMatcher(SanType.ANY, string_matcher(item, place, problems)))
    return tuple(result)


def _sds(message: Any, path: str, problems: Problems) -> SecretRef:
    if not message.HasField("sds_config"):
        problems.error(join(path, "sds_config"), "is required (there are no static secrets)")
    else:
        is_discovered_by_ads(message.sds_config, join(path, "sds_config"), problems)
    return SecretRef(sds_name=message.name)


def _provider(message: Any, path: str, problems: Problems) -> SecretRef:
    """The instance has to be in the bootstrap; that is checked where the bootstrap is known."""
    if not message.instance_name:
        problems.error(join(path, "instance_name"), "must not be empty")
    return SecretRef(provider=message.instance_name)


def _minimum_version(common: Any, path: str, problems: Problems) -> str:
    """Return the oldest TLS version that both the resource and we allow: we never go below 1.2."""
    if not common.HasField("tls_params"):
        return "TLSv1_2"
    params, place = common.tls_params, join(path, "tls_params")
    least, most = params.tls_minimum_protocol_version, params.tls_maximum_protocol_version
    used = {"tls_minimum_protocol_version", "tls_maximum_protocol_version"}
    harmless = set()
    if least == _TLS_1_3:
        # Cipher suites are a matter of TLS 1.2 and older.
        harmless.add("cipher_suites")
    cover(params, place, problems, used=frozenset(used), harmless=frozenset(harmless))
    if _TLS_AUTO < least < _TLS_1_2:
        problems.unused(join(place, "tls_minimum_protocol_version"), "versions before TLS 1.2 are never used")
    if most != _TLS_AUTO and most < max(least, _TLS_1_2):
        problems.error(join(place, "tls_maximum_protocol_version"), "leaves no version of TLS to use")
    elif most == _TLS_1_2:
        problems.unused(join(place, "tls_maximum_protocol_version"), "TLS 1.3 is used where the peer has it")
    return "TLSv1_3" if least == _TLS_1_3 else "TLSv1_2"
