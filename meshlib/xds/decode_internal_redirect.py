"""Redirects that the mesh follows itself."""

from typing import Any, Final

from meshlib.model.route import InternalRedirectPolicy
from meshlib.xds.decode_common import any_type, cover, join, unpack, wrapped
from meshlib.xds.problems import Problems

__all__ = ["internal_redirect"]

_CODES: Final = frozenset({301, 302, 303, 307, 308})
_PREDICATE: Final = "envoy.extensions.internal_redirect."
_PREVIOUS: Final = _PREDICATE + "previous_routes.v3.PreviousRoutesConfig"
_ALLOWED: Final = _PREDICATE + "allow_listed_routes.v3.AllowListedRoutesConfig"
_SAFE: Final = _PREDICATE + "safe_cross_scheme.v3.SafeCrossSchemeConfig"


def internal_redirect(message: Any, path: str, problems: Problems) -> InternalRedirectPolicy:
    """Decode an InternalRedirectPolicy."""
    used = frozenset(field.name for field in message.DESCRIPTOR.fields)
    cover(message, path, problems, used=used, harmless=frozenset())
    kinds: set[str] = set()
    allowed: frozenset[str] | None = None
    for index, predicate in enumerate(message.predicates):
        place = f"{join(path, 'predicates')}[{index}]"
        kind = any_type(predicate.typed_config)
        kinds.add(kind)
        if kind == _ALLOWED:
            config = unpack(predicate.typed_config, join(place, "typed_config"), problems)
            names = frozenset() if config is None else frozenset(config.allowed_route_names)
            allowed = names if allowed is None else allowed & names
        elif kind not in (_PREVIOUS, _SAFE):
            problems.error(place, f"{kind or predicate.name or 'an empty predicate'} is not supported")
    redirects = wrapped(message, "max_internal_redirects")
    # "Codes that are not redirects are ignored."
    codes = frozenset(message.redirect_response_codes) & _CODES if message.redirect_response_codes else {302}
    return InternalRedirectPolicy(
        max_redirects=1 if redirects is None else redirects,
        codes=frozenset(codes),
        allows_cross_scheme=message.allow_cross_scheme_redirect,
        copied_headers=tuple(dict.fromkeys(name.lower() for name in message.response_headers_to_copy)),
        avoids_previous_routes=_PREVIOUS in kinds,
        allowed_routes=allowed,
        is_safe_cross_scheme=_SAFE in kinds,
    )
