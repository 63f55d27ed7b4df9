"""The certificate providers of the bootstrap, each with what it brought last."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Final

from meshlib.errors import ConfigError
from meshlib.model.secret import Secret
from meshlib.ports import Clock, Rng
from meshlib.runtime.certificate_files import read_provider
from meshlib.runtime.scheduler import Scheduler
from meshlib.runtime.workload_api import WorkloadApi, check_library
from meshlib.xds.bootstrap import FileWatcherConfig, ProviderConfig, WorkloadApiConfig

__all__ = ["CertificateSources"]

RETRY_S: Final = 5.0
"""After files that could not be used: most often they were caught while they are being replaced."""
LEAST_REFRESH_S: Final = 0.1
"""Files are not read more often than this, whatever the bootstrap says: it may say zero."""
PATIENCE_S: Final = 5.0
"""How long clusters wait for the first word of a provider; after that their calls fail and say why."""


class CertificateSources:
    """Belongs to the control thread; `secrets`, `since` and `pending` are replaced and not changed.

    Attributes:
        secrets: By name, see `provider_secret_names`. What cannot be read any more stays as it was.
        since: When each came, in monotonic seconds.
        pending: Instances that have not said anything, good or bad.
    """

    def __init__(
        self,
        providers: Mapping[str, ProviderConfig],
        *,
        clock: Clock,
        rng: Rng,
        changed: Callable[[], None],
        problem: Callable[[str, str], None],
    ) -> None:
        """
        Args:
            changed: Called when secrets are other than before, or nobody has to wait for them any more.
            problem: Called with the instance's place and what is wrong, or an empty text.

        Raises:
            ConfigError: A provider needs a library that is not installed.
        """
        for instance, config in providers.items():
            if isinstance(config, WorkloadApiConfig):
                check_library(instance)
        self._providers = providers
        self._clock = clock
        self._rng = rng
        self._changed = changed
        self._problem = problem
        self._streams: list[WorkloadApi] = []
        self.secrets: Mapping[str, Secret] = {}
        self.since: Mapping[str, float] = {}
        self.pending: frozenset[str] = frozenset()

    def begin(self, scheduler: Scheduler) -> None:
        """Read files and open streams; from now on on `scheduler`'s time."""
        self._scheduler = scheduler
        # After a fork the parent's streams do not work here, and closing their channels could hang.
        _inherited.append(self._streams)
        self._streams = []
        for instance, config in self._providers.items():
            match config:
                case FileWatcherConfig():
                    self._read(instance, config)
                case WorkloadApiConfig():
                    self._open(instance, config)

    def disconnect(self) -> None:
        """Close streams, before a fork or at the end."""
        for stream in self._streams:
            stream.disconnect()

    def resume(self) -> None:
        """Open them again."""
        for stream in self._streams:
            stream.connect()

    def _read(self, instance: str, config: FileWatcherConfig) -> None:
        delay_s = max(LEAST_REFRESH_S, config.refresh_interval_s)
        try:
            found = read_provider(instance, config, self.secrets)
        except ConfigError as error:
            delay_s = min(delay_s, RETRY_S)
            self._problem(_place(instance), str(error))
        else:
            self._take(instance, found.values())
        self._scheduler.later(delay_s, partial(self._read, instance, config))

    def _open(self, instance: str, config: WorkloadApiConfig) -> None:
        stream = WorkloadApi(
            instance,
            config,
            scheduler=self._scheduler,
            rng=self._rng,
            updated=partial(self._take, instance),
            failed=partial(self._fail, instance),
        )
        self._streams.append(stream)
        self.pending |= {instance}
        self._scheduler.later(PATIENCE_S, partial(self._settled, instance))
        stream.connect()

    def _fail(self, instance: str, reason: str) -> None:
        self._problem(_place(instance), reason)

    def _take(self, instance: str, found: Iterable[Secret]) -> None:
        self._problem(_place(instance), "")
        before = self.secrets
        new = {secret.name: secret for secret in found if before.get(secret.name) != secret}
        if new:
            self.since = {**self.since, **dict.fromkeys(new, self._clock())}
            self.secrets = {**before, **new}
            self._changed()
        self._settled(instance)

    def _settled(self, instance: str) -> None:
        if instance in self.pending:
            self.pending -= {instance}
            self._changed()


_inherited: list[list[WorkloadApi]] = []


def _place(instance: str) -> str:
    return f"certificate provider {instance}"
