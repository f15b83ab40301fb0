"""The comparison of fixed and noise-following learning rates runs every method from the same start."""

from __future__ import annotations

import pytest

from benchmarks.micro.noise_lr import METHODS, main


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_table(optimizer, capsys):
    assert main(["--optimizer", optimizer, "--lr", "0.01", "0.1", "--epochs", "2", "--runs", "2"]) == 0
    printed = capsys.readouterr().out
    for lr in ("0.01", "0.1"):
        lines = [line for line in printed.splitlines() if line.startswith(f"| {lr} ")]
        assert [line.split("|")[2].strip() for line in lines] == list(METHODS)


@pytest.mark.parametrize("wrong", [["--rate", "2"], ["--lr", "0"], ["--runs", "0"]])
def test_what_can_be_put_right(wrong, capsys):
    assert main(wrong) == 2
    assert "error: '" in capsys.readouterr().err
