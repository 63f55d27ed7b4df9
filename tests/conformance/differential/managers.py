"""Random settings of connection managers."""

import random

from differential.generate import Json, made_choice, made_time
from meshlib.substitution import check_format


def random_managers(seed: int | str, count: int) -> list[Json]:
    """Make settings, beside those that all have; the first are none."""
    chance = random.Random(f"managers/{seed}")
    return [{}, *(_manager(chance) for _ in range(count - 1))]


def _manager(chance: random.Random) -> Json:
    result: Json = {}
    if chance.random() < 0.6:
        result["normalize_path"] = chance.random() < 0.8
    if chance.random() < 0.5:
        result["merge_slashes"] = True
    if chance.random() < 0.6:
        actions = ("KEEP_UNCHANGED", "REJECT_REQUEST", "UNESCAPE_AND_REDIRECT", "UNESCAPE_AND_FORWARD")
        result["path_with_escaped_slashes_action"] = chance.choice(("IMPLEMENTATION_SPECIFIC_DEFAULT", *actions))
    if chance.random() < 0.6:
        result[chance.choice(("strip_matching_host_port", "strip_any_host_port"))] = True
    if chance.random() < 0.5:
        result["strip_trailing_host_dot"] = True
    if chance.random() < 0.6:
        rules: Json = {"mappers": [_mapper(chance) for _ in range(chance.choice((0, 1, 2)))]}
        if chance.random() < 0.5:
            rules["body_format"] = _format(chance)
        result["local_reply_config"] = rules
    return result


def _mapper(chance: random.Random) -> Json:
    result: Json = {"filter": _filter(chance)}
    if chance.random() < 0.6:
        result["status_code"] = chance.choice((200, 401, 404, 503, 599))
    if chance.random() < 0.5:
        result["body"] = {"inline_string": chance.choice(("", "not here", "hello"))}
    if chance.random() < 0.4:
        result["body_format_override"] = _format(chance)
    if chance.random() < 0.4:
        name = chance.choice(("x-set", "x-new", "content-type", "location"))
        value = chance.choice(("a", "%RESPONSE_CODE%", "%RESP(:status)%", "%REQ(x-1)%", "%LOCAL_REPLY_BODY%"))
        action = chance.choice(("APPEND_IF_EXISTS_OR_ADD", "OVERWRITE_IF_EXISTS_OR_ADD", "ADD_IF_ABSENT"))
        result["headers_to_add"] = [{"header": {"key": name, "value": value}, "append_action": action}]
    return result


def _filter(chance: random.Random, depth: int = 0) -> Json:
    kind = chance.choice(
        ("status", "status", "flag", "header", "health", "and", "or") if depth < 2 else ("status", "flag")
    )
    match kind:
        case "status":
            value = {"default_value": chance.choice((200, 301, 404, 503)), "runtime_key": "nothing"}
            op = chance.choice(("EQ", "GE", "LE", "NE"))
            return {"status_code_filter": {"comparison": {"op": op, "value": value}}}
        case "flag":
            return {"response_flag_filter": {"flags": chance.choice(([], ["NR"], ["NC", "FI"], ["UH"]))}}
        case "header":
            test = chance.choice(({"present_match": True}, {"string_match": {"prefix": "a"}}, {"invert_match": True}))
            return {"header_filter": {"header": {"name": chance.choice(("x-1", ":path", "accept")), **test}}}
        case "health":
            return {"not_health_check_filter": {}}
    return {f"{kind}_filter": {"filters": [_filter(chance, depth + 1) for _ in range(2)]}}


TEXTS = (
    "%LOCAL_REPLY_BODY%", "%RESPONSE_CODE%", "%RESPONSE_FLAGS%", "%RESPONSE_CODE_DETAILS%", "%REQ(x-1)%", "%REQ(x-9)%",
    "%RESP(x-set)%", "%RESP(location)%", "%ROUTE_NAME%", "%METADATA(ROUTE:ns:k)%", "%METADATA(ROUTE:ns)%",
    "%PATH(NQ)%", "%RESP(:status)%", "%RESP(content-type)%", "%UPSTREAM_HOST%", "%REQ(:authority):2%", "a%%b",
)  # fmt: skip


def _text(chance: random.Random) -> str:
    if chance.random() < 0.8:
        return chance.choice(TEXTS)
    # Settings of managers are part of the bootstrap: what Envoy refuses would keep it from starting.
    while True:
        made = (made_time if chance.random() < 0.5 else made_choice)(chance)
        if not check_format(made):
            return made


def _format(chance: random.Random) -> Json:
    result: Json = {}
    if chance.random() < 0.5:
        result["text_format"] = " ".join(_text(chance) for _ in range(chance.choice((1, 1, 3))))
    else:
        result["json_format"] = _object(chance, 0)
    if chance.random() < 0.4:
        result["omit_empty_values"] = True
    if chance.random() < 0.4:
        result["content_type"] = "application/problem"
    return result


def _object(chance: random.Random, depth: int) -> Json:
    def value() -> object:
        kind = chance.random()
        if depth < 2 and kind < 0.15:
            return _object(chance, depth + 1)
        if kind < 0.3:
            return [chance.choice((*TEXTS, None, True, 1, 2.5)) for _ in range(chance.randrange(3))]
        if kind < 0.4:
            return chance.choice((None, False, -1, 0.5, 1e20, "", 'q"\\u00e9'))
        return "".join(_text(chance) for _ in range(chance.choice((1, 1, 2))))

    return {chance.choice("abcdefg") + str(number): value() for number in range(chance.randrange(4))}
