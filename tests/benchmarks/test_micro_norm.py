"""The comparison of lean batch norms runs, and keeping more brings less noise."""

from __future__ import annotations

from benchmarks.micro.norm import SETTINGS, main, noise


def test_more_bytes_bring_less_noise():
    every_row, half, tenth = noise(16, [("int2", 1.0), ("int2", 0.5), ("int2", 0.1)], 4)
    assert 0 < every_row < half < tenth


def test_the_table(capsys):
    assert main(["--rows", "50", "--columns", "16", "--repetitions", "1", "--draws", "2"]) == 0
    out = capsys.readouterr().out
    assert "| int2, rate 0.25 | 2 |" in out and out.count("\n|") == len(SETTINGS) + 2
