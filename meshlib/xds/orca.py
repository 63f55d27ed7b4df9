"""Load reports (ORCA) as they come with answers: in the header or trailer `endpoint-load-metrics` or its `-bin` form.

`endpoint-load-metrics-bin` holds the message, in base64 where the transport has text only. `endpoint-load-metrics` says
how it is written: `BIN <base64>`, `JSON {...}` or `TEXT cpu_utilization:0.3,named_metrics.queue:7`.

The same message comes on a stream of its own from endpoints that report out of band.

Source: gRFC A51; Envoy, `orca_parser`.
"""

import base64
import binascii
from collections.abc import Iterable, Mapping
from math import isfinite
from types import MappingProxyType
from typing import Any, Final

from google.protobuf.message import DecodeError

from meshlib.model.load_report import LoadReport
from meshlib.model.request import Headers
from meshlib.protos import from_json, message_class

__all__ = ["HEADER", "HEADER_BIN", "MAX_METRICS", "decode_report", "encode_stream_request", "find_report"]

HEADER: Final = "endpoint-load-metrics"
HEADER_BIN: Final = "endpoint-load-metrics-bin"
MAX_BYTES: Final = 16 * 1024
"""As large as a whole block of headers usually may be."""
MAX_METRICS: Final = 100
"""Of one map of a report; what is beyond is dropped."""

_TYPE: Final = "xds.data.orca.v3.OrcaLoadReport"
_FIELDS: Final = {
    "cpu_utilization": "cpu_utilization",
    "mem_utilization": "mem_utilization",
    "application_utilization": "application_utilization",
    "rps_fractional": "qps",
    "eps": "eps",
}
_MAPS: Final = ("named_metrics", "utilization", "request_cost")


def find_report(headers: Headers | Iterable[tuple[str, str | bytes]]) -> LoadReport | None:
    """Return the report among headers or trailers; None: there is none that can be read.

    The binary header goes before the other; of each the first counts.

    Args:
        headers: With names in lower case; values of `-bin` names are bytes in gRPC.
    """
    if isinstance(headers, Headers):
        packed = headers.find(HEADER_BIN)
        text = headers.find(HEADER) if packed is None else None
        if packed is not None:
            return _of_base64(packed)
        return None if text is None or len(text) > MAX_BYTES else _of_text(text)
    text = None
    for name, value in headers:
        if name == HEADER_BIN:
            return decode_report(value) if isinstance(value, bytes) else _of_base64(value)
        if name == HEADER and text is None:
            text = value if isinstance(value, str) else value.decode("latin-1")
    return None if text is None or len(text) > MAX_BYTES else _of_text(text)


def decode_report(data: bytes) -> LoadReport | None:
    """Return the report of a serialised message; None: it is not one."""
    if len(data) > MAX_BYTES:
        return None
    try:
        return _of_message(message_class(_TYPE).FromString(data))
    except DecodeError:
        return None


def _of_base64(text: str) -> LoadReport | None:
    # gRPC leaves the padding out, HTTP servers put it in.
    try:
        return decode_report(base64.b64decode(text + "=" * (-len(text) % 4), validate=True)) if text else None
    except (binascii.Error, ValueError):
        return None


def _of_text(value: str) -> LoadReport | None:
    kind, _, rest = value.partition(" ")
    match kind:
        case "BIN":
            return _of_base64(rest.strip())
        case "JSON":
            return _of_json(rest)
        case "TEXT":
            return _of_pairs(rest)
    return None


def _of_json(text: str) -> LoadReport | None:
    from google.protobuf.json_format import ParseError  # 2 MB, which those who get no JSON do without

    try:
        return _of_message(from_json(_TYPE, text))
    except (ParseError, ValueError, RecursionError):
        return None


def _of_pairs(text: str) -> LoadReport | None:
    """Parse `name:value` pairs; one that is wrong makes the whole of no use, as in Envoy. `=` is taken for `:` too."""
    fields: dict[str, float] = {}
    maps: dict[str, dict[str, float]] = {}
    for entry in text.split(","):
        entry = entry.strip()
        if not entry:
            continue
        at = min((place for place in (entry.find(":"), entry.find("=")) if place > 0), default=0)
        name, written = entry[:at].strip(), entry[at + 1 :].strip()
        try:
            number = float(written)
        except ValueError:
            return None
        if not at or not isfinite(number):
            return None
        kind, dot, key = name.partition(".")
        found = maps.setdefault(kind, {}) if dot and key and kind in _MAPS else fields
        known = key if found is not fields else _FIELDS.get(name, "")
        if not known or known in found:
            return None
        found[known] = number
    frozen: dict[str, Any] = {kind: _frozen(values) for kind, values in maps.items()}
    return LoadReport(**_valid(fields), **frozen)


def _of_message(message: Any) -> LoadReport:
    fields = {ours: getattr(message, theirs) for theirs, ours in _FIELDS.items()}
    if not fields["qps"]:
        fields["qps"] = float(message.rps)  # the deprecated whole number
    maps: dict[str, Any] = {kind: _frozen(values) for kind in _MAPS if (values := getattr(message, kind))}
    return LoadReport(**_valid(fields), **maps)


def _valid(fields: Mapping[str, float]) -> dict[str, Any]:
    """Leave out what a recorder would not have taken: negative numbers and what is none."""
    return {name: value for name, value in fields.items() if isfinite(value) and value >= 0}


def _frozen(values: Mapping[str, float]) -> Mapping[str, float]:
    kept = [(name, value) for name, value in values.items() if isfinite(value)]
    return MappingProxyType(dict(kept[:MAX_METRICS]))


def encode_stream_request(period_s: float) -> bytes:
    """Return the request for a stream of reports, one every `period_s` (a server may have a longer minimum)."""
    message = message_class("xds.service.orca.v3.OrcaLoadReportRequest")()
    message.report_interval.FromNanoseconds(round(period_s * 1e9))
    return bytes(message.SerializeToString())
