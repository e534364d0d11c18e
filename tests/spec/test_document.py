"""YAML with positions: what is read, where it stood, and every refusal with its text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.errors import InputError
from simulator.spec.document import (
    MAX_FILE_BYTES,
    MAX_NODES,
    Document,
    parse_document,
    parse_value,
    read_document,
)

TEXT = """\
name: x
build:
  kind: switch
  links:
    - {from: a, to: b}
    - from: c
      to: d
"""


def refusal(text: str) -> str:
    with pytest.raises(InputError) as caught:
        parse_document(text, "f.yaml")
    return str(caught.value)


def test_every_key_and_value_has_its_position():
    document = parse_document(TEXT, "f.yaml")
    assert document.data == {
        "name": "x",
        "build": {"kind": "switch", "links": [{"from": "a", "to": "b"}, {"from": "c", "to": "d"}]},
    }
    assert document.mark(("name",)) == "f.yaml:1:7"
    assert document.mark(("name",), key=True) == "f.yaml:1:1"
    assert document.mark(("build", "links", 0, "to")) == "f.yaml:5:21"
    assert document.mark(("build", "links", 1, "to"), key=True) == "f.yaml:7:7"
    assert document.mark(("build", "links", 1, "bandwidth")) == "f.yaml:6:7"
    assert document.mark(()) == "f.yaml:1:1"
    assert document.fault(("build", "kind"), "bad") == "f.yaml:3:9: build.kind: bad"


def test_what_is_put_is_marked_with_its_origin_and_so_is_all_below():
    document = parse_document(TEXT, "f.yaml")
    document.put(("build",), {"kind": "other"}, "--set")
    assert document.data["build"] == {"kind": "other"}
    assert document.fault(("build", "kind"), "bad") == "--set build.kind: bad"
    assert document.fault(("name",), "bad") == "f.yaml:1:7: name: bad"
    assert Document({}).mark(("a",)) == "?"


def test_plain_scalars_are_those_of_yaml_1_2():
    text = "[no, yes, on, 1:30, 010, 2024-01-01, <<, 1e-3, 1., .5, -7, ~, null, true, False, 0x10]"
    assert parse_value(text, "--set x") == [
        "no", "yes", "on", "1:30", "010", "2024-01-01", "<<", 0.001, 1.0, 0.5, -7, None, None,
        True, False, "0x10",
    ]  # fmt: skip
    assert parse_value("", "--set x") is None
    assert parse_value("$4/h", "--set x") == "$4/h"
    assert parse_value("synthetic:0.8", "--set x") == "synthetic:0.8"


def test_aliases_are_read_as_copies():
    document = parse_document("a: &x {b: [1]}\nc: *x\n", "f.yaml")
    assert document.data == {"a": {"b": [1]}, "c": {"b": [1]}}
    assert document.data["a"]["b"] is not document.data["c"]["b"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "f.yaml:1:1: empty, expected key: value lines"),
        ("# only a comment\n", "f.yaml:1:1: empty, expected key: value lines"),
        ("- a\n- b\n", "f.yaml:1:1: expected key: value lines at the top"),
        ("just text\n", "f.yaml:1:1: expected key: value lines at the top"),
        ("a: 1\nb: 2\na: 3\n", "f.yaml:3:1: a: given twice (first in line 1)"),
        ("a:\n  b: 1\n  b: 2\n", "f.yaml:3:3: a.b: given twice (first in line 2)"),
        ("1: a\n", "f.yaml:1:1: a key must be a word"),
        ("a:\n  ? [x]\n  : y\n", "f.yaml:2:5: a key must be a word"),
        ("a: !!python/name:os.system x\n",
         "f.yaml:1:4: tag 'tag:yaml.org,2002:python/name:os.system' is not allowed"),
        ("a: !!set {x}\n", "f.yaml:1:4: tag 'tag:yaml.org,2002:set' is not allowed"),
        ("a: !!int x\n", "f.yaml:1:4: 'x' is not a number"),
        ("a: " + "9" * 5000 + "\n", f"f.yaml:1:4: '{'9' * 40}' is not a number"),
        ("a: &x [*x]\n", "f.yaml:1:4: nested deeper than 64 levels"),
        ("a: " + "[" * 70 + "]" * 70 + "\n", "f.yaml:1:68: nested deeper than 64 levels"),
    ],
)  # fmt: skip
def test_refuses(text, message):
    assert refusal(text) == message


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("a: [1\n", "f.yaml:2:1"),
        ("a: 1\n b: 2\n", "f.yaml:2:3"),
        ("a: {b: 1\nc: 2\n", "f.yaml:2:2"),
        ("a:\n\t- b\n", "f.yaml:2:1"),
        ("a: *nowhere\n", "f.yaml:1:4"),
        ("a: 1\n---\nb: 2\n", "f.yaml:2:1"),
        ('a: "b\n', "f.yaml:2:1"),
    ],
)
def test_a_syntax_error_is_one_line_with_its_position(text, where):
    message = refusal(text)
    assert message.startswith(f"{where}: not valid YAML: ")
    assert "\n" not in message


def test_a_control_character_is_a_syntax_error():
    assert "not valid YAML: control character" in refusal("a: b\x07\n")


def test_aliases_cannot_blow_up():
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{i}: &a{i} [{', '.join(f'*a{i - 1}' for _ in range(10))}]" for i in range(1, 9)]
    assert refusal("\n".join(levels)).endswith(f"more than {MAX_NODES} values, aliases expanded")


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match=r"^f\.yaml: cannot be read: Is a directory$"):
        read_document(tmp_path, "f.yaml")
    with pytest.raises(InputError, match=r"^f\.yaml: cannot be read: No such file or directory$"):
        read_document(tmp_path / "none", "f.yaml")


def test_a_file_beyond_4_mib_is_refused(tmp_path):
    path = tmp_path / "f.yaml"
    path.write_bytes(b"a: b\n" + b"#" * MAX_FILE_BYTES)
    with pytest.raises(InputError, match=r"^f\.yaml: larger than 4 MiB$"):
        read_document(path, "f.yaml")


def test_a_file_that_is_not_text_is_refused(tmp_path):
    path = tmp_path / "f.yaml"
    path.write_bytes(b"a: b\nc: \xff\n")
    with pytest.raises(InputError, match=r"^f\.yaml:2:4: not UTF-8 text$"):
        read_document(path, "f.yaml")


def test_a_value_that_is_no_yaml_has_the_label_of_its_option():
    with pytest.raises(InputError, match=r"^--set x: not valid YAML: "):
        parse_value("[1", "--set x")
    with pytest.raises(InputError, match=r"^--set x: tag .* is not allowed$"):
        parse_value("!!binary aGk=", "--set x")


@given(st.text(max_size=60))
def test_any_text_is_a_mapping_or_one_line_of_refusal(text):
    message = "f.yaml:"
    try:
        data = parse_document(text, "f.yaml").data
    except InputError as error:
        data, message = {}, str(error)
    assert isinstance(data, dict)
    assert message.startswith("f.yaml:")
    assert "\n" not in message
