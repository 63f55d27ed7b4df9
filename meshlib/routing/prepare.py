"""What a connection manager makes of a request before routes see it: host without port or dot, path in one spelling.

The request goes on like that, or is answered at once. gRPC's clients know none of it, so gRPC calls stay as they are.

Source: Envoy `ConnectionManagerUtility::maybeNormalizePath`, `maybeNormalizeHost`; `scheme_header_transformation`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from meshlib.model.listener import EscapedSlashes, HeadRules
from meshlib.model.outcome import LocalReply
from meshlib.model.request import RequestHead
from meshlib.routing.normal_path import canonical_path, unescaped_slashes, with_single_slashes, without_dot_parameters

__all__ = ["EarlyAnswer", "Prepare", "compile_prepare"]

DETAILS: Final = "path_normalization_failed"
"""Of the refusal, and of the redirect too."""
_REFUSED: Final = LocalReply(400, "", DETAILS)


@dataclass(frozen=True, slots=True)
class EarlyAnswer:
    """A request that is answered before any route sees it.

    Attributes:
        head: The request, as far as it had been prepared.
    """

    reply: LocalReply
    head: RequestHead


Prepare = Callable[[RequestHead], RequestHead | EarlyAnswer]


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


def _prepared_path(path: str, rules: HeadRules) -> tuple[str, LocalReply | None]:
    """Return the path as it goes on, and the answer if it does not."""
    plain, mark, query = path.partition("?")
    unescaped = plain
    if rules.slashes is not EscapedSlashes.KEPT:
        unescaped = unescaped_slashes(plain)
        if unescaped != plain and rules.slashes is EscapedSlashes.REFUSED:
            return unescaped + mark + query, _REFUSED
    found: str | None = unescaped
    if rules.normalizes_path:
        found = canonical_path(unescaped)
        if found is None:
            return without_dot_parameters(unescaped) + mark + query, _REFUSED
    assert found is not None
    if rules.merges_slashes:
        found = with_single_slashes(found)
    found += mark + query
    if unescaped != plain and rules.slashes is EscapedSlashes.REDIRECTED:
        return found, LocalReply(307, "", DETAILS, b"", (("location", found),))
    return found, None


def compile_prepare(rules: HeadRules) -> Prepare | None:
    """Compile the rules; None: they change nothing."""
    if not rules:
        return None
    changes_path = rules.merges_slashes or rules.normalizes_path or rules.slashes is not EscapedSlashes.KEPT

    def prepare(head: RequestHead) -> RequestHead | EarlyAnswer:
        if not head.profile.has_manager:
            return head
        host, path = head.authority, head.path
        if changes_path:
            path, reply = _prepared_path(path, rules)
            if reply is not None:
                if reply.status == 307 and head.is_grpc:
                    reply = _REFUSED  # "for gRPC requests": no client of theirs follows a redirect
                return EarlyAnswer(reply, head.but(authority=host, path=path))
        if rules.strips_dot:
            host = _without_dot(host)
        if head.method != "CONNECT" and (rules.strips_port or rules.strips_this_port):
            host = _without_port(host, None if rules.strips_port else rules.strips_this_port)
        scheme = rules.scheme or head.scheme
        if (host, path, scheme) == (head.authority, head.path, head.scheme):
            return head
        return head.but(authority=host, path=path, scheme=scheme)

    return prepare
