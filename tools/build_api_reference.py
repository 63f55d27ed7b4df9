"""Write docs/reference/api.md from signatures and docstrings. Run by `make docs`.

The text between the headings of modules that is not in a docstring is in `INTRODUCTIONS`.
"""

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import meshlib.integrations

TARGET = Path(__file__).resolve().parent.parent / "docs" / "reference" / "api.md"
ADAPTERS = sorted(module.name for module in pkgutil.iter_modules(meshlib.integrations.__path__))

# What the methods of a mesh return and where their options are; not public by themselves.
BEHIND = {
    "meshlib.clients.httpx_sync": ["MeshTransport"],
    "meshlib.clients.httpx_async": ["AsyncMeshTransport"],
    "meshlib.clients.httpx_common": ["MeshRecord"],
    "meshlib.clients.grpc_sync": ["MeshChannel"],
    "meshlib.clients.grpc_aio": ["AioMeshChannel"],
    "meshlib.clients.grpc_intercept": ["intercept", "aio_interceptors"],
    "meshlib.clients.grpc_errors": ["CallInfo"],
    "meshlib.clients.function": ["decorate"],
    "meshlib.admin.explain": ["Explanation"],
    "meshlib.admin.status": ["MeshStatus", "ResourceStatus"],
    "meshlib.runtime.registration": ["Registration"],
    "meshlib.runtime.inbound": ["InboundSubscription"],
}
# The control thread, the fork hooks and waiting code call these.
ENGINE_ONLY = {"publish", "tick", "changed", "before_fork", "after_fork_in_parent", "after_fork_in_child", "not_ready"}

HEAD = """\
# Python API

Public is what `meshlib`, `meshlib.testing` and the modules of `meshlib.integrations` list in `__all__`; the rest may
change without notice, except what the last section names, which methods of a mesh return or take options of. This page
is made from signatures and docstrings (`make docs`).

Names say their units: `_s` is seconds, `_ms` milliseconds, `_percent` 0 to 100; `now` is monotonic.

## Defaults and where they come from

| Option | Default | From |
| --- | --- | --- |
| `state_dir` | `MESHLIB_STATE_DIR`, else `meshlib` in the user's cache directory; resources older than a week are not used | ours |
| `guard_unsafe` | on: requests that may have been processed are repeated only when that is safe | ours ([why](../explanation/differences.md#retries)) |
| `hand_on` | none beside `x-request-id`, B3 and `priority` | ours |
| `first_use_timeout_s` | {first_use} s | ours |
| a resource that the server does not have | {absent} s after it was asked for | Envoy's `initial_fetch_timeout`, gRFC A57 |
| `limits` of the httpx transports | {connections} connections per endpoint, idle ones kept for {keepalive} s | ours: uvicorn closes idle connections after 5 s |
| `passthrough` | `never`: a host that is not in the mesh is an error | ours |
| timeout of a route that gives none | {timeout} s for HTTP, none for gRPC | Envoy; gRFC A31 |
| retries of a route that gives none | none; `xds-server` writes Istio's two | Envoy, Istio |
| backoff | 25 ms, at most ten times that, full jitter; gRPC with jitter of 20 % | Envoy; gRFC A6 |
| attempts of a gRPC call | at most {grpc_attempts} | gRFC A6 |
| circuit breaker thresholds | 1024 requests, 3 retries at a time | Envoy (`xds-server`, like Istio, writes "no limit") |
| `connect_timeout` of a cluster | 5 s (`xds-server`, like Istio: 10 s) | Envoy |
| panic threshold | 50 % (`xds-server`, like Istio: off where there is outlier detection) | Envoy |
| outlier detection | off; see [xDS features](xds-features.md) | Envoy |
| kept request messages of a gRPC stream, for retries | {replay} KiB, {replay_messages} messages | gRFC A6; the number is ours |
| `ttl_s` of a lease | 5 s | ours |
| `service_port`, `namespace` | 80, `default` | ours, Kubernetes |
| wait for an inbound listener | {listener} s when announcing, {inbound} s for the first request otherwise | gRFC A57; ours |
| port of `prometheus.serve` | 15020 on loopback | Istio's |
"""

INTRODUCTIONS: Mapping[str, str] = {
    "meshlib": """\
Errors are one tree: `MeshError` is the root; `ConfigError` (with `BootstrapError` and `ResourceError`), `RoutingError`,
`UnavailableError`, `DeadlineExceeded` and `IdentityError` are below it. Clients raise what their users catch already:
httpx's transports raise `httpx.TransportError`s with the `MeshError` as `error.mesh`, gRPC's channels raise
`grpc.RpcError`s with a `CallInfo` as `error.mesh` and an `ErrorInfo` in their status details.""",
    "meshlib.testing": "Fakes for tests of services; [how to use them](../how-to/test.md).",
    "meshlib.integrations": "Adapters, one module each, loaded when they are first named. Each needs its framework and no other.",
}


def page() -> str:
    """Return the page."""
    modules = ["meshlib", "meshlib.testing", "meshlib.integrations"]
    modules += [f"meshlib.integrations.{name}" for name in ADAPTERS]
    lines = [HEAD.format(**constants())]
    for name in modules:
        module = importlib.import_module(name)
        lines += [f"## `{name}`", "", INTRODUCTIONS.get(name) or summary(module), ""]
        for public in module.__all__:
            lines += described(public, getattr(module, public))
    lines += ["## Behind the methods of a mesh", ""]
    for name, members in BEHIND.items():
        module = importlib.import_module(name)
        for member in members:
            lines += described(member, getattr(module, member), home=name)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


def constants() -> dict[str, Any]:
    """Return the numbers of the table of defaults."""
    from meshlib.clients.grpc_replay import LIMIT_BYTES, LIMIT_MESSAGES
    from meshlib.clients.httpx_common import DEFAULT_LIMITS
    from meshlib.model.profile import GRPC
    from meshlib.resilience.deadline import DEFAULT_TIMEOUT_S
    from meshlib.runtime.asking import FIRST_USE_TIMEOUT_S
    from meshlib.servers.announce import LISTENER_TIMEOUT_S
    from meshlib.servers.inbound import FIRST_CONFIG_TIMEOUT_S
    from meshlib.xds.sotw import DOES_NOT_EXIST_S

    return {
        "first_use": f"{FIRST_USE_TIMEOUT_S:g}",
        "absent": f"{DOES_NOT_EXIST_S:g}",
        "connections": DEFAULT_LIMITS.max_connections,
        "keepalive": f"{DEFAULT_LIMITS.keepalive_expiry:g}",
        "timeout": f"{DEFAULT_TIMEOUT_S:g}",
        "grpc_attempts": GRPC.max_attempts,
        "replay": LIMIT_BYTES // 1024,
        "replay_messages": LIMIT_MESSAGES,
        "listener": f"{LISTENER_TIMEOUT_S:g}",
        "inbound": f"{FIRST_CONFIG_TIMEOUT_S:g}",
    }


def summary(value: Any) -> str:
    return (inspect.getdoc(value) or "").partition("\n\n")[0].replace("\n", " ")


def described(name: str, value: Any, *, home: str = "") -> Iterator[str]:
    """Yield the lines about one name."""
    if isinstance(value, ModuleType):
        yield from (f"### `{name}`", "", "The adapters; below.", "")
        return
    where = f" ({home})" if home else ""
    if inspect.isclass(value):
        yield from (f"### `class {name}`{where}", "", *body(own_doc(value)))
        constructor = vars(value).get("__init__")
        is_told = constructor is not None and (is_written(constructor) or is_dataclass(value))
        if is_told and not issubclass(value, BaseException):
            text = inspect.getdoc(constructor) if is_written(constructor) else ""
            yield from (f"`{name}{signature(constructor)}`", "", *body(text or ""))
        for method, function in methods(value):
            called = name if isinstance(inspect.getattr_static(value, method), classmethod) else name.lower()
            if name != "Mesh":
                called = ""
            shown = f"{called}.{method}" if called else method
            if isinstance(function, property):
                yield from (f"`{shown}`", "", *body(inspect.getdoc(function) or ""))
            else:
                prefix = "async " if inspect.iscoroutinefunction(function) else ""
                yield from (
                    f"`{shown}{signature(function)}`",
                    "",
                    *body(prefixed(prefix, inspect.getdoc(function) or "")),
                )
        return
    if not callable(value):
        yield from (f"### `{name}`{where}", "", f"`{name} = {value!r}`", "")
        return
    yield from (f"### `{name}`{where}", "", f"`{name}{signature(value)}`", "", *body(inspect.getdoc(value) or ""))


def prefixed(prefix: str, text: str) -> str:
    return f"(coroutine) {text}" if prefix else text


def own_doc(value: Any) -> str:
    return inspect.cleandoc(vars(value).get("__doc__") or "")


def is_written(constructor: Any) -> bool:
    """Whether a constructor has a docstring of its own; `object`'s and those that dataclasses make say nothing."""
    return bool(constructor.__doc__) and "Initialize self" not in constructor.__doc__


def methods(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the public methods and properties that a class or its bases in this project define."""
    if issubclass(value, BaseException):
        return
    seen: set[str] = set()
    for owner in value.__mro__:
        if not owner.__module__.startswith("meshlib."):
            continue
        for name, member in vars(owner).items():
            if name.startswith("_") or name in seen or (value.__name__ == "Mesh" and name in ENGINE_ONLY):
                continue
            if inspect.isfunction(member) or isinstance(member, classmethod):
                # What only carries out an interface of a framework says nothing here.
                text = (member.__func__ if isinstance(member, classmethod) else member).__doc__
                if text and not text.startswith("See `"):
                    yield name, getattr(value, name)
                seen.add(name)
            elif isinstance(member, property) and member.__doc__:
                yield name, member
                seen.add(name)


def signature(function: Any) -> str:
    """Return a signature without `self` and annotations."""
    parameters = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for parameter in inspect.signature(function).parameters.values()
        if parameter.name not in ("self", "cls") and not parameter.name.startswith("_")
    ]
    parameters = [
        parameter.replace(default=Named(parameter.default)) if is_unreadable(parameter.default) else parameter
        for parameter in parameters
    ]
    return str(inspect.Signature(parameters))


def is_unreadable(value: Any) -> bool:
    return value is not inspect.Parameter.empty and ("<" in repr(value) or len(repr(value)) > 40)


class Named:
    """Stands for a default that has no short text of its own."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __repr__(self) -> str:
        return "..."


def body(text: str) -> list[str]:
    """Turn a Google-style docstring into Markdown."""
    lines: list[str] = []
    is_list = False
    if text.startswith("Attributes:\n"):  # a docstring of nothing else has lost the margin of its items
        text = re.sub(r"\n(?=.)", "\n    ", text)
    for line in text.splitlines():
        heading = re.fullmatch(r"(Args|Attributes|Returns|Raises|Yields):", line)
        if heading:
            is_list = True
            lines += ["", f"*{heading[1] if heading[1] != 'Args' else 'Arguments'}*", ""]
            continue
        if is_list and line.startswith("    "):
            item = re.fullmatch(r"    (\*{0,2}[\w.]+)(?: \([^)]*\))?: (.*)", line)
            if item:
                lines.append(f"- `{item[1]}`: {item[2]}")
            else:
                lines.append(
                    f"  {line.strip()}" if lines and lines[-1].startswith(("- ", "  ")) else f"- {line.strip()}"
                )
            continue
        if line:
            is_list = False
        lines.append(line)
    return [*lines, ""]


if __name__ == "__main__":
    TARGET.write_text(page())
