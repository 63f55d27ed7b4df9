"""Random substitution formats: of the time, of the first value there is, and of bodies."""

import json
import random
from typing import Any

from meshlib.substitution import check_format

__all__ = ["body_format", "made_choice", "made_time"]

Json = dict[str, Any]

TIME_PIECES = (
    *(f"%{letter}" for letter in "aAbBcCdDeFgGhHIjklmMprRsSTtuUVwWxXyYzZPQ+"), "%f", *(f"%{digits}f" for digits in "12369"),
    *("%%", "%", "%E3S", "%E*S", "%E*f", "%E6f", "%E0S", "%E4Y", "%Ez", "%E*z", "%ET", "%:z", "%::z", "%:::z"),
    *("%EY", "%Ec", "%ES", "%Od", "%OY", "%Ot", "E3S", "s", "3f", "/", " ", "T", ":", ".", "x", "%n", "%%n"),
)  # fmt: skip
OPERATORS = (
    "ROUTE_NAME", "UPSTREAM_HOST", "UPSTREAM_CLUSTER", "RESPONSE_CODE_DETAILS", "RESPONSE_FLAGS", "NO_SUCH", 1,
    *({"command": "REQ", "param": name} for name in ("x-1", "x-2", "x-9", "x-9?x-1", "a b")),
    {"command": "REQ", "param": "x-1", "max_length": 1}, {"command": "REQ", "param": "x-1", "max_length": 0},
    {"command": "QUERY_PARAM", "param": "q"}, {"command": "RESP", "param": "x-up"}, {"command": "ROUTE_NAME", "param": ""},
    {"command": "METADATA", "param": "ROUTE:ns:k"}, {"command": "START_TIME", "param": "%s"}, {"command": "PATH", "max_length": 2},
)  # fmt: skip
"""Mostly good ones."""

TEXTS = (
    "%LOCAL_REPLY_BODY%", "%RESPONSE_CODE%", "%RESPONSE_FLAGS%", "%RESPONSE_CODE_DETAILS%", "%REQ(x-1)%", "%REQ(x-9)%",
    "%RESP(x-set)%", "%RESP(location)%", "%ROUTE_NAME%", "%METADATA(ROUTE:ns:k)%", "%METADATA(ROUTE:ns)%",
    "%PATH(NQ)%", "%UPSTREAM_CLUSTER%", "%RESP(:status)%", "%RESP(content-type)%", "%UPSTREAM_HOST%", "%REQ(:authority):2%", "a%%b",
    "%METADATA(CLUSTER:ns:k)%", "%UPSTREAM_HOSTS_ATTEMPTED%", "%GRPC_STATUS%", "%GRPC_STATUS_NUMBER%", "%UPSTREAM_PROTOCOL%",
)  # fmt: skip


def made_time(chance: random.Random) -> str:
    """Return a format that speaks of the time."""
    if chance.random() < 0.2:
        # The time at which something is written is not known; its day is, but for once a day.
        return chance.choice(("%START_TIME%", "%START_TIME_LOCAL%", "%EMIT_TIME(%Y-%m-%d)%", "%HOSTNAME%"))
    pieces = "".join(chance.choice(TIME_PIECES) for _ in range(chance.choice((1, 2, 4))))
    return f"%START_TIME{chance.choice(('', '_LOCAL'))}({pieces})%"


def made_choice(chance: random.Random) -> str:
    """Return a format that takes the first value there is."""
    operators = [chance.choice(OPERATORS) for _ in range(chance.choice((1, 2, 3)))]
    length = chance.choice(("", "", ":2"))
    return f"%COALESCE({json.dumps({'operators': operators})}){length}%"


def _text(chance: random.Random) -> str:
    if chance.random() < 0.8:
        return chance.choice(TEXTS)
    # Settings of managers are part of the bootstrap: what Envoy refuses would keep it from starting.
    while True:
        made = (made_time if chance.random() < 0.5 else made_choice)(chance)
        if not check_format(made):
            return made


def body_format(chance: random.Random) -> Json:
    result: Json = {}
    if chance.random() < 0.5:
        result["text_format"] = " ".join(_text(chance) for _ in range(chance.choice((1, 1, 3))))
    else:
        result["json_format"] = _object(chance, 0)
    if chance.random() < 0.4:
        result["omit_empty_values"] = True
    if chance.random() < 0.4:
        result["content_type"] = chance.choice(("application/problem", "text/plain"))
    return result


def _object(chance: random.Random, depth: int) -> Json:
    def value() -> object:
        kind = chance.random()
        if depth < 2 and kind < 0.15:
            return _object(chance, depth + 1)
        if kind < 0.3:
            return [chance.choice((*TEXTS, None, True, 1, 2.5)) for _ in range(chance.randrange(3))]
        if kind < 0.4:
            return chance.choice((None, False, -1, 0.5, 1e20, "", 'q"\\u00e9'))
        return "".join(_text(chance) for _ in range(chance.choice((1, 1, 2))))

    return {chance.choice("abcdefg") + str(number): value() for number in range(chance.randrange(4))}
