"""Pieces that the schemas of several kinds share."""

import re
from typing import Any

from xds_server.translate.fields import (
    Int,
    Kind,
    List,
    Map,
    Obj,
    Regex,
    Str,
    Unchecked,
    Unsupported,
)
from xds_server.translate.names import host_problem, label_problem

_HEADER = re.compile(r"[0-9A-Za-z!#$%&'*+.^_|~`-]+")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


def header_problem(name: str) -> str:
    """Return what is wrong with a header's name, or an empty string."""
    return "" if _HEADER.fullmatch(name) else f"{name!r} is not a header name"


def value_problem(value: str) -> str:
    """Return why a text cannot stand in a header or a path, or an empty string."""
    return "must not contain control characters" if _CONTROL.search(value) else ""


def template_problem(value: str) -> str:
    """As `value_problem`; and `%` starts a command operator in Envoy's header values, of which none is supported."""
    if "%" in value.replace("%%", ""):
        return "command operators (%...%) are not supported yet; a percent sign itself is written %%"
    return value_problem(value)


def path_problem(path: str) -> str:
    """Return why a path can never match or be sent, or an empty string."""
    return value_problem(path) if path.startswith("/") else f"{path!r} must start with /"


def exact_host_problem(host: str) -> str:
    """As `host_problem`, of a host that must not be a wildcard."""
    return f"{host!r} is a wildcard; name one host" if host.startswith("*") else host_problem(host)


PORT = Int(1, 65535)
HOST = Str(host_problem, empty=False)
EXACT_HOST = Str(exact_host_problem, empty=False)
LABELS = Map(Str())
TEXT = Str(value_problem)
SELECTOR = Obj({"matchLabels": LABELS})


def string_match(exact: Kind = TEXT, *, required: bool = True) -> Obj:
    """StringMatch. Not `required`: an empty one is allowed and means "is present"."""
    group = ("exact", "prefix", "regex")
    fields: dict[str, Kind] = {"exact": exact, "prefix": exact, "regex": Regex(star=not required)}
    return Obj(fields, one_of=(group,)) if required else Obj(fields, at_most_one_of=(group,), whole=group)


class _Metadata(Obj):
    """Kubernetes' ObjectMeta: has many fields of no interest here, so unknown ones are no error."""

    def decode(self, value: Any, at: Any) -> Any:
        known = {key: item for key, item in value.items() if key in self.fields} if isinstance(value, dict) else value
        return Obj.decode(self, known, at)


METADATA = _Metadata(
    {
        "name": Str(value_problem, empty=False),
        "namespace": Str(label_problem, empty=False),
        "labels": LABELS,
        "annotations": Map(Str()),
        "creationTimestamp": Str(),
    },
    required=("name",),
)

TARGET_REFS: dict[str, Kind] = {
    "targetRef": Unsupported("is not supported yet; select workloads by selector.matchLabels"),
    "targetRefs": Unsupported("is not supported yet; select workloads by selector.matchLabels"),
}

STATUS = Unchecked()
HOSTS = List(HOST, low=1)
