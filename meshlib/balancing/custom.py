"""The application's own policies, put in the place of a picker."""

from collections.abc import Sequence

from meshlib.balancing.endpoint_state import EndpointState
from meshlib.balancing.memory import PolicyMemory
from meshlib.balancing.picker import HostPicker
from meshlib.model.custom_policy import LbPolicy, LbRequest, make_lb_policy
from meshlib.model.lb_policy import CustomPolicy
from meshlib.ports import Rng

__all__ = ["CustomPicker", "UsesHashPicker", "custom_picker", "make_custom", "wants_results"]


def make_custom(config: CustomPolicy) -> LbPolicy:
    """Make a policy by the name that it is registered under.

    Raises:
        ValueError: It is not registered, or does not take its configuration.
    """
    made = make_lb_policy(config.name, config.config)
    if made is None:
        raise ValueError(f"no load-balancing policy {config.name!r} is registered")
    return made


def wants_results(policy: LbPolicy) -> bool:
    """Whether a policy has a `record` of its own."""
    return type(policy).record is not LbPolicy.record


class CustomPicker(HostPicker):
    """Asks the policy; the list is not empty."""

    __slots__ = ("_memory", "_policy", "_states")

    def __init__(self, states: Sequence[EndpointState], policy: LbPolicy, memory: PolicyMemory) -> None:
        self._states = tuple(states)
        self._policy = policy
        self._memory = memory

    def choose(self, rng: Rng) -> EndpointState | None:
        return self._ask(None, rng)

    def _ask(self, hash_: int | None, rng: Rng) -> EndpointState | None:
        found = self._policy.pick(self._states, LbRequest(self._memory.now, rng, hash_))
        if found is None or isinstance(found, EndpointState):
            return found
        raise TypeError(
            f"{type(self._policy).__name__}.pick must return one of the endpoints that it is given, or None"
        )


class UsesHashPicker(CustomPicker):
    """Asks a policy that wants the request's hash."""

    __slots__ = ()

    uses_hash = True

    def pick(
        self, hash_: int | None, rng: Rng, avoid: Sequence[EndpointState] = (), attempts: int = 1
    ) -> EndpointState | None:
        """As `Picker.pick`."""
        state = self._ask(hash_, rng)
        if avoid:
            while attempts > 0 and state in avoid:
                state = self._ask(hash_, rng)
                attempts -= 1
        return state


def custom_picker(states: Sequence[EndpointState], policy: LbPolicy, memory: PolicyMemory) -> CustomPicker:
    """Make the picker for a list that is not empty."""
    return (UsesHashPicker if policy.uses_hash else CustomPicker)(states, policy, memory)
