"""The events of a trace file one by one, whatever its size.

A trace is a JSON list of events, or an object with such a list under `traceEvents`; gzip or not.
Only a piece of the text is held. Nothing that is read is executed. Fractions come as text, as they
stand in the file: times since 1970 in us have more digits than a float.
"""

from __future__ import annotations

import codecs
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from simulator.errors import InputError

_CHUNK = 1 << 20
_MOST_CHARACTERS = 64 << 20
"""Of one event, or of one entry beside the events: a longer one is no trace."""

_BOMB_BYTES, _BOMB_RATIO = 256 << 20, 300
"""Beyond so many bytes, text packed more tightly than this is no trace: those reach 10 to 40."""

_SPACE = " \t\r\n"
_BETWEEN = re.compile(r"[ \t\r\n,]*").match


class EventFile:
    """The events of one file, once: iterate over it. State: where it stands.

    After that `head` holds the small entries beside the events, and `cut` says why the file ended
    early ("": it did not). Errors: InputError for a file that is no trace.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.head: dict[str, Any] = {}
        self.cut = ""
        self._decoder = json.JSONDecoder(parse_float=str, parse_constant=str)
        self._chunks: Iterator[str] = iter(())
        self._text = ""
        self._at = 0

    def __iter__(self) -> Iterator[Any]:
        """Yield the events."""
        try:
            with self.path.open("rb") as file:
                self._chunks = self._read(file)
                yield from self._events()
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read: {error.strerror}") from error
        except RecursionError:
            raise self._refusal("is nested too deeply") from None

    def _refusal(self, why: str) -> InputError:
        return InputError(f"{self.path}: is no trace: {why}")

    def _events(self) -> Iterator[Any]:
        opener = self._peek()
        if opener == "[":
            yield from self._list()
            return
        if opener != "{":
            raise self._refusal("a trace is JSON, and begins with { or [")
        self._at += 1
        found = False
        while (mark := self._peek()) != "}":
            if mark == "":
                self._end_early("the file was cut off")
                break
            if mark == ",":
                self._at += 1
                continue
            key = self._value()
            if self._ended():
                break
            if not isinstance(key, str) or self._peek() != ":":
                raise self._refusal("no key where one should stand")
            self._at += 1
            if key == "traceEvents" and self._peek() == "[":
                found = True
                yield from self._list()
            else:
                value = self._value()
                if not self._ended() and len(str(value)) < 10_000:
                    self.head[key] = value
            if self._ended():
                break
        if not found:
            raise self._refusal("it has no list 'traceEvents'")

    def _list(self) -> Iterator[Any]:
        """Yield the members of the list that begins here."""
        self._at += 1
        while (mark := self._peek()) != "]":
            if mark == "":
                self._end_early("the file was cut off")
                return
            if mark == ",":
                self._at += 1
                continue
            value = self._value()
            if self._ended():
                return
            yield value
            yield from self._objects_here()
        self._at += 1

    def _objects_here(self) -> Iterator[Any]:
        """Yield the objects that follow whole in the text that is held: nearly all events."""
        text, decode = self._text, self._decoder.raw_decode
        while (between := _BETWEEN(text, self._at)) and text.startswith("{", between.end()):
            try:
                value, self._at = decode(text, between.end())
            except ValueError:
                return
            yield value

    def _ended(self) -> bool:
        return bool(self.cut)

    def _end_early(self, why: str) -> None:
        self.cut = self.cut or why

    def _peek(self) -> str:
        """The next character that is no blank, "" at the end of the file."""
        while True:
            text, at = self._text, self._at
            end = len(text)
            while at < end and text[at] in _SPACE:
                at += 1
            self._at = at
            if at < end:
                return text[at]
            if not self._more():
                return ""

    def _value(self) -> Any:
        """The JSON value that comes next; sets `cut` if the file ends within it."""
        self._peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except ValueError:
                if len(self._text) - self._at > _MOST_CHARACTERS:
                    most = f"{_MOST_CHARACTERS >> 20} MB"
                    raise self._refusal(f"an entry beyond {most}, or one that is no JSON") from None
                # Twice as much each time, so that a long entry is not begun anew too often.
                if not self._more(max(len(self._text) - self._at, 1)):
                    self._end_early("the file was cut off, or is damaged")
                    return None
                continue
            # A number at the very end may go on in the next piece.
            length = end - self._at
            if end == len(self._text) and self._more():
                continue
            self._at += length
            return value

    def _more(self, characters: int = 1) -> bool:
        """Read at least so many further characters; False at the end of the file."""
        parts = [self._text[self._at :]]
        self._at = 0
        added = 0
        while added < characters:
            piece = next(self._chunks, None)
            if piece is None:
                break
            parts.append(piece)
            added += len(piece)
        self._text = "".join(parts)
        return added > 0

    def _read(self, file: BinaryIO) -> Iterator[str]:
        """The text of the file in pieces."""
        first = file.read(_CHUNK)
        if first.startswith(b"PK\x03\x04"):
            raise InputError(f"{self.path}: is a zip archive; unpack it first")
        packed = first.startswith(b"\x1f\x8b")
        decode = codecs.getincrementaldecoder("utf-8-sig")("replace").decode
        pieces = self._unpacked(first, file) if packed else _plain(first, file)
        for piece in pieces:
            text = decode(piece)
            if text:
                yield text

    def _unpacked(self, first: bytes, file: BinaryIO) -> Iterator[bytes]:
        """The bytes of a gzip file, of all its members, a chunk at a time."""
        unpack = zlib.decompressobj(31)
        read = made = 0
        chunk = first
        while chunk:
            read += len(chunk)
            while chunk:
                if unpack.eof:
                    chunk = chunk.lstrip(b"\0")
                    if not chunk:
                        break
                    unpack = zlib.decompressobj(31)
                try:
                    piece = unpack.decompress(chunk, _CHUNK)
                except zlib.error:
                    self._end_early("the file is damaged")
                    return
                made += len(piece)
                if made > _BOMB_BYTES and made > _BOMB_RATIO * read:
                    raise self._refusal(
                        f"{read:,} bytes unpack to more than {made:,}, as no trace's would"
                    )
                if piece:
                    yield piece
                chunk = unpack.unused_data if unpack.eof else unpack.unconsumed_tail
            chunk = file.read(_CHUNK)
        if not unpack.eof:
            self._end_early("the file was cut off")


def _plain(first: bytes, file: BinaryIO) -> Iterator[bytes]:
    while first:
        yield first
        first = file.read(_CHUNK)
