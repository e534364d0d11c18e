"""The files that the study `prophet` writes, and what `analyze` says of them.

data/results_SYSTEM.csv, data/all_systems_comparison.csv, data/all_systems_comparison.tex
figures/*.pdf, *.png (HTML where they cannot be drawn)
logs/multi_gpu_analysis_YYYYMMDD_HHMMSS.log
SUMMARY_SYSTEM.md
"""

from __future__ import annotations

import csv
import os
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from simulator.errors import InputError
from simulator.results.summary import number, percent, size
from simulator.runfiles.rundir import MARKER, open_run
from simulator.studies.common.figures import write_figures
from simulator.studies.prophet.figures import all_figures
from simulator.studies.prophet.notes import findings, misfits, oddities, parameters
from simulator.studies.prophet.result import READINGS, Result, columns, fits, flat_rows
from simulator.studies.prophet.runs import strategies
from simulator.studies.prophet.text import grouped, render, told

DONE = "ANALYSIS COMPLETED SUCCESSFULLY"
COMPARISON = "all_systems_comparison.csv"
LOG = "multi_gpu_analysis_{:%Y%m%d_%H%M%S}.log"
TAIL = 20
LOG_WIDTH = 55  # beside the time, in 80 columns

_FIGURES = (
    "baseline_tokens_per_s",
    "prophet_tokens_per_s",
    "speedup",
    "comm_baseline",
    "comm_prophet",
    "cost_baseline",
    "cost_prophet",
    "saving_per_year",
)
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
}  # fmt: skip


def refuse_existing(out: Path) -> None:
    """InputError if there is anything under this name."""
    if os.path.lexists(out):
        raise InputError(f"--out {out}: exists already; give the name of a new directory")


def write_study(result: Result, out: Path, started: datetime) -> list[str]:
    """Write all files under a name that is not there yet; returns what to tell the user.

    `out` appears when everything is written, or not at all. Errors: InputError.
    """
    refuse_existing(out)
    with open_run(out) as run:
        for folder in ("data", "figures", "logs"):
            (run.path / folder).mkdir()
        said = _fill(result, run.path, started)
    return said


def _fill(result: Result, folder: Path, started: datetime) -> list[str]:
    rows = flat_rows(result)
    names = columns(rows)
    for name in result.study.systems:
        mine = [row for row in rows if row["system"] == name]
        _write_csv(folder / "data" / f"results_{name}.csv", names, mine)
    compared = comparison(result)
    _write_csv(folder / "data" / COMPARISON, columns(compared), compared)
    (folder / "data" / "all_systems_comparison.tex").write_text(latex(compared), encoding="utf-8")
    told_figures = write_figures(all_figures(result), folder / "figures")
    for name in result.study.systems:
        (folder / f"SUMMARY_{name}.md").write_text(summary(result, name), encoding="utf-8")
    said = [] if told_figures is None else [told_figures]
    written = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MARKER)
    body = [
        f"study prophet, {'quick' if result.quick else 'full'}: {len(result.runs)} simulations",
        *(f"written: {path.relative_to(folder)}" for path in written),
        *render(result).splitlines(),
        *misfits(result),
        *said,
        *(line for text in findings(result) for line in textwrap.wrap(text, LOG_WIDTH)),
    ]
    now = datetime.now()
    lines = [f"{started:%Y-%m-%d %H:%M:%S} INFO begun"]
    lines += [f"{now:%Y-%m-%d %H:%M:%S} INFO {line}".rstrip() for line in [*body, DONE]]
    log = folder / "logs" / LOG.format(started)
    log.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return said


def comparison(result: Result) -> list[dict[str, object]]:
    """One row per system and strategy: the closed form, then the simulated hybrid by reading.
    Column 9 is the closed form's speed-up.
    """
    rows = []
    for name, system in result.study.systems.items():
        for strategy, (ep, dp) in strategies(system).items():
            row: dict[str, object] = {
                "system": name,
                "gpus": system.gpus,
                "strategy": strategy,
                "ep": ep,
                "dp": dp,
                "bandwidth_GBps": system.bandwidth_bytes_per_s / 1e9,
            }
            form = result.forms[name][strategy]
            row |= {figure: form.value(figure) for figure in _FIGURES}
            for reading in READINGS:
                given = result.hybrid[name].get(reading) if strategy == "hybrid" else None
                row |= {
                    f"{reading}_{figure}": given.value(figure) if given else None
                    for figure in _FIGURES
                }
                held = "yes" if given and fits(result, name, reading) else "no"
                row[f"{reading}_fits"] = held if given else None
            rows.append(row)
    return rows


def latex(compared: Sequence[Mapping[str, object]]) -> str:
    """The hybrid rows as a LaTeX table (booktabs)."""
    lines = [
        "% Closed form as published, and simulated (tokens travel; weights travel).",
        r"\begin{tabular}{llrrrrrr}",
        r"\toprule",
        r"System & Strategy & Baseline & Prophet & Speedup & Cost Reduction"
        r" & \multicolumn{2}{c}{Simulated speedup} \\",
        r" & & token/s & token/s & & & tokens & weights \\",
        r"\midrule",
    ]
    for row in compared:
        if row["strategy"] != "hybrid":
            continue
        figures = {name: value for name, value in row.items() if isinstance(value, float)}
        ratio = figures["cost_baseline"] / figures["cost_prophet"]
        cells = [
            latex_escaped(str(row["system"])),
            latex_escaped(f"Hybrid {row['ep']}x{row['dp']}"),
            f"{figures['baseline_tokens_per_s']:,.1f}",
            f"{figures['prophet_tokens_per_s']:,.1f}",
            rf"{figures['speedup']:.2f}$\times$",
            rf"{ratio:.2f}$\times$",
            *(
                rf"{figures[f'{reading}_speedup']:.2f}$\times$"
                if f"{reading}_speedup" in figures
                else "--"
                for reading in READINGS
            ),
        ]
        lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def latex_escaped(text: str) -> str:
    """Text in which LaTeX sees no commands."""
    return "".join(_LATEX.get(character, character) for character in text)


def markdown_escaped(text: str) -> str:
    """Text in which Markdown, in a table too, sees no marks."""
    return re.sub(r"([\\`*_{}\[\]<>|#~$])", r"\\\1", text)


def summary(result: Result, name: str) -> str:
    """What was found on one system, as Markdown."""
    study = result.study
    system = study.systems[name]
    lines = [
        f"# {markdown_escaped(name)}",
        "",
        f"{system.gpus} GPUs at ${system.price_per_hour:g} per hour, "
        f"{system.bandwidth_bytes_per_s / 1e9:g} GB/s as published; simulated on topology "
        f"`{system.topology}`.".replace("$", r"\$"),
        "",
        "## Strategies",
        "",
    ]
    header = ["strategy", "EPxDP", "method", "m", "predictor", "fits", "token/s", "speed-up",
              "communication", "$/1M token"]  # fmt: skip
    rows = [r for r in flat_rows(result) if r["system"] == name and _as_stated(result, r)]
    order = list(dict.fromkeys(row["strategy"] for row in rows))
    table = [
        [
            str(row["strategy"]).replace("_", " "),
            f"{row['ep']}x{row['dp']}" if row["ep"] else "-",
            str(row["method"]).replace("-", ", ", 1).replace("closed, ", "closed "),
            _short(row.get("memory_reduction")),
            str(row["predictor"]),
            str(row.get("fits", "-")),
            _number(row["tokens_per_s"]),
            _number(row["speedup"]),
            percent(value) if isinstance(value := row["communication"], float) else "-",
            _number(row["dollars_per_1M_tokens"]),
        ]
        for row in sorted(rows, key=lambda row: order.index(row["strategy"]))
    ]
    lines += _markdown_table(header, table)
    lines += ["", "## Claims", "", *_claims(result, name), "", "## Does not fit in memory", ""]
    unfit = [line for line in misfits(result) if line.startswith(f"{name} ")]
    lines += [f"- {markdown_escaped(line)}" for line in unfit] or ["- nothing"]
    for title, sentences in (
        ("Findings on all systems", findings(result)),
        ("Free parameters", parameters(result)),
        ("Odd in the published text", oddities(result)),
    ):
        lines += ["", f"## {title}", "", *(f"- {markdown_escaped(line)}" for line in sentences)]
    return "\n".join([*lines, ""])


def _claims(result: Result, name: str) -> list[str]:
    header = ["claim", "published", "closed form", "", "tokens travel", "", "weights travel", "",
              "would hold at"]  # fmt: skip
    table = []
    for judged in result.judged:
        if judged.system not in (name, "all"):
            continue
        cells = [judged.text, grouped(judged.published)]
        places = []
        for label, found in (
            ("form", judged.form),
            *((reading, judged.simulated.get(reading)) for reading in READINGS),
        ):
            if found is None:
                cells += ["-", "-"]
                continue
            shown = told(judged, found).split()[0]
            cells += [shown, found.verdict + ("" if found.fits else " (does not fit)")]
            if found.holds_at:
                places.append(f"{label}: {found.holds_at}")
        table.append([*cells, "; ".join(places) or "-"])
    return _markdown_table(header, table)


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(markdown_escaped(cell) for cell in header) + " |"]
    lines.append("|" + "---|" * len(header))
    return lines + ["| " + " | ".join(map(markdown_escaped, row)) + " |" for row in rows]


def _as_stated(result: Result, row: Mapping[str, object]) -> bool:
    """Whether a row is of a strategy as stated, not of a sweep."""
    if row["method"] == "closed-form":
        return True
    given = result.study.assumptions
    swept = str(row["predictor"]).startswith("synthetic:")
    named = not swept or row["predictor"] == f"synthetic:{given.accuracy:g}"
    kept = row["memory_reduction"] in (1.0, given.memory_reduction)
    return named and kept and row["links"] == 1.0


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else "-"


def _number(value: object) -> str:
    return number(value) if isinstance(value, float) else "-"


def _write_csv(path: Path, names: Sequence[str], rows: Sequence[Mapping[str, object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(names)
        writer.writerows([_cell(row.get(name)) for name in names] for row in rows)


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.7g}" if isinstance(value, float) else str(value)


# --- analyze ----------------------------------------------------------------------------


def is_study(folder: Path) -> bool:
    """Whether a directory looks like one that this study wrote."""
    return (folder / "data" / COMPARISON).is_file() and (folder / "logs").is_dir()


def read_study(folder: Path) -> dict[str, object]:
    """Files (name, bytes), the hybrid's key figures by system and the end of the log.

    Raises InputError for what is damaged or was not finished.
    """
    logs = sorted((folder / "logs").glob("multi_gpu_analysis_*.log"))
    if not logs:
        raise InputError(f"{folder / 'logs'}: no log; is this the directory of a finished study?")
    try:
        lines = logs[-1].read_text(encoding="utf-8").splitlines()
        with (folder / "data" / COMPARISON).open(newline="", encoding="utf-8") as stream:
            rows = [row for row in csv.DictReader(stream) if row.get("strategy") == "hybrid"]
        systems = [_key_figures(row) for row in rows]
    except (OSError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{folder}: cannot be read, it is damaged or cut short") from error
    if not lines or not lines[-1].endswith(DONE):
        raise InputError(f"{logs[-1]}: does not end in {DONE}; the study was not finished")
    if not systems:
        raise InputError(f"{folder / 'data' / COMPARISON}: no row of a hybrid")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        "files": [
            {"file": str(path.relative_to(folder)), "bytes": path.stat().st_size} for path in files
        ],
        "systems": systems,
        "log": lines[-TAIL:],
    }


def _key_figures(row: Mapping[str, str]) -> dict[str, object]:
    found: dict[str, object] = {"system": row["system"], "strategy": f"{row['ep']}x{row['dp']}"}
    wanted = [*_FIGURES, *(f"{reading}_{name}" for reading in READINGS for name in _FIGURES)]
    return found | {name: float(row[name]) if row[name] else None for name in wanted}


def render_files(found: Mapping[str, object], table: Callable[..., str]) -> str:
    """What `read_study` found as text; `table` lays out a header and rows."""
    files, systems, log = found["files"], found["systems"], found["log"]
    assert isinstance(files, list)
    assert isinstance(systems, list)
    assert isinstance(log, list)
    listed = table(
        ("size", "file"), [(size(one["bytes"]), one["file"]) for one in files], right=(0,)
    )
    rows = []
    for one in systems:
        for label, prefix in (("form", ""), *((reading, f"{reading}_") for reading in READINGS)):
            if one[f"{prefix}speedup"] is None:
                continue
            values = (one[f"{prefix}{name}"] for name in _FIGURES)
            base, prophet, speedup, before, after, dear, cheap, saved = values
            rows.append(
                (
                    one["system"],
                    label,
                    number(base),
                    number(prophet),
                    number(speedup),
                    f"{100 * before:.0f} > {100 * after:.0f}",
                    f"{number(dear)} > {number(cheap)}",
                    number(saved),
                )
            )
    header = ("hybrid", "by", "base", "Prophet", "x", "comm. %", "$/1M token", "$/year")
    figures = table(header, rows, right=range(2, 8))
    words = "token/s of baseline and Prophet; form: as published; dispatch: tokens travel"
    tail = [_cut(line) for line in log]
    return "\n".join(
        [f"{len(files)} files", listed, "", words, figures, "", "end of the log", *tail]
    )


def _cut(line: str, width: int = 80) -> str:
    return line if len(line) <= width else line[: width - 3] + "..."
