"""Certificates from a SPIFFE Workload API, by the library `spiffe`: our own identity, and the roots of trust domains.

The library's stream runs on a thread of its own; what it brings is posted to the control thread, and opening it again
after an error is up to that. Nothing is written to disk, and no key is shown.

Source: SPIFFE_Workload_API.md, section 5.
"""

from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final

from meshlib.certificates_library import serialization
from meshlib.errors import ConfigError
from meshlib.identity.revocation import check_lists
from meshlib.model.secret import NO_CHECKS, PeerChecks, Secret, TlsCertificate, TrustBundle, TrustedCa
from meshlib.ports import Rng
from meshlib.runtime.scheduler import Scheduler, Timer
from meshlib.xds.backoff import ReconnectBackoff
from meshlib.xds.bootstrap import WorkloadApiConfig
from meshlib.xds.follow_resources import provider_secret_names

__all__ = ["WorkloadApi", "check_library", "secrets_of"]

MAX_WAIT_S: Final = 30.0
"""Between attempts: an agent that restarts is back in seconds, and certificates live for an hour."""


def check_library(instance: str) -> None:
    """Refuse to begin without the library.

    Raises:
        ConfigError: It is not installed.
    """
    if find_spec("spiffe") is None:
        raise ConfigError(
            f"certificate provider {instance!r}: spiffe_workload_api needs the package spiffe: "
            "pip install 'meshlib-xds[spiffe]'"
        )


class WorkloadApi:
    """The stream of one provider instance. Used on the control thread alone."""

    def __init__(
        self,
        instance: str,
        config: WorkloadApiConfig,
        *,
        scheduler: Scheduler,
        rng: Rng,
        updated: Callable[[tuple[Secret, ...]], None],
        failed: Callable[[str], None],
    ) -> None:
        """
        Args:
            updated: Called with the certificate and the roots.
            failed: Called with the reason when the stream has ended; it is opened again by itself.
        """
        self._instance = instance
        self._config = config
        self._scheduler = scheduler
        self._rng = rng
        self._updated = updated
        self._failed = failed
        self._backoff = ReconnectBackoff()
        self._timer: Timer | None = None
        self._client: Any = None
        self._stream: Any = None
        # Counts streams: what a former one still had to say is not heard.
        self._number = 0

    def connect(self) -> None:
        """Open the stream."""
        self._number += 1
        number = self._number
        try:
            self._client = _client_class()(self._config.socket or None)
        except Exception as error:
            self._ended(number, str(error))
            return

        def on_context(context: Any) -> None:
            found = secrets_of(self._instance, context, self._config.spiffe_id)
            self._scheduler.post(lambda: self._received(number, found))

        def on_error(error: Exception) -> None:
            text = str(error)
            self._scheduler.post(lambda: self._ended(number, text))

        self._stream = self._client.stream_x509_contexts(on_context, on_error, retry_connect=False)

    def disconnect(self) -> None:
        """Close the stream, before a fork or at the end."""
        self._number += 1
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        stream, self._stream = self._stream, None
        client, self._client = self._client, None
        if stream is not None:
            stream.cancel()
        if client is not None:
            client.close()

    def _received(self, number: int, found: tuple[Secret, ...]) -> None:
        if number == self._number:
            self._backoff = ReconnectBackoff()
            self._updated(found)

    def _ended(self, number: int, reason: str) -> None:
        if number != self._number:
            return
        self.disconnect()
        self._failed(f"certificate provider {self._instance!r}: the SPIFFE Workload API does not answer: {reason}")
        self._timer = self._scheduler.later(min(self._backoff.after_failure(self._rng), MAX_WAIT_S), self.connect)


@cache
def _client_class() -> Any:
    """Return the library's client, which leaves the revocation lists out of what it hands on.

    It makes each context of a response in a method of its own that is not public; the tests would notice its absence.
    """
    base: Any = import_module("spiffe").WorkloadApiClient

    class Client(base):  # type: ignore[misc]  # imported on use
        def _process_x509_context(self, response: Any) -> Any:
            context = super()._process_x509_context(response)
            context.revocation_lists = tuple(response.crl)
            return context

    return Client


def secrets_of(instance: str, context: Any, spiffe_id: str) -> tuple[Secret, ...]:
    """Return what the API has sent as secrets.

    Args:
        context: The library's `X509Context`.
        spiffe_id: Of the identity to use; empty: the first.

    Raises:
        ValueError: None of its identities is the one that is wanted, or a revocation list cannot be read.
    """
    certificate_name, roots_name = provider_secret_names(instance)
    identities = context.x509_svids
    own = next((one for one in identities if str(one.spiffe_id) == spiffe_id), None) if spiffe_id else identities[0]
    if own is None:
        known = ", ".join(str(one.spiffe_id) for one in identities)
        raise ValueError(f"there is no identity {spiffe_id}, only {known}")
    chain = b"".join(one.public_bytes(serialization.Encoding.PEM) for one in own.cert_chain)
    key = own.private_key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    bundles = [
        TrustBundle(
            bundle.trust_domain.name,
            b"".join(sorted(one.public_bytes(serialization.Encoding.PEM) for one in bundle.x509_authorities)),
        )
        for bundle in context.x509_bundle_set.bundles
    ]
    bundles.sort(key=lambda bundle: bundle.trust_domain)
    lists = check_lists(getattr(context, "revocation_lists", ()))
    checks = PeerChecks(issuer_crls=lists) if lists else NO_CHECKS
    return (
        Secret(certificate_name, TlsCertificate(chain, key)),
        Secret(roots_name, TrustedCa(b"", bundles=tuple(bundles), checks=checks)),
    )
