"""How a cluster chooses among its endpoints: the policies and their options."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Any

from meshlib.model.matcher import RuntimeKeys
from meshlib.model.route import HashPolicy

__all__ = [
    "ClientSideWeightedRoundRobin",
    "CustomPolicy",
    "LbPolicy",
    "LeastRequest",
    "Maglev",
    "PeakEwma",
    "PickFirst",
    "Random",
    "RandomSubsetting",
    "RingHash",
    "RingHashFunction",
    "RoundRobin",
    "SlowStart",
    "ZoneAware",
]

NO_CONFIG: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class SlowStart:
    """A host that has just become healthy begins with a part of its weight, which grows until the window is over.

    Attributes:
        window_s: More than 0.
        aggression: More than 0. 1.0: the weight grows in a straight line; more: faster at first.
        runtime_keys: Fields that a runtime value may stand for.
        min_weight: What it begins with at least, 0.0-1.0 of its weight; Envoy's default is 0.1.
    """

    window_s: float
    aggression: float = 1.0
    min_weight: float = 0.1
    runtime_keys: RuntimeKeys = field(default=(), compare=False)


@dataclass(frozen=True, slots=True)
class ZoneAware:
    """How requests keep to their own zone, once the bootstrap names the local cluster. Defaults are Envoy's.

    Attributes:
        enabled_percent: Of the requests, 0-100, in whole numbers.
        min_cluster_size: Healthy hosts below which zones do not matter.
        force_min_hosts: So many healthy hosts of our own zone take all of its requests; None: its fair share decides.
        by_weight: Zones are compared by the weights of their hosts, not by their number.
    """

    enabled_percent: int = 100
    min_cluster_size: int = 6
    force_min_hosts: int | None = None
    by_weight: bool = False


@dataclass(frozen=True, slots=True)
class RoundRobin:
    slow_start: SlowStart | None = None


@dataclass(frozen=True, slots=True)
class LeastRequest:
    """Attributes:
    choice_count: Endpoints drawn; Envoy's default is 2.
    active_request_bias: Exponent for weighted endpoints; Envoy's default is 1.0.
    full_scan: Look at all endpoints instead of a few drawn ones.
    runtime_keys: Fields that a runtime value may stand for.
    """

    choice_count: int = 2
    active_request_bias: float = 1.0
    slow_start: SlowStart | None = None
    full_scan: bool = False
    runtime_keys: RuntimeKeys = field(default=(), compare=False)


@dataclass(frozen=True, slots=True)
class Random:
    pass


class RingHashFunction(Enum):
    """How the points of a ring are made. Requests are hashed with XXH64 whatever the ring says."""

    XX_HASH = "XXH64"
    MURMUR_HASH_2 = "Murmur2"


@dataclass(frozen=True, slots=True)
class RingHash:
    """Attributes:
    min_size: Points of the whole ring, from 1 on; Envoy's and gRPC's default is 1024.
    max_size: Not below `min_size`; Envoy's and gRPC's default is 8 Mi.
    uses_hostname: Endpoints without a `hash_key` of their own are known by their hostname instead of their address.
    hash_policies: Count instead of the route's; empty: the route's count.
    balance_factor: Per cent of its fair share of the requests in flight that a host may have, from 100 on; the next
        host that has fewer takes what is beyond. None: no bound.
    """

    min_size: int = 1024
    max_size: int = 8 * 1024 * 1024
    function: RingHashFunction = RingHashFunction.XX_HASH
    uses_hostname: bool = False
    hash_policies: tuple[HashPolicy, ...] = ()
    balance_factor: int | None = None


@dataclass(frozen=True, slots=True)
class Maglev:
    """Attributes:
    table_size: A prime; Envoy's default is 65537.
    uses_hostname: As with `RingHash`.
    hash_policies: As with `RingHash`.
    balance_factor: As with `RingHash`.
    """

    table_size: int = 65537
    uses_hostname: bool = False
    hash_policies: tuple[HashPolicy, ...] = ()
    balance_factor: int | None = None


@dataclass(frozen=True, slots=True)
class ClientSideWeightedRoundRobin:
    """Round robin by weights that the hosts' own load reports (ORCA) give. Defaults are those of gRFC A58.

    Attributes:
        out_of_band: Reports come by a stream of their own from each host; those that come with answers do not count.
        reporting_period_s: Between the reports of such a stream.
        blackout_s: A host's weight counts this long after its first report.
        expiration_s: A weight counts this long after the last report.
        update_s: Between two looks at the weights; at least 0.1.
        error_penalty: How much the share of errors adds to the utilisation; None: the proto's 1.0 for gRPC calls, and
            what Envoy takes, 0.0, for others.
        metrics: What of a report is the utilisation, the greatest of these; empty or none of them reported:
            `application_utilization`, else `cpu_utilization` (A114).
    """

    out_of_band: bool = False
    reporting_period_s: float = 10.0
    blackout_s: float = 10.0
    expiration_s: float = 180.0
    update_s: float = 1.0
    error_penalty: float | None = None
    metrics: tuple[str, ...] = ()
    slow_start: SlowStart | None = None


@dataclass(frozen=True, slots=True)
class PickFirst:
    """Attributes:
    shuffle: The order of the endpoints is this client's own instead of the resource's (A62, by weight as in A113).
    """

    shuffle: bool = False


@dataclass(frozen=True, slots=True)
class PeakEwma:
    """Of two hosts drawn by chance, the one whose latency times requests in flight is less.

    Attributes:
        decay_s: A peak of latency is forgotten at the rate `exp(-age / decay_s)`.
        default_rtt_s: Latency of a host that has not answered yet.
        penalty_s: Latency that a failure, a 429 or a 503 stands for, at least; a `Retry-After` says how long.
        max_penalty_s: The longest `Retry-After` that is believed.
    """

    decay_s: float = 10.0
    default_rtt_s: float = 0.01
    penalty_s: float = 1.0
    max_penalty_s: float = 60.0


@dataclass(frozen=True, slots=True)
class CustomPolicy:
    """A policy that the application has registered (`meshlib.register_lb_policy`).

    Attributes:
        name: It is registered under.
        config: From the resource, deeply frozen.
    """

    name: str
    config: Mapping[str, Any] = field(default_factory=lambda: NO_CONFIG, hash=False)


@dataclass(frozen=True, slots=True)
class RandomSubsetting:
    """Each client uses a few of the endpoints only, others than its neighbours use (A68).

    Attributes:
        size: Endpoints, at least 1.
        child: Chooses among them.
        per_locality: So many of each locality, instead of each priority.
    """

    size: int
    child: "LbPolicy"
    per_locality: bool = False


LbPolicy = (
    RoundRobin
    | LeastRequest
    | Random
    | RingHash
    | Maglev
    | ClientSideWeightedRoundRobin
    | PickFirst
    | PeakEwma
    | CustomPolicy
    | RandomSubsetting
)
