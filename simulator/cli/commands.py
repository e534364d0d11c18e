"""What each command does: call the floor below, print what comes back.

Every import of another package stands in the function that needs it: a command loads no more than
it uses.
"""

from __future__ import annotations

import sys
from argparse import Namespace

from simulator.cli.output import print_json, progress_bar, say, width
from simulator.cli.pages import report_plotlyjs
from simulator.errors import InputError
from simulator.results.text import lay_out, lines_of

MANY_FLOWS = 50_000  # beyond, the exact network takes more than ten seconds


def run(options: Namespace) -> None:
    """Simulate, and print the summary."""
    from simulator.api import simulate
    from simulator.spec.find import Kind, shipped

    needed: tuple[Kind, ...] = ("topology", "workload")
    absent = [
        f"--{kind} is required: a path, or one of {', '.join(shipped(kind))}"
        for kind in needed
        if getattr(options, kind) is None
    ]
    if absent:
        raise InputError("\n".join(absent))
    plotlyjs = report_plotlyjs(options.out, options.plotlyjs)
    with progress_bar() as progress:
        result = simulate(
            options.topology,
            options.workload,
            overrides=options.overrides,
            routing=options.routing,
            seed=options.seed,
            out=options.out,
            trace_steps=options.trace_steps,
            plotlyjs=plotlyjs,
            progress=progress,
            say=say,
        )
    if options.json:
        print_json(result.summary)
    else:
        print(result.render(width()), end="")
    if result.path is not None:
        say(f"kept in {result.path}")


def transfers(options: Namespace) -> None:
    """Print when each transfer of a file arrives, and what the links carried."""
    from pathlib import Path

    from simulator.cli import flows as files
    from simulator.spec.load import load_topology

    files.check_fresh(options.output, options.links)
    topology = load_topology(options.topology, options.overrides)

    from simulator.cluster.graph import build_graph, gpus
    from simulator.cluster.routes import unreachable

    graph = build_graph(topology)
    path = Path(options.flows)
    flows = files.read_flows(path, list(graph), gpus(graph))
    ends = (flows.sources, flows.targets)
    # Slow to import, so after what is likely to be refused.
    from simulator.api import announced_compilation
    from simulator.engine.links import network_of
    from simulator.engine.transfers import LINK_COLUMNS, link_rows
    from simulator.engine.transfers import transfers as solve

    network = network_of(options.network)

    if len(flows.rows) > MANY_FLOWS and options.network == "exact":
        say(
            f"{len(flows.rows):,} transfers, each exactly: this may take minutes; "
            "--network epsilon:0.01 or coflow are quicker"
        )
    try:
        with announced_compilation(say):
            of = (*ends, flows.size_bytes, flows.start_s)
            found = solve(graph, *of, network, flows.collectives)
    except InputError:
        files.refuse_unreachable(path, flows, unreachable(graph, zip(*ends, strict=True)))
        raise
    finish_s = found.finish_s.tolist()
    header = [*flows.header, files.FINISH]
    rows = ([*row, at] for row, at in zip(flows.rows, finish_s, strict=True))
    if options.output is not None:
        files.write_fresh(options.output, header, rows)
    if options.links is not None:
        files.write_fresh(options.links, LINK_COLUMNS, iter(link_rows(found)))
    if options.json:
        keys = (*files.COLUMNS, files.FINISH)
        columns = (*ends, flows.size_bytes.tolist(), flows.start_s.tolist(), finish_s)
        print_json([dict(zip(keys, row, strict=True)) for row in zip(*columns, strict=True)])
    elif options.output is None:
        files.write_rows(sys.stdout, header, rows)
    if options.links is None:
        say(files.render_links(link_rows(found)))


def collective(options: Namespace) -> None:
    """Print how long a collective operation takes, for each size or number of tokens."""
    from simulator.cli import collective as tables
    from simulator.spec.load import load_topology
    from simulator.spec.transport import load_transport

    wanted = tables.asked(options)
    on_topology, on_transport = tables.split_overrides(options.overrides)
    topology = load_topology(options.topology, on_topology)
    transport = load_transport(options.transport, on_transport)

    from simulator.api import announced_compilation
    from simulator.engine.transport import cluster_of

    cluster = cluster_of(topology, options.ranks)
    with announced_compilation(say), progress_bar() as progress:
        asked = (wanted, cluster, transport, options.algorithm)
        found = list(tables.rows(*asked, progress, say))
    if options.json:
        print_json([row for row, _ in found])
    else:
        print(tables.render([row for row, _ in found]))
    if said := tables.note([time for _, time in found]):
        say(f"note: {said}")


def fit(options: Namespace) -> None:
    """Write a transport with parameters fitted to measured times."""
    from simulator.cli import fitting, flows

    flows.check_fresh(options.output)
    rows, small = fitting.read_rows(options)
    like = fitting.like(options, rows)

    from simulator.api import announced_compilation
    from simulator.studies.validation.fit import fit as fitted
    from simulator.studies.validation.fit import prepare
    from simulator.studies.validation.simulated import topology_by_system
    from simulator.studies.validation.transport_file import fit_sources, transport_text

    where = topology_by_system if options.topology is None else lambda row: options.topology
    with announced_compilation(say):
        found = fitted(rows, where, like)
        tables = [f"measured: {name}" for name in options.measured]
        sources = fit_sources(found, prepare(rows, where, like), tables)
    named: dict[str, object] = {
        "name": fitting.name_of(options.output),
        "sources": sources,
        "description": "",
    }
    if rows[0].sms:
        named["sms"] = rows[0].sms
    fitting.write(options.output, transport_text(found.transport.model_copy(update=named)))
    if small:
        say(f"{small} rows below {options.min_bytes} were left out")
    if options.json:
        print_json(fitting.fit_rows(found))
    else:
        print(fitting.render_fit(found))
    say(f"kept in {options.output}")


def validate(options: Namespace) -> None:
    """Simulate all measured rows; exit status 1 if a set is farther off than its limit."""
    from pathlib import Path

    from simulator.api import announced_compilation
    from simulator.cli import fitting
    from simulator.studies.validation.page import MARK, flat, render
    from simulator.studies.validation.validate import validate as validated

    if options.output is not None:
        fitting.check_page(options.output, MARK)
    with announced_compilation(say):
        found = validated(None if options.reference is None else Path(options.reference))
    if options.output is not None:
        fitting.write_page(options.output, render(found))
    if options.json:
        print_json([flat(verdict) for verdict in found])
    else:
        print(fitting.render_verdicts(found))
    failed = [verdict for verdict in found if not verdict.ok]
    for verdict in failed:
        say(
            f"failed: {verdict.set.key}: error {verdict.error:.1%}, limit {verdict.limit.limit:.1%}"
        )
    if failed:
        raise SystemExit(1)


def study(options: Namespace) -> None:
    """Run a named study, print what it found and keep its files."""
    from simulator.cli.study import named, refuse_others

    run = named(options.name)
    refuse_others(options)
    if options.workers == 0:
        raise InputError("--workers 0: at least one process")

    from simulator.api import announced_compilation

    with announced_compilation(say), progress_bar() as progress:
        found = run(options, progress, say)
    if options.json:
        print_json(found.rows)
    else:
        print(found.text, end="")


def import_(options: Namespace) -> None:
    """Convert a recording or a description of a machine; print what was kept and what dropped."""
    from simulator.cluster.astra import import_astra
    from simulator.cluster.nccl_xml import import_nccl
    from simulator.cluster.nvidia_smi import import_smi
    from simulator.routing.importers import IMPORTERS, import_any
    from simulator.spec.units import did_you_mean

    machines = {"nccl-topo": import_nccl, "nvidia-smi": import_smi, "astra-network": import_astra}
    known = ["auto", *IMPORTERS, *machines]
    if options.kind not in known:
        hint = did_you_mean(options.kind, known)
        raise InputError(f"import: no kind {options.kind!r}{hint}; known: {', '.join(known)}")
    reads_machine = options.kind in machines
    routing = ("experts", "model", "top_k", "tokens", "seed")
    for name in routing if reads_machine else ("gpu", "nodes", "nic"):
        if getattr(options, name) is not None:
            flag = name.replace("_", "-")
            raise InputError(f"import {options.kind}: --{flag} does not go with it; leave it out")
    if reads_machine:
        nodes = 1 if options.nodes is None else options.nodes
        if nodes < 1:
            raise InputError("--nodes 0: at least one host")
        read = machines[options.kind]
        lines = read(options.file, options.output, gpu=options.gpu, nodes=nodes, nic=options.nic)
    else:
        report = import_any(
            options.kind,
            options.file,
            options.output,
            experts=options.experts,
            model=options.model,
            k=options.top_k,
            tokens=options.tokens,
            seed=options.seed,
        )
        lines = report.lines()
    print(f"{options.file} -> {options.output}")
    print("\n".join(part for line in lines for part in lines_of(line, then="  ")))


def list_(options: Namespace) -> None:
    """Print what is shipped, by name."""
    from simulator.cli.listing import LISTS
    from simulator.spec.units import did_you_mean

    if options.what is not None and options.what not in LISTS:
        hint = did_you_mean(options.what, list(LISTS))
        raise InputError(f"list: no {options.what!r}{hint}; known: {', '.join(LISTS)}")
    found = {
        what: make() for what, make in LISTS.items() if options.what is None or what == options.what
    }
    if options.json:
        print_json(
            [
                {"list": what, "name": name, "description": words}
                for what, rows in found.items()
                for name, words in rows
            ]
        )
        return
    parts = []
    for what, rows in found.items():
        title = [] if options.what else [what]
        parts.append("\n".join([*title, lay_out(None, rows, indent=0 if options.what else 2)]))
    print("\n\n".join(parts))


def show(options: Namespace) -> None:
    """Print one input in full, or a plan."""
    from simulator.cli.show import SHOWN
    from simulator.spec.units import did_you_mean

    known = [*SHOWN, "plan"]
    if options.what not in known:
        hint = did_you_mean(options.what, known)
        raise InputError(f"show: no {options.what!r}{hint}; known: {', '.join(known)}")
    if options.html is not None or options.plotlyjs is not None:
        from simulator.cli import picture

        picture.check(options.what, options.html, options.plotlyjs)
    if options.what == "plan":
        from simulator.cli import plan

        if options.name is not None:
            raise InputError(
                f"show plan: {options.name!r}: write --topology T --workload W, and no name"
            )
        as_object, as_text = plan.shown(options.topology, options.workload, options.overrides)
        if options.html is not None:
            plan.draw(as_object, options.html, options.plotlyjs)
    else:
        if options.name is None:
            raise InputError(f"show {options.what}: give its name, or a path")
        if options.workload is not None:
            raise InputError(f"show {options.what}: --workload goes with show plan; leave it out")
        as_object, as_text = SHOWN[options.what](options.name, options.topology, options.overrides)
        if options.html is not None:
            picture.draw(options.name, options.overrides, as_object, options.html, options.plotlyjs)
    if options.json:
        print_json(as_object)
    else:
        print(as_text)
