"""The local cluster: that whose endpoints the instances of this service are, for zone aware routing."""

from meshlib.balancing.host_sets import host_sets
from meshlib.balancing.picker import Picker
from meshlib.balancing.zone_aware import HomeZones, home_zones
from meshlib.model.endpoint import Locality
from meshlib.model.snapshot import HomePlace
from meshlib.view.cluster_state import ClusterState

__all__ = ["HomeState"]


class HomeState:
    """Knows how the hosts of the local cluster are; the same one over all configurations.

    Attributes:
        place: Fixed at creation.
        cluster: None: it is not there, or cannot be used. Swapped by updates, one assignment.
    """

    __slots__ = ("_made", "cluster", "place")

    def __init__(self, place: HomePlace) -> None:
        self.place = place
        self.cluster: ClusterState | None = None
        # A cluster has a new picker whenever anything about its hosts has changed.
        self._made: tuple[Picker | None, HomeZones | None] = (None, None)

    @property
    def own(self) -> Locality:
        """Where we are."""
        return self.place.locality

    def zones(self) -> HomeZones | None:
        """As `meshlib.balancing.zone_aware.Home`; an aggregate cluster has no hosts to count."""
        cluster = self.cluster
        if cluster is None or cluster.is_aggregate:
            return None
        picker = cluster.picker
        made, zones = self._made
        if made is not picker:
            zones = home_zones(host_sets(cluster.config, cluster.states, cluster.memory.seed), self.place.locality)
            self._made = (picker, zones)
        return zones
