"""The checks that need no engine: what training read, token by token, against what serving sends
and accepts.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from batch.adapter.bundle import Bundle
from batch.adapter.references import find_upwards
from batch.adapter.renderer import Renderer
from batch.engine import AdapterSpec
from batch.errors import AdapterError, DatasetError
from train.dataset import Row, read_rows
from train.doctor.check import Check, judge
from train.doctor.grammar import ServedGrammar
from train.examples import IGNORED, count_tokens, encode

SLOT = "ANSWER"


@dataclasses.dataclass(frozen=True)
class Trained:
    """The training rows, rendered as `fit` does it: with the base's own tokenizer and template."""

    path: Path
    rows: Sequence[Row]  # those with a legal answer
    examples: Sequence[Mapping[str, Sequence[int]]]  # their `input_ids` and `labels`
    illegal: Sequence[DatasetError]
    renderer: Renderer  # the base's

    def prompts(self) -> list[list[int]]:
        return [
            [token for token, label in zip(e["input_ids"], e["labels"], strict=True) if label == IGNORED]
            for e in self.examples
        ]

    def answers(self) -> list[list[int]]:
        return [[label for label in example["labels"] if label != IGNORED] for example in self.examples]


def read(bundle: Bundle, base: Path, data: Path | None) -> Trained:
    """Find the training rows that the bundle's manifest names, or read them from `data`.

    A row that the bundle's contract refuses is kept apart: here that is a finding, not an error. Raises
    `AdapterError` where there is no such file, `DatasetError` where none of its rows is one.
    """
    path = data or _find(bundle)
    legal, illegal = list[Row](), list[DatasetError]()
    for row in read_rows(path, bundle.contract):
        illegal.append(row) if isinstance(row, DatasetError) else legal.append(row)
    if not legal:
        why = f" ({illegal[0]})" if illegal else ""
        raise DatasetError(f"{path}: holds no row of this adapter's{why}; name the training data with --data")
    renderer = Renderer.load(base, bundle.contract)
    return Trained(path, legal, encode(legal, renderer), illegal, renderer)


def _find(bundle: Bundle) -> Path:
    reference = bundle.manifest.get("data", {}).get("train", {}).get("path")
    if reference is None:
        raise AdapterError(
            f"adapter {bundle.digest[:12]} does not say what it was trained on; name the data with --data"
        )
    if path := find_upwards(reference, bundle.path):
        return path
    raise AdapterError(
        f"the training data {reference} of adapter {bundle.digest[:12]} is not here; name it with --data"
    )


def check_prompts(trained: Trained, bundle: Bundle, spec: AdapterSpec) -> list[Check]:
    """1 and 2: the ids that the engine is sent, against the trainer's prompt and the trainer's whole rows."""
    sent = [
        spec.prompt(ids) for ids in bundle.renderer.encode_requests([row.request for row in trained.rows])
    ]
    differ, astray = [], []
    for row, prompt, example, ids in zip(
        trained.rows, trained.prompts(), trained.examples, sent, strict=True
    ):
        if prompt != ids:
            differ.append(
                f"{row.where}: training and serving part at prompt token "
                f"{_first_difference(prompt, ids)}; train again"
            )
        whole = example["input_ids"]
        if len(ids) >= len(whole) or list(whole[: len(ids)]) != ids:
            astray.append(
                f"{row.where}: what is served leaves what was trained at token "
                f"{_first_difference(whole, ids)}; train again"
            )
    count = f"{len(trained.rows)} rows"
    return [
        judge("prompt ids", differ, f"{count}: the same ids in training and serving"),
        judge("prompt is a prefix", astray, f"{count}: each goes on where its prompt ends"),
    ]


def turn_end_problems(trained: Trained, folder: Path, served: Renderer, stop_id: int) -> list[str]:
    """3, as far as rows, template and tokenizer in the bundle's `folder` show it: what training taught as the
    end of a turn is what the template puts behind an answer, what the eos token is, and where serving stops.

    A base may end turns by another token than its `eos_token`, or by a template that says nothing; but what a
    bundle says must be what its base says.
    """
    base = trained.renderer
    end, name = base.end_of_turn_id, base.token_name(base.end_of_turn_id)
    problems = []
    behind, after = _behind_an_answer(folder, served)
    if behind != base.closing_id:
        problems.append(
            f"the chat template does not end an answer with the end of turn {name}, as its base's does, but "
            f"with {after!r}; use the base's template"
        )
    if served.eos_id not in (end, base.eos_id):
        problems.append(
            f"the eos_token {served.token_name(served.eos_id)} does not end an answer with the end of turn "
            f"{name}; use the base's tokenizer_config.json"
        )
    if stop_id != end:
        problems.append(f"the engine stops at {served.token_name(stop_id)}, not at the end of turn {name}")
    problems += [
        f"{row.where}: training does not teach the end of turn {name}; train again"
        for row, answer in zip(trained.rows, trained.answers(), strict=True)
        if not answer or answer[-1] != end
    ]
    return problems


def _behind_an_answer(folder: Path, renderer: Renderer) -> tuple[int | None, str]:
    """What the chat template in `folder` puts behind an assistant's answer, as transformers reads it: the
    control token, None for text or nothing, and how it begins.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    turns = renderer.conversation("u", SLOT)
    after = tokenizer.apply_chat_template(turns, tokenize=False).rpartition(SLOT)[2]
    ids = tokenizer.encode(after.lstrip(), add_special_tokens=False)
    text_follows = not ids or renderer.token_bytes(ids[0])
    return None if text_follows else ids[0], after[:20]


def check_nothing_cut(trained: Trained, bundle: Bundle) -> Check:
    """4: the file is the one trained on, and the trainer saw as many rows and tokens as it holds."""
    problems = []
    facts = bundle.manifest.get("data", {}).get("train", {})
    if facts.get("sha256") != hashlib.sha256(trained.path.read_bytes()).hexdigest():
        problems.append(f"{trained.path.name} is not the file that was trained on; name that one with --data")
    have = count_tokens(trained.examples)
    saw = {
        "rows": facts.get("rows"),
        **json.loads((bundle.path / "metrics.json").read_text(encoding="utf-8")).get("tokens", {}),
    }
    for key, meaning in (("rows", "rows"), ("all", "tokens"), ("supervised", "answer tokens")):
        if saw.get(key) != have[key]:
            problems.append(
                f"training saw {saw.get(key, 'an unknown number of')} of {have[key]} {meaning}; "
                "never cut a row, train again"
            )
    return judge("nothing cut", problems, f"all {have['rows']} rows and {have['all']} tokens were trained on")


def check_loss_mask(trained: Trained, bundle: Bundle) -> Check:
    """5: the learned tokens, decoded, are the row's serialised answer."""
    problems = []
    for row, answer in zip(trained.rows, trained.answers(), strict=True):
        if bundle.renderer.decode(answer) != bundle.contract.serialise(row.answer):
            problems.append(
                f"{row.where}: the learned tokens do not decode to the answer; the bundle's "
                "tokenizer is not the base's, train again"
            )
    return judge(
        "loss mask", problems, f"{len(trained.rows)} rows: what is learned is the answer and nothing else"
    )


def check_gold(trained: Trained, bundle: Bundle, grammar: ServedGrammar) -> Check:
    """6: the grammar that serving decodes under lets every gold answer through, end of turn included."""
    refused = (str(error).partition(": ") for error in trained.illegal)
    problems = [f"{where}: the served contract refuses its answer: {why}" for where, _, why in refused]
    for row, answer in zip(trained.rows, trained.answers(), strict=True):
        if (index := grammar.refuses(answer)) is not None:
            problems.append(f"{row.where}: the grammar refuses token {index} of its answer; train again")
    return judge(
        "gold answers", problems, f"{len(trained.rows)} of {len(trained.rows)} accepted by the served grammar"
    )


def check_settings(trained: Trained, bundle: Bundle, spec: AdapterSpec, decoding: Mapping[str, Any]) -> Check:
    """12: `decoding` is what the engine reports."""
    wanted = {
        "temperature": 0.0,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "max_tokens": spec.max_tokens,
        "stop_token_ids": [bundle.renderer.end_of_turn_id],
    }
    problems = []
    for name, value in wanted.items():
        if decoding.get(name) != value:
            problems.append(f"the engine decodes with {name} {decoding.get(name)}, not {value}")
    if spec.max_tokens < bundle.contract.max_answer_bytes + 1:
        problems.append(
            f"the longest legal answer may take {bundle.contract.max_answer_bytes + 1} tokens, "
            f"max_tokens is {spec.max_tokens}"
        )
    longest = max(map(len, trained.answers()), default=0)
    return judge(
        "decoding settings",
        problems,
        f"greedy, no penalties; the longest answer has {longest} of {spec.max_tokens} tokens",
    )


def _first_difference(one: Sequence[int], other: Sequence[int]) -> int:
    return next(
        (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )
