"""The page in a real browser, driven by keys alone."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from batch.contract.contract import Contract
from tests.conftest import ROOT
from tests.train.review.conftest import Output
from train.dataset import load_rows, read_rows

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
GOLD = [json.loads(line) for line in (ROOT / "data/v2/train.jsonl").read_text().splitlines()]

pytestmark = pytest.mark.skipif(
    CHROMIUM is None and "CI" not in os.environ, reason="needs Chromium: apt-get install chromium"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Server:
    """`batch-train review` as a user starts it."""

    def __init__(self, scored: Path, labels: Path, *options: str) -> None:
        shipped = (
            "--contract",
            str(ROOT / "data/contract.toml"),
            "--examples",
            str(ROOT / "data/v2/train.jsonl"),
        )
        line = [
            sys.executable,
            "-m",
            "train",
            "review",
            str(scored),
            "--labels",
            str(labels),
            *shipped,
            *options,
        ]
        self.process = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        found = re.search(r"http://127\.0\.0\.1:\d+/\S+", self.process.stdout.readline())
        assert found
        self.address = found.group()

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.terminate()
        self.process.communicate(timeout=20)


@pytest.fixture
def opened(browser: Browser) -> Iterator[Page]:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on(
        "console", lambda message: None if "Failed to load" in message.text else problems.append(message.text)
    )
    yield page
    page.close()
    assert problems == []


def start(page: Page, address: str) -> None:
    page.goto(address)
    page.wait_for_selector("#work:not([hidden]), #end:not([hidden])")


def keys_of(row: dict[str, object], contract: Contract) -> list[str]:
    facts = row["facts"]
    assert isinstance(facts, dict)
    return [str(list(values).index(facts[name]) + 1) for name, values in contract.facts.items()]


def answer(page: Page, contract: Contract) -> str:
    """Type the facts of the request that is shown, and save; returns its id."""
    expect(page.locator("#id")).not_to_be_empty()  # it is filled in once the queue has come
    name = page.inner_text("#id")
    row = GOLD[int(name[1:]) % len(GOLD)]
    page.keyboard.press("ArrowUp")
    for _ in contract.facts:
        page.keyboard.press("ArrowUp")
    for key in keys_of(row, contract):
        page.keyboard.press(key)
    page.keyboard.press("Enter")
    expect(page.locator("#problem")).to_be_hidden()
    moved(page, name)
    return name


def moved(page: Page, name: str) -> None:
    """Wait until another request than `name`, or the end, is shown."""
    page.wait_for_selector(f'#end:not([hidden]), #work:not([hidden]) #id:not(:text-is("{name}"))')


def test_118_rows_by_keys_alone(opened: Page, output: Output, contract: Contract, tmp_path: Path) -> None:
    """Open, read, answer, undo, skip, unsure, reload, finish; each saved row lints clean."""
    labels = tmp_path / "labels.jsonl"
    with Server(output(118), labels, "--reviewer", "ann", "--order", "queue") as server:
        start(opened, server.address)
        expect(opened.locator("#progress")).to_have_text("0 of 118 decided")
        expect(opened.locator("#outcome")).to_contain_text("; second: ")
        assert answer(opened, contract) == "r0"
        opened.keyboard.press("u")
        expect(opened.locator("#id")).to_have_text("r0")
        assert opened.locator("fieldset input:checked").count() == len(contract.facts)
        opened.keyboard.press("Enter")
        expect(opened.locator("#id")).to_have_text("r1")
        opened.keyboard.press("s")
        expect(opened.locator("#id")).to_have_text("r2")
        opened.keyboard.press("?")
        opened.keyboard.type("which system is 'the tool'?")
        opened.keyboard.press("Enter")
        expect(opened.locator("#id")).to_have_text("r3")
        opened.reload()
        expect(opened.locator("#progress")).to_contain_text("3 of 118 decided")
        for _ in range(115):
            answer(opened, contract)
        expect(opened.locator("#tally")).to_have_text("116 labelled, 1 unsure, 1 skipped.")
        opened.click("#again")
        opened.wait_for_selector("#work:not([hidden])")
        answer(opened, contract)
        answer(opened, contract)
        expect(opened.locator("#tally")).to_have_text("118 labelled, 0 unsure, 0 skipped.")
    rows = load_rows(labels, contract)
    assert len(rows) == 118
    for row in rows:
        gold = GOLD[int(row.id[1:]) % len(GOLD)]
        assert (
            row.facts == gold["facts"] and row.answer["recommended_platform"] == gold["recommended_platform"]
        )


def test_two_reviewers_and_two_tabs(
    browser: Browser, opened: Page, output: Output, contract: Contract, tmp_path: Path
) -> None:
    labels, scored = tmp_path / "labels.jsonl", output(4)
    with Server(scored, labels, "--reviewer", "ann", "--overlap", "100%") as server:
        start(opened, server.address)
        other = browser.new_page()
        start(other, server.address)
        answer(opened, contract)
        other.keyboard.press("s")  # the same request, already decided in the first tab
        expect(other.locator("#problem")).to_contain_text("another window")
        expect(other.locator("#progress")).to_contain_text("1 of 4")
        other.close()
        for _ in range(3):
            answer(opened, contract)
    with Server(scored, labels, "--reviewer", "bo", "--overlap", "100%") as server:
        start(opened, server.address)
        expect(opened.locator("#why")).to_contain_text("second reading")
        assert opened.locator("fieldset input:checked").count() == 0
        for _ in range(4):
            answer(opened, contract)
    assert len(labels.read_text().splitlines()) == 8
    assert len(load_rows(labels, contract)) == 4


def test_hostile_texts_are_text(opened: Page, output: Output, contract: Contract, tmp_path: Path) -> None:
    hostile = [
        "<script>document.title = 'owned'</script><img src=x onerror=\"document.title='owned'\">",
        "ask for \u202e reversed \u2066 text, مرحبا بالعالم, \U000e0053\U000e0061y yes",
        "bell \x07 escape \x1b[2J and null-like \x01",
        "long " * 220_000,
        "</script><script type=module>document.title='owned'</script>",
    ]
    with Server(output(hostile), tmp_path / "l.jsonl", "--order", "queue") as server:
        start(opened, server.address)
        for text in hostile:
            assert opened.title() == "Review: ai-operating-model"
            shown = opened.inner_text("#request")
            assert opened.locator("#request *").count() == 0
            if len(text) > 100_000:
                assert len(shown) <= 20_000
                opened.click("#whole")
                assert len(opened.text_content("#request") or "") == len(text)
            elif "\x07" in text:
                assert "\u2407" in shown and "\x1b" not in shown
            elif "\u202e" in text:
                assert "[U+202E] reversed [U+2066] text, مرحبا بالعالم, [U+E0053][U+E0061]y yes" in shown
            name = opened.inner_text("#id")
            opened.keyboard.press("s")
            moved(opened, name)
        assert opened.evaluate(
            "performance.getEntriesByType('resource').every(e => e.name.startsWith(location.origin))"
        )


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (400, "light"), (400, "dark")])
def test_it_fits_the_screen_and_can_be_read(
    browser: Browser, output: Output, tmp_path: Path, width: int, scheme: str
) -> None:
    """No sideways scrolling, every control has a name, and text has a contrast of 4.5 at least (WCAG 2.2 AA)."""
    with Server(output(2), tmp_path / "l.jsonl") as server:
        page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)  # type: ignore[arg-type]
        start(page, server.address)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.evaluate(
            "[...document.querySelectorAll('input,textarea,button')].every(e => e.hidden || e.closest('[hidden]') || (e.labels && e.labels.length) || e.textContent.trim())"
        )
        assert page.evaluate(CONTRAST) >= 4.5
        if width == 400:
            assert (
                page.evaluate(
                    "Math.min(...[...document.querySelectorAll('.choice,.actions button')].map(e => e.offsetHeight))"
                )
                >= 44
            )
        page.close()


CONTRAST = """() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (e) => { while (e) { const c = rgb(getComputedStyle(e).backgroundColor); if (c.length < 4 || c[3] > 0) return c; e = e.parentElement; } return [255, 255, 255]; };
  const texts = [...document.querySelectorAll('p,h1,legend,span,dt,dd,li,small,button:not(:disabled),label')].filter((e) => e.offsetParent && e.textContent.trim());
  return Math.min(...texts.map((e) => { const [a, b] = [light(rgb(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x); return (a + 0.05) / (b + 0.05); }));
}"""


def test_a_lost_server_loses_nothing(
    opened: Page, output: Output, contract: Contract, tmp_path: Path
) -> None:
    labels = tmp_path / "labels.jsonl"
    with Server(output(3), labels, "--order", "queue") as server:
        start(opened, server.address)
        answer(opened, contract)
        server.process.kill()
        server.process.wait()
        opened.keyboard.press("s")
        expect(opened.locator("#problem")).to_contain_text("nothing was saved")
        expect(opened.locator("#id")).to_have_text("r1")
    assert [row.id for row in read_rows(labels, contract)] == ["r0"]  # type: ignore[union-attr]


def test_sets_numbers_and_null_are_answered_by_keys(opened: Page, tmp_path: Path) -> None:
    """A contract without a policy table asks for its fields; a set takes several keys, null has one of its own."""
    tickets = ROOT / "tests/data/tickets"
    gold = [json.loads(line) for line in (tickets / "train.jsonl").read_text().splitlines()][:2]
    rows = [
        {
            **row,
            "score": 0.3,
            "status": "ok",
            "adapter": "0" * 64,
            "triage": "human",
            **{f"{name}_score": 0.5 for name in ("trades", "severity", "floor")},
            "severity_second": 3 if row["severity"] == 4 else 4,
            "severity_second_score": 0.25,
        }
        for row in gold
    ]
    pl.DataFrame(rows, schema_overrides={"trades": pl.List(pl.String)}).write_parquet(
        tmp_path / "out.parquet"
    )
    labels = tmp_path / "labels.jsonl"
    line = ("--contract", str(tickets / "contract.toml"), "--examples", str(tickets / "train.jsonl"))
    with Server(tmp_path / "out.parquet", labels, "--order", "queue", *line) as server:
        start(opened, server.address)
        expect(opened.locator("fieldset").nth(1).locator(".model").nth(1)).to_be_visible()
        expect(opened.locator("fieldset").nth(1)).to_contain_text("second, 25 %")
        for keys in (["2", "1"], ["5"]):  # electrician, then plumber; none of these
            opened.keyboard.press("ArrowUp")
            opened.keyboard.press("ArrowUp")
            name = opened.inner_text("#id")
            for key in "1234":  # what the model had said goes first
                if opened.locator("fieldset").nth(0).locator("input").nth(int(key) - 1).is_checked():
                    opened.keyboard.press(key)
            for key in [*keys, "ArrowDown", "4", "4", "Enter"]:
                opened.keyboard.press(key)
            moved(opened, name)
    found = load_rows(labels, Contract.load(tickets / "contract.toml"))
    assert [(row.answer["trades"], row.answer["severity"], row.answer["floor"]) for row in found] == [
        (("plumber", "electrician"), 4, None),
        ((), 4, None),
    ]


NAMES = ("constructor", "toString", "__proto__")
ODD_FIELDS = """
name = "odd"
[prompt]
system = "{fields}"
[[fields]]
name = "number"
type = "integer"
labels = { 9007199254740993 = "", 9007199254740992 = "" }
""" + "".join(
    f'[[fields]]\nname = "{name}"\ntype = "label"\nlabels = {{ a = "", b = "" }}\n' for name in NAMES
)
ODD_FACTS = """
name = "odd"
[prompt]
system = "{fields}"
[[fields]]
name = "size"
type = "integer"
labels = { 9007199254740993 = "", 9007199254740992 = "" }
[policy.facts]
metres = [1.0, 1e22, 9007199254740993]
constructor = [true, false]
__proto__ = ["x", "y"]
[[policy.table]]
when = { constructor = true }
then = { size = 9007199254740993 }
[[policy.table]]
when = {}
then = { size = 9007199254740992 }
"""


def odd(folder: Path, contract: str, answers: list[dict[str, object]], status: str = "ok") -> Server:
    """Serves a scored output with these answers; the labels are in `labels.jsonl`."""
    (folder / "contract.toml").write_text(contract)
    (folder / "examples.jsonl").write_text(json.dumps({"id": "e", "request": "An example.", **answers[0]}))
    rows = [
        {
            "id": f"r{number}",
            "request": f"Request {number}.",
            **answer,
            **{f"{name}_score": 1.0 for name in answer},
            "score": 1.0,
            "status": status,
            "adapter": "0" * 64,
            "triage": "human",
        }
        for number, answer in enumerate(answers)
    ]
    pl.DataFrame(rows, infer_schema_length=None).write_parquet(folder / "out.parquet")
    named = ("--contract", str(folder / "contract.toml"), "--examples", str(folder / "examples.jsonl"))
    return Server(folder / "out.parquet", folder / "labels.jsonl", *named, "--order", "queue")


def test_numbers_keep_their_digits_and_fields_have_any_name(opened: Page, tmp_path: Path) -> None:
    number = 2**53 + 1
    said: dict[str, object] = {"number": number, **dict.fromkeys(NAMES, "b")}
    with odd(tmp_path, ODD_FIELDS, [said, said]) as server:
        start(opened, server.address)
        assert opened.locator("fieldset").nth(0).inner_text().split() == [
            *("number", "1", str(number), "model,", "100.0", "%", "2", str(number - 1))
        ]
        assert opened.locator("fieldset input:checked").count() == 4
        opened.keyboard.press("Enter")  # as the model says
        moved(opened, "r0")
        for _ in range(3):
            opened.keyboard.press("ArrowUp")
        for key in ("2", "1", "1", "1", "Enter"):
            opened.keyboard.press(key)
        moved(opened, "r1")
        opened.keyboard.press("u")  # comes again as it was saved
        opened.wait_for_selector("#work:not([hidden])")
        expect(opened.locator("fieldset input:checked")).to_have_count(4)
        opened.keyboard.press("Enter")
        opened.wait_for_selector("#end:not([hidden])")
    found = load_rows(tmp_path / "labels.jsonl", Contract.load(tmp_path / "contract.toml"))
    assert [dict(row.answer) for row in found] == [said, {"number": number - 1, **dict.fromkeys(NAMES, "a")}]


def test_a_field_that_no_one_has_answered_is_open_whatever_its_name(opened: Page, tmp_path: Path) -> None:
    said: dict[str, object] = {"number": 2**53 + 1, **dict.fromkeys(NAMES, "b")}
    with odd(tmp_path, ODD_FIELDS, [said], status="error") as server:
        start(opened, server.address)
        assert opened.locator("fieldset input:checked").count() == 0
        opened.keyboard.press("1")
        expect(opened.locator("fieldset input:checked")).to_have_count(1)
        expect(opened.locator("#save")).to_be_disabled()


OPEN_FIELDS = """
name = "open"
[prompt]
system = "{fields}"
[[fields]]
name = "queue"
type = "label"
labels = { billing = "Money.", support = "All else." }
[[fields]]
name = "risk"
type = "label"
labels = { low = "", high = "" }
[[fields]]
name = "team"
type = "label"
optional = true
labels = { red = "", blue = "" }
[policy.facts]
risk = ["paid", "unpaid"]
known = [true, false]
[[policy.table]]
when = { risk = "unpaid" }
then = { queue = "billing", risk = "high" }
[[policy.table]]
when = { known = true }
then = { queue = "support", team = "blue" }
"""


@pytest.mark.parametrize("width", [1280, 400])
def test_fields_that_the_table_leaves_open_are_asked_for(
    browser: Browser, tmp_path: Path, width: int
) -> None:
    """A required one could not be saved, an optional one was null though nobody had said so."""
    said: dict[str, object] = {"queue": "billing", "risk": "low", "team": "red"}
    page = browser.new_page(viewport={"width": width, "height": 900})
    with odd(tmp_path, OPEN_FIELDS, [said] * 3) as server:
        start(page, server.address)
        fields = page.locator("fieldset")
        for number, (keys, asked) in enumerate(
            [
                ("21", ["risk", "known"]),  # unpaid, known: the table decides all
                ("221", ["risk", "known", "team"]),
                ("1122", ["risk", "known", "risk"]),
            ]
        ):
            expect(fields).to_have_count(2)
            for key in keys:
                page.keyboard.press(key)
            assert [text.split()[0] for text in fields.all_inner_texts()] == asked
            assert "undefined" not in page.inner_text("#work")
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            page.keyboard.press("Enter")
            moved(page, f"r{number}")
    page.close()
    found = load_rows(tmp_path / "labels.jsonl", Contract.load(tmp_path / "contract.toml"))
    assert [tuple(row.answer[name] for name in said) for row in found] == [
        ("billing", "high", "blue"),
        ("billing", "high", "red"),
        ("support", "high", "blue"),
    ]


def test_facts_keep_their_form(opened: Page, tmp_path: Path) -> None:
    with odd(tmp_path, ODD_FACTS, [{"size": 2**53 + 1}] * 3) as server:
        start(opened, server.address)
        assert opened.locator("fieldset").nth(0).inner_text().split()[2::2] == [
            "1.0",
            "1e+22",
            str(2**53 + 1),
        ]
        for number in range(3):
            assert opened.locator("fieldset input:checked").count() == 0
            for key in (str(number + 1), "12"[number % 2], "1"):
                opened.keyboard.press(key)
            wanted = str(2**53 + 1 - number % 2)
            expect(opened.locator("#outcome strong")).to_have_text(wanted)
            opened.keyboard.press("Enter")
            moved(opened, f"r{number}")
    found = load_rows(tmp_path / "labels.jsonl", Contract.load(tmp_path / "contract.toml"))
    assert [repr((row.facts, row.answer["size"])) for row in found] == [
        repr(({"metres": metres, "constructor": constructor, "__proto__": "x"}, size))
        for metres, constructor, size in (
            (1.0, True, 2**53 + 1),
            (1e22, False, 2**53),
            (2**53 + 1, True, 2**53 + 1),
        )
    ]
