"""One rule of an AuthorizationPolicy as one RBAC policy.

Source: Istio, pilot/pkg/security/authz/{builder,model,matcher}.
"""

import ipaddress
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from xds_server.translate.messages import Json
from xds_server.translate.schema_security import header_key

_SPIFFE = "spiffe://"
# Of `when` keys, these look at the request's target; all others look at who sends it.
_PERMISSION_KEYS = ("destination.ip", "destination.port", "connection.sni")


def rule_policy(rule: Mapping[str, Any], namespace: str) -> Json:
    """Return the RBAC policy of a rule.

    Args:
        namespace: Of the AuthorizationPolicy; service accounts without one are in it.
    """
    conditions = rule.get("when", ())
    permission_conditions = [_permission_condition(item) for item in conditions if item["key"] in _PERMISSION_KEYS]
    principal_conditions = [
        _principal_condition(item, namespace) for item in conditions if item["key"] not in _PERMISSION_KEYS
    ]
    permissions = [
        _all("rules", [*_operation(item["operation"]), *_flat(permission_conditions)]) for item in rule.get("to", ())
    ] or [_all("rules", _flat(permission_conditions))]
    principals = [
        _all("ids", [*_source(item["source"], namespace), *_flat(principal_conditions)])
        for item in rule.get("from", ())
    ] or [_all("ids", _flat(principal_conditions))]
    return {"permissions": permissions, "principals": principals}


def _flat(groups: Sequence[list[Json]]) -> list[Json]:
    return [item for group in groups for item in group]


def _all(word: str, items: list[Json]) -> Json:
    """Join with AND: `and_rules` of permissions or `and_ids` of principals; nothing to join: any."""
    return {f"and_{word}": {word: items or [{"any": True}]}}


def _values(word: str, block: Mapping[str, Any], name: str, make: Callable[[str], Json]) -> list[Json]:
    """Return the matchers of a field and of its `not` twin: values are joined with OR."""
    negative = "not_id" if word == "ids" else "not_rule"
    result: list[Json] = []
    if name in block:
        result.append({f"or_{word}": {word: [make(value) for value in block[name]]}})
    twin = f"not{name[0].upper()}{name[1:]}"
    if twin in block:
        result.append({negative: {f"or_{word}": {word: [make(value) for value in block[twin]]}}})
    return result


def _operation(operation: Mapping[str, Any]) -> list[Json]:
    return [
        *_values("rules", operation, "hosts", lambda text: {"header": _header(":authority", text, ignore_case=True)}),
        *_values("rules", operation, "methods", lambda text: {"header": _header(":method", text)}),
        *_values("rules", operation, "paths", lambda text: {"url_path": {"path": _path(text)}}),
        *_values("rules", operation, "ports", lambda text: {"destination_port": int(text)}),
    ]


def _source(source: Mapping[str, Any], namespace: str) -> list[Json]:
    return [
        *_values("ids", source, "principals", _principal),
        *_values("ids", source, "namespaces", _namespace),
        *_values("ids", source, "serviceAccounts", lambda text: _service_account(text, namespace)),
        *_values("ids", source, "trustDomains", _trust_domain),
        *_values("ids", source, "ipBlocks", lambda text: {"direct_remote_ip": _cidr(text)}),
        *_values("ids", source, "remoteIpBlocks", lambda text: {"remote_ip": _cidr(text)}),
    ]


def _permission_condition(condition: Mapping[str, Any]) -> list[Json]:
    make: Callable[[str], Json]
    match condition["key"]:
        case "destination.ip":
            make = lambda text: {"destination_ip": _cidr(text)}  # noqa: E731
        case "destination.port":
            make = lambda text: {"destination_port": int(text)}  # noqa: E731
        case _:
            make = lambda text: {"requested_server_name": _string(text)}  # noqa: E731
    return _values("rules", condition, "values", make)


def _principal_condition(condition: Mapping[str, Any], namespace: str) -> list[Json]:
    key = condition["key"]
    makers: dict[str, Callable[[str], Json]] = {
        "source.ip": lambda text: {"direct_remote_ip": _cidr(text)},
        "remote.ip": lambda text: {"remote_ip": _cidr(text)},
        "source.namespace": _namespace,
        "source.principal": _principal,
        "source.serviceAccount": lambda text: _service_account(text, namespace),
        "source.trustDomain": _trust_domain,
    }
    name = header_key(key)
    make = makers[key] if name is None else lambda text: {"header": _header(name.lower(), text)}
    return _values("ids", condition, "values", make)


def _authenticated(matcher: Json) -> Json:
    return {"authenticated": {"principal_name": matcher}}


def _regex(expression: str) -> Json:
    return {"safe_regex": {"regex": expression}}


def _string(text: str, prefix: str = "") -> Json:
    """Return the matcher of a value: exact, `p*` prefix, `*s` suffix, or `*` for anything that is not empty."""
    if text == "*":
        return _regex(".+")
    if text.startswith("*"):
        return _regex(f"{prefix}.*{re.escape(text[1:])}") if prefix else {"suffix": text[1:]}
    if text.endswith("*"):
        return {"prefix": prefix + text[:-1]}
    return {"exact": prefix + text}


def _principal(text: str) -> Json:
    return _authenticated(_string(text, _SPIFFE))


def _wild(text: str, anything: str = ".*") -> str:
    """Return an expression for a value in which a leading or trailing `*` is a wildcard."""
    if text == "*":
        return anything
    if text.startswith("*"):
        return anything + re.escape(text[1:])
    return re.escape(text[:-1]) + anything if text.endswith("*") else re.escape(text)


def _namespace(text: str) -> Json:
    return _authenticated(_regex(f".*/ns/{_wild(text)}/.*"))


def _service_account(text: str, namespace: str) -> Json:
    prefix, slash, name = text.partition("/")
    inside, account = (prefix, name) if slash else (namespace, text)
    return _authenticated(_regex(f"spiffe://.+/ns/{re.escape(inside)}/(.+/|)sa/{re.escape(account)}(/.+)?"))


def _trust_domain(text: str) -> Json:
    if "*" not in text:
        return _authenticated({"prefix": f"{_SPIFFE}{text}/"})
    return _authenticated(_regex(f"{_SPIFFE}{_wild(text, '[^/]*')}/.*"))


def _cidr(text: str) -> Json:
    network = ipaddress.ip_network(text, strict=False)
    return {"address_prefix": str(network.network_address), "prefix_len": network.prefixlen}


def _header(name: str, text: str, *, ignore_case: bool = False) -> Json:
    if text == "*":
        return {"name": name, "present_match": True}
    matcher = _string(text)
    return {"name": name, "string_match": matcher | ({"ignore_case": True} if ignore_case else {})}


def _path(text: str) -> Json:
    """Return the matcher of a path; a template becomes an expression, since gRPC knows no templates.

    `{*}` is one segment that is not empty, `{**}` any number of them.
    """
    if "{" not in text:
        return _string(text)
    pieces = re.split(r"(\{\*\*?\})", text)
    words = {"{*}": "[^/]+", "{**}": ".*"}
    return _regex("".join(words.get(piece, re.escape(piece)) for piece in pieces))
