"""Whether tonight's answers look like the last ones: the population stability index against an earlier
manifest.

For shares e (earlier) and a (actual) over the same bins,  PSI = Σ (a - e) · ln(a / e)  (Siddiqi, Credit Risk
Scorecards, 2006, ch. 10: below 0.10 no change to speak of, from 0.25 on a shift). Counts are smoothed by half
a row a bin, so that an empty bin is finite. From n and m rows of one and the same population, PSI · nm / (n +
m) follows about a χ² distribution with bins - 1 degrees of freedom (Yurdakul and Naranjo, J. Risk Model
Validation 14(4), 2020); `by_chance` is its 95 % quantile, so that a small backlog's noise is not taken for
drift.
"""

import contextlib
import math
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from batch.contract.json_text import as_json
from batch.errors import BatchRouteError, shown
from batch.reporting.tally import SCORE_BINS, Tally
from batch.storage.location import Location
from batch.storage.manifest import manifest_location, read_manifest

WARN, ALARM = 0.10, 0.25
DECILES = 10
NEIGHBOURS = 20  # manifests in the output's folder that are looked at, newest first
ONE_SIDED_95 = 1.6448536269514722  # the normal distribution's 95 % quantile

EarlierRun = dict[str, Any]  # `output`, `sha256` and `tally` of the run that is compared with


def psi(before: Sequence[float], now: Sequence[float]) -> float:
    """Population stability index of two counts over the same bins; 0 where either is empty."""
    if not sum(before) or not sum(now):
        return 0.0
    old, new = sum(before) + len(before) / 2, sum(now) + len(now) / 2
    shares = [((b + 0.5) / old, (n + 0.5) / new) for b, n in zip(before, now, strict=True)]
    return sum((a - e) * math.log(a / e) for e, a in shares)


def by_chance(bins: int, before: float, now: float) -> float:
    """What `psi` stays below in 95 % of cases where nothing changed; χ²'s quantile after Wilson and Hilferty
    (1931).
    """
    k = bins - 1
    if k < 1 or not before or not now:
        return 0.0
    return k * (1 - 2 / (9 * k) + ONE_SIDED_95 * math.sqrt(2 / (9 * k))) ** 3 * (1 / before + 1 / now)


def level(value: float) -> str:
    return "alarm" if value >= ALARM else "warn" if value >= WARN else "ok"


def compare(previous: EarlierRun | None, tally: Tally) -> dict[str, Any] | None:
    """The manifest's `drift`: a measure for each field's label mix and for its and the product's score
    deciles.
    """
    if previous is None:
        return None
    before = Tally.from_json(previous["tally"])
    measures = []
    for field in (name for name in tally.values if name in before.values):
        labels = sorted({*tally.values[field], *before.values[field]})
        mixes = [
            [counts[label] for label in labels] for counts in (before.values[field], tally.values[field])
        ]
        measures.append(_measure(field, "labels", *mixes))
    for name in (name for name in tally.scores if name in before.scores):
        measures.append(_measure(name, "score deciles", *_deciles(before.scores[name], tally.scores[name])))
    return {"previous": previous, "measures": measures}


def earlier_run(output: str, job: Mapping[str, Any]) -> EarlierRun | None:
    """The run to compare with: the one that `output` holds now; else the newest in its folder under the same
    contract.

    Read it before the manifest is replaced. Where `output` holds this very job, which is done anew, the run
    that that one was compared with is taken.
    """
    own = read_manifest(manifest_location(output))
    if own is not None:
        if own["job"] == as_json(job):
            redone: EarlierRun | None = own["drift"] and own["drift"]["previous"]
            return redone
        return _as_earlier(own, output) if _comparable(own, job) else None
    location = Location.of(output)
    if not location.local:
        return None
    for path in _newest(Path(location.path).parent.glob("*.manifest.json")):
        try:
            manifest = read_manifest(Location.of(path))
        except BatchRouteError:  # somebody's file: a comparison must not cost the run
            continue
        if (
            manifest is not None
            and _comparable(manifest, job)
            and manifest["job"]["contract"] == job["contract"]
        ):
            return _as_earlier(manifest, path.name.removesuffix(".manifest.json"))
    return None


def _comparable(manifest: Mapping[str, Any], job: Mapping[str, Any]) -> bool:
    """Whether the same kind of engine made a manifest's answers."""
    return bool(manifest["job"]["engine"] == job["engine"])


def _as_earlier(manifest: Mapping[str, Any], output: str) -> EarlierRun:
    return {
        "output": shown(output).rpartition("/")[2],
        "sha256": manifest["output"]["sha256"],
        "tally": manifest["run"]["tally"],
    }


def _newest(paths: Iterable[Path]) -> list[Path]:
    """The newest `NEIGHBOURS` files among them. What is none, as a pipe, or cannot be asked, as a link to
    itself, is left out: a comparison must not cost the run.
    """
    found = []
    for path in paths:
        with contextlib.suppress(OSError):
            status = path.stat()
            if stat.S_ISREG(status.st_mode):
                found.append((status.st_mtime_ns, path))
    return [path for _, path in sorted(found, reverse=True)[:NEIGHBOURS]]


def _measure(field: str, of: str, before: Sequence[float], now: Sequence[float]) -> dict[str, Any]:
    value = psi(before, now)
    return {
        "field": field,
        "of": of,
        "psi": value,
        "by_chance": by_chance(len(now), sum(before), sum(now)),
        "level": level(value),
    }


def _deciles(before: Mapping[str, int], now: Mapping[str, int]) -> tuple[list[int], list[int]]:
    """Counts over the earlier scores' deciles, as near as the tally's bins allow: where many scores are
    alike, fewer.
    """
    rows, seen, decile = sum(before.values()), 0, 1
    old, new = [0], [0]
    for name in SCORE_BINS:
        old[-1] += before.get(name, 0)
        new[-1] += now.get(name, 0)
        seen += before.get(name, 0)
        if decile * rows <= seen * DECILES and seen < rows:
            decile = seen * DECILES // rows + 1
            old.append(0)
            new.append(0)
    return old, new
