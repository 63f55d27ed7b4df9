"""Routes that answer by themselves: redirects and direct responses.

Source: Envoy `RouteEntryImplBase::newUri`, `DirectResponseEntry`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from meshlib.model.matcher import PathMatcher
from meshlib.model.outcome import LocalReply
from meshlib.model.request import RequestHead
from meshlib.model.route import DirectResponse, Redirect
from meshlib.routing.body_format import compile_body
from meshlib.routing.changes import Responder
from meshlib.routing.format import Facts, Scene
from meshlib.routing.replies import unusable_action
from meshlib.routing.rewrite import compile_path_rewrite, with_path

__all__ = ["HttpsRedirect", "compile_direct_response", "compile_location", "compile_redirect", "https_redirect"]

Answer = Callable[[RequestHead], LocalReply]
DETAILS = "direct_response"
BODILESS = frozenset({204, 304})
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


def _own_host(head: RequestHead, scheme: str, *, drop_port: bool) -> str:
    """Return the request's host; its port goes when another is given, or when it is the default of a scheme left."""
    host = head.authority
    colon = host.rfind("]:") + 1 if host.startswith("[") else host.rfind(":")
    if colon <= 0:
        return host
    if drop_port or (scheme != head.scheme and host[colon:] == _DEFAULT_PORTS.get(head.scheme)):
        return host[:colon]
    return host


def compile_location(redirect: Redirect, matcher: PathMatcher) -> Callable[[RequestHead], str]:
    """Compile where a redirect leads to.

    Raises:
        ValueError: The regex or the substitution is not valid.
    """
    new_path = compile_path_rewrite(redirect.prefix_rewrite, redirect.regex_rewrite, matcher)
    has_own_query = "?" in redirect.path
    port = f":{redirect.port}" if redirect.port else ""

    def location(head: RequestHead) -> str:
        scheme = "https" if redirect.https else redirect.scheme or head.scheme
        host = redirect.host or _own_host(head, scheme, drop_port=bool(port))
        path = head.path
        if redirect.path:
            mark = path.find("?")
            path = redirect.path + (path[mark:] if mark >= 0 and not has_own_query else "")
        elif new_path is not None:
            path = new_path(path) or path
        if not path.startswith("/"):
            path = "/" + path
        if redirect.strip_query and not has_own_query:
            path = path.partition("?")[0]
        return f"{scheme}://{host}{port}{path}"

    return location


def _reply(
    head: RequestHead,
    status: int,
    headers: list[tuple[str, str]],
    body: bytes,
    mutator: Responder,
    content_type: str = "",
) -> LocalReply:
    reply = mutator.local(LocalReply(status, "", DETAILS, body, tuple(headers)), head, content_type=content_type)
    if head.method == "HEAD" and reply.body:
        length = ("content-length", str(len(reply.body)))
        return replace(reply, body=b"", headers=(*reply.headers, length))
    return replace(reply, body=b"") if reply.status in BODILESS else reply


def compile_redirect(redirect: Redirect, matcher: PathMatcher, mutator: Responder) -> Answer:
    """Compile a redirect; a gRPC call cannot follow one and fails.

    Args:
        mutator: What happens to response headers.

    Raises:
        ValueError: The regex or the substitution is not valid.
    """
    location = compile_location(redirect, matcher)
    new_path = compile_path_rewrite(redirect.prefix_rewrite, redirect.regex_rewrite, matcher)

    def answer(head: RequestHead) -> LocalReply:
        if not head.profile.answers_itself:
            return unusable_action(head, flag="", status=redirect.status, details=DETAILS)
        headers = [("location", location(head))]
        if new_path is not None and (path := new_path(head.path)):
            # What the mutations read is the request as it would have gone on.
            head = with_path(head, path)
        return _reply(head, redirect.status, headers, b"", mutator)

    return answer


@dataclass(frozen=True, slots=True)
class HttpsRedirect(LocalReply):
    """No route gives it, so filters come before it as the listener has them, whatever the virtual host says of them."""


def https_redirect(head: RequestHead) -> HttpsRedirect:
    """Send a request to the same place over TLS (a virtual host's `require_tls`)."""
    location = f"https://{head.authority}{head.path}"
    return HttpsRedirect(301, "", DETAILS, b"", (("location", location),))


def compile_direct_response(response: DirectResponse, mutator: Responder, facts: Facts | None = None) -> Answer:
    """Compile a direct response; a gRPC call fails with UNAVAILABLE (gRPC has no such action).

    Args:
        mutator: What happens to response headers.
        facts: What the format of the body may speak of.

    Raises:
        ValueError: The format is not valid.
    """
    form = response.form
    make = None if form is None else compile_body(form, facts or Facts())
    has_location = response.status == 201 or 300 <= response.status < 400

    def answer(head: RequestHead) -> LocalReply:
        if not head.profile.answers_itself:
            return unusable_action(head, flag="", status=response.status, details=DETAILS)
        headers = [("location", f"{head.scheme}://{head.authority}{head.path}")] if has_location else []
        # The body is made before there is anything of an answer.
        body = response.body if make is None else make(Scene(head, body=response.body))
        return _reply(head, response.status, headers, body, mutator, response.content_type)

    return answer
