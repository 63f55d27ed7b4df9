"""Header mutations of routes, virtual hosts, route configurations and weighted clusters."""

from typing import Any, Final

from meshlib.model.route import AppendAction, HeaderAdd, HeaderChange, HeaderMutation
from meshlib.substitution import check_format
from meshlib.xds.decode_common import cover, join
from meshlib.xds.decode_matcher import string_matcher
from meshlib.xds.problems import Problems

__all__ = ["MUTATION_FIELDS", "check_name", "header_addition", "header_additions", "header_changes", "header_mutation"]

MUTATION_FIELDS: Final = frozenset(
    {"request_headers_to_add", "request_headers_to_remove", "response_headers_to_add", "response_headers_to_remove"}
)


def header_mutation(message: Any, path: str, problems: Problems) -> HeaderMutation:
    """Decode the four header fields that a route, virtual host, route configuration and weighted cluster share."""
    return HeaderMutation(
        request_remove=_removals(message, "request_headers_to_remove", path, problems),
        request_add=header_additions(message, "request_headers_to_add", path, problems),
        response_remove=_removals(message, "response_headers_to_remove", path, problems),
        response_add=header_additions(message, "response_headers_to_add", path, problems),
    )


def _removals(message: Any, name: str, path: str, problems: Problems) -> tuple[str, ...]:
    for index, header in enumerate(getattr(message, name)):
        check_name(header, f"{join(path, name)}[{index}]", problems)
    return tuple(header.lower() for header in getattr(message, name))


def header_additions(message: Any, name: str, path: str, problems: Problems) -> tuple[HeaderAdd, ...]:
    """Decode a repeated `HeaderValueOption`."""
    return tuple(
        header_addition(option, f"{join(path, name)}[{index}]", problems)
        for index, option in enumerate(getattr(message, name))
    )


def header_changes(messages: Any, path: str, problems: Problems) -> tuple[HeaderChange, ...]:
    """Decode a repeated `config.common.mutation_rules.v3.HeaderMutation` field."""
    return tuple(_change(message, f"{path}[{index}]", problems) for index, message in enumerate(messages))


def _change(message: Any, path: str, problems: Problems) -> HeaderChange:
    cover(message, path, problems, used=frozenset({"remove", "append", "remove_on_match"}), harmless=frozenset())
    kind = message.WhichOneof("action")
    place = join(path, str(kind))
    match kind:
        case "remove":
            check_name(message.remove, place, problems)
            return HeaderChange(remove=message.remove.lower())
        case "append":
            return HeaderChange(add=header_addition(message.append, place, problems))
        case "remove_on_match":
            matcher = string_matcher(message.remove_on_match.key_matcher, join(place, "key_matcher"), problems)
            return HeaderChange(remove_if=matcher)
        case _:
            return HeaderChange()


def header_addition(option: Any, path: str, problems: Problems) -> HeaderAdd:
    """Decode a HeaderValueOption."""
    used = frozenset({"header", "append", "append_action", "keep_empty_value"})
    cover(option, path, problems, used=used, harmless=frozenset())
    header = option.header
    check_name(header.key, join(path, "header.key"), problems)
    value: str = header.value
    if header.raw_value:
        problems.unused(join(path, "header.raw_value"), "is not looked at, as in Envoy")
    if fault := check_format(value):
        problems.error(join(path, "header.value"), fault)
    action = AppendAction.APPEND_IF_EXISTS_OR_ADD
    try:
        action = AppendAction(option.append_action)
    except ValueError:
        problems.error(join(path, "append_action"), f"unknown value {option.append_action}")
    if option.HasField("append"):
        if action is not AppendAction.APPEND_IF_EXISTS_OR_ADD:
            problems.error(join(path, "append"), "cannot be given together with append_action")
        elif not option.append.value:
            action = AppendAction.OVERWRITE_IF_EXISTS_OR_ADD
    return HeaderAdd(header.key.lower(), value, action, option.keep_empty_value)


def check_name(name: str, path: str, problems: Problems) -> None:
    """Routing decides on the pseudo headers and the host, so Envoy lets no mutation touch them."""
    if name.startswith(":") or name.lower() == "host":
        problems.error(path, f"{name!r} may not be changed")
