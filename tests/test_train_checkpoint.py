"""A training that was interrupted ends as one that was not; what cannot be gone on from is not."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from hasten.core.progress import silent
from hasten.train import checkpoint as checkpoint_module
from hasten.train import speculator as training_module
from hasten.train.checkpoint import Checkpoint
from hasten.train.speculator import Training
from test_train_speculator import follow_a_circle
from tiny import BASE, CPU, RandomSource


@pytest.fixture(autouse=True)
def each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_module, "SECONDS", 0.0)
    monkeypatch.setattr(training_module, "BATCH", 64)


def begun() -> Training:
    source = RandomSource(BASE)
    return Training(follow_a_circle(source), source, CPU)


def interrupted(checkpoint: Checkpoint, training: Training, steps: int) -> None:
    left = iter(range(steps))

    def progress(label: str, done: int, total: int) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training.run(progress, checkpoint)


@pytest.mark.parametrize("steps", [1, 5, 17, 29])
def test_it_goes_on_to_the_very_same_end(tmp_path: Path, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, right = begun().run()
    training = begun()
    assert len(training._plan()) == 30
    interrupted(Checkpoint(tmp_path / "kept", training.key), training, steps)
    worked: list[int] = []
    loss = Training._loss
    monkeypatch.setattr(Training, "_loss", lambda self, places, levels: (worked.append(1), loss(self, places, levels))[1])
    again = begun()
    found, right_again = again.run(silent, Checkpoint(tmp_path / "kept", again.key))
    assert len(worked) == len(again._plan()) - steps
    assert right_again == right
    assert found.tensors.keys() == whole.tensors.keys()
    for name, tensor in whole.tensors.items():
        assert torch.equal(found.tensors[name], tensor), name


@pytest.mark.parametrize("first", [torch.bfloat16, torch.float32])
def test_it_goes_on_in_what_it_was_begun_in(tmp_path: Path, first: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which of two types is faster may be a matter of chance, and is asked where nothing has been chosen only."""
    (second,) = {torch.bfloat16, torch.float32} - {first}
    asked: list[torch.dtype] = []

    def timed(fastest: torch.dtype) -> None:
        monkeypatch.setattr(Training, "_fastest", lambda self: (asked.append(fastest), fastest)[1])

    timed(first)
    whole, right = begun().run()
    training = begun()
    interrupted(Checkpoint(tmp_path / "kept", training.key), training, 5)
    timed(second)
    other, _ = begun().run()
    again = begun()
    assert again.key == training.key
    found, right_again = again.run(silent, Checkpoint(tmp_path / "kept", again.key))
    assert asked == [first, first, second]
    assert right_again == right
    for name, tensor in whole.tensors.items():
        assert torch.equal(found.tensors[name], tensor), name
    assert not torch.equal(found.tensors["state"], other.tensors["state"])
    assert begun().run(silent, Checkpoint(tmp_path / "nothing", again.key))[1]
    assert asked == [first, first, second, second]


def test_it_is_kept_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_module, "SECONDS", 1e9)
    training = begun()
    interrupted(Checkpoint(tmp_path / "kept", training.key), training, 5)
    assert not (tmp_path / "kept").exists()


def test_another_training_is_not_gone_on_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, training = RandomSource(BASE), begun()
    interrupted(Checkpoint(tmp_path / "kept", training.key), training, 5)
    other = Training(follow_a_circle(source, answers=41), source, CPU)
    assert other.key != training.key
    optimiser = torch.optim.AdamW(other.weights.values())
    assert Checkpoint(tmp_path / "kept", other.key).resume(other.weights, optimiser) == (0, None)
    assert not optimiser.state
    key = training.key
    monkeypatch.setattr(training_module, "PASSES", 2)
    assert begun().key != key


@pytest.mark.parametrize("damage", [b"", b"damaged", None, "products"])
def test_a_damaged_one_is_said_and_begun_anew(tmp_path: Path, damage: bytes | str | None, caplog: pytest.LogCaptureFixture) -> None:
    whole, _ = begun().run()
    path, training = tmp_path / "kept", begun()
    interrupted(Checkpoint(path, training.key), training, 5)
    whole_file = path.read_bytes()
    if isinstance(damage, str):  # multiplied in what no training is
        assert whole_file.count(b"torch.") == 1
        damage = whole_file.replace(b"torch.", b"torsh.")
    path.write_bytes(whole_file[:-100] if damage is None else damage)
    again = begun()
    with caplog.at_level(logging.WARNING):
        found, _ = again.run(silent, Checkpoint(path, again.key))
    assert "is not whole" in caplog.text
    assert torch.equal(found.tensors["state"], whole.tensors["state"])


def test_a_disk_that_refuses_costs_no_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "folder").write_text("in the way")
    training = begun()
    with caplog.at_level(logging.WARNING):
        weights, _ = training.run(silent, Checkpoint(tmp_path / "folder" / "kept", training.key))
    assert [record.levelname for record in caplog.records if "will begin anew" in record.message] == ["WARNING"]
    assert weights.tensors
