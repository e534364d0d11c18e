"""Quantities: every unit against factors written here by hand, and every refusal with its text."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.errors import InputError
from simulator.spec.units import UNITS, QuantityError, nearest, parse_quantity


@pytest.mark.parametrize(
    ("text", "dimension", "value"),
    [
        ("450 GB/s", "bandwidth", 450e9),
        ("450GB/s", "bandwidth", 450e9),
        ("  450 GB/s ", "bandwidth", 450e9),
        ("400 Gb/s", "bandwidth", 50e9),
        ("200 Gbit/s", "bandwidth", 25e9),
        ("25 GiB/s", "bandwidth", 25 * 1024**3),
        ("4.8 TB/s", "bandwidth", 4.8e12),
        ("100 kB/s", "bandwidth", 1e5),
        ("100 KB/s", "bandwidth", 1e5),
        ("1 B/s", "bandwidth", 1.0),
        ("8 b/s", "bandwidth", 1.0),
        ("2 us", "time", 2e-6),
        ("3 us", "time", 3e-6),
        ("3 \N{MICRO SIGN}s", "time", 3e-6),
        ("3 \N{GREEK SMALL LETTER MU}s", "time", 3e-6),
        ("1.5 ms", "time", 1.5e-3),
        ("3 s", "time", 3.0),
        ("90 ns", "time", 9e-8),
        ("10 min", "time", 600.0),
        ("1 h", "time", 3600.0),
        ("0 s", "time", 0.0),
        ("1e3 s", "time", 1000.0),
        (".5 s", "time", 0.5),
        ("5. s", "time", 5.0),
        ("+5 s", "time", 5.0),
        ("-0 s", "time", 0.0),
        ("80 GiB", "bytes", 80 * 1024**3),
        ("16 GB", "bytes", 16e9),
        ("50 MB", "bytes", 50e6),
        ("512 KiB", "bytes", 524288.0),
        ("8 B", "bytes", 8.0),
        ("2 TiB", "bytes", 2 * 1024**4),
        ("989 TFLOP/s", "flops", 989e12),
        ("67 TFLOPS", "flops", 67e12),
        ("1.2 EFLOP/s", "flops", 1.2e18),
        ("700 W", "power", 700.0),
        ("0.7 kW", "power", 700.0),
        ("150 mW", "power", 0.15),
        ("2 MW", "power", 2e6),
        ("$4/h", "price", 4.0),
        ("$ 4.5 /h", "price", 4.5),
        ("4 $/h", "price", 4.0),
        ("6 pJ/bit", "bit energy", 48e-12),
        ("48 pJ/B", "bit energy", 48e-12),
        ("500 fJ/bit", "bit energy", 4e-12),
        ("0.7 pJ/FLOP", "FLOP energy", 7e-13),
        ("0.10 $/kWh", "tariff", 0.1),
        ("$0.10/kWh", "tariff", 0.1),
        ("$100/MWh", "tariff", 0.1),
        ("1e9 tokens/month", "volume", 12e9),
        ("1 tokens/s", "volume", 31_536_000.0),
        ("1 tokens/day", "volume", 365.0),
    ],
)
def test_reads(text, dimension, value):
    assert parse_quantity(text, dimension) == value


@pytest.mark.parametrize(
    ("text", "dimension", "message"),
    [
        (450, "bandwidth", '450 has no unit; write for example "450 GB/s"'),
        ("450", "bandwidth", '450 has no unit; write for example "450 GB/s"'),
        (-2.5, "time", '-2.5 has no unit; write for example "2.5 us"'),
        (80, "bytes", '80 has no unit; write for example "80 GiB"'),
        (989, "flops", '989 has no unit; write for example "989 TFLOP/s"'),
        (700, "power", '700 has no unit; write for example "700 W"'),
        (4, "price", '4 has no unit; write for example "4 $/h"'),
        (None, "time", 'nothing is not a time; write for example "2 us"'),
        (True, "time", 'True is not a time; write for example "2 us"'),
        (["2 us"], "time", "['2 us'] is not a time; write for example \"2 us\""),
        ("", "time", "'' is not a time; write for example \"2 us\""),
        ("fast", "time", "'fast' is not a time; write for example \"2 us\""),
        ("two us", "time", "'two us' is not a time; write for example \"2 us\""),
        ("1_000 us", "time", "'_000 us' is not a unit of time; write for example \"2 us\""),
        ("1.2.3 s", "time", "'1.2.3 s' is not a time; write for example \"2 us\""),
        ("1e9999 s", "time", "'1e9999 s' is too large for a time"),
        ("1e999 s", "time", "'1e999 s' is too large for a time"),
        (math.nan, "time", 'nan is not finite; write for example "2 us"'),
        (math.inf, "time", 'inf is not finite; write for example "2 us"'),
        ("nan us", "time", "'nan us' is not finite; write for example \"2 us\""),
        (".inf", "time", "'.inf' is not finite; write for example \"2 us\""),
        ("-inf us", "time", "'-inf us' is not finite; write for example \"2 us\""),
        ("-5 GB/s", "bandwidth", "'-5 GB/s' is negative; a bandwidth cannot be"),
        ("-$4/h", "price", "'-$4/h' is negative; a price cannot be"),
        (
            "450 GBps",
            "bandwidth",
            "'GBps' is not a unit of bandwidth (did you mean '450 GB/s'?); "
            'write for example "450 GB/s"',
        ),
        (
            "400 Gbps",
            "bandwidth",
            "'Gbps' is not a unit of bandwidth (did you mean '400 Gb/s'?); "
            'write for example "450 GB/s"',
        ),
        (
            "400 gb/s",
            "bandwidth",
            "'gb/s' is not a unit of bandwidth (did you mean 'GB/s', bytes, or 'Gb/s', bits?); "
            'write for example "450 GB/s"',
        ),
        (
            "450 GB",
            "bandwidth",
            "'GB' is not a unit of bandwidth, which is a unit of bytes; "
            'write for example "450 GB/s"',
        ),
        (
            "2 usec",
            "time",
            "'usec' is not a unit of time (did you mean 'us'?); write for example \"2 us\"",
        ),
        (
            "2 MS",
            "time",
            "'MS' is not a unit of time (did you mean 'ms'?); write for example \"2 us\"",
        ),
        (
            "80 Gib",
            "bytes",
            "'Gib' is not a unit of bytes (did you mean 'GiB'?); write for example \"80 GiB\"",
        ),
        ("5 xyz", "bytes", "'xyz' is not a unit of bytes; write for example \"80 GiB\""),
        (
            "$4/d",
            "price",
            "'$/d' is not a unit of price (did you mean '$/h'?); write for example \"4 $/h\"",
        ),
        (
            "6 pj/bit",
            "bit energy",
            "'pj/bit' is not a unit of bit energy (did you mean 'pJ/bit'?); "
            'write for example "6 pJ/bit"',
        ),
        (
            "0.1 $/h",
            "tariff",
            "'$/h' is not a unit of tariff, which is a unit of price; "
            'write for example "0.10 $/kWh"',
        ),
    ],
)
def test_refuses(text, dimension, message):
    with pytest.raises(QuantityError) as caught:
        parse_quantity(text, dimension)
    assert str(caught.value) == message
    assert isinstance(caught.value, InputError)


NUMBERS = st.decimals(min_value=0, max_value=10**9, places=3, allow_nan=False, allow_infinity=False)
PAIRS = [(dimension, unit) for dimension, units in UNITS.items() for unit in units]


@given(number=NUMBERS, pair=st.sampled_from(PAIRS), space=st.sampled_from(["", " ", "  ", "\t"]))
def test_a_number_with_any_unit_is_the_number_times_the_factor(number, pair, space):
    dimension, unit = pair
    one = parse_quantity(f"1{space}{unit}", dimension)
    assert parse_quantity(f"{number}{space}{unit}", dimension) == pytest.approx(
        float(number) * one, rel=1e-15
    )


@given(value=st.floats(min_value=0, max_value=1e300, allow_subnormal=False))
def test_a_float_written_out_reads_back_exactly(value):
    assert parse_quantity(f"{value!r} s", "time") == value
    assert parse_quantity(f"{value!r} B/s", "bandwidth") == value
    assert parse_quantity(f"{value!r} W", "power") == value


@given(text=st.text(max_size=30), dimension=st.sampled_from(list(UNITS)))
def test_any_text_is_a_finite_quantity_or_one_line_of_refusal(text, dimension):
    value, message = 0.0, ""
    try:
        value = parse_quantity(text, dimension)
    except QuantityError as error:
        message = str(error)
    assert math.isfinite(value)
    assert value >= 0
    assert "\n" not in message


@given(value=st.floats() | st.integers() | st.booleans() | st.none())
def test_nothing_but_text_is_a_quantity(value):
    with pytest.raises(QuantityError):
        parse_quantity(value, "bytes")


def test_a_bit_is_an_eighth_of_a_byte_for_every_prefix():
    for prefix in ("", "k", "M", "G", "T", "P"):
        bits = parse_quantity(f"8 {prefix}b/s", "bandwidth")
        assert bits == parse_quantity(f"1 {prefix}B/s", "bandwidth")
        assert bits == parse_quantity(f"8 {prefix}bit/s", "bandwidth")


def test_the_nearest_name_is_one_that_begins_with_the_word():
    assert nearest("H100", ["H20", "H100-SXM"]) == "H100-SXM"
    assert nearest("nvlnk", ["nvlink", "pcie"]) == "nvlink"
    assert nearest("zzz", ["nvlink", "pcie"]) is None
