"""`study`: the named studies, each as one function that prints and writes."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from simulator.errors import InputError

Progress = Callable[[int, int], None]
Say = Callable[[str], object]


class Told(NamedTuple):
    """What a study prints: as text, and with --json as flat rows, one per claim."""

    text: str
    rows: list[dict[str, object]]


Run = Callable[[Namespace, Progress | None, Say], Told]


def prophet(options: Namespace, progress: Progress | None, say: Say) -> Told:
    """Expert prediction and prefetch on four clusters."""
    from simulator.studies.prophet.spec import load_study

    study = load_study(options.overrides)
    out = None if options.out is None else Path(options.out)
    started = datetime.now()
    # Slow to import, so after what is likely to be refused.
    from simulator.studies.common import claims
    from simulator.studies.prophet import files as prophet_files
    from simulator.studies.prophet.study import run_study
    from simulator.studies.prophet.text import render

    if out is not None:
        prophet_files.refuse_existing(out)
    result = run_study(study, options.quick, progress, options.workers)
    if out is not None:
        for line in prophet_files.write_study(result, out, started):
            say(line)
        say(f"kept in {out}")
    return Told(render(result), [claims.flat(judged) for judged in result.judged])


def large_ep(options: Namespace, progress: Progress | None, say: Say) -> Told:
    """One expert per GPU and layer against TP 8 x PP 2."""
    from simulator.studies.large_ep.spec import load_study

    study = load_study(options.overrides)

    def run() -> object:
        from simulator.studies.large_ep.study import run_study

        return run_study(study, options.quick, progress, options.workers)

    return _told(options, say, run)


def layerwise(options: Namespace, progress: Progress | None, say: Say) -> Told:
    """A layer per group of GPUs against TP 8 x PP 2."""
    from simulator.studies.layerwise.spec import load_study

    study = load_study(options.overrides)

    def run() -> object:
        from simulator.studies.layerwise.study import run_study

        return run_study(study, options.quick, progress, options.workers)

    return _told(options, say, run)


def deepseek_v3(options: Namespace, progress: Progress | None, say: Say) -> Told:
    """DeepSeek-V3's prefill EP32 and decode EP72, beside published deployments."""
    from simulator.studies.deepseek_v3.spec import load_study, recorded

    study = load_study(options.overrides)
    routing = None if options.routing is None else recorded(options.routing)

    def run() -> object:
        from simulator.studies.deepseek_v3.study import run_study

        return run_study(study, options.quick, progress, options.workers, routing)

    return _told(options, say, run)


def mlperf(options: Namespace, progress: Progress | None, say: Say) -> Told:
    """An inference service of two nodes, as published and as simulated."""
    from simulator.studies.mlperf.spec import load_study

    study = load_study(options.overrides)

    def run() -> object:
        from simulator.studies.mlperf.study import run_study

        return run_study(study, options.quick, progress, options.workers)

    return _told(options, say, run)


def cache(options: Namespace, progress: Progress | None, say: Say) -> Told:
    """Eviction x prefetch of a workload on a topology."""
    from simulator.studies import cache as study

    if options.topology is None or options.workload is None:
        raise InputError("study cache: write --topology T and --workload W")
    quick = options.quick
    evictions = _listed(options.eviction, study.QUICK_EVICTIONS if quick else study.EVICTIONS)
    ahead = _listed(options.prefetch, study.QUICK_PREFETCHERS if quick else study.PREFETCHERS)
    where = (options.topology, options.workload, options.overrides, options.routing)
    out = None if options.out is None else Path(options.out)
    if out is not None:
        study.refuse_existing(out)
    asked = study.question(*where, options.seed or 0, evictions, ahead)
    found = study.run_study(asked, progress, options.workers)
    if out is not None:
        study.write(found, out)
        say(f"kept in {out}")
    return Told(study.render(found), study.flat(found))


def _listed(given: str | None, otherwise: tuple[str, ...]) -> tuple[str, ...]:
    """Names with commas between them."""
    if given is None:
        return otherwise
    return tuple(dict.fromkeys(name.strip() for name in given.split(",")))


def _told(options: Namespace, say: Say, run: Callable[[], object]) -> Told:
    """Run a study that gives a `Report`, keep its files, and tell it."""
    from simulator.studies.common import report as reports

    out = None if options.out is None else Path(options.out)
    if out is not None:
        reports.refuse_existing(out)
    report = run()
    assert isinstance(report, reports.Report)
    if out is not None:
        reports.write(report, out, say)
        say(f"kept in {out}")
    return Told(reports.render(report), reports.flat(report))


STUDIES: dict[str, Run] = {
    "prophet": prophet,
    "large-ep": large_ep,
    "layerwise": layerwise,
    "mlperf-summarization": mlperf,
    "deepseek-v3": deepseek_v3,
    "cache": cache,
}

OF_CACHE = ("topology", "workload", "routing", "eviction", "prefetch", "seed")
"""Options that not every study has."""
SOME = {"cache": OF_CACHE, "deepseek-v3": ("routing",)}
"""Studies that have some of them."""


def named(name: str) -> Run:
    """A study by its name; InputError with the nearest one."""
    if name not in STUDIES:
        from simulator.spec.units import did_you_mean

        hint = did_you_mean(name, [*STUDIES])
        raise InputError(f"study: no {name!r}{hint}; known: {', '.join(STUDIES)}")
    return STUDIES[name]


def refuse_others(options: Namespace) -> None:
    """Raise InputError for options that the study does not have."""
    mine = SOME.get(options.name, ())
    for flag in OF_CACHE:
        if flag not in mine and getattr(options, flag) is not None:
            others = " and ".join(name for name, flags in SOME.items() if flag in flags)
            raise InputError(
                f"study {options.name}: --{flag} goes with study {others}; leave it out"
            )
