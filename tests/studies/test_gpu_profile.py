"""tools/measure_gpu.py without a GPU: grid, table and the fit of a profile to it."""

from __future__ import annotations

import csv
import importlib.util
import io
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from simulator.errors import InputError
from simulator.spec import catalogue
from simulator.spec.load import load_topology
from simulator.spec.schema import Gpu
from simulator.studies.validation.compute_tables import loads, read_kernels
from simulator.studies.validation.gpu_profile import (
    _alone,
    _kernel,
    fit_profile,
    pcie_of,
    profile_text,
    seconds,
)
from simulator.studies.validation.gpu_rows import (
    COLUMNS,
    SIZES,
    GpuRow,
    GpuTable,
    Shape,
    read_table,
    write_table,
)

ROOT = Path(__file__).resolve().parents[2]
MEASURED = ROOT.parent / "shared" / "reference" / "measured" / "gemm_h100_a100.csv"
ABOUT = [("gpu", "NVIDIA H100 80GB HBM3"), ("torch", "2.8"), ("pcie", "gen 5 x 16")]
OWN = {"launch_overhead_s": 4e-6, "compute_efficiency": 0.6, "memory_efficiency": 0.7}
BF16 = {"depth": 0.2, "fill": 300.0}
FP8 = {"compute": 0.8, "memory": 0.9, "depth": 0.5, "fill": 150.0}
MOE = {"compute": 0.7, "memory": 0.8, "launches": 20.0, "passes": 0.3}


def _tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("measure_gpu", ROOT / "tools" / "measure_gpu.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tool = _tool()


def catalogued(name: str) -> Gpu:
    return Gpu.model_validate(catalogue.expand(name))


def made_up() -> Gpu:
    """An H100 with figures of our own."""
    gpu = catalogued("H100-SXM")
    moe = {**MOE, "depth": BF16["depth"], "fill": BF16["fill"]}
    kernels = {
        **gpu.kernels,
        **{
            name: gpu.kernels[name].model_copy(update=figures)
            for name, figures in (("bf16", BF16), ("fp8", FP8), ("moe_bf16", moe))
        },
    }
    return gpu.model_copy(update={**OWN, "kernels": kernels})


def timer(shape: Shape) -> float:
    """What that H100 takes; 50 GB/s to the device, 40 back; no second GPU."""
    if shape.kind == "peer":
        raise RuntimeError("no other GPU\nand more")
    rates = {"h2d": 50e9, "d2h": 40e9}
    if shape.kind in rates:
        return 3e-6 * (shape.sizes["bytes"] < 16 << 20) + shape.sizes["bytes"] / rates[shape.kind]
    return seconds(GpuRow("", shape, 0.0), made_up())


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The table of the whole grid as the tool writes it."""
    path = tmp_path_factory.mktemp("rows") / "rows.csv"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(tool, "timer_of", lambda index: (timer, ABOUT, str(index)))
        patched.setattr(tool, "clocks", lambda index: {"sm": "1980", "memory": "2619"})
        assert tool.main(["measure", str(path)]) == 0
    return path


# --- Grid and table -------------------------------------------------------------------------


def test_the_grid():
    shapes = tool.grid()
    page = (ROOT / "docs" / "gpus.md").read_text(encoding="utf-8")
    assert f"grid has {len(shapes)} shapes" in page
    assert {shape.kind for shape in shapes} == set(SIZES)
    assert len({(s.kind, s.dtype, *s.sizes.items()) for s in shapes}) == len(shapes)
    # At least four for each of 5, 4 and 4 parameters.
    counted = [sum((s.kind, s.dtype) == of for s in shapes)
               for of in (("gemm", "bf16"), ("gemm", "fp8"), ("moe", "bf16"))]  # fmt: skip
    assert counted[0] >= 20
    assert min(counted) >= 16


def test_the_table_holds_the_grid_but_what_cannot_be_run(table: Path):
    lines = table.read_text(encoding="utf-8").splitlines()
    assert lines[:3] == [f"# {key}: {value}" for key, value in ABOUT]
    assert lines[-1] == "# clocks after: SM 1980 MHz, memory 2619 MHz"
    rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    assert len(rows) == sum(shape.kind != "peer" for shape in tool.grid())
    first = {key: value for key, value in rows[0].items() if value}
    assert set(first) == {"kind", "dtype", "m", "n", "k", "time_us"}
    assert [first[key] for key in ("kind", "dtype", "m", "n", "k")] == [
        "gemm", "bf16", "1", "1024", "1024",
    ]  # fmt: skip


def test_what_cannot_be_run_is_told_once(capsys: pytest.CaptureFixture[str]):
    shapes = [shape for shape in tool.grid() if shape.kind in ("peer", "d2h")]
    assert [shape.kind for shape, _ in tool.timed(shapes, timer)] == ["d2h"] * 6
    told = "measure_gpu: left out, 6 shapes of peer: no other GPU\n"
    assert capsys.readouterr().err == told


def test_a_table_is_read_as_it_was_written(tmp_path: Path):
    shapes = [shape for shape in tool.grid() if shape.kind in ("moe", "decode", "h2d")]
    stream = io.StringIO()
    write_table(stream, ABOUT, [(shape, timer(shape)) for shape in shapes])
    path = tmp_path / "t.csv"
    path.write_text(stream.getvalue(), encoding="utf-8")
    read = read_table(path, "t.csv")
    assert read.about == dict(ABOUT)
    assert [row.shape for row in read.rows] == shapes
    assert read.rows[0].where == "t.csv:5"
    for row in read.rows:
        assert row.time_s == pytest.approx(timer(row.shape), abs=0.51e-9)


def test_bytes_by_hand():
    gemm = Shape("gemm", "bf16", {"m": 10, "n": 100, "k": 1000})
    assert tool.turned_bytes(gemm) == 200_000
    assert tool.needed_bytes(gemm) >= 200_000 + 2 * (10_000 + 1000)
    moe = Shape("moe", "bf16", dict(zip(SIZES["moe"], (4, 10, 20, 2, 8), strict=True)))
    assert tool.turned_bytes(moe) == 8 * 3 * 10 * 20 * 2
    cache = Shape("decode", "bf16", dict(zip(SIZES["decode"], (3, 50, 8, 2, 16), strict=True)))
    assert tool.turned_bytes(cache) == 3 * 50 * 2 * 2 * 16 * 2


def test_without_a_gpu_it_says_so(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    assert tool.main(["measure", str(tmp_path / "rows.csv")]) == 2
    error = "measure_gpu: error: needs torch and an NVIDIA GPU; torch is not installed\n"
    assert capsys.readouterr().err == error
    assert not list(tmp_path.iterdir())


class _NoGpu:
    """torch on a machine without a GPU."""

    __version__ = "2.8"

    class cuda:
        """Finds none."""

        @staticmethod
        def is_available() -> bool:
            return False


def test_with_torch_but_no_gpu(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", _NoGpu)
    assert tool.main(["measure", str(tmp_path / "rows.csv")]) == 2
    error = "measure_gpu: error: torch 2.8 finds no NVIDIA GPU; run this where one is\n"
    assert capsys.readouterr().err == error


# --- What a row takes -----------------------------------------------------------------------


def test_attention_and_copies_by_hand():
    """At a roofline's one end: decode moves its cache, a long prefill computes."""
    gpu = catalogued("H100-SXM").model_copy(update={"launch_overhead_s": 0.0})
    bandwidth = gpu.hbm_bandwidth_bytes_per_s * gpu.memory_efficiency
    shape = Shape(
        "decode", "bf16", dict(zip(SIZES["decode"], (64, 8192, 32, 32, 128), strict=True))
    )
    cache = 64 * 8192 * 2 * 32 * 128 * 2
    assert seconds(GpuRow("", shape, 0.0), gpu) == pytest.approx(cache / bandwidth, rel=1e-3)
    shape = Shape(
        "prefill", "bf16", dict(zip(SIZES["prefill"], (1, 32768, 32, 8, 128), strict=True))
    )
    flops = 2 * 32 * 128 * 32768 * 32769  # QK and PV over half of the square
    reached = gpu.flops_per_s["bf16"] * gpu.compute_efficiency
    assert seconds(GpuRow("", shape, 0.0), gpu) == pytest.approx(flops / reached, rel=1e-3)
    copied = seconds(GpuRow("", Shape("d2d", "", {"bytes": 1 << 30}), 0.0), gpu)
    assert copied == pytest.approx(2 * 2**30 / bandwidth)


@pytest.mark.parametrize(("tokens", "top_k", "experts"), [(16, 8, 128), (1, 2, 8), (100, 2, 8)])
def test_the_tool_spreads_tokens_as_the_model_takes_it(tokens: int, top_k: int, experts: int):
    chosen = tool.choices(tokens, top_k, experts)
    assert all(len(set(chosen[at : at + top_k])) == top_k for at in range(0, len(chosen), top_k))
    sizes = dict(zip(SIZES["moe"], (tokens, 64, 32, top_k, experts), strict=True))
    row = _kernel(GpuRow("", Shape("moe", "bf16", sizes), 1.0))
    assert np.array_equal(np.bincount(chosen, minlength=experts), loads(row)[0])


def test_an_fp8_row_has_one_launch_and_nothing_to_quantise():
    kernel = _alone(made_up()).kernels["fp8"]
    assert (kernel.launches, kernel.quantise, kernel.fill) == (1.0, None, FP8["fill"])


# --- Fit ------------------------------------------------------------------------------------


def test_a_fit_finds_what_made_the_rows(table: Path):
    found = fit_profile(read_table(table, "rows.csv"), catalogued("H100-SXM"))
    assert found.figures == pytest.approx(OWN, rel=2e-3)
    assert found.kernels["bf16"] == pytest.approx(BF16, rel=1e-2)
    fp8 = {key: found.kernels["fp8"][key] for key in FP8}
    assert fp8 == pytest.approx(FP8, rel=1e-2)
    moe = {key: found.kernels["moe_bf16"][key] for key in MOE}
    assert moe == pytest.approx(MOE, rel=1e-2)
    assert found.copies == {"pcie": pytest.approx(50 / 64, rel=1e-3)}
    for kind in ("grouped", "prefill", "decode", "d2d"):
        assert "median simulated / measured 1" in found.sources[kind]


def test_a_fitted_profile_is_taken_by_a_topology(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert tool.main(["fit", str(table), "p.yaml"]) == 0
    assert capsys.readouterr().out.startswith("compute_efficiency: fitted, 49 rows (bf16 GEMM), 5 ")
    gpu = load_topology("nvswitch16", ["gpu.profile=p.yaml"]).gpu
    assert gpu.launch_overhead_s == pytest.approx(4e-6, rel=2e-3)
    assert gpu.kernels["moe_bf16"].passes == pytest.approx(0.3, rel=1e-2)
    assert gpu.copy_efficiency.pcie == pytest.approx(50 / 64, rel=1e-3)
    shipped = catalogued("H100-SXM").kernels["fp8"]
    assert gpu.kernels["fp8"].quantise == shipped.quantise
    assert gpu.kernels["fp8"].launches == shipped.launches
    # A simulated time is that of the GPU that made the rows, but for rounding.
    for shape in (
        Shape("gemm", "bf16", {"m": 300, "n": 5000, "k": 3000}),
        Shape("moe", "bf16", dict(zip(SIZES["moe"], (500, 3072, 2048, 4, 32), strict=True))),
    ):
        row = GpuRow("", shape, 0.0)
        assert seconds(row, gpu) == pytest.approx(timer(shape), rel=5e-3)


def _rows(source: Path, m: set[int], sides: set[int]) -> list[GpuRow]:
    """Square BF16 GEMMs of the A100 in a table of kernel times."""
    return [
        GpuRow(row.where, Shape("gemm", "bf16", {"m": row.m, "n": row.n, "k": row.k}), row.time_s)
        for row in read_kernels(source, source.name)
        if row.system == "a100_sxm" and row.dtype == "bf16"
        and row.m in m and row.n == row.k and row.n in sides
    ]  # fmt: skip


@pytest.mark.parametrize(
    "source",
    [
        ROOT / "simulator" / "studies" / "validation" / "data" / "gemm_a100_named.csv",
        pytest.param(MEASURED, marks=pytest.mark.skipif(not MEASURED.is_file(), reason="not here")),
    ],
    ids=["shipped", "full"],
)
def test_the_a100s_twelve_rows_give_the_catalogues_figures(source: Path):
    rows = _rows(source, {1, 16, 256, 4096}, {1024, 4096, 16384})
    assert len(rows) == 12
    like = catalogued("A100-SXM-80GB")
    # Start elsewhere: the figures must come from the rows.
    start = like.model_copy(update={**OWN, "compute_efficiency": 0.5})
    found = fit_profile(GpuTable({}, rows), start)
    for key in OWN:
        assert found.figures[key] == pytest.approx(getattr(like, key), rel=2e-3)
    assert not found.kernels
    assert found.sources["launch_overhead"].startswith("fitted, 12 rows (bf16 GEMM), 3 parameters")


def test_too_few_rows_of_a_family_leave_it_as_it_is(table: Path):
    rows = read_table(table, "rows.csv").rows
    kept = [row for row in rows if row.shape.kind == "gemm" and row.shape.dtype == "bf16"]
    kept += [row for row in rows if row.shape.kind == "moe"][:15]
    found = fit_profile(GpuTable({}, kept), catalogued("H100-SXM"))
    assert list(found.kernels) == ["bf16"]
    told = "15 shapes, not fitted: 16 or more tell 4 parameters"
    assert found.sources["moe_bf16 rows"] == told
    text = profile_text(found, {}, "rows.csv")
    assert f'  moe_bf16 rows: "{told}"\n' in text


def test_pcie_by_generation():
    assert pcie_of({"pcie": "gen 4 x 16"}) == 32e9
    assert pcie_of({"pcie": "gen [N/A] x 16"}) is None
    assert pcie_of({}) is None


# --- Refusals -------------------------------------------------------------------------------

HEADER = ",".join(COLUMNS)


def line(**cells: object) -> str:
    return ",".join(str(cells.get(name, "")) for name in COLUMNS)


GEMM = {"kind": "gemm", "dtype": "bf16", "m": 1, "n": 2, "k": 3, "time_us": 4}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "t.csv: no rows; give a table that tools/measure_gpu.py wrote"),
        ("# a: b\n" + HEADER, "t.csv: no rows; give a table that tools/measure_gpu.py wrote"),
        ("\nm,n,k\n",
         f"t.csv:2: not the columns that tools/measure_gpu.py writes: {HEADER}"),
        (f"{HEADER}\ngemm,bf16,1\n", f"t.csv:2: 3 cells, not {len(COLUMNS)}"),
        (f"{HEADER}\n{line(**GEMM | {'kind': 'gem'})}\n",
         "t.csv:2: unknown kind 'gem' (did you mean 'gemm'?); known: " + ", ".join(SIZES)),
        (f"{HEADER}\n{line(**GEMM | {'dtype': 'fp4'})}\n",
         "t.csv:2: gemm: dtype 'fp4', not one of: bf16, fp8"),
        (f"{HEADER}\n{line(**GEMM | {'m': '1.5'})}\n",
         "t.csv:2: m: must be a whole number from 1, not '1.5'"),
        (f"{HEADER}\n{line(**GEMM | {'k': ''})}\n",
         "t.csv:2: k: must be a whole number from 1, not ''"),
        (f"{HEADER}\n{line(**GEMM | {'time_us': 'nan'})}\n",
         "t.csv:2: time_us: must be a number above 0, not 'nan'"),
        (f"{HEADER}\n{line(**GEMM | {'time_us': '-1'})}\n",
         "t.csv:2: time_us: must be a number above 0, not '-1'"),
        (f"{HEADER}\n{line(**GEMM | {'kind': 'grouped', 'm': 9, 'groups': 2})}\n",
         "t.csv:2: grouped: groups 2 does not divide m 9"),
        (HEADER + "\n" + line(kind="moe", dtype="bf16", tokens=1, hidden=8, intermediate=8, top_k=9,
                              experts=8, time_us=1),
         "t.csv:2: moe: top_k 9 of 8 experts"),
        (HEADER + "\n" + line(**GEMM),
         "1 shapes of bf16 GEMM; 12 or more tell the GPU's efficiencies and launch_overhead"),
    ],
)  # fmt: skip
def test_a_table_that_is_refused(tmp_path: Path, text: str, message: str):
    path = tmp_path / "t.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as refused:
        fit_profile(read_table(path, "t.csv"), catalogued("H100-SXM"))
    assert str(refused.value) == message


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--gpu", "H100"], "--gpu: no GPU 'H100' in the catalogue (did you mean 'H100-SXM'?)"),
        (["--pcie", "64"], '--pcie: 64 has no unit; write for example'),
        (["--pcie", "49 GB/s"],
         "h2d copies reach 50 GB/s, above the 49 GB/s of the path; give its raw bandwidth"),
    ],
)  # fmt: skip
def test_options_that_are_refused(table: Path, tmp_path: Path, capsys, given, message: str):
    assert tool.main(["fit", str(table), str(tmp_path / "p.yaml"), *given]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("measure_gpu: error: ")
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_table_of_an_unknown_gpu_or_bus(table: Path, tmp_path: Path, capsys):
    text = table.read_text(encoding="utf-8")
    path = tmp_path / "t.csv"
    path.write_text(text.replace("NVIDIA H100 80GB HBM3", "H1000"), encoding="utf-8")
    assert tool.main(["fit", str(path), str(tmp_path / "p.yaml")]) == 2
    assert (
        "of 'H1000'; say with --gpu which GPU of the catalogue that is" in capsys.readouterr().err
    )
    path.write_text(text.replace("gen 5", "gen [N/A]"), encoding="utf-8")
    assert tool.main(["fit", str(path), str(tmp_path / "p.yaml")]) == 2
    assert 'does not say which PCIe it is; give --pcie "64 GB/s"' in capsys.readouterr().err


def test_kinds_and_existing_files_are_refused(tmp_path: Path, capsys):
    assert tool.main(["measure", str(tmp_path / "r.csv"), "--kinds", "gemm,moo"]) == 2
    assert "--kinds: unknown kind 'moo' (did you mean 'moe'?)" in capsys.readouterr().err
    (tmp_path / "r.csv").touch()
    assert tool.main(["measure", str(tmp_path / "r.csv")]) == 2
    assert "exists already" in capsys.readouterr().err
