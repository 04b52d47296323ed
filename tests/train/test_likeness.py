"""What makes two requests the same, or nearly: words and signs, at the cost of what is rare."""

import json
import random
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from batch.contract.contract import Contract
from batch.errors import DatasetError
from train.dataset import Row, check_splits, load_rows, near_duplicates
from train.labelling.lint import lint
from train.likeness import NEAR_DUPLICATE, Likeness, alike, shingles, signs, words

LABELS = {"urgency": "low", "reply": True}
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("C++", "C#"), ("C", "C++"), ("-5 %", "+5 %"), ("Raise it by -5 %.", "Raise it by 5 %."), ("😀", "😡"), ("👍🏻", "👍🏿"),
        ("a < b", "a > b"), ("$100", "€100"), ("R&D", "R D"), ("1.5", "15"), ("कि", "का"), ("a@b", "a b"), ("?", "!"),
    ],
)  # fmt: skip
def test_signs_tell_texts_apart(one: str, other: str) -> None:
    assert signs(one) != signs(other) and shingles(one) != shingles(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Find our policy.", "find  our POLICY"), ("A, b; c", "a b c"), ("caf\u00e9", "cafe\u0301"), ("“Quoted”", "'quoted'"),
        ("read-only", "read only"), ("- item", "item"), ("snake_case", "snake case"),
    ],
)  # fmt: skip
def test_layout_and_punctuation_do_not(one: str, other: str) -> None:
    assert signs(one) == signs(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("请帮我重置服务器的登录密码，谢谢。", "请帮我重置数据库的登录密码，谢谢。"),
        ("東京オフィスの会議室を予約してください", "大阪オフィスの会議室を予約してください"),
    ],
)
def test_a_changed_word_of_a_script_without_spaces(one: str, other: str) -> None:
    """Each sentence was one word, so two of them were the same or had nothing in common."""
    first, second = shingles(one), shingles(other)
    assert NEAR_DUPLICATE <= len(first & second) / len(first | second) < 1


def test_white_space_alone_is_a_text() -> None:
    assert signs("\u3000") == [""] == signs(" ")


def quadratic(texts: Sequence[str], limit: float) -> set[tuple[int, int]]:
    sets = [shingles(text) for text in texts]
    return {
        (i, j)
        for i, one in enumerate(sets)
        for j, other in enumerate(sets[:i])
        if len(one & other) / len(one | other) >= limit
    }


@pytest.mark.parametrize("limit", [0.2, NEAR_DUPLICATE, 0.9, 1.0])
def test_what_is_near_is_what_comparing_all_pairs_finds(limit: float) -> None:
    texts = [json.loads(line)["request"] for line in (ROOT / "data/v3/train.jsonl").read_text().splitlines()][
        :300
    ]
    texts += (
        [text.replace("the", "a") for text in texts[::7]]
        + texts[::50]
        + ["Hello all, " + t for t in texts[::9]]
    )
    for corpus in (texts, ()):
        known, found = Likeness(corpus, limit), set()
        for i, text in enumerate(texts):
            found |= {(i, j) for j, likeness in known.near(text) if likeness >= limit}
            known.add(text)
        assert found == quadratic(texts, limit) and found


def rows_of(path: Path, contract: Contract, requests: Sequence[str]) -> list[Row]:
    lines = ({"id": f"{path.stem}-{i}", "request": request, **LABELS} for i, request in enumerate(requests))
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return load_rows(path, contract, evaluation=True)


@pytest.fixture
def plain() -> Contract:
    return Contract.from_dict(
        {
            "name": "plain",
            "prompt": {"system": "Answer.\n{fields}"},
            "fields": [
                {"name": "urgency", "type": "label", "labels": {"low": "", "high": ""}},
                {"name": "reply", "type": "boolean"},
            ],
        }
    )


GREETING = "Dear service desk, I hope that this message finds you well; many thanks in advance for your kind help with this: "


SIGNATURE = " Kind regards, Anna Maria Example, Senior Clerk, Operations Department, 12 High Street. This message is confidential."


def written(count: int, words: int) -> list[str]:
    """So many texts of so many words, each as often as the people who wrote the shipped requests use it."""
    lines = (ROOT / "data/written/train.jsonl").read_text(encoding="utf-8").splitlines()
    used = [word for line in lines for word in json.loads(line)["request"].split()]
    chosen = random.Random(4)
    return [" ".join(chosen.choices(used, k=words)) for _ in range(count)]


MANY_ROWS = {
    "greeting and signature": lambda: [GREETING + text + SIGNATURE for text in written(1000, 25)],
    "little between them": lambda: [GREETING + f"{i} " + text + SIGNATURE for i, text in enumerate(written(1000, 6))],
    "form": lambda: [f"Please give access to folder number {i} on the shared drive of our team" for i in range(1000)],
}  # fmt: skip


def lines_run(work: Callable[[], object]) -> int:
    """So many lines of Python it takes: a measure that no slow machine changes."""
    lines = 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal lines
        lines += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return lines


@pytest.mark.parametrize("same", MANY_ROWS)
def test_rows_with_much_in_common_are_not_compared_one_by_one(
    tmp_path: Path, plain: Contract, same: str
) -> None:
    """10,000 took 147 s, 4,000 of one form 27 s, and 20,000 of one form 45 s to group: each with each."""
    rows = rows_of(tmp_path / "rows.jsonl", plain, MANY_ROWS[same]())
    works: dict[str, Callable[[list[Row]], object]] = {
        "check": lambda some: check_splits({"train": some, "validation": []}),
        "find": lambda some: list(near_duplicates(some)),
        "group": lambda some: alike([row.request for row in some]),
    }
    for name, work in works.items():
        quarter, whole = (lines_run(partial(work, some)) for some in (rows[:250], rows))
        assert whole < 5 * quarter, name
    twins = [row for row, _, _ in near_duplicates(rows)]
    assert len(twins) == len(rows) - 1 if same in ("little between them", "form") else len(twins) < 100


def test_a_group_is_a_chain_of_texts_that_are_alike() -> None:
    """Its ends may have nothing in common, and the text that joins two groups may come last."""
    words = [f"w{number}" for number in range(60)]
    links = [" ".join(words[start : start + 20]) for start in range(0, 41, 4)]
    texts = [
        links[2],
        "Something else",
        *links[6:],
        *links[:2],
        "Something else!",
        links[4],
        links[3],
        links[5],
    ]
    groups = alike(texts)
    assert sorted(map(sorted, groups)) == [
        [i for i, text in enumerate(texts) if text in links],
        [i for i, text in enumerate(texts) if text not in links],
    ]
    near = quadratic(texts, NEAR_DUPLICATE)
    assert all(any({i, j} <= set(group) for group in groups) for i, j in near)


@pytest.mark.parametrize("others", [[], ["Please reset my password now", "Order a laptop"]])
def test_texts_that_are_there_from_the_start(others: list[str]) -> None:
    texts = ["Please reset my password", "Please order a new laptop for me"]
    known, one_by_one = Likeness.of(texts, 0.5, others), Likeness(texts, 0.5)
    for text in texts:
        one_by_one.add(text)
    assert known.size == 2
    for text in (*texts, "Please reset my password now", "Order a laptop"):
        assert known.near(text) == one_by_one.near(text)
        assert known.twins(text).tolist() == [number for number, _ in known.near(text)]


def test_words_of_a_script_without_spaces_are_pairs() -> None:
    """Single characters say little: the words that a diagnosis lists could not be read."""
    assert words("服务器abc宕机 急") == ["服务", "务器", "abc", "宕机", "急"]
    assert words("Don't re-enter it2, Anaïs: a") == ["don", "t", "re", "enter", "it2", "anaïs", "a"]


def test_the_limit_can_be_set(tmp_path: Path, plain: Contract) -> None:
    one = rows_of(
        tmp_path / "a.jsonl", plain, ["Please reset the password of my old laptop in the main office today"]
    )
    two = rows_of(
        tmp_path / "b.jsonl", plain, ["Please reset the password of my old laptop in the main office now"]
    )
    with pytest.raises(DatasetError, match=r"likeness 0\.85, allowed below 0\.6"):
        check_splits({"train": one, "validation": two})
    check_splits({"train": one, "validation": two}, limit=0.9)
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    assert [f.kind for f in lint(paths, plain) if f.error] == ["leak"]
    assert not [f for f in lint(paths, plain, limit=0.9) if f.error]


def test_one_split_is_not_compared_with_itself(tmp_path: Path, plain: Contract) -> None:
    rows = rows_of(
        tmp_path / "a.jsonl", plain, ["Reset the password now please", "Reset the password now please, 2"]
    )
    check_splits({"train": rows, "validation": []})
    with pytest.raises(DatasetError, match=r"nearly that of .*a\.jsonl:2 in the train split"):
        check_splits(
            {"train": rows, "v": rows_of(tmp_path / "b.jsonl", plain, ["reset the password now, please: 2"])}
        )
