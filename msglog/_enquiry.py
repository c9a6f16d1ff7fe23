"""An ENQUIRY to a server and its TERMS, over a plain socket: how C{ping} and C{bench} begin."""

from __future__ import annotations

import os
import socket
import time
from typing import TYPE_CHECKING, Any

from attrs import define, frozen

from ._errors import MsglogError, TLSError
from ._frames import Nack, Terms, decode_answers, encode_enquiry

if TYPE_CHECKING:
    from ._client_tls import TLS

__all__ = ["Answer", "Enquirer", "EnquiryFailed"]

# Read at a time.  TERMS are 42 bytes, a NACK with its reason some hundred.
_READ_BYTES = 4096


@define(eq=False)
class EnquiryFailed(MsglogError):
    """A server did not give its terms.  C{reason} says what happened instead."""

    reason: str

    def __str__(self) -> str:
        return self.reason


@frozen
class Answer:
    """
    @ivar terms: what the server said.
    @ivar address: where it is: the socket's family and its peer's address, resolved.
    @ivar connect_ns: how long the connection took, name and all; 0 if there was one already.
    @ivar round_trip_ns: from the ENQUIRY being sent to the last byte of the TERMS.
    """

    terms: Terms
    address: tuple[socket.AddressFamily, Any]
    connect_ns: int
    round_trip_ns: int


class Enquirer:
    """
    Asks one server, over a connection that it keeps while that is good.

    @param server: host and port.
    @param tls: how to speak TLS, if at all.
    """

    def __init__(self, server: tuple[str, int], tls: TLS | None = None) -> None:
        self._server = server
        self._tls = tls
        self._socket: socket.socket | None = None

    def ask(self, timeout: float) -> Answer:
        """
        Ask for the terms, as a client whose id nobody has.

        @param timeout: seconds that this may take, connecting included.
        @raise EnquiryFailed: there are no terms, for a reason that a person can act on.
        """
        begin = time.monotonic_ns()
        deadline = begin / 1e9 + timeout
        try:
            connected = self._socket is not None
            sock = self._socket = self._socket or self._connect(deadline)
            asked = time.monotonic_ns()
            terms = _ask(sock, deadline)
            answered = time.monotonic_ns()
            return Answer(
                terms,
                (sock.family, sock.getpeername()),
                0 if connected else asked - begin,
                answered - asked,
            )
        except EnquiryFailed:
            self.close()
            raise
        except TimeoutError as e:
            what = "connection" if self._socket is None else "answer"
            self.close()
            raise EnquiryFailed(f"no {what} within {timeout:g} s") from e
        except ConnectionRefusedError as e:
            raise EnquiryFailed("connection refused: no server listens there") from e
        except TLSError as e:
            raise EnquiryFailed(str(e)) from e
        except OSError as e:
            self.close()
            raise EnquiryFailed(e.strerror or str(e)) from e

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _connect(self, deadline: float) -> socket.socket:
        """Connect to the first of the host's addresses that can be connected to."""
        failure: OSError = OSError(f"{self._server[0]} has no address")
        for family, kind, protocol, _, address in socket.getaddrinfo(
            *self._server, type=socket.SOCK_STREAM
        ):
            sock = socket.socket(family, kind, protocol)
            try:
                sock.settimeout(_remaining(deadline))
                sock.connect(address)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError as e:
                sock.close()
                failure = e
            else:
                return sock if self._tls is None else self._tls.wrap(sock, self._server[0])
        raise failure


def _remaining(deadline: float) -> float:
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise TimeoutError
    return remaining


def _ask(sock: socket.socket, deadline: float) -> Terms:
    client = os.urandom(16)
    sock.settimeout(_remaining(deadline))
    sock.sendall(encode_enquiry(client))
    received = b""
    while True:
        sock.settimeout(_remaining(deadline))
        data = sock.recv(_READ_BYTES)
        if not data:
            raise EnquiryFailed(
                "the connection was closed without an answer; does one side speak TLS and the "
                "other not?"
            )
        received += data
        try:
            answer = next((answer for answer, _ in decode_answers(received)), None)
        except ValueError as e:
            raise EnquiryFailed(f"what answers is no msglog server: {e}") from e
        if isinstance(answer, Nack):
            raise EnquiryFailed(f"the server refuses: {answer.code.name}: {answer.reason}")
        if answer is None:
            continue
        if not isinstance(answer, Terms) or answer.client != client:
            raise EnquiryFailed("what answers is no msglog server: it answered something else")
        return answer
