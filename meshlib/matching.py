"""Conditions on strings and headers, compiled into functions.

Routes, retries, faults and authorization ask the same questions of a request; they are answered here, once, so that
the folders which ask need not know each other. A matcher is compiled when its configuration arrives. What comes out
is called per request, never raises and has no state that can be seen (a regex remembers its latest answers).

Strings stand for the bytes on the wire: text that has no Latin-1 form is taken as UTF-8, everything else as Latin-1,
which is how Envoy's regexes read both patterns and subjects since 1.40.
"""

from collections.abc import Callable
from functools import lru_cache

import re2

from meshlib.model.matcher import HeaderMatcher, RangeMatcher, StringKind, StringMatcher
from meshlib.model.request import Headers, RequestHead

__all__ = [
    "INLINE_REQUEST_HEADERS",
    "INLINE_RESPONSE_HEADERS",
    "EntriesTest",
    "HeadTest",
    "StringTest",
    "ascii_lower",
    "compile_entries",
    "compile_header",
    "compile_regex",
    "compile_response_header",
    "compile_string",
    "describe_header",
    "describe_string",
    "entries_getter",
    "parse_int",
    "to_bytes",
    "wire_regex",
]

StringTest = Callable[[str], bool]
EntriesTest = Callable[[tuple[str, ...]], bool]
HeadTest = Callable[[RequestHead], bool]
Entries = Callable[[RequestHead], tuple[str, ...]]

# Envoy keeps these in one slot each and joins repeated lines with a comma while it parses; every other header keeps its
# lines apart, and a matcher sees them one by one.
INLINE_REQUEST_HEADERS = frozenset(
    [
        "accept",
        "accept-encoding",
        "access-control-request-headers",
        "access-control-request-method",
        "authentication",
        "authorization",
        "cache-control",
        "cdn-loop",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "expect",
        "grpc-accept-encoding",
        "grpc-timeout",
        "keep-alive",
        "origin",
        "proxy-connection",
        "referer",
        "te",
        "transfer-encoding",
        "upgrade",
        "user-agent",
        "via",
        "x-client-trace-id",
        "x-forwarded-client-cert",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-port",
        "x-forwarded-proto",
        "x-request-id",
        "x-envoy-attempt-count",
        "x-envoy-decorator-operation",
        "x-envoy-downstream-service-cluster",
        "x-envoy-downstream-service-node",
        "x-envoy-expected-rq-timeout-ms",
        "x-envoy-external-address",
        "x-envoy-force-trace",
        "x-envoy-hedge-on-per-try-timeout",
        "x-envoy-internal",
        "x-envoy-ip-tags",
        "x-envoy-is-timeout-retry",
        "x-envoy-max-retries",
        "x-envoy-original-host",
        "x-envoy-original-path",
        "x-envoy-original-url",
        "x-envoy-retriable-header-names",
        "x-envoy-retriable-status-codes",
        "x-envoy-retry-grpc-on",
        "x-envoy-retry-on",
        "x-envoy-upstream-alt-stat-name",
        "x-envoy-upstream-rq-per-try-timeout-ms",
        "x-envoy-upstream-rq-timeout-alt-response",
        "x-envoy-upstream-rq-timeout-ms",
        "x-envoy-upstream-stream-duration-ms",
    ]
)
INLINE_RESPONSE_HEADERS = frozenset(
    [
        "access-control-allow-credentials",
        "access-control-allow-headers",
        "access-control-allow-methods",
        "access-control-allow-origin",
        "access-control-expose-headers",
        "access-control-max-age",
        "cache-control",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "date",
        "etag",
        "grpc-message",
        "grpc-status",
        "location",
        "server",
        "vary",
        "via",
        "x-request-id",
        "x-envoy-attempt-count",
        "x-envoy-degraded",
        "x-envoy-drop-overload",
        "x-envoy-immediate-health-check-fail",
        "x-envoy-overloaded",
        "x-envoy-ratelimited",
        "x-envoy-unconditional-drop-overload",
        "x-envoy-upstream-canary",
        "x-envoy-upstream-healthchecked-cluster",
        "x-envoy-upstream-service-time",
    ]
)

# Answers a regex remembers. A route's paths and headers repeat; a flood of different ones costs the look-up (0.1 us)
# and pushes out the oldest. Longer texts are not kept: callers choose them, and a thousand of 64 KiB are a lot.
REGEX_CACHE = 1024
REGEX_CACHE_TEXT = 256
# Above this size a pattern is not given to RE2's DFA-only interface, which answers "no" when it runs out of memory.
DFA_PROGRAM_LIMIT = 1000

_UPPER_TO_LOWER = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}


def ascii_lower(text: str) -> str:
    """Lower A-Z and nothing else, as HTTP and Envoy do."""
    return text.lower() if text.isascii() else text.translate(_UPPER_TO_LOWER)


def to_bytes(text: str) -> bytes:
    """Return the bytes that a header value or path stands for."""
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")


def parse_int(text: str, *, low: int = -(2**63), high: int = 2**63 - 1) -> int | None:
    """Read a decimal integer as Envoy does: blanks around it and a sign are allowed, anything else is not.

    Returns:
        The number, or None when the text is no integer in [low, high].
    """
    digits = text.strip(" \t\n\v\f\r")
    sign = 1
    if digits[:1] in ("+", "-"):
        sign = -1 if digits[0] == "-" else 1
        digits = digits[1:]
    # 4300 digits is where int() refuses; 64 bits have at most 20, and leading zeros are no number anyone sends.
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 64):
        return None
    number = sign * int(digits)
    return number if low <= number <= high else None


def wire_regex(pattern: str) -> "re2._Regexp":
    """Compile an RE2 pattern that reads bytes as Latin-1.

    Raises:
        ValueError: Not valid RE2; the text says why.
    """
    options = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1
    options.log_errors = False
    try:
        return re2.compile(pattern.encode("utf-8", "surrogatepass"), options)
    except re2.error as error:
        reason = error.args[0] if error.args else error
        raise ValueError(reason.decode("latin-1") if isinstance(reason, bytes) else str(reason)) from None


def compile_regex(pattern: str) -> StringTest:
    """Compile an RE2 pattern that must match the whole text.

    Raises:
        ValueError: Not valid RE2.
    """
    regex = wire_regex(pattern)
    if regex.programsize > DFA_PROGRAM_LIMIT:
        fullmatch = regex.fullmatch
        return _remembering(lambda text: fullmatch(to_bytes(text)) is not None)
    # A set of one pattern answers in 0.6 us; fullmatch builds a match object and takes 1.4 us.
    one = re2.Set.FullMatchSet(regex.options)
    one.Add(pattern.encode("utf-8", "surrogatepass"))
    one.Compile()
    match = one.Match
    return _remembering(lambda text: bool(match(to_bytes(text))))


def _remembering(test: StringTest) -> StringTest:
    """Return a test that remembers its latest answers about short texts."""
    remembered = lru_cache(REGEX_CACHE)(test)

    def matches(text: str) -> bool:
        return remembered(text) if len(text) <= REGEX_CACHE_TEXT else test(text)

    return matches


def compile_string(matcher: StringMatcher) -> StringTest:
    """Compile a condition on a string.

    Raises:
        ValueError: A regex that is not valid RE2, or a regex with `ignore_case`.
    """
    value = matcher.value
    if matcher.kind is StringKind.REGEX:
        if matcher.ignore_case:
            raise ValueError("ignore_case has no effect with a regex")
        return compile_regex(value)
    if matcher.ignore_case:
        value = ascii_lower(value)
        match matcher.kind:
            case StringKind.EXACT:
                return lambda text: ascii_lower(text) == value
            case StringKind.PREFIX:
                return lambda text: ascii_lower(text).startswith(value)
            case StringKind.SUFFIX:
                return lambda text: ascii_lower(text).endswith(value)
            case StringKind.CONTAINS:
                return lambda text: value in ascii_lower(text)
    match matcher.kind:
        case StringKind.EXACT:
            return lambda text: text == value
        case StringKind.PREFIX:
            return lambda text: text.startswith(value)
        case StringKind.SUFFIX:
            return lambda text: text.endswith(value)
        case StringKind.CONTAINS:
            return lambda text: value in text


def _compile_range(matcher: RangeMatcher) -> StringTest:
    start, end = matcher.start, matcher.end

    def in_range(text: str) -> bool:
        number = parse_int(text)
        return number is not None and start <= number < end

    return in_range


def compile_entries(matcher: HeaderMatcher) -> EntriesTest:
    """Compile a header condition into a test of the header's entries, in order; none: the header is missing.

    Each entry is tested by itself and one that fits is enough; `invert` turns the whole answer round. A missing header
    satisfies no condition on its value, inverted or not, unless it is treated as empty (Envoy 1.39 and newer).

    Raises:
        ValueError: A regex that is not valid RE2.
    """
    invert = matcher.invert
    test = matcher.test
    if isinstance(test, bool):
        if matcher.treat_missing_as_empty:
            always = test != invert
            return lambda entries: always
        wanted = test != invert
        return lambda entries: bool(entries) is wanted
    if matcher.exact_empty_matches_any and isinstance(test, StringMatcher) and test.value == "":
        fits: StringTest = lambda text: True  # noqa: E731 - one name for two ways to make the test
    elif isinstance(test, RangeMatcher):
        fits = _compile_range(test)
    else:
        fits = compile_string(test)
    if_missing = matcher.treat_missing_as_empty and fits("") != invert

    def holds(entries: tuple[str, ...]) -> bool:
        if len(entries) == 1:
            return fits(entries[0]) is not invert
        if not entries:
            return if_missing
        return any(map(fits, entries)) is not invert

    return holds


def entries_getter(name: str, *, server: bool = False) -> Entries:
    """Return the function that reads a header's entries as a condition sees them.

    gRPC calls follow gRPC (gRFC A28): entries are joined to one, binary headers and, in a client, the pseudo headers
    other than the authority are not visible, and the content type is always `application/grpc`.

    Args:
        name: Lower case; may be a pseudo header.
        server: The condition belongs to a server, which sees `:method` and `:path` of gRPC calls too (A41).
    """
    if name in (":authority", "host"):
        return lambda head: (head.authority,)
    if name.startswith(":"):

        def pseudo(head: RequestHead) -> tuple[str, ...]:
            if head.profile.grpc_conditions and not (server and name in (":method", ":path")):
                return ()
            return head.values(name)

        return pseudo
    hidden_in_grpc = name.endswith("-bin") or name == "te"
    is_inline = name in INLINE_REQUEST_HEADERS

    def entries(head: RequestHead) -> tuple[str, ...]:
        if head.profile.grpc_conditions:
            if hidden_in_grpc:
                return ()
            if name == "content-type":
                return ("application/grpc",)
            found = head.headers.all(name)
            return (",".join(found),) if len(found) > 1 else found
        found = head.headers.all(name)
        return _fold(found) if is_inline and len(found) > 1 else found

    return entries


def _fold(entries: tuple[str, ...]) -> tuple[str, ...]:
    """Join the lines of an inline header as Envoy's parser does: empty ones leave no comma behind."""
    return (",".join(filter(None, entries)),)


def compile_header(matcher: HeaderMatcher, *, server: bool = False) -> HeadTest:
    """Compile a condition on a request header.

    Raises:
        ValueError: A regex that is not valid RE2.
    """
    name = matcher.name
    entries = entries_getter(name, server=server)
    holds = compile_entries(matcher)
    if name.startswith(":") or name == "host":
        return lambda head: holds(entries(head))
    if_missing = holds(())

    def test(head: RequestHead) -> bool:
        # Most requests lack the header that a route looks for, and need no more than one look-up to know it.
        if not head.profile.grpc_conditions and not head.headers.all(name):
            return if_missing
        return holds(entries(head))

    return test


def compile_response_header(matcher: HeaderMatcher) -> Callable[[Headers], bool]:
    """Compile a condition on a response header.

    Raises:
        ValueError: A regex that is not valid RE2.
    """
    name = matcher.name
    is_inline = name in INLINE_RESPONSE_HEADERS
    holds = compile_entries(matcher)

    def test(headers: Headers) -> bool:
        found = headers.all(name)
        return holds(_fold(found) if is_inline and len(found) > 1 else found)

    return test


def describe_string(matcher: StringMatcher) -> str:
    """Say what a string must be, e.g. `prefix "v1"`."""
    return f'{matcher.kind.value} "{matcher.value}"' + (" (any case)" if matcher.ignore_case else "")


def describe_header(matcher: HeaderMatcher) -> str:
    """Say what a header condition asks for, e.g. `header x-user exact "alice"`."""
    test = matcher.test
    if isinstance(test, bool):
        return f"header {matcher.name} {'present' if test != matcher.invert else 'absent'}"
    if isinstance(test, RangeMatcher):
        what = f"integer in [{test.start}, {test.end})"
    elif matcher.exact_empty_matches_any and test.value == "":
        what = "any value"
    else:
        what = describe_string(test)
    missing = ", missing counts as empty" if matcher.treat_missing_as_empty else ""
    return f"header {matcher.name} {'not ' if matcher.invert else ''}{what}{missing}"
