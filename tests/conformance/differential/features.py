"""What meshlib refuses, and says so: fields that docs/reference/xds-features.md lists, and rules of the protos.

Neither is written down a second time. The tool that writes the page is asked, and the descriptors are.
"""

import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

from meshlib.protos import from_any
from meshlib.xds.constraints import check_constraints
from meshlib.xds.problems import Problems

__all__ = ["is_listed", "is_rule_of_policy"]

TOOLS = Path(__file__).resolve().parents[3] / "tools"
LISTED = frozenset({"Refused", "In part"})
ANY = "google.protobuf.Any"
POLICIES = "load_balancing_policy.policies["


@cache
def _states() -> dict[tuple[str, str], set[str]]:
    sys.path.append(str(TOOLS))
    try:
        from build_xds_features import field_states  # a script: it is no module of any package
    finally:
        sys.path.remove(str(TOOLS))
    found: dict[tuple[str, str], set[str]] = field_states()
    return found


def is_listed(resource: Any, path: str) -> bool:
    """Whether the features page says that the field at a path may be refused.

    Args:
        resource: The message that was decoded.
        path: As an error has it; what an `Any` holds is part of the path.
    """
    *_, (message, name, _) = _steps(resource, path)
    return bool(_states().get((message.DESCRIPTOR.full_name, name), set()) & LISTED)


def is_rule_of_policy(resource: Any, path: str, reason: str) -> bool:
    """Whether a reason is a rule of the protos for what a cluster's `load_balancing_policy` has packed."""
    if not path.startswith(POLICIES):
        return False
    for message, _, rest in _steps(resource, path):
        if message.DESCRIPTOR.full_name.startswith("envoy.extensions.load_balancing_policies."):
            broken = Problems()
            check_constraints(message, "", broken)
            if f"{rest}: {reason}" in broken.errors:
                return True
    return False


def _steps(message: Any, path: str) -> Iterator[tuple[Any, str, str]]:
    """Yield for each step of a path the message, the name of the field in it, and what of the path begins with that."""
    rest = path
    while rest:
        if message.DESCRIPTOR.full_name == ANY:
            try:
                message = from_any(message)
            except (DecodeError, KeyError):
                return
        name, index, after = _step(rest)
        yield message, name, rest
        if name not in message.DESCRIPTOR.fields_by_name or not after:
            return
        value = getattr(message, name)
        value = value if index is None else value[index]
        if not hasattr(value, "DESCRIPTOR"):
            return
        message, rest = value, after


def _step(path: str) -> tuple[str, int | str | None, str]:
    """Return the first field of a path, the index or key in it, and the rest."""
    end = next((place for place, char in enumerate(path) if char in ".["), len(path))
    name, rest = path[:end], path[end:]
    if rest.startswith('["'):
        key, _, rest = rest[2:].partition('"]')
        return name, key, rest.removeprefix(".")
    if rest.startswith("["):
        number, _, rest = rest[1:].partition("]")
        return name, int(number), rest.removeprefix(".")
    return name, None, rest.removeprefix(".")
