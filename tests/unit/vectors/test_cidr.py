"""CIDR ranges of authorization: v4, v6, and v4 as dual-stack sockets show it."""

import pytest

from meshlib.identity.authorization import AuthzRequest, compile_rbac
from meshlib.model.authorization import All, Ip, IpKind, Policy, Rbac, RbacAction
from meshlib.model.request import Headers, RequestHead

HEAD = RequestHead("GET", "a", "/", Headers())
CASES = [
    # Every length of v4 that changes something, at both edges.
    ("10.0.0.0/8", "10.0.0.0", True),
    ("10.0.0.0/8", "10.255.255.255", True),
    ("10.0.0.0/8", "9.255.255.255", False),
    ("10.0.0.0/8", "11.0.0.0", False),
    ("192.168.16.0/20", "192.168.31.255", True),
    ("192.168.16.0/20", "192.168.32.0", False),
    ("192.0.2.128/25", "192.0.2.127", False),
    ("192.0.2.128/25", "192.0.2.128", True),
    ("192.0.2.4/31", "192.0.2.5", True),
    ("192.0.2.4/31", "192.0.2.6", False),
    ("192.0.2.1/32", "192.0.2.1", True),
    ("192.0.2.1/32", "192.0.2.2", False),
    ("0.0.0.0/0", "255.255.255.255", True),
    # Bits behind the length do not count.
    ("10.1.2.3/8", "10.200.0.1", True),
    # v6.
    ("2001:db8::/32", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", True),
    ("2001:db8::/32", "2001:db9::", False),
    ("2001:db8::/33", "2001:db8:8000::", False),
    ("fe80::/10", "febf::1", True),
    ("fe80::/10", "fec0::1", False),
    ("::1/128", "::1", True),
    ("::1/128", "::2", False),
    ("::/0", "2001:db8::1", True),
    # The families do not meet.
    ("0.0.0.0/0", "::1", False),
    ("::/0", "10.0.0.1", False),
    ("::/0", "::ffff:10.0.0.1", False),
    # v4 inside of v6, on either side.
    ("10.0.0.0/8", "::ffff:10.1.2.3", True),
    ("10.0.0.0/8", "::ffff:11.1.2.3", False),
    ("10.0.0.0/8", "::ffff:a01:203", True),
    ("::ffff:10.0.0.0/104", "10.1.2.3", True),
    ("::ffff:10.0.0.0/104", "::ffff:10.1.2.3", True),
    ("::ffff:10.0.0.0/104", "11.0.0.1", False),
    ("::ffff:0:0/96", "203.0.113.9", True),
    # A scope is no part of an address; what is none is nowhere.
    ("fe80::/10", "fe80::1%eth0", True),
    ("0.0.0.0/0", "", False),
    ("0.0.0.0/0", "10.0.0", False),
    ("0.0.0.0/0", "unix:/x", False),
]


@pytest.mark.parametrize(("cidr", "address", "expected"), CASES)
def test_membership(cidr: str, address: str, expected: bool) -> None:
    condition = Ip(IpKind.SOURCE, cidr)
    rbac = Rbac("rbac", RbacAction.ALLOW, (Policy("p", condition, All()),))
    assert expected == compile_rbac(rbac).check(AuthzRequest(HEAD, source_ip=address)).allowed
