"""How a listener has the answers rewritten that the mesh gives itself (`local_reply_config`)."""

from dataclasses import dataclass, field
from enum import Enum

from meshlib.model.headers import HeaderAdd
from meshlib.model.matcher import Fraction, HeaderMatcher, RuntimeKeys

__all__ = [
    "AllOf",
    "AnyOf",
    "BodyFormat",
    "Comparison",
    "GrpcStatusIs",
    "HasFlag",
    "JsonObject",
    "JsonValue",
    "ReplyMapper",
    "ReplyRules",
    "ReplyTest",
    "RequestHas",
    "Sampled",
    "StatusIs",
    "TookMs",
]


class Comparison(Enum):
    EQ = 0
    GE = 1
    LE = 2
    NE = 3


@dataclass(frozen=True, slots=True)
class StatusIs:
    """Attributes:
    runtime_keys: Fields that a runtime value may stand for.
    """

    comparison: Comparison
    value: int
    runtime_keys: RuntimeKeys = field(default=(), compare=False)


@dataclass(frozen=True, slots=True)
class TookMs:
    """So many milliseconds since the request began; `runtime_keys` as above."""

    comparison: Comparison
    value: int
    runtime_keys: RuntimeKeys = field(default=(), compare=False)


@dataclass(frozen=True, slots=True)
class Sampled:
    """A share of the answers. Several such tests fall on the same requests, unless they are independent."""

    share: Fraction
    is_independent: bool = False


@dataclass(frozen=True, slots=True)
class GrpcStatusIs:
    """One of these gRPC statuses, which an HTTP status may stand for; or, excluded, none of them."""

    statuses: frozenset[int]
    is_excluded: bool = False


@dataclass(frozen=True, slots=True)
class HasFlag:
    """One of these response flags; without any, any flag at all."""

    flags: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class RequestHas:
    header: HeaderMatcher


@dataclass(frozen=True, slots=True)
class AllOf:
    """Without tests it holds."""

    tests: "tuple[ReplyTest, ...]" = ()


@dataclass(frozen=True, slots=True)
class AnyOf:
    """Without tests it does not hold."""

    tests: "tuple[ReplyTest, ...]"


ReplyTest = StatusIs | TookMs | Sampled | GrpcStatusIs | HasFlag | RequestHas | AllOf | AnyOf


@dataclass(frozen=True, slots=True)
class JsonObject:
    """Its fields are sorted by name."""

    fields: "tuple[tuple[str, JsonValue], ...]"


JsonValue = str | float | bool | None | tuple["JsonValue", ...] | JsonObject
"""As in JSON; strings are substitution formats."""


@dataclass(frozen=True, slots=True)
class BodyFormat:
    """Attributes:
    text: A substitution format; None: the body is JSON.
    content_type: Of the body.
    omits_empty: What is absent is left out, else it stands there as `-` or `null`.
    """

    text: str | None
    fields: JsonObject | None = None
    content_type: str = "text/plain"
    omits_empty: bool = False


@dataclass(frozen=True, slots=True)
class ReplyMapper:
    """What happens to an answer that `test` holds for.

    Attributes:
        status: None: it stays.
        body: None: it stays.
        headers: Added.
        body_format: Takes the place of that of all answers; None: it does not.
    """

    test: ReplyTest
    status: int | None = None
    body: bytes | None = None
    headers: tuple[HeaderAdd, ...] = ()
    body_format: BodyFormat | None = None


@dataclass(frozen=True, slots=True)
class ReplyRules:
    """Attributes:
    mappers: The first one whose test holds counts.
    body_format: Of all answers; None: the body stays.
    """

    mappers: tuple[ReplyMapper, ...] = ()
    body_format: BodyFormat | None = None
