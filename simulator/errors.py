"""The one error that is the user's: a line that says what to change."""

from __future__ import annotations


class InputError(Exception):
    """Something the user gave cannot be used; the message is complete and one line per fault.

    The command line prints it to stderr and exits with status 2; nothing else catches it.
    """
