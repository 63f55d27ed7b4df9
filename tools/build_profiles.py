"""Writes docs/reference/profiles.md: where HTTP requests and gRPC calls are decided differently, as the code has it."""

from dataclasses import fields
from pathlib import Path

from meshlib.model.profile import GRPC, HTTP, Profile

TARGET = Path(__file__).resolve().parents[1] / "docs" / "reference" / "profiles.md"
HEAD = """# Profiles: Envoy's rules and gRPC's

The same resources drive HTTP requests and gRPC calls. Where Envoy and gRPC's own clients read them differently, the profile of
the call decides: that of the client which makes it. httpx, requests, aiohttp and decorated functions have `http`, gRPC stubs and
channels have `grpc`. The content type changes nothing about that: an httpx request of `application/grpc` is decided as Envoy
decides it, and gets the mesh's own answers in the form in which Envoy gives them to such a request (status 200, `grpc-status`,
`grpc-message`).

This page is made of `meshlib/model/profile.py` by `make docs`; the code asks for each rule by its name. Where both profiles
decide otherwise than their peers is in [how it differs](../explanation/differences.md).

| What | HTTP: as Envoy 1.40 | gRPC | Source | Rule |
| --- | --- | --- | --- | --- |
"""


def page() -> str:
    """Return the page."""
    lines = []
    for rule in fields(Profile):
        if rule.metadata:
            about = rule.metadata
            lines.append(
                f"| {about['what']} | {about['http']} | {about['grpc']} | {about['source']} | `{rule.name}` |\n"
            )
    assert (HTTP.name, GRPC.name) == ("http", "grpc")
    return HEAD + "".join(lines)


if __name__ == "__main__":
    TARGET.write_text(page())
