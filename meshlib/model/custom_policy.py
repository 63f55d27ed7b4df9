"""Load-balancing policies that applications write: what they are given, what they answer, and where they register."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import isabstract
from typing import Any, Protocol, TypeVar

from meshlib.model.endpoint import Endpoint
from meshlib.model.load_report import LoadReport
from meshlib.ports import Lock, Rng

__all__ = ["LbEndpoint", "LbPolicy", "LbRequest", "LbResult", "has_lb_policy", "make_lb_policy", "register_lb_policy"]


class LbEndpoint(Protocol):
    """An endpoint as a policy sees it; the same object as long as the cluster has it.

    Attributes:
        address: `host:port`.
        endpoint: Its weight, metadata, hostname and health, as configured now.
        active: Requests of this process in flight to it.
    """

    @property
    def address(self) -> str: ...
    @property
    def endpoint(self) -> Endpoint: ...
    @property
    def active(self) -> int: ...


@dataclass(frozen=True, slots=True)
class LbRequest:
    """What a choice may depend on beside the endpoints.

    Attributes:
        now: Monotonic seconds.
        rng: Chance; the only source of it for a policy that is to be tested.
        hash: Of the request, by the route's hash policies; None: the route has none.
    """

    now: float
    rng: Rng
    hash: int | None = None


@dataclass(frozen=True, slots=True)
class LbResult:
    """How an attempt went.

    Attributes:
        is_success: There was an answer, and no error of the service (HTTP 5xx, a gRPC status other than OK).
        status: Of HTTP; 0 when there was no answer.
        latency_s: Until the response headers, or until the attempt failed; None: a stream's end, which says nothing.
        now: Monotonic seconds.
        load: What the service said about its load; None: nothing.
    """

    is_success: bool
    status: int
    latency_s: float | None
    now: float
    load: LoadReport | None = None


class LbPolicy(ABC):
    """The base of an application's policy. One object serves a cluster for as long as its configuration stays equal.

    What is given to `pick` has passed the mesh's own rules: priorities, panic, health, ejections and localities. Both
    methods are called from any thread, on the way of requests: they must not block, and should cost microseconds.
    """

    uses_hash = False
    """Whether `LbRequest.hash` is wanted; it costs a little."""

    def __init__(self, config: Mapping[str, Any]) -> None:  # noqa: B027 - a policy may have no configuration
        """Take the configuration of the resource.

        Args:
            config: Read-only; the `value` of the TypedStruct.

        Raises:
            ValueError: It is not valid; the resource is refused with this text.
        """

    @abstractmethod
    def pick(self, endpoints: Sequence[LbEndpoint], request: LbRequest) -> LbEndpoint | None:
        """Choose one of the endpoints.

        Args:
            endpoints: At least one; the same tuple until something about them changes.

        Returns:
            None: none is to be used, the call fails as without healthy endpoints (`UH`).
        """

    def record(self, endpoint: LbEndpoint, result: LbResult) -> None:  # noqa: B027 - most learn nothing
        """Learn how an attempt went. Called only for policies that override it."""


Made = TypeVar("Made", bound=Callable[[Mapping[str, Any]], LbPolicy])

# The one registry: like codecs, policies are code of the process, whatever meshes it has.
_lock = Lock()
_registered: dict[str, Callable[[Mapping[str, Any]], LbPolicy]] = {}


def register_lb_policy(name: str, *, replace: bool = False) -> Callable[[Made], Made]:
    """Register a load-balancing policy, as a decorator of its class, before a mesh is started.

    A cluster's `load_balancing_policy` list selects it with a `TypedStruct` (or an `Any`) whose type URL ends in
    `/<name>`. Lists with a name that is not registered fall back to their next entry.

    Args:
        name: For example `acme.balancing.Nearest`.
        replace: Take the place of a policy of that name.

    Raises:
        ValueError: The name is empty, has a slash, or is taken.
        TypeError: The name is no text, or the class has no `pick`.
    """
    if not isinstance(name, str):
        raise TypeError('give a name to register the policy under: @register_lb_policy("acme.balancing.Nearest")')
    if not name or "/" in name:
        raise ValueError(f"a load-balancing policy's name must not be empty or have a slash: {name!r}")

    def register(make: Made) -> Made:
        if isabstract(make) or (isinstance(make, type) and not hasattr(make, "pick")) or not callable(make):
            raise TypeError(f"the load-balancing policy {name!r} has no method `pick`")
        with _lock:
            if name in _registered and not replace:
                raise ValueError(f"a load-balancing policy {name!r} is registered already")
            _registered[name] = make
        return make

    return register


def has_lb_policy(name: str) -> bool:
    """Whether a policy of that name is registered."""
    return name in _registered


def make_lb_policy(name: str, config: Mapping[str, Any]) -> LbPolicy | None:
    """Make the policy of a name; None: there is none.

    Raises:
        ValueError: The policy does not take the configuration.
    """
    make = _registered.get(name)
    return None if make is None else make(config)
