"""`--choose`: a setting whose value each row chooses for itself, on the selection split."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from jobs.comparison.cells import Cell, Record
from jobs.comparison.plan import DROPOUT, PSEUDO, Entry, Plan, acts_on_pseudo, check_own, own_value
from jobs.comparison.results import FAILED, TITLES, in_line
from raycd.config import Config
from raycd.errors import ConfigError
from raycd.model import fusion


@dataclass(frozen=True)
class Choice:
    """Values of a setting that rows choose from."""

    setting: str
    values: Sequence[Any]
    variant: str
    """With or without pseudo triplets: what it is chosen by."""

    def entries(self, plan: Plan) -> Iterator[tuple[Entry, list[Entry]]]:
        """Yield each row that chooses, beside what it would be with each of the values.

        A row that --set gives a value keeps it, and a head without dropout chooses none.
        """
        for entry in plan.entries:
            acts = self.setting != DROPOUT or fusion.head_class(entry.head).drops
            if acts and self.setting not in entry.settings:
                yield entry, list(self.of(entry))

    def of(self, entry: Entry) -> Iterator[Entry]:
        """Yield a row with each of the values."""
        for value in self.values:
            settings = {**entry.settings, self.setting: value}
            yield replace(entry, settings=settings, option="--choose")

    def check(self, plan: Plan) -> None:
        """Raise ConfigError where no row chooses."""
        if not any(True for _ in self.entries(plan)):
            raise ConfigError(
                "no row has anything to choose",
                got=f"--choose {self.setting}",
                expected="a row to which --set gives no value, and for stage2.dropout a head that "
                "has dropout",
                do="leave it out",
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
        failed = [
            f"{FAILED} of the choice: {cell.name}: {in_line(found[cell.path]['error'])}"
            for cell in cells
            if "error" in found[cell.path]
        ]
        best = {}
        for entry, of_row in trials:
            score = {id(own): _score([found[cell.path] for cell in mine]) for own, mine in of_row}
            best[entry.name] = max((own for own, _ in of_row), key=lambda own: score[id(own)])
        chosen = [f"{name} {entry.settings[self.setting]}" for name, entry in best.items()]
        note = (
            f"{self.setting}, chosen on selection of {', '.join(map(str, self.values))}, "
            f"{TITLES[self.variant]}, at {config.stage2.epochs} epochs: {', '.join(chosen)}."
        )
        entries = [best.get(entry.name, entry) for entry in plan.entries]
        return replace(plan, entries=entries, notes=[*plan.notes, note, *failed])


def _score(records: Sequence[Record]) -> float:
    if any(record.get("selection") is None for record in records):  # it has failed
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
    of_pseudo = acts_on_pseudo(name)
    if of_pseudo and PSEUDO not in plan.variants:
        raise ConfigError(
            "--choose names a setting of pseudo triplets, and no row has any",
            got=name,
            expected="a setting that changes the trainings",
            do="give --variants original,pseudo",
        )
    if config.stage2.select_on != "selection":
        raise ConfigError(
            "--choose has no split to choose on",
            got=f"stage2.select_on {config.stage2.select_on}",
            expected="selection: a value chosen on val is not compared on it",
            do="give --stage2.select_on selection",
        )
    choice = Choice(name, values, PSEUDO if of_pseudo else plan.variants[0])
    for entry in plan.entries:
        for own in choice.of(entry) if name not in entry.settings else ():
            own.config(config, PSEUDO)  # refuses impossible values
    return choice
