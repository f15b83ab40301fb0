"""The command that counts what torch.compile does prints what was counted."""

from __future__ import annotations

from benchmarks.micro import gate
from benchmarks.micro.compiled import main


def test_table(capsys):
    assert main(["--steps", "3", "--subject", "RMMLinear", "lean modules", "--no-gate"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("3 training steps, aot_eager; ") and gate.UNVERIFIED in text
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[-2:]]
    assert rows == [["RMMLinear", "1", "0", "0"], ["lean modules", "1", "0", "0"]]


def test_what_can_be_put_right(capsys):
    assert main(["--steps", "1", "--no-gate"]) == 2
    assert "error: 'steps' must be at least 2 (got 1)" in capsys.readouterr().err
