"""The one door to numba, so that its untyped decorators stay out of typed code.

Without fast-math everywhere: results are the same bits on every run. The caller's types are kept.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TypeVar

import numba

F = TypeVar("F", bound=Callable[..., object])


def compiled(function: F) -> F:
    """Compile to machine code at first call and keep it on disk for the next process."""
    kernel: F = numba.njit(cache=True, nogil=True, boundscheck=False)(function)
    return kernel


def allocation_free(function: F) -> F:
    """Like `compiled`, for functions that only work in arrays they are given.

    numba counts references to every array that a function touches, atomically; where many arrays
    are touched per event that is nine tenths of the time. A function that creates and returns no
    array needs none of it.
    """
    kernel: F = numba.njit(cache=True, nogil=True, boundscheck=False, _nrt=False)(function)
    return kernel


def entry(kernel: F, *arguments: object) -> F:
    """A kernel for arguments of the types of these, compiled now.

    Its calls do not look at the types again, which for tuples of many arrays can take longer than
    the kernel itself: nothing else may be given to it.
    """
    compiled_for: F = kernel.compile(tuple(map(numba.typeof, arguments)))  # type: ignore[attr-defined]
    return compiled_for


def inlined(function: F) -> F:
    """Compile into the `allocation_free` functions that call it."""
    kernel: F = numba.njit(nogil=True, boundscheck=False, forceinline=True, _nrt=False)(function)
    return kernel


def on_top_of(*modules: ModuleType) -> Callable[[F], F]:
    """Like `allocation_free`, for functions that call compiled functions of these modules.

    numba's cache on disk looks at the file of a function only, and keeps with it what it calls:
    here changes of the modules' files make it compile anew, too.
    """
    stats = [Path(str(module.__file__)).stat() for module in modules]
    stamps = tuple((stat.st_mtime, stat.st_size) for stat in stats)

    def decorate(function: F) -> F:
        kernel = allocation_free(function)
        index = kernel._cache._cache_file  # type: ignore[attr-defined]
        index._source_stamp = (index._source_stamp, *stamps)
        return kernel

    return decorate
