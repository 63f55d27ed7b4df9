"""What a server's word does to one entry, whatever the variant of the protocol."""

import pytest

from meshlib.events import ResourceAccepted, ResourceRejected
from meshlib.xds.cache import Entry, ResourceState
from meshlib.xds.commands import DeletionIgnored, Report
from meshlib.xds.decode import Decoded
from meshlib.xds.resources import CDS
from meshlib.xds.verdicts import NOT_FOUND, Verdicts
from meshlib.xds.wire import ResourceError

KEY = (CDS, "a")


def taken(*features):
    """An entry whose resource is in use, and what may happen to it."""
    verdicts, entry = Verdicts(frozenset(features)), Entry(*KEY)
    commands = []
    verdicts.accept(entry, Decoded("a", "value", (), ()), b"value", "1", 1.0, commands)
    assert [Report(ResourceAccepted(CDS, "a", "1"))] == commands
    return verdicts, entry


@pytest.mark.parametrize(("features", "value"), [((), "value"), (("fail_on_data_errors",), None)])
def test_refused_resource_keeps_its_value_unless_errors_are_to_count(features, value):
    verdicts, entry = taken(*features)
    commands = []
    verdicts.refuse(entry, "bad", "2", 2.0, commands)
    assert (ResourceState.NACKED, value, "2") == (entry.state, entry.value, entry.failed_version)
    assert [Report(ResourceRejected(CDS, "a", "2", "bad"))] == commands


@pytest.mark.parametrize(
    ("features", "deletes", "value"),
    [((), False, "value"), ((), True, None), (("ignore_resource_deletion",), True, "value")],
)
def test_not_found_deletes_only_where_it_means_that(features, deletes, value):
    verdicts, entry = taken(*features)
    verdicts.report(entry, ResourceError("a", NOT_FOUND, ""), "2", 2.0, [], deletes=deletes)
    assert (value, value is None, "does not exist") == (entry.value, entry.is_absent, entry.error)


def test_ignored_deletion_is_told_once_and_is_over_when_the_server_has_it_again():
    verdicts, entry = taken("ignore_resource_deletion")
    commands = []
    for version in ("2", "3"):
        verdicts.remove(entry, version, 2.0, commands)
    assert "value" == entry.value
    assert [DeletionIgnored(KEY)] == [each for each in commands if isinstance(each, DeletionIgnored)]
    commands.clear()
    verdicts.accept(entry, Decoded("a", "value", (), ()), b"value", "4", 4.0, commands)
    assert DeletionIgnored(KEY, is_over=True) in commands


def test_ignored_deletion_is_over_when_nobody_wants_the_resource_any_more():
    verdicts, entry = taken("ignore_resource_deletion")
    verdicts.remove(entry, "2", 2.0, [])
    commands = []
    verdicts.retain(CDS, frozenset({"a"}), commands)
    assert [] == commands
    heir = Verdicts(frozenset())
    heir.inherit(verdicts)
    heir.retain(CDS, frozenset(), commands)
    assert [DeletionIgnored(KEY, is_over=True)] == commands
