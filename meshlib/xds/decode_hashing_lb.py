"""Ring hash and Maglev: the cluster's own fields and the extensions."""

from typing import Any, Final

from meshlib.model.cluster import Maglev, RingHash, RingHashFunction
from meshlib.model.route import HashPolicy
from meshlib.xds.decode_common import cover, join, wrapped
from meshlib.xds.decode_hash_policy import hash_policies
from meshlib.xds.problems import Problems

__all__ = ["HASHING_TYPES", "check_hostname_hashing", "hashing_extension", "maglev_policy", "ring_hash_policy"]

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


def ring_hash_policy(message: Any, path: str, problems: Problems, *, uses_hostname: bool) -> RingHash:
    """Decode a Cluster.RingHashLbConfig, which may be absent."""
    cover(message, path, problems, used=_RING_USED, harmless=frozenset())
    return _ring(message, path, problems, _LEGACY_FUNCTIONS, uses_hostname, ())


def maglev_policy(message: Any, path: str, problems: Problems, *, uses_hostname: bool) -> Maglev:
    """Decode a Cluster.MaglevLbConfig, which may be absent."""
    cover(message, path, problems, used=frozenset({"table_size"}), harmless=frozenset())
    return _maglev(message, path, problems, uses_hostname, ())


def check_hostname_hashing(common: Any, path: str, problems: Problems) -> bool:
    """Decode `common_lb_config.consistent_hashing_lb_config`: whether hosts are known by their names."""
    place = join(path, "common_lb_config.consistent_hashing_lb_config")
    return _hashing(common.consistent_hashing_lb_config, place, problems)


def hashing_extension(message: Any, path: str, problems: Problems) -> RingHash | Maglev:
    """Decode the extension RingHash or Maglev, but for its locality weights."""
    place = join(path, "consistent_hashing_lb_config")
    hashing = message.consistent_hashing_lb_config
    policies: tuple[HashPolicy, ...] = ()
    is_ring = message.DESCRIPTOR.full_name == RING_HASH_TYPE
    used = _RING_USED | {"use_hostname_for_hashing", "hash_balance_factor"} if is_ring else frozenset({"table_size"})
    cover(message, path, problems, used=_COMMON_USED | used, harmless=frozenset())
    uses_hostname = _hashing(hashing, place, problems)
    if message.HasField("consistent_hashing_lb_config"):
        policies = hash_policies(hashing.hash_policy, join(place, "hash_policy"), problems)
        if any(policy.made is not None for policy in policies):
            problems.error(join(place, "hash_policy"), "cookies that are made up (ttl) are not supported here")
    elif is_ring:
        # The deprecated fields count only without the newer message.
        uses_hostname = message.use_hostname_for_hashing
        _check_balance_factor(message, path, problems)
    if is_ring:
        return _ring(message, path, problems, _FUNCTIONS, uses_hostname, policies)
    return _maglev(message, path, problems, uses_hostname, policies)


def _hashing(message: Any, path: str, problems: Problems) -> bool:
    cover(message, path, problems, used=_HASHING_USED, harmless=frozenset())
    _check_balance_factor(message, path, problems)
    return bool(message.use_hostname_for_hashing)


def _check_balance_factor(message: Any, path: str, problems: Problems) -> None:
    if message.HasField("hash_balance_factor") and message.hash_balance_factor.value:
        problems.error(join(path, "hash_balance_factor"), "is not supported (bounded loads)")


def _ring(
    message: Any,
    path: str,
    problems: Problems,
    functions: dict[int, RingHashFunction],
    uses_hostname: bool,
    policies: tuple[HashPolicy, ...],
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
    return RingHash(least, most, function, uses_hostname, policies)


def _maglev(
    message: Any, path: str, problems: Problems, uses_hostname: bool, policies: tuple[HashPolicy, ...]
) -> Maglev:
    size = wrapped(message, "table_size")
    size = DEFAULT_TABLE_SIZE if size is None else size
    place = join(path, "table_size")
    if not 2 <= size <= MAX_TABLE_SIZE:
        problems.error(place, f"must be from 2 to {MAX_TABLE_SIZE} here, is {size}")
    elif any(size % factor == 0 for factor in range(2, int(size**0.5) + 1)):
        problems.error(place, f"must be a prime number, is {size}")
    return Maglev(size, uses_hostname, policies)
