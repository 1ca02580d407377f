"""Drawing in a thread of its own, followed by whoever asked for it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any


class Drawing:
    """Something that is being drawn. It goes on when nobody follows it any more.

    Args:
        work: draws; called with an event that is set to stop it, and with what it tells of its progress.
    """

    def __init__(self, work: Callable[[threading.Event, Callable[[Any], None]], Any]):
        self._work = work
        self._stop = threading.Event()
        self._told: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._result: Any = None
        self._fault: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="drawing", daemon=True)
        self._thread.start()

    @property
    def running(self) -> bool:
        """Whether it is not done yet."""
        return self._thread.is_alive()

    @property
    def stopping(self) -> bool:
        """Whether somebody has stopped it."""
        return self._stop.is_set()

    def stop(self) -> None:
        """Ends it after the step at hand; ``follow`` gives ``None`` then, so that whoever follows can say so."""
        self._stop.set()
        self._told.put(None)

    def follow(self) -> Iterator[Any]:
        """What it tells, as it tells it, until it is done, and ``None`` when it is stopped; of what came at once, the
        last alone."""
        ended = False
        while not ended:
            told = self._told.get()
            while not self._told.empty() and told is not self:
                told = self._told.get()
            ended = told is self
            if not ended:
                yield told

    def result(self) -> Any:
        """What ``work`` returned, once it is done.

        Raises:
            Exception: what ``work`` raised; ``Stopped`` if it was stopped.
        """
        self._thread.join()
        if self._fault is not None:
            raise self._fault
        return self._result

    def _run(self) -> None:
        try:
            self._result = self._work(self._stop, self._told.put)
        except BaseException as error:  # raised again where the result is asked for
            self._fault = error
        finally:
            self._told.put(self)
