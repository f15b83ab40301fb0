"""The table of PyG's models runs and shows that each keeps less."""

from __future__ import annotations

from benchmarks.micro.pyg_models import MODELS, main


def test_the_table(capsys):
    assert main(["--dataset", "digits", "--width", "32", "--device", "cpu"]) == 0
    lines = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("|")][2:]
    assert [line[1].strip() for line in lines] == list(MODELS)
    assert all(float(line[4]) > 1 for line in lines)


def test_what_can_be_put_right(capsys):
    assert main(["--root", "absent"]) == 2
    assert main(["--codec", "int3"]) == 2
    assert "int3" in capsys.readouterr().err
