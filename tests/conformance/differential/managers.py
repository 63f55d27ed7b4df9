"""Random settings of connection managers."""

import random

from differential.generate import Json


def random_managers(seed: int | str, count: int) -> list[Json]:
    """Make settings, beside those that all have; the first are none."""
    chance = random.Random(f"managers/{seed}")
    return [{}, *(_manager(chance) for _ in range(count - 1))]


def _manager(chance: random.Random) -> Json:
    result: Json = {}
    if chance.random() < 0.6:
        result["normalize_path"] = chance.random() < 0.8
    if chance.random() < 0.5:
        result["merge_slashes"] = True
    if chance.random() < 0.6:
        actions = ("KEEP_UNCHANGED", "REJECT_REQUEST", "UNESCAPE_AND_REDIRECT", "UNESCAPE_AND_FORWARD")
        result["path_with_escaped_slashes_action"] = chance.choice(("IMPLEMENTATION_SPECIFIC_DEFAULT", *actions))
    if chance.random() < 0.6:
        result[chance.choice(("strip_matching_host_port", "strip_any_host_port"))] = True
    if chance.random() < 0.5:
        result["strip_trailing_host_dot"] = True
    return result
