"""What an AuthorizationPolicy and a PeerAuthentication may contain. Rules of Istio's validation unless a comment says otherwise."""

import re
from typing import Any

from xds_server.codes import NEEDS_JWT
from xds_server.translate.fields import (
    INVALID,
    At,
    Choice,
    Kind,
    List,
    Map,
    Obj,
    Str,
    Unsupported,
    suggestion,
)
from xds_server.translate.names import cidr_problem
from xds_server.translate.schema_common import SELECTOR, TARGET_REFS, header_problem, value_problem

WHEN_KEYS = (
    "source.ip",
    "remote.ip",
    "source.namespace",
    "source.principal",
    "source.serviceAccount",
    "source.trustDomain",
    "destination.ip",
    "destination.port",
    "connection.sni",
)
_HEADER_KEY = re.compile(r"request\.headers\[(.+)\]")
_JWT = "needs a validated JWT (RequestAuthentication), which is not supported yet; the policy is refused"


class _Jwt:
    def decode(self, value: Any, at: At) -> Any:
        return at.error(_JWT, NEEDS_JWT)


def header_key(key: str) -> str | None:
    """Return X of `request.headers[X]`, or nothing."""
    found = _HEADER_KEY.fullmatch(key)
    return found[1] if found and not header_problem(found[1]) else None


def port_problem(text: str) -> str:
    ok = text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= 65535
    return "" if ok else f"{text!r} is not a port between 1 and 65535"


def path_template_problem(text: str) -> str:
    """Return what is wrong with a path that may hold `{*}` and `{**}`, or an empty string."""
    if "{" not in text and "}" not in text:
        return value_problem(text)
    rest = text.replace("{**}", "").replace("{*}", "")
    if "{" in rest or "}" in rest or "*" in rest:
        return f"{text!r} is not a path template; it may hold {{*}} and {{**}} and no other braces and wildcards"
    segments = text.split("/")
    if any(
        ("{*}" in segment and segment != "{*}") or ("{**}" in segment and segment != "{**}") for segment in segments
    ):
        return f"{text!r}: {{*}} and {{**}} must be whole segments"
    return "" if segments.count("{**}") <= 1 else f"{text!r} has {{**}} more than once"


def _with_not(fields: dict[str, Kind]) -> dict[str, Kind]:
    return fields | {f"not{name[0].upper()}{name[1:]}": kind for name, kind in fields.items()}


def _check_source(value: dict[str, Any], at: At) -> object:
    if {"serviceAccounts", "notServiceAccounts"} & value.keys() and (
        {"principals", "notPrincipals", "namespaces", "notNamespaces"} & value.keys()
    ):
        return at.error("serviceAccounts cannot stand together with principals or namespaces")
    return value if value else INVALID if at.written else at.error("is empty")


def _check_operation(value: dict[str, Any], at: At) -> object:
    return value if value else INVALID if at.written else at.error("is empty")


def _check_condition(value: dict[str, Any], at: At) -> object:
    key = value["key"]
    if key.startswith("request.auth."):
        return (at / "key").error(f"{key} {_JWT}", NEEDS_JWT)
    if key not in WHEN_KEYS and header_key(key) is None:
        return (at / "key").error(
            f"unknown condition {key!r:.80}{suggestion(key, (*WHEN_KEYS, 'request.headers[...]'))}"
        )
    problems = {"source.ip": cidr_problem, "remote.ip": cidr_problem, "destination.ip": cidr_problem}
    check = problems.get(key, port_problem if key == "destination.port" else None)
    for name in ("values", "notValues"):
        for index, text in enumerate(value.get(name, [])):
            if check is not None and (problem := check(text)):
                return (at / name / index).error(problem)
    return value


def _words(problem: Any = value_problem) -> Kind:
    return List(Str(problem, empty=False), low=1)


SOURCE = Obj(
    _with_not(
        {
            "principals": _words(),
            "namespaces": _words(),
            "serviceAccounts": _words(),
            "trustDomains": _words(),
            "ipBlocks": _words(cidr_problem),
            "remoteIpBlocks": _words(cidr_problem),
            "requestPrincipals": _Jwt(),
        }
    ),
    check=_check_source,
)
OPERATION = Obj(
    _with_not(
        {
            "methods": _words(),
            "paths": _words(path_template_problem),
            "hosts": _words(),
            "ports": _words(port_problem),
        }
    ),
    check=_check_operation,
)


RULE = Obj(
    {
        "from": List(Obj({"source": SOURCE}, required=("source",)), low=1),
        "to": List(Obj({"operation": OPERATION}, required=("operation",)), low=1),
        "when": List(
            Obj(
                {"key": Str(empty=False), "values": _words(), "notValues": _words()},
                required=("key",),
                any_of=(("values", "notValues"),),
                check=_check_condition,
            ),
            low=1,
        ),
    },
)


def _check_policy(value: dict[str, Any], at: At) -> object:
    if value.get("action") == "DENY" and not at.written.get("rules"):
        return at.error("action DENY without rules denies nothing; `rules: [{}]` denies everything")
    return value


AUTHORIZATION_POLICY = Obj(
    {
        "selector": SELECTOR,
        "action": Choice(
            ("ALLOW", "DENY", "AUDIT"),
            {"CUSTOM": "is not supported yet: external authorization services are not called"},
        ),
        "rules": List(RULE),
        "provider": Unsupported("is for action CUSTOM, which is not supported yet"),
        **TARGET_REFS,
    },
    check=_check_policy,
)


def _check_authentication(value: dict[str, Any], at: At) -> object:
    if value.get("portLevelMtls") and not value.get("selector", {}).get("matchLabels"):
        return (at / "portLevelMtls").error("needs a selector with matchLabels")
    return value


MTLS = Obj({"mode": Choice(("UNSET", "DISABLE", "PERMISSIVE", "STRICT"))})
PEER_AUTHENTICATION = Obj(
    {"selector": SELECTOR, "mtls": MTLS, "portLevelMtls": Map(MTLS, port_problem)}, check=_check_authentication
)
