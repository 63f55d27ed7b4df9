"""Conditions on strings, headers, queries and paths (xDS `type.matcher.v3`, `config.route.v3`)."""

from dataclasses import dataclass
from enum import Enum

__all__ = [
    "Fraction",
    "HeaderMatcher",
    "PathKind",
    "PathMatcher",
    "ProxyCondition",
    "QueryMatcher",
    "RangeMatcher",
    "RuntimeKeys",
    "StringKind",
    "StringMatcher",
]


class StringKind(Enum):
    EXACT = "exact"
    PREFIX = "prefix"
    SUFFIX = "suffix"
    CONTAINS = "contains"
    REGEX = "regex"


@dataclass(frozen=True, slots=True)
class StringMatcher:
    """Attributes:
    value: What to compare with; for REGEX an RE2 pattern that must match fully.
    ignore_case: ASCII only; never set with REGEX.
    """

    kind: StringKind
    value: str
    ignore_case: bool = False


@dataclass(frozen=True, slots=True)
class RangeMatcher:
    """Base-10 integers with `start <= n < end`."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class HeaderMatcher:
    """Attributes:
    name: Lower case; may be a pseudo header.
    test: What a value must satisfy; a bool asks for presence (True) or absence (False).
    exact_empty_matches_any: Only for the deprecated `exact_match: ""`, which Envoy reads as "present".
    """

    name: str
    test: StringMatcher | RangeMatcher | bool
    invert: bool = False
    treat_missing_as_empty: bool = False
    exact_empty_matches_any: bool = False


@dataclass(frozen=True, slots=True)
class QueryMatcher:
    """Attributes:
    test: What the first value must satisfy, undecoded; a bool asks for presence or absence.
    """

    name: str
    test: StringMatcher | bool


class PathKind(Enum):
    PREFIX = "prefix"
    PATH = "path"
    REGEX = "regex"
    SEPARATED_PREFIX = "path_separated_prefix"
    TEMPLATE = "uri_template"
    CONNECT = "connect"


@dataclass(frozen=True, slots=True)
class PathMatcher:
    kind: PathKind
    value: str
    case_sensitive: bool = True


RuntimeKeys = tuple[tuple[str, str], ...]
"""Names of fields, each with the key of the runtime value that counts instead of what the resource says.

Not compared: what follows from them is in the fields, and two parts with the same fields decide the same.
"""


@dataclass(frozen=True, slots=True)
class Fraction:
    """A share of requests: `numerator / denominator`, the denominator being 100, 10,000 or 1,000,000.

    Attributes:
        runtime_key: A runtime value of this key counts instead; empty: none does.
    """

    numerator: int
    denominator: int = 100
    runtime_key: str = ""


@dataclass(frozen=True, slots=True)
class ProxyCondition:
    """A condition on what only a proxy has: its peer's certificate, dynamic metadata, filter state.

    A client has no peer and no filter that sets metadata, so it always meets the same: what Envoy meets then.

    Attributes:
        text: The condition in words.
        holds: For every request of a client.
    """

    text: str
    holds: bool
