"""Functions of the user's, named "package.module:function"."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from importlib import import_module
from traceback import extract_tb
from typing import Any

from simulator.errors import InputError


def imported(what: str, name: str) -> Callable[..., Any]:
    """The function called `name`; what: what to call it in an error, as in "routing law".

    Whatever it raises when it is called, or the functions that it returns do, becomes an
    InputError of one line that says where. Errors: InputError if there is no such function.
    """
    path, _, attribute = name.partition(":")
    try:
        found = getattr(import_module(path), attribute)
    except (ImportError, AttributeError) as error:
        raise InputError(f"{what} {name!r} cannot be imported: {error}") from error
    except (Exception, SystemExit) as error:  # the module is the user's: it may raise anything
        raise InputError(f"{what} {name!r} cannot be imported: {_told(error)}") from error
    if not callable(found):
        raise InputError(f"{what} {name!r} is not a function")
    return _guarded(found, f"{what} {name!r}", getattr(sys.modules[path], "__file__", None))


def _guarded(function: Callable[..., Any], called: str, file: str | None) -> Callable[..., Any]:
    """`function`, of the module at `file`; what it raises is told in one line."""

    @wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        try:
            found = function(*args, **kwargs)
        except InputError:
            raise
        except (Exception, SystemExit) as error:
            raise InputError(f"{called} failed: {_told(error, file)}") from error
        if callable(found):
            return _guarded(found, called, file)
        if isinstance(found, tuple) and hasattr(found, "_make"):
            # A policy that is several functions.
            return found._make(_guarded(f, called, file) if callable(f) else f for f in found)
        return found

    return guarded


def _told(error: BaseException, file: str | None = None) -> str:
    """Where and what: the last line of `file` that led to it, else the one that raised it."""
    between = (__file__, import_module.__code__.co_filename)
    frames = [
        frame
        for frame in extract_tb(error.__traceback__)
        if frame.filename not in between and not frame.filename.startswith("<frozen ")
    ]
    frames = [frame for frame in frames if frame.filename == file] or frames
    place = f"{frames[-1].filename}:{frames[-1].lineno}: " if frames else ""
    said = " ".join(str(error).split())
    return f"{place}{type(error).__name__}{f': {said}' if said else ''}"
