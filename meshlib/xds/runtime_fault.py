"""Runtime values of injected faults, and those for the requests of one downstream cluster.

A request says of which cluster it is (`x-envoy-downstream-service-cluster`). Then keys with the name of that cluster
count in place of the general ones: `fault.http.web.abort.abort_percent` and not `fault.http.abort.abort_percent`, even
where only the latter has a value. The length of a delay alone falls back to the general key.

Source: Envoy `FaultFilter`; which key counts when was asked of Envoy 1.40.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Final, TypeVar

from meshlib.model.discovery import RuntimeValue
from meshlib.model.matcher import Fraction
from meshlib.model.route import FaultAbort, FaultDelay, FaultPolicy, FaultRateLimit
from meshlib.xds.runtime_numbers import number, share_of

__all__ = ["fault_with_runtime"]

_Values = Mapping[str, RuntimeValue]
T = TypeVar("T", FaultDelay, FaultAbort, FaultRateLimit)

MAX_GRPC_STATUS: Final = 16
_PREFIX: Final = "fault.http."
_DELAY_SHARE: Final = "delay.fixed_delay_percent"
_DELAY_MS: Final = "delay.fixed_duration_ms"
_ABORT_SHARE: Final = "abort.abort_percent"
_HTTP_STATUS: Final = "abort.http_status"
_GRPC_STATUS: Final = "abort.grpc_status"
_RATE_SHARE: Final = f"{_PREFIX}rate_limit.response_percent"
_MAX_ACTIVE: Final = f"{_PREFIX}max_active_faults"
_OF_CALLERS: Final = re.compile(
    f"{re.escape(_PREFIX)}(.*)\\.(?:{'|'.join(map(re.escape, (_DELAY_SHARE, _DELAY_MS, _ABORT_SHARE, _HTTP_STATUS, _GRPC_STATUS)))})",
    re.DOTALL,
)


def fault_with_runtime(policy: FaultPolicy, runtime: _Values) -> FaultPolicy:
    """Return a fault with the runtime values in force; itself when they change nothing.

    Keys that the resource names itself stand for the general ones, not for those of a downstream cluster.
    """
    own = dict(policy.runtime_keys)
    limit, active = policy.rate_limit, number(runtime, own.get("max_active", _MAX_ACTIVE))
    if limit is not None:
        limit = _with_share(limit, limit.share.runtime_key or _RATE_SHARE, runtime)
    general = replace(
        policy,
        delay=None if policy.delay is None else _delay(policy.delay, runtime),
        abort=None if policy.abort is None else _abort(policy.abort, runtime),
        rate_limit=limit,
        max_active=policy.max_active if active is None else int(active),
    )
    callers = {found[1] for found in map(_OF_CALLERS.fullmatch, runtime) if found is not None}
    by_caller = {name: _for_caller(policy, general, f"{_PREFIX}{name}.", runtime) for name in callers}
    others = _for_caller(policy, general, "", {})
    changed = replace(general, by_caller=MappingProxyType(by_caller), for_callers=None if others == general else others)
    return policy if changed == policy else changed


def _for_caller(policy: FaultPolicy, general: FaultPolicy, prefix: str, runtime: _Values) -> FaultPolicy:
    """Return what holds for the requests of one downstream cluster.

    Args:
        policy: The resource's own.
        general: What holds for requests that do not say of which cluster they are.
    """
    delay, abort = policy.delay, policy.abort
    if delay is not None and general.delay is not None:
        timed = replace(delay, fixed_s=general.delay.fixed_s, instead_s=general.delay.instead_s)
        delay = _with_share(_lasting(timed, prefix + _DELAY_MS, runtime), prefix + _DELAY_SHARE, runtime)
    if abort is not None:
        abort = _with_share(abort, prefix + _ABORT_SHARE, runtime)
        abort = _answering(abort, prefix + _HTTP_STATUS, prefix + _GRPC_STATUS, runtime)
    return replace(general, delay=delay, abort=abort)


def _delay(delay: FaultDelay, runtime: _Values) -> FaultDelay:
    timed = _lasting(delay, dict(delay.runtime_keys).get("fixed_s", _PREFIX + _DELAY_MS), runtime)
    return _with_share(timed, delay.share.runtime_key or _PREFIX + _DELAY_SHARE, runtime)


def _abort(abort: FaultAbort, runtime: _Values) -> FaultAbort:
    keys = dict(abort.runtime_keys)
    http, grpc = keys.get("http_status", _PREFIX + _HTTP_STATUS), keys.get("grpc_status", _PREFIX + _GRPC_STATUS)
    return _with_share(
        _answering(abort, http, grpc, runtime), abort.share.runtime_key or _PREFIX + _ABORT_SHARE, runtime
    )


def _lasting(delay: FaultDelay, key: str, runtime: _Values) -> FaultDelay:
    found_ms = number(runtime, key)
    if found_ms is None:
        return delay
    seconds = int(found_ms) / 1000
    return replace(delay, instead_s=seconds) if delay.by_header else replace(delay, fixed_s=seconds)


def _answering(abort: FaultAbort, http_key: str, grpc_key: str, runtime: _Values) -> FaultAbort:
    """Return an abort with other statuses; those of the kind that it has, or that the request may ask for."""
    http, grpc = number(runtime, http_key), number(runtime, grpc_key)
    if http is not None and 200 <= http < 600 and (abort.http_status or abort.by_header):
        abort = replace(abort, http_status=int(http))
    if grpc is not None and grpc <= MAX_GRPC_STATUS and (abort.grpc_status is not None or abort.by_header):
        abort = replace(abort, grpc_status=int(grpc))
    return abort


def _with_share(fault: T, key: str, runtime: _Values) -> T:
    found = share_of(fault.share, key, runtime)
    is_given = fault.by_header and isinstance(runtime.get(key), int | float | Fraction)
    if found is fault.share and not is_given:
        return fault
    return replace(fault, share=found, is_share_fixed=is_given)
