"""What is proposed next and what is ended early, in a fresh sweep and in one that goes on."""

from __future__ import annotations

from typing import Any

import pytest
from optuna.trial import TrialState
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from raycd.config import Config
from tune.search import Budget, _Ended, grid, make_budget, make_proposer, make_scheduler, samples
from tune.space import Space, make_space

CONTINUE, STOP = TrialScheduler.CONTINUE, TrialScheduler.STOP
DEFAULT = {"mine.alpha": 0.6, "stage2.k": 5}


def space_of(**tune: Any) -> Space:
    """alpha from 0.4 to 0.7 and k from 1 to 6."""
    config = Config.model_validate({"mine": {"alpha": 0.6}, "stage2": {"k": 5}, "tune": tune})
    out = ("mine.eps_low", "mine.eps_high", "mine.s_max", "stage2.dropout")
    return make_space(config, [f"{name}=none" for name in out])


def ended(
    number: int, alpha: float, k: int, value: float | None, *epochs: tuple[int, float]
) -> dict[str, Any]:
    """Return a trial's record; its epochs are (triplets seen, score)."""
    proposed = {"mine.alpha": alpha, "stage2.k": k}
    entries = [{"seen": seen, "score": score} for seen, score in epochs]
    return {"number": number, "proposed": proposed, "value": value, "epochs": entries}


def proposals(search: Any, count: int) -> list[dict[str, Any]]:
    return [dict(search.suggest(f"trial-{i}")) for i in range(count)]


@pytest.mark.parametrize("kind", ["tpe", "random"])
def test_a_fresh_sweep_tries_the_default_first_and_then_other_settings_of_the_space(
    kind: str,
) -> None:
    space = space_of(search=kind)
    first, *others = proposals(make_proposer(space, []), 8)
    assert first == DEFAULT
    for proposed in others:
        assert proposed != DEFAULT
        assert all(value in space.ranges[name] for name, value in proposed.items())


def test_a_default_outside_of_the_space_is_not_tried() -> None:
    space = make_space(space_of().config, ["mine.alpha=0.8,0.9"])
    assert all(
        0.8 <= proposed["mine.alpha"] <= 0.9 for proposed in proposals(make_proposer(space, []), 5)
    )


@pytest.mark.parametrize("kind", ["tpe", "random"])
def test_the_same_seed_proposes_the_same_and_another_seed_others(kind: str) -> None:
    first, again = (proposals(make_proposer(space_of(search=kind), []), 4) for _ in range(2))
    space = space_of(search=kind)
    other = proposals(
        make_proposer(Space(space.config.model_copy(update={"seed": 1}), space.ranges), []), 4
    )
    assert first == again
    assert first[1:] != other[1:]


@pytest.mark.parametrize("kind", ["tpe", "random"])
def test_a_resumed_sweep_does_not_propose_the_default_again(kind: str) -> None:
    before = [ended(0, 0.6, 5, 0.3, (10, 0.3)), ended(1, 0.5, 2, 0.4, (10, 0.4))]
    fresh = proposals(make_proposer(space_of(search=kind), []), 6)
    resumed = proposals(make_proposer(space_of(search=kind), before), 5)
    assert not any(proposed in [DEFAULT, *fresh] for proposed in resumed)


def test_a_sweep_killed_before_its_default_has_ended_tries_the_default_on_resuming() -> None:
    [proposed] = proposals(make_proposer(space_of(), [ended(1, 0.5, 2, 0.4, (10, 0.4))]), 1)
    assert proposed == DEFAULT


def test_a_resumed_proposer_knows_the_trials_that_have_ended_the_failed_ones_too() -> None:
    before = [
        ended(0, 0.6, 5, 0.3, (10, 0.3)),
        ended(1, 0.5, 2, None),
        ended(2, 0.45, 1, 0.2, (10, 0.2)),
    ]
    proposer: Any = make_proposer(space_of(), before)
    known = proposer._ot_study.get_trials()
    assert [(trial.state, trial.value, trial.params) for trial in known] == [
        (TrialState.COMPLETE, 0.3, DEFAULT),
        (TrialState.FAIL, None, {"mine.alpha": 0.5, "stage2.k": 2}),
        (TrialState.COMPLETE, 0.2, {"mine.alpha": 0.45, "stage2.k": 1}),
    ]


def test_a_resumed_tpe_searches_where_ended_trials_were_good() -> None:
    before = [ended(0, 0.6, 5, 0.1, (9, 0.1))]
    before += [
        ended(i, 0.4 + 0.01 * i, 1 + i % 6, 0.9 if i < 5 else 0.1, (9, 0.9)) for i in range(1, 30)
    ]
    found = [
        proposed["mine.alpha"] for proposed in proposals(make_proposer(space_of(), before), 20)
    ]
    assert sum(alpha < 0.5 for alpha in found) > 14  # a third, were it ignorant of them


def test_a_grid_gives_every_combination_once() -> None:
    space = space_of(search="grid", grid_points=3)
    asked = proposals(make_proposer(space, []), samples(space))
    assert samples(space) == 9
    assert sorted((proposed["mine.alpha"], proposed["stage2.k"]) for proposed in asked) == [
        *((0.4, 1), (0.4, 4), (0.4, 6)),
        *((0.55, 1), (0.55, 4), (0.55, 6)),
        *((0.7, 1), (0.7, 4), (0.7, 6)),
    ]


def test_a_grid_ends_at_the_samples_and_goes_on_with_more() -> None:
    four, nine = (grid(space_of(search="grid", samples=count)) for count in (4, 9))
    assert len(four) == samples(space_of(search="grid", samples=4)) == 4
    assert nine[:4] == four


def test_a_resumed_grid_skips_what_was_tried() -> None:
    space = space_of(search="grid", grid_points=3)
    points = grid(space)
    before = [
        ended(i, point["mine.alpha"], point["stage2.k"], 0.5, (9, 0.5))
        for i, point in enumerate(points[:4])
    ]
    assert proposals(make_proposer(space, before), 5) == points[4:]


def test_the_budget_counts_triplets_of_k_epochs_of_originals_and_one_of_pseudo_triplets() -> None:
    config = Config.model_validate({"stage2": {"epochs": 20, "k": 5}})
    # 20 epochs: 3 of pseudo triplets (the 6th, 12th, 18th) and 17 of originals; grace: 5 and 1
    assert make_budget(config, 100, 1000) == Budget(grace=5 * 100 + 1000, total=17 * 100 + 3 * 1000)


def test_the_budget_of_chosen_lengths() -> None:
    config = Config.model_validate(
        {"stage2": {"epochs": 20, "k": 1}, "tune": {"epochs": 7, "grace": 3}}
    )
    assert make_budget(config, 100, 1000) == Budget(grace=1200, total=4 * 100 + 3 * 1000)


def test_the_budget_without_pseudo_triplets_is_of_originals_alone() -> None:
    config = Config.model_validate({"stage2": {"epochs": 20, "k": 5}})
    assert make_budget(config, 100, 0) == Budget(grace=600, total=2000)


def test_the_grace_is_no_longer_than_the_whole() -> None:
    config = Config.model_validate({"stage2": {"epochs": 4, "k": 5}})
    assert make_budget(config, 100, 1000) == Budget(grace=400, total=400)


def test_without_a_scheduler_or_room_for_a_halt_all_trials_train_to_the_end() -> None:
    assert (
        type(make_scheduler(space_of(scheduler="none").config.tune, Budget(10, 90), []))
        is FIFOScheduler
    )
    assert type(make_scheduler(space_of().config.tune, Budget(90, 90), [])) is FIFOScheduler


BEFORE = [
    ended(0, 0.6, 5, 0.5, (10, 0.3), (30, 0.5), (90, 0.4)),
    ended(1, 0.5, 1, 0.4, (10, 0.4), (30, 0.2), (90, 0.3)),
    ended(2, 0.4, 1, 0.1, (10, 0.1)),
    ended(3, 0.4, 2, None, (10, 0.2)),
]


def same_sweep() -> Any:
    """Return ASHA that has seen the trials of BEFORE as Ray Tune reports them, epoch by epoch."""
    asha: Any = make_scheduler(space_of(reduction=3).config.tune, Budget(10, 90), [])
    trials = {record["number"]: _Ended(f"live-{record['number']}") for record in BEFORE}
    for trial in trials.values():
        asha.on_trial_add(None, trial)
    for epoch in range(3):
        for record in BEFORE:
            if epoch < len(record["epochs"]):
                best = max(entry["score"] for entry in record["epochs"][: epoch + 1])
                result = {"seen": record["epochs"][epoch]["seen"], "value": best}
                asha.on_trial_result(None, trials[record["number"]], result)
                if epoch == len(record["epochs"]) - 1 and record["value"] is not None:
                    asha.on_trial_complete(None, trials[record["number"]], result)
    return asha


@pytest.mark.parametrize(
    ("results", "decisions"),
    [
        ([(10, 0.05)], [STOP]),
        ([(10, 0.29)], [STOP]),
        ([(9, 0.0), (10, 0.35), (30, 0.4)], [CONTINUE, CONTINUE, STOP]),
        ([(10, 0.35), (30, 0.49), (90, 0.6)], [CONTINUE, CONTINUE, STOP]),
        ([(12, 0.6), (40, 0.6), (89, 0.6), (90, 0.6)], [CONTINUE, CONTINUE, CONTINUE, STOP]),
    ],
)
def test_asha_of_a_resumed_sweep_decides_as_if_the_ended_trials_had_run_in_it(
    results: list[tuple[int, float]], decisions: list[str]
) -> None:
    resumed: Any = make_scheduler(space_of(reduction=3).config.tune, Budget(10, 90), BEFORE)
    for asha in (same_sweep(), resumed):
        new = _Ended("new")
        asha.on_trial_add(None, new)
        assert [
            asha.on_trial_result(None, new, {"seen": s, "value": v}) for s, v in results
        ] == decisions


def test_asha_of_a_resumed_sweep_has_the_rungs_of_the_same_sweep() -> None:
    resumed: Any = make_scheduler(space_of(reduction=3).config.tune, Budget(10, 90), BEFORE)
    rungs = [
        [(milestone, sorted(recorded.values())) for milestone, recorded in asha._brackets[0]._rungs]
        for asha in (resumed, same_sweep())
    ]
    assert rungs[0] == rungs[1] == [(90, [0.4, 0.5]), (30, [0.4, 0.5]), (10, [0.1, 0.2, 0.3, 0.4])]


def test_a_report_that_crosses_several_rungs_counts_at_each_of_them() -> None:
    asha: Any = make_scheduler(space_of(reduction=3).config.tune, Budget(10, 200), [])
    asha.on_trial_add(None, _Ended("long"))
    for seen, value in ((100, 0.5), (110, 0.6), (120, 0.7)):
        assert (
            asha.on_trial_result(None, _Ended("long"), {"seen": seen, "value": value}) == CONTINUE
        )
    rungs = {milestone: list(own.values()) for milestone, own in asha._brackets[0]._rungs}
    assert rungs == {90: [0.5], 30: [0.5], 10: [0.5]}
    asha.on_trial_add(None, _Ended("poor"))
    assert asha.on_trial_result(None, _Ended("poor"), {"seen": 100, "value": 0.4}) == STOP


def test_a_poor_trial_goes_on_where_asha_knows_no_other() -> None:
    asha: Any = make_scheduler(space_of(reduction=3).config.tune, Budget(10, 90), [])
    asha.on_trial_add(None, _Ended("new"))
    assert asha.on_trial_result(None, _Ended("new"), {"seen": 10, "value": 0.05}) == CONTINUE


def test_the_proposer_learns_what_a_trial_gave_and_which_have_failed() -> None:
    search: Any = make_proposer(space_of(), [])
    for name in ("good", "failed", "killed"):
        search.suggest(name)
    search.on_trial_result("failed", {"error": "ConfigError: no", "training_iteration": 1})
    search.on_trial_complete("good", {"value": 0.4, "training_iteration": 1})
    search.on_trial_complete("failed", {"error": "ConfigError: no", "training_iteration": 1})
    search.on_trial_complete("killed", error=True)
    states = [(trial.state, trial.value) for trial in search._ot_study.get_trials()]
    assert states == [(TrialState.COMPLETE, 0.4), (TrialState.FAIL, None), (TrialState.FAIL, None)]
