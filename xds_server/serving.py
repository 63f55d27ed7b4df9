"""`xds-server serve` from start to signal: one ready line on stdout, the log on stderr."""

import asyncio
import logging
import signal
import sys

from xds_server.app import App, Config, StartError


def configure_logging(level: str) -> None:
    """Send the log to stderr.

    Raises:
        ValueError: The level is unknown.
    """
    levels = {name.lower(): value for name, value in logging.getLevelNamesMapping().items()}
    if level.lower() not in ("debug", "info", "warning", "error"):
        raise ValueError(f"--log-level must be debug, info, warning or error, not {level!r}")
    logging.basicConfig(
        stream=sys.stderr, level=levels[level.lower()], format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    # They log each connection and each change of each file at these levels.
    logging.getLogger("watchfiles").setLevel(logging.WARNING)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)


async def run(config: Config) -> None:
    """Serve until SIGTERM or SIGINT, then drain.

    Raises:
        ValueError: It cannot start; the text is one line. What is wrong with documents is printed before.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        app = App(config)
        await app.start()
    except StartError as error:
        for finding in error.findings:
            print(finding, file=sys.stderr)
        raise ValueError(str(error)) from error
    try:
        print(app.ready_line, flush=True)
        await stop.wait()
    finally:
        await app.stop()
