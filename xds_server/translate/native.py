"""xDS resources written out in files, passed on as they are once they parse.

A document is one resource, or a list of them under `resources`; each says its type in `@type`. A resource may be wrapped
in an `envoy.service.discovery.v3.Resource` with a `ttl`: then it expires at clients that lose the server. Virtual hosts and
single endpoints must be wrapped, because the wrapper has their name.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from meshlib.protos import from_dict, message_class, pool, to_any
from xds_server.codes import (
    DUPLICATE_RESOURCE,
    NATIVE_INVALID,
    NATIVE_OVERRIDES,
    NATIVE_TYPE,
    NATIVE_UNKNOWN_FIELD,
    SCHEMA,
)
from xds_server.model import Document, Profile
from xds_server.translate.documents import is_native
from xds_server.translate.fields import At, suggestion
from xds_server.translate.messages import ENDPOINT, ENDPOINTS, LISTENER, SERVED_TYPES, VIRTUAL_HOST
from xds_server.translate.report import Report

_ANY = "google.protobuf.Any"
_WRAPPER = "envoy.service.discovery.v3.Resource"

# Types whose name is not in the message, or not the one that they are asked for by.
NAMED_OUTSIDE = {
    VIRTUAL_HOST: "<route configuration>/<name>",
    ENDPOINT: "xdstp://<authority>/envoy.config.endpoint.v3.LbEndpoint/<collection>/<name>",
}

# Heartbeats are sent three times as often, to every client.
MIN_TTL_S = 1.0


def add_native(
    documents: Iterable[Document], resources: dict[str, dict[str, Message]], profile: Profile, report: Report
) -> None:
    """Add the native resources of the documents to the generated ones, in whose place they come."""
    added: dict[tuple[str, str], At] = {}
    for at in _items(documents, report):
        found = _parse(at, report)
        if found is None:
            continue
        full_name, name, message, ttl = found
        if (other := added.get((full_name, name))) is not None:
            report.error(
                DUPLICATE_RESOURCE, f"{full_name} {name} is defined twice; also at {other.position}", at.position
            )
            continue
        added[full_name, name] = at
        if profile is Profile.ENVOY and full_name == LISTENER and message.HasField("api_listener"):
            continue  # for clients without a proxy; Envoy would refuse it
        if name in resources[full_name]:
            report.info(NATIVE_OVERRIDES, f"{full_name} {name} takes the place of the generated one", at.position)
        resources[full_name][name] = message if ttl is None else _wrapped(name, message, ttl)


def _items(documents: Iterable[Document], report: Report) -> Iterator[At]:
    for document in documents:
        if not is_native(document):
            continue
        at = At(document, report)
        if "@type" in document.content:
            yield at
            continue
        for key in document.content:
            if key != "resources":
                (at / key).error("unknown field; a document with `resources` has nothing else", NATIVE_UNKNOWN_FIELD)
        items = document.content["resources"]
        if not isinstance(items, list):
            (at / "resources").error("must be a list of xDS resources, each with @type")
            continue
        yield from (at / "resources" / index for index in range(len(items)))


def _wrapped(name: str, message: Message, ttl: float) -> Message:
    wrapper = message_class(_WRAPPER)(name=name, resource=to_any(message))
    wrapper.ttl.FromMilliseconds(round(ttl * 1000))
    made: Message = wrapper
    return made


def _parse(at: At, report: Report) -> tuple[str, str, Message, float | None] | None:
    """Return type, name, message and time to live in seconds."""
    value = at.written
    if not isinstance(value, dict) or not isinstance(value.get("@type"), str):
        at.error("must be an xDS resource, an object with @type")
        return None
    if value["@type"].rpartition("/")[2] != _WRAPPER:
        parsed = _parse_resource(value, at, report)
        if parsed is not None and parsed[0] in NAMED_OUTSIDE:
            at.error(f"must be wrapped in a {_WRAPPER} with its name: {NAMED_OUTSIDE[parsed[0]]}", SCHEMA)
            return None
        return None if parsed is None else (*parsed, None)
    before = report.findings()
    for key in value:
        if key not in ("@type", "name", "ttl", "resource"):
            (at / key).error(f"{_WRAPPER} has ttl, resource and name here, not {key!r:.80}", NATIVE_UNKNOWN_FIELD)
    inner = value.get("resource")
    if not isinstance(inner, dict) or not isinstance(inner.get("@type"), str):
        (at / "resource").error("must be an xDS resource, an object with @type")
        return None
    ttl = _parse_ttl(value, at)
    parsed = _parse_resource(inner, at / "resource", report)
    if parsed is not None and parsed[0] in NAMED_OUTSIDE:
        parsed = _named(value, parsed, at)
    elif parsed is not None and value.get("name", parsed[1]) != parsed[1]:
        (at / "name").error(f"must be the resource's own name, {parsed[1]!r}", SCHEMA)
    return None if parsed is None or report.findings() != before else (*parsed, ttl)


def _named(value: dict[str, Any], parsed: tuple[str, str, Message], at: At) -> tuple[str, str, Message] | None:
    """Give a resource the name that only its wrapper has."""
    name = value.get("name")
    kind = parsed[0].rpartition(".")[2]
    form = NAMED_OUTSIDE[parsed[0]]
    if not isinstance(name, str) or not name:
        at.error(f"a {kind} needs a name here: {form}", SCHEMA)
    elif (parsed[0] == VIRTUAL_HOST and not name.rpartition("/")[0]) or (
        parsed[0] == ENDPOINT and not name.startswith("xdstp://")
    ):
        (at / "name").error(f"the name of a {kind} is {form}", SCHEMA)
    else:
        return parsed[0], name, parsed[2]
    return None


def _parse_ttl(value: dict[str, Any], at: At) -> float | None:
    if "ttl" not in value:
        return None
    try:
        ttl_s = float(from_dict(_WRAPPER, {"ttl": value["ttl"]}).ttl.ToMilliseconds()) / 1000
    except (json_format.ParseError, TypeError, ValueError, AttributeError):
        ttl_s = 0.0
    if ttl_s < MIN_TTL_S:
        (at / "ttl").error(f'must be a duration of at least {MIN_TTL_S:g} s, such as "30s"', SCHEMA)
    return ttl_s


def _parse_resource(value: dict[str, Any], at: At, report: Report) -> tuple[str, str, Message] | None:
    full_name = value["@type"].rpartition("/")[2]
    if full_name not in SERVED_TYPES:
        served = ", ".join(f"type.googleapis.com/{name}" for name in SERVED_TYPES)
        (at / "@type").error(f"{value['@type']!r:.120} is not served from files; these are: {served}", NATIVE_TYPE)
        return None
    before = report.findings()
    _check_fields(pool().FindMessageTypeByName(full_name), value, at, is_any=True)
    if report.findings() != before:
        return None
    try:
        message: Message = from_dict(full_name, {key: item for key, item in value.items() if key != "@type"})
    except (json_format.ParseError, TypeError, ValueError, RecursionError, AttributeError, KeyError) as error:
        at.error(f"is not a {full_name}: {error}"[:500], NATIVE_INVALID)
        return None
    if full_name in NAMED_OUTSIDE:
        return full_name, "", message
    name = str(getattr(message, "cluster_name" if full_name == ENDPOINTS else "name"))
    if not name:
        at.error(f"{'cluster_name' if full_name == ENDPOINTS else 'name'} is missing", SCHEMA)
        return None
    return full_name, name, message


def _check_fields(descriptor: Descriptor, value: Any, at: At, *, is_any: bool = False) -> None:
    """Report fields that a message type does not have, wherever they are in the value.

    json_format would stop at the first and cannot say in which line it is. Wrong types are left to it.
    """
    if not isinstance(value, dict) or (descriptor.full_name.startswith("google.protobuf.") and not is_any):
        if descriptor.full_name == _ANY and isinstance(value, dict):
            _check_any(value, at)
        return
    known = {name: field for field in descriptor.fields for name in (field.name, field.json_name)}
    for key, item in value.items():
        if is_any and key == "@type":
            continue
        field = known.get(key)
        if field is None:
            hint = suggestion(key, tuple(field.name for field in descriptor.fields))
            (at / key).error(f"{descriptor.full_name} has no field {key!r:.80}{hint}", NATIVE_UNKNOWN_FIELD)
        elif field.message_type is not None:
            _check_value(field.message_type, item, at / key)


def _check_value(kind: Descriptor, item: Any, at: At) -> None:
    if kind.GetOptions().map_entry:
        values = kind.fields_by_name["value"]
        if isinstance(item, dict) and values.message_type is not None:
            for key in item:
                _check_fields(values.message_type, item[key], at / key)
    elif isinstance(item, list):
        for index, one in enumerate(item):
            _check_fields(kind, one, at / index)
    else:
        _check_fields(kind, item, at)


def _check_any(value: dict[str, Any], at: At) -> None:
    url = value.get("@type")
    if not isinstance(url, str):
        at.error("must have @type", NATIVE_INVALID)
        return
    try:
        descriptor = pool().FindMessageTypeByName(url.rpartition("/")[2])
    except KeyError:
        (at / "@type").error(f"unknown message type {url!r:.120}", NATIVE_INVALID)
        return
    if not descriptor.full_name.startswith("google.protobuf."):
        _check_fields(descriptor, value, at, is_any=True)
