"""TLS contexts of clusters and listeners: where certificate and trust come from, and who the peer has to be.

What restricts the peers that are accepted is never ignored: it is honoured or the resource is refused.
"""

from collections.abc import Callable
from typing import Any, Final, TypeVar

from meshlib.model.secret import ClientTls, SecretRef, ServerTls, SniSource, TlsParameters
from meshlib.xds.decode_common import any_type, cover, is_discovered_by_ads, join, unpack, wrapped
from meshlib.xds.decode_secret import tls_certificate
from meshlib.xds.decode_validation import NO_VALIDATION, Validation, provider_name, validation_context
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
TICKET_KEY_BYTES: Final = 80
"""Of a session ticket key: its name, a key for its HMAC, one for AES."""
MAX_ALPN: Final = 254
"""Bytes of a protocol's name, in Envoy; on the wire one more would do."""
_TLS_AUTO, _TLS_1_2, _TLS_1_3 = 0, 3, 4
# What BoringSSL and OpenSSL both know by the same name.
_CIPHERS: Final = frozenset(
    f"ECDHE-{key}-{rest}"
    for key in ("ECDSA", "RSA")
    for rest in ("AES128-GCM-SHA256", "AES256-GCM-SHA384", "CHACHA20-POLY1305", "AES128-SHA", "AES256-SHA")
) | {"ECDHE-RSA-AES128-SHA256", "AES128-GCM-SHA256", "AES256-GCM-SHA384", "AES128-SHA", "AES256-SHA"}
_CURVES: Final = {"X25519": "X25519", "P-256": "prime256v1", "P-384": "secp384r1", "P-521": "secp521r1"}
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
    used = frozenset({"common_tls_context", "sni", "auto_host_sni", "auto_sni_san_validation"})
    cover(message, path, problems, used=used, harmless=_UPSTREAM_HARMLESS)
    if "\0" in message.sni:
        problems.error(join(path, "sni"), "has a NUL")
    place = join(path, "common_tls_context")
    common = message.common_tls_context
    certificate, trust, rest = _common(common, place, problems)
    if message.auto_sni_san_validation and trust is None:
        problems.error(join(path, "auto_sni_san_validation"), "needs a trusted CA")
    minimum, parameters = _parameters(common, place, problems)
    return ClientTls(
        certificate=certificate,
        trust=trust,
        sans=rest.sans,
        sni=message.sni,
        alpn=tuple(common.alpn_protocols),
        minimum_version=minimum,
        checks=rest.checks,
        parameters=parameters,
        sni_source=SniSource.HOSTNAME if message.auto_host_sni else SniSource.CONFIG,
        san_is_sni=message.auto_sni_san_validation,
    )


def _server_tls(message: Any, path: str, problems: Problems) -> ServerTls:
    used = frozenset({"common_tls_context", "require_client_certificate"})
    if not wrapped(message, "require_sni"):
        used |= {"require_sni"}
    cover(message, path, problems, used=used, harmless=_DOWNSTREAM_HARMLESS)
    if message.HasField("session_ticket_keys_sds_secret_config"):
        _sds(
            message.session_ticket_keys_sds_secret_config, join(path, "session_ticket_keys_sds_secret_config"), problems
        )
    for index, source in enumerate(message.session_ticket_keys.keys):
        key = source.inline_bytes or source.inline_string.encode()
        if source.WhichOneof("specifier") in ("inline_bytes", "inline_string") and len(key) != TICKET_KEY_BYTES:
            where = f"{join(path, 'session_ticket_keys.keys')}[{index}]"
            problems.error(where, f"must have {TICKET_KEY_BYTES} bytes, has {len(key)}")
    place = join(path, "common_tls_context")
    common = message.common_tls_context
    certificate, trust, rest = _common(common, place, problems)
    if certificate is None:
        problems.error(place, "a certificate is required")
        certificate = SecretRef()
    is_required = bool(wrapped(message, "require_client_certificate"))
    if is_required and trust is None:
        problems.error(join(path, "require_client_certificate"), "needs a validation context")
    elif trust is None and rest.has_pins:
        # Python's `ssl` cannot ask for a certificate without verifying its chain.
        problems.error(join(place, "validation_context"), "pins are not supported in a server without a trusted CA")
    minimum, parameters = _parameters(common, place, problems)
    return ServerTls(
        certificate=certificate,
        trust=trust,
        sans=rest.sans,
        require_client_certificate=is_required,
        alpn=tuple(common.alpn_protocols),
        minimum_version=minimum,
        checks=rest.checks,
        parameters=parameters,
    )


def _common(message: Any, path: str, problems: Problems) -> tuple[SecretRef | None, SecretRef | None, Validation]:
    """Return our certificate, the trust, and what else is asked of the peer."""
    cover(message, path, problems, used=_COMMON_USED, harmless=frozenset({"key_log"}))
    for index, name in enumerate(message.alpn_protocols):
        if len(name.encode()) > MAX_ALPN:
            problems.error(f"{join(path, 'alpn_protocols')}[{index}]", f"must have at most {MAX_ALPN} bytes")
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


def _validation(message: Any, path: str, problems: Problems) -> tuple[SecretRef | None, Validation]:
    kind = message.WhichOneof("validation_context_type")
    place = join(path, kind or "validation_context_type")
    trust: SecretRef | None = None
    rest = NO_VALIDATION
    match kind:
        case "validation_context":
            rest = validation_context(message.validation_context, place, problems)
            trust = _ref(rest)
            if rest == NO_VALIDATION:
                problems.unused(place, "is empty")
        case "validation_context_sds_secret_config":
            trust = _sds(message.validation_context_sds_secret_config, place, problems)
        case "validation_context_certificate_provider_instance":
            trust = _provider(message.validation_context_certificate_provider_instance, place, problems)
        case "combined_validation_context":
            trust, rest = _combined(message.combined_validation_context, place, problems)
        case None:
            return None, NO_VALIDATION
    if rest.sans and trust is None:
        problems.error(place, "the names of the peer say nothing without a trusted CA")
    return trust, rest


def _combined(message: Any, path: str, problems: Problems) -> tuple[SecretRef | None, Validation]:
    sds, instance = "validation_context_sds_secret_config", "validation_context_certificate_provider_instance"
    used = frozenset({"default_validation_context", sds, instance})
    cover(message, path, problems, used=used, harmless=frozenset())
    place = join(path, "default_validation_context")
    rest = validation_context(message.default_validation_context, place, problems)
    default = _ref(rest)
    # What is discovered is merged over the default.
    if message.HasField(sds):
        trust: SecretRef | None = _sds(message.validation_context_sds_secret_config, join(path, sds), problems)
    elif message.HasField(instance):
        trust = _provider(message.validation_context_certificate_provider_instance, join(path, instance), problems)
    else:
        trust = default
        if trust is None and not rest.has_pins:
            problems.error(join(path, sds), "is required")
    if default is not None and trust is not default:
        source = sds if message.HasField(sds) else instance
        if rest.trust is not None and rest.trust.bundles is not None:
            # A validator of its own would stay in place of the roots that are discovered.
            problems.error(join(place, "custom_validator_config"), f"is not supported together with {source}")
        problems.unused(place, f"its roots are replaced by those of {source}")
    return trust, rest


def _ref(found: Validation) -> SecretRef | None:
    if found.provider:
        return SecretRef(provider=found.provider)
    return None if found.trust is None else SecretRef(inline=found.trust)


def _sds(message: Any, path: str, problems: Problems) -> SecretRef:
    if not message.HasField("sds_config"):
        problems.error(join(path, "sds_config"), "is required (there are no static secrets)")
    else:
        is_discovered_by_ads(message.sds_config, join(path, "sds_config"), problems)
    return SecretRef(sds_name=message.name)


def _provider(message: Any, path: str, problems: Problems) -> SecretRef:
    return SecretRef(provider=provider_name(message, path, problems))


def _parameters(common: Any, path: str, problems: Problems) -> tuple[str, TlsParameters]:
    """Return the oldest TLS version that both the resource and we allow (never below 1.2), and the other parameters."""
    if not common.HasField("tls_params"):
        return "TLSv1_2", TlsParameters()
    params, place = common.tls_params, join(path, "tls_params")
    least, most = params.tls_minimum_protocol_version, params.tls_maximum_protocol_version
    used = frozenset({"tls_minimum_protocol_version", "tls_maximum_protocol_version", "cipher_suites", "ecdh_curves"})
    cover(params, place, problems, used=used, harmless=frozenset())
    if _TLS_AUTO < least < _TLS_1_2:
        problems.unused(join(place, "tls_minimum_protocol_version"), "versions before TLS 1.2 are never used")
    if most != _TLS_AUTO and most < max(least, _TLS_1_2):
        problems.error(join(place, "tls_maximum_protocol_version"), "leaves no version of TLS to use")
    ciphers = _ciphers(params, place, problems)
    if least == _TLS_1_3 and ciphers:
        problems.unused(join(place, "cipher_suites"), "they are a matter of TLS 1.2")
        ciphers = ()
    maximum = "TLSv1_2" if most == _TLS_1_2 else ""
    return "TLSv1_3" if least == _TLS_1_3 else "TLSv1_2", TlsParameters(
        maximum, ciphers, _curve(params, place, problems)
    )


def _ciphers(params: Any, path: str, problems: Problems) -> tuple[str, ...]:
    """Return the cipher suites. Groups of equal preference (`[A|B]`) are read in their order."""
    found = []
    for index, text in enumerate(params.cipher_suites):
        for name in text.strip("[]").split("|") if text.startswith("[") and text.endswith("]") else (text,):
            if name not in _CIPHERS:
                problems.error(
                    f"{join(path, 'cipher_suites')}[{index}]", f"{name[:100]!r} is not a cipher suite of TLS 1.2"
                )
            found.append(name)
    return tuple(found)


def _curve(params: Any, path: str, problems: Problems) -> str:
    place = join(path, "ecdh_curves")
    if not params.ecdh_curves:
        return ""
    if len(params.ecdh_curves) > 1:
        problems.error(place, "is not supported with more than one curve")
        return ""
    name = _CURVES.get(params.ecdh_curves[0])
    if name is None:
        problems.error(f"{place}[0]", f"is not supported (only {', '.join(_CURVES)})")
    return name or ""
