"""The tables of a serving run: one row per request, one per step of a group."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from simulator.runfiles.spans import BLOCK_ROWS, WRITING, Column, TableStream, batch, write

OUTCOMES = ("pending", "finished", "failed", "rejected")

REQUEST_SCHEMA = pa.schema(
    [
        pa.field("arrival_s", pa.float64(), nullable=False),
        pa.field("prompt", pa.int32(), nullable=False),
        pa.field("output", pa.int32(), nullable=False),
        pa.field("priority", pa.int16(), nullable=False),
        pa.field("outcome", pa.int8(), nullable=False),
        pa.field("attempts", pa.int32(), nullable=False),
        pa.field("gpu", pa.int32(), nullable=False),
        pa.field("admitted_s", pa.float64(), nullable=False),
        pa.field("first_s", pa.float64(), nullable=False),
        pa.field("last_s", pa.float64(), nullable=False),
        pa.field("end_s", pa.float64(), nullable=False),
        pa.field("generated", pa.int32(), nullable=False),
        pa.field("wasted", pa.int32(), nullable=False),
        pa.field("reused", pa.int32(), nullable=False),
        pa.field("preempted", pa.int32(), nullable=False),
        pa.field("largest_gap_s", pa.float64(), nullable=False),
    ]
)

STEP_SCHEMA = pa.schema(
    [
        pa.field("group", pa.int32(), nullable=False),
        pa.field("start_s", pa.float64(), nullable=False),
        pa.field("end_s", pa.float64(), nullable=False),
        pa.field("prompt", pa.int32(), nullable=False),
        pa.field("generated", pa.int32(), nullable=False),
        pa.field("waiting", pa.int32(), nullable=False),
        pa.field("running", pa.int32(), nullable=False),
        pa.field("used_blocks", pa.int64(), nullable=False),
        pa.field("steps", pa.int32(), nullable=False),
    ]
)

_RECORD = np.dtype([(field.name, field.type.to_pandas_dtype()) for field in STEP_SCHEMA])


def write_requests(path: Path, *columns: Column) -> None:
    """Write `requests.parquet`: the columns of `REQUEST_SCHEMA`, each [requests]."""
    write(path, REQUEST_SCHEMA, columns)


class StepWriter(TableStream):
    """Streams `steps.parquet` of a serving run; memory stays one block.

    Use it as a context manager, or call `close()`; the file is complete only after that.
    """

    def __init__(self, path: Path) -> None:
        """Open `path` for writing (OSError if that cannot be done)."""
        self._block = np.zeros(BLOCK_ROWS, dtype=_RECORD)
        self._filled = 0
        self._writer = pq.ParquetWriter(path, STEP_SCHEMA, **WRITING)

    def append(
        self,
        group: int,
        start_s: float,
        end_s: float,
        prompt: int,
        generated: int,
        waiting: int,
        running: int,
        used_blocks: int,
        steps: int = 1,
    ) -> None:
        """Add a step, or some alike: its tokens, and the group's requests and KV blocks after."""
        self._block[self._filled] = (
            group, start_s, end_s, prompt, generated, waiting, running, used_blocks, steps,
        )  # fmt: skip
        self._filled += 1
        if self._filled == BLOCK_ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._filled:
            rows = self._block[: self._filled]
            columns = [np.ascontiguousarray(rows[name]) for name in STEP_SCHEMA.names]
            self._writer.write_batch(batch(STEP_SCHEMA, columns))
        self._filled = 0
