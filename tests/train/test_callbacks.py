"""The gates in the log of a real trainer."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from offprincipal.errors import UsageError
from offprincipal.lab.quiet import quiet
from offprincipal.lab.settings import PRESETS
from offprincipal.lab.world import make_decoder, make_tokenizer
from offprincipal.train import callbacks
from offprincipal.train.callbacks import GeometryCallback

ROWS = [{"input_ids": [3, 4, 5, 6 + n], "labels": [3, 4, 5, 6 + n]} for n in range(16)]


class Sink:
    """Stands in for trackio, wandb and TensorBoard: it sees what they see."""

    seen: list[dict[str, Any]]


def make_trainer(folder: Path, rows: Any = ROWS, tokenizer: Any = None, **arguments: Any) -> Any:
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Recorder(TrainerCallback, Sink):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            self.seen.append(dict(logs))

    recorder = Recorder()
    recorder.seen = []
    chosen = {
        "max_steps": 5, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "logging_steps": 2, "use_cpu": True,
        "report_to": "none", "disable_tqdm": True, "save_strategy": "no", "dataloader_pin_memory": False,
    } | arguments  # fmt: skip
    model = make_decoder(PRESETS["micro"].decoder, make_tokenizer(), seed=0)
    with quiet(0):
        trainer = Trainer(
            model, TrainingArguments(str(folder), **chosen), train_dataset=rows, callbacks=[recorder],
            processing_class=tokenizer,
        )  # fmt: skip
    return trainer, recorder


def _train(trainer: Any, **options: Any) -> None:
    with quiet(0):
        trainer.train(**options)


def test_the_numbers_arrive_where_the_trainers_own_do(tmp_path: Path) -> None:
    trainer, recorder = make_trainer(tmp_path)
    trainer.add_callback(GeometryCallback(trainer, every=2, cache=False))
    _train(trainer)
    geometry = [logs for logs in recorder.seen if any(name.startswith("geometry/") for name in logs)]
    assert len(geometry) == 3  # steps 1, 2 and 4
    assert [entry["step"] for entry in trainer.state.log_history if "geometry/changed/all" in entry] == [1, 2, 4]
    assert [entry["step"] for entry in trainer.state.log_history if "loss" in entry] == [2, 4]  # none was lost
    for logs in geometry:
        assert all(isinstance(value, float) for name, value in logs.items() if name.startswith("geometry/"))
        assert 0 < logs["geometry/step_changed/linear"] <= 1
        assert logs["geometry/kl_step/prompts"] > 0
    assert geometry[0]["geometry/kl_step/prompts"] == pytest.approx(geometry[0]["geometry/kl_base/prompts"])
    assert geometry[2]["geometry/delta_norm/all"] > geometry[0]["geometry/delta_norm/all"]


def test_watching_changes_no_weight(tmp_path: Path) -> None:
    plain, _ = make_trainer(tmp_path / "plain")
    watched, _ = make_trainer(tmp_path / "watched")
    watched.add_callback(GeometryCallback(watched, every=1, cache=False))
    _train(plain)
    _train(watched)
    for left, right in zip(plain.model.parameters(), watched.model.parameters(), strict=True):
        assert torch.equal(left, right)


def test_a_resumed_run_is_measured_against_the_base(tmp_path: Path) -> None:
    whole, _ = make_trainer(tmp_path / "whole", max_steps=4)
    whole.add_callback(GeometryCallback(whole, every=4, cache=False))
    _train(whole)
    first, _ = make_trainer(tmp_path / "cut", max_steps=4, save_strategy="steps", save_steps=2)
    _train(first)
    again, _ = make_trainer(tmp_path / "cut", max_steps=4)
    again.add_callback(GeometryCallback(again, every=4, cache=False))
    _train(again, resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-2"))
    last = [
        [entry["geometry/delta_norm/all"] for entry in trainer.state.log_history if "geometry/delta_norm/all" in entry]
        for trainer in (whole, again)
    ]
    assert last[1][-1] == pytest.approx(last[0][-1], rel=1e-6)


def test_texts_may_be_given_as_strings_tokens_or_left_out(tmp_path: Path) -> None:
    trainer, _ = make_trainer(tmp_path, tokenizer=make_tokenizer())
    for texts in (["math 3 +5 =", "math 4"], [[3, 4], [5]]):
        assert GeometryCallback(trainer, texts=texts, matrices=0).watch.after_step()["kl_base/prompts"] == 0
    assert "kl_base/prompts" not in GeometryCallback(trainer, texts=(), matrices=0).watch.after_step()


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "math 3 =", "completion": " 3"}, "math 3 = 3"),
        ({"prompt": "math 3 ="}, "math 3 ="),
        ({"text": "math 4"}, "math 4"),
        ({"prompt": [{"role": "user", "content": "code"}], "completion": [{"role": "you", "content": "4"}]}, "code 4"),
        ({"messages": [{"role": "user", "content": "math"}]}, "math"),
    ],
)  # fmt: skip
def test_rows_of_every_usual_shape_are_scored(tmp_path: Path, row: dict, words: str) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    trainer, _ = make_trainer(tmp_path, rows=[row], tokenizer=tokenizer)
    assert callbacks._rows(trainer) == [tokenizer(words).input_ids]


def test_what_cannot_be_watched_is_said(tmp_path: Path) -> None:
    trainer, _ = make_trainer(tmp_path, rows=[{"labels": [1]}])
    with pytest.raises(UsageError, match=r"a row of the training data is dict without input_ids.*or texts=\(\)"):
        GeometryCallback(trainer)
    with pytest.raises(UsageError, match="the trainer has no tokenizer; give processing_class="):
        GeometryCallback(trainer, texts=["math"])
    with pytest.raises(UsageError, match="every is 0; measure every 1 or more steps"):
        GeometryCallback(trainer, every=0)
    trainer, _ = make_trainer(tmp_path, rows=iter(ROWS))
    with pytest.raises(UsageError, match="its training data cannot be looked up by row"):
        GeometryCallback(trainer)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    message = r"transformers is not installed; install the extra: pip install offprincipal\[train\]"
    with pytest.raises(UsageError, match=message):
        callbacks._callback_class()
    with pytest.raises(AttributeError, match="has no attribute 'Geometry'"):
        callbacks.Geometry  # noqa: B018
