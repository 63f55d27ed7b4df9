"""What an HTTP/1.1 server says before it has the whole request.

A response that is whole ends the request: its server does not wait for the rest, and may not even read it, so that whoever
goes on sending waits for ever. One that has only begun may need the rest, so the request goes on.
"""

from typing import Final

import httpcore

from meshlib.clients.http1_request import Http1Request
from meshlib.clients.http1_response import ResponseReader

__all__ = ["Answered", "Overheard"]

MOST_BYTES: Final = 65536
"""With more of a response there is nothing listened to any more: it is read when the request is sent."""


class Answered(Exception):
    """The request ends here, and the response begins with what was heard.

    Attributes:
        data: As it came, for whoever reads the response.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self.data = data


class Overheard:
    """Listens to a server while a request goes out.

    Attributes:
        data: What it has said so far.
    """

    def __init__(self, request: Http1Request) -> None:
        self.data = b""
        self._reader = ResponseReader()
        self._reader.begin(request.method, request.switches)
        self._has_head = False

    @property
    def listens(self) -> bool:
        """There is a point in reading more."""
        return len(self.data) < MOST_BYTES

    def take(self, data: bytes) -> None:
        """Take what came.

        Args:
            data: Empty: the server says nothing any more.

        Raises:
            Answered: The response is whole, or ends without being so.
            httpcore.RemoteProtocolError: There will be none.
        """
        self.data += data
        reader = self._reader
        if not self._has_head:
            if reader.head(data) is None:
                return
            self._has_head = True
            following = reader.open_body
        else:

            def following() -> list[bytes]:
                return reader.body(data)

        try:
            following()
        except httpcore.RemoteProtocolError:
            raise Answered(self.data) from None  # whoever reads the body will see
        if reader.is_complete:
            raise Answered(self.data)
