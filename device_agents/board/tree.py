"""Reads of ``/proc`` and ``/sys``, and the few writes to ``/sys``, below a root."""

from __future__ import annotations

import glob
import os
import re
from typing import Any, List, Optional

_MAX_READ_BYTES = 1 << 16


class Tree:
    """Files of the kernel below a root, which can be a copied or invented tree.

    >>> Tree("/").text("/nowhere/to/be/found") is None
    True
    """

    def __init__(self, root: str = "/") -> None:
        self.root = root

    def path(self, name: str) -> str:
        return os.path.join(self.root, name.lstrip("/"))

    def text(self, name: str) -> Optional[str]:
        """Content without surrounding blanks and zero bytes; None where it cannot be read."""
        try:
            with open(self.path(name), "rb") as stream:
                return stream.read(_MAX_READ_BYTES).decode("utf-8", "replace").strip("\0 \n\t")
        except OSError:
            return None

    def number(self, name: str) -> Optional[int]:
        text = self.text(name)
        try:
            return int(text) if text is not None else None
        except ValueError:
            return None

    def words(self, name: str) -> List[str]:
        """Words of a file, none where it cannot be read."""
        return (self.text(name) or "").split()

    def numbers(self, name: str) -> List[int]:
        """Those words of a file that are whole numbers."""
        return [int(word) for word in self.words(name) if word.isdigit()]

    def folders(self, pattern: str) -> List[str]:
        """Names below the root that match, in natural order, without the root."""
        found = glob.glob(self.path(pattern))
        prefix = len(self.path(""))
        return sorted(("/" + name[prefix:] for name in found), key=_natural)

    def write(self, name: str, value: str) -> None:
        """Write a node that exists. Raises OSError, also where the kernel refuses the value."""
        # no O_CREAT: a node that is not there must not become a file of an invented tree
        handle = os.open(self.path(name), os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
        try:
            os.write(handle, value.encode("ascii") + b"\n")
        finally:
            os.close(handle)


def _natural(name: str) -> List[Any]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
