"""Faults at every write and rename: a full disk, denied access, a process that ends there."""

import errno
import os
import shutil
from pathlib import Path

import torch

ERRORS = (
    OSError(errno.ENOSPC, "No space left on device"),
    PermissionError(errno.EACCES, "Permission denied"),
)

_CALLS = [(os, "open"), (os, "fsync"), (os, "rename"), (os, "replace"), (os, "mkdir")]
_CALLS += [(Path, "write_bytes"), (torch, "save")]
_CLEANING = [(os, "unlink"), (shutil, "rmtree")]


class Killed(BaseException):
    """The process ended here."""


class Fault:
    """A context in which one call that writes or renames fails.

    Args:
        monkeypatch: the fixture.
        number: which call, counted from 1.
        error: what it raises.
        after: it does its work before it raises.
        dead: all later calls raise too, those that clean up included: nothing more happens on the disk.
    """

    def __init__(self, monkeypatch, number, error, after=False, dead=False):
        self.number, self.error, self.after, self.dead = number, error, after, dead
        self.count, self.cleaning = 0, False
        self._patching = monkeypatch.context()

    def __enter__(self):
        patched = self._patching.__enter__()
        for calls, wrap in ((_CALLS, self._failing), (_CLEANING, self._cleaning)):
            for owner, name in calls:
                patched.setattr(owner, name, wrap(getattr(owner, name)))

    def __exit__(self, *exc):
        self._patching.__exit__(*exc)

    def _failing(self, real):
        def call(*args, **kwargs):
            if self.cleaning:
                return self._done(real, args, kwargs)
            self.count += 1
            if self.count != self.number:
                return self._done(real, args, kwargs)
            if self.after:
                real(*args, **kwargs)
            raise self.error

        return call

    def _cleaning(self, real):
        def call(*args, **kwargs):
            self.cleaning = True  # what it calls itself does not count
            try:
                return self._done(real, args, kwargs)
            finally:
                self.cleaning = False

        return call

    def _done(self, real, args, kwargs):
        if self.dead and self.count >= self.number:
            raise self.error
        return real(*args, **kwargs)


def every_fault(monkeypatch, error, **options):
    """A ``Fault`` for every call in turn; the last is that which was not reached."""
    number, reached = 0, True
    while reached:
        number += 1
        fault = Fault(monkeypatch, number, error, **options)
        yield fault
        reached = fault.count >= number
