"""Looking a resource or a secret up, and what is noted of it."""

from meshlib.model.secret import ClientTls, SecretRef
from meshlib.model.snapshot import ConfigFault
from meshlib.xds.cache import ResourceCache, ResourceState
from meshlib.xds.follow_resources import SECRET, Facts, ResourceFollower, Scope, provider_secret_names
from meshlib.xds.resources import CDS, SDS


def follower(cache: ResourceCache, **facts: object) -> ResourceFollower:
    return ResourceFollower(Facts(cache, frozenset(), node_id="n", **facts))


def test_resource_is_noted_whether_it_is_there_or_not():
    cache = ResourceCache()
    cache.add(CDS, "there").value = "value"
    cache.add(CDS, "coming")
    found = follower(cache)
    assert ["value", None, None] == [found._need(CDS, name) for name in ("there", "coming", "unheard")]
    assert {(CDS, "there"), (CDS, "coming"), (CDS, "unheard")} == found.scope.needs


def test_refused_resource_is_a_fault_that_names_it_and_the_node():
    cache = ResourceCache()
    entry = cache.add(CDS, "a")
    entry.state, entry.error = ResourceState.NACKED, "lb_policy: unknown"
    fault = follower(cache)._need(CDS, "a")
    assert isinstance(fault, ConfigFault)
    assert "CDS resource a: invalid resource: lb_policy: unknown (xDS node ID:n)" == fault.message


def test_secrets_are_asked_for_and_those_nothing_is_known_of_are_missing():
    tls = ClientTls(certificate=SecretRef(sds_name="own"), trust=SecretRef(provider="files"))
    found = follower(ResourceCache(), pending_providers=frozenset({"files"}))
    assert ("SDS resource own", "certificate provider files") == found._secrets(tls, None)
    provided = {(SECRET, name) for name in provider_secret_names("files")}
    assert {(SECRET, "own"), (SDS, "own"), *provided} == found.scope.needs


def test_scope_takes_over_what_a_part_met():
    whole, part = Scope(), Scope()
    part.needs.add((CDS, "a"))
    part.is_volatile = True
    whole.add(part)
    assert ({(CDS, "a")}, True) == (whole.needs, whole.is_volatile)
