"""Rows of a recorded file as they stand there, before they are judged."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]


class Rows(NamedTuple):
    """n rows of a recorded file.

    `time_s` float64, `prompt_tokens`, `output_tokens`, `lines` (where each stands) int64, `bad`
    bool, all [n]; `first_bad`: what is wrong in the first bad row; `broken`: (line, what is wrong)
    of lines that are no rows at all. `block_ptr` int64 [n + 1], `block_hash` int64: prefix blocks
    of `block_tokens` tokens (0: the file has none). `names` of time, prompt and output in the file.
    `relative`: times count from the recording's start and may not be negative.
    """

    time_s: Floats
    prompt_tokens: Int64s
    output_tokens: Int64s
    lines: Int64s
    bad: Bools
    first_bad: str
    broken: list[tuple[int, str]]
    block_ptr: Int64s
    block_hash: Int64s
    block_tokens: int
    names: tuple[str, str, str]
    relative: bool
    failed_without_output: bool

    @classmethod
    def plain(
        cls,
        time_s: Floats,
        prompt_tokens: Int64s,
        output_tokens: Int64s,
        lines: Int64s,
        names: tuple[str, str, str],
    ) -> Rows:
        """Rows that are all readable and have no prefix blocks."""
        n = len(lines)
        return cls(
            time_s=time_s,
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            lines=lines,
            bad=np.zeros(n, dtype=bool),
            first_bad="",
            broken=[],
            block_ptr=np.zeros(n + 1, dtype=np.int64),
            block_hash=np.empty(0, dtype=np.int64),
            block_tokens=0,
            names=names,
            relative=True,
            failed_without_output=False,
        )

    def take(self, kept: Int64s) -> Rows:
        """The rows `kept`, in that order, with their blocks."""
        counts = np.diff(self.block_ptr)[kept]
        ptr = np.concatenate(([0], np.cumsum(counts)))
        # Where each kept block stood: its row's start, plus its number within the row.
        at = np.repeat(self.block_ptr[:-1][kept] - ptr[:-1], counts) + np.arange(ptr[-1])
        return self._replace(
            time_s=self.time_s[kept],
            prompt_tokens=self.prompt_tokens[kept],
            output_tokens=self.output_tokens[kept],
            lines=self.lines[kept],
            bad=self.bad[kept],
            block_ptr=ptr,
            block_hash=self.block_hash[at],
        )
