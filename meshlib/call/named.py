"""Which endpoints a request names for itself, for the `override_host` policy.

Source: Envoy, `OverrideHostLoadBalancer::getSelectedHosts`.
"""

from collections.abc import Sequence

from meshlib.model.request import Headers

__all__ = ["named_endpoints"]


def named_endpoints(headers: Headers, names: Sequence[str]) -> list[str]:
    """Return addresses in the order of preference: `a:1, b:1` in the first entry of each of some headers.

    Args:
        names: In lower case.
    """
    found: list[str] = []
    for name in names:
        for part in (headers.get(name) or "").split(","):
            address = part.strip()
            if address:
                found.append(f"unix:{address}" if address[0] == "/" else address)
    return found
