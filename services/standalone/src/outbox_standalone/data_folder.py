"""The folder that `outbox up` keeps: who may use it, and the keys that must survive a restart.

`keys.json` (mode 0600) lies beside the data. It holds the wrapping key and the worker's private key, without which what is
sealed in Postgres cannot be opened, the passwords of the embedded servers, and the two scoped keys that are handed out.
"""

import contextlib
import fcntl
import json
import os
import secrets
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from outbox_domain import scoped_key
from outbox_runtime import sealing
from outbox_standalone import child
from outbox_standalone.refusal import Refusal

ENVIRONMENT = "sandbox"
_PREDECESSOR_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class LocalKeys:
    """The secrets of one data folder.

    Attributes:
        wrapping_key: 32 bytes in base64, wraps the data keys of organizations.
        worker_private_key: PEM of the X25519 key that provider credentials are sealed to.
        postgres_password: of the embedded server's superuser.
        api_password: of the Postgres role `outbox_api`.
        worker_password: of the Postgres role `outbox_worker`.
        redis_password: of the embedded Redis.
        admin_key: scoped key of a member with the role owner.
        agent_key: scoped key of an agent.
    """

    wrapping_key: str
    worker_private_key: str
    postgres_password: str
    api_password: str
    worker_password: str
    redis_password: str
    admin_key: str
    agent_key: str


def new_keys() -> LocalKeys:
    """Fresh random secrets; passwords consist of letters and digits, so that they need no escaping in addresses."""
    return LocalKeys(
        wrapping_key=sealing.WrappingKey.generate().to_base64(),
        worker_private_key=sealing.write_private_key(sealing.generate_private_key()).decode(),
        postgres_password=secrets.token_hex(16),
        api_password=secrets.token_hex(16),
        worker_password=secrets.token_hex(16),
        redis_password=secrets.token_hex(16),
        admin_key=scoped_key.mint(ENVIRONMENT, os.urandom(10), os.urandom(24))[0],
        agent_key=scoped_key.mint(ENVIRONMENT, os.urandom(10), os.urandom(24))[0],
    )


def write_private_file(path: Path, content: str) -> None:
    """Writes a file of mode 0600 so that a reader finds the old content or the new one, whole, even after a power cut."""
    descriptor, draft = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with open(descriptor, "w") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(draft).replace(path)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class DataFolder:
    """A data folder whose use is ours alone while the lock is held.

    Attributes:
        path: absolute.
        lock_fd: the descriptor that holds the lock; the watchdog inherits it, so that a successor waits for what is left of us.
    """

    def __init__(self, path: Path, lock_fd: int) -> None:
        """Made by `locked`."""
        self.path = path
        self.lock_fd = lock_fd

    @property
    def logs(self) -> Path:
        """The folder of the children's logs."""
        return self.path / "logs"

    def keys(self) -> LocalKeys:
        """The folder's secrets, made at the first start.

        Raises:
            Refusal: the file is damaged, or it is missing while there are data that only it could open.
        """
        path = self.path / "keys.json"
        try:
            found = json.loads(path.read_text())
            return LocalKeys(**{field.name: str(found[field.name]) for field in fields(LocalKeys)})
        except FileNotFoundError:
            pass
        except (ValueError, KeyError, TypeError) as error:
            raise Refusal(f"{path} is damaged; restore it from a backup, or remove {self.path} to begin anew.") from error
        if (self.path / "postgres" / "data").exists():
            raise Refusal(
                f"{path} is missing, and without it the data beside it cannot be opened; restore it from a backup, "
                f"or remove {self.path} to begin anew."
            )
        made = new_keys()
        write_private_file(path, json.dumps(asdict(made), indent=2) + "\n")
        return made


@contextlib.contextmanager
def locked(path: Path) -> Iterator[DataFolder]:
    """Takes a data folder, made when absent, for this process alone.

    The watchdog of a predecessor that was killed keeps the lock until it has ended the predecessor's processes; that
    is waited for.

    Raises:
        Refusal: another `outbox up` uses the folder.
    """
    path = path.resolve()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Refusal(f"The data folder {path} cannot be used: {error.strerror}.") from error
    try:
        deadline = time.monotonic() + _PREDECESSOR_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
                if (holder.isdigit() and child.is_alive(int(holder))) or time.monotonic() >= deadline:
                    raise Refusal(
                        f"Another `outbox up` (process {holder or 'unknown'}) uses {path}; "
                        "stop it or name another folder with --data-dir."
                    ) from None
                time.sleep(0.05)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield DataFolder(path, descriptor)
    finally:
        os.close(descriptor)
