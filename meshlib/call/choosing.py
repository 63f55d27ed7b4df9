"""Which endpoint an attempt goes to, where the policy of the cluster is not alone in saying so."""

from meshlib.balancing.build import keeps_priorities
from meshlib.balancing.endpoint_state import EndpointState
from meshlib.balancing.picker import Picker
from meshlib.call.endings import CallEndings
from meshlib.call.named import named_endpoints
from meshlib.call.retry_hosts import MAX_UNREACHABLE, TriedPriorities, another_host, unwanted_hosts
from meshlib.model.lb_policy import Maglev, RandomSubsetting, RingHash
from meshlib.model.outcome import Failure, FailureKind
from meshlib.routing.hash_policy import CookieMaker, cluster_hash
from meshlib.routing.session import Session
from meshlib.routing.table import RouteMatch
from meshlib.view import AggregateState, ClusterState

__all__ = ["HostChoice"]


class HostChoice(CallEndings):
    """What was tried before, subsets, hashes, sessions, and endpoints that a request names."""

    __slots__ = ()

    def _pick(self, picker: Picker, match: RouteMatch, cluster: ClusterState) -> EndpointState | None:
        """Choose an endpoint by all that may have a say: what was tried before, subsets, the request's hash."""
        if self._elsewhere is not None:
            (_, found), self._elsewhere = self._elsewhere, None
            return found
        retry, tried = self._plan.retry, self._tried
        if tried and retry is not None and retry.priority_update:
            picker = self._other_priorities(cluster, picker)
        if picker.has_subsets:
            picker = picker.within(match.criteria)
        hash_ = self._hash_for(match, cluster) if picker.uses_hash else None
        if tried and retry is not None and retry.chooses_hosts:
            avoid = unwanted_hosts(retry, tried)
            return picker.pick(hash_, self._rng, avoid, retry.host_selection_attempts)
        return picker.pick(hash_, self._rng)

    def _goes_elsewhere(self, failure: Failure, cluster: ClusterState) -> bool:
        """Whether another endpoint is there for a gRPC call that its own could not be connected to.

        gRPC's policies pick among endpoints that are connected, and pass over priorities without any; what has not left
        the client is no retry (gRFC A6).
        """
        match = self.match
        if failure.kind is not FailureKind.CONNECT or failure.request_sent or self._is_hedged:
            return False
        if match is None or match.session is not None or self._named is not None:
            return False
        if not self._unreachable:
            self._unreachable = []
        if len(self._unreachable) >= MAX_UNREACHABLE:
            return False
        self._unreachable.append(self._tried[-1])

        routed = self.target.clusters.get(match.cluster)
        # The leaves of an aggregate cluster are lower priorities (gRFC A37).
        others = routed.leaves if isinstance(routed, AggregateState) else ()
        for leaf in (cluster, *(other for other in others if other is not cluster)):
            hash_ = self._hash_for(match, leaf) if leaf.picker.uses_hash else None
            found = another_host(leaf, self._unreachable, match.criteria, hash_, self._rng)
            if found is not None:
                self._elsewhere = leaf, found
                return True
        return False

    def _other_priorities(self, cluster: ClusterState, usual: Picker) -> Picker:
        """Return the picker of a retry which avoids the priorities that were tried."""
        assert self.match is not None
        # Of an aggregate cluster they were avoided when its leaf was chosen.
        if keeps_priorities(cluster.config) or isinstance(self.target.clusters.get(self.match.cluster), AggregateState):
            return usual
        avoided = self._tried_priorities(cluster)
        return usual if avoided is None else cluster.picker_without(avoided) or usual

    def _tried_priorities(self, cluster: ClusterState) -> frozenset[int] | None:
        """Return the priorities that a retry avoids; None: load is spread as usual."""
        retry, match = self._plan.retry, self.match
        if match is None or retry is None or not retry.priority_update:
            return None
        if self._priorities is None:
            self._priorities = TriedPriorities()
        self._priorities.add(self._tried[-1])
        return self._priorities.avoided(cluster, retry.priority_update, match.criteria)

    def _next_leaf(self, routed: AggregateState) -> tuple[ClusterState, Picker]:
        """Return the leaf of an aggregate cluster that a retry goes to, and its picker."""
        if self._elsewhere is not None:
            leaf = self._elsewhere[0]
            return leaf, leaf.picker
        avoided = self._tried_priorities(routed)
        return routed.choose(self._rng) if avoided is None else routed.choose_without(avoided, self._rng)

    def _of_session(self, session: Session, cluster: ClusterState) -> tuple[EndpointState | None, bool]:
        """Return the endpoint that the request belongs to, and whether without it no other may be taken."""
        addresses = self._mark.addresses
        if not addresses:
            return None, False
        state = cluster.override(addresses, is_grpc=self.head.profile.grpc_sessions)
        return state, state is None and session.is_strict

    def _next_named(self, cluster: ClusterState) -> EndpointState | None:
        """Return the next endpoint that the request names (the `override_host` policy); None: the policy chooses.

        What it names is read once: retries go on along the list, in Envoy as here.
        """
        if self._named is None:
            self._named = named_endpoints(self._out.headers, cluster.config.cluster.named_by)
        return cluster.next_named(self._named) if self._named else None

    def _hash_for(self, match: RouteMatch, cluster: ClusterState) -> int | None:
        """Return the request's hash, the same for all attempts.

        It is made by the policies of the balancing policy, else by those of the cluster that the route names, else by
        the route's.
        """
        policy = cluster.config.cluster.lb_policy
        while isinstance(policy, RandomSubsetting):
            policy = policy.child
        if isinstance(policy, RingHash | Maglev) and policy.hash_policies:
            return cluster_hash(policy.hash_policies)(self._out, None)
        if not self._is_hashed:
            self._is_hashed = True
            maker, own = None, self._own_hashes
            if any(one.made is not None for one in own) if own else match.makes_cookies:
                maker = CookieMaker(self.target.client_id(self._rng))
                self._cookies = maker.lines
            self._hash = cluster_hash(own)(self._out, maker) if own else match.hash(self._out, maker)
        return self._hash

    def _move(self, leaf: ClusterState) -> None:
        """Go on with another leaf of an aggregate cluster."""
        assert self.match is not None
        self.cluster = leaf
        self._breaker = leaf.high_breaker if self.match.action.high_priority else leaf.breaker
