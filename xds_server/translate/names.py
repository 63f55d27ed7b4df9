"""Names that Istio gives to things, so that people and tools recognise them."""

import ipaddress
import re

DOMAIN = "svc.cluster.local"
DEFAULT_NAMESPACE = "default"
ROOT_NAMESPACE = "istio-system"

_LABEL = re.compile(r"[a-zA-Z0-9]([-a-zA-Z0-9]{0,61}[a-zA-Z0-9])?")


def fqdn(host: str, namespace: str) -> str:
    """Expand a host without a dot within a namespace; any other is complete as it is."""
    return host if "." in host or host == "*" else f"{host}.{namespace}.{DOMAIN}"


def split_service(host: str) -> tuple[str, str] | None:
    """Return (name, namespace) of a full service name, or nothing for any other host."""
    name, dot, rest = host.partition(".")
    namespace, dot2, domain = rest.partition(".")
    return (name, namespace) if dot and dot2 and domain == DOMAIN and name and namespace else None


def cluster_name(port: int, subset: str, host: str) -> str:
    return f"outbound|{port}|{subset}|{host}"


def sni(port: int, subset: str, host: str) -> str:
    return f"outbound_.{port}_.{subset}_.{host}"


def aliases(host: str) -> tuple[str, ...]:
    """Return every name of a service but its short one, which other namespaces may share."""
    if (parts := split_service(host)) is None:
        return (host,)
    name, namespace = parts
    return (host, f"{name}.{namespace}.svc", f"{name}.{namespace}")


def host_matches(pattern: str, host: str) -> bool:
    """Tell whether a host or wildcard (`*.example.com`) covers a host."""
    if pattern.startswith("*"):
        return host.endswith(pattern[1:]) and len(host) > len(pattern) - 1
    return pattern == host


def host_problem(host: str) -> str:
    """Return what is wrong with a host, which may be a wildcard, or an empty string."""
    if not host or len(host) > 253:
        return "must be a host of 1 to 253 characters"
    if ip_problem(host) == "":
        return ""
    rest = host.removeprefix("*.") if host.startswith("*.") else host
    if host == "*" or all(_LABEL.fullmatch(label) for label in rest.removesuffix(".").split(".")):
        return ""
    return f"{host!r} is not a host name, an IP address or a wildcard such as *.example.com"


def label_problem(name: str) -> str:
    """Return what is wrong with a DNS label (a subset's name), or an empty string."""
    return "" if _LABEL.fullmatch(name) else f"{name!r} is not a DNS label: letters, digits and '-', at most 63"


def ip_problem(text: str) -> str:
    """Return what is wrong with an IP address, or an empty string. One with a zone means nothing to other machines."""
    try:
        if "%" in text:
            raise ValueError
        ipaddress.ip_address(text)
    except ValueError:
        return f"{text!r} is not an IP address"
    return ""


def cidr_problem(text: str) -> str:
    """Return what is wrong with an IP address or CIDR range, or an empty string."""
    try:
        if "%" in text:
            raise ValueError
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        return f"{text!r} is not an IP address or CIDR range"
    return ""


def host_port(address: str, port: int) -> str:
    """Join an address and a port; an IPv6 address gets brackets."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
