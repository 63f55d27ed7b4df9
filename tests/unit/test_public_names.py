"""What the package gives away is what it lists."""

import subprocess
import sys

import meshlib


def test_every_listed_name_is_there_and_the_list_is_sorted() -> None:
    assert sorted(meshlib.__all__) == meshlib.__all__
    assert all(hasattr(meshlib, name) for name in meshlib.__all__)
    assert set(meshlib.__all__) <= set(dir(meshlib))


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(meshlib, "nothing")


def test_importing_the_package_loads_no_library() -> None:
    code = "import meshlib, sys; print([name for name in ('grpc', 'httpx', 'google.protobuf') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"
