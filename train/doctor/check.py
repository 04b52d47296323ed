"""One finding of the doctor, and the names of all twelve, in their order."""

import dataclasses
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from batch.errors import one_line

NAMES = (
    "prompt ids",
    "prompt is a prefix",
    "end of turn",
    "nothing cut",
    "loss mask",
    "gold answers",
    "three arms",
    "grammar fires",
    "adapter lint",
    "adapter acts",
    "4-bit skew",
    "decoding settings",
)


@dataclasses.dataclass(frozen=True)
class Check:
    """`detail` says what was seen, and on a failure what to do. It never holds request text."""

    name: str
    ok: bool
    detail: str

    def __str__(self) -> str:
        return f"{'ok  ' if self.ok else 'FAIL'}  {self.name:<18}  {self.detail}"


def show(checks: Sequence[Check], console: Console) -> None:
    """A line for each check; on a terminal its words wrap beside its name."""
    if not console.is_terminal:
        for check in checks:
            console.print(Text(one_line(str(check))), soft_wrap=True)
        return
    table = Table.grid(padding=(0, 2, 0, 0))
    for name in ("verdict", "name", "detail"):
        table.add_column(no_wrap=name != "detail")
    for check in checks:
        table.add_row(
            *(Text(one_line(cell)) for cell in ("ok" if check.ok else "FAIL", check.name, check.detail))
        )
    console.print(table)


def judge(name: str, problems: list[str], healthy: str) -> Check:
    """The check fails on the first of `problems`; the number of the others is said."""
    if not problems:
        return Check(name, True, healthy)
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return Check(name, False, problems[0] + more)
