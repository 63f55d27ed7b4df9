"""A service mesh without proxies for Python."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from meshlib.clients.filters import (
        AsyncFilter,
        Filter,
        FilterAnswer,
        FilterHeaders,
        FilterRequest,
        FilterResponse,
    )
    from meshlib.clients.response_cache import ResponseCache
    from meshlib.errors import (
        BootstrapError,
        ConfigError,
        DeadlineExceeded,
        IdentityError,
        MeshError,
        ResourceError,
        RoutingError,
        UnavailableError,
    )
    from meshlib.mesh import Mesh
    from meshlib.model.custom_policy import (
        LbEndpoint,
        LbPolicy,
        LbRequest,
        LbResult,
        register_lb_policy,
    )
    from meshlib.model.endpoint import Endpoint
    from meshlib.model.load_report import LoadReport
    from meshlib.model.retry import RetryBudget
    from meshlib.runtime.context import (
        ContextExecutor,
        InboundContext,
        carry,
        current_request,
    )
    from meshlib.xds.bootstrap import Bootstrap

__all__ = [
    "AsyncFilter",
    "Bootstrap",
    "BootstrapError",
    "ConfigError",
    "ContextExecutor",
    "DeadlineExceeded",
    "Endpoint",
    "Filter",
    "FilterAnswer",
    "FilterHeaders",
    "FilterRequest",
    "FilterResponse",
    "IdentityError",
    "InboundContext",
    "LbEndpoint",
    "LbPolicy",
    "LbRequest",
    "LbResult",
    "LoadReport",
    "Mesh",
    "MeshError",
    "ResourceError",
    "ResponseCache",
    "RetryBudget",
    "RoutingError",
    "UnavailableError",
    "carry",
    "current_request",
    "integrations",
    "register_lb_policy",
]

# Loaded on first use (PEP 562): `import meshlib` costs nothing, and `import meshlib.protos` alone loads no client.
_HOMES = {
    "AsyncFilter": "meshlib.clients.filters",
    "Filter": "meshlib.clients.filters",
    "FilterAnswer": "meshlib.clients.filters",
    "FilterHeaders": "meshlib.clients.filters",
    "FilterRequest": "meshlib.clients.filters",
    "FilterResponse": "meshlib.clients.filters",
    "Bootstrap": "meshlib.xds.bootstrap",
    "Endpoint": "meshlib.model.endpoint",
    "LoadReport": "meshlib.model.load_report",
    "Mesh": "meshlib.mesh",
    "ResponseCache": "meshlib.clients.response_cache",
    **dict.fromkeys(
        ("LbEndpoint", "LbPolicy", "LbRequest", "LbResult", "register_lb_policy"), "meshlib.model.custom_policy"
    ),
    "RetryBudget": "meshlib.model.retry",
    **dict.fromkeys(("ContextExecutor", "InboundContext", "carry", "current_request"), "meshlib.runtime.context"),
    **dict.fromkeys((name for name in __all__ if name.endswith(("Error", "Exceeded"))), "meshlib.errors"),
}


def __getattr__(name: str) -> Any:
    if name == "integrations":
        return import_module("meshlib.integrations")
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
