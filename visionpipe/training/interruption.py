"""Handles Ctrl-C and SIGTERM during a training, which writes a checkpoint and always ends within ten seconds."""

import os
import signal
import socket
import threading
from types import FrameType, TracebackType

from visionpipe.errors import Interrupted

PATIENCE = 8.0  # seconds


class Interruption:
    """Records SIGINT and SIGTERM during the `with` block; the training acts on them at its next step.

    If the current step does not end within PATIENCE, for example because it compiles, the process ends without a
    checkpoint.
    """

    def __enter__(self) -> "Interruption":
        self.arrived: signal.Signals | None = None
        self.done = threading.Event()
        # Python calls a handler only when the running C function returns; the wake-up byte comes at once.
        self.reader, self.writer = socket.socketpair()
        self.writer.setblocking(False)
        self.before_fd = signal.set_wakeup_fd(self.writer.fileno())
        self.before = {number: signal.signal(number, self.note) for number in (signal.SIGINT, signal.SIGTERM)}
        threading.Thread(target=self.watch, name="watch signals", daemon=True).start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.done.set()
        for number, handler in self.before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self.before_fd)
        self.writer.close()

    def note(self, number: int, frame: FrameType | None) -> None:
        self.arrived = signal.Signals(number)

    def raise_if_arrived(self) -> None:
        if self.arrived:
            raise Interrupted(self.arrived)

    def watch(self) -> None:
        while received := self.reader.recv(1):
            if received[0] in (signal.SIGINT, signal.SIGTERM) and not self.done.wait(PATIENCE):
                os._exit(128 + received[0])
        self.reader.close()
