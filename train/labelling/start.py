"""From a table of labelled texts to what `fit` takes: `batch-train contract init`."""

import csv
import dataclasses
import hashlib
import io
import json
import math
import os
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import polars as pl

from batch.contract.contract import MAX_CHARS, MAX_TOKENS, Contract
from batch.contract.field_types import check_fields, read_field
from batch.contract.json_text import json_line
from batch.errors import ContractError, InputError, nearest
from batch.storage.location import reason
from train.dataset import Row
from train.likeness import alike, signs
from train.tables import delimiter_of

SPLITS = {"train": 0.8, "validation": 0.1, "test": 0.1}
SYSTEM = """
You classify requests. Answer with one compact JSON object and nothing else.
{fields}
"""
RECIPE = """# For `batch-train fit`. docs/reference.md lists every key and its default.
# Paths: from the current directory.

[base]
model = "data/mini-base"   # a stand-in; name your base here, a folder or a hub id with its revision

[data]
contract = {contract}
train = {train}
validation = {validation}
test = {test}   # never trained on; only checked for leaks
# calibration = {calibration}   # 200 rows or more, for `triage`; else the validation rows

[training]
epochs = {epochs}
batch_size = {batch_size}
learning_rate = 5e-3   # for the stand-in; a model of 1B parameters or more takes 2e-4
scheduler = "cosine"
eval_every = {eval_every}   # steps between two validations, each with a checkpoint: {part}
early_stopping_patience = 4   # validations
"""
UNREADABLE = (OSError, csv.Error, pl.exceptions.PolarsError, pl.exceptions.PanicException)
BATCH_SIZE, FEW = 4, 500  # rows a step; rows below which a fit takes more epochs
# Steps that an interrupted fit repeats; to validate 4,000 rows as often costs a third of the time.
MOST_STEPS = 1000
UNSURE = "whose text has another label too (a field of type `labels` takes several)"


@dataclasses.dataclass(frozen=True)
class Start:
    """A contract's text, the rows of each split, and which rows were left out, by why."""

    contract: str
    splits: Mapping[str, Sequence[Row]]
    left_out: Mapping[str, Sequence[int]]

    def write(self, folder: Path) -> None:
        """`contract.toml`, `recipe.toml` and a JSONL file a split into a new folder."""
        folder.mkdir(parents=True)
        (folder / "contract.toml").write_text(self.contract, encoding="utf-8")
        for split, rows in self.splits.items():
            text = "".join(json_line(row.as_json()) for row in rows)
            (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")
        count = len(self.splits["train"])
        few, steps = count < FEW, math.ceil(count / BATCH_SIZE) or 1
        quarter = math.ceil(steps / 4)
        splits = (*SPLITS, "calibration")
        recipe = RECIPE.format(
            contract=_quoted(str(folder / "contract.toml")),
            **{name: _quoted(str(folder / f"{name}.jsonl")) for name in splits},
            epochs=10 if few else 3,
            batch_size=BATCH_SIZE,
            eval_every=steps if few else min(quarter, MOST_STEPS),
            part="an epoch" if few else "a quarter of an epoch" + " or less" * (quarter > MOST_STEPS),
        )
        (folder / "recipe.toml").write_text(recipe, encoding="utf-8")


def start(path: Path, text_column: str, label_columns: Sequence[str]) -> Start:
    """Read and divide. Raises `InputError` for a file that does not give at least two labels a column, and
    `ContractError` for columns and labels that no contract can hold.
    """
    for name, times in Counter((text_column, *label_columns)).items():
        if times > 1:
            raise InputError(f"column {name!r} is named {times} times; name each column once")
    table = read_texts(path, (text_column, *label_columns))
    try:
        check_fields([read_field({"name": name, "type": "boolean"}) for name in label_columns])
    except ContractError as error:
        raise ContractError(f"{path}: rename the column: {error}") from error
    left_out, same = defaultdict[str, list[int]](list), defaultdict[tuple[str, ...], list[Row]](list)
    for number, line in enumerate(table.iter_rows(named=True), start=1):
        text, labels = line[text_column] or "", {name: (line[name] or "").strip() for name in label_columns}
        if not text.strip() or not all(labels.values()):
            left_out["without a text or a label"].append(number)
        elif len(text) > MAX_CHARS:
            left_out[f"with a text of more than {MAX_CHARS} characters"].append(number)
        else:
            same[tuple(signs(text))].append(Row(str(number), text, labels, None, path, number))
    rows = []
    for first, *others in same.values():
        if any(row.answer != first.answer for row in others):
            left_out[UNSURE] += [row.line for row in (first, *others)]
        else:
            rows.append(first)
            left_out["with a text that is already there"] += [row.line for row in others]
    values = {name: sorted({row.answer[name] for row in rows}) for name in label_columns}
    less = f" without {len(left_out[UNSURE])} rows {UNSURE}" if left_out[UNSURE] else ""
    for name, own in values.items():
        if len(own) < 2:
            raise InputError(
                f"{path}: column {name!r} has {len(own)} labels{less}; name one with two or more"
            )
    contract = contract_text(path.stem, values)
    try:
        Contract.from_dict(tomllib.loads(contract))
    except ContractError as error:
        raise ContractError(f"{path}: {error}") from error
    splits = split(rows)
    if empty := [name for name, own in splits.items() if not own]:
        raise InputError(
            f"{path}: {len(rows)} rows give no {' and no '.join(empty)} rows; that takes three rows of the "
            "same labels at least, with texts that are not nearly equal"
        )
    return Start(contract, splits, {why: sorted(own) for why, own in left_out.items() if own})


def read_texts(path: Path, columns: Sequence[str]) -> pl.DataFrame:
    """The columns as texts, of a CSV, TSV, JSONL or Parquet file. Raises `InputError`."""
    suffix = path.suffix.lower()
    if os.path.isdir(path):
        raise InputError(f"{path}: is a directory; give a CSV, TSV, JSONL or Parquet file")
    try:
        content = path.read_bytes()  # Polars would take a path for a pattern: export[1].csv
        if suffix == ".parquet":
            table = pl.read_parquet(content)
        else:
            text = content.decode("utf-8-sig")
            table = _ndjson(text) if suffix in (".jsonl", ".ndjson") else _csv(text)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text; save it as UTF-8") from error
    except UNREADABLE as error:
        why = reason(error) if isinstance(error, OSError) else str(error).split("\n")[0]
        raise InputError(f"{path}: cannot be read: {why}; give CSV, TSV, JSONL or Parquet") from error
    for name in columns:
        if name not in table.columns:
            hint = nearest(name, table.columns)
            raise InputError(
                f"{path}: has no column {name!r}{hint}; name those with --text-column and --label-column"
            )
    return table.select(_as_texts(table[name], path) for name in columns)


def _ndjson(text: str) -> pl.DataFrame:
    return pl.read_ndjson(text.encode(), infer_schema_length=None)


def _csv(text: str) -> pl.DataFrame:
    delimiter = delimiter_of(io.StringIO(text, newline=None).readline())
    return pl.read_csv(text.encode(), infer_schema=False, separator=delimiter)


def _as_texts(column: pl.Series, path: Path) -> pl.Series:
    """NaN is null: pandas writes a missing value so. Raises `InputError` for a column whose values are no
    texts: lists, objects, bytes.
    """
    try:
        if column.dtype.is_nested():
            raise pl.exceptions.InvalidOperationError("nested")
        numbers = column.fill_nan(None) if column.dtype.is_float() else column
        return numbers.cast(pl.String)
    except pl.exceptions.PolarsError as error:
        kind = "lists or objects" if column.dtype.is_nested() else str(column.dtype)
        raise InputError(
            f"{path}: column {column.name!r} holds {kind}; name a column with one text or label a row"
        ) from error


def contract_text(name: str, values: Mapping[str, Sequence[str]]) -> str:
    """A contract of one label field a column, as TOML to go on with."""
    lines = [
        "# Say what each label means: the model reads it. Rules and a policy table: see data/contract.toml.",
        f"name = {_quoted(name)}",
        "\n[input]\n# A longer request becomes an error row (`too_long`).",
        f"max_chars = {MAX_CHARS}\nmax_tokens = {MAX_TOKENS}   # of the request alone",
        f'\n[prompt]\nsystem = """{SYSTEM}"""',
    ]
    for field, labels in values.items():
        lines += [f'\n[[fields]]\nname = {_quoted(field)}\ntype = "label"\nmeaning = {_quoted(_said(field))}']
        lines += ["[fields.labels]", *(f"{_quoted(label)} = {_quoted(_said(label))}" for label in labels)]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """A TOML string: it is a JSON string, but for DEL, which JSON does not escape."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _said(name: str) -> str:
    return name.replace("_", " ").replace("-", " ").strip().lower()


def split(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """By the text's hash, labels in proportion; rows that are nearly alike stay in one split."""
    groups = [[rows[i] for i in group] for group in alike([row.request for row in rows])]
    parts: dict[str, list[Row]] = {name: [] for name in SPLITS}
    by_label: dict[str, list[list[Row]]] = {}
    for group in groups:
        by_label.setdefault(repr(group[0].answer), []).append(group)
    for own in by_label.values():
        own.sort(key=lambda group: hashlib.sha256(group[0].request.encode()).digest())
        for name, group in zip(_turns(len(own)), own, strict=True):
            parts[name] += group
    return parts


def _turns(count: int) -> Iterator[str]:
    """The split of each of `count` groups: what measures gets its share rounded, or one of three."""
    each = max(1, round(count * SPLITS["test"])) if count >= 3 else 0
    yield from ["test"] * each + ["validation"] * each + ["train"] * (count - 2 * each)
