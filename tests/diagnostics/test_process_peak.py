"""The peak since a moment, from counters that run anyway."""

from __future__ import annotations

import sys

import pytest
import torch

from rmm_gnn.diagnostics.process_peak import ProcessPeak

MEBIBYTE = 2**20


def test_before_the_start_there_is_none():
    assert ProcessPeak(torch.device("cpu")).read_bytes() is None


def test_it_sees_what_was_freed_again_and_forgets_it_at_the_next_start():
    peak = ProcessPeak(torch.device("cpu"))
    peak.start()
    before = peak.read_bytes()
    if before is None:
        assert sys.platform != "linux"
        return
    torch.ones(64 * MEBIBYTE // 4).sum()
    assert peak.read_bytes() >= before + 48 * MEBIBYTE
    peak.start()
    assert peak.read_bytes() < before + 32 * MEBIBYTE


def test_other_devices_have_none():
    peak = ProcessPeak(torch.device("meta"))
    peak.start()
    assert peak.read_bytes() is None


def test_a_system_that_does_not_say_has_none(monkeypatch, tmp_path):
    monkeypatch.setattr("rmm_gnn.diagnostics.process_peak._CLEAR", tmp_path / "missing" / "clear_refs")
    peak = ProcessPeak(torch.device("cpu"))
    peak.start()
    assert peak.read_bytes() is None


@pytest.mark.cuda
def test_on_cuda_it_is_the_allocators():
    device = torch.device("cuda")
    peak = ProcessPeak(device)
    peak.start()
    before = peak.read_bytes()
    torch.ones(64 * MEBIBYTE // 4, device=device).sum()
    assert before is not None and peak.read_bytes() >= before + 48 * MEBIBYTE
