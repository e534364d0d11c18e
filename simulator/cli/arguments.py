"""What each command takes, and the parser that words what is wrong with it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from simulator.errors import InputError

PROGRAM = "python -m simulator"


class Parser(argparse.ArgumentParser):
    """The parser of one command; wrong arguments are an InputError that names the nearest flag."""

    def __init__(self, command: str, description: str, example: str) -> None:
        super().__init__(
            prog=f"{PROGRAM} {command}",
            description=description[0].upper() + description[1:] + ".",
            epilog=f"example: {PROGRAM} {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Raise InputError instead of printing the usage and leaving."""
        raise InputError(f"{message}; {self.prog} -h tells more")

    def read(self, argv: Sequence[str]) -> argparse.Namespace:
        """The options in `argv`; raises InputError for the first that the command does not have."""
        options, unknown = self.parse_known_args(argv)
        if unknown:
            from simulator.spec.units import did_you_mean

            word = next((text for text in unknown if text.startswith("-")), unknown[0])
            if not word.startswith("-"):
                self.error(f"unexpected argument {word!r}")
            flag = word.partition("=")[0]
            self.error(
                f"unknown flag {flag}{did_you_mean(flag, list(self._option_string_actions))}"
            )
        return options


def run(parser: Parser) -> None:
    """`run`, also without the word."""
    parser.add_argument("--topology", metavar="T", help="the cluster: a shipped name or a path")
    parser.add_argument(
        "--workload", metavar="W", help="the model and its traffic: a shipped name or a path"
    )
    parser.add_argument(
        "--routing",
        metavar="TRACE|LAW",
        help="which experts tokens take, in place of the workload's: a trace (shipped name or "
        "path) or a law such as zipf:1.2",
    )
    add_set(parser)
    parser.add_argument(
        "--seed", type=whole, default=0, metavar="N", help="of all random draws (default 0)"
    )
    parser.add_argument("--out", metavar="DIR", help="keep the files of the run in this directory")
    parser.add_argument(
        "--trace-steps",
        type=whole,
        default=4,
        metavar="N",
        help="how many steps the Chrome traces in --out hold (default 4, none with 0)",
    )
    add_plotlyjs(parser, "of the report in --out")
    add_json(parser, "print the summary as one JSON object")


def transfers(parser: Parser) -> None:
    """`transfers`."""
    parser.add_argument(
        "--topology", required=True, metavar="T", help="the cluster: a shipped name or a path"
    )
    parser.add_argument(
        "--flows",
        required=True,
        metavar="CSV",
        help="the transfers: src, dst (node names or GPU indices), bytes, start_s",
    )
    add_set(parser)
    parser.add_argument(
        "-o", "--output", metavar="OUT", help="write the rows with finish_s here, not to stdout"
    )
    add_network(parser)
    parser.add_argument(
        "--links", metavar="CSV", help="write what every link carried here, not to stderr"
    )
    add_json(parser, "print a list of rows as JSON, in B and s")


def collective(parser: Parser) -> None:
    """`collective`."""
    parser.add_argument(
        "--topology", required=True, metavar="T", help="the cluster: a shipped name or a path"
    )
    parser.add_argument(
        "--op",
        required=True,
        metavar="OP",
        help="alltoall, allreduce, allgather, reducescatter, sendrecv, dispatch or combine",
    )
    for flag, name, text in (
        ("-b", "begin", "smallest size, as in 8, 64K, 512M, 1G: powers of 1024 (default 8)"),
        ("-e", "end", "largest size (default 512M)"),
        ("-f", "factor", "each size, or number of tokens, times this is the next (default 2)"),
        ("--tokens", "tokens", "of each rank: 128 (default), or 1,16,128, or 16-128"),
    ):
        parser.add_argument(flag, dest=name, metavar="N", help=text)
    for flag, text in (
        ("--hidden", "dispatch, combine: elements of a token (default 7168)"),
        ("--topk", "dispatch, combine: experts that a token takes (default 8)"),
        ("--experts", "dispatch, combine: experts, dealt to the ranks contiguously (default 256)"),
        ("--ranks", "only the first N GPUs (default all)"),
        ("--seed", "of a law's random draws (default 0)"),
    ):
        parser.add_argument(flag, type=whole, metavar="N", help=text)
    parser.add_argument(
        "--routing",
        metavar="TRACE|LAW",
        help="dispatch, combine: a trace (shipped name or path) or a law such as zipf:1.2 "
        "(default uniform)",
    )
    parser.add_argument(
        "--transport",
        default="nccl",
        metavar="X",
        help="what moves the bytes: a shipped name or a path (default nccl)",
    )
    parser.add_argument(
        "--algorithm",
        default="auto",
        metavar="A",
        help="direct, two-tier, ring, tree or nvls (default auto: the fastest for each row)",
    )
    add_set(parser)
    add_json(parser, "print a list of rows as JSON")


def fit(parser: Parser) -> None:
    """`fit`."""
    parser.add_argument(
        "measured",
        nargs="+",
        metavar="MEASURED",
        help="measured times: nccl-tests' output, or a CSV of NCCL or DeepEP times",
    )
    parser.add_argument(
        "-o", "--output", required=True, metavar="OUT", help="the transport to write"
    )
    parser.add_argument(
        "--topology",
        metavar="T",
        help="where it was measured, a shipped name or a path (default: by the table's system)",
    )
    parser.add_argument(
        "--op", metavar="OP", help="what an nccl-tests output timed, where it does not say"
    )
    parser.add_argument(
        "--like",
        metavar="TRANSPORT",
        help="take its path, deduplication and bytes per token (default nccl, deepep-ll or "
        "deepep-normal, by the table)",
    )
    parser.add_argument(
        "--min-bytes",
        default="64 KiB",
        metavar="SIZE",
        help="leave smaller NCCL rows out (default 64 KiB)",
    )
    parser.add_argument(
        "--sms",
        type=whole,
        metavar="N",
        help="of DeepEP's normal kernels: take the rows of kernels on N SMs",
    )
    add_json(parser, "print a list of rows as JSON")


def validate(parser: Parser) -> None:
    """`validate`."""
    parser.add_argument(
        "--reference",
        metavar="DIR",
        help="take every row of the full tables in this folder, not the shipped subset",
    )
    parser.add_argument(
        "-o", "--output", metavar="OUT", help="also write the findings as a Markdown page"
    )
    add_json(parser, "print a list of rows as JSON")


def study(parser: Parser) -> None:
    """`study`."""
    parser.add_argument(
        "name",
        metavar="NAME",
        help="prophet, large-ep, layerwise, mlperf-summarization, deepseek-v3 or cache",
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="write tables, figures, summaries and a log to this new directory",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="fewer steps, a coarser sensitivity; cache: fewer policies",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY.PATH=VALUE",
        dest="overrides",
        help="replace one key of the study (cache: of the workload or topology), as in --set "
        "systems.8xA100.price=$2/h; may be repeated",
    )
    parser.add_argument(
        "--workers", type=whole, metavar="N", help="processes (default: one per core)"
    )
    for flag, metavar, text in (
        ("--topology", "T", "the cluster: a shipped name or a path"),
        ("--workload", "W", "the model and its traffic: a shipped name or a path"),
        ("--routing", "TRACE|LAW", "in place of the workload's (deepseek-v3: beside its law)"),
        ("--eviction", "LIST", "policies, as in lru,lfu,belady (default: all)"),
        ("--prefetch", "LIST", "predictors, as in none,markov,oracle:2 (default: the usual ones)"),
    ):
        parser.add_argument(flag, metavar=metavar, help=f"cache: {text}")
    parser.add_argument("--seed", type=whole, metavar="N", help="cache: of all random draws")
    add_json(parser, "print the claims as a list of rows as JSON")


def list_(parser: Parser) -> None:
    """`list`."""
    parser.add_argument(
        "what",
        nargs="?",
        metavar="WHAT",
        help="topologies, workloads, transports, traces, studies, gpus or policies (default all)",
    )
    add_json(parser, "print a list of rows as JSON")


def show(parser: Parser) -> None:
    """`show`."""
    parser.add_argument("what", metavar="WHAT", help="topology, workload, gpu, requests or plan")
    parser.add_argument(
        "name", metavar="NAME", nargs="?", help="a shipped name, or a path (not for a plan)"
    )
    parser.add_argument(
        "--topology",
        metavar="T",
        help="with a workload: the memory that it takes on these GPUs; with a plan: its GPUs",
    )
    parser.add_argument("--workload", metavar="W", help="with a plan: the workload that it is of")
    add_set(parser)
    parser.add_argument(
        "--html",
        metavar="FILE",
        help="with a topology or a plan: also draw it, as a web page in this file",
    )
    add_plotlyjs(parser, "of the page of --html")
    add_json(parser, "print one JSON object, in SI units")


def import_(parser: Parser) -> None:
    """`import`."""
    parser.add_argument(
        "kind",
        metavar="KIND",
        help="a recording: jsonl, csv, sglang, vllm, huggingface, tensorrt-llm, loads, or auto (by "
        "the file's content); a machine: nccl-topo, nvidia-smi, astra-network",
    )
    parser.add_argument("file", metavar="FILE", help="the file to convert")
    parser.add_argument(
        "-o", "--output", required=True, metavar="OUT", help="the trace or topology to write"
    )
    parser.add_argument(
        "--experts",
        type=whole,
        metavar="N",
        help="of a recording: experts of the model (default: by the largest id in the file)",
    )
    parser.add_argument(
        "--model", metavar="NAME", help="of a recording: the model's name, kept in the trace"
    )
    parser.add_argument(
        "--top-k",
        type=whole,
        metavar="K",
        help="huggingface, loads: experts per token, where the file does not tell (default 8)",
    )
    parser.add_argument(
        "--tokens",
        type=whole,
        metavar="N",
        help="loads: how many tokens to draw (default 4096)",
    )
    parser.add_argument("--seed", type=whole, metavar="N", help="loads: of the draws (default 0)")
    parser.add_argument(
        "--gpu",
        metavar="NAME",
        help="of a machine: the GPU in the catalogue, where the file does not tell",
    )
    parser.add_argument(
        "--nodes",
        type=whole,
        metavar="N",
        help="nccl-topo, nvidia-smi: so many such hosts, NIC i of each on switch i (default 1)",
    )
    parser.add_argument(
        "--nic",
        metavar="SPEED",
        help="with --nodes: speed of every NIC, as in 400 Gb/s (default: what the file says)",
    )


def add_network(parser: Parser) -> None:
    """`--network`: how transfers share links."""
    parser.add_argument(
        "--network",
        default="exact",
        metavar="MODE",
        help="exact (default), epsilon:FRACTION (what would end within that fraction of its time "
        "ends together) or coflow (a collective's transfers end together)",
    )


def add_set(parser: Parser) -> None:
    """`--set key.path=value`, as often as wanted."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY.PATH=VALUE",
        dest="overrides",
        help='replace one key, as in --set build.nvlink.bandwidth="900 GB/s"; may be repeated',
    )


def add_plotlyjs(parser: Parser, of: str) -> None:
    """Add `--plotlyjs`; of: the page that it is of, as the help begins with it."""
    parser.add_argument(
        "--plotlyjs",
        metavar="HOW",
        help=f"{of}: where it has its charts' library from: inline (5 MB, needs nothing else; the "
        "default), directory (plotly.min.js beside it) or cdn (the network)",
    )


def add_json(parser: Parser, text: str) -> None:
    """`--json`."""
    parser.add_argument("--json", action="store_true", help=text)


def whole(text: str) -> int:
    """A whole number from 0."""
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0")
    return int(text)
