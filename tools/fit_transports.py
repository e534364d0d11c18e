#!/usr/bin/env python3
"""Write the fitted transports of transports/ anew, from the calibration rows that are shipped.

`tests/studies/test_calibration.py` fails where a file and these rows do not agree. What was not
measured is taken over from another operation or machine, and the file's `sources` say so.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from simulator.spec.transport import Cost, Transport  # noqa: E402
from simulator.studies.validation.fit import Fitted, prepare, rounded  # noqa: E402
from simulator.studies.validation.measured import comments  # noqa: E402
from simulator.studies.validation.sets import DATA, SHIPPED, calibration  # noqa: E402
from simulator.studies.validation.transport_file import fit_sources, transport_text  # noqa: E402
from simulator.studies.validation.validate import refit  # noqa: E402

FP8 = 1.0 + 4 / 128  # with a 4-byte scale per 128 elements

NCCL = Transport.model_construct(
    name="nccl",
    description="NCCL: direct all-to-all, rings, in-switch all-reduce on Hopper and later",
    deduplicate="gpu",
    sms=16,
    costs={},
)
MNNVL = NCCL.model_copy(
    update={
        "name": "mnnvl",
        "description": "NCCL over multi-node NVLink, as in a GB200 NVL72 rack",
    }
)
LOW_LATENCY = Transport.model_construct(
    name="deepep-ll",
    description="DeepEP low-latency kernels, NVLink within a node and RDMA between (since 2025-06)",
    deduplicate="none",
    dispatch_bytes_per_element=FP8,
    dispatch_header_bytes=16,
    combine_bytes_per_element=2.0,
    costs={},
)
NORMAL = Transport.model_construct(
    name="deepep-normal",
    description="DeepEP normal kernels: once per node over RDMA, then NVLink",
    deduplicate="node",
    dispatch_bytes_per_element=FP8,
    combine_bytes_per_element=2.0,
    sms=24,
    costs={},
)

SMS = (
    "sms: assumption; NCCL takes one SM per channel, between 1 and NCCL_MAX_CTAS = 32 "
    "(NCCL user guide)"
)
DEEPEP_BYTES = (
    "dispatch bytes: FP8 with a 4-byte scale per 128 elements{header}; combine: BF16 "
    "(DeepEP README at dd758ca)"
)
NOT_FITTED = "what no row tells is not fitted: network_latency of NCCL (0: the path's own latency)"


def tables(key: str) -> list[str]:
    """What the tables of a set say about themselves, a line for each."""
    return [
        f"{name}: " + " ".join(line for line in comments(DATA / name) if "Rule" not in line[:4])
        for name in SHIPPED[key]
    ]


def fitted_sources(found: Fitted, key: str, like: Transport) -> tuple[str, ...]:
    """The sources of a transport that was fitted to its calibration set."""
    rows = calibration(like.name)
    return fit_sources(found, prepare(rows.rows, rows.topology_of, like), tables(key))


def nccl() -> Transport:
    """NCCL, with send/recv as one message of all-to-all."""
    found = refit("nccl", NCCL)
    one = found.transport.costs["alltoall"]["direct"].model_copy(update={"own_piece": 0.0})
    costs = {**found.transport.costs, "sendrecv": {"direct": one}}
    scales = dict(found.transport.scales)
    scales["A100-SXM-40GB"] = scales["A100-SXM-80GB"]
    return found.transport.model_copy(
        update={
            "costs": costs,
            "scales": scales,
            "sources": (
                *fitted_sources(found, "nccl", NCCL),
                "costs.sendrecv: assumption, those of alltoall",
                "scales.A100-SXM-40GB: assumption, those of the 80 GB model, whose NVLink it has",
                NOT_FITTED,
                SMS,
            ),
        }
    )


def mnnvl(base: Transport) -> Transport:
    """NCCL's H100 fit, with the in-switch all-reduce of 72 GPUs, and its share of NVLink."""
    found = refit("mnnvl", MNNVL)
    fitted = found.transport.costs["allreduce"]
    share = fitted["nvls"].efficiency.nvlink / base.costs["allreduce"]["nvls"].efficiency.nvlink
    costs = {
        op: {name: _scaled(cost, share) for name, cost in listed.items()}
        for op, listed in base.costs.items()
    }
    costs["allreduce"] |= fitted
    return found.transport.model_copy(
        update={
            "costs": costs,
            "sources": (
                *fitted_sources(found, "nvl72", MNNVL),
                "costs.allreduce.nvls.launch: assumption, that of 8 H100 (launch + 7 per_peer of "
                "nccl.yaml); it is below 1 % of every measured time",
                "all other costs: assumption, NCCL's fit to H100 behind NVSwitch (nccl.yaml), "
                f"efficiency.nvlink x {share:.3f}, as the fitted one is to that of 8 H100: no "
                "measurement of them on a GB200 NVL72 was found",
                SMS,
            ),
        }
    )


def _scaled(cost: Cost, share: float) -> Cost:
    """A cost with another share of NVLink."""
    efficiency = cost.efficiency.model_copy(
        update={"nvlink": rounded(cost.efficiency.nvlink * share)}
    )
    return cost.model_copy(update={"efficiency": efficiency})


def low_latency() -> Transport:
    """DeepEP's low-latency kernels."""
    found = refit("deepep-ll", LOW_LATENCY)
    header = ", and 16 bytes of header"
    return found.transport.model_copy(
        update={
            "sources": (
                *fitted_sources(found, "low-latency", LOW_LATENCY),
                DEEPEP_BYTES.format(header=header),
                "sms: 0, receiving may wait for a hook that frees all SMs (DeepEP README)",
            )
        }
    )


def normal() -> Transport:
    """DeepEP's normal kernels."""
    found = refit("deepep-normal", NORMAL)
    return found.transport.model_copy(
        update={
            "sources": (
                *fitted_sources(found, "normal", NORMAL),
                DEEPEP_BYTES.format(header=""),
                "sms: 24, as in the fitted rows and in DeepEP's tests",
                "relay_rate: what 24 SMs move over NVLink between two nodes, fitted; that the rows "
                "wait for them, not for the network, the same kernels on fewer SMs show: 16 SMs "
                "take 1.4 times as long as 24, 4 SMs 5 times",
                "the notify kernel, which exchanges counts before a dispatch, is not in it",
            )
        }
    )


def main() -> None:
    """Write the files."""
    base, latency = nccl(), low_latency()
    rdma = latency.model_copy(
        update={
            "name": "deepep-ll-rdma",
            "description": "DeepEP low-latency kernels, RDMA only (before 2025-06)",
            "path": "network",
            "sources": ("all costs are those of deepep-ll.yaml, fitted there", *latency.sources),
        }
    )
    for transport in (base, mnnvl(base), latency, rdma, normal()):
        path = ROOT / "transports" / f"{transport.name}.yaml"
        path.write_text(transport_text(transport), encoding="utf-8")
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
