"""Pass what a training logs on to functions of a caller in the same process."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Any

Listener = Callable[[dict[str, Any]], object]
_listeners: ContextVar[tuple[Listener, ...]] = ContextVar("listeners", default=())


def tell(record: dict[str, Any]) -> None:
    """Call each listener with a copy of a record."""
    for listen in _listeners.get():
        listen(dict(record))


@contextlib.contextmanager
def listening(listeners: Iterable[Listener]) -> Iterator[None]:
    """Call each with every record that is logged within; what one raises is raised at the end."""
    raised: list[Exception] = []

    def guarded(listen: Listener) -> Listener:
        def call(record: dict[str, Any]) -> None:
            try:
                listen(record)
            except Exception as error:  # which a run records as its own failure
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
