"""Cases about stateful sessions: which host a mark leads to, and which mark the answer brings.

python -m differential.hosts --sessions --clusters 100 --requests 10 --seed 7
"""

import base64
import re
import time
from typing import Any

from differential.generate import TYPE, Json
from differential.hosts import SESSION, Decision, HostGenerator, HostRequest

__all__ = ["FILTER", "SESSION_TYPE", "SessionGenerator", "is_same_mark"]

FILTER = "envoy.filters.http.stateful_session"
_STATE = f"{TYPE}envoy.extensions.http.stateful_session"
SESSION_TYPE = f"{TYPE}envoy.extensions.filters.http.stateful_session.v3.StatefulSession"
_STATUSES = ("UNKNOWN", "HEALTHY", "UNHEALTHY", "DRAINING", "TIMEOUT", "DEGRADED")
_VALUE = re.compile(r'^(\w+)="([^"]*)"')


def _proto(address: str, expires: int = 0) -> bytes:
    assert len(address) < 128
    tail = b""
    if expires:
        tail = b"\x10"
        while expires > 127:
            tail += bytes([expires & 127 | 128])
            expires >>= 7
        tail += bytes([expires])
    return b"\x0a" + bytes([len(address)]) + address.encode() + tail


class SessionGenerator(HostGenerator):
    """Makes routes with sessions, and requests with marks, some of them broken."""

    primes = (11, 101)
    ring_sizes = (10, 50)
    has_default_sizes = False
    filters = ({"name": FILTER, "typed_config": {"@type": SESSION_TYPE}},)

    @staticmethod
    def is_same(one: Decision, other: Decision) -> bool:
        """As of any host; of two cookies the ends may be a few seconds apart."""
        return one[:2] == other[:2] and is_same_mark(one[2], other[2])

    def cluster(self, number: int | str) -> Json:
        result = super().cluster(number)
        if self._maybe(0.5):
            listed = [status for status in _STATUSES if self._maybe(0.5)]
            result["common_lb_config"]["override_host_status"] = {"statuses": listed}
        self._hosts = self._host
        return result

    def route(self, cluster: str) -> Json:
        result = super().route(cluster)
        self._kinds = getattr(self, "_kinds", {})
        kind = self._kinds[cluster] = self._random.choice(("cookie", "cookie", "header", "envelope", "off"))
        override: Json = {"disabled": True} if kind == "off" else {"stateful_session": self._session(kind, cluster)}
        packed = {"@type": f"{SESSION_TYPE}PerRoute", **override}
        result["typed_per_filter_config"] = {FILTER: packed}
        return result

    def _session(self, kind: str, cluster: str) -> Json:
        """Return how sessions are kept: by a cookie, a header or an envelope."""
        state: Json
        if kind == "cookie":
            cookie: Json = {"name": "session"}
            if self._maybe(0.6):
                cookie["ttl"] = "3600s"
            if self._maybe(0.6):
                cookie["path"] = self._random.choice(("/", f"/{cluster}", f"/{cluster}/", f"/{cluster}/deep", "/c"))
            if self._maybe(0.3):
                cookie["attributes"] = [{"name": "SameSite", "value": "Lax"}, {"name": "Secure"}]
            state = {"@type": f"{_STATE}.cookie.v3.CookieBasedSessionState", "cookie": cookie}
        elif kind == "header":
            state = {"@type": f"{_STATE}.header.v3.HeaderBasedSessionState", "name": "X-Session"}
        else:
            state = {"@type": f"{_STATE}.envelope.v3.EnvelopeSessionState", "header": {"name": SESSION}}
        policy: Json = {"session_state": {"name": f"envoy.http.stateful_session.{kind}", "typed_config": state}}
        if self._maybe(0.3):
            policy["strict"] = True
        return policy

    def request(self, cluster: str) -> HostRequest:
        base = super().request(cluster)
        headers = [item for item in base.headers if item[0] != "cookie"]
        kind = self._kinds[cluster]
        address = f"127.77.0.{self._random.randrange(1, self._hosts + 3)}:9" if self._maybe(0.95) else "9.9.9.9:1"
        if self._maybe(0.85):
            headers.append(self._mark(kind, address))
        path = base.path.replace(f"/{cluster}/", f"/{cluster}/deep") if self._maybe(0.3) else base.path
        return HostRequest(cluster, path, tuple(headers))

    def _mark(self, kind: str, address: str) -> tuple[str, str]:
        """Return the header of a request that belongs to a host."""
        return ("cookie", self._cookie(address)) if kind == "cookie" else (SESSION, self._header(address, kind))

    def _cookie(self, address: str) -> str:
        now = int(time.time())
        value: bytes = self._random.choice(
            (
                _proto(address),
                _proto(address),
                _proto(address, now + 1000),
                _proto(address, now + 1000),
                _proto(address, max(1, now - 1000)),
                address.encode(),
                _proto(address) + b"\x1a\x01x",
                _proto(address)[:-1],
                b"",
            )
        )
        text = base64.b64encode(value).decode()
        if self._maybe(0.1):
            text = text.rstrip("=")[:-1]
        quoted = f'"{text}"' if self._maybe(0.3) else text
        pairs = [f"session={quoted}"]
        if self._maybe(0.3):
            pairs.insert(0, "other=1")
        return "; ".join(pairs)

    def _header(self, address: str, kind: str) -> str:
        text = base64.b64encode(address.encode()).decode()
        if kind != "envelope":
            return text if self._maybe(0.9) else text.rstrip("=")[:-1]
        own = base64.b64encode(b"own-value").decode()
        choices: Any = (f"{text};UV:{own}", f"{text};UV:{own}", f"{text};x:1;UV:{own}", text, f"{text};UV:", "plain")
        return str(self._random.choice(choices))


def is_same_mark(one: str, other: str) -> bool:
    """Whether two marks are one; of two cookies the ends may be a few seconds apart."""
    first, second = _VALUE.match(one), _VALUE.match(other)
    if first is None or second is None or "Max-Age" not in one:
        return one == other
    if _VALUE.sub("", one) != _VALUE.sub("", other) or first[1] != second[1]:
        return False
    decoded = [_split(base64.b64decode(match[2])) for match in (first, second)]
    return decoded[0][0] == decoded[1][0] and abs(decoded[0][1] - decoded[1][1]) <= 20


def _split(value: bytes) -> tuple[bytes, int]:
    """Return address and end of a cookie's message."""
    size = value[1]
    address, rest, end = value[2 : 2 + size], value[3 + size :], 0
    for shift, byte in enumerate(rest):
        end |= (byte & 127) << (7 * shift)
    return address, end
