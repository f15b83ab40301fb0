"""What the callback logs, that it changes nothing of the run, and where the entries arrive."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from transformers import TrainerCallback

from rmm_gnn import NoiseController, RMMConfig, memory_report
from rmm_gnn.diagnostics.noise_record import NoiseRecord
from rmm_gnn.hf import RMMTrainerCallback, apply_rmm
from rmm_gnn.hf.callback import _noise
from tests.hf.models import batch, build
from tests.hf.training import losses, trainer

CONFIG = RMMConfig(rate=0.25)
NAMES = {
    "rmm_saved_bytes",
    "rmm_compressed_bytes",
    "rmm_noise_to_signal",
    "rmm_noise_to_sgd",
    "rmm_peak_resident_bytes",
}


class Reporter(TrainerCallback):
    """What a reporter of ``report_to`` would send off."""

    def __init__(self) -> None:
        self.seen: list[dict] = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.seen.append(dict(logs))


def ours(entry: dict) -> dict:
    return {name: value for name, value in entry.items() if name.startswith("rmm_")}


def history(run) -> list[dict]:
    return [ours(entry) for entry in run.state.log_history if "loss" in entry]


def run_with(callback, tmp_path, name: str = "bert", config=CONFIG, callbacks=(), **settings):
    run = trainer(apply_rmm(build(name), config), name, tmp_path, callbacks=[*callbacks, callback], **settings)
    run.train()
    return run


def test_every_so_many_steps_all_is_logged(tmp_path):
    run = run_with(RMMTrainerCallback(every=2, mode="exact"), tmp_path, max_steps=4)
    entries = history(run)
    assert [set(entry) for entry in entries] == [NAMES, NAMES, set(), NAMES]
    for entry in (entries[0], entries[1], entries[3]):
        assert entry["rmm_compressed_bytes"] < entry["rmm_saved_bytes"]
        assert 0 < entry["rmm_noise_to_signal"] < 100 and entry["rmm_noise_to_sgd"] > 0
        assert entry["rmm_peak_resident_bytes"] > 2**20
    run.state.save_to_json(str(tmp_path / "state.json"))
    assert json.loads((tmp_path / "state.json").read_text())["log_history"][0]["rmm_saved_bytes"] > 0


def test_bytes_are_those_of_a_memory_report(tmp_path):
    callback = RMMTrainerCallback(every=1, noise=False, peak=False)
    run = run_with(callback, tmp_path, max_steps=1, per_device_train_batch_size=16)
    model = apply_rmm(build("bert"), CONFIG)
    report = memory_report(model, **batch("bert", size=16), loss_fn=lambda out: out.loss)
    assert history(run) == [{"rmm_saved_bytes": report.saved_bytes, "rmm_compressed_bytes": report.compressed_bytes}]


def test_a_ratio_of_negative_estimates_is_left_out():
    def record(signal: float, sgd: float, noise: float = 2.0) -> NoiseRecord:
        return NoiseRecord(1, "w", 10, 2, "sketch", signal, sgd, noise, 0.0, 0.0, 0.0, 0.0)

    assert _noise([record(3.0, 10.0), record(1.0, 6.0)]) == {"rmm_noise_to_signal": 1.0, "rmm_noise_to_sgd": 0.25}
    assert _noise([record(-3.0, 10.0)]) == {"rmm_noise_to_sgd": 0.2}
    assert _noise([record(1.0, float("nan"))]) == {"rmm_noise_to_signal": 2.0}
    assert _noise([record(1.0, 1.0, float("inf"))]) == {} == _noise([record(1.0, 1.0, -0.1)]) == _noise([])


@pytest.mark.parametrize("mode", ["sketch", "exact"])
def test_the_noise_is_that_of_the_layers(mode, tmp_path):
    """At four times the rows a quarter of the noise; none where all rows are kept; layers by name in the records."""
    found = {}
    for rate in (0.1, 0.4, 1.0):
        callback = RMMTrainerCallback(every=1, saved=False, peak=False, mode=mode)
        config = {"rate": rate, "sketch": "count_sketch"}
        run_with(callback, tmp_path, config=config, max_steps=2, per_device_train_batch_size=16, learning_rate=0.0)
        found[rate] = sum(record.rmm_variance for record in callback.records)
        assert {record.step for record in callback.records} == {1, 2}
        assert "bert.encoder.layer.1.attention.self.key.weight" in {record.layer for record in callback.records}
        assert len(callback.records) == 2 * 12  # what reads the output of attention is exact
    assert 6 * found[0.4] > found[0.1] > 2.5 * found[0.4] > 0 and abs(found[1.0]) < 1e-3 * found[0.4]


@pytest.mark.parametrize("settings", [{}, {"gradient_accumulation_steps": 2}, {"bf16": True}], ids=str)
def test_the_run_is_the_one_without_it(settings, tmp_path):
    plain = trainer(apply_rmm(build("bert"), CONFIG), "bert", tmp_path, **settings)
    plain.train()
    watched = run_with(RMMTrainerCallback(every=2), tmp_path, **settings)
    assert losses(plain) == losses(watched)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in watched.model.modules())


@pytest.mark.parametrize("use_reentrant", [True, False], ids=["reentrant", "hooks"])
def test_under_checkpointing_it_logs_what_it_can_see(use_reentrant, tmp_path):
    settings = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": use_reentrant}}
    callback = RMMTrainerCallback(every=1)
    run = run_with(callback, tmp_path, max_steps=1, **settings)
    kept = run_with(RMMTrainerCallback(every=1), tmp_path, max_steps=1)
    assert history(run)[0]["rmm_saved_bytes"] < history(kept)[0]["rmm_saved_bytes"]
    inside = [record for record in callback.records if "encoder.layer" in record.layer]
    assert len(inside) == (0 if use_reentrant else 10)


@pytest.mark.parametrize("settings", [{"logging_steps": 2}, {"logging_steps": 3, "logging_first_step": True}], ids=str)
def test_losses_are_averaged_over_the_windows_that_the_trainer_was_asked_for(settings, tmp_path):
    """The entry of a log is that of the newest step measured before it; the records have those between."""
    plain = trainer(apply_rmm(build("bert"), CONFIG), "bert", tmp_path, max_steps=7, **settings)
    plain.train()
    callback = RMMTrainerCallback(every=2, saved=False, peak=False, mode="exact")
    watched = run_with(callback, tmp_path, max_steps=7, **settings)
    assert losses(plain) == losses(watched) and len(losses(plain)) == 3
    steps = [[entry["step"] for entry in run.state.log_history] for run in (plain, watched)]
    assert steps[0] == steps[1]
    assert {record.step for record in callback.records} == {1, 2, 4, 6}
    logged = {entry["step"]: entry["rmm_noise_to_sgd"] for entry in watched.state.log_history if "loss" in entry}
    last = [record for record in callback.records if record.step == 6]
    assert logged[6] == _noise(last)["rmm_noise_to_sgd"]


def test_evaluations_carry_no_entries(tmp_path):
    run = trainer(
        apply_rmm(build("bert"), CONFIG),
        "bert",
        tmp_path,
        callbacks=[RMMTrainerCallback(every=1)],
        eval_strategy="steps",
        eval_steps=1,
        max_steps=2,
    )
    run.train()
    evaluations = [entry for entry in run.state.log_history if "eval_loss" in entry]
    assert len(evaluations) == 2 and not any(map(ours, evaluations))
    assert all(map(len, history(run)))


def test_reporters_see_the_entries_once_it_is_attached(tmp_path):
    for attach in (False, True):
        reporter, callback = Reporter(), RMMTrainerCallback(every=1, noise=False, peak=False)
        run = trainer(apply_rmm(build("bert"), CONFIG), "bert", tmp_path, callbacks=[reporter], max_steps=1)
        if attach:
            assert callback.attach(run) is callback and callback.attach(run) is callback
        else:
            run.add_callback(callback)
        run.train()
        assert bool(ours(reporter.seen[0])) == attach
        assert run.callback_handler.callbacks.count(callback) == 1
        assert ours(run.state.log_history[0])


class TestController:
    def test_settings_make_one_that_moves_the_rates(self, tmp_path):
        callback = RMMTrainerCallback(
            every=1, saved=False, peak=False, controller={"target": 0.02, "quantity": "share", "mode": "sketch"}
        )
        run = run_with(callback, tmp_path, config={"rate": 0.1}, max_steps=4)
        rates = [entry["rmm_mean_rate"] for entry in history(run)]
        assert rates[0] > 0.1 and rates[-1] > rates[0]
        assert isinstance(callback.controller, NoiseController)
        assert run.model.bert.encoder.layer[0].output.dense.config.rate > 0.1

    def test_one_may_be_given(self, tmp_path):
        model = apply_rmm(build("bert"), {"rate": 0.1})
        controller = NoiseController(model, target=0.02, quantity="share", every=2)
        callback = RMMTrainerCallback(every=2, saved=False, noise=False, peak=False, controller=controller)
        run = trainer(model, "bert", tmp_path, callbacks=[callback], max_steps=3)
        run.train()
        assert {change.step for change in controller.history} == {0, 2}
        assert [set(entry) for entry in history(run)] == [{"rmm_mean_rate"}, {"rmm_mean_rate"}, set()]

    def test_anything_else_raises(self):
        with pytest.raises(TypeError, match=r"'controller' must be a NoiseController or its settings \(got float\)"):
            RMMTrainerCallback(controller=0.5)


class TestErrors:
    @pytest.mark.parametrize("every", [0, 1.5])
    def test_every(self, every):
        with pytest.raises((TypeError, ValueError), match="'every' must be"):
            RMMTrainerCallback(every=every)

    @pytest.mark.parametrize("name", ["saved", "noise", "peak"])
    def test_flags(self, name):
        with pytest.raises(TypeError, match=f"'{name}' must be True or False"):
            RMMTrainerCallback(**{name: "yes"})

    def test_mode(self):
        with pytest.raises(ValueError, match=r"'mode' must be a known name .*exact, sketch"):
            RMMTrainerCallback(mode="fast")

    def test_nothing_to_do(self):
        with pytest.raises(ValueError, match="'saved', 'noise' or 'peak' must be True"):
            RMMTrainerCallback(saved=False, noise=False, peak=False)

    def test_a_model_that_is_not_converted(self, tmp_path):
        run = trainer(build("bert"), "bert", tmp_path, callbacks=[RMMTrainerCallback()])
        with pytest.raises(ValueError, match=r"'model' must have trained layers that keep sketches \(got none\)"):
            run.train()

    def test_a_compiled_model(self, tmp_path):
        model = apply_rmm(build("bert"), CONFIG)
        model.compile(backend="eager")
        with pytest.raises(ValueError, match="'saved' and 'noise' must be False where the model is compiled"):
            trainer(model, "bert", tmp_path, callbacks=[RMMTrainerCallback()]).train()

    def test_a_family_that_sketches_cannot_judge(self, tmp_path):
        config = {"rate": 0.25, "sketch": "importance_sampling"}
        with pytest.raises(ValueError, match=r"'mode' must be 'exact' .* \(got layers with 'importance_sampling'\)"):
            run_with(RMMTrainerCallback(), tmp_path, config=config)
        for settings in ({"noise": False}, {"mode": "exact"}):
            run = run_with(RMMTrainerCallback(every=1, **settings), tmp_path, config=config, max_steps=2)
            assert all("rmm_saved_bytes" in entry for entry in history(run))
            assert all(("rmm_noise_to_sgd" in entry) == ("mode" in settings) for entry in history(run))


def test_hooks_of_a_step_that_failed_are_taken_off_by_the_next_run(tmp_path):
    model = apply_rmm(build("bert"), CONFIG)

    class Failing(TrainerCallback):
        def on_pre_optimizer_step(self, *args, **kwargs):
            raise MemoryError

    callback = RMMTrainerCallback(every=1)
    run = trainer(model, "bert", tmp_path, callbacks=[callback, Failing()])
    with pytest.raises(MemoryError):
        run.train()
    run.remove_callback(Failing)
    run.train()
    assert not model._forward_hooks and not model._forward_pre_hooks
