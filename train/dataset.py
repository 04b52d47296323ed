"""Labelled requests: a file of JSON lines, CSV or Parquet → rows that the contract and its policy accept,
or a
`DatasetError` naming the line.

A row holds `id`, `request`, the contract's fields and, if the labeller wrote them down, `facts`, from which
the policy table must give exactly the labels. Evaluation reads rows without text fields and ids as well.
"""

import dataclasses
import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from batch.adapter.bundle import Bundle
from batch.adapter.references import find_upwards
from batch.contract.contract import Contract
from batch.contract.validation import storable
from batch.errors import DatasetError, InvalidAnswer, nearest
from batch.storage.digest import file_digest
from batch.storage.location import reason
from train import tables
from train.decisions import KEYS, Asked, Decision, parse, settled
from train.files import strict_json
from train.likeness import NEAR_DUPLICATE, Likeness, compared, signs

# keys for people and reports; training ignores them
NOTES = frozenset({"probe", "family", "source", "suggested", "why"}) | KEYS


@dataclasses.dataclass(frozen=True)
class Row:
    """One labelled request. `answer` holds every contract field, but for texts that an evaluation row leaves
    out.
    """

    id: str
    request: str
    answer: Mapping[str, Any]
    facts: Mapping[str, Any] | None
    path: Path
    line: int
    note: str | None = None  # the row's `probe`: what it is there to show

    @property
    def asked(self) -> Asked:
        return self.id, self.request

    @property
    def where(self) -> str:
        return f"{self.path}:{self.line}"

    def as_json(self) -> dict[str, Any]:
        """The row as a line of a dataset holds it."""
        facts = {} if self.facts is None else {"facts": self.facts}
        return {"id": self.id, "request": self.request, **self.answer, **facts}


def load_rows(
    path: str | Path, contract: Contract, *, evaluation: bool = False, decisions: bool = False
) -> list[Row]:
    """Read and check a JSONL file. Raises `DatasetError` for the first line that is wrong.

    With `evaluation`, text fields and ids may be absent; a row without an id is named by its line. With
    `decisions`, several rows may have one text, or one id with other texts, as those of the backlogs do that
    people decided.
    """
    rows = []
    for row in read_rows(path, contract, evaluation=evaluation):
        if isinstance(row, DatasetError):
            raise row
        rows.append(row)
    if not rows:
        raise DatasetError(f"{path}: holds no rows; add labelled requests")
    _refuse_repeats(rows, decisions)
    return rows


def read_rows(
    path: str | Path, contract: Contract, *, evaluation: bool = False
) -> Iterator[Row | DatasetError]:
    """Each line's row, or what is wrong with the line. Raises `DatasetError` for a file that cannot
    be read.
    """
    path = Path(path)
    if path.suffix.lower() in tables.SUFFIXES:
        yield from _table_rows(path, contract, evaluation)
        return
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError:
        raise DatasetError(f"no dataset at {path}; give the path of a file of labelled requests") from None
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read: {reason(error)}; give the path of a file") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: {error}; save it as UTF-8 text") from error
    taken = _reviewed(lines, path, contract)
    for number, text in enumerate(lines, start=1):
        if not text.strip() or (number in taken and taken[number] is None):
            continue
        try:
            if number in taken:
                raise DatasetError(f"{path}:{number}: {taken[number]}")
            yield _row(text, path, number, contract, evaluation)
        except DatasetError as error:
            yield error


def _table_rows(path: Path, contract: Contract, evaluation: bool) -> Iterator[Row | DatasetError]:
    for line, content in tables.read_table(path, contract):
        try:
            yield check_row(content, path, line, contract, evaluation=evaluation)
        except DatasetError as error:
            yield error


def _reviewed(lines: Sequence[str], path: Path, contract: Contract) -> dict[int, str | None]:
    """Of a file of reviewers' decisions, the lines that are not rows, each with what is wrong with it, if
    anything.
    """
    found: list[Decision] = []
    taken: dict[int, str | None] = {}
    for number, text in enumerate(lines, start=1):
        if '"decision"' in text:  # few files have any: others are parsed once
            try:
                found += filter(None, [parse(text, str(path), number)])
            except DatasetError as error:
                taken[number] = str(error).partition(": ")[2]
    rows, wrong = settled(found, [field.name for field in contract.scored_fields])
    return taken | {each.line: wrong.get(each.line) for each in found if each.line not in rows}


def check_splits(splits: Mapping[str, Sequence[Row]], limit: float = NEAR_DUPLICATE) -> None:
    """Refuse an id or a (nearly) equal request in two splits: what is trained on must not be what is
    measured. `limit` is the likeness from which requests are nearly equal.
    """
    ids: dict[str, tuple[str, Row]] = {}
    for split, rows in splits.items():
        for row in rows:
            if row.id in ids and ids[row.id][0] != split:
                raise DatasetError(
                    f"{row.where}: id {row.id!r} is also at {ids[row.id][1].where}; ids are unique "
                    "over all splits"
                )
            ids[row.id] = (split, row)
    known = Likeness((row.request for rows in splits.values() for row in rows), limit)
    seen: list[tuple[str, Row]] = []
    for split, row in compared([(split, row) for split, rows in splits.items() for row in rows]):
        if seen and seen[-1][0] != split:  # a split is compared with those before it, not with itself
            for _, earlier in itertools.islice(seen, known.size, None):
                known.add(earlier.request)
        if found := known.nearest(row.request):
            twin_split, twin = seen[found[0]]
            raise DatasetError(
                f"{row.where}: the request is nearly that of {twin.where} in the {twin_split} split "
                f"(likeness {found[1]:.2f}, allowed below {limit}); reword it, remove one, or raise the limit"
            )
        seen.append((split, row))


def near_duplicates(rows: Sequence[Row], limit: float = NEAR_DUPLICATE) -> Iterator[tuple[Row, Row, float]]:
    """Each row that is nearly a copy of an earlier one, with the most alike of those, and how alike they
    are: of the files before its own, and of its own. `rows` lie file by file.
    """
    before = Likeness((row.request for row in rows), limit)
    each = iter(compared(rows))
    for _, group in itertools.groupby(rows, key=lambda row: row.path):
        own = list(group)
        here = Likeness((row.request for row in own), limit)
        for row in itertools.islice(each, len(own)):
            for known, earlier in ((before, rows), (here, own)):
                if found := known.nearest(row.request):
                    yield row, earlier[found[0]], found[1]
            here.add(row.request)
        for row in own:
            before.add(row.request)


def file_facts(path: Path, reference: str, rows: Sequence[Row]) -> dict[str, Any]:
    """What a bundle's manifest says of a split: the path as configured, the number of rows, the file's
    sha256.
    """
    return {"path": reference, "rows": len(rows), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def split_path(bundle: Bundle, split: str) -> Path:
    """The file that a bundle's split was read from, under the current directory or above the bundle's own
    folder.

    Raises `DatasetError` where it is gone, or has changed since.
    """
    facts = bundle.manifest.get("data", {}).get(split)
    if not facts:
        raise DatasetError(f"adapter {bundle.digest[:12]} names no {split} split; name a dataset")
    if not isinstance(facts, Mapping) or not {"path", "sha256"} <= set(facts):
        raise DatasetError(
            f"adapter {bundle.digest[:12]} does not say which file its {split} split is; name a dataset"
        )

    def unchanged(path: Path) -> bool:
        return path.is_file() and file_digest(path) == facts["sha256"]

    if path := find_upwards(str(facts["path"]), bundle.path, unchanged):
        return path
    raise DatasetError(
        f"the {split} split of adapter {bundle.digest[:12]}, {facts['path']}, is missing or has changed; "
        "name a dataset"
    )


def _row(text: str, path: Path, line: int, contract: Contract, evaluation: bool) -> Row:
    where = f"{path}:{line}"
    try:
        content = strict_json(text)
    except ValueError as error:
        raise DatasetError(f"{where}: is not JSON: {error}; write one JSON object a line") from error
    if not isinstance(content, dict):
        raise DatasetError(f"{where}: is not a JSON object; write one JSON object a line")
    return check_row(content, path, line, contract, evaluation=evaluation)


def check_row(
    content: Mapping[str, Any], path: Path, line: int, contract: Contract, *, evaluation: bool = False
) -> Row:
    """The row that `content` is. Raises `DatasetError` for one that the contract or its policy refuses."""
    where = f"{path}:{line}"
    names = [field.name for field in contract.fields]
    known = ["id", "request", *names, "facts", *sorted(NOTES)]
    for key in content:
        if key not in known:
            raise DatasetError(f"{where}: unknown key {key!r}{nearest(key, known)}; rename or remove it")
    optional = {"id", *(field.name for field in contract.fields if not field.scored)} if evaluation else set()
    for key in ("id", "request", *names):
        if key not in content and key not in optional:
            cell = " (no such column, or an empty or NaN cell)" * (path.suffix.lower() in tables.SUFFIXES)
            raise DatasetError(f"{where}: missing key {key!r}{cell}; add it")
    _check_texts(content, where, contract)
    for key in ("id", "facts", "probe", *names):
        storable(content.get(key), f"{where}: {key}", DatasetError)
    answer = contract.read(content)
    # A missing text is stood in for by a legal one, so that the other fields are checked as always.
    whole = {**contract.stand_ins, **answer}
    facts = content.get("facts")
    try:
        if facts is not None and not isinstance(facts, dict):
            raise InvalidAnswer("facts is not a JSON object")
        contract.serialise(whole)
        if mismatch := contract.policy_mismatch(whole, facts):
            raise InvalidAnswer(mismatch)
    except InvalidAnswer as error:
        raise DatasetError(f"{where}: {error}; correct the row or the contract") from error
    return Row(
        content.get("id", f"line {line}"), content["request"], answer, facts, path, line, content.get("probe")
    )


def _check_texts(content: Mapping[str, Any], where: str, contract: Contract) -> None:
    for key in ("id", "request"):
        if key in content and (not isinstance(content[key], str) or not content[key].strip()):
            raise DatasetError(
                f"{where}: {key} must be a text that is not blank, not {content[key]!r}; correct it"
            )
    if len(content["request"]) > contract.max_chars:
        size = len(content["request"])
        raise DatasetError(
            f"{where}: the request has {size} characters, the contract accepts "
            f"{contract.max_chars}; shorten it"
        )
    try:
        content["request"].encode()
    except UnicodeEncodeError as error:
        raise DatasetError(
            f"{where}: the request holds half of a surrogate pair, so it is not valid UTF-8; correct it"
        ) from error


def _refuse_repeats(rows: Sequence[Row], decisions: bool) -> None:
    names: dict[str | Asked, Row] = {}
    requests: dict[tuple[str, ...], Row] = {}
    for row in rows:
        name = row.asked if decisions else row.id
        if name in names:
            raise DatasetError(
                f"{row.where}: id {row.id!r} is also at {names[name].where}; give each row its own"
            )
        wording = tuple(signs(row.request))
        if not decisions and wording in requests:
            raise DatasetError(
                f"{row.where}: the request is also at {requests[wording].where}; remove one of them"
            )
        names[name] = requests[wording] = row
