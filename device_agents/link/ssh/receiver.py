"""Take files on the board: runs there, under its Python 3.7 or newer, standard library only.

The host sends this file's text to ``python3`` and then speaks JSON lines with it; the bytes of a
file follow their line. Files grow in ``<workdir>/incoming/<random>/``, locked by this process, are
hashed on the board, fsynced and renamed to ``<workdir>/blobs/<sha256>``: a blob is whole or absent.

=========  =========================================================================================
have       ``{"op": "have", "names": {sha256: size}}`` → which are present, free bytes, the folder
room       ``{"op": "room", "bytes": n, "keep": [...]}`` → free bytes, after removing old blobs
write      ``{"op": "write", "name": sha256, "size": n}`` and n bytes → an answer once it is a blob
adopt      ``{"op": "adopt", "name": sha256, "size": n}``: the file came into the folder by itself
drop       ``{"op": "drop", "name": sha256}``: forget such a file
=========  =========================================================================================
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from typing import Any, BinaryIO

RECENT_S = 600.0
BEAT_S = 1.0
CHUNK = 1 << 18
FULL = (errno.ENOSPC, errno.EDQUOT)

Json = Any  # an object of JSON; a subscripted dict would need a newer Python at run time


class Damaged(Exception):
    """A file is not the one that was announced."""


class Receiver:
    """Serves one host over one pair of pipes."""

    def __init__(self, workdir: str, source: BinaryIO, sink: BinaryIO) -> None:
        self.source, self.sink = source, sink
        self.blobs = os.path.join(workdir, "blobs")
        self.incoming = os.path.join(workdir, "incoming")
        self.used: Any = {}  # name → monotonic time
        self.busy = False
        self.writing = threading.Lock()
        self.folder = ""
        self.lock = -1

    def serve(self) -> None:
        """Answer until the host is gone, then remove what is not whole."""
        self.claim()
        threading.Thread(target=self.beat, daemon=True).start()
        try:
            while True:
                line = self.source.readline(1 << 20)
                if not line.endswith(b"\n"):
                    return
                request = json.loads(line.decode())
                self.busy = True
                try:
                    answer = getattr(self, "do_" + request["op"])(request)
                except Damaged as error:
                    answer = {"error": "DAMAGED", "message": str(error)}
                except OSError as error:
                    code = "DISK_FULL" if error.errno in FULL else "DEVICE"
                    answer = {"error": code, "message": str(error)}
                self.busy = False
                answer.setdefault("free", self.free())
                self.send(answer)
        except EOFError:
            return
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    def claim(self) -> None:
        """Make a folder of our own and remove those of receivers that died."""
        for folder in (self.blobs, self.incoming):
            os.makedirs(folder, mode=0o700, exist_ok=True)
        gate = os.open(self.incoming, os.O_RDONLY)
        try:
            fcntl.flock(gate, fcntl.LOCK_EX)  # nobody makes a folder while we look at them
            for name in os.listdir(self.incoming):
                old = os.path.join(self.incoming, name)
                if self.is_dead(old):
                    shutil.rmtree(old, ignore_errors=True)
            self.folder = tempfile.mkdtemp(dir=self.incoming)
            self.lock = os.open(self.folder, os.O_RDONLY)
            fcntl.flock(self.lock, fcntl.LOCK_EX)
        finally:
            os.close(gate)

    def is_dead(self, folder: str) -> bool:
        try:
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            return False
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        else:
            return True
        finally:
            os.close(handle)

    def beat(self) -> None:
        """Tell that a long operation goes on: hashing and flushing may take a while."""
        pause = threading.Event()
        while not pause.wait(BEAT_S):
            if self.busy:
                self.send({"beat": True})

    def send(self, answer: Json) -> None:
        line = json.dumps(answer).encode() + b"\n"
        with self.writing:
            try:
                self.sink.write(line)
                self.sink.flush()
            except OSError:
                os._exit(1)  # the host is gone; the next receiver removes our folder

    def free(self) -> int:
        status = os.statvfs(self.blobs)
        return status.f_bavail * status.f_frsize

    def blob(self, name: str) -> str:
        if len(name) != 64 or not set(name) <= set("0123456789abcdef"):
            raise Damaged(f"{name[:80]!r} is not the name of a blob")
        return os.path.join(self.blobs, name)

    def part(self, name: str) -> str:
        return os.path.join(self.folder, os.path.basename(self.blob(name)) + ".part")

    # ---- operations ----------------------------------------------------------------------------

    def do_have(self, request: Json) -> Json:
        present = []
        for name, size in request["names"].items():
            path = self.blob(name)
            try:
                if os.lstat(path).st_size != size:
                    continue  # it is sent again and replaced
                os.utime(path)
            except OSError:
                continue
            self.used[name] = time.monotonic()
            present.append(name)
        return {"present": present, "folder": self.folder}

    def do_room(self, request: Json) -> Json:
        """Remove the blobs unused for longest, none of ``keep`` and none in use just now."""
        now, keep = time.monotonic(), set(request["keep"])
        keep.update(name for name, when in self.used.items() if now - when < RECENT_S)
        found = []
        for entry in os.scandir(self.blobs):
            status = entry.stat(follow_symlinks=False)
            recent = abs(time.time() - status.st_mtime) < RECENT_S
            if entry.name not in keep and not recent and entry.is_file(follow_symlinks=False):
                found.append((status.st_mtime, entry.path))
        removed = 0
        for _, path in sorted(found):
            if self.free() >= request["bytes"]:
                break
            os.unlink(path)
            removed += 1
        return {"removed": removed}

    def do_write(self, request: Json) -> Json:
        name, left = request["name"], request["size"]
        digest = hashlib.sha256()
        problem = None
        try:
            path = self.part(name)
            stream = open(path, "wb")  # noqa: SIM115
        except OSError as error:
            self.skip(left)
            raise error
        try:
            with stream:
                while left:
                    data = self.source.read(min(left, CHUNK))
                    if not data:
                        raise EOFError
                    left -= len(data)
                    digest.update(data)
                    stream.write(data)
                self.flush(stream)
            self.become_blob(name, digest.hexdigest())
        except OSError as error:
            problem = error
        finally:
            self.remove(path)
        self.skip(left)  # so that the next line is a line again
        if problem is not None:
            raise problem
        return {"name": name}

    def do_adopt(self, request: Json) -> Json:
        name = request["name"]
        path = self.part(name)
        digest = hashlib.sha256()
        try:
            with open(path, "rb") as stream:
                if os.fstat(stream.fileno()).st_size != request["size"]:
                    raise Damaged(f"{name[:12]} did not arrive whole")
                for data in iter(lambda: stream.read(CHUNK), b""):
                    digest.update(data)
                self.flush(stream)
            self.become_blob(name, digest.hexdigest())
        finally:
            self.remove(path)
        return {"name": name}

    def do_drop(self, request: Json) -> Json:
        self.remove(self.part(request["name"]))
        return {"name": request["name"]}

    def become_blob(self, name: str, digest: str) -> None:
        if digest != name:
            raise Damaged(f"{name[:12]} arrived as {digest[:12]}")
        path = self.part(name)
        os.chmod(path, 0o600)
        os.utime(path)
        os.rename(path, self.blob(name))
        self.used[name] = time.monotonic()
        folder = os.open(self.blobs, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def flush(self, stream: Any) -> None:
        stream.flush()
        os.fsync(stream.fileno())

    def remove(self, path: str) -> None:
        with contextlib.suppress(OSError):  # it became a blob, or never was
            os.unlink(path)

    def skip(self, left: int) -> None:
        while left:
            data = self.source.read(min(left, CHUNK))
            if not data:
                raise EOFError
            left -= len(data)


def main(arguments: Iterable[str]) -> None:
    """Serve on stdin and stdout, below the folder that is named first."""
    os.umask(0o077)
    Receiver(next(iter(arguments)), sys.stdin.buffer, sys.stdout.buffer).serve()


if __name__ == "__main__":
    main(sys.argv[1:])
