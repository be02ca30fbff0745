"""Log in with keys: those of the agent that runs on the host, then those in files.

A passphrase is asked for through a callback, used once and forgotten. The agent is never forwarded.
"""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import paramiko

from device_agents.link.ssh.config import Target
from device_agents.link.ssh.known_hosts import make_host_key
from latency_tables.errors import AuthError, UnreachableError

Ask = Callable[[str], str]

_CLASSES: tuple[type[paramiko.PKey], ...] = (
    paramiko.Ed25519Key,
    paramiko.ECDSAKey,
    paramiko.RSAKey,
)


def log_in(
    transport: paramiko.Transport,
    target: Target,
    *,
    prompt: Ask | None = None,
    password: Ask | None = None,
) -> None:
    """Authenticate with keys, or with a password that ``password`` gives, asked for once.

    Raises AuthError naming what was tried, UnreachableError where the link breaks meanwhile.
    """
    if password is not None:
        _with_password(transport, target, password)
        return
    tried: list[str] = []
    for label, load in _keys(target, prompt, tried):
        key = load()
        if key is None:
            continue
        try:
            further = transport.auth_publickey(target.user, key)
        except paramiko.BadAuthenticationType as error:
            tried.append(f"{label}: the server takes only {', '.join(error.allowed_types)}")
            break
        except paramiko.AuthenticationException:
            tried.append(f"{label}: refused")
        except (paramiko.SSHException, OSError, EOFError) as error:
            tried.append(f"{label}: {error or type(error).__name__}")
        else:
            if not further:
                return
            tried.append(f"{label}: accepted, but {', '.join(further)} is asked for besides")
            break
        if not transport.is_active():
            tried.append("then the server hung up, which it does after too many keys")
            break
    raise AuthError(
        f"{target.user}@{target} refuses to log in; tried: {'; '.join(tried) or 'no key at all'}",
        hint="hilnas devices add --install-key, or name the right key file (IdentityFile with "
        "IdentitiesOnly yes)",
    )


def _with_password(transport: paramiko.Transport, target: Target, ask: Ask) -> None:
    try:
        further = transport.auth_password(target.user, ask(f"password of {target.user}@{target}: "))
    except paramiko.BadAuthenticationType as error:
        raise AuthError(
            f"{target} takes no passwords, only {', '.join(error.allowed_types)}",
            hint="put the public key into ~/.ssh/authorized_keys on the board's console",
        ) from None
    except paramiko.AuthenticationException as error:
        raise AuthError(f"{target.user}@{target} refuses the password ({error})") from None
    except (paramiko.SSHException, OSError, EOFError) as error:
        raise UnreachableError(f"the link to {target} broke while logging in: {error}") from None
    if further:
        raise AuthError(f"{target} asks for {', '.join(further)} besides the password")


def _keys(
    target: Target, prompt: Ask | None, tried: list[str]
) -> Iterator[tuple[str, Callable[[], paramiko.PKey | None]]]:
    """Labelled keys in the order of trying: named ones first, wherever they are kept."""
    with _agent(tried) as held:
        named = {blob: file for file in target.identities if (blob := _public_blob(file))}
        for key in held:
            if key.asbytes() in named:
                yield f"{named[key.asbytes()]} in the agent", lambda key=key: key  # type: ignore[misc]
        if not target.identities_only:
            for key in held:
                if key.asbytes() not in named:
                    label = make_host_key("", key.get_name(), key.asbytes()).fingerprint
                    yield f"agent key {label}", lambda key=key: key  # type: ignore[misc]
        in_agent = {key.asbytes() for key in held}
        for file in target.identities:
            if _public_blob(file) not in in_agent:
                yield str(file), lambda file=file: _load(file, prompt, tried)  # type: ignore[misc]


@contextlib.contextmanager
def _agent(tried: list[str]) -> Iterator[tuple[paramiko.AgentKey, ...]]:
    try:
        agent = paramiko.Agent()
    except (paramiko.SSHException, OSError) as error:
        tried.append(f"the agent: {error}")
        yield ()
        return
    try:
        yield agent.get_keys()
    finally:
        agent.close()


def _public_blob(file: Path) -> bytes | None:
    """The public key beside a private one, if it is there and can be read."""
    try:
        text = Path(f"{file}.pub").read_text()[:16384]
        return base64.b64decode(text.split()[1], validate=True)
    except (OSError, ValueError, IndexError):
        return None


def _load(file: Path, prompt: Ask | None, tried: list[str]) -> paramiko.PKey | None:
    try:
        key = _read(file, None)
    except FileNotFoundError:
        tried.append(f"{file}: does not exist")
        return None
    except paramiko.PasswordRequiredException:
        if prompt is None:
            tried.append(f"{file}: needs a passphrase and nobody can be asked; add it to the agent")
            return None
        try:
            key = _read(file, prompt(f"passphrase of {file}: "))
        except (paramiko.SSHException, ValueError):
            tried.append(f"{file}: the passphrase is wrong")
            return None
    except (OSError, ValueError, paramiko.SSHException) as error:
        tried.append(f"{file}: cannot be read ({error})")
        return None
    certificate = Path(f"{file}-cert.pub")
    if certificate.exists():
        with contextlib.suppress(OSError, ValueError, paramiko.SSHException):
            key.load_certificate(str(certificate))
    return key


def _read(file: Path, passphrase: str | None) -> paramiko.PKey:
    problem: Exception = paramiko.SSHException("no key of a known kind")
    for kind in _CLASSES:
        try:
            return kind.from_private_key_file(str(file), passphrase)
        except paramiko.PasswordRequiredException:
            raise
        except (paramiko.SSHException, ValueError, IndexError) as error:
            problem = error
    raise problem
