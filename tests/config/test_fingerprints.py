"""Each setting is in some stage's fingerprint, or in the list of those that change no result."""

from raycd.config import field_types
from raycd.runtime.pipeline import NOT_THE_RESULT, STAGES, within

IN_STAGES = {setting for stage in STAGES for setting in stage.settings}


def test_every_setting_is_in_a_fingerprint_or_in_the_list_of_those_that_change_no_result() -> None:
    neither = [name for name in field_types() if not within(name, [*IN_STAGES, *NOT_THE_RESULT])]
    assert neither == []


def test_no_setting_is_in_both() -> None:
    """Let the list take single settings out of a section that a stage names, nothing else."""
    assert [name for name in IN_STAGES if within(name, NOT_THE_RESULT)] == []
    stray = [name for name in NOT_THE_RESULT if within(name, sorted(IN_STAGES))]
    assert [name for name in stray if name not in field_types()] == []


def test_every_name_of_both_exists() -> None:
    names = list(field_types())
    for entry in (*IN_STAGES, *NOT_THE_RESULT):
        assert any(within(name, [entry]) for name in names), entry


def test_the_shards_of_the_miner_are_in_its_fingerprint() -> None:
    [mine] = [stage for stage in STAGES if stage.name == "mine"]
    assert "mine.worker_mib" in mine.settings
