"""Where text of rows, labels, ids and file names is shown: as it is, with nothing in it obeyed."""

from typing import Any

from rich.console import Console
from rich.text import Text

from batch.errors import one_line


class PlainConsole(Console):
    """No markup, no emoji codes, no control characters: in what is printed, and in a table's cells."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, markup=False, emoji=False, highlight=False)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str("\n".join(map(one_line, text.split("\n"))), **options)
