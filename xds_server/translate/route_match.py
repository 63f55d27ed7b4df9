"""A VirtualService's match as xDS route matches."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from xds_server.model import Position, Profile
from xds_server.translate.messages import Json
from xds_server.translate.report import Report

# Stock gRPC needs two routes per `withoutHeaders` entry; beyond this the table would explode.
MAX_GRPC_WITHOUT = 4


def is_catch_all(match: Mapping[str, Any]) -> bool:
    """Tell whether a match takes every request of its port."""
    conditions = ("method", "scheme", "authority", "headers", "withoutHeaders", "queryParams", "port")
    uri = match.get("uri", {"prefix": "/"})
    takes_all = uri.get("prefix") == "/" or uri.get("regex") in (".*", "/.*")
    return takes_all and not any(match.get(name) for name in conditions)


def route_matches(match: Mapping[str, Any], profile: Profile, report: Report, place: Position | None) -> list[Json]:
    """Return the xDS matches that together mean one match: one, several for stock gRPC, or none that it could evaluate."""
    result: Json = {**_path(match.get("uri")), "case_sensitive": not match.get("ignoreUriCase", False)}
    if params := match.get("queryParams"):
        if profile is Profile.GRPC:
            report.dropped(profile, "match.queryParams", "the match is left out, since gRPC has no query", place)
            return []
        result["query_parameters"] = [_parameter(name, matcher) for name, matcher in sorted(params.items())]
    headers = [
        {"name": f":{name}", "string_match": string_matcher(match[name])}
        for name in ("method", "authority", "scheme")
        if name in match
    ]
    headers += [_header(name, matcher) for name, matcher in _by_name(match.get("headers", {}))]
    without = _by_name(match.get("withoutHeaders", {}))
    if profile is Profile.GRPC and without:
        if len(without) > MAX_GRPC_WITHOUT:
            report.dropped(profile, f"more than {MAX_GRPC_WITHOUT} withoutHeaders", "the match is left out", place)
            return []
        ways = itertools.product(*(_grpc_without(name, matcher) for name, matcher in without))
        return [result | {"headers": [*headers, *way]} for way in ways]
    headers += [_without(name, matcher) for name, matcher in without]
    return [result | ({"headers": headers} if headers else {})]


def string_matcher(matcher: Mapping[str, Any]) -> Json:
    if "regex" in matcher:
        return {"safe_regex": {"regex": matcher["regex"]}}
    return {"exact": matcher["exact"]} if "exact" in matcher else {"prefix": matcher["prefix"]}


def _path(uri: Mapping[str, Any] | None) -> Json:
    if uri is None:
        return {"prefix": "/"}
    if "regex" in uri:
        return {"safe_regex": {"regex": uri["regex"]}}
    return {"path": uri["exact"]} if "exact" in uri else {"prefix": uri["prefix"]}


def _by_name(matchers: Mapping[str, Any]) -> Sequence[tuple[str, Mapping[str, Any]]]:
    return sorted((name.lower(), matcher) for name, matcher in matchers.items())


def _is_presence(matcher: Mapping[str, Any]) -> bool:
    # Envoy refuses an empty prefix; every value has it.
    return not matcher or matcher.get("regex") in ("*", ".*") or matcher.get("prefix") == ""


def _header(name: str, matcher: Mapping[str, Any]) -> Json:
    if _is_presence(matcher):
        return {"name": name, "present_match": True}
    return {"name": name, "string_match": string_matcher(matcher)}


def _without(name: str, matcher: Mapping[str, Any]) -> Json:
    """Match requests that lack the header, or whose value is another."""
    missing = {} if _is_presence(matcher) else {"treat_missing_header_as_empty": True}
    return _header(name, matcher) | {"invert_match": True} | missing


def _grpc_without(name: str, matcher: Mapping[str, Any]) -> Iterable[Json]:
    """As `_without`, for a client where a missing header fails every comparison, inverted ones too: two alternatives."""
    absent: Json = {"name": name, "present_match": True, "invert_match": True}
    return [absent] if _is_presence(matcher) else [absent, _header(name, matcher) | {"invert_match": True}]


def _parameter(name: str, matcher: Mapping[str, Any]) -> Json:
    if _is_presence(matcher):
        return {"name": name, "present_match": True}
    return {"name": name, "string_match": string_matcher(matcher)}
