import pytest

from meshlib.identity.spiffe import SpiffeId, parse_spiffe_id, spiffe_id_of


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("spiffe://td", SpiffeId("td", "")),
        ("spiffe://td/a", SpiffeId("td", "/a")),
        ("spiffe://cluster.local/ns/default/sa/checkout", SpiffeId("cluster.local", "/ns/default/sa/checkout")),
        ("spiffe://a-b_c.1/X/y.z", SpiffeId("a-b_c.1", "/X/y.z")),
        ("spiffe://" + "a" * 255, SpiffeId("a" * 255, "")),
        ("spiffe://td/...", SpiffeId("td", "/...")),
    ],
)
def test_valid_id(text: str, expected: SpiffeId) -> None:
    found = parse_spiffe_id(text)
    assert found == expected
    assert str(found) == text


@pytest.mark.parametrize(
    "text",
    [
        "", "td/a", "SPIFFE://td/a", "https://td/a", "spiffe:/td/a", "spiffe://", "spiffe:///a", "spiffe://TD/a",
        "spiffe://td:8080/a", "spiffe://user@td/a", "spiffe://td/", "spiffe://td//a", "spiffe://td/a/", "spiffe://td/./a",
        "spiffe://td/../a", "spiffe://td/a?q", "spiffe://td/a#f", "spiffe://td/a%20b", "spiffe://td/a b", "spiffe://td/ä",
        "spiffe://tä/a", "spiffe://td/a\x00", "spiffe://" + "a" * 256, "spiffe://td/" + "a" * 2048, " spiffe://td/a",
    ],
)  # fmt: skip
def test_invalid_id(text: str) -> None:
    with pytest.raises(ValueError, match="not a SPIFFE id"):
        parse_spiffe_id(text)


def test_istio_form_has_namespace_and_service_account() -> None:
    found = parse_spiffe_id("spiffe://td/ns/shop/sa/checkout")
    assert (found.namespace, found.service_account) == ("shop", "checkout")


@pytest.mark.parametrize("path", ["", "/checkout", "/ns/shop", "/ns/shop/sa/a/more", "/sa/a/ns/b", "/xx/ns/shop/sa"])
def test_other_forms_have_neither(path: str) -> None:
    found = SpiffeId("td", path)
    assert (found.namespace, found.service_account) == ("", "")


def test_a_certificate_has_exactly_one_uri() -> None:
    assert spiffe_id_of(["spiffe://td/a"]) == SpiffeId("td", "/a")
    for uris in ([], ["spiffe://td/a", "spiffe://td/b"], ["spiffe://td/a", "https://x"]):
        with pytest.raises(ValueError, match="exactly one URI"):
            spiffe_id_of(uris)


def test_a_trust_domain_is_no_workload() -> None:
    with pytest.raises(ValueError, match="not a workload"):
        spiffe_id_of(["spiffe://td"])
