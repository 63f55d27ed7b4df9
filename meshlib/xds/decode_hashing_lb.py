"""Ring hash and Maglev: the cluster's own fields and the extensions."""

from dataclasses import dataclass, replace
from typing import Any, Final

from meshlib.model.lb_policy import Maglev, RingHash, RingHashFunction
from meshlib.model.route import HashPolicy
from meshlib.xds.decode_common import cover, join, wrapped
from meshlib.xds.decode_hash_policy import hash_policies
from meshlib.xds.problems import Problems

__all__ = ["HASHING_TYPES", "Hashing", "common_hashing", "hashing_extension", "maglev_policy", "ring_hash_policy"]

RING_HASH_TYPE: Final = "envoy.extensions.load_balancing_policies.ring_hash.v3.RingHash"
MAGLEV_TYPE: Final = "envoy.extensions.load_balancing_policies.maglev.v3.Maglev"
HASHING_TYPES: Final = frozenset({RING_HASH_TYPE, MAGLEV_TYPE})

# What is worked out in Python must not take seconds at an update: see `balancing/ring_hash.py` and `maglev.py`.
MAX_MIN_RING_SIZE: Final = 65536
MAX_TABLE_SIZE: Final = 131071
DEFAULT_RING_SIZE: Final = 1024
DEFAULT_MAX_RING_SIZE: Final = 8 * 1024 * 1024
DEFAULT_TABLE_SIZE: Final = 65537

_LEGACY_FUNCTIONS: Final = {0: RingHashFunction.XX_HASH, 1: RingHashFunction.MURMUR_HASH_2}
_FUNCTIONS: Final = {
    0: RingHashFunction.XX_HASH,
    1: RingHashFunction.XX_HASH,
    2: RingHashFunction.MURMUR_HASH_2,
}
_RING_USED: Final = frozenset({"hash_function", "minimum_ring_size", "maximum_ring_size"})
_COMMON_USED: Final = frozenset({"consistent_hashing_lb_config", "locality_weighted_lb_config"})
_HASHING_USED: Final = frozenset({"use_hostname_for_hashing", "hash_balance_factor", "hash_policy"})


@dataclass(frozen=True, slots=True)
class Hashing:
    """What a ConsistentHashingLbConfig says."""

    uses_hostname: bool = False
    hash_policies: tuple[HashPolicy, ...] = ()
    balance_factor: int | None = None


def ring_hash_policy(message: Any, path: str, problems: Problems, hashing: Hashing) -> RingHash:
    """Decode a Cluster.RingHashLbConfig, which may be absent."""
    cover(message, path, problems, used=_RING_USED, harmless=frozenset())
    return _ring(message, path, problems, _LEGACY_FUNCTIONS, hashing)


def maglev_policy(message: Any, path: str, problems: Problems, hashing: Hashing) -> Maglev:
    """Decode a Cluster.MaglevLbConfig, which may be absent."""
    cover(message, path, problems, used=frozenset({"table_size"}), harmless=frozenset())
    return _maglev(message, path, problems, hashing)


def common_hashing(common: Any, path: str, problems: Problems) -> Hashing:
    """Decode `common_lb_config.consistent_hashing_lb_config`."""
    place = join(path, "common_lb_config.consistent_hashing_lb_config")
    return _hashing(common.consistent_hashing_lb_config, place, problems)


def hashing_extension(message: Any, path: str, problems: Problems) -> RingHash | Maglev:
    """Decode the extension RingHash or Maglev, but for its locality weights."""
    place = join(path, "consistent_hashing_lb_config")
    is_ring = message.DESCRIPTOR.full_name == RING_HASH_TYPE
    used = _RING_USED | {"use_hostname_for_hashing", "hash_balance_factor"} if is_ring else frozenset({"table_size"})
    cover(message, path, problems, used=_COMMON_USED | used, harmless=frozenset())
    hashing = _hashing(message.consistent_hashing_lb_config, place, problems)
    if message.HasField("consistent_hashing_lb_config"):
        policies = hash_policies(message.consistent_hashing_lb_config.hash_policy, join(place, "hash_policy"), problems)
        if any(policy.made is not None for policy in policies):
            problems.error(join(place, "hash_policy"), "cookies that are made up (ttl) are not supported here")
        hashing = replace(hashing, hash_policies=policies)
    elif is_ring:
        # The deprecated fields count only without the newer message.
        hashing = Hashing(message.use_hostname_for_hashing, (), _balance_factor(message))
    if is_ring:
        return _ring(message, path, problems, _FUNCTIONS, hashing)
    return _maglev(message, path, problems, hashing)


def _hashing(message: Any, path: str, problems: Problems) -> Hashing:
    cover(message, path, problems, used=_HASHING_USED, harmless=frozenset())
    return Hashing(message.use_hostname_for_hashing, (), _balance_factor(message))


def _balance_factor(message: Any) -> int | None:
    """Return the per cent of a fair share; None: no bound. That it is at least 100 is a rule of the proto."""
    return wrapped(message, "hash_balance_factor") or None


def _ring(
    message: Any,
    path: str,
    problems: Problems,
    functions: dict[int, RingHashFunction],
    hashing: Hashing,
) -> RingHash:
    function = functions.get(message.hash_function)
    if function is None:
        problems.error(join(path, "hash_function"), f"unknown value {message.hash_function}")
        function = RingHashFunction.XX_HASH
    least, most = wrapped(message, "minimum_ring_size"), wrapped(message, "maximum_ring_size")
    least = DEFAULT_RING_SIZE if least is None else least
    most = DEFAULT_MAX_RING_SIZE if most is None else most
    if not 1 <= least <= MAX_MIN_RING_SIZE:
        problems.error(join(path, "minimum_ring_size"), f"must be from 1 to {MAX_MIN_RING_SIZE} here, is {least}")
    elif least > most:
        problems.error(join(path, "maximum_ring_size"), f"is {most}, less than minimum_ring_size, {least}")
    return RingHash(least, most, function, hashing.uses_hostname, hashing.hash_policies, hashing.balance_factor)


def _maglev(message: Any, path: str, problems: Problems, hashing: Hashing) -> Maglev:
    size = wrapped(message, "table_size")
    size = DEFAULT_TABLE_SIZE if size is None else size
    place = join(path, "table_size")
    if not 2 <= size <= MAX_TABLE_SIZE:
        problems.error(place, f"must be from 2 to {MAX_TABLE_SIZE} here, is {size}")
    elif any(size % factor == 0 for factor in range(2, int(size**0.5) + 1)):
        problems.error(place, f"must be a prime number, is {size}")
    return Maglev(size, hashing.uses_hostname, hashing.hash_policies, hashing.balance_factor)
