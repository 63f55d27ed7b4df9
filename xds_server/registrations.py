"""Registrations in JSON: bodies of the HTTP interface, and the file that carries leases over a restart."""

import ipaddress
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from xds_server.identity import is_label
from xds_server.model import Instance
from xds_server.private_files import write_atomically
from xds_server.registry import Lease

DEFAULT_TTL_S = 5.0
MIN_TTL_S, MAX_TTL_S = 0.5, 86_400.0
_MAX_WEIGHT = 1_000_000
_MAX_LABELS, _MAX_TEXT = 64, 253
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,252}")
_PROTOCOLS = ("http", "grpc")
_FIELDS = frozenset(
    {
        "service",
        "namespace",
        "address",
        "port",
        "labels",
        "service_account",
        "service_port",
        "protocol",
        "weight",
        "locality",
        "ready",
        "ttl_s",
    }
)
_LOCALITY_FIELDS = ("region", "zone", "sub_zone")


def parse_registration(instance_id: str, body: object) -> tuple[Instance, float]:
    """Read a registration's body.

    Returns:
        The instance and its lifetime in seconds.

    Raises:
        ValueError: It cannot be used; the text names the field.
    """
    if not _ID.fullmatch(instance_id):
        raise ValueError(
            f"id {instance_id!r} must be 1 to 253 letters, digits and . _ : - and start with one of the first"
        )
    if not isinstance(body, dict):
        raise ValueError("the body must be a JSON object")
    if unknown := sorted(body.keys() - _FIELDS):
        raise ValueError(f"unknown field {unknown[0]!r}; known are {', '.join(sorted(_FIELDS))}")
    fields: Mapping[str, Any] = body
    service = _label(fields, "service")
    labels = _labels(fields.get("labels", {}))
    labels.setdefault("app", service)
    locality = _locality(fields.get("locality", {}))
    protocol = fields.get("protocol", "http")
    if protocol not in _PROTOCOLS:
        raise ValueError(f"protocol must be {' or '.join(_PROTOCOLS)}, not {protocol!r}")
    account = fields.get("service_account", "")
    ready = fields.get("ready", True)
    if not isinstance(ready, bool):
        raise ValueError(f"ready must be true or false, not {ready!r}")
    instance = Instance(
        id=instance_id,
        service=service,
        namespace=_label(fields, "namespace", "default"),
        address=_address(fields.get("address")),
        port=_integer(fields, "port", None, 1, 65535),
        service_port=_integer(fields, "service_port", 80, 1, 65535),
        protocol=protocol,
        labels=tuple(sorted(labels.items())),
        service_account=_label(fields, "service_account") if account != "" else "",
        weight=_integer(fields, "weight", 1, 1, _MAX_WEIGHT),
        **locality,
        ready=ready,
    )
    return instance, _ttl(fields.get("ttl_s", DEFAULT_TTL_S))


def describe(lease: Lease, now: float) -> dict[str, Any]:
    """Return a lease as JSON data, the body's fields plus `id` and `expires_in_s`."""
    fields = asdict(lease.instance)
    locality = {name: fields.pop(name) for name in _LOCALITY_FIELDS}
    return {
        **fields,
        "labels": dict(lease.instance.labels),
        "locality": locality,
        "ttl_s": lease.ttl_s,
        "expires_in_s": round(max(0.0, lease.expires_at - now), 3),
        "is_held": lease.is_held,
    }


def save_leases(path: Path, leases: Iterable[Lease]) -> None:
    """Write all leases, without their age: after a restart each starts anew.

    Raises:
        OSError: The file cannot be written.
    """
    entries = []
    for lease in leases:
        entry = describe(lease, 0.0)
        del entry["expires_in_s"], entry["is_held"]
        entries.append(entry)
    write_atomically(path, json.dumps({"leases": entries}, indent=1).encode())


def load_leases(path: Path) -> tuple[tuple[Instance, float], ...]:
    """Read what `save_leases` wrote; nothing when there is no such file.

    Raises:
        ValueError: The file is damaged.
        OSError: It cannot be read.
    """
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return ()
    try:
        entries = json.loads(text)["leases"]
        return tuple(parse_registration(entry.pop("id"), entry) for entry in entries)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}); remove it, services register again by themselves") from error


def _label(fields: Mapping[str, Any], name: str, default: str | None = None) -> str:
    value = fields.get(name, default)
    if value is None:
        raise ValueError(f"{name} is missing")
    if not isinstance(value, str) or not is_label(value):
        raise ValueError(f"{name} must be a DNS label (lower-case letters, digits and '-'), not {value!r}")
    return value


def _integer(fields: Mapping[str, Any], name: str, default: int | None, low: int, high: int) -> int:
    value = fields.get(name, default)
    if value is None:
        raise ValueError(f"{name} is missing")
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"{name} must be an integer from {low} to {high}, not {value!r}")
    return value


def _address(value: object) -> str:
    if value is None:
        raise ValueError("address is missing")
    try:
        if not isinstance(value, str) or "%" in value:  # a zone means something on its own machine only
            raise ValueError
        address = ipaddress.ip_address(value)
    except ValueError:
        raise ValueError(f"address must be an IP address, not {value!r}") from None
    if address.is_unspecified or address.is_multicast:
        raise ValueError(f"address must be one that clients can connect to, not {value!r}")
    return str(address)


def _labels(value: object) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(each, str) for each in (*value, *value.values())):
        raise ValueError("labels must be an object of strings")
    if len(value) > _MAX_LABELS:
        raise ValueError(f"labels has {len(value)} entries, at most {_MAX_LABELS} are kept")
    _check_texts("labels", (*value, *value.values()))
    return dict(value)


def _check_texts(field: str, texts: Iterable[str]) -> None:
    """Refuse what would be a line of its own in somebody's log, or large."""
    for text in texts:
        if len(text) > _MAX_TEXT or not text.isprintable():
            raise ValueError(f"{field}: {text[:100]!r} must be at most {_MAX_TEXT} printable characters")


def _locality(value: object) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(each, str) for each in value.values()):
        raise ValueError("locality must be an object of strings")
    if unknown := sorted(value.keys() - set(_LOCALITY_FIELDS)):
        raise ValueError(f"locality has the unknown field {unknown[0]!r}; known are {', '.join(_LOCALITY_FIELDS)}")
    _check_texts("locality", value.values())
    return dict(value)


def _ttl(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError(f"ttl_s must be a number of seconds, not {value!r}")
    if not MIN_TTL_S <= value <= MAX_TTL_S:
        raise ValueError(f"ttl_s must be from {MIN_TTL_S:g} to {MAX_TTL_S:g} seconds, not {value!r}")
    return float(value)
