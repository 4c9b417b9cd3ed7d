"""Errors for renamed keyword arguments."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def renamed(**names: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorate a function to raise TypeError, naming the new keyword, for renamed ones: old=new."""

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(function)
        def call(*args: P.args, **keywords: P.kwargs) -> T:
            for old in names.keys() & keywords.keys():
                raise TypeError(f"{function.__name__}: {old}= is now {names[old]}=")
            return function(*args, **keywords)

        return call

    return decorate
