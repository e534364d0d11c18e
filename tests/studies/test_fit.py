"""Fits find the parameters that times were made with; the times are closed forms, not ours."""

from __future__ import annotations

import math

import pytest

from simulator.errors import InputError
from simulator.spec.document import parse_document
from simulator.spec.transport import Transport, load_transport, parse_transport
from simulator.studies.validation.fit import error_of, fit, prepare, unknowns
from simulator.studies.validation.measured import Measurement
from simulator.studies.validation.simulated import topology_by_system
from simulator.studies.validation.transport_file import transport_text

# Links of the shipped topologies: GPU to NVSwitch and back, one direction.
HOP_S = 468e-9
NVLINK = {"h100": 450e9, "a100": 300e9}


def row(system: str, operation: str, ranks: int, size_bytes: float, time_s: float) -> Measurement:
    return Measurement("here", system, operation, ranks, time_s, size_bytes=size_bytes)


def nccl_s(system, steps, launch_s, ranks, size_bytes, half_bytes, share, own=0.0) -> float:
    """`steps` pieces of size / ranks through one link, which ramp up together, and an own piece."""
    sent = steps * size_bytes / ranks
    wire = (sent + math.sqrt(half_bytes * sent)) * (1 + own / steps) / share
    return launch_s + wire / NVLINK[system]


SIZES = [4.0**k for k in range(8, 15)]


def test_an_all_to_all_gives_back_its_five_parameters():
    launch_s, per_peer_s, half, share, own = 6e-6, 0.4e-6, 3e5, 0.8, 0.3
    rows = [
        row("h100", "alltoall", n, size, per_peer_s * (n - 1) + 2 * HOP_S
            + nccl_s("h100", n - 1, launch_s, n, size, half, share, own))
        for n in (2, 4, 8) for size in SIZES
    ]  # fmt: skip
    found = fit(rows, topology_by_system, load_transport("nccl"))
    cost = found.transport.costs["alltoall"]["direct"]
    assert found.parameters == 5
    assert cost.own_piece == pytest.approx(own, rel=2e-2)
    assert found.error < 1e-3
    assert cost.launch_s == pytest.approx(launch_s, rel=1e-2)
    assert cost.per_peer_s == pytest.approx(per_peer_s, rel=2e-2)
    assert cost.half_size_bytes == pytest.approx(half, rel=2e-2)
    assert cost.efficiency.nvlink == pytest.approx(share, rel=2e-3)


def test_another_gpu_model_gets_two_factors():
    launch_s, half, share, latency, efficiency = 5e-6, 2e5, 0.75, 1.6, 0.9
    rows = []
    for size in SIZES:
        for system, slower, worse in (("h100", 1.0, 1.0), ("a100", latency, efficiency)):
            steps_s = 7 * 2 * HOP_S
            time_s = steps_s + nccl_s(system, 7, slower * launch_s, 8, size, half, share * worse)
            rows.append(row(system, "allgather", 8, size, time_s))
    found = fit(rows, topology_by_system, load_transport("nccl"))
    cost = found.transport.costs["allgather"]["ring"]
    scale = found.transport.scales["A100-SXM-80GB"]
    assert found.parameters == 5
    assert cost.launch_s == pytest.approx(launch_s, rel=1e-2)
    assert scale.latency == pytest.approx(latency, rel=1e-2)
    assert scale.efficiency == pytest.approx(efficiency, rel=3e-3)


def test_two_tiers_in_parallel_give_back_their_four_parameters():
    launch_s, extra_s, on_nvlink, on_network = 12e-6, 5e-6, 0.55, 0.9
    size = 7168 * 1.03125 + 16
    rows = []
    for tokens in (1, 4, 16, 64, 256, 1024):
        # Top-8 over 8 or 16 ranks: a rank sends tokens x 8 / ranks messages to each.
        one = 2 * HOP_S + 7 * tokens * size / (on_nvlink * 450e9)
        two = 2 * HOP_S + 3.5 * tokens * size / (on_nvlink * 450e9)
        network = 3e-6 + 4 * tokens * size / (on_network * 50e9)  # over two leaves and the spine
        for ranks, time_s in ((8, launch_s + one), (16, launch_s + extra_s + max(two, network))):
            rows.append(
                Measurement("here", "hopper", "dispatch", ranks, time_s, 0.0, tokens, 7168, 8, 256)
            )
    found = fit(rows, topology_by_system, load_transport("deepep-ll"))
    cost = found.transport.costs["dispatch"]["direct"]
    assert found.parameters == 4
    assert found.error < 1e-2
    assert cost.launch_s == pytest.approx(launch_s, rel=1e-2)
    assert cost.network_latency_s == pytest.approx(extra_s, rel=0.05)
    assert cost.efficiency.nvlink == pytest.approx(on_nvlink, rel=1e-2)
    assert cost.efficiency.network == pytest.approx(on_network, rel=1e-2)


def test_a_relay_gives_back_its_rate():
    launch_s, extra_s, share, rate = 30e-6, 5e-6, 0.65, 200e9
    size = 7168 * 1.03125
    rows = []
    for tokens in (64, 256, 1024, 4096):
        for ranks in (8, 16):
            # GPUs that a token goes to: those that hold any of its 8 experts of 256.
            gpus = ranks * (1 - math.comb(256 - 256 // ranks, 8) / math.comb(256, 8))
            if ranks == 8:
                busy_s = 7 / 8 * gpus * tokens * size / (share * NVLINK["h100"])
                time_s = launch_s + 2 * HOP_S + busy_s
            else:
                # Its own and its twin's, to 7 neighbours each; two paths, one after the other.
                busy_s = 14 / 16 * gpus * tokens * size / rate
                time_s = launch_s + extra_s + 3e-6 + 2 * HOP_S + busy_s
            rows.append(
                Measurement("here", "hopper", "dispatch", ranks, time_s, 0.0, tokens, 7168, 8, 256)
            )
    found = fit(rows, topology_by_system, load_transport("deepep-normal"))
    cost = found.transport.costs["dispatch"]["two-tier"]
    assert found.parameters == 4, "launch, network_latency, NVLink's share, and the relay"
    assert cost.relay_rate_bytes_per_s == pytest.approx(rate, rel=1e-2)
    assert cost.efficiency.nvlink == pytest.approx(share, rel=1e-2)
    assert cost.efficiency.network == 0.94, "the relay is the slower of both, so no row tells it"


def test_one_wrong_row_does_not_bend_the_others():
    launch_s, half, share = 6e-6, 3e5, 0.8
    times = [2 * HOP_S + nccl_s("h100", 7, launch_s, 8, size, half, share) for size in SIZES]
    times[3] *= 2.0
    rows = [
        row("h100", "alltoall", 8, size, time_s) for size, time_s in zip(SIZES, times, strict=True)
    ]
    cost = fit(rows, topology_by_system, load_transport("nccl")).transport.costs["alltoall"][
        "direct"
    ]
    assert cost.efficiency.nvlink == pytest.approx(share, rel=0.05)


def test_all_algorithms_of_an_operation_share_the_launch():
    rows = [row("h100", "allreduce", n, s, 1e-5 + s / 2e11) for n in (2, 8) for s in SIZES]
    prepared = prepare(rows, topology_by_system, load_transport("nccl"))
    assert {(one.measured.ranks, one.algorithm) for one in prepared} == {(2, "ring"), (8, "nvls")}
    asked = unknowns(prepared)
    assert [key for key in asked if key[0] == "launch"] == [("launch", "allreduce")]
    assert [key for key in asked if key[0] == "per_peer"] == [("per_peer", "allreduce", "nvls")]
    assert [key for key in asked if key[0] == "root"] == [("root",)]
    assert [key for key in asked if key[0] == "own"] == [], "one count of ranks in a ring"


def test_too_few_rows_are_refused():
    rows = [row("h100", "alltoall", 8, 1e6, 1e-5)]
    with pytest.raises(InputError) as refused:
        fit(rows, topology_by_system, load_transport("nccl"))
    assert str(refused.value) == ("1 rows for 2 parameters (alltoall by direct): give more rows")


@pytest.mark.parametrize(
    ("system", "ranks", "topology"),
    [
        ("h100_sxm", 8, "dgx-h100"),
        ("NVIDIA H100 80GB HBM3", 16, "h100x16-rail"),
        ("a100_sxm", 4, "dgx-a100"),
        ("NVIDIA GB200", 72, "gb200-nvl72"),
        ("NVIDIA B200", 8, "b200x8"),
        ("hopper", 16, "h100x16-rail"),
    ],
)
def test_the_system_names_the_topology(system, ranks, topology):
    assert topology_by_system(row(system, "alltoall", ranks, 1e6, 1e-5)) == topology


def test_an_unknown_system_needs_a_topology():
    measured = row("tpu_v5", "alltoall", 8, 1e6, 1e-5)
    with pytest.raises(InputError) as refused:
        topology_by_system(measured)
    assert str(refused.value) == (
        "here: no topology is known for the system 'tpu_v5'; give one with --topology"
    )


def test_the_error_is_that_of_the_mean_logarithm():
    assert error_of([1.0, 2.0], [1.0, 1.0]) == pytest.approx(math.sqrt(2.0) - 1.0)
    assert error_of([0.5, 2.0], [1.0, 1.0]) == pytest.approx(1.0), (
        "too low does not cancel too high"
    )
    assert error_of([3.0], [3.0]) == 0.0


@pytest.mark.parametrize("name", ["nccl", "deepep-ll-rdma", "deepep-normal", "mpi"])
def test_a_written_transport_reads_back_to_the_same(name):
    transport = load_transport(name)
    again = parse_transport(parse_document(transport_text(transport), "again"))
    assert isinstance(again, Transport)
    for key in Transport.model_fields:
        assert getattr(again, key) == getattr(transport, key), key
