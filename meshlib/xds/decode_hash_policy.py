"""What a request is hashed on: the hash policies of a route, or of a cluster's load-balancing policy."""

from typing import Any

from meshlib.model.route import HashPolicy
from meshlib.model.session import MadeCookie
from meshlib.xds.decode_common import cover, duration, join
from meshlib.xds.decode_matcher import regex_rewrite
from meshlib.xds.problems import Problems

__all__ = ["hash_policies"]


def hash_policies(messages: Any, path: str, problems: Problems) -> tuple[HashPolicy, ...]:
    """Decode a repeated RouteAction.HashPolicy field."""
    policies = (_hash_policy(message, f"{path}[{index}]", problems) for index, message in enumerate(messages))
    return tuple(policy for policy in policies if policy is not None)


def _hash_policy(message: Any, path: str, problems: Problems) -> HashPolicy | None:
    kind = message.WhichOneof("policy_specifier")
    terminal = bool(message.terminal)
    match kind:
        case "header":
            rewrite = None
            if message.header.HasField("regex_rewrite"):
                rewrite = regex_rewrite(message.header.regex_rewrite, join(path, "header.regex_rewrite"), problems)
            return HashPolicy("header", message.header.header_name.lower(), terminal, rewrite)
        case "cookie":
            return HashPolicy(
                "cookie",
                message.cookie.name,
                terminal,
                made=_made_cookie(message.cookie, join(path, "cookie"), problems),
            )
        case "connection_properties":
            if message.connection_properties.source_ip:
                problems.unused(join(path, "connection_properties.source_ip"), "a client has no caller's address")
            return HashPolicy("source_ip", "", terminal)
        case "query_parameter":
            return HashPolicy("query_parameter", message.query_parameter.name, terminal)
        case "filter_state":
            problems.unused(join(path, "filter_state"), "there are no filters here that could have set it")
            return HashPolicy("filter_state", message.filter_state.key, terminal)
        case _:
            return None


def _made_cookie(message: Any, path: str, problems: Problems) -> MadeCookie | None:
    """Decode which cookie is made for a caller without one. One without a `ttl` is never made."""
    cover(message, path, problems, used=frozenset({"name", "ttl", "path", "attributes"}), harmless=frozenset())
    if not message.HasField("ttl"):
        for name in ("path", "attributes"):
            if getattr(message, name):
                problems.unused(join(path, name), "no cookie is made without ttl")
        return None
    ttl_s = duration(message, "ttl", path, problems) or 0.0
    attributes = tuple((attribute.name, attribute.value) for attribute in message.attributes)
    return MadeCookie(int(ttl_s), message.path, attributes)
