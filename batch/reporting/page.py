"""The page that every report is: one HTML file with its styles in it, no script and no network."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from batch.errors import one_line

LAYOUTS = Path(__file__).parent  # of page.html, which a report's template extends
Filters = Mapping[str, Callable[[Any], str]]


def visible(value: Any) -> Any:
    """A text with no control character and no mark of direction left in it; markup that is ours stays."""
    return one_line(value) if type(value) is str else value


def breakable(name: str) -> Markup:
    """A name that may be broken behind its underscores."""
    return Markup(str(escape(one_line(name))).replace("_", "_<wbr>"))


def render_page(template: Path, filters: Filters | None = None, **values: Any) -> str:
    """The page of `template`, with every value escaped; a name that it is not given is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, LAYOUTS]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=visible,
    )
    environment.filters.update({"breakable": breakable, **(filters or {})})
    return environment.get_template(template.name).render(values)
