"""Conditions on strings, headers, queries, paths and shares of requests."""

import math
from dataclasses import replace
from functools import lru_cache
from typing import Any, Final

from meshlib.matching import wire_regex
from meshlib.model.matcher import (
    Fraction,
    HeaderMatcher,
    PathKind,
    PathMatcher,
    QueryMatcher,
    RangeMatcher,
    RuntimeKeys,
    StringKind,
    StringMatcher,
)
from meshlib.model.route import RegexRewrite
from meshlib.path_template import parse_template
from meshlib.xds.decode_common import cover, join, unpack_extension
from meshlib.xds.problems import Problems

__all__ = [
    "check_upgrades",
    "fraction",
    "header_matcher",
    "header_matchers",
    "path_matcher",
    "percent",
    "query_matcher",
    "regex",
    "regex_rewrite",
    "runtime_fraction",
    "string_matcher",
]

MAX_REGEX_BYTES: Final = 65_536
MAX_REGEX_PROGRAM: Final = 32_768
"""Envoy's limit is the runtime value `re2.max_program_size.error_level`: 100 by default, 32768 in what Istio starts.
RE2 takes linear time whatever the size, so the larger one only bounds memory."""

_ENVOY_REGEX: Final = "envoy.type.matcher.v3.RegexMatcher"
_DENOMINATORS: Final = {0: 100, 1: 10_000, 2: 1_000_000}
_STRING_KINDS: Final = {
    "exact": StringKind.EXACT,
    "prefix": StringKind.PREFIX,
    "suffix": StringKind.SUFFIX,
    "contains": StringKind.CONTAINS,
}
_DEPRECATED_KINDS: Final = {f"{name}_match": kind for name, kind in _STRING_KINDS.items()}
_TEMPLATE_TYPE: Final = "envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig"
_PATH_KINDS: Final = {
    "prefix": PathKind.PREFIX,
    "path": PathKind.PATH,
    "path_separated_prefix": PathKind.SEPARATED_PREFIX,
}
_ANY_STRING: Final = StringMatcher(StringKind.PREFIX, "")
_HEADER_FIELDS: Final = frozenset(
    {
        "name",
        "exact_match",
        "safe_regex_match",
        "range_match",
        "present_match",
        "prefix_match",
        "suffix_match",
        "contains_match",
        "string_match",
        "invert_match",
        "treat_missing_header_as_empty",
    }
)


@lru_cache(maxsize=4096)
def _regex_fault(pattern: str) -> tuple[str, int]:
    """Return why a pattern cannot be used, or the empty string, and its number of groups."""
    if len(pattern) > MAX_REGEX_BYTES:
        return f"is longer than {MAX_REGEX_BYTES} characters", 0
    try:
        compiled = wire_regex(pattern)
    except ValueError as error:
        return f"is not a valid RE2 expression: {error}", 0
    if compiled.programsize > MAX_REGEX_PROGRAM:
        return f"its RE2 program size {compiled.programsize} is more than {MAX_REGEX_PROGRAM}", 0
    return "", compiled.groups


def regex(message: Any, path: str, problems: Problems) -> str:
    """Return the pattern of a RegexMatcher after compiling it."""
    fault, _ = _regex_fault(message.regex)
    if fault:
        problems.error(join(path, "regex"), fault)
    elif message.DESCRIPTOR.full_name == _ENVOY_REGEX and message.google_re2.HasField("max_program_size"):
        size, most = wire_regex(message.regex).programsize, message.google_re2.max_program_size.value
        if size > most:
            problems.error(join(path, "regex"), f"its RE2 program size {size} is more than {most}")
    return str(message.regex)


def regex_rewrite(message: Any, path: str, problems: Problems) -> RegexRewrite:
    """Decode a RegexMatchAndSubstitute; its substitution may refer to the groups that the pattern has."""
    pattern = regex(message.pattern, join(path, "pattern"), problems)
    substitution: str = message.substitution
    pattern_fault, groups = _regex_fault(pattern)
    if pattern_fault:
        return RegexRewrite(pattern, substitution)
    fault, position = "", 0
    while not fault and (position := substitution.find("\\", position)) >= 0:
        following = substitution[position + 1 : position + 2]
        if following != "\\" and not (following.isascii() and following.isdigit()):
            fault = "has a \\ that is followed by neither a digit nor another \\"
        elif following != "\\" and int(following) > groups:
            fault = f"refers to group {following}, but the pattern has {groups}"
        position += 2
    if fault:
        problems.error(join(path, "substitution"), fault)
    return RegexRewrite(pattern, substitution)


def string_matcher(message: Any, path: str, problems: Problems) -> StringMatcher:
    """Decode a StringMatcher."""
    kind = message.WhichOneof("match_pattern")
    if kind == "safe_regex":
        if message.ignore_case:
            problems.error(join(path, "ignore_case"), "has no effect with safe_regex")
        return StringMatcher(StringKind.REGEX, regex(message.safe_regex, join(path, "safe_regex"), problems))
    if kind not in _STRING_KINDS:
        problems.error(join(path, str(kind or "match_pattern")), "is not supported" if kind else "is required")
        return _ANY_STRING
    return StringMatcher(_STRING_KINDS[kind], getattr(message, kind), bool(message.ignore_case))


def check_upgrades(options: Any, path: str, problems: Problems) -> None:
    """Report the matchers of an Http1ProtocolOptions that are none: it has no effect here, but Envoy compiles them."""
    for index, item in enumerate(options.ignore_http_11_upgrade):
        if item.HasField("safe_regex"):
            string_matcher(item, f"{join(path, 'ignore_http_11_upgrade')}[{index}]", problems)


def header_matcher(message: Any, path: str, problems: Problems) -> HeaderMatcher:
    """Decode a HeaderMatcher; without any test the header has to be there."""
    cover(message, path, problems, used=_HEADER_FIELDS, harmless=frozenset(), strict=True)
    kind = message.WhichOneof("header_match_specifier")
    test: StringMatcher | RangeMatcher | bool
    match kind:
        case None:
            test = True
        case "present_match":
            test = bool(message.present_match)
        case "range_match":
            test = RangeMatcher(message.range_match.start, message.range_match.end)
        case "string_match":
            test = string_matcher(message.string_match, join(path, kind), problems)
        case "safe_regex_match":
            test = StringMatcher(StringKind.REGEX, regex(message.safe_regex_match, join(path, kind), problems))
        case _:
            test = StringMatcher(_DEPRECATED_KINDS[kind], getattr(message, kind))
    return HeaderMatcher(
        name=message.name.lower(),
        test=test,
        invert=message.invert_match,
        treat_missing_as_empty=message.treat_missing_header_as_empty,
        exact_empty_matches_any=kind == "exact_match" and not message.exact_match,
    )


def header_matchers(messages: Any, path: str, problems: Problems) -> tuple[HeaderMatcher, ...]:
    """Decode a repeated HeaderMatcher field."""
    return tuple(header_matcher(item, f"{path}[{index}]", problems) for index, item in enumerate(messages))


def query_matcher(message: Any, path: str, problems: Problems) -> QueryMatcher:
    """Decode a QueryParameterMatcher; without any test the parameter has to be there."""
    used = frozenset({"name", "string_match", "present_match"})
    cover(message, path, problems, used=used, harmless=frozenset(), strict=True)
    match message.WhichOneof("query_parameter_match_specifier"):
        case "string_match":
            return QueryMatcher(
                message.name, string_matcher(message.string_match, join(path, "string_match"), problems)
            )
        case "present_match":
            return QueryMatcher(message.name, bool(message.present_match))
        case _:
            return QueryMatcher(message.name, True)


def path_matcher(message: Any, path: str, problems: Problems) -> PathMatcher:
    """Decode the path condition of a RouteMatch."""
    is_case_sensitive = message.case_sensitive.value if message.HasField("case_sensitive") else True
    kind = message.WhichOneof("path_specifier")
    match kind:
        case "prefix" | "path" | "path_separated_prefix":
            return PathMatcher(_PATH_KINDS[kind], getattr(message, kind), is_case_sensitive)
        case "safe_regex":
            # Envoy ignores case_sensitive here.
            return PathMatcher(PathKind.REGEX, regex(message.safe_regex, join(path, kind), problems))
        case "connect_matcher":
            return PathMatcher(PathKind.CONNECT, "")
        case "path_match_policy":
            place = join(path, kind)
            config = unpack_extension(message.path_match_policy, place, problems)
            if config is None:
                return PathMatcher(PathKind.PREFIX, "")
            if config.DESCRIPTOR.full_name != _TEMPLATE_TYPE:
                problems.error(place, f"{config.DESCRIPTOR.full_name} is not supported")
                return PathMatcher(PathKind.PREFIX, "")
            try:
                parse_template(config.path_template)
            except ValueError as error:
                problems.error(join(place, "typed_config.path_template"), str(error))
            return PathMatcher(PathKind.TEMPLATE, config.path_template)
        case _:
            problems.error(join(path, "path_specifier"), "is required")
            return PathMatcher(PathKind.PREFIX, "")


def fraction(message: Any, path: str, problems: Problems) -> Fraction:
    """Decode a FractionalPercent. More than the whole counts as the whole."""
    denominator = _DENOMINATORS.get(message.denominator)
    if denominator is None:
        problems.error(join(path, "denominator"), f"unknown value {message.denominator}")
        return Fraction(0)
    return Fraction(min(message.numerator, denominator), denominator)


def runtime_keys(message: Any, **fields: str) -> RuntimeKeys:
    """Return the runtime keys of a message's fields, by the names that the model has for those."""
    return tuple((name, key) for field, name in fields.items() if (key := getattr(message, field).runtime_key))


def runtime_fraction(message: Any, path: str, problems: Problems) -> Fraction:
    """Decode a RuntimeFractionalPercent."""
    share = fraction(message.default_value, join(path, "default_value"), problems)
    return replace(share, runtime_key=message.runtime_key) if message.runtime_key else share


def percent(message: Any) -> float:
    """Return a Percent, 0-100; what is not a number has been refused by its constraints."""
    return float(message.value) if math.isfinite(message.value) else 0.0
