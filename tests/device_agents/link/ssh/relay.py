"""Pass frames between two interfaces late, lossy or not at all: what netem does, as a program.

``relay.py LEFT RIGHT DELAY_MS LOSS_PERCENT CONTROL``; while the file CONTROL exists everything is
dropped. Losses follow a fixed seed. Needs raw sockets, so root.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import random
import select
import socket
import sys
import time

ALL_PROTOCOLS = 0x0003
OUTGOING = 4  # packet type of our own frames, which a raw socket sees as well
TICK_S = 0.02


def open_raw(interface: str) -> socket.socket:
    """A socket that sees and sends whole frames of an interface."""
    raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ALL_PROTOCOLS))
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    raw.bind((interface, 0))
    raw.setblocking(False)
    return raw


def main(left: str, right: str, delay_ms: float, loss_percent: float, control: str) -> None:
    """Relay until killed."""
    ends = [open_raw(left), open_raw(right)]
    late: list[tuple[float, int, int, bytes]] = []  # due, order, end, frame
    chance = random.Random(1)
    order = 0
    print("ready", flush=True)
    while True:
        wait = TICK_S if not late else min(TICK_S, max(0.0, late[0][0] - time.monotonic()))
        for raw in select.select(ends, [], [], wait)[0]:
            with contextlib.suppress(BlockingIOError):
                while True:
                    frame, sender = raw.recvfrom(65536)
                    if sender[2] == OUTGOING or os.path.exists(control):
                        continue
                    if chance.random() * 100 < loss_percent:
                        continue
                    order += 1
                    due = time.monotonic() + delay_ms / 1000
                    heapq.heappush(late, (due, order, 1 - ends.index(raw), frame))
        while late and late[0][0] <= time.monotonic():
            _, _, end, frame = heapq.heappop(late)
            with contextlib.suppress(OSError):
                ends[end].send(frame)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4]), sys.argv[5])
