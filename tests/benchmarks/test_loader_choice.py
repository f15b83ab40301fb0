"""Loaders by name: what each needs, what it cannot do, and what of it is in a run's key."""

from __future__ import annotations

import dataclasses

import pytest

from benchmarks.harness import loader_choice
from benchmarks.harness.config import resolve
from benchmarks.harness.errors import BenchmarkError
from benchmarks.harness.loader_choice import LOADERS, SETTINGS, check_run, require_loader
from benchmarks.harness.run_config import RunConfig
from benchmarks.ogbn_arxiv import main


def test_what_is_missing_is_named_with_a_way_out(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("torch_geometric.typing.WITH_TORCH_SPARSE", False)
    monkeypatch.setattr(loader_choice, "find_spec", lambda name: None)
    with pytest.raises(BenchmarkError, match=r"saint needs torch-sparse.*install_sparse\.sh.*neighbor or random-nodes"):
        require_loader("saint")
    with pytest.raises(BenchmarkError, match=r"cluster needs METIS.*pip install -e '\.\[cluster\]'.*random-nodes"):
        require_loader("cluster")
    for free in ("full", "neighbor", "random-nodes"):
        require_loader(free)
    # Before anything is read: there is no such file.
    assert main(["--loader", "saint", "--dataset", f"npz:{tmp_path / 'none.npz'}", "--out", str(tmp_path / "o")]) == 2
    assert "needs torch-sparse" in capsys.readouterr().err and not (tmp_path / "o").exists()


@pytest.mark.parametrize("loader", [name for name in LOADERS if name != "full"])
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": ("rmm-plan",)}, "'method' must not look at the whole graph.*Use rmm-lean"),
        ({"method": ("rmm-uniform",)}, "'method' must not look at the whole graph.*Use rmm-lean"),
        ({"method": ("rmm",), "adaptive": ("rate",)}, "'adaptive' must be off.*--loader full"),
        ({"method": ("rmm",), "adaptive": ("lr",)}, "'adaptive' must be off.*--loader full"),
        (
            {"method": ("rmm",), "sketch": ("importance_sampling:top_share=0.25",)},
            "'sketch' must not remember rows.*norm_sampling",
        ),
    ],
)
def test_what_a_loader_cannot_do_is_said(make_run, loader: str, given: dict, message: str):
    with pytest.raises(ValueError, match=message):
        check_run(make_run(loader=loader, **given))
    check_run(make_run(**given))


def test_the_full_batch_is_for_one_process(make_run):
    check_run(make_run())
    with pytest.raises(ValueError, match=r"'loader' must divide the graph among 2 processes.*Use --loader neighbor"):
        check_run(dataclasses.replace(make_run(), world_size=2))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"batch_size": 0}, "'batch_size' must be at least 1"),
        ({"eval_chunk": 0}, "'eval_chunk' must be at least 1"),
        ({"workers": -1}, "'workers' must not be negative"),
        ({"parts_per_batch": 11, "num_parts": 10}, "'parts_per_batch' must be at most the number of parts, 10"),
        ({"fan_out": (3, 0)}, "'fan_out' must hold positive numbers, or -1 for all"),
        ({"fan_out": (3, 3, 3), "layers": 2}, "'fan_out' must have at most one number for each of 2 layers"),
    ],
)
def test_values_out_of_range_are_refused(given: dict, message: str):
    with pytest.raises(ValueError, match=message):
        resolve(given)


def test_a_run_has_the_settings_of_its_loader_alone(make_run):
    assert make_run(layers=2, loader="neighbor").fan_out == (10, 5)
    assert make_run(layers=5, loader="neighbor").fan_out == (10, 5, 5)
    assert make_run(layers=4, loader="neighbor", fan_out=(7,)).fan_out == (7, 7, 7, 7)
    assert make_run(layers=4, loader="neighbor", fan_out=(7, 3)).fan_out == (7, 3)
    for name, loader in LOADERS.items():
        run = make_run(loader=name)
        assert {setting for setting in SETTINGS if getattr(run, setting) is not None} == set(loader.settings)
    weights = {name: make_run(loader=name).edge_weights for name in LOADERS}
    assert weights == {
        "full": None, "neighbor": "scaled", "cluster": "scaled", "saint": "scaled", "random-nodes": "plain",
    }  # fmt: skip
    run = make_run(loader="neighbor", fan_out=(4, 2), batch_size=32)
    assert run.loading == "neighbor (fan out 4 2, batch size 32, edge weights scaled)"
    assert make_run().loading == ""


def test_a_run_s_key_holds_its_loader(make_run):
    def key(world_size: int = 1, **given: object) -> str:
        return dataclasses.replace(make_run(**given), world_size=world_size).key

    keys = [
        key(),
        key(loader="random-nodes"),
        key(2, loader="random-nodes"),
        key(loader="random-nodes", num_parts=50),
        key(loader="random-nodes", workers=1),
        key(loader="random-nodes", edge_weights="scaled"),
        key(loader="neighbor"),
        key(loader="neighbor", fan_out=(3,)),
    ]
    assert len(set(keys)) == len(keys)
    assert key(num_parts=50, workers=1, fan_out=(3,)) == key()  # settings of no loader


def test_runs_recorded_before_there_were_loaders_keep_their_keys():
    runs: list[RunConfig] = resolve({"seed": 7, "runs": 1}).expand("abc", "cpu")
    assert [run.key for run in runs] == ["f01093d786947b96", "6cd80d1574650632", "97e13746424a930f", "ac41a9834bf7067c"]
