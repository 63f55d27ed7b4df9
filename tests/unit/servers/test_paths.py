"""How a path may be read, other than as it was sent."""

import pytest

from meshlib.servers.paths import other_readings


@pytest.mark.parametrize(
    "target",
    ["/", "/users/7", "/users/7?next=//x/../%2e", "/a;x=1", "/a:b@c", "/caf%C3%A9", "/a%20b", "*"],
)
def test_what_clients_normally_send_has_one_reading(target: str) -> None:
    assert () == other_readings(target, None)


@pytest.mark.parametrize(
    ("target", "readings"),
    [
        ("/%61dmin", ("/admin",)),
        ("/caf%c3%a9", ("/caf%C3%A9",)),
        ("/v1/items%3Adelete", ("/v1/items:delete",)),
        ("/users//7", ("/users/7",)),
        ("//admin", ("/admin",)),
        ("/public/../admin", ("/admin",)),
        ("/public/%2e%2e/admin", ("/public/../admin", "/admin")),
        ("/public%2f..%2fadmin", ("/public/../admin", "/admin")),
        ("/public/..%5Cadmin", ("/admin",)),
        ("/public\\..\\admin", ("/public%5C..%5Cadmin", "/admin")),
        ("/../../admin/", ("/admin/",)),
        ("/a/.", ("/a/",)),
        ("/a/..", ("/",)),
        ("/%252e%252e/admin", ()),
        ("/%ff", ("/%FF",)),
        ("/caf\xc3\xa9", ("/caf%C3%A9",)),
        ("/admin#x?y", ()),
    ],
)
def test_readings_of_paths_that_are_written_in_another_way(target: str, readings: tuple[str, ...]) -> None:
    assert readings == other_readings(target, None)


def test_what_the_framework_routes_on_is_a_reading() -> None:
    assert ("/admin",) == other_readings("/users/7", b"/admin")
    assert () == other_readings("/users/7", b"/users/7")
