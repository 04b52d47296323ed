"""What the mini base is pre-trained to do: many small tasks over one request, each under a system prompt of
its own.

Every task answers with compact JSON. The facts are asked for under many names and in many forms, so that they
are easy to read off the model's states; routing is to generic platforms with generic habits. The company's
policy is not here: an adapter has to learn it.
"""

import dataclasses
import random
from collections.abc import Callable
from typing import Any

from batch.contract.json_text import compact_json
from train.mini_base.requests import Facts, Request

Answer = Callable[[Request], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Task:
    """A system prompt and the function that gives the answer to a request; batches are drawn by `weight`."""

    system: str
    answer: Answer
    weight: float = 1.0

    def target(self, request: Request) -> str:
        return compact_json(self.answer(request))


def reason(request: Request) -> str:
    """One sentence that names the deciding facts in generic words."""
    facts = request.facts
    about = "personal data" if facts.regulated else "business data"
    if facts.need == "knowledge":
        return (
            "The request is about finding and summarising "
            f"documents{' with personal data' if facts.regulated else ''}."
        )
    if facts.need == "analytics":
        return f"The request needs {'SQL' if 'sql' in request.text.lower() else 'reports'} over {about}."
    deed = "writes records" if facts.writes else "only reads"
    where = "" if facts.system == "none" else f" in {facts.system}"
    how = " on its own" if facts.autonomous else ""
    return (
        "The request builds an app that "
        f"{deed}{where}{how}{' with personal data' if facts.regulated else ''}."
    )


def generic_platform(request: Request) -> str:
    """Where the wide world would do it: a habit, not the company's policy."""
    facts = request.facts
    if facts.need == "knowledge":
        return "SharePoint search" if facts.regulated else "ChatGPT Enterprise"
    if facts.need == "analytics":
        return "Power BI" if facts.regulated else "Databricks + Tableau"
    if facts.system != "none":
        return {"Salesforce": "Salesforce Flow", "ServiceNow": "ServiceNow Flow Designer"}[facts.system]
    return "Zapier" if facts.autonomous else "Power Automate" if facts.writes else "AWS Lambda"


def generic_risk(facts: Facts) -> str:
    return ["low", "medium", "high"][min(2, facts.regulated + (facts.writes and facts.autonomous))]


def _routing(names: dict[str, str], tiers: tuple[str, str, str], risks: tuple[str, str, str]) -> Answer:
    """Five keys as a router gives them. `names` maps ours to the task's; order and absence follow it."""

    def answer(request: Request) -> dict[str, Any]:
        facts = request.facts
        values: dict[str, Any] = {
            "tier": tiers[["knowledge", "analytics", "build"].index(facts.need)],
            "risk": risks[["low", "medium", "high"].index(generic_risk(facts))],
            "recommended_platform": generic_platform(request),
            "needs_review": facts.regulated and facts.need == "build",
            "reason": reason(request),
        }
        return {name: values[key] for key, name in names.items()}

    return answer


_FIVE = {key: key for key in ("tier", "risk", "recommended_platform", "needs_review", "reason")}


def _facts(keys: tuple[str, ...], kinds: tuple[str, str, str], none: Any = "none") -> Answer:
    """The five facts under other names, in the order need, writes, autonomous, regulated, system."""

    def answer(request: Request) -> dict[str, Any]:
        facts = request.facts
        kind = kinds[["knowledge", "analytics", "build"].index(facts.need)]
        system = none if facts.system == "none" else facts.system
        return dict(zip(keys, (kind, facts.writes, facts.autonomous, facts.regulated, system), strict=True))

    return answer


def _reordered(answer: Answer, order: tuple[int, ...]) -> Answer:
    def reordered(request: Request) -> dict[str, Any]:
        items = list(answer(request).items())
        return dict(items[i] for i in order)

    return reordered


def _level(request: Request) -> dict[str, Any]:
    facts = request.facts
    exposure = facts.writes + facts.autonomous + 2 * facts.regulated
    return {"exposure": ["none", "some", "much", "very much", "extreme"][exposure], "skills": _skill(facts)}


def _skill(facts: Facts) -> str:
    return {"knowledge": "reading", "analytics": "SQL", "build": "coding"}[facts.need]


def _impact(request: Request) -> dict[str, Any]:
    facts = request.facts
    return {
        "level": "serious"
        if facts.writes or facts.autonomous
        else "moderate"
        if facts.need == "build"
        else "minor",
        "data": "personal" if facts.regulated else "ordinary",
        "connects_to": facts.system,
    }


def build_tasks(contract_prompt: str, rng: random.Random) -> list[Task]:
    """All tasks. `contract_prompt` is the real contract's system prompt: its presence should be familiar, its
    labels are not taught."""
    generic = ("User", "Analyst", "Developer")
    lower = ("low", "medium", "high")
    plain = _facts(
        ("kind", "changes_records", "unattended", "sensitive", "system"), ("documents", "reporting", "app")
    )
    again = _facts(
        ("need", "writes", "autonomous", "regulated", "system"), ("search", "analysis", "software")
    )
    third = _facts(
        ("category", "write_access", "no_human", "private_data", "integrates_with"),
        ("read", "measure", "make"),
        None,
    )
    fourth = _facts(
        ("topic", "modifies", "acts_alone", "confidential", "target"),
        ("knowledge", "data", "development"),
        "",
    )
    route = _routing(_FIVE, generic, lower)
    other_route = _routing(
        {
        "tier": "role",
 "recommended_platform": "tool",
 "risk": "danger",
 "needs_review": "check",
 "reason": "why",
},
        ("Reader", "Data user", "Maker"), ("small", "medium", "large"),
    )  # fmt: skip
    tasks = [
        Task(contract_prompt, route, 6.0),
        Task("You route requests for AI tools. Answer with JSON.", route, 1.5),
        Task(
            "Recommend a tool for the request. JSON with role, tool, danger, check and why.", other_route, 1.0
        ),
        Task(
            "Which platform fits? JSON.",
            lambda r: {"recommended_platform": generic_platform(r), "reason": reason(r)},
            0.5,
        ),
        Task("Read the facts off the request. Answer with compact JSON.", plain, 3.0),
        Task("List the facts: need, writes, autonomous, regulated, system.", again, 3.0),
        Task("Extract: category, write access, no human, private data, integration.", third, 2.0),
        Task("Extract the facts in reverse order.", _reordered(fourth, (4, 3, 2, 1, 0)), 2.0),
        Task("Facts, shuffled.", _reordered(plain, (2, 0, 4, 1, 3)), 2.0),
        Task("Give a reason, then the facts.", lambda r: {"reason": reason(r), **again(r)}, 1.0),
        Task("Rate the exposure and name the skill that is needed.", _level, 1.0),
        Task("Rate the impact, the data and what it connects to.", _impact, 2.0),
        Task("State in one sentence what the request is.", lambda r: {"reason": reason(r)}, 0.5),
        Task("Repeat the core of the request.", lambda r: {"summary": r.summary}, 0.7),
        Task("Is anything changed in a system of record?", lambda r: {"answer": r.facts.writes}, 0.5),
        Task("Is personal or regulated data touched?", lambda r: {"answer": r.facts.regulated}, 0.5),
        Task("Does it act without a person deciding?", lambda r: {"answer": r.facts.autonomous}, 0.3),
        Task("Which system does it integrate with?", lambda r: {"answer": r.facts.system}, 0.5),
        Task("Is only reading needed?", lambda r: {"answer": not r.facts.writes}, 0.3),
        Task("What is needed: documents, figures or software?", lambda r: {"answer": _skill(r.facts)}, 0.7),
    ]
    return tasks + _long_tasks(contract_prompt, rng, plain, again, third)


def _long_tasks(contract_prompt: str, rng: random.Random, *answers: Answer) -> list[Task]:
    """Prompts of the contract's length and shape with other words: its lines shuffled, under other
    questions.
    """
    lines = [line for line in contract_prompt.splitlines() if line.strip()]
    tasks = []
    for number, answer in enumerate(answers):
        shuffled = rng.sample(lines, len(lines))
        opening = ["Form A. Read the facts.", "Form B. Note need and effects.", "Form C. Classify access."][
            number
        ]
        tasks.append(Task("\n".join([opening, *shuffled, opening]), answer, 1.5))
    return tasks
