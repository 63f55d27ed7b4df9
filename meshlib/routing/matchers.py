"""A route's conditions other than its headers: path, query, gRPC, a share of requests."""

from collections.abc import Callable

from meshlib.matching import HeadTest, StringTest, ascii_lower, compile_regex, compile_string, describe_string
from meshlib.model.matcher import Fraction, PathKind, PathMatcher, QueryMatcher
from meshlib.model.request import RequestHead, is_grpc_type
from meshlib.path_template import compile_template

__all__ = [
    "compile_path",
    "compile_query",
    "describe_path",
    "describe_query",
    "in_fraction",
    "is_grpc_request",
    "path_of",
    "query_value",
    "without_parameters",
]


def path_of(path: str) -> str:
    """Return a path without query and fragment."""
    if "?" in path:
        path = path[: path.index("?")]
    if "#" in path:
        path = path[: path.index("#")]
    return path


def without_parameters(path: str) -> str:
    """Return a path without the parameters of its segments: `/p;a=1/X;b` is `/p/X` (Envoy 1.40 and newer)."""
    if ";" not in path:
        return path
    return "/".join(segment.partition(";")[0] for segment in path.split("/"))


def compile_path(matcher: PathMatcher) -> Callable[[str], bool]:
    """Compile a path condition into a test of the path without query.

    `case_sensitive` is about prefixes and whole paths; regexes and templates ignore it (as Envoy). For CONNECT the path
    does not matter; the method is the condition.

    Raises:
        ValueError: A regex or template that is not valid.
    """
    value = matcher.value
    match matcher.kind:
        case PathKind.REGEX:
            return compile_regex(value)
        case PathKind.TEMPLATE:
            return compile_template(value)
        case PathKind.CONNECT:
            return lambda path: True
        case PathKind.PREFIX:
            if not matcher.case_sensitive:
                value = ascii_lower(value)
                return lambda path: ascii_lower(path).startswith(value)
            return lambda path: path.startswith(value)
        case PathKind.PATH:
            if not matcher.case_sensitive:
                value = ascii_lower(value)
                return lambda path: ascii_lower(path) == value
            return lambda path: path == value
        case PathKind.SEPARATED_PREFIX:
            below = value + "/"
            if not matcher.case_sensitive:
                value, below = ascii_lower(value), ascii_lower(below)
                return lambda path: (low := ascii_lower(path)) == value or low.startswith(below)
            return lambda path: path == value or path.startswith(below)


def query_value(path: str, name: str) -> str | None:
    """Return the first value of a query parameter, undecoded; empty when it has none, None when it is absent."""
    start = path.find("?")
    if start < 0:
        return None
    for pair in path[start + 1 :].split("#", 1)[0].split("&"):
        key, _, value = pair.partition("=")
        if key == name:
            return value
    return None


def compile_query(matcher: QueryMatcher) -> HeadTest:
    """Compile a condition on the first value of a query parameter; names and values are compared undecoded.

    Raises:
        ValueError: A regex that is not valid RE2.
    """
    name, test = matcher.name, matcher.test
    if isinstance(test, bool):
        wanted = test
        return lambda head: (query_value(head.path, name) is not None) is wanted
    fits: StringTest = compile_string(test)

    def holds(head: RequestHead) -> bool:
        value = query_value(head.path, name)
        return value is not None and fits(value)

    return holds


def is_grpc_request(head: RequestHead) -> bool:
    """Whether the content type is `application/grpc` or `application/grpc+...`."""
    return head.is_grpc or is_grpc_type(head.headers.get("content-type") or "")


def in_fraction(fraction: Fraction, stream_id: int) -> bool:
    """Whether a request belongs to a share of requests.

    Args:
        stream_id: 64 random bits, one draw per request: all of a request's decisions read the same number.

    Source: Envoy `Runtime::Snapshot::featureEnabled` with a stable random value.
    """
    return stream_id % fraction.denominator < fraction.numerator


def describe_path(matcher: PathMatcher) -> str:
    """Say what a path must be, e.g. `path prefix "/api"`."""
    if matcher.kind is PathKind.CONNECT:
        return "method CONNECT"
    words = {
        PathKind.PREFIX: "path prefix",
        PathKind.PATH: "path exactly",
        PathKind.REGEX: "path regex",
        PathKind.SEPARATED_PREFIX: "path at or below",
        PathKind.TEMPLATE: "path template",
    }
    plain = matcher.kind in (PathKind.REGEX, PathKind.TEMPLATE)
    return f'{words[matcher.kind]} "{matcher.value}"' + ("" if matcher.case_sensitive or plain else " (any case)")


def describe_query(matcher: QueryMatcher) -> str:
    """Say what a query condition asks for, e.g. `query parameter v exact "2"`."""
    if isinstance(matcher.test, bool):
        return f"query parameter {matcher.name} {'present' if matcher.test else 'absent'}"
    return f"query parameter {matcher.name} {describe_string(matcher.test)}"
