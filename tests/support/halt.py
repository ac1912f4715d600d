"""Stops a thread of another process at the entrance of the system call that would hand certain bytes to the kernel.

That is the moment between a process's last look at the clock and its first byte, which no signal can be aimed at. Linux's ptrace
does it from outside: the process under test knows nothing of it, and goes on with the same system call when it is released.
Source: ptrace(2), PTRACE_SEIZE and PTRACE_GET_SYSCALL_INFO.
"""

import contextlib
import ctypes
import os
import platform
import signal
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

_SEIZE, _INTERRUPT, _SYSCALL, _DETACH, _GET_SYSCALL_INFO = 0x4206, 0x4207, 24, 17, 0x420E
_TRACE_SYSGOOD = 1
_EVENT_STOP = 128
_ENTRY = 1
_WAIT_ALL = 0x40000000
_INFO_BYTES = 88

# write, writev, sendto, sendmsg
_CALLS = {"x86_64": (1, 20, 44, 46), "aarch64": (64, 66, 206, 211)}
_VECTORS_MAX = 16
_BYTES_MAX = 1 << 16
HALT_SECONDS = 30.0
RELEASE_SECONDS = 5.0


def can_halt() -> bool:
    """Whether this machine lets a process trace its children."""
    if platform.system() != "Linux" or platform.machine() not in _CALLS:
        return False
    scope = Path("/proc/sys/kernel/yama/ptrace_scope")
    return os.geteuid() == 0 or not scope.exists() or int(scope.read_text()) <= 1


class Halt:
    """One process that is stopped before it writes."""

    def __init__(self, pid: int, containing: bytes) -> None:
        """Nothing is traced before `start`."""
        self._pid, self._containing = pid, containing
        self._halted, self._release, self._ended = threading.Event(), threading.Event(), threading.Event()
        self._seized = threading.Event()
        self._failed: OSError | None = None
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
        self._libc.ptrace.restype = ctypes.c_long
        self._thread = threading.Thread(target=self._trace, daemon=True)

    def start(self) -> None:
        """Trace the process from now on; returns when it is traced."""
        self._thread.start()
        self._seized.wait()
        if self._failed is not None:
            raise self._failed

    def wait(self) -> None:
        """Until the process stands before the write.

        Raises:
            TimeoutError: it did not come there.
        """
        if not self._halted.wait(HALT_SECONDS):
            raise TimeoutError(f"process {self._pid} did not come to write {self._containing!r}; {self._failed}")

    def release(self) -> None:
        """Let it write; from then on it is not traced. Once more is harmless."""
        self._release.set()
        self._ended.wait(RELEASE_SECONDS)  # One that has not come to the write sees it at its next system call.

    def _trace(self) -> None:
        # Every request but the interruption must come from the thread that has seized.
        try:
            self._ask(_SEIZE, data=_TRACE_SYSGOOD)
            self._ask(_INTERRUPT)
        except OSError as error:
            self._failed = error
            self._seized.set()
            return
        try:
            self._until_written()
        except (OSError, ChildProcessError) as error:
            self._failed = OSError(str(error))
        finally:
            self._seized.set()
            self._ended.set()

    def _until_written(self) -> None:
        while True:
            _, status = os.waitpid(self._pid, _WAIT_ALL)
            if not os.WIFSTOPPED(status):
                return
            self._seized.set()
            number, event = os.WSTOPSIG(status), status >> 16
            entering = number == signal.SIGTRAP | 0x80 and self._is_the_write()
            if entering:
                self._halted.set()
                self._release.wait()
            if self._release.is_set():
                self._ask(_DETACH)
                return
            if number == signal.SIGTRAP | 0x80 or event == _EVENT_STOP or number == signal.SIGTRAP:
                self._ask(_SYSCALL)
            else:
                self._ask(_SYSCALL, data=number)

    def _is_the_write(self) -> bool:
        info = ctypes.create_string_buffer(_INFO_BYTES)
        self._ask(_GET_SYSCALL_INFO, address=_INFO_BYTES, data=ctypes.addressof(info))
        if info.raw[0] != _ENTRY:
            return False
        number, *arguments = struct.unpack_from("=7Q", info.raw, 24)
        write, writev, sendto, sendmsg = _CALLS[platform.machine()]
        with Path(f"/proc/{self._pid}/mem").open("rb", buffering=0) as memory:

            def read(address: int, size: int) -> bytes:
                memory.seek(address)
                return memory.read(size)

            def gathered(address: int, count: int) -> bytes:
                vectors = struct.unpack(f"={2 * count}Q", read(address, 16 * count))
                pairs = zip(vectors[::2], vectors[1::2], strict=True)
                return b"".join(read(base, min(size, _BYTES_MAX)) for base, size in pairs if size)

            if number in (write, sendto):
                content = read(arguments[1], min(arguments[2], _BYTES_MAX))
            elif number == writev:
                content = gathered(arguments[1], min(arguments[2], _VECTORS_MAX))
            elif number == sendmsg:
                address, count = struct.unpack("=16xQQ", read(arguments[1], 32))
                content = gathered(address, min(count, _VECTORS_MAX))
            else:
                return False
        return self._containing in content

    def _ask(self, request: int, *, address: int = 0, data: int = 0) -> None:
        if self._libc.ptrace(request, self._pid, address, data) == -1:
            number = ctypes.get_errno()
            raise OSError(number, f"ptrace request {request:#x} of process {self._pid}: {os.strerror(number)}")


@contextlib.contextmanager
def before_writing(pid: int, containing: bytes) -> Iterator[Halt]:
    """A process that stops right before it writes bytes that contain something; released at the end if not before.

    Args:
        pid: of the process, whose first thread is the one that writes.
        containing: what the bytes contain.
    """
    halt = Halt(pid, containing)
    halt.start()
    try:
        yield halt
    finally:
        halt.release()
