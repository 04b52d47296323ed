"""Label Studio's files: tasks and a labelling page for a contract, and what its annotators answered, as rows.

A task has the request as data and the model's answer as a prediction. An export (JSON) has annotations; the
last that was not cancelled counts, as Label Studio itself shows it.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

from batch.contract.contract import Contract
from batch.contract.fields import Field, as_text
from batch.errors import DatasetError, one_line
from train.files import strict_json

SUFFIX = ".json"
SETS = "labels"  # type of a field whose answer is several labels


def page(contract: Contract) -> str:
    """The labelling configuration (XML): a control for each field, the labels by their meanings' order."""
    lines = ["<View>", '  <Text name="request" value="$request"/>', '  <Text name="why" value="$why"/>']
    for field in contract.fields:
        name = quoteattr(field.name)
        lines.append(f"  <Header value={quoteattr(one_line(field.meaning or field.name))}/>")
        if not field.values:
            lines.append(f'  <TextArea name={name} toName="request" maxSubmissions="1"/>')
            continue
        choice = "multiple" if field.type == SETS else "single"
        needed = "false" if _may_be_empty(field) else "true"
        lines.append(f'  <Choices name={name} toName="request" choice="{choice}" required="{needed}">')
        lines += [f"    <Choice value={quoteattr(as_text(value))}/>" for value in field.values]
        lines.append("  </Choices>")
    return "\n".join([*lines, "</View>"]) + "\n"


def _may_be_empty(field: Field) -> bool:
    """Whether none of its choices is an answer, which an export leaves out."""
    return field.type == SETS and field.legal([])


def tasks(rows: Sequence[Mapping[str, Any]], contract: Contract) -> list[dict[str, Any]]:
    """Tasks of rows as `candidates` chooses them, the suggested answer as prediction."""
    return [
        {
            "data": {"id": str(row["id"]), "request": row["request"], "why": ", ".join(row["why"] or ())},
            "predictions": [
                {
                    "model_version": "batch-route",
                    "result": [
                        _result(field, row["suggested"][field.name])
                        for field in contract.fields
                        if row["suggested"][field.name] is not None
                    ],
                }
            ],
        }
        for row in rows
    ]


def is_task(content: Any) -> bool:
    """Whether it is one of :func:`tasks`, and not yet annotated, as those of an export are."""
    return isinstance(content, dict) and content.keys() == {"data", "predictions"}


def _result(field: Field, value: Any) -> dict[str, Any]:
    kind = "choices" if field.values else "textarea"
    chosen = [as_text(each) for each in (value if isinstance(value, list | tuple) else [value])]
    answer = {"choices": chosen} if field.values else {"text": chosen}
    return {"from_name": field.name, "to_name": "request", "type": kind, "value": answer}


def read_export(path: Path, contract: Contract) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each annotated task's number and row: `id`, `request` and the fields. Raises `DatasetError`."""
    try:
        content = strict_json(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise DatasetError(f"{path}: is not JSON: {error}; export it from Label Studio as JSON") from error
    if not isinstance(content, list):
        raise DatasetError(f"{path}: is not a list of tasks; export it from Label Studio as JSON")
    sets = {field.name for field in contract.fields if field.type == SETS}
    empty = {field.name: "[]" for field in contract.fields if _may_be_empty(field)}
    for number, task in enumerate(content, start=1):
        try:
            answers = [each for each in task["annotations"] if not each.get("was_cancelled")]
            if not answers:
                continue
            row = {"id": task["data"]["id"], "request": task["data"]["request"], **empty}
            for result in answers[-1]["result"]:
                (kind, values), name = next(iter(result["value"].items())), result["from_name"]
                row[name] = json.dumps(values) if name in sets and kind == "choices" else values[0]
        except (KeyError, TypeError, AttributeError, IndexError, StopIteration) as error:
            raise DatasetError(
                f"{path}:{number}: is not an annotated task of `candidates --format label-studio`; "
                "export all of them as JSON"
            ) from error
        yield number, row
