"""Host keys: which are trusted, which one a server presents, and trusting one by its fingerprint.

A key is compared byte by byte with the trusted ones and a connection refused otherwise; there is no
way to accept an unknown key but to name its fingerprint.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from device_agents.devices import SshAddress
from device_agents.link.ssh.config import Target, resolve
from latency_tables.errors import HostKeyError, UnreachableError, UsageError
from latency_tables.files import write_text

MAX_BYTES = 16 << 20
SCAN_S = 10.0
_KINDS = ("ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521")
KINDS = (*_KINDS, "ssh-rsa")


@dataclass(frozen=True, slots=True, kw_only=True)
class HostKey:
    """A public key of a host: its SHA-256 fingerprint, its kind and its line for a file."""

    fingerprint: str
    kind: str
    line: str

    @property
    def blob(self) -> bytes:
        """The key itself."""
        return base64.b64decode(self.line.split()[-1])


def make_host_key(name: str, kind: str, blob: bytes) -> HostKey:
    """Describe a key of the host ``name``.

    >>> make_host_key("board", "ssh-ed25519", b"key").fingerprint
    'SHA256:LHDhK3oGRvkiefQnx7OOczTY5Tic/xZ6HcMOc/gmtoM'
    """
    digest = base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")
    return HostKey(
        fingerprint=f"SHA256:{digest}",
        kind=kind,
        line=f"{name} {kind} {base64.b64encode(blob).decode()}",
    )


def keys_in(files: Iterable[Path], name: str) -> tuple[list[HostKey], list[HostKey]]:
    """Trusted and revoked keys of ``name`` (``host`` or ``[host]:port``) in files that exist."""
    trusted: list[HostKey] = []
    revoked: list[HostKey] = []
    for file in files:
        for line in _lines(file):
            entry = _parse(line)
            if entry is None or not _matches(entry[1], name):
                continue
            marker, _, kind, blob = entry
            key = make_host_key(name, kind, blob)
            if marker == "@revoked":
                revoked.append(key)
            elif not marker and key not in trusted:  # certificates are not supported
                trusted.append(key)
    return trusted, revoked


def trusted(address: SshAddress) -> list[HostKey]:
    """The keys under which ``address`` is accepted; empty: none is known."""
    target = resolve(address)
    found, revoked = keys_in(target.known_hosts, target.lookup_name)
    return [key for key in found if key not in revoked]


def verify(target: Target, presented: HostKey, *, name: str) -> None:
    """Refuse a key that is not a trusted one.

    ``name`` is what the user calls the device, "" for a jump host on the way to one.

    Raises HostKeyError, with the fingerprints and the command that trusts the key.
    """
    known, revoked = keys_in(target.known_hosts, target.lookup_name)
    seen = presented.fingerprint
    if any(hmac.compare_digest(key.blob, presented.blob) for key in revoked):
        raise HostKeyError(f"{target} presents the host key {seen}, which is marked as revoked")
    if any(hmac.compare_digest(key.blob, presented.blob) for key in known):
        return
    hint = f"hilnas devices trust {name} --fingerprint {seen}"
    if not name:
        hint = f"ssh {target.alias} once, which asks whether to trust it, after comparing its key"
    if not known:
        raise HostKeyError(
            f"the host key of {target} is unknown: it presents {presented.kind} {seen}; compare "
            "it with what the board itself says (ssh-keygen -lf on its key, or its console)",
            hint=hint,
        )
    old = ", ".join(f"{key.kind} {key.fingerprint}" for key in known)
    raise HostKeyError(
        f"the host key of {target} changed: trusted is {old}, it presents {presented.kind} {seen}; "
        "the board was set up anew, or another machine answers in its place",
        hint=f"after checking the new key on the board: {hint}",
    )


def scan(address: SshAddress, *, deadline_s: float = SCAN_S) -> HostKey:
    """Fetch the key that the host presents; it is not trusted and nothing is sent to the host.

    Jump hosts on the way are verified and logged in to as always. Raises UnreachableError.
    """
    return _scan(resolve(address), None, deadline_s)


def trust(address: SshAddress, fingerprint: str, *, deadline_s: float = SCAN_S) -> HostKey:
    """Trust the presented key if its fingerprint is ``fingerprint`` (``SHA256:…``).

    It is written to the first of ``address.known_hosts``, in place of older keys of that host.
    Raises HostKeyError where no key that the host presents has the fingerprint, UsageError.
    """
    if not address.known_hosts:
        raise UsageError("this device has no file for trusted host keys of its own")
    wanted = fingerprint.strip()
    if not wanted.startswith("SHA256:"):
        raise UsageError(f"fingerprint {wanted[:80]!r}; allowed: SHA256: and 43 characters")
    target = resolve(address)
    found = _scan(target, None, deadline_s)
    presented = [found]
    if found.fingerprint != wanted.rstrip("="):
        presented += _other_kinds(target, found.kind, deadline_s)
    for key in presented:
        if hmac.compare_digest(key.fingerprint.encode(), wanted.rstrip("=").encode()):
            replace_keys(address.known_hosts[0], target.lookup_name, key)
            return key
    seen = ", ".join(f"{key.kind} {key.fingerprint}" for key in presented)
    raise HostKeyError(f"{target} presents {seen}, none of them is {wanted[:80]}")


def replace_keys(file: Path, name: str, key: HostKey) -> None:
    """Write ``file`` with ``key`` as the only key of ``name``; other lines stay as they are."""
    kept = []
    for line in _lines(file):
        entry = _parse(line)
        if entry is None or entry[0] or not _names_it(entry[1], name):
            kept.append(line)
            continue
        others = [other for other in entry[1].split(",") if not _names_it(other, name)]
        if others:
            kept.append(" ".join([",".join(others), *line.split()[1:]]))
    write_text(file, "\n".join([*kept, key.line]) + "\n")


def _scan(target: Target, kinds: tuple[str, ...] | None, deadline_s: float) -> HostKey:
    from device_agents.link.ssh.connection import presented_key

    return presented_key(target, deadline_s=deadline_s, kinds=kinds)


def _other_kinds(target: Target, known: str, deadline_s: float) -> Iterator[HostKey]:
    for kind in KINDS:
        if kind != known:
            try:
                yield _scan(target, (kind,), deadline_s)
            except UnreachableError:
                continue  # the host has no key of that kind


def _lines(file: Path) -> list[str]:
    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_BYTES)
    except OSError:
        return []  # a file that is not there, or not for us, makes nothing trusted
    return data.decode("utf-8", "replace").splitlines()


def _parse(line: str) -> tuple[str, str, str, bytes] | None:
    words = line.split()
    marker = words.pop(0) if words and words[0].startswith("@") else ""
    if len(words) < 3 or words[0].startswith("#"):
        return None
    try:
        return marker, words[0], words[1], base64.b64decode(words[2], validate=True)
    except (binascii.Error, ValueError):
        return None


def _names_it(names: str, name: str) -> bool:
    """Whether one of ``names`` is exactly ``name``, plain or hashed."""
    return any(part == name or _is_hash_of(part, name) for part in names.split(","))


def _matches(names: str, name: str) -> bool:
    hit = False
    for part in names.split(","):
        if part.startswith("!"):
            if _fits(part[1:], name):
                return False
        elif _is_hash_of(part, name) or _fits(part, name):
            hit = True
    return hit


def _fits(pattern: str, name: str) -> bool:
    if pattern == name:
        return True
    # only * and ? are special here; [host]:port is no set of characters
    return ("*" in pattern or "?" in pattern) and fnmatchcase(
        name.lower(), pattern.lower().replace("[", "[[]")
    )


def _is_hash_of(part: str, name: str) -> bool:
    pieces = part.split("|")
    if len(pieces) != 4 or pieces[:2] != ["", "1"]:
        return False
    try:
        salt, digest = (base64.b64decode(piece, validate=True) for piece in pieces[2:])
    except (binascii.Error, ValueError):
        return False
    return hmac.compare_digest(hmac.new(salt, name.encode(), "sha1").digest(), digest)
