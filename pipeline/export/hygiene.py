"""What must not leave the machine: paths, the user's name, the host's name.

Manifests travel with the model to customers and boards. :func:`check_private` walks through the
data that are about to be written and raises at the first value that tells where it was made;
:func:`scrub_private` removes such values from what machines collected (probes, verdicts), where
nobody could be asked to choose another word.
"""

from __future__ import annotations

import getpass
import platform
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from latency_tables.errors import ExportError

# names that say nothing about a person or a machine, and words too common to search for
GENERIC_NAMES = frozenset(
    {"root", "user", "pi", "admin", "ubuntu", "debian", "runner", "nobody", "docker", "build"}
    | {"localhost", "local", "host", "main", "linux", "raspberrypi", "test", "app", "dev"}
)
_MIN_NAME = 3
REMOVED = "[removed]"

# /a/b, ~/a, C:\a, \\server, file: — but not "and/or", "1/255" or a lone "/"
_ABSOLUTE_PATH = re.compile(
    r"(?<![\w.)/])/[\w.@+-]+/[\w.@+-]|^/[\w.@+-]|(?<!\w)~/|\b[A-Za-z]:[\\/]\w|\\\\\w|\bfile:/"
)


def private_names() -> frozenset[str]:
    """Host name, user name and home folder's name of this machine, without the generic ones."""
    names = {platform.node(), platform.node().split(".")[0], Path.home().name}
    with suppress(OSError, KeyError):  # a bare container may have no entry for its user
        names.add(getpass.getuser())
    return frozenset(
        name for name in names if len(name) >= _MIN_NAME and name.lower() not in GENERIC_NAMES
    )


def check_private(data: Any, *, names: Collection[str] | None = None, where: str = "") -> None:
    """Raise ExportError if a text in nested JSON data is a path or holds one of ``names``.

    ``names`` are matched as whole words; by default those of this machine.

    >>> check_private({"device": "rk3588-a", "note": "1/255"}, names=())
    >>> check_private({"data": ["/home/ada/x.npz"]}, names=())
    Traceback (most recent call last):
    latency_tables.errors.ExportError: data[0] holds a path of this machine: '/home/ada/x.npz'
    """
    wanted = private_names() if names is None else names
    if isinstance(data, Mapping):
        for key, value in data.items():
            check_private(str(key), names=wanted, where=f"{where} key" if where else "key")
            check_private(value, names=wanted, where=f"{where}.{key}" if where else str(key))
    elif isinstance(data, list | tuple):
        for index, value in enumerate(data):
            check_private(value, names=wanted, where=f"{where}[{index}]")
    elif isinstance(data, str):
        if _ABSOLUTE_PATH.search(data):
            raise ExportError(f"{where} holds a path of this machine: {data[:120]!r}")
        if any(_whole_word(name).search(data) for name in wanted):
            raise ExportError(
                f"{where} holds the name of this machine or its user: {data[:120]!r}",
                hint="another name for the device or the data; manifests travel with the model",
            )


def scrub_private(data: Any, *, names: Collection[str] | None = None) -> Any:
    """Nested JSON data whose private texts are replaced by ``[removed]``.

    >>> scrub_private({"cpu": "Cortex-A55", "log": "see /home/ada/x"}, names=())
    {'cpu': 'Cortex-A55', 'log': '[removed]'}
    """
    wanted = private_names() if names is None else names
    if isinstance(data, Mapping):
        return {
            scrub_private(str(key), names=wanted): scrub_private(value, names=wanted)
            for key, value in data.items()
        }
    if isinstance(data, list | tuple):
        return [scrub_private(value, names=wanted) for value in data]
    if isinstance(data, str):
        if _ABSOLUTE_PATH.search(data):
            return REMOVED
        for name in wanted:
            data = _whole_word(name).sub(REMOVED, data)
    return data


def _whole_word(name: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![\w-]){re.escape(name)}(?![\w-])")
