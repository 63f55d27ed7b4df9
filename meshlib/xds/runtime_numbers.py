"""Runtime values as numbers and as shares of requests.

Source: Envoy `SnapshotImpl::getInteger`, `SnapshotImpl::featureEnabled`.
"""

from collections.abc import Mapping
from dataclasses import replace

from meshlib.model.discovery import RuntimeValue
from meshlib.model.matcher import Fraction

__all__ = ["number", "share_of"]


def number(runtime: Mapping[str, RuntimeValue], key: str) -> float | None:
    """Return a value that is a number from 0 on; None: there is none such."""
    found = runtime.get(key)
    return None if found is None or isinstance(found, bool | Fraction) or found < 0 else found


def share_of(share: Fraction, key: str, runtime: Mapping[str, RuntimeValue]) -> Fraction:
    """Return the share that a value says; the share itself if it says none, or the same."""
    found = runtime.get(key) if key else None
    if found is None or isinstance(found, bool):
        return share
    if not isinstance(found, Fraction):
        if found < 0:
            return share
        # "The runtime value is assumed to be specified as an integer": a number of requests out of a hundred.
        found = Fraction(min(100, int(found)))
    found = replace(found, runtime_key=share.runtime_key)
    return share if found == share else found
