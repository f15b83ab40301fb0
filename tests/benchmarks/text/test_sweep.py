"""Whole invocations: outputs, resuming, interruption, errors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.glue import main
from benchmarks.harness import errors
from benchmarks.harness.checkpoints import checkpoint_path, write_checkpoint
from benchmarks.text import sweep as sweep_module
from benchmarks.text.train import train
from tests.benchmarks.text.conftest import write_glue

pytest.importorskip("transformers")

pytestmark = pytest.mark.usefixtures("small")

ROOT = Path(__file__).resolve().parents[3]
SMALL = ["--smoke", "--task", "sst2", "--rate", "none", "0.5", "--method", "rmm", "--runs", "1", "--max-steps", "2"]


def records(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]


def keys(out: Path) -> list[str]:
    return [record["key"] for record in records(out)]


def test_smoke_as_a_command(tmp_path: Path):
    out = tmp_path / "out"
    command = [sys.executable, str(ROOT / "benchmarks" / "glue.py"), "--smoke", "--runs", "1", "--out", str(out)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in out.iterdir()) == ["curves.png", "records.jsonl", "report.md"]
    assert (out / "report.md").read_text() in done.stdout
    for word in ("**SST-2**", "**STS-B**", "**Average over 2 tasks**", "| baseline |", "| rmm-lean | count_sketch 0.5"):
        assert word in done.stdout
    # A line for every evaluation where there is no terminal for a bar, and nothing from the libraries.
    assert "[1/6] sst2 baseline seed 0: step 2/3, loss" in done.stderr
    assert all(line.startswith(("GLUE sst2 stsb", "[")) for line in done.stderr.splitlines())

    found = records(out)
    assert [(record["config"]["task"], record["config"]["method"]) for record in found] == [
        (task, method) for task in ("sst2", "stsb") for method in ("baseline", "rmm", "rmm-lean")
    ]
    for record in found:
        assert record["config"]["rate"] == (None if record["config"]["method"] == "baseline" else 0.5)
        assert record["curves"].keys() == {"step", "train_loss", "eval_loss", "score"}
        assert {
            "score",
            "metrics",
            "last_metrics",
            "steps",
            "examples_per_s",
            "step_s",
            "train_s",
            "saved_bytes",
        } <= set(record["results"])
        assert record["results"]["peak_bytes"] > 0 and record["results"]["peak_definition"]
        assert record["memory"]["definition"] and len(record["memory"]["step"]) == len(record["memory"]["bytes"])
        assert len({len(values) for name, values in record["noise"].items() if name != "layer"}) == 1
        assert record["environment"]["packages"]["transformers"] and record["environment"]["device"]
    assert len(set(keys(out))) == 6


def test_help(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    for flag in (
        "--task", "--data-dir", "--model", "--rate", "--method", "--sketch", "--codec", "--runs", "--seed", "--epochs",
        "--max-steps", "--batch-size", "--lr", "--max-length", "--precision", "--train-examples", "--eval-examples",
        "--eval-every-steps", "--probe-every", "--probe-layer", "--track-memory", "--exclude", "--threads", "--device",
        "--out", "--resume", "--smoke", "--attention-dropout",
    ):  # fmt: skip
        assert flag in printed
    assert "(default: none 0.1)" in printed and "--smoke          starts from --task sst2 stsb --model" in printed


def test_resume_skips_what_is_there_and_adds_the_rest(tmp_path: Path, monkeypatch, capsys):
    out = tmp_path / "out"
    trained = []
    monkeypatch.setattr(
        sweep_module, "train", lambda run, *a, **k: trained.append((run.seed, run.rate)) or train(run, *a, **k)
    )
    assert main([*SMALL, "--out", str(out)]) == 0
    before = {path: path.read_bytes() for path in out.iterdir()}
    assert main([*SMALL, "--out", str(out)]) == 2
    assert "already holds 2 finished runs. Add --resume" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in out.iterdir()} == before

    more = [*SMALL, "--out", str(out), "--resume", "--runs", "2"]
    assert main(more) == 0 and trained == [(0, None), (0, 0.5), (1, None), (1, 0.5)]
    assert "2 of 4 runs are recorded" in capsys.readouterr().err
    assert main(more) == 0 and len(trained) == 4 and len(keys(out)) == 4
    # A line that a crash tore is run again.
    whole, path = keys(out), out / "records.jsonl"
    path.write_bytes(path.read_bytes()[:-100])
    assert main(more) == 0 and trained[4:] == [(1, 0.5)] and keys(out) == whole
    # What decides a run decides its key.
    assert main([*more, "--lr", "1e-3"]) == 0 and len(trained) == 9


def test_other_data_are_other_runs(tmp_path: Path):
    out = tmp_path / "out"
    base = ["--task", "sst2", "--model", "tiny", "--rate", "none", "--runs", "1", "--max-steps", "1", "--out", str(out)]
    text = "sentence\tlabel\n" + "good film\t1\nbad film\t0\n" * 4
    command = [*base, "--data-dir", str(write_glue(tmp_path / "a", "sst2", train=text, dev=text))]
    assert main(command) == 0 and main([*command, "--resume"]) == 0 and len(keys(out)) == 1
    other = write_glue(tmp_path / "b", "sst2", train=text, dev=text.replace("good", "fine"))
    assert main([*base, "--resume", "--data-dir", str(other)]) == 0 and len(keys(out)) == 2
    assert records(out)[0]["data"] == {
        "source": f"TSV files in {tmp_path / 'a'}", "train_examples": 8, "eval_examples": [8],
        "model": "RoBERTa of 1 layers of 64, random weights, 272 BPE tokens",
    }  # fmt: skip


def test_interruption_keeps_records_and_prints_the_table(tmp_path: Path, monkeypatch, capsys):
    out, calls = tmp_path / "out", iter(range(10))

    def interrupted(*arguments: object, **named: object):
        if next(calls) == 1:
            raise KeyboardInterrupt
        return train(*arguments, **named)

    monkeypatch.setattr(sweep_module, "train", interrupted)
    assert main([*SMALL, "--out", str(out)]) == 130
    captured = capsys.readouterr()
    assert "| baseline |" in captured.out and f"continue with --resume --out {out}" in captured.err
    assert "Incomplete: 1 of 2 runs" in (out / "report.md").read_text()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--precision", "fp16"], "'precision' must be fp32 or bf16 on cpu (got fp16)"),
        (["--rate", "1.5"], "'rate' must lie in (0, 1] (got 1.5)"),
        (["--rate", "0.1", "0.1"], "'rate' must name different values"),
        (["--sketch", "sors:transform=wht"], "'transform'"),
        (["--codec", "int3"], "'codec'"),
        (["--exclude", "("], "'exclude' must be a regular expression (got '(')"),
        (["--exclude", "head"], "'exclude' must match a layer that would be converted (got 'head')"),
        (["--exclude", ".*"], "'model' must have a linear layer to convert"),
        (["--max-length", "513"], "'max_length' must not exceed 512, what the model reads (got 513)"),
        (["--probe-layer", "x"], "'probe_layer' must name a linear layer (got 'x')"),
        (["--runs", "0"], "'runs' must be at least 1 (got 0)"),
        (["--max-steps", "0"], "'max_steps' must be at least 1 (got 0)"),
        (["--attention-dropout", "1"], "'attention_dropout' must be in [0, 1) (got 1.0)"),
        (["--lr", "0"], "'lr' must be positive"),
        (["--weight-decay", "-1"], "'weight_decay' must not be negative"),
        (["--resume"], "'resume' must come with --out"),
        (["--data-dir", "no/such/folder"], "'data_dir' must be a folder"),
        (["--device", "tpu"], "'device' must be auto, cpu, cuda or cuda:N"),
    ],
)
def test_errors_come_before_the_first_run(flags: list[str], message: str, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep_module, "train", None)
    assert main([*SMALL, *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error, error
    assert list(tmp_path.iterdir()) == []


def test_a_probed_layer_asks_for_a_probe(capsys):
    flags = ["--task", "sst2", "--model", "tiny", "--probe-layer", "classifier.dense"]
    assert main(flags) == 2
    assert "'probe_layer' must come with --probe-every" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--task", "snli"], ["--rate", "half"], ["--method", "exact"]])
def test_words_that_the_parser_does_not_know(flags: list[str], capsys):
    with pytest.raises(SystemExit) as stop:
        main(flags)
    assert stop.value.code == 2 and flags[1] in capsys.readouterr().err


def test_out_is_a_file(tmp_path: Path, capsys):
    (tmp_path / "out").write_text("")
    assert main([*SMALL, "--out", str(tmp_path / "out")]) == 2
    assert "'out' must be a folder" in capsys.readouterr().err


def test_records_of_another_benchmark(tmp_path: Path, capsys):
    (tmp_path / "records.jsonl").write_text(json.dumps({"schema": 3}) + "\n")
    assert main([*SMALL, "--resume", "--out", str(tmp_path)]) == 2
    assert "must have schema glue-1 (got 3 at line 1). Choose another --out." in capsys.readouterr().err


def test_checkpoints_of_other_settings_are_told(tmp_path: Path, monkeypatch, capsys):
    write_checkpoint(checkpoint_path(tmp_path, "other"), "other", {})

    def interrupted(*given, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep_module, "train", interrupted)
    assert main([*SMALL, "--resume", "--out", str(tmp_path)]) == 130
    assert f"1 checkpoint of other settings is kept in {tmp_path}" in capsys.readouterr().err


def test_the_last_tasks_data_are_looked_at_before_the_first_run(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(sweep_module, "train", None)
    write_glue(tmp_path, "sst2")
    flags = ["--task", "sst2", "rte", "--data-dir", str(tmp_path), "--model", "tiny", "--out", str(tmp_path / "out")]
    assert main(flags) == 2
    assert "'data_dir' must hold RTE/train.tsv" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_without_an_optional_package(monkeypatch, capsys):
    found = errors.importlib.import_module

    def missing(name: str):
        if name == "transformers":
            raise ImportError(f"No module named {name!r}")
        return found(name)

    monkeypatch.setattr(errors.importlib, "import_module", missing)
    assert main(SMALL) == 2
    assert "pip install -e '.[benchmarks,transformers]'" in capsys.readouterr().err
