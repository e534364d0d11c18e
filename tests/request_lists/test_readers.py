"""Recorded requests: hand-made files of each kind, what is refused, and the public recordings."""

from __future__ import annotations

import csv
import json
import time
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from simulator.errors import InputError
from simulator.requests.readers import CSV_KINDS, MOONCAKE, read_requests

REFERENCE = Path(__file__).resolve().parents[3] / "shared" / "reference" / "requests"
AZURE = REFERENCE / "AzureLLMInferenceTrace_conv_2023.csv"
MOONCAKE_FILE = REFERENCE / "mooncake_conversation_first4000.jsonl"

needs_azure = pytest.mark.skipif(not AZURE.exists(), reason="no Azure recording here")
needs_mooncake = pytest.mark.skipif(not MOONCAKE_FILE.exists(), reason="no Mooncake recording here")

# Three requests, 1.5 s and 0.25 s apart, of 10, 600 and 30 prompt and 5, 7 and 9 output tokens.
FILES = {
    "azure": (
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:15:59.9999999,10,5\n"
        "2023-11-16 18:16:01.4999999,600,7\n"
        "2023-11-16 18:16:01.7499999,30,9"
    ),
    "vidur": "arrived_at,num_prefill_tokens,num_decode_tokens\n0.25,10,5\n1.75,600,7\n2.0,30,9\n",
    "burstgpt": (
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "5,ChatGPT,10,5,15,Conversation log\n"
        "6.5,GPT-4,600,7,607,API log\n"
        "6.75,GPT-4,30,9,39,API log\n"
    ),
    "mooncake": (
        '{"timestamp": 1000, "input_length": 10, "output_length": 5, "hash_ids": [0]}\n'
        '{"timestamp": 2500, "input_length": 600, "output_length": 7, "hash_ids": [1, 2]}\n'
        '{"timestamp": 2750, "input_length": 30, "output_length": 9, "hash_ids": [0]}\n'
    ),
}
# The same, its second row with another time, prompt or output.
ROWS = {
    "azure": "{0},{1},{2}",
    "vidur": "{0},{1},{2}",
    "burstgpt": "{0},GPT-4,{1},{2},7,API log",
    "mooncake": '{{"timestamp": {0}, "input_length": {1}, "output_length": {2}}}',
}
TIMES = {
    "azure": "2023-11-16 18:16:01.4999999",
    "vidur": "1.75",
    "burstgpt": "6.5",
    "mooncake": "2500",
}
EARLY = {
    "azure": "2023-11-16 18:15:59.4999999",
    "vidur": "0.125",
    "burstgpt": "4.5",
    "mooncake": "500",
}
WORDS = {name: (kind.time, kind.prompt, kind.output) for name, kind in CSV_KINDS.items()}
WORDS["mooncake"] = ("timestamp", "input_length", "output_length")


def second_row(kind: str, moment: str | None = None, prompt: str = "600", output: str = "7") -> str:
    lines = FILES[kind].rstrip("\n").split("\n")
    at = 1 if kind == "mooncake" else 2
    lines[at] = ROWS[kind].format(TIMES[kind] if moment is None else moment, prompt, output)
    return "\n".join(lines) + "\n"


def line_of_second(kind: str) -> int:
    return 2 if kind == "mooncake" else 3


def write(tmp_path: Path, content: str | bytes) -> Path:
    path = tmp_path / "requests.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refusal(path: Path, **options: bool) -> str:
    with pytest.raises(InputError) as caught:
        read_requests(path, **options)
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text
    return text


def test_every_reader_has_a_hand_made_file():
    assert set(FILES) == {*CSV_KINDS, MOONCAKE}


@pytest.mark.parametrize("kind", FILES)
class TestEveryKind:
    def test_three_requests(self, tmp_path: Path, kind: str):
        found = read_requests(write(tmp_path, FILES[kind]))
        np.testing.assert_allclose(found.arrival_s, [0.0, 1.5, 1.75], rtol=0, atol=1e-12)
        assert found.prompt_tokens.tolist() == [10, 600, 30]
        assert found.output_tokens.tolist() == [5, 7, 9]
        assert found.priority.tolist() == [0, 0, 0]
        assert found.source == f"requests.txt ({kind})"
        assert found.notes == []
        assert found.concurrency is None
        assert found.arrival_s.dtype == np.float64
        assert found.prompt_tokens.dtype == found.output_tokens.dtype == np.int32
        assert found.priority.dtype == np.int16
        assert found.block_ptr.dtype == found.block_hash.dtype == np.int64

    @pytest.mark.parametrize(
        "change",
        [
            lambda text: text.replace("\n", "\r\n"),
            lambda text: "\ufeff" + text,
            lambda text: "\ufeff" + text.replace("\n", "\r\n"),
            lambda text: text.rstrip("\n"),
            lambda text: text.rstrip("\n") + "\n\n\n",
        ],
        ids=["crlf", "bom", "bom-crlf", "no-last-newline", "blank-lines"],
    )
    def test_other_line_ends_and_a_byte_order_mark(self, tmp_path: Path, kind: str, change):
        found = read_requests(write(tmp_path, change(FILES[kind])))
        np.testing.assert_allclose(found.arrival_s, [0.0, 1.5, 1.75], rtol=0, atol=1e-12)
        assert found.output_tokens.tolist() == [5, 7, 9]
        assert found.notes == []

    @pytest.mark.parametrize(
        ("given", "column", "words"),
        [
            ({"prompt": "0"}, 1, "a prompt of 0 tokens"),
            ({"prompt": "-4"}, 1, "-4 is negative"),
            ({"output": "-1"}, 2, "-1 is negative"),
            ({"prompt": "99999999999"}, 1, "is more than 16,777,216 tokens"),
            ({"output": "16777217"}, 2, "is more than 16,777,216 tokens"),
            ({"prompt": "NaN"}, 1, "is not a whole number of tokens"),
            ({"prompt": "1.5"}, 1, "is not a whole number of tokens"),
            ({"output": "1e3"}, 2, "is not a whole number of tokens"),
            ({"output": '"x"'}, 2, "is not a whole number of tokens"),
            ({"prompt": "9" * 40}, 1, "is not a whole number of tokens"),
            ({"moment": "NaN"}, 0, "is not a"),
            ({"moment": '"soon"'}, 0, "is not a"),
            ({"moment": "1e999"}, 0, ""),
        ],
    )
    def test_one_bad_row(self, tmp_path: Path, kind: str, given, column: int, words: str):
        path = write(tmp_path, second_row(kind, **given))
        text = refusal(path)
        assert text.startswith(f"{path}:{line_of_second(kind)}: {WORDS[kind][column]}: ")
        assert words in text
        assert text.endswith("; skip_bad leaves such rows out")
        found = read_requests(path, skip_bad=True)
        np.testing.assert_allclose(found.arrival_s, [0.0, 1.75], rtol=0, atol=1e-12)
        assert found.prompt_tokens.tolist() == [10, 30]
        assert found.output_tokens.tolist() == [5, 9]
        start = f"1 of 3 rows left out, the first in line {line_of_second(kind)}: "
        assert [note[: len(start)] for note in found.notes] == [start]

    def test_a_time_that_goes_back(self, tmp_path: Path, kind: str):
        path = write(tmp_path, second_row(kind, moment=EARLY[kind]))
        text = refusal(path)
        line = line_of_second(kind)
        assert text.startswith(f"{path}:{line}: {WORDS[kind][0]}: ")
        assert f"s before the request in line {line - 1};" in text
        for options in ({"sort": True}, {"skip_bad": True}):
            found = read_requests(path, **options)
            assert found.prompt_tokens.tolist() == [600, 10, 30]
            assert found.arrival_s[0] == 0.0
            assert (np.diff(found.arrival_s) > 0).all()
            assert found.notes == ["sorted by time: 1 request stood after a later one"]

    def test_no_requests(self, tmp_path: Path, kind: str):
        lines = FILES[kind].split("\n")
        if kind == "mooncake":
            assert "the file is empty" in refusal(write(tmp_path, ""))
        else:
            assert "no requests in it" in refusal(write(tmp_path, lines[0]))
            assert "no requests in it" in refusal(write(tmp_path, lines[0] + "\n"))

    def test_no_row_is_left(self, tmp_path: Path, kind: str):
        lines = FILES[kind].rstrip("\n").split("\n")
        row = ROWS[kind].format(TIMES[kind], "0", "7")
        text = "\n".join([*(lines[:1] if kind != "mooncake" else []), row, row, ""])
        found = refusal(write(tmp_path, text), skip_bad=True)
        assert "no row is left; 2 of 2 rows left out" in found
        assert "2 bad rows in all" in refusal(write(tmp_path, text))

    def test_a_megabyte_of_the_same(self, tmp_path: Path, kind: str):
        """Lines are counted right across the blocks in which a file is read."""
        lines = FILES[kind].rstrip("\n").split("\n")
        head = [] if kind == "mooncake" else lines[:1]
        many = 200_000
        bad = ROWS[kind].format(TIMES[kind], "abc" if kind != "mooncake" else '"abc"', "7")
        rows = [lines[-1]] * many + [bad, "broken", bad] + [lines[-1]] * 10
        path = write(tmp_path, "\n".join([*head, *rows, ""]))
        assert f":{len(head) + many + 1}: " in refusal(path)
        assert "3 bad rows in all" in refusal(path)
        assert len(read_requests(path, skip_bad=True)) == many + 10


def test_columns_in_another_order_and_more_of_them(tmp_path: Path):
    text = "num_decode_tokens, extra,arrived_at,extra,num_prefill_tokens\n7,a b,0.5,,600\n"
    found = read_requests(write(tmp_path, text))
    assert (found.prompt_tokens.tolist(), found.output_tokens.tolist()) == ([600], [7])


def test_quotes_around_values_are_taken_off(tmp_path: Path):
    text = 'arrived_at,"num_prefill_tokens",num_decode_tokens\n"0.5","600", 7\n1.0,"5,7\n2.0,5,7\n'
    path = write(tmp_path, text)
    found = read_requests(path, skip_bad=True)
    # A quote that is not closed is no quote: it costs nothing but itself.
    assert found.prompt_tokens.tolist() == [600, 5, 5]
    assert len(read_requests(path)) == 3


def test_a_row_with_too_few_columns(tmp_path: Path):
    path = write(tmp_path, FILES["vidur"].replace("1.75,600,7", "1.75,600"))
    assert refusal(path).startswith(f"{path}:3: 2 columns, the first line has 3; skip_bad")
    assert read_requests(path, skip_bad=True).output_tokens.tolist() == [5, 9]


@pytest.mark.parametrize(
    "first",
    [
        "a,b,c",
        "TIMESTAMP,ContextTokens",
        "timestamp,contexttokens,generatedtokens",
        "TIMESTAMP;ContextTokens;GeneratedTokens",
        "\x00\x01\x02",
    ],
)
def test_an_unknown_first_line(tmp_path: Path, first: str):
    text = refusal(write(tmp_path, first + "\n1,2,3\n"))
    assert ":1: " in text
    assert "known: azure (TIMESTAMP,ContextTokens,GeneratedTokens); vidur (" in text


def test_a_column_that_stands_there_twice(tmp_path: Path):
    text = "arrived_at,num_prefill_tokens,num_decode_tokens,arrived_at\n1,2,3,4\n"
    assert "column 'arrived_at' stands there twice" in refusal(write(tmp_path, text))


def test_a_file_that_is_not_there(tmp_path: Path):
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(InputError, match=r"No such file|Is a directory"):
            read_requests(path)


def test_times_with_a_zone_are_of_one_clock(tmp_path: Path):
    """The 2024 recordings give the zone: the same moment in two zones is no time apart."""
    text = (
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2024-05-10 00:00:00.009930+00:00,10,5\n"
        "2024-05-10 00:00:01+00:00,20,6\n"
        "2024-05-10 02:00:01.25+02:00,30,7\n"
        "2024-05-10T00:00:02.5Z,40,8\n"
    )
    found = read_requests(write(tmp_path, text))
    expected = [0.0, 0.99007, 1.24007, 2.49007]
    np.testing.assert_allclose(found.arrival_s, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "moment",
    [
        "2023-02-30 18:15:46.5",
        "2023-11-16 24:15:46.5",
        "2023-11-16 18:60:46",
        "2023-11-16 18:15:60",
        "2023-11-16",
        "1.5",
        "2023-11-16 18:15:46.1234567890",
        "2999-11-16 18:15:46",
        "2023-11-16 18:15:46+99:00",
    ],
)
def test_a_moment_that_there_is_not(tmp_path: Path, moment: str):
    path = write(tmp_path, second_row("azure", moment=moment))
    assert f":3: TIMESTAMP: {moment!r} is not a time such as 2023-11-16" in refusal(path)
    assert len(read_requests(path, skip_bad=True)) == 2


@pytest.mark.parametrize("kind", ["azure", "vidur", "mooncake"])
def test_no_output_is_one_token(tmp_path: Path, kind: str):
    found = read_requests(write(tmp_path, second_row(kind, output="0")))
    assert found.output_tokens.tolist() == [5, 1, 9]
    assert found.notes == ["1 request without output, given 1 token: the prompt's pass makes it"]


def test_no_output_in_burstgpt_is_a_failed_request(tmp_path: Path):
    path = write(tmp_path, second_row("burstgpt", output="0"))
    assert ":3: Response tokens: 0, a request that failed when it was recorded" in refusal(path)
    assert read_requests(path, skip_bad=True).output_tokens.tolist() == [5, 9]


def test_prefix_blocks_follow_their_requests(tmp_path: Path):
    record = '{{"timestamp": {}, "input_length": {}, "output_length": 1, "hash_ids": {}}}\n'
    text = (
        record.format(2000, 1100, [7, 8, 9])
        + record.format(1000, 512, [5])
        + '{"timestamp": 3000, "input_length": 9, "output_length": 1}\n'
        + record.format(1500, 0, [1])
        + record.format(1500, 600, [5, 6])
    )
    found = read_requests(write(tmp_path, text), skip_bad=True)
    blocks = [
        found.block_hash[a:b].tolist()
        for a, b in zip(found.block_ptr[:-1], found.block_ptr[1:], strict=True)
    ]
    assert blocks == [[5], [5, 6], [7, 8, 9], []]
    assert found.prompt_tokens.tolist() == [512, 600, 1100, 9]
    assert found.block_tokens == 512


def test_more_blocks_than_the_prompt_has(tmp_path: Path):
    text = '{"timestamp": 0, "input_length": 512, "output_length": 1, "hash_ids": [1, 2]}\n'
    path = write(tmp_path, text)
    assert ":1: hash_ids: 2 blocks of 512 tokens are more than the prompt's 512" in refusal(path)
    assert read_requests(path, block_tokens=256).block_tokens == 256


def test_block_size_of_a_file_without_blocks(tmp_path: Path):
    with pytest.raises(InputError, match="has no prefix blocks"):
        read_requests(write(tmp_path, FILES["vidur"]), block_tokens=16)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("[1, 2]", "not a JSON object"),
        ("{'a': 1}", "not a line of JSON"),
        ('{"timestamp": 1', "not a line of JSON"),
        ("[" * 100_000, "not a line of JSON"),
        ('{"timestamp": 1, "input_length": 2}', "'output_length' is missing"),
        ('{"timestamp": true, "input_length": 2, "output_length": 3}', "timestamp: True is not"),
        ('{"timestamp": 1, "input_length": true, "output_length": 3}', "input_length: True is not"),
        ('{"timestamp": 1, "input_length": 2.0, "output_length": 3}', "input_length: 2.0 is not"),
        ('{"timestamp": 1, "input_length": 2, "output_length": 3, "hash_ids": 5}', "not a list"),
        ('{"timestamp": 1, "input_length": 2, "output_length": 3, "hash_ids": [true]}', "not a li"),
        ('{"timestamp": 1, "input_length": 2, "output_length": 3, "hash_ids": [-1]}', "negative"),
        (
            '{"timestamp": 1, "input_length": 2, "output_length": 3, '
            '"hash_ids": [9223372036854775808]}',
            "63 bits",
        ),
    ],
)
def test_a_line_that_is_no_record(tmp_path: Path, line: str, words: str):
    good = FILES["mooncake"].split("\n")[0]
    path = write(tmp_path, f"{good}\n{line}\n")
    text = refusal(path)
    assert text.startswith(f"{path}:2: ")
    assert words in text
    assert len(read_requests(path, skip_bad=True)) == 1


@needs_azure
def test_the_azure_recording_against_the_csv_module():
    found = read_requests(AZURE)
    with AZURE.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(found) == len(rows) == 19_366
    assert found.prompt_tokens.tolist() == [int(row["ContextTokens"]) for row in rows]
    assert found.output_tokens.tolist() == [int(row["GeneratedTokens"]) for row in rows]
    # datetime keeps six of the seven digits.
    moments = [datetime.fromisoformat(row["TIMESTAMP"][:26]) for row in rows]
    seconds = [(moment - moments[0]).total_seconds() for moment in moments]
    np.testing.assert_allclose(found.arrival_s, seconds, rtol=0, atol=1.1e-6)
    assert found.notes == []


@needs_azure
def test_a_hundred_thousand_rows_in_well_under_a_second(tmp_path: Path):
    head, *rows = AZURE.read_text().split("\n")
    path = write(tmp_path, "\n".join([head, *rows * 6]))
    read_requests(AZURE)  # libraries loaded
    began = time.process_time()
    found = read_requests(path, sort=True)
    assert len(found) == 6 * 19_366
    assert time.process_time() - began < 1.0


@needs_mooncake
def test_the_mooncake_recording_against_plain_json():
    found = read_requests(MOONCAKE_FILE)
    records = [json.loads(line) for line in MOONCAKE_FILE.read_text().splitlines()]
    assert len(found) == len(records) == 4000
    assert found.prompt_tokens.tolist() == [record["input_length"] for record in records]
    assert found.output_tokens.tolist() == [record["output_length"] for record in records]
    first = records[0]["timestamp"]
    seconds = [(record["timestamp"] - first) / 1000 for record in records]
    np.testing.assert_allclose(found.arrival_s, seconds, rtol=0, atol=1e-9)
    assert found.block_hash.tolist() == [h for record in records for h in record["hash_ids"]]
    assert np.diff(found.block_ptr).tolist() == [len(record["hash_ids"]) for record in records]
