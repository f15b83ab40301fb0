"""Whole invocations on digits: outputs, resuming, interruption."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path

import pytest

from benchmarks.harness import sweep as sweep_module
from benchmarks.harness.config import resolve
from benchmarks.harness.loader_choice import SETTINGS as LOADER_SETTINGS
from benchmarks.harness.methods import METHODS
from benchmarks.harness.train import train
from benchmarks.ogbn_arxiv import main

ROOT = Path(__file__).resolve().parents[2]
SMOKE = ["--smoke", "--method", "baseline"]


def keys(out: Path) -> list[str]:
    return [json.loads(line)["key"] for line in (out / "records.jsonl").read_text().splitlines()]


def test_smoke_as_a_command_from_elsewhere(tmp_path: Path):
    out = tmp_path / "out"
    command = [sys.executable, str(ROOT / "benchmarks" / "ogbn_arxiv.py"), "--smoke", "--out", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # small products; threads that wait for cores take minutes
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for method in METHODS:
        assert f"| {method} " in done.stdout
    assert "count_sketch 0.1 fp32, norm int2, x0 fp32" in done.stdout and "0.1 of features int2" in done.stdout
    assert sorted(path.name for path in out.iterdir()) == ["accuracy.png", "frontier.png", "records.jsonl", "table.md"]
    assert len(keys(out)) == 16
    assert "[1/16] baseline seed 0" in done.stderr and "loss=" in done.stderr and "valid=" in done.stderr


def test_help(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    for flag in (
        "--method",
        "--sketch",
        "--rate",
        "--center",
        "--shared-weights",
        "--eval-every",
        "--resume",
        "--codec",
        "--norm-codec",
        "--norm-rate",
        "--x0-codec",
        "--exact-bits",
        "--ledger",
        "--budget",
        "--adaptive",
        "--noise-target",
    ):
        assert flag in printed
    assert "(default: 256)" in printed and "(default: 3%)" in printed


def test_existing_records_are_neither_mixed_nor_overwritten(tmp_path: Path, capsys):
    out = tmp_path / "out"
    assert main([*SMOKE, "--out", str(out)]) == 0
    before = {path: path.read_bytes() for path in out.iterdir()}
    assert main([*SMOKE, "--seed", "5", "--out", str(out)]) == 2
    assert "already holds 2 finished runs. Add --resume" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in out.iterdir()} == before


def test_resume_skips_what_is_there_and_adds_the_rest(tmp_path: Path, monkeypatch, capsys):
    out = tmp_path / "out"
    trained = []
    monkeypatch.setattr(sweep_module, "train", lambda run, *a, **k: trained.append(run.seed) or train(run, *a, **k))
    assert main([*SMOKE, "--out", str(out)]) == 0
    first = keys(out)
    assert main([*SMOKE, "--out", str(out), "--resume", "--runs", "3"]) == 0
    assert trained == [0, 1, 2]
    assert keys(out)[:2] == first and len(keys(out)) == 3
    assert "(n=3)" in (out / "table.md").read_text()
    assert main([*SMOKE, "--out", str(out), "--resume", "--runs", "3"]) == 0
    assert trained == [0, 1, 2]
    # Other settings may share the folder; the table shows only what was asked for.
    capsys.readouterr()
    assert main([*SMOKE, "--out", str(out), "--resume", "--hidden", "8"]) == 0
    assert "(n=2)" in capsys.readouterr().out and len(keys(out)) == 5


def test_resume_runs_again_what_a_crash_tore(tmp_path: Path):
    out = tmp_path / "out"
    assert main([*SMOKE, "--out", str(out)]) == 0
    path = out / "records.jsonl"
    whole = keys(out)
    path.write_bytes(path.read_bytes()[:-100])
    assert main([*SMOKE, "--out", str(out), "--resume"]) == 0
    assert keys(out) == whole


def interrupt_after(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = iter(range(100))

    def interrupted(*args: object, **kwargs: object):
        if next(calls) == count:
            raise KeyboardInterrupt
        return train(*args, **kwargs)

    monkeypatch.setattr(sweep_module, "train", interrupted)


def test_interruption_keeps_records_and_prints_the_table(tmp_path: Path, monkeypatch, capsys):
    out = tmp_path / "out"
    interrupt_after(1, monkeypatch)
    assert main([*SMOKE, "--out", str(out)]) == 130
    captured = capsys.readouterr()
    assert "| baseline |" in captured.out and "(n=1)" in captured.out
    assert "Incomplete: 1 of 2 runs" in (out / "table.md").read_text()
    assert "--resume" in captured.err
    assert len(keys(out)) == 1 and (out / "accuracy.png").exists()
    monkeypatch.setattr(sweep_module, "train", train)
    assert main([*SMOKE, "--out", str(out), "--resume"]) == 0
    assert len(keys(out)) == 2 and "Incomplete" not in (out / "table.md").read_text()


def test_interruption_before_the_first_record_leaves_nothing(tmp_path: Path, monkeypatch, capsys):
    interrupt_after(0, monkeypatch)
    assert main([*SMOKE, "--out", str(tmp_path / "out")]) == 130
    assert "No run has finished" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_rows_and_seeds_of_a_sweep():
    given = {"method": ("baseline", "rmm"), "sketch": ("count_sketch", "gaussian"), "rate": (0.1, 0.5), "runs": 2}
    runs = resolve(given).expand("fingerprint", "cpu")
    assert [run.seed for run in runs] == [0] * 5 + [1] * 5  # complete pairs first
    assert [run.label for run in runs[:5]] == [
        "baseline", "rmm count_sketch 0.1 fp32", "rmm count_sketch 0.5 fp32", "rmm gaussian 0.1 fp32",
        "rmm gaussian 0.5 fp32",
    ]  # fmt: skip
    assert len({run.key for run in runs}) == 10


def test_a_method_gets_the_settings_it_has():
    given = {
        "method": tuple(METHODS), "rate": (0.125,), "center": ("on", "off"), "codec": ("int8",), "x0_codec": ("int4",),
        "exact_bits": (1, 2), "runs": 1,
    }  # fmt: skip
    anchored = resolve({"method": ("rmm-lean",), "anchor": ("off", "on"), "runs": 1}).expand("", "cpu")
    assert [run.label for run in anchored] == [
        "rmm-lean count_sketch 0.1 fp32, norm int2, x0 fp32",
        "rmm-lean count_sketch 0.1 fp32 anchored, norm int2, x0 fp32",
    ]
    assert anchored[0].key == resolve({"method": ("rmm-lean",), "runs": 1}).expand("", "cpu")[0].key != anchored[1].key
    held = resolve({"method": ("rmm-lean", "rmm"), "held": ("on", "off"), "runs": 1}).expand("", "cpu")
    assert [(run.held, run.label) for run in held] == [
        (True, "rmm-lean count_sketch 0.1 fp32, norm int2, x0 fp32"),
        (False, "rmm-lean count_sketch 0.1 fp32 with sketched features, norm int2, x0 fp32"),
        (None, "rmm count_sketch 0.1 fp32"),
    ]
    assert len({run.key for run in held}) == 3
    runs = resolve(given).expand("", "cpu")
    assert [run.label for run in runs] == [
        "baseline",
        "rmm count_sketch 0.125 int8",
        "rmm count_sketch 0.125 int8 uncentred",
        "rmm-lean count_sketch 0.125 int8, norm int2, x0 int4",
        "rmm-lean count_sketch 0.125 int8 uncentred, norm int2, x0 int4",
        "rmm-plan count_sketch, in 3%",
        "rmm-uniform count_sketch int8, norm int2, x0 int4, in 3%",
        "rmm-uniform count_sketch int8 uncentred, norm int2, x0 int4, in 3%",
        "exact 0.125 of features int1",
        "exact 0.125 of features int2",
        "checkpoint",
        "offload",
    ]
    by_method = {run.method: run for run in runs}
    assert by_method["rmm"].norm_codec is by_method["rmm"].x0_codec is by_method["rmm"].exact_bits is None
    assert by_method["exact"].codec is by_method["exact"].sketch is by_method["offload"].rate is None


def test_settings_given_with_a_method_are_that_rows_alone():
    runs = resolve(
        {
            "method": (
                "baseline",
                "rmm",
                "rmm-lean:rate=0.55,codec=int2,norm-codec=int1,x0_codec=int4:group_size=64,scale=fp32,center=off",
                "exact:rate=0.125,exact-bits=4",
            ),
            "runs": 1,
        }
    ).expand("", "cpu")
    assert [run.label for run in runs] == [
        "baseline",
        "rmm count_sketch 0.1 fp32",
        "rmm-lean count_sketch 0.55 int2 uncentred, norm int1, x0 int4:group_size=64,scale=fp32",
        "exact 0.125 of features int4",
    ]
    flags = {"method": ("rmm-lean",), "rate": (0.55,), "norm_codec": ("int1",), "runs": 1}
    assert (
        resolve({"method": ("rmm-lean:rate=0.55,norm-codec=int1",), "runs": 1}).expand("", "cpu")[0].key
        == resolve(flags).expand("", "cpu")[0].key
    )


def test_the_share_of_rows_of_batch_norm_is_a_setting_and_the_default_keeps_keys():
    given = {"method": ("baseline", "rmm-lean", "rmm-uniform"), "norm_rate": (1.0, 0.2), "runs": 1}
    runs = resolve(given).expand("", "cpu")
    assert [run.label for run in runs] == [
        "baseline",
        "rmm-lean count_sketch 0.1 fp32, norm int2, x0 fp32",
        "rmm-lean count_sketch 0.1 fp32, norm 0.2 int2, x0 fp32",
        "rmm-uniform count_sketch fp32, norm int2, x0 fp32, in 3%",
        "rmm-uniform count_sketch fp32, norm 0.2 int2, x0 fp32, in 3%",
    ]
    assert [run.norm_rate for run in runs] == [None, 1.0, 0.2, 1.0, 0.2] and len({run.key for run in runs}) == 5
    assert METHODS["rmm-lean"].describe(runs[2])["norm_rate"] == 0.2
    own = resolve({"method": ("rmm-lean:norm-rate=0.2",), "runs": 1}).expand("", "cpu")[0]
    assert own == runs[2] and own.key == runs[2].key
    # What runs recorded before there were these settings go by.
    old = replace(runs[1], held=False)
    later = {"norm_rate", "anchor", "held", "loader", "world_size", *LOADER_SETTINGS}
    before = {name: value for name, value in asdict(old).items() if name not in later}
    assert old.key == sha256(json.dumps(before, sort_keys=True).encode()).hexdigest()[:16]


@pytest.mark.parametrize(
    ("method", "match"),
    [
        ("galore", "'method' must be one of baseline.* \\(got 'galore'\\)"),
        (
            "exact:codec=int2",
            "'method' must have settings of exact .*exact:SETTING=VALUE with one of: rate, exact-bits",
        ),
        ("baseline:rate=0.1", "settings of baseline .*Drop it"),
        ("rmm:rate", "settings of rmm"),
        ("rmm:rate=much", "'rate' must be a number \\(got 'much'"),
        ("exact:exact-bits=3", "'exact_bits' must be one of 1, 2, 4, 8"),
        ("rmm:center=maybe", "'center' must be one of on, off"),
        ("rmm:anchor=1", "'anchor' must be one of on, off"),
        ("rmm-plan:anchor=on", "settings of rmm-plan"),
    ],
)
def test_a_method_that_cannot_be_read_is_refused(method, match):
    with pytest.raises(ValueError, match=match):
        resolve({"method": (method,)})


def test_a_row_asked_for_twice_is_refused():
    with pytest.raises(ValueError, match="'method' must give every row once"):
        resolve({"method": ("rmm", "rmm:rate=0.1")})


def test_by_default_the_cheap_methods_run():
    labels = [run.label for run in resolve({"runs": 1, "rate": (0.1,)}).expand("", "cpu")]
    lean = "rmm-lean count_sketch 0.1 int8, norm int2, x0 int4"  # 32.4x less on the protocol's network
    assert labels == ["baseline", "rmm count_sketch 0.1 fp32", lean, "exact 0.125 of features int2"]
    labels = [run.label for run in resolve({"runs": 1, "codec": ("int4",)}).expand("", "cpu")]
    assert labels[1:3] == ["rmm count_sketch 0.1 int4", "rmm-lean count_sketch 0.1 int4, norm int2, x0 fp32"]
    assert resolve({"smoke": True}).method == tuple(METHODS)


def test_presets_yield_to_what_is_given():
    assert resolve({"dataset": "digits"}).layers == 4
    assert resolve({"dataset": "digits", "layers": 7}).layers == 7
    assert resolve({"smoke": True}).dataset == "digits"
    assert resolve({"smoke": True, "dataset": "ogbn-arxiv", "epochs": 9}).dataset == "ogbn-arxiv"
    assert resolve({"layers": 3}).hidden == 256


def test_without_out_every_invocation_gets_its_own_folder():
    assert resolve({"dataset": "npz:/somewhere/graph.npz"}).out_dir().as_posix().startswith("runs/npz-graph-20")
    assert resolve({}).out_dir().as_posix().startswith("runs/ogbn-arxiv-20")
    assert resolve({"out": "x"}).out_dir() == Path("x")
