"""The lines of the scorecard: what each asks, how often, and the function that asks it."""

import importlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Line:
    """`module.function(n, random, figures)` yields one text a case: "" if it went right, else what was wrong. `figures` takes what was measured.

    quick, full: n; with 0 a line is left to --full. `only`: what keeps the line from being green here whatever is counted; "" for nothing.
    """

    id: str
    what: str
    module: str
    quick: int
    full: int
    only: str = ""

    def run(self, n, random, figures):
        module = importlib.import_module(f"{__package__}.{self.module}")
        return getattr(module, self.id.lower())(n, random, figures)


LINES = {
    line.id: line
    for line in (
        Line("R1", "hostile and odd files, each tab, by HTTP", "uploads", 1, 4),
        Line("R2", "damaged files end in frames or a sentence", "uploads", 40, 5000),
        Line("R3", "values of any kind, by function", "requests", 10_000, 100_000),
        Line("R4", "requests of any kind, by HTTP", "requests", 500, 5000),
        Line("R5", "fine-tune killed, bit for bit", "training", 5, 50),
        Line("R6", "damaged checkpoints are noticed", "training", 20, 200),
        Line("R7", "disk full at every write", "training", 1, 1),
        Line("R8", "cancels: one holder, freed in 1.2 steps", "load", 10, 100),
        Line("R9", "out of memory at every stage, then well", "load", 1, 3, "simulated: no GPU here"),
        Line("R10", "eight users, none lost, none crossed", "load", 40, 200),
        Line("R11", "a hundred at once: the queue and no more", "load", 100, 100),
        Line("R12", "thousands of clips: nothing grows", "load", 0, 2000, "24 h are extrapolated"),
        Line("R13", "tabs closed at any moment", "load", 5, 50),
        Line("R14", "training beside generating, both as alone", "training", 0, 1),
        Line("R15", "faults at the start, one line each", "startup", 1, 1),
        Line("R16", "nothing is read, fetched or run for strangers", "security", 1, 1),
        Line("R17", "what the code may not contain", "security", 1, 1),
        Line("R18", "every error says what and what to do", "requests", 1, 1),
    )
}
