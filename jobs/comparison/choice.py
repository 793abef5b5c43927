"""`--choose`: a setting whose value each row chooses for itself, on the selection split."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from jobs.comparison.cells import Cell, Record
from jobs.comparison.plan import Entry, Plan, check_own, own_value
from jobs.comparison.results import TITLES
from raycd.config import Config
from raycd.errors import ConfigError
from raycd.model import fusion

_DROPOUT = "stage2.dropout"


@dataclass(frozen=True)
class Choice:
    """Values of a setting that rows choose from."""

    setting: str
    values: Sequence[Any]

    def entries(self, plan: Plan) -> Iterator[tuple[Entry, list[Entry]]]:
        """Yield each row that chooses, beside what it would be with each of the values.

        A row that --set gives a value keeps it, and a head without dropout chooses none.
        """
        for entry in plan.entries:
            acts = self.setting != _DROPOUT or fusion.head_class(entry.head).drops
            if acts and self.setting not in entry.settings:
                yield (
                    entry,
                    [
                        replace(entry, settings={**entry.settings, self.setting: value})
                        for value in self.values
                    ],
                )

    def made(
        self,
        config: Config,
        plan: Plan,
        cells_of: Callable[[Entry], Mapping[int, Cell]],
        train: Callable[[Sequence[Cell]], Mapping[str, Record]],
    ) -> Plan:
        """Return the plan whose rows have the values that they chose, and a note that says so.

        The best value has the greatest mean over the seeds of `stage2.select_by` at the best epoch;
        of equal ones the first. One of which a training failed is not chosen, unless all are so.

        Args:
            cells_of: Gives a row's trainings by seed.
            train: Trains those without a result, and gives the results of all by path.
        """
        trials = [
            (entry, [(own, list(cells_of(own).values())) for own in with_values])
            for entry, with_values in self.entries(plan)
        ]
        cells = [cell for _, of_row in trials for _, own in of_row for cell in own]
        found = train(sorted(cells, key=lambda cell: cell.config.seed))
        best = {}
        for entry, of_row in trials:
            score = {id(own): _score([found[cell.path] for cell in mine]) for own, mine in of_row}
            best[entry.name] = max((own for own, _ in of_row), key=lambda own: score[id(own)])
        if not best:
            return plan
        chosen = [f"{name} {entry.settings[self.setting]}" for name, entry in best.items()]
        note = (
            f"{self.setting}, chosen on selection of {', '.join(map(str, self.values))}, "
            f"{TITLES[plan.variants[0]]}, at {config.stage2.epochs} epochs: {', '.join(chosen)}."
        )
        entries = [best.get(entry.name, entry) for entry in plan.entries]
        return replace(plan, entries=entries, notes=[*plan.notes, note])


def _score(records: Sequence[Record]) -> float:
    if any("error" in record for record in records):
        return float("-inf")
    return fmean(record["selection"] for record in records)


def make_choice(text: str, config: Config, plan: Plan) -> Choice | None:
    """Return the choice that SETTING=VALUE,VALUE asks for; None where the text is empty.

    Raises ConfigError for a setting that a row cannot have of its own, for impossible values, and
    where nothing is measured on the selection split.
    """
    if not text:
        return None
    name, equals, listed = text.partition("=")
    values = own_value("--choose", text, f"[{listed}]")
    if not equals or not isinstance(values, list) or len(values) < 2:
        raise ConfigError(
            "--choose cannot be read",
            got=text,
            expected="SETTING=VALUE,VALUE, such as stage2.dropout=0,0.2,0.5",
        )
    check_own(name, "--choose")
    choice = Choice(name, values)
    for _, with_values in choice.entries(plan):
        for entry in with_values:
            entry.config(config, plan.variants[0])  # refuses impossible values
    if config.stage2.select_on != "selection":
        raise ConfigError(
            "--choose has no split to choose on",
            got=f"stage2.select_on {config.stage2.select_on}",
            expected="selection: a value chosen on val is not compared on it",
            do="give --stage2.select_on selection",
        )
    return choice
