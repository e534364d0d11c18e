"""Damaged recordings: every one is refused with one line or read to requests that can be served."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.errors import InputError
from simulator.requests.readers import read_requests
from simulator.spec.requests import MAX_TOKENS

HEAD = {
    "azure": b"TIMESTAMP,ContextTokens,GeneratedTokens\n",
    "vidur": b"arrived_at,num_prefill_tokens,num_decode_tokens\n",
    "burstgpt": b"Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n",
    "mooncake": b"",
}
ROW = {
    "azure": "2023-11-16 18:15:{0:02}.6805900,{1},{2}\n",
    "vidur": "{0}.25,{1},{2}\n",
    "burstgpt": "{0},GPT-4,{1},{2},99,API log\n",
    "mooncake": '{{"timestamp": {0}, "input_length": {1}, "output_length": {2}, "hash_ids": [4]}}'
    "\n",
}
ROWS = 12


def whole(kind: str) -> bytes:
    rows = [ROW[kind].format(10 + row, 100 + row, 1 + row) for row in range(ROWS)]
    return HEAD[kind] + "".join(rows).encode()


def outcome(path: Path, skip_bad: bool) -> int | None:
    """How many requests were read, or None if the file was refused; checks whichever it is."""
    refused = ""
    try:
        found = read_requests(path, skip_bad=skip_bad)
    except InputError as error:
        refused = str(error)
    if refused:
        assert "\n" not in refused
        assert str(path) in refused
        return None
    n = len(found)
    assert n > 0
    assert found.arrival_s[0] == 0
    assert np.isfinite(found.arrival_s).all()
    assert (np.diff(found.arrival_s) >= 0).all()
    for tokens in (found.prompt_tokens, found.output_tokens):
        assert tokens.shape == (n,)
        assert tokens.min() >= 1
        assert tokens.max() <= MAX_TOKENS
    assert found.block_ptr[0] == 0
    assert found.block_ptr[-1] == len(found.block_hash)
    assert (np.diff(found.block_ptr) >= 0).all()
    return n


@pytest.mark.parametrize("kind", HEAD)
def test_cut_anywhere(tmp_path: Path, kind: str):
    content = whole(kind)
    path = tmp_path / "cut.txt"
    for length in range(0, len(content), 3):
        path.write_bytes(content[:length])
        strict, lenient = outcome(path, skip_bad=False), outcome(path, skip_bad=True)
        complete = content[:length].count(b"\n") - HEAD[kind].count(b"\n")
        if complete > 0:
            # Only the last row can be hurt; cut within its last number it is a row all the same.
            assert lenient in (complete, complete + 1)
            assert strict in (None, lenient)
        if strict is None and complete > 0:
            assert lenient == complete


@pytest.mark.parametrize("kind", HEAD)
@settings(max_examples=150)
@given(data=st.data())
def test_bytes_changed_anywhere(tmp_path_factory, kind: str, data: st.DataObject):
    content = bytearray(whole(kind))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        what = data.draw(st.sampled_from(["flip", "insert", "delete", "copy"]))
        if what == "flip":
            content[at] = data.draw(st.integers(0, 255))
        elif what == "insert":
            nasty = [b"\n", b'"', b",", b"\r", b"\0", b"\xff", b"-", b"NaN", b"9" * 30, b"{", b"e9"]
            content[at:at] = data.draw(st.sampled_from(nasty))
        elif what == "delete":
            del content[at : at + data.draw(st.integers(1, 40))]
        else:
            content[at:at] = content[: data.draw(st.integers(1, 60))]
        if not content:
            content = bytearray(b"x")
    path = tmp_path_factory.mktemp("changed") / "changed.txt"
    path.write_bytes(bytes(content))
    strict, lenient = outcome(path, skip_bad=False), outcome(path, skip_bad=True)
    if strict is not None:
        assert lenient == strict
    if lenient is not None:
        assert lenient <= content.count(b"\n") + content.count(b"\r") + 1


@given(content=st.binary(max_size=300))
def test_anything(tmp_path_factory, content: bytes):
    path = tmp_path_factory.mktemp("anything") / "anything.txt"
    path.write_bytes(content)
    assert outcome(path, skip_bad=True) is None


def test_a_line_longer_than_a_block_is_refused(tmp_path: Path):
    path = tmp_path / "long.txt"
    for kind in ("vidur", "mooncake"):
        path.write_bytes(whole(kind) + b"1" * (20 << 20) + b"\n")
        with pytest.raises(InputError, match="longer than 8 MiB"):
            read_requests(path)


@pytest.mark.parametrize("kind", ["azure", "vidur", "burstgpt"])
def test_bytes_that_are_no_text_cost_one_row(tmp_path: Path, kind: str):
    content = whole(kind).replace(b",103,", b",\xff\xfe\x00,")
    path = tmp_path / "bytes.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r":5: .*is not a whole number of tokens"):
        read_requests(path)
    assert 103 not in read_requests(path, skip_bad=True).prompt_tokens
    assert outcome(path, skip_bad=True) == ROWS - 1


@pytest.mark.parametrize("kind", ["azure", "vidur", "burstgpt"])
def test_a_broken_line_that_is_no_text_is_counted(tmp_path: Path, kind: str):
    content = whole(kind).replace(b"\n", b"\n\xff\xfe\n", 1)
    path = tmp_path / "bytes.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=":2: 1 column, the first line has"):
        read_requests(path)
    assert read_requests(path, skip_bad=True).notes[0].startswith(f"1 of {ROWS + 1} rows left out")


@pytest.mark.parametrize(
    ("pack", "said"),
    [
        (gzip.compress, "is compressed (gzip); unpack it first"),
        (lambda data: data.decode().encode("utf-16"), "is UTF-16 text; save it as UTF-8"),
    ],
)
def test_what_is_no_plain_text_is_named(
    tmp_path: Path, pack: Callable[[bytes], bytes], said: str
) -> None:
    """Whatever the file is called."""
    path = tmp_path / "requests.csv"
    path.write_bytes(pack(whole("azure")))
    with pytest.raises(InputError) as caught:
        read_requests(path)
    assert str(caught.value) == f"{path}: {said}"
