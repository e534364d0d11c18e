"""Transport files: the shipped ones, what may stand in one, and how a fault is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulator.errors import InputError
from simulator.spec.find import find, shipped
from simulator.spec.transport import Cost, load_transport

ROOT = Path(__file__).resolve().parents[2]

FILE = """\
name: mine
deduplicate: node
path: network
dispatch_bytes_per_element: 1.5
dispatch_header_bytes: 16
sms: 20
costs:
  alltoall:
    direct:
      launch: 5 us
      per_peer: 250 ns
      network_latency: 2 us
      half_size: 64 KiB
      efficiency: {nvlink: 0.5, network: 0.75}
    two-tier: {launch: 4 us, own_piece: 0.25, relay_rate: 200 GB/s}
scales:
  A100-SXM-80GB: {latency: 1.5, efficiency: 0.9}
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a file and give its name; the tests run in its directory, so that names are short."""
    monkeypatch.chdir(tmp_path)

    def writing(text: str) -> str:
        (tmp_path / "mine.yaml").write_text(text)
        return "mine.yaml"

    return writing


def test_the_shipped_names():
    assert list(shipped("transport")) == sorted(
        p.stem for p in (ROOT / "transports").glob("*.yaml")
    )
    assert list(shipped("transport")) == [
        "deepep-ll",
        "deepep-ll-rdma",
        "deepep-normal",
        "mnnvl",
        "mpi",
        "nccl",
    ]


@pytest.mark.parametrize("name", shipped("transport"))
def test_every_shipped_transport_says_where_its_figures_are_from(name):
    transport = load_transport(name)
    assert transport.name == name
    assert transport.description
    text = find("transport", name).read_text()
    told = [source for source in transport.sources if source.startswith("costs: fitted to")]
    assert len(told) == 1 or ("not fitted" in text and name == "mpi")
    for source in told:
        assert "rows with" in source, "the number of rows and of parameters"
        assert "error" in source


def test_a_file_is_read_in_si_units(write):
    transport = load_transport(write(FILE))
    cost = transport.costs["alltoall"]["direct"]
    assert cost.launch_s == 5e-6
    assert cost.per_peer_s == 250e-9
    assert cost.network_latency_s == 2e-6
    assert cost.half_size_bytes == 65536
    relayed = transport.costs["alltoall"]["two-tier"]
    assert (relayed.own_piece, relayed.relay_rate_bytes_per_s) == (0.25, 200e9)
    assert (cost.efficiency.nvlink, cost.efficiency.pcie, cost.efficiency.network) == (0.5, 1, 0.75)
    assert (transport.deduplicate, transport.path, transport.sms) == ("node", "network", 20)
    assert transport.scale_of("A100-SXM-80GB").latency == 1.5
    assert transport.scale_of("H100-SXM").efficiency == 1.0


def test_what_is_left_out_costs_nothing():
    cost = Cost.model_validate({"launch": "1 us"})
    assert (cost.per_peer_s, cost.network_latency_s, cost.half_size_bytes) == (0.0, 0.0, 0.0)
    assert (cost.own_piece, cost.relay_rate_bytes_per_s) == (0.0, None)
    assert cost.efficiency.network == 1.0


def test_dispatch_and_combine_cost_what_alltoall_does_unless_given(write):
    transport = load_transport(write(FILE))
    assert transport.costs_of("dispatch") is transport.costs["alltoall"]
    low_latency = load_transport("deepep-ll")
    assert low_latency.costs_of("combine") is low_latency.costs["combine"]
    with pytest.raises(InputError) as refused:
        transport.costs_of("allreduce")
    assert str(refused.value) == "transport mine: no costs for 'allreduce'; it has alltoall"


def test_keys_are_replaced_with_set(write):
    given = ["costs.alltoall.direct.launch=9 us", "sms=4", "costs.allreduce.ring.launch=1 us"]
    transport = load_transport(write(FILE), given)
    assert transport.costs["alltoall"]["direct"].launch_s == 9e-6
    assert transport.costs["alltoall"]["two-tier"].launch_s == 4e-6
    assert transport.costs["allreduce"]["ring"].launch_s == 1e-6
    assert transport.sms == 4


FAULTS = [
    ("sms: 20", "sms: -1", "mine.yaml:6:6: sms: must be >= 0, not -1"),
    ("launch: 5 us", "launch: 5", 'mine.yaml:10:15: costs.alltoall.direct.launch: 5 has no unit; '
     'write for example "5 us"'),
    ("nvlink: 0.5", "nvlink: 1.5", "mine.yaml:14:28: costs.alltoall.direct.efficiency.nvlink: "
     "must be <= 1, not 1.5"),
    ("    direct:", "    dirct:", "mine.yaml:9:5: costs.alltoall.dirct: unknown algorithm "
     "(did you mean 'direct'?); known: direct, two-tier, ring, tree, nvls"),
    ("  alltoall:", "  all_to_all:", "mine.yaml:8:3: costs.all_to_all: unknown operation "
     "(did you mean 'alltoall'?); known: alltoall, allreduce, allgather, reducescatter, sendrecv, "
     "dispatch, combine"),
    ("path: network", "path: rdma", "mine.yaml:3:7: path: 'rdma' is not one of fastest, network, "
     "host"),
    ("sms: 20", "sm: 20", "mine.yaml:6:1: sm: unknown key (did you mean 'sms'?)"),
    ("half_size: 64 KiB", "half_size: -1 B", "mine.yaml:13:18: costs.alltoall.direct.half_size: "
     "'-1 B' is negative; a bytes cannot be"),
    ("own_piece: 0.25", "own_piece: -1", "mine.yaml:15:41: costs.alltoall.two-tier.own_piece: "
     "must be >= 0, not -1"),
    ("200 GB/s", "0 GB/s", "mine.yaml:15:59: costs.alltoall.two-tier.relay_rate: must be > 0, "
     "not '0 GB/s'"),
]  # fmt: skip


@pytest.mark.parametrize(("right", "wrong", "line"), FAULTS, ids=[wrong for _, wrong, _ in FAULTS])
def test_a_fault_is_one_line_with_its_place(write, right, wrong, line):
    with pytest.raises(InputError) as refused:
        load_transport(write(FILE.replace(right, wrong)))
    assert str(refused.value) == line


def test_a_transport_needs_costs(write):
    with pytest.raises(InputError, match=r"mine.yaml:1:\d+: costs: empty; give at least one of"):
        load_transport(write("{name: mine, costs: {}}"))
    with pytest.raises(InputError, match=r"costs\.alltoall: empty; give at least one of direct"):
        load_transport(write("{name: mine, costs: {alltoall: {}}}"))


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("sms", "--set 'sms': write key.path=value, for example costs.alltoall.direct.launch=5 us"),
        ("cost.x=1", "--set cost: unknown key 'cost' (did you mean 'costs'?)"),
        ("name.x=1", "--set name.x: name has no keys below it"),
        ("sms=many", "--set sms: must be a whole number, not 'many'"),
    ],
)
def test_a_wrong_set_is_refused(given, line):
    with pytest.raises(InputError) as refused:
        load_transport("nccl", [given])
    assert str(refused.value) == line


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(InputError, match=r"no transport 'ncl' \(did you mean 'nccl'\?\); known:"):
        load_transport("ncl")
