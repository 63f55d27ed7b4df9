"""Random settings of connection managers."""

import random

from differential.formats import body_format
from differential.generate import Json


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
            rules["body_format"] = body_format(chance)
        result["local_reply_config"] = rules
    return result


def _mapper(chance: random.Random) -> Json:
    result: Json = {"filter": _filter(chance)}
    if chance.random() < 0.6:
        result["status_code"] = chance.choice((200, 401, 404, 503, 599))
    if chance.random() < 0.5:
        result["body"] = {"inline_string": chance.choice(("", "not here", "hello"))}
    if chance.random() < 0.4:
        result["body_format_override"] = body_format(chance)
    if chance.random() < 0.4:
        name = chance.choice(("x-set", "x-new", "content-type", "location"))
        value = chance.choice(("a", "%RESPONSE_CODE%", "%RESP(:status)%", "%REQ(x-1)%", "%LOCAL_REPLY_BODY%"))
        action = chance.choice(("APPEND_IF_EXISTS_OR_ADD", "OVERWRITE_IF_EXISTS_OR_ADD", "ADD_IF_ABSENT"))
        result["headers_to_add"] = [{"header": {"key": name, "value": value}, "append_action": action}]
    return result


def _filter(chance: random.Random, depth: int = 0) -> Json:
    kind = chance.choice(
        ("status", "status", "flag", "header", "and", "or", *_OTHERS) if depth < 2 else ("status", "flag", *_OTHERS)
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
        case "traceable":
            return {"traceable_filter": {}}
        case "duration":
            # Nobody knows how long a request takes, but that it takes less than this.
            op, milliseconds = chance.choice((("GE", 0), ("GE", 3_600_000), ("LE", 3_600_000), ("EQ", 3_600_000)))
            value = {"default_value": milliseconds, "runtime_key": "nothing"}
            return {"duration_filter": {"comparison": {"op": op, "value": value}}}
        case "runtime":
            share = chance.choice(({}, {"percent_sampled": {"numerator": chance.choice((0, 100))}}))
            independent = {"use_independent_randomness": True} if chance.random() < 0.3 else {}
            return {"runtime_filter": {"runtime_key": "nothing", **share, **independent}}
        case "grpc":
            names = ("OK", "UNKNOWN", "UNAVAILABLE", "UNIMPLEMENTED", "NOT_FOUND", "PERMISSION_DENIED", "INTERNAL")
            statuses = [chance.choice(names) for _ in range(chance.randrange(3))]
            return {"grpc_status_filter": {"statuses": statuses, **_exclude(chance)}}
        case "metadata":
            tests: tuple[Json, ...] = ({"string_match": {"exact": "v"}}, {"present_match": False}, {"null_match": {}})
            matcher = {"filter": "f", "path": [{"key": "k"}], "value": chance.choice(tests)}
            found: Json = {} if chance.random() < 0.2 else {"matcher": matcher}
            if chance.random() < 0.6:
                found["match_if_key_not_found"] = chance.random() < 0.5
            return {"metadata_filter": found}
        case "type":
            types = [chance.choice(("NotSet", "DownstreamEnd")) for _ in range(chance.randrange(3))]
            return {"log_type_filter": {"types": types, **_exclude(chance)}}
    return {f"{kind}_filter": {"filters": [_filter(chance, depth + 1) for _ in range(2)]}}


_OTHERS = ("health", "traceable", "duration", "runtime", "grpc", "metadata", "type")


def _exclude(chance: random.Random) -> Json:
    return {"exclude": True} if chance.random() < 0.4 else {}
