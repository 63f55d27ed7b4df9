"""The secure listener: who gets secrets, and their rotation."""

from datetime import timedelta

import grpc
import pytest
from cryptography import x509

from xds_server.addresses import Address
from xds_server.identity import Identity
from xds_server.ordering import LDS, SDS
from xds_server.tokens import Tokens

IDENTITY = Identity("default", "checkout")


@pytest.fixture
def run_secure(run_server, tmp_path):
    def run(**config):
        return run_server(state_dir=tmp_path / "state", secure_listen=Address("127.0.0.1", 0), **config)

    return run


@pytest.fixture
def make_token(tmp_path):
    return lambda: Tokens.open(tmp_path / "state").issue(IDENTITY, timedelta(hours=1))


@pytest.fixture
def root(tmp_path):
    return lambda: (tmp_path / "state/ca/root.pem").read_bytes()


def certificate(secret) -> x509.Certificate:
    return x509.load_pem_x509_certificate(secret.tls_certificate.certificate_chain.inline_bytes)


async def test_client_with_a_token_gets_its_own_certificate(run_secure, connect, root, make_token, unpack):
    async with run_secure() as app, connect(app.secure_listen, root=root(), token=make_token()) as client:
        await client.ask(SDS, "default", "ROOTCA")
        roots, own = sorted(unpack(await client.response()), key=lambda secret: secret.name)
        assert ("ROOTCA", root()) == (roots.name, roots.validation_context.trusted_ca.inline_bytes)
        names = certificate(own).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert ["spiffe://cluster.local/ns/default/sa/checkout"] == names.get_values_for_type(
            x509.UniformResourceIdentifier
        )


async def test_client_without_a_token_gets_discovery_and_no_secrets(run_secure, connect, root):
    async with run_secure() as app, connect(app.secure_listen, root=root()) as client:
        await client.ask(SDS, "default")
        response = await client.response()
        assert [] == list(response.resources)
        assert "token" in response.resource_errors[0].error_detail.message
        await client.ask(LDS)
        assert LDS == (await client.response()).type_url


async def test_wrong_token_ends_the_stream(run_secure, connect, root, tmp_path):
    other = Tokens.open(tmp_path / "other").issue(IDENTITY, timedelta(hours=1))
    async with run_secure() as app, connect(app.secure_listen, root=root(), token=other) as client:
        assert grpc.StatusCode.UNAUTHENTICATED == await client.call.code()
        assert other not in await client.call.details()


async def test_stream_ends_with_its_token(run_secure, connect, root, tmp_path):
    async with run_secure() as app:
        short = Tokens.open(tmp_path / "state").issue(IDENTITY, timedelta(seconds=1.2))
        async with connect(app.secure_listen, root=root(), token=short) as client:
            await client.ask(LDS)
            await client.response()
            assert grpc.StatusCode.UNAUTHENTICATED == await client.call.code()
            assert "expired" in await client.call.details()


async def test_certificate_is_rotated_and_pushed(run_secure, connect, root, make_token, unpack):
    async with (
        run_secure(cert_ttl=timedelta(seconds=2)) as app,
        connect(app.secure_listen, root=root(), token=make_token()) as client,
    ):
        await client.ask(SDS, "default", "ROOTCA")
        first = await client.response()
        await client.ack(first, "ROOTCA", "default")
        before = next(each for each in unpack(first) if each.name == "default")
        (after,) = unpack(await client.response())  # the root has not changed
        assert certificate(before).serial_number != certificate(after).serial_number
        assert certificate(before).not_valid_after_utc < certificate(after).not_valid_after_utc
