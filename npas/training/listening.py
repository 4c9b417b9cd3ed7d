"""Pass a training's log records to callbacks in the same process."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Any

Listener = Callable[[dict[str, Any]], object]
_listeners: ContextVar[tuple[Listener, ...]] = ContextVar("listeners", default=())


def notify(record: dict[str, Any]) -> None:
    """Call each listener with a copy of a record."""
    for listen in _listeners.get():
        listen(dict(record))


@contextlib.contextmanager
def listening(listeners: Iterable[Listener]) -> Iterator[None]:
    """Call each listener with every record logged in the block.

    The first exception of a listener is raised again at the end of the block.
    """
    raised: list[Exception] = []

    def guarded(listen: Listener) -> Listener:
        def call(record: dict[str, Any]) -> None:
            try:
                listen(record)
            except Exception as error:  # the run records it as its own failure
                raised.append(error)
                raise

        return call

    token = _listeners.set(tuple(map(guarded, listeners)))
    try:
        yield
    finally:
        _listeners.reset(token)
    if raised:
        raise raised[0]
