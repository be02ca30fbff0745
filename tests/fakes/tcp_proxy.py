"""A TCP proxy that spoils what passes: slow, late, cut short, reset, or swallowed.

A thread per direction and connection; set the attributes at any time. Runs without root, and so
cannot lose single packets.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable

CHUNK = 1 << 16


class TcpProxy:
    """Listens on ``port`` of 127.0.0.1 and passes to ``(host, port)`` given.

    ``delay_s`` is one way; ``bytes_per_s`` limits each direction; ``stalled`` swallows nothing and
    passes nothing; ``truncate_at`` closes a connection after so many bytes to the server.
    """

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self.delay_s = 0.0
        self.bytes_per_s = 0.0
        self.truncate_at: int | None = None
        self.passed = {"up": 0, "down": 0}
        self._target = (host, port)
        self._open = threading.Event()
        self._open.set()
        self._over = threading.Event()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(0.1)
        self.port: int = self._listener.getsockname()[1]
        self._start(self._accept)

    def stall(self) -> None:
        """Pass nothing from now on, in both directions, without closing: a black hole."""
        self._open.clear()

    def flow(self) -> None:
        """Pass again."""
        self._open.set()

    def cut(self) -> None:
        """Close all connections in good order."""
        for pair in self._take():
            for sock in pair:
                _end(sock)

    def reset(self) -> None:
        """Close all connections with RST."""
        for pair in self._take():
            for sock in pair:
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                _end(sock, shut=False)

    def close(self) -> None:
        """Stop listening and close everything."""
        self._over.set()
        self._open.set()
        self.cut()
        for thread in self._threads:
            thread.join(5.0)
        self.cut()
        self._listener.close()

    def __enter__(self) -> TcpProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take(self) -> list[tuple[socket.socket, socket.socket]]:
        pairs, self._pairs = self._pairs, []
        return pairs

    def _start(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, name="tcp-proxy", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._over.is_set():
            try:
                client, _ = self._listener.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            try:
                server = socket.create_connection(self._target, 5.0)
            except OSError:
                client.close()
                continue
            for sock in (client, server):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.settimeout(0.05)
            self._pairs.append((client, server))
            self._start(self._pump, client, server, "up")
            self._start(self._pump, server, client, "down")

    def _pump(self, source: socket.socket, sink: socket.socket, way: str) -> None:
        late: deque[tuple[float, bytes]] = deque()  # when it may leave
        ended = False
        while not self._over.is_set():
            if not self._open.wait(0.05):
                continue
            if not ended and len(late) < 512:
                try:
                    source.settimeout(0.002 if late else 0.05)
                    data = source.recv(CHUNK)
                    ended = not data
                    if data:
                        late.append((time.monotonic() + self.delay_s, data))
                except TimeoutError:
                    pass
                except OSError:
                    ended = True
            while late and late[0][0] <= time.monotonic() and self._open.is_set():
                if not self._pass(late.popleft()[1], source, sink, way):
                    return
            if ended and not late:
                with contextlib.suppress(OSError):
                    sink.shutdown(socket.SHUT_WR)
                return

    def _pass(self, data: bytes, source: socket.socket, sink: socket.socket, way: str) -> bool:
        if way == "up" and self.truncate_at is not None:
            data = data[: max(0, self.truncate_at - self.passed["up"])]
        if self.bytes_per_s:
            self._over.wait(len(data) / self.bytes_per_s)
        left = memoryview(data)
        while left and not self._over.is_set():
            try:
                left = left[sink.send(left) :]
            except TimeoutError:
                continue
            except OSError:
                return False
        self.passed[way] += len(data)
        if way == "up" and self.truncate_at is not None and self.passed["up"] >= self.truncate_at:
            _end(source)
            _end(sink)
            return False
        return True


def _end(sock: socket.socket, *, shut: bool = True) -> None:
    with contextlib.suppress(OSError):
        if shut:
            sock.shutdown(socket.SHUT_RDWR)
    sock.close()
