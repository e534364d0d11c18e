"""Mooncake's recordings: JSON lines with hashes of prefix blocks.

Each line is {"timestamp": ms, "input_length": tokens, "output_length": tokens, "hash_ids": [...]};
a hash stands for a block of 512 tokens and all before it (Mooncake, FAST '25,
github.com/kvcache-ai/Mooncake). Further keys are ignored.
"""

from __future__ import annotations

import json
from array import array
from pathlib import Path
from typing import Any

import numpy as np

from simulator.errors import InputError
from simulator.requests.columns import shown
from simulator.requests.rows import Rows

TIME, PROMPT, OUTPUT, BLOCKS = "timestamp", "input_length", "output_length", "hash_ids"
BLOCK_TOKENS = 512
MAX_LINE_BYTES = 8 << 20
# What fits in int64 and is still told from its neighbours as float64.
MAX_WHOLE = 1 << 53


def read_mooncake(path: Path, block_tokens: int | None) -> Rows:
    """Read the rows of a file; block_tokens: None for 512. Blank lines are passed over.

    Raises InputError for a line longer than 8 MiB.
    """
    times, prompts, outputs = array("d"), array("q"), array("q")
    ends, hashes, lines = array("q", [0]), array("q"), array("q")
    broken: list[tuple[int, str]] = []
    with path.open("rb") as file:
        line = 0
        while text := file.readline(MAX_LINE_BYTES + 1):
            line += 1
            if len(text) > MAX_LINE_BYTES:
                raise InputError(f"{path}:{line}: longer than {MAX_LINE_BYTES >> 20} MiB")
            if line == 1:
                text = text.removeprefix(b"\xef\xbb\xbf")
            if not text.strip():
                continue
            try:
                time_ms, prompt, output, blocks = _record(text)
            except ValueError as error:
                broken.append((line, str(error)))
                continue
            times.append(time_ms / 1e3)
            prompts.append(prompt)
            outputs.append(output)
            hashes.extend(blocks)
            ends.append(len(hashes))
            lines.append(line)
    rows = Rows.plain(
        np.array(times),
        np.array(prompts, dtype=np.int64),
        np.array(outputs, dtype=np.int64),
        np.array(lines, dtype=np.int64),
        (TIME, PROMPT, OUTPUT),
    )
    return rows._replace(
        broken=broken,
        block_ptr=np.array(ends, dtype=np.int64),
        block_hash=np.array(hashes, dtype=np.int64),
        block_tokens=block_tokens or BLOCK_TOKENS,
    )


def _record(text: bytes) -> tuple[float, int, int, list[int]]:
    """One line; raises ValueError that says what is wrong."""
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        # Also text that is not UTF-8, and whole numbers of thousands of digits.
        raise ValueError("not a line of JSON") from None
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    for key in (TIME, PROMPT, OUTPUT):
        if key not in record:
            raise ValueError(f"{key!r} is missing")
    time_ms = record[TIME]
    if type(time_ms) not in (int, float) or not -MAX_WHOLE < time_ms < MAX_WHOLE:
        raise ValueError(f"{TIME}: {_value(time_ms)} is not a number of milliseconds")
    for key in (PROMPT, OUTPUT):
        count = record[key]
        if type(count) is not int or not -MAX_WHOLE < count < MAX_WHOLE:
            raise ValueError(f"{key}: {_value(count)} is not a whole number of tokens")
    blocks = record.get(BLOCKS, [])
    if not isinstance(blocks, list) or not set(map(type, blocks)) <= {int}:
        raise ValueError(f"{BLOCKS}: not a list of whole numbers")
    if blocks and not (min(blocks) >= 0 and max(blocks) < 1 << 63):
        raise ValueError(f"{BLOCKS}: a hash is negative or has more than 63 bits")
    return time_ms, record[PROMPT], record[OUTPUT], blocks


def _value(value: Any) -> str:
    return shown(value) if isinstance(value, str) else shown(repr(value)).strip("'\"")
