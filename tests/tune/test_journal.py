"""A sweep's folder: each ended trial is kept whole, and only the same sweep goes on in it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from raycd.config import Config
from raycd.errors import RunError
from raycd.runtime import pipeline
from tune.journal import Journal, best
from tune.space import make_space

INPUTS = {"embed": "e1", "mine": "m1"}
TRIAL: dict[str, Any] = {
    "number": 7,
    "proposed": {"mine.alpha": 0.5},
    "settings": {"mine.alpha": 0.5},
    "status": "finished",
    "value": 0.25,
    "epochs": [],
    "started": 0.0,
    "seconds": 1.0,
    "error": None,
}


def config(tmp_path: Path, **changes: Any) -> Config:
    return Config.model_validate(
        {"name": "tiny", "runs": str(tmp_path), "data": {"format": "synthetic"}} | changes
    )


def journal(tmp_path: Path) -> Journal:
    return Journal(str(tmp_path / "tiny-sweep"), str(tmp_path / "tiny"))


def opened(
    tmp_path: Path,
    *,
    resume: bool,
    overrides: tuple[str, ...] = (),
    inputs: Mapping[str, str] = INPUTS,
    made_with: Mapping[str, str] = MappingProxyType({}),
    **changes: Any,
) -> Journal:
    """Return the journal after it was opened and closed."""
    here = journal(tmp_path)
    space = make_space(config(tmp_path, **changes), overrides)
    with here.opened(space, inputs, made_with, resume=resume):
        return here


def refused(tmp_path: Path, **changes: Any) -> str:
    with pytest.raises(RunError) as caught:
        opened(tmp_path, **changes)
    return str(caught.value)


def test_what_decides_no_trial_may_change(tmp_path: Path) -> None:
    opened(tmp_path, resume=False).write(TRIAL)
    opened(
        tmp_path,
        resume=True,
        train={"checkpoint_minutes": 1.0, "max_failures": 3},
        registry={"alias": "champion"},
        tracking={"every_steps": 5},
    )


def test_trials_come_back_by_number(tmp_path: Path) -> None:
    here = journal(tmp_path)
    numbers = (7, 11, 99_999, 100_000)
    for number in reversed(numbers):
        here.write({**TRIAL, "number": number})
    assert journal(tmp_path).trials() == [{**TRIAL, "number": number} for number in numbers]
    assert sorted(os.listdir(tmp_path / "tiny-sweep" / "trials")) == [
        "00007.json",
        "00011.json",
        "100000.json",
        "99999.json",
    ]


def test_a_trial_whose_writing_breaks_off_is_absent_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = journal(tmp_path)
    here.write(TRIAL)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    for number in (7, 8):  # one that is there already, and a new one
        with pytest.raises(KeyboardInterrupt):
            here.write({**TRIAL, "number": number, "value": 0.5})
    assert os.listdir(tmp_path / "tiny-sweep" / "trials") == ["00007.json"]
    assert here.trials() == [TRIAL]


def test_half_a_file_of_a_killed_process_is_no_trial(tmp_path: Path) -> None:
    here = journal(tmp_path)
    here.write(TRIAL)
    (tmp_path / "tiny-sweep" / "trials" / ".00008.json-x1y2").write_text('{"number": 8, "sta')
    assert here.trials() == [TRIAL]


def test_a_trial_that_has_not_ended_is_not_kept(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        journal(tmp_path).write({**TRIAL, "status": "running"})
    assert journal(tmp_path).trials() == []


def test_the_best_trial_is_the_earliest_of_the_greatest() -> None:
    values = [0.1, 0.4, None, 0.4, 0.3]
    found = best([{"number": number, "value": value} for number, value in enumerate(values)])
    assert found is not None
    assert found["number"] == 1
    assert best([{"number": 0, "value": None}]) is None
    assert best([{"number": 0, "value": 0.0}]) == {"number": 0, "value": 0.0}


def test_a_new_sweep_says_what_was_asked(tmp_path: Path) -> None:
    opened(tmp_path, resume=False, overrides=("mine.alpha=0.5,0.8",))
    asked = json.loads((tmp_path / "tiny-sweep" / "sweep.json").read_text())
    assert asked["inputs"] == INPUTS
    assert asked["space"]["mine.alpha"] == "0.5 to 0.8"
    assert asked["settings"]["stage2.epochs"] == 100


def test_passwords_are_not_kept_and_no_change(tmp_path: Path) -> None:
    data = {"format": "fashioniq", "root": "https://ann:secret@host/set"}
    opened(tmp_path, resume=False, data=data).write(TRIAL)
    path = tmp_path / "tiny-sweep" / "sweep.json"
    assert "secret" not in path.read_text()
    assert opened(tmp_path, resume=True, data=data).trials() == [TRIAL]
    path.write_text(path.read_text().replace("***", "secret"))  # of an earlier version
    assert opened(tmp_path, resume=True, data=data).trials() == [TRIAL]


def test_the_same_command_goes_on_with_the_sweep_that_is_there(tmp_path: Path) -> None:
    opened(tmp_path, resume=False).write(TRIAL)
    assert opened(tmp_path, resume=False).trials() == [TRIAL]
    assert "was started with other settings" in refused(tmp_path, resume=False, seed=3)


def test_a_sweep_that_ended_before_its_first_trial_did_is_started_again(tmp_path: Path) -> None:
    opened(tmp_path, resume=False)
    opened(tmp_path, resume=False, seed=3)
    asked = json.loads((tmp_path / "tiny-sweep" / "sweep.json").read_text())
    assert asked["settings"]["seed"] == 3


def test_an_auto_that_an_earlier_version_noted_is_as_fp32(tmp_path: Path) -> None:
    opened(tmp_path, resume=False).write(TRIAL)
    opened(tmp_path, resume=True, stage2={"precision": "fp32"})
    refusal = refused(tmp_path, resume=True, stage2={"precision": "bf16"})
    assert "stage2.precision 'bf16' instead of 'auto'" in refusal


def test_the_arithmetic_of_a_sweep_stays_and_auto_is_settled_later(tmp_path: Path) -> None:
    opened(tmp_path, resume=False, stage2={"precision": "bf16"}).write(TRIAL)
    opened(tmp_path, resume=True)  # auto, before the cluster is asked
    refusal = refused(tmp_path, resume=True, stage2={"precision": "fp32"})
    assert "stage2.precision 'fp32' instead of 'bf16'" in refusal


def test_a_setting_that_was_new_since_then_is_no_change(tmp_path: Path) -> None:
    opened(tmp_path, resume=False).write(TRIAL)
    file = tmp_path / "tiny-sweep" / "sweep.json"
    noted = json.loads(file.read_text())
    del noted["settings"]["data.title"]
    noted["settings"]["adapt.logit_scale"] = 100.0  # the default until then, of what is left out
    file.write_text(json.dumps(noted))
    assert opened(tmp_path, resume=True).trials() == [TRIAL]


def test_a_mistake_is_found_before_there_are_features(tmp_path: Path) -> None:
    here, space = journal(tmp_path), make_space(config(tmp_path), [])
    here.check(space, resume=False)
    with pytest.raises(RunError, match="there is no sweep to resume"):
        here.check(space, resume=True)
    assert not (tmp_path / "tiny-sweep" / "sweep.json").exists()
    opened(tmp_path, resume=False).write(TRIAL)
    here.check(space, resume=True)
    here.check(space, resume=False)
    with pytest.raises(RunError, match=r"mine\.alpha '0\.5 to 0\.8' instead of '0\.4 to 0\.7'"):
        here.check(make_space(config(tmp_path), ["mine.alpha=0.5,0.8"]), resume=True)
    with pytest.raises(RunError, match="seed 3 instead of 0"):
        here.check(make_space(config(tmp_path, seed=3), []), resume=True)


def test_a_range_that_the_size_of_the_features_has_bounded_is_no_mistake(tmp_path: Path) -> None:
    here, asked = journal(tmp_path), ["stage2.bilinear_dim"]
    with here.opened(make_space(config(tmp_path), asked, dim=80), INPUTS, {}, resume=False):
        here.write(TRIAL)
    here.check(make_space(config(tmp_path), asked), resume=True)
    with pytest.raises(RunError, match="other settings"):
        here.check(make_space(config(tmp_path), []), resume=True)


def test_a_sweep_that_is_not_there_cannot_be_resumed(tmp_path: Path) -> None:
    assert refused(tmp_path, resume=True) == (
        f"there is no sweep to resume in {tmp_path / 'tiny-sweep'}\n"
        "  to do:    start it without --resume"
    )


def test_the_same_sweep_is_resumed(tmp_path: Path) -> None:
    opened(tmp_path, resume=False).write(TRIAL)
    assert opened(tmp_path, resume=True).trials() == [TRIAL]


@pytest.mark.parametrize(
    "changes",
    [
        {"tune": {"samples": 64, "concurrent": 2, "seeds": 9}},
        {"compute": {"threads": 3, "device": "cpu"}},
        {"tracking": {"enabled": False, "uri": "http://127.0.0.1:5000"}},
    ],
    ids=["tune", "compute", "tracking"],
)
def test_what_does_not_change_a_trial_may_change_on_resuming(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    opened(tmp_path, resume=False)
    opened(tmp_path, resume=True, **changes)


@pytest.mark.parametrize(
    ("changes", "differences"),
    [
        ({"stage2": {"epochs": 50}}, "stage2.epochs 50 instead of 100"),
        ({"seed": 3}, "seed 3 instead of 0"),
        ({"tune": {"metric": "recall@50"}}, "tune.metric 'recall@50' instead of 'recall@10'"),
        ({"overrides": ("mine.alpha=0.5,0.8",)}, "mine.alpha '0.5 to 0.8' instead of '0.4 to 0.7'"),
        ({"overrides": ("stage2.k=none",)}, "stage2.k None instead of '1 to 6'"),
        ({"overrides": ("stage2.dropout=none",)}, "stage2.dropout None instead of '0 to 0.7'"),
        ({"inputs": {"embed": "e1", "mine": "m2"}}, "mine 'm2' instead of 'm1'"),
    ],
)
def test_another_sweep_is_not_resumed_and_what_changed_is_told(
    tmp_path: Path, changes: dict[str, Any], differences: str
) -> None:
    opened(tmp_path, resume=False).write(TRIAL)
    message = refused(tmp_path, resume=True, **changes)
    assert message == (
        f"the sweep in {tmp_path / 'tiny-sweep'} was started with other settings\n"
        f"  got:      {differences}\n"
        "  to do:    go on with the settings it was started with, or start another by --sweep NAME"
    )
    assert journal(tmp_path).trials() == [TRIAL]


def test_a_sweep_over_an_encoder_that_was_trained_anew_does_not_go_on(tmp_path: Path) -> None:
    opened(tmp_path, resume=False, made_with={"encoder": "A", "stage1": "B"}).write(TRIAL)
    opened(tmp_path, resume=True, made_with={"encoder": "A", "stage1": "B"})
    message = refused(tmp_path, resume=False, made_with={"encoder": "A", "stage1": "C"})
    assert message.endswith(
        "was started with other weights\n"
        "  got:      weights of stage1 that are others now\n"
        "  to do:    start another by --sweep NAME"
    )
    asked = json.loads((tmp_path / "tiny-sweep" / "sweep.json").read_text())
    del asked["weights"]  # of an earlier raycd
    (tmp_path / "tiny-sweep" / "sweep.json").write_text(json.dumps(asked))
    opened(tmp_path, resume=True, made_with={"encoder": "A", "stage1": "C"})


def test_many_changes_are_cut(tmp_path: Path) -> None:
    opened(tmp_path, resume=False)
    stage2 = {
        "epochs": 50,
        "lr": 1.0,
        "dropout": 0.1,
        "logit_scale": 10.0,
        "batch_size": 7,
        "decay": "cosine",
    }
    message = refused(tmp_path, resume=True, stage2=stage2)
    assert message.count(" instead of ") == 5
    assert "; ...\n" in message


def test_two_processes_do_not_work_on_one_sweep(tmp_path: Path) -> None:
    first, space = journal(tmp_path), make_space(config(tmp_path), [])
    with first.opened(space, INPUTS, {}, resume=False):
        assert f"process {os.getpid()} works on it" in refused(tmp_path, resume=True)


def test_the_folder_of_a_pipelines_run_is_no_sweep(tmp_path: Path) -> None:
    pipeline.run_folder(config(tmp_path))
    with pytest.raises(RunError, match="belongs to another run") as caught:
        Journal(str(tmp_path / "tiny"), str(tmp_path / "tiny"))
    assert "kind = 'sweep'" in str(caught.value)


def test_the_folder_of_a_sweep_is_no_pipelines_run(tmp_path: Path) -> None:
    opened(tmp_path, resume=False)
    with pytest.raises(RunError, match="belongs to another run"):
        pipeline.run_folder(config(tmp_path, name="tiny-sweep"))


def test_a_sweep_of_another_run_is_refused(tmp_path: Path) -> None:
    opened(tmp_path, resume=False)
    with pytest.raises(RunError, match="belongs to another run") as caught:
        Journal(str(tmp_path / "tiny-sweep"), str(tmp_path / "other"))
    assert f"of = '{tmp_path / 'tiny'}'" in str(caught.value)
