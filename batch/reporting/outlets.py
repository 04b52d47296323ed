"""Where a run tells of itself: JSON lines, a Prometheus textfile, an HTML report."""

import dataclasses
from pathlib import Path

from batch.storage.location import check_writable


@dataclasses.dataclass(frozen=True)
class Outlets:
    """Where a run tells of itself; None and False are silent."""

    log_json: bool = False
    metrics: Path | None = None
    report: Path | None = None

    def check(self) -> None:
        """Refuse places that cannot be written before any work is done: `InputError`."""
        for option, path in (("--metrics", self.metrics), ("--report", self.report)):
            if path:
                check_writable(path, option)
