"""Cookies: reading those of a request, and writing those that a response sets."""

from meshlib.model.request import RequestHead
from meshlib.model.session import MadeCookie

__all__ = ["cookie_value", "set_cookie"]


def cookie_value(head: RequestHead, name: str) -> str:
    """Return the value of the first cookie of a name, without quotes; empty when there is none."""
    for line in head.headers.all("cookie"):
        for pair in line.split(";"):
            key, equals, value = pair.strip(" \t").partition("=")
            if equals and key == name:
                if len(value) >= 2 and value[0] == value[-1] == '"':
                    value = value[1:-1]
                return value
    return ""


def set_cookie(name: str, value: str, made: MadeCookie) -> str:
    """Return the value of a `set-cookie` header, as Envoy writes it."""
    parts = [f'{name}="{value}"']
    if made.ttl_s:
        parts.append(f"Max-Age={made.ttl_s}")
    if made.path:
        parts.append(f"Path={made.path}")
    parts += [f"{key}={given}" if given else key for key, given in made.attributes]
    return "; ".join((*parts, "HttpOnly"))
