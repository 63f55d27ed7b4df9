"""Checks across documents and rules: what each one alone cannot tell."""

from collections.abc import Mapping, Sequence

from xds_server.model import Instance
from xds_server.translate.authorization import check_audit
from xds_server.translate.check_policies import check_peer_authentications, check_selectors
from xds_server.translate.check_routes import check_hosts, check_reachability, check_references, check_rules
from xds_server.translate.documents import Config
from xds_server.translate.report import Report


def check(configs: Mapping[str, Sequence[Config]], report: Report, instances: Sequence[Instance] = ()) -> None:
    """Report what is wrong between documents.

    Args:
        configs: Decoded documents by kind, oldest first.
        instances: What is registered; with none at all nothing is said about what they should match.
    """
    check_hosts(configs["VirtualService"], report)
    for config in configs["VirtualService"]:
        check_reachability(config, report)
    check_references(configs, instances, report)
    check_rules(configs["DestinationRule"], report)
    check_peer_authentications(configs["PeerAuthentication"], report)
    check_audit(configs["AuthorizationPolicy"], report)
    check_selectors((*configs["AuthorizationPolicy"], *configs["PeerAuthentication"]), instances, report)
