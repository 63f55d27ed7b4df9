"""Entries, copies for the disk, and what they do not show."""

from meshlib.model.secret import Secret, TlsCertificate
from meshlib.xds.cache import ResourceCache, ResourceState, Spare
from meshlib.xds.resources import CDS, SDS
from meshlib.xds.wire import AnyBytes

SECRET = Secret("default", TlsCertificate(b"chain", b"PRIVATE"))


def with_secret() -> ResourceCache:
    cache = ResourceCache()
    entry = cache.add(SDS, "default")
    entry.value, entry.body, entry.version, entry.state = SECRET, b"PRIVATE", "1", ResourceState.ACKED
    return cache


def test_nothing_shows_the_bytes_of_a_resource() -> None:
    cache = with_secret()
    shown = repr([*cache, *cache.dump(1.0), AnyBytes(SDS, b"PRIVATE")])
    assert "PRIVATE" not in shown


def test_what_a_server_gave_is_kept_with_the_time_of_now() -> None:
    assert with_secret().dump(7.0) == (Spare(SDS, "default", "1", b"PRIVATE", 7.0),)


def test_copies_that_no_server_has_answered_for_are_kept_with_their_time() -> None:
    cache = with_secret()
    old = (Spare(CDS, "a", "0", b"", 1.0), Spare(SDS, "default", "0", b"", 1.0))
    cache.add_spares(old)
    entry = cache.add(CDS, "a")
    entry.is_spare = True
    assert cache.dump(7.0) == (Spare(SDS, "default", "1", b"PRIVATE", 7.0), old[0])


def test_other_types_are_not_touched_by_retain() -> None:
    cache = with_secret()
    cache.add(CDS, "a")
    cache.add(CDS, "b")
    cache.retain(CDS, ("b",))
    assert (cache.names(CDS), cache.names(SDS), len(cache)) == (("b",), ("default",), 2)
