"""What a case must not do: run what a file says, hang, or take much memory."""

from __future__ import annotations

import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_FORBIDDEN = {
    *("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.startfile", "subprocess.Popen", "pty.spawn"),
    *(
        "os.mkdir",
        "os.rmdir",
        "os.remove",
        "os.rename",
        "os.link",
        "os.symlink",
        "os.truncate",
        "os.chmod",
        "os.putenv",
    ),
    *("shutil.rmtree", "shutil.move", "shutil.copyfile", "socket.connect", "socket.bind", "urllib.Request"),
    *("exec", "compile", "pickle.find_class", "marshal.loads", "ctypes.dlopen", "webbrowser.open"),
}
"""Audit events of the interpreter that nothing which reads a file raises."""

_BLOCKED = 30
"""Times the limit of CPU time that a case may take by the clock, for one that waits for something."""

_seen: list[str] | None = None
_installed = False


class Hang(BaseException):
    """A case took longer than it may; no ``except Exception`` stops it."""


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if _seen is not None and event in _FORBIDDEN:
        _seen.append(f"{event}{arguments!r}"[:200])


@contextmanager
def forbidding() -> Iterator[list[str]]:
    """The forbidden events of its body, in a list."""
    global _installed, _seen
    if not _installed:  # an audit hook stays for good
        sys.addaudithook(_watch)
        _installed = True
    _seen = events = []
    try:
        yield events
    finally:
        _seen = None


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raises ``Hang`` in a body that takes more CPU time than this, or waits for long.

    CPU time, since neighbours on the machine do not count in it.
    """

    def stop(*_: Any) -> None:
        raise Hang

    timers = ((signal.SIGPROF, signal.ITIMER_PROF, seconds), (signal.SIGALRM, signal.ITIMER_REAL, _BLOCKED * seconds))
    kept = [(number, signal.signal(number, stop)) for number, _, _ in timers]
    try:
        for _, timer, limit in timers:
            signal.setitimer(timer, limit)
        yield
    finally:
        for _, timer, _ in timers:
            signal.setitimer(timer, 0)
        for number, handler in kept:
            signal.signal(number, handler)


def peak() -> int:
    """The most memory that the process has had, in bytes."""
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


def limit_memory(spare: int) -> None:
    """Gives the process at most so many bytes of addresses more than it has; for good."""
    with open("/proc/self/statm") as file:
        limit = int(file.read().split()[0]) * resource.getpagesize() + spare
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
