"""One run of C{msglog send}: from what is read to what is said at the end."""

from __future__ import annotations

import time
from pathlib import Path

import click
import orjson

from .._batch import Receipt
from .._blocking import BlockingClient
from .._counted import counted
from .._errors import MsglogError, NotLogged, SessionFailed, SpoolError
from .._frames import ABSURD_BODY_BYTES
from .._spool import Marks, Spool, Step
from ._console import fail
from ._ctrl_c import CtrlC
from ._delivery import Delivery
from ._lines import Input, Line, TextInput
from ._send_progress import Bar

__all__ = ["STOP_SECONDS", "Sending", "total_size"]

# How long Ctrl-C waits for the receipts of what is on its way, so that the count is the last word.
STOP_SECONDS = 2.0


class _Stopped(Exception):
    """A person wants it to end."""


class _Unwritten(OSError):
    """A receipt cannot be given to who wants it."""


class _Refused(Exception):
    """A line is not logged, and nothing more is to be sent after it."""


def total_size(inputs: list[Input | TextInput]) -> int | None:
    """How many bytes there are to read; L{None} if nobody knows."""
    sizes = [each.size for each in inputs]
    return None if None in sizes else sum(size or 0 for size in sizes)


class Sending:
    """
    @param client: sends the messages.
    @param bar: shows how far it is.
    @param inputs: what to send.
    @param spool: the client's spool, if it has one.
    @param timeout: seconds without progress before it is given up.
    @param skip_too_long: whether what the server does not take is left out.
    @param as_json: whether to print each receipt.
    """

    def __init__(
        self,
        client: BlockingClient,
        bar: Bar,
        inputs: list[Input | TextInput],
        spool: Path | None,
        timeout: float,
        skip_too_long: bool,
        as_json: bool,
    ) -> None:
        self._client = client
        self._inputs = inputs
        self._spool = spool
        self._skip_too_long = skip_too_long
        self._as_json = as_json
        self._left_out = 0
        self._why_refused = ""
        self._stopping = self._reading = False
        self._name = "" if inputs else "spool"
        self._read = self._read_before = 0  # bytes: of all files, and of those before this one
        self._receipt: Receipt | None = None
        self._total = total_size(inputs)
        self._bar = bar
        self._ctrl_c = CtrlC()
        receipt = self._take_receipt if as_json or spool is None else None
        self._delivery = Delivery(
            client, spool is not None, timeout, receipt, self._take_refusal, self._look
        )

    def run(self) -> int:
        """Send everything and say what came of it; the exit status."""
        begun = time.monotonic()
        with self._ctrl_c, self._bar:
            try:
                self._send_all()
            except _Stopped:
                self._stopping = True
                self._delivery.finish(STOP_SECONDS)
                self._bar.say(f"interrupted: {self._so_far()}")
                return 130
            except MsglogError as e:
                fail(f"{e}; {self._so_far()}")
            except _Unwritten as e:
                fail(f"{e}; {self._so_far()}")
            except OSError as e:
                fail(f"{self._name}: {e.strerror}; {self._so_far()}")
            finally:
                self._client.close(0)
        if self._why_refused:
            fail(f"{self._why_refused}; {self._so_far()}")
        self._forget()
        left_out = self._left_out + self._client.refused
        if left_out:
            fail(f"{_messages(left_out)} left out; {self._so_far()}")
        if not self._as_json:
            self._bar.say(self._summary(time.monotonic() - begun))
        return 0

    def _send_all(self) -> None:
        self._delivery.await_terms()
        self._reading = True
        try:
            self._read_all()
        except _Refused:
            pass
        self._reading = False
        self._delivery.finish()

    # --- reading ---------------------------------------------------------------------------

    def _read_all(self) -> None:
        for each in self._inputs:
            self._name = each.name
            key = each.key if self._spool is not None else None
            if key is not None:
                assert isinstance(each, Input)
                self._go_on(each, key)
            for line in each.lines(self._delivery.look):
                self._read = self._read_before + line.end
                if not self._is_too_long(line):
                    self._hand_over(line, None if key is None else {key: line.end})
            self._read_before += each.size or 0

    def _go_on(self, each: Input, key: str) -> None:
        """Begin a file where the spool has it up to."""
        offset = self._client.marked(key)
        if offset is None:
            return
        if each.begin_at(offset):
            self._bar.say(f"{each.name}: going on at byte {offset:,}")
        else:
            self._bar.say(f"{each.name}: it was changed since it was read, and is sent again")

    def _is_too_long(self, line: Line) -> bool:
        longest = self._client.max_body
        if line.size <= (ABSURD_BODY_BYTES if longest is None else longest):
            return False
        takes = f"the server takes {longest}" if longest is not None else "no server takes that"
        self._left_out_because(f"{line.place}: {line.size} bytes are too long, {takes}")
        return True

    def _hand_over(self, line: Line, marks: Marks | None = None) -> None:
        try:
            self._delivery.hand_over(line.place, line.body, marks)
        except SessionFailed:
            raise
        except NotLogged as e:  # other terms, since we looked
            self._left_out_because(f"{line.place}: {e}")

    def _left_out_because(self, why: str) -> None:
        if not self._skip_too_long:
            self._why_refused = why
            raise _Refused
        self._left_out += 1
        self._bar.say(why)

    # --- what comes back -------------------------------------------------------------------

    def _take_receipt(self, receipt: Receipt) -> None:
        self._receipt = receipt
        if self._as_json:
            try:
                click.echo(orjson.dumps(_as_json(receipt)))
            except BrokenPipeError:
                raise _Unwritten("nobody reads the receipts any more") from None
            except OSError as e:
                raise _Unwritten(f"cannot write the receipts: {e.strerror}") from None

    def _take_refusal(self, place: str, error: NotLogged) -> None:
        if self._skip_too_long or self._why_refused:
            self._bar.say(f"{place}: {error}")
        else:
            self._why_refused = f"{place}: {error}"

    def _look(self) -> None:
        """Now and then, whatever else is being done."""
        delivery = self._delivery
        if self._ctrl_c.seen and not self._stopping:
            raise _Stopped
        if self._why_refused and self._reading:
            raise _Refused
        handed_over = delivery.left + delivery.handed_over
        share = delivery.acknowledged / handed_over if handed_over else 0.0
        if self._total:
            share *= self._read / self._total
        self._bar.show(self._name, share, delivery.acknowledged)

    # --- the end ---------------------------------------------------------------------------

    def _forget(self) -> None:
        """
        Have the spool forget how far files were read, since everything of them is logged.

        Not before: a command that was killed may have had all lines in the spool, or not, and who
        runs it again cannot know.
        """
        if self._spool is None:
            return
        keys = {each.key for each in self._inputs if each.key is not None}
        try:
            spool = Spool(self._spool, lambda: self._client.client)
            step = spool.do(Step(marks=dict.fromkeys(keys & spool.marks.keys())))
            spool.close()
        except SpoolError as e:  # somebody else has it by now
            step = Step(error=e)
        if step.error is not None:
            self._bar.say(f"{step.error}; the next time it will find nothing more to send there")

    def _so_far(self) -> str:
        delivery = self._delivery
        text = f"{_messages(delivery.acknowledged)} acknowledged"
        if self._spool is not None:
            if delivery.waiting:
                text += f", {counted(delivery.waiting, 'waits', 'wait')} in {self._spool}"
            return f"{text}; {self._how_to_go_on()}"
        return f"{text}, the last is {delivery.last}" if delivery.last else text

    def _how_to_go_on(self) -> str:
        if self._client.failure is not None:
            return "--new-client goes on under another client id"
        if all(each.key is not None for each in self._inputs):
            return "the same command goes on from here"
        return f"'msglog send --spool {self._spool} </dev/null' sends what waits"

    def _summary(self, seconds: float) -> str:
        acknowledged, client = self._delivery.acknowledged, self._client.client
        if not acknowledged:
            return "there was nothing to send"
        text = f"{_messages(acknowledged)} acknowledged"
        if acknowledged == 1 and self._receipt is not None:
            receipt = self._receipt
            return (
                f"{text}: client {client}, sequence {receipt.sequence}, crc {receipt.checksum:08x}"
            )
        if self._delivery.left:
            text += f", {self._delivery.left:,} of them left in the spool before"
        rate = f"{acknowledged / seconds:,.0f} messages/s"
        return f"{text}: {seconds:.1f} s, {rate}\nclient {client}"


def _messages(count: int) -> str:
    return counted(count, "message was", "messages were")


def _as_json(receipt: Receipt) -> dict[str, object]:
    return {
        "client": str(receipt.client),
        "seq": receipt.sequence,
        "crc": f"{receipt.checksum:08x}",
    }
