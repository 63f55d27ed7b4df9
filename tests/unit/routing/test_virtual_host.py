import pytest

from meshlib.routing.virtual_host import DomainIndex, strip_port


def index(*domains: str, ignore_port: bool = False) -> DomainIndex[str]:
    return DomainIndex([((domain,), domain) for domain in domains], ignore_port=ignore_port)


@pytest.mark.parametrize(
    ("domains", "authority", "expected"),
    [
        (("foo.com", "*.com", "foo.*", "*"), "foo.com", "foo.com"),
        (("*.com", "foo.*", "*"), "foo.com", "*.com"),  # any suffix wildcard beats any prefix wildcard
        (("foo.c*", "*m"), "foo.com", "*m"),
        (("*.com", "*.foo.com"), "a.foo.com", "*.foo.com"),
        (("f*", "foo.*"), "foo.org", "foo.*"),
        (("foo.*", "*"), "bar", "*"),
        (("foo.com",), "bar", None),
        (("foo.com",), "FOO.com", "foo.com"),
        (("FOO.com",), "foo.com", "FOO.com"),
        (("*.foo.com",), "foo.com", None),  # a wildcard stands for at least one character
        (("*.foo.com",), ".foo.com", None),
        (("foo.*",), "foo.", None),
        (("*-x.foo.com",), "-x.foo.com", None),
        (("*-x.foo.com",), "a-x.foo.com", "*-x.foo.com"),
        (("a*b",), "axb", None),  # only the first and last character can be a wildcard
        (("a*b",), "a*b", "a*b"),
        (("*.a.*",), "x.a.*", "*.a.*"),
        (("*.a.*",), "x.a.y", None),
        (("foo.com",), "foo.com:80", None),  # the port is part of the name
        (("foo.c*",), "foo.com:80", "foo.c*"),
        (("foo.com",), "foo.com.", None),
        (("*",), "", "*"),
        ((), "foo", None),
    ],
)
def test_search_order(domains: tuple[str, ...], authority: str, expected: str | None) -> None:
    assert index(*domains).find(authority) == expected


@pytest.mark.parametrize(
    ("host", "expected"),
    [("foo", "foo"), ("foo:80", "foo"), ("foo:", "foo"), ("foo:abc", "foo"), ("[::1]", "[::1]"), ("[::1]:80", "[::1]")],
)
def test_strip_port(host: str, expected: str) -> None:
    assert strip_port(host) == expected


def test_ports_can_be_ignored() -> None:
    assert index("foo.com", ignore_port=True).find("foo.com:80") == "foo.com"
    assert index("foo.com:80", ignore_port=True).find("foo.com:80") is None
    assert index("foo.com:80", ignore_port=True).exact == {}


def test_first_of_equal_domains_counts() -> None:
    assert DomainIndex([(("a",), 1), (("A", "*"), 2), (("*",), 3)]).find("a") == 1
    assert DomainIndex([(("*",), 2), (("*",), 3)]).find("a") == 2


def test_explanation_names_the_pattern_as_configured() -> None:
    found = index("*.Foo.com").explain("a.foo.COM")
    assert found is not None
    assert (found.domain, found.kind) == ("*.Foo.com", "suffix")
