"""What a connection manager makes of a request before routes see it: host without port or dot, path with single slashes.

The request goes on like that. gRPC's clients know none of it, so gRPC calls stay as they are.

Source: Envoy `ConnectionManagerUtility::maybeNormalizeHost`, `PathUtil::mergeSlashes`; `scheme_header_transformation`.
"""

import re
from collections.abc import Callable
from typing import Final

from meshlib.model.listener import HeadRules
from meshlib.model.request import RequestHead

__all__ = ["Prepare", "compile_prepare"]

Prepare = Callable[[RequestHead], RequestHead]
_SLASHES: Final = re.compile("//+")


def _without_port(host: str, only: int | None) -> str:
    colon = host.rfind(":")
    port = host[colon + 1 :]
    if colon < 0 or colon < host.rfind("]") or not (port.isascii() and port.isdigit()):
        return host
    return host[:colon] if only is None or int(port) == only else host


def _without_dot(host: str) -> str:
    colon = host.rfind(":")
    if colon > host.rfind("]"):
        return host[: colon - 1] + host[colon:] if host[colon - 1 : colon] == "." else host
    return host.removesuffix(".")


def _with_single_slashes(path: str) -> str:
    if "//" not in path:
        return path
    plain, mark, query = path.partition("?")
    return _SLASHES.sub("/", plain) + mark + query


def compile_prepare(rules: HeadRules) -> Prepare | None:
    """Compile the rules; None: they change nothing."""
    if not rules:
        return None

    def prepare(head: RequestHead) -> RequestHead:
        if head.is_grpc:
            return head
        host, path = head.authority, head.path
        if rules.strips_dot:
            host = _without_dot(host)
        if head.method != "CONNECT" and (rules.strips_port or rules.strips_this_port):
            host = _without_port(host, None if rules.strips_port else rules.strips_this_port)
        if rules.merges_slashes:
            path = _with_single_slashes(path)
        scheme = rules.scheme or head.scheme
        if (host, path, scheme) == (head.authority, head.path, head.scheme):
            return head
        return RequestHead(head.method, host, path, head.headers, scheme=scheme)

    return prepare
