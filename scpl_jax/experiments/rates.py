"""The learning rate of each row of a table: the best of some short runs, by validation accuracy alone."""

import dataclasses
from collections.abc import Sequence

from scpl_jax.experiments.cells import Ledger
from scpl_jax.experiments.tables import Cell, Table, at_rate


@dataclasses.dataclass(frozen=True)
class Choice:
    """What is known of the learning rate of a row.

    Attributes:
      part: name of the part of the table.
      row: name of the row.
      wanted: the rates to be tried, ascending; none where the row's options say the rate.
      accuracies: rate -> validation accuracy of the run that tried it; None where bad numbers ended that run.
      fixed: the rate that the row's options say, or None.

    Example:
      >>> Choice("VGG8", "bp", (0.001, 0.003), {0.001: 0.5, 0.003: 0.5}).rate
      0.001
      >>> Choice("VGG8", "bp", (0.001, 0.003), {0.001: 0.5}).rate
    """

    part: str
    row: str
    wanted: tuple[float, ...] = ()
    accuracies: dict[float, float | None] = dataclasses.field(default_factory=dict)
    fixed: float | None = None

    @property
    def complete(self) -> bool:
        """Whether every rate was tried."""
        return all(rate in self.accuracies for rate in self.wanted)

    @property
    def rate(self) -> float | None:
        """The rate of the best validation accuracy, of equally good ones the smallest; None while it is not known."""
        if not self.wanted:
            return self.fixed
        rated = {rate: accuracy for rate, accuracy in self.accuracies.items() if accuracy is not None}
        if not self.complete or not rated:
            return None
        return min(rated, key=lambda rate: (-rated[rate], rate))


def choose(table: Table, searches: Ledger) -> list[Choice]:
    """The choice of every row, as far as the searches have come; none for a table that searches nothing.

    Args:
      table: as it was read.
      searches: the numbers of finished trials.
    """
    if not table.trials:
        return []
    found = []
    for part in table.parts:
        for row in table.rows[part]:
            trials = [trial for trial in table.trials if (trial.part, trial.row) == (part, row)]
            tried = {trial.rate: numbers for trial in trials if (numbers := searches.get(trial)) is not None}
            accuracies = {rate: numbers["validation_accuracy"] for rate, numbers in tried.items()}
            fixed = None if trials else _rate_of(table.cells, part, row)
            found.append(Choice(part, row, tuple(trial.rate for trial in trials), accuracies, fixed))
    return found


def _rate_of(cells: Sequence[Cell], part: str, row: str) -> float:
    """The rate among the arguments of a row's runs."""
    arguments = next(cell.arguments for cell in cells if (cell.part, cell.row) == (part, row))
    return float(arguments[arguments.index("--lr") + 1])


def decided(table: Table, choices: Sequence[Choice]) -> Table:
    """The table with the chosen rates among the arguments of its cells; those without a rate yet are put aside.

    Args:
      table: as it was read.
      choices: of its rows.
    """
    rates = {(choice.part, choice.row): choice.rate for choice in choices if choice.wanted}
    cells, undecided = [], []
    for cell in table.cells:
        place = (cell.part, cell.row)
        if place not in rates:
            cells.append(cell)
        elif (rate := rates[place]) is None:
            undecided.append(cell)
        else:
            cells.append(at_rate(cell, rate, table.task))
    return dataclasses.replace(table, cells=tuple(cells), undecided=tuple(undecided))
