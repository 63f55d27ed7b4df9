"""The rules that the protos themselves state as `(validate.rules)` options, checked as Envoy checks them.

Envoy refuses a resource that breaks one of these rules, so they are read from the descriptors and not written down a
second time. A rule on a scalar field without presence holds for its default too (`min_len` of an empty string); one on
a field of a oneof, a wrapper or a message holds when the field is set. What an `Any` holds is checked where it is
unpacked.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import re2
from google.protobuf.descriptor import FieldDescriptor

from meshlib.protos import message_class, pool
from meshlib.xds.problems import Problems

__all__ = ["check_constraints"]

Check = Callable[[Any], str]
"""Returns why a value is wrong, or the empty string."""

RELAXED: Final = frozenset(
    {
        # Names that only label statistics or explanations. Management servers for gRPC, istiod among them, leave them
        # out, because gRPC does not look at them.
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.stat_prefix",
        "envoy.config.route.v3.VirtualHost.name",
        "envoy.config.listener.v3.Filter.name",
        "envoy.config.core.v3.TransportSocket.name",
        # Required for Envoy; with gRPC's certificate providers the trust comes from a provider instance instead.
        "envoy.extensions.transport_sockets.tls.v3.CommonTlsContext.CombinedCertificateValidationContext"
        ".validation_context_sds_secret_config",
        # Envoy 1.40 takes a bucket without tokens, which lets nothing pass; the rule is one of older protos.
        "envoy.type.v3.TokenBucket.max_tokens",
        # `trust_bundles`, added later, may stand for them; Envoy does not check this message's rules.
        "envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig.trust_domains",
    }
)

_COMPARISONS: Final[tuple[tuple[str, str, Callable[[Any, Any], bool]], ...]] = (
    ("lt", "less than", lambda value, limit: value < limit),
    ("lte", "at most", lambda value, limit: value <= limit),
    ("gt", "greater than", lambda value, limit: value > limit),
    ("gte", "at least", lambda value, limit: value >= limit),
)
_HEADER_NAME: Final[Any] = re2.compile(r"^:?[0-9a-zA-Z!#$%&'*+-.^_|~`]+$")
_HEADER_VALUE: Final[Any] = re2.compile(r"^[^\x00-\x08\x0a-\x1f\x7f]*$")
_HEADER_BREAKERS: Final = ("\0", "\n", "\r")
_WRAPPERS: Final = frozenset(
    f"google.protobuf.{kind}Value"
    for kind in ("Double", "Float", "Int64", "UInt64", "Int32", "UInt32", "Bool", "String", "Bytes")
)


@dataclass(frozen=True, slots=True)
class _Plan:
    """What to look at in messages of one type.

    Attributes:
        oneofs: Of which a member is required, with the members' names.
        always: Scalar and repeated fields whose rules hold for the default value too.
        when_set: Rules of fields with presence.
        required: Message fields that must be there.
        children: Message fields to descend into, by name; True for maps.
    """

    oneofs: tuple[tuple[str, str], ...]
    always: tuple[tuple[str, Check], ...]
    when_set: tuple[tuple[str, Check], ...]
    required: tuple[str, ...]
    items: tuple[tuple[str, Check], ...]
    children: dict[str, bool]


def check_constraints(message: Any, path: str, problems: Problems) -> None:
    """Report every field below `message` that breaks a rule of its proto.

    Args:
        message: A message of the private pool.
        path: Field path of the message, empty for a resource.
        problems: Takes the errors.
    """
    plan = _plan(message.DESCRIPTOR.full_name)
    prefix = f"{path}." if path else ""
    for oneof, members in plan.oneofs:
        if message.WhichOneof(oneof) is None:
            problems.error(f"{prefix}{oneof}", f"one of {members} is required")
    for name in plan.required:
        if not message.HasField(name):
            problems.error(prefix + name, "is required")
    for name, check in plan.always:
        if reason := check(getattr(message, name)):
            problems.error(prefix + name, reason)
    for name, check in plan.when_set:
        if message.HasField(name) and (reason := check(getattr(message, name))):
            problems.error(prefix + name, reason)
    for name, check in plan.items:
        for index, item in enumerate(getattr(message, name)):
            if reason := check(item):
                problems.error(f"{prefix}{name}[{index}]", reason)
    children = plan.children
    if not children:
        return
    for field, value in message.ListFields():
        name = field.name
        if name not in children:
            continue
        if children[name]:
            for key in value:
                check_constraints(value[key], f'{prefix}{name}["{key}"]', problems)
        elif field.is_repeated:
            for index, item in enumerate(value):
                check_constraints(item, f"{prefix}{name}[{index}]", problems)
        else:
            check_constraints(value, prefix + name, problems)


@cache
def _plan(full_name: str) -> _Plan:
    text = pool().rules_of(full_name)
    stated: dict[str, Any] = json.loads(text) if text else {}
    fields = pool().FindMessageTypeByName(full_name).fields_by_name
    always: list[tuple[str, Check]] = []
    when_set: list[tuple[str, Check]] = []
    items: list[tuple[str, Check]] = []
    required: list[str] = []
    for name, data in stated.get("fields", {}).items():
        if f"{full_name}.{name}" in RELAXED:
            continue
        field, rules = fields[name], message_class("validate.FieldRules").FromString(bytes.fromhex(data))
        # A required member of a oneof is required where it is the one chosen, which is true by itself.
        if field.containing_oneof is None and (rules.message.required or rules.duration.required or rules.any.required):
            required.append(name)
        check = _check(field, rules, is_map=name in stated.get("maps", ()))
        if check is not None:
            (when_set if field.has_presence else always).append((name, check))
        if field.is_repeated and rules.repeated.HasField("items"):
            item_check = _scalar_check(field, rules.repeated.items)
            if item_check is not None:
                items.append((name, item_check))
    oneofs = tuple((name, members) for name, members in stated.get("oneofs", ()))
    return _Plan(oneofs, tuple(always), tuple(when_set), tuple(required), tuple(items), stated.get("children", {}))


def _check(field: FieldDescriptor, rules: Any, *, is_map: bool) -> Check | None:
    if is_map:
        return _map_check(field, rules.map)
    if field.is_repeated:
        return _count_check(rules.repeated)
    check = _scalar_check(field, rules)
    if check is not None and field.message_type is not None and field.message_type.full_name in _WRAPPERS:
        return lambda value: check(value.value)
    return check


def _count_check(rule: Any) -> Check | None:
    least, most = rule.min_items, rule.max_items if rule.HasField("max_items") else None
    if not least and most is None and not rule.unique:
        return None

    def check(values: Any) -> str:
        if len(values) < least:
            return f"needs at least {least} element{'s' if least > 1 else ''}"
        if most is not None and len(values) > most:
            return f"may have at most {most} elements"
        if rule.unique and len(set(values)) < len(values):
            return "has an element twice"
        return ""

    return check


def _map_check(field: FieldDescriptor, rule: Any) -> Check | None:
    """Rules of messages in a map are those of their type."""
    assert field.message_type is not None
    kinds = field.message_type.fields_by_name
    key = _scalar_check(kinds["key"], rule.keys)
    value = None if kinds["value"].message_type else _scalar_check(kinds["value"], rule.values)
    if key is None and value is None and not rule.min_pairs:
        return None

    def check(values: Any) -> str:
        if len(values) < rule.min_pairs:
            return f"needs at least {rule.min_pairs} element{'s' if rule.min_pairs > 1 else ''}"
        for name in values:
            if key is not None and (reason := key(name)):
                return f"a key {reason}"
            if value is not None and (reason := value(values[name])):
                return f"the value of {name[:100]!r} {reason}"
        return ""

    return check


def _scalar_check(field: FieldDescriptor, rules: Any) -> Check | None:
    kind = rules.WhichOneof("type")
    rule: Any = getattr(rules, kind) if kind else None
    match kind:
        case "string":
            return _string_check(rule)
        case "bytes":
            return _length_check(rule, "bytes")
        case "bool":
            return lambda value: "" if value == rule.const else f"must be {str(rule.const).lower()}"
        case "enum":
            return _enum_check(field, rule)
        case "duration":
            return _number_check(rule, _nanoseconds, lambda limit: f"{_nanoseconds(limit) / 1e9:g} s")
        case None | "message" | "any" | "repeated" | "map" | "timestamp":
            return None
        case _:
            return _number_check(rule, lambda value: value, lambda limit: f"{limit:g}")


def _number_check(rule: Any, number: Callable[[Any], Any], show: Callable[[Any], str]) -> Check | None:
    bounds = [
        (words, test, number(getattr(rule, name)), show(getattr(rule, name)))
        for name, words, test in _COMPARISONS
        if rule.HasField(name)
    ]
    if not bounds:
        return None

    def check(value: Any) -> str:
        actual = number(value)
        wrong = next(((words, text) for words, test, limit, text in bounds if not test(actual, limit)), None)
        return f"must be {wrong[0]} {wrong[1]}" if wrong else ""

    return check


def _nanoseconds(duration: Any) -> int:
    return int(duration.seconds) * 1_000_000_000 + int(duration.nanos)


def _enum_check(field: FieldDescriptor, rule: Any) -> Check | None:
    forbidden = frozenset(rule.not_in)
    names = (
        {number: value.name for number, value in field.enum_type.values_by_number.items()} if field.enum_type else {}
    )
    known = frozenset(names) if rule.defined_only else None
    if not forbidden and known is None:
        return None

    def check(value: int) -> str:
        if known is not None and value not in known:
            return f"unknown value {value}"
        return f"must not be {names[value]}" if value in forbidden else ""

    return check


def _string_check(rule: Any) -> Check | None:
    checks = [check for check in (_length_check(rule, "characters"),) if check is not None]
    if rule.HasField("max_bytes") or rule.HasField("min_bytes"):
        checks.append(_byte_length_check(rule))
    if rule.pattern:
        pattern: Any = re2.compile(rule.pattern)
        checks.append(lambda value: "" if pattern.search(value) else f"must match {rule.pattern}")
    if getattr(rule, "in"):
        listed = tuple(getattr(rule, "in"))
        checks.append(lambda value: "" if value in listed else f"must be one of {', '.join(listed)}")
    if rule.HasField("suffix"):
        checks.append(lambda value: "" if value.endswith(rule.suffix) else f"must end with {rule.suffix}")
    if rule.HasField("prefix"):
        checks.append(lambda value: "" if value.startswith(rule.prefix) else f"must start with {rule.prefix}")
    if rule.WhichOneof("well_known") == "well_known_regex":
        checks.append(_header_check(rule))
    if not checks:
        return None
    may_be_empty = rule.ignore_empty
    return lambda value: (
        "" if may_be_empty and not value else next((reason for check in checks if (reason := check(value))), "")
    )


def _header_check(rule: Any) -> Check:
    """The well-known regexes: HTTP_HEADER_NAME is 1, HTTP_HEADER_VALUE is 2; strict unless the rule says otherwise."""
    if rule.HasField("strict") and not rule.strict:
        return lambda value: "has a NUL, CR or LF" if any(c in value for c in _HEADER_BREAKERS) else ""
    if rule.well_known_regex == 1:
        return lambda value: "" if _HEADER_NAME.search(value) else "is not the name of a header"
    return lambda value: "" if _HEADER_VALUE.search(value) else "is not the value of a header"


def _length_check(rule: Any, unit: str) -> Check | None:
    least, most = rule.min_len, rule.max_len if rule.HasField("max_len") else None
    if not least and most is None:
        return None

    def check(value: Any) -> str:
        if len(value) < least:
            return f"must have at least {least} {unit}" if least > 1 else "must not be empty"
        return f"must have at most {most} {unit}" if most is not None and len(value) > most else ""

    return check


def _byte_length_check(rule: Any) -> Check:
    least, most = rule.min_bytes, rule.max_bytes if rule.HasField("max_bytes") else None

    def check(value: str) -> str:
        size = len(value.encode())
        if size < least:
            return f"must have at least {least} bytes"
        return f"must have at most {most} bytes" if most is not None and size > most else ""

    return check
