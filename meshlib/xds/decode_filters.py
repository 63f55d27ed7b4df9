"""The HTTP filter chain of a connection manager: which filters take part, in which order."""

from dataclasses import dataclass
from typing import Any, Final

from meshlib.model.authorization import Rbac
from meshlib.model.route import FaultPolicy
from meshlib.model.session import SessionPolicy
from meshlib.xds.decode_common import any_type, cover, join, unpack
from meshlib.xds.decode_fault import FAULT_TYPE, fault_policy
from meshlib.xds.decode_rbac import RBAC_TYPE, decode_rbac
from meshlib.xds.decode_session import SESSION_TYPE, session_policy
from meshlib.xds.problems import Problems

__all__ = ["FilterChain", "decode_filters"]

ROUTER_TYPE: Final = "envoy.extensions.filters.http.router.v3.Router"

_ROUTER_REFUSED: Final = frozenset({"upstream_http_filters", "strict_check_headers", "respect_expected_rq_timeout"})


@dataclass(frozen=True, slots=True)
class FilterChain:
    """Attributes:
    has_fault: A fault filter takes part, with `fault` as its own configuration.
    has_session: A filter for stateful sessions takes part, with `session` as its own configuration.
    rbac: In filter order.
    """

    has_fault: bool
    fault: FaultPolicy | None
    rbac: tuple[Rbac, ...]
    has_session: bool = False
    session: SessionPolicy | None = None


def decode_filters(filters: Any, path: str, problems: Problems, *, is_server: bool) -> FilterChain:
    """Decode `HttpConnectionManager.http_filters`.

    A filter that meshlib does not have is skipped if it is optional, else it is an error. The last filter must be the
    router, and no other one may be (gRFC A39).

    Args:
        filters: The repeated field.
        path: Its path.
        problems: Takes the errors.
        is_server: Filters of requests that come in: authorization, but no faults.
    """
    has_fault, fault, rbac = False, None, []
    has_session, session = False, None
    names: set[str] = set()
    routers = []
    for index, item in enumerate(filters):
        place = f"{path}[{index}]"
        if item.name in names:
            problems.error(join(place, "name"), f"{item.name!r} is the name of an earlier filter")
        names.add(item.name)
        if not item.HasField("typed_config"):
            # Without a configuration there is no type; its discovery (ECDS) is not supported.
            if item.is_optional:
                problems.unused(place, "is not supported and optional")
            else:
                problems.error(join(place, item.WhichOneof("config_type") or "typed_config"), "is not supported")
            continue
        kind = any_type(item.typed_config)
        config_path = join(place, "typed_config")
        if kind == ROUTER_TYPE:
            routers.append(index)
            _check_router(item, config_path, problems)
        elif kind == FAULT_TYPE and not is_server:
            if has_fault:
                problems.error(place, "is a second fault filter, only one is supported")
            has_fault = True
            message = unpack(item.typed_config, config_path, problems)
            # A disabled filter takes part where a route configures it.
            if message is not None:
                decoded = fault_policy(message, config_path, problems)
                fault = None if item.disabled else decoded
        elif kind == SESSION_TYPE and not is_server:
            if has_session:
                problems.error(place, "is a second filter for stateful sessions, only one is supported")
            has_session = True
            message = unpack(item.typed_config, config_path, problems)
            if message is not None:
                policy = session_policy(message, config_path, problems)
                session = None if item.disabled else policy
        elif kind == RBAC_TYPE and is_server:
            message = unpack(item.typed_config, config_path, problems)
            decoded_rbac = None if message is None else decode_rbac(message, item.name, config_path, problems)
            if item.disabled:
                problems.unused(place, "is disabled")
            elif decoded_rbac is not None:
                rbac.append(decoded_rbac)
        elif item.is_optional or item.disabled:
            problems.unused(place, f"{kind} is not supported and {'optional' if item.is_optional else 'disabled'}")
        else:
            problems.error(place, f"filter {kind or item.name!r} is not supported")
    if routers != [len(filters) - 1]:
        problems.error(path, _router_fault(routers, len(filters)))
    return FilterChain(has_fault, fault, tuple(rbac), has_session, session)


def _router_fault(routers: list[int], count: int) -> str:
    if not count:
        return "is empty; the router filter is required"
    if not routers:
        return "the last filter must be the router"
    return f"the router must be the last filter and the only one, is at {routers}"


def _check_router(item: Any, path: str, problems: Problems) -> None:
    message = unpack(item.typed_config, path, problems)
    if message is not None:
        cover(message, path, problems, used=frozenset(), refused=_ROUTER_REFUSED)
    if item.disabled:
        problems.error(path, "the router cannot be disabled")
