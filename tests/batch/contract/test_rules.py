"""Rules: what must hold whatever the model says."""

import itertools
import random
from typing import Any

import pytest

from batch.adapter.calibration import Calibration
from batch.contract.contract import Contract
from batch.errors import ContractError
from batch.scoring.lane import ScoredRow
from batch.scoring.output_rows import outcomes
from tests.conftest import ROOT
from train.dataset import load_rows
from train.mini_base.requests import requests

SALESFORCE = {
    "tier": "Trusted Technical Builder",
    "risk": "high",
    "recommended_platform": "Databricks app + Salesforce integration",
    "needs_review": True,
}
SERVICENOW = {**SALESFORCE, "recommended_platform": "Databricks app + ServiceNow integration"}
PLAIN = {**SALESFORCE, "recommended_platform": "Databricks app"}


@pytest.mark.parametrize(
    ("change", "broken"),
    [
        ({}, []),
        ({"needs_review": False}, ["high_risk_needs_review"]),
        ({"risk": "medium", "needs_review": False}, []),
        ({"tier": "Trusted Functional Builder"}, ["functional_builder_platforms"]),
        ({"tier": "Trusted Functional Builder", "recommended_platform": "Glean"}, []),
        ({"tier": "Trusted Technical Analyst"}, ["technical_analyst_platforms"]),
        (
            {
                "tier": "Trusted Technical Analyst",
                "recommended_platform": "Databricks + governed dashboarding",
            },
            [],
        ),
        ({"recommended_platform": "Glean"}, ["technical_builder_platforms"]),
        ({"recommended_platform": "Databricks + governed dashboarding"}, ["technical_builder_platforms"]),
        (
            {
                "tier": "Trusted Technical Analyst",
                "needs_review": False,
                "recommended_platform": "Databricks app + ServiceNow integration",
            },
            ["high_risk_needs_review", "technical_analyst_platforms", "servicenow_must_be_mentioned"],
        ),
    ],
)
def test_rules_on_the_answer(contract: Contract, change: dict[str, Any], broken: list[str]) -> None:
    assert contract.violations({**PLAIN, **change}, "An app.") == broken


MENTIONED = [
    "Write it back to Salesforce.",
    "salesforce",
    "SALESFORCE opportunities get updated",
    "Update our SFDC accounts",
    "sfdc",
    "(Salesforce)",
    "Salesforce's accounts",
    "Salesforce-side automation",
    "Not Glean, but Salesforce.",
    "No reporting needed. Update Salesforce.",
    "No Salesforce reports; the agent updates Salesforce accounts.",  # one mention that is not negated
    "It updates Salesforce. A chatbot is not needed.",
    "A no-code way to update Salesforce accounts.",
    "It sets do-not-call on the Salesforce contact.",
    "It creates leads in Salesforce, and email is not involved.",
    "Close cases in Service Cloud and open leads in sales cloud.",
    "What is left in Salesforce gets merged.",
    "Salesforce: the ticket's field is not needed, its owner is",
    "Salesforce: open leads",
    "We left HubSpot for Salesforce.",
    "Salesforce is the system; the old CRM was retired.",
    # a word that denies, and denies something else or nothing
    "Never miss a Salesforce renewal",
    "We must not lose a lead in Salesforce again",
    "Book the visit not only in Salesforce",
    "It isn't just Salesforce that gets the address",
    "Without delay write the lead to Salesforce",
    "Without exception the agent logs calls in Salesforce",
    "No later than Friday enter the deal in Salesforce",
    "No one has to type it into Salesforce",
    "Don't forget to close the Salesforce case",
    "Leads that are not yet in Salesforce get created",
    "The old tool is not fast but it writes to Salesforce",
    "To avoid double entry copy the order to Salesforce",
    "Avoid duplicates in Salesforce",
    "Nothing but Salesforce holds our accounts",
    "Never send a quote without Salesforce",
    "Salesforce isn't only used by sales",
    "Make sure no Salesforce opportunity goes stale",
    "No Salesforce case should wait longer than a day",
    "Nothing gets lost on the way to Salesforce",
    "We have no integration with Salesforce yet and want one",
    "If the lead is not in Salesforce the agent creates it",
    "Instead of typing quotes into Salesforce by hand the app writes them",
    "Niemals eine Salesforce-Verlängerung verpassen",
    "Nicht nur in Salesforce",
]
NOT_MENTIONED = [
    "Salesforce is gone here, thank goodness; close the stale tickets.",
    "We threw out Salesforce last spring, everything here is HubSpot.",
    "Last summer we said goodbye to Salesforce.",
    "Salesforce plays no role here: take them off the list in HubSpot.",
    "Salesforce has nothing to do with it.",
    "Please leave Salesforce out of it.",
    "",
    "Update our CRM.",
    "HubSpot leads",
    "salesforces",
    "presalesforce",
    "Salesforce_x",
    "SFDCs",
    "no Salesforce involved",
    "There is no Salesforce in this.",
    "Without touching Salesforce, update vendor records.",
    "It never writes to Salesforce",
    "It does not use Salesforce",
    "It doesn't touch Salesforce",
    "HubSpot instead of Salesforce",
    "HubSpot rather than Salesforce",
    "Avoid Salesforce",
    "Salesforce is not involved.",
    "Salesforce isn't involved",
    "Salesforce is not directly involved",
    "Salesforce will not be touched",
    "Neither Salesforce nor ServiceNow is needed.",
    "Neither ServiceNow nor Salesforce is needed.",
    "We left Salesforce for HubSpot",
    "We moved off Salesforce last year",
    "They migrated away from Salesforce",
    "Salesforce was retired last year.",
    "Salesforce has been replaced by HubSpot",
    "Salesforce stays out of it.",
    "Salesforce is out of scope",
    "The Salesforce team is not affected.",
    "Unlike last year's Salesforce project, this one is separate",
    "our sales data in the cloud",
    "The agent won\u2019t touch Salesforce",
    "Avoid using Salesforce",
    "It never ever writes to Salesforce",
    "Not in Salesforce: it stays in HubSpot",
    "Keine Daten nach Salesforce",
    "Das geht ohne Salesforce",
    "Salesforce no longer exists here",
    "Salesforce is not in scope",
    "Salesforce brauchen wir nicht",
    "Salesforce wird nicht mehr benutzt",
    "Salesforce went away from here two years ago, we run Jira",
    "System: the CRM. Salesforce: not used. Approval: by the clerk.",
    "salesforce : not involved",
]


@pytest.mark.parametrize("request_text", MENTIONED)
def test_salesforce_is_mentioned(contract: Contract, request_text: str) -> None:
    assert contract.violations(SALESFORCE, request_text) == []
    assert contract.violations(PLAIN, request_text) == []


@pytest.mark.parametrize("request_text", NOT_MENTIONED)
def test_salesforce_is_not_mentioned(contract: Contract, request_text: str) -> None:
    assert contract.violations(SALESFORCE, request_text) == ["salesforce_must_be_mentioned"]


@pytest.mark.parametrize(
    ("request_text", "mentioned"),
    [
        ("Close the ServiceNow ticket", True),
        ("close service now incidents", True),
        ("SNOW tickets", True),
        ("our snow queue", True),
        ("predict snowfall for the depot", False),
        ("A traffic light of the weather feed and snow sensors", False),
        ("a snow-day countdown", False),
        ("Snow ploughs by GPS on a map", False),
        ("which trains run late in ice and snow", False),
        ("phone our customer service now and then", False),
        ("snow sensors report a fault, open a ticket in snow", True),  # both senses: one is meant
        ("a SNOW report by email", True),
        ("snow asset older than four years", True),
        ("Snowflake tables", False),
        ("snowy roads", False),
        ("the customer service", False),
        ("Salesforce cases", False),
        ("no ServiceNow here", False),
    ],
)
def test_servicenow_aliases_are_whole_words(contract: Contract, request_text: str, mentioned: bool) -> None:
    assert contract.violations(SERVICENOW, request_text) == (
        [] if mentioned else ["servicenow_must_be_mentioned"]
    )


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"name": "r"}, r"missing key 'when' in \[\[rules\]\]"),
        ("r", r"\[\[rules\]\] must be a table"),
        ({"name": 1, "when": {}, "mentions": ["x"]}, "name must be a text"),
        ({"name": "r", "when": {}, "mention": ["x"]}, "unknown key 'mention' .* .did you mean 'mentions'"),
        ({"name": "r", "when": {}}, "either allow or mentions"),
        (
            {"name": "r", "when": {}, "mentions": ["x"], "allow": {"risk": ["low"]}},
            "either allow or mentions",
        ),
        (
            {"name": "r", "when": {"rsk": "low"}, "mentions": ["x"]},
            "unknown field 'rsk' .did you mean 'risk'",
        ),
        ({"name": "r", "when": {"risk": "lo"}, "mentions": ["x"]}, "'lo' is not a legal value of risk"),
        (
            {"name": "r", "when": {"needs_review": 1}, "mentions": ["x"]},
            "1 is not a legal value of needs_review",
        ),
        ({"name": "r", "when": {"reason": "x"}, "mentions": ["x"]}, "is not a legal value of reason"),
        ({"name": "r", "when": ["risk"], "mentions": ["x"]}, "when must be a table"),
        ({"name": "r", "when": {}, "mentions": "Salesforce"}, "mentions must be a list"),
        ({"name": "r", "when": {}, "mentions": []}, "mentions must be a list that is not empty"),
        ({"name": "r", "when": {}, "mentions": [1]}, "mentions must be a text"),
        ({"name": "r", "when": {}, "mentions": [""]}, "mentions"),
        ({"name": "r", "when": {}, "allow": {"risk": "low"}}, "allow risk must be a list"),
        ({"name": "r", "when": {}, "allow": {"needs_review": True}}, "allow needs_review must be a list"),
        ({"name": "r", "when": {}, "allow": {"risk": []}}, "allow risk must be a list that is not empty"),
        ({"name": "r", "when": {}, "allow": {}}, "allow"),
        ({"name": "r", "when": {}, "mentions": ["x"], "homonyms": "x y"}, "homonyms must be a list"),
        ({"name": "r", "when": {}, "mentions": ["x"], "homonyms": ["|"]}, "homonyms: '|' is not a phrase"),
        ({"name": "r", "when": {}, "allow": {"risk": ["low"]}, "homonyms": ["x y"]}, "it has none"),
        ({"name": "high_risk_needs_review", "when": {}, "mentions": ["x"]}, "duplicated"),
    ],
)
def test_a_wrong_rule_is_refused(contract: Contract, entry: Any, message: str) -> None:
    with pytest.raises(ContractError, match=message):
        Contract.from_dict({**contract.raw, "rules": [*contract.raw["rules"], entry]})


def enforcing(contract: Contract, **changes: Any) -> Contract:
    return Contract.from_dict({**contract.raw, "enforce_rules": True, **changes})


ENFORCED = [
    (PLAIN, "An app.", {}, ()),
    (SALESFORCE, "An app.", {"recommended_platform": "Databricks app"}, ("salesforce_must_be_mentioned",)),
    (SALESFORCE, "An app on Salesforce.", {}, ()),
    ({**PLAIN, "needs_review": False}, "An app.", {"needs_review": True}, ("high_risk_needs_review",)),
    (
        {**SALESFORCE, "needs_review": False},
        "An app.",
        {"needs_review": True, "recommended_platform": "Databricks app"},
        ("high_risk_needs_review", "salesforce_must_be_mentioned"),
    ),
    # The tier's rule has corrected the platform before: nothing is left of which Salesforce would have to be mentioned.
    (
        {**SALESFORCE, "tier": "Trusted Technical Analyst"},
        "A dashboard.",
        {"recommended_platform": "Databricks + governed dashboarding"},
        ("technical_analyst_platforms",),
    ),
    # A builder may do three things: the rule does not say which, so it is counted only.
    ({**PLAIN, "recommended_platform": "Glean"}, "An app.", {}, ()),
]


@pytest.mark.parametrize(("answer", "request_text", "changed", "applied"), ENFORCED)
def test_enforced_rules_correct_what_they_can(
    contract: Contract,
    answer: dict[str, Any],
    request_text: str,
    changed: dict[str, Any],
    applied: tuple[str, ...],
) -> None:
    strict, own = enforcing(contract), dict(answer)
    corrected, names = strict.enforce(answer, strict.violations(answer, request_text))
    assert (corrected, names) == ({**answer, **changed}, applied)
    assert answer == own  # the model's own is kept
    # counted only, by default
    assert contract.enforce(answer, contract.violations(answer, request_text)) == (
        answer,
        (),
    )
    if applied:
        assert strict.violations(corrected, request_text) == []


def test_the_fields_that_enforced_rules_may_correct(contract: Contract) -> None:
    assert [field.name for field in enforcing(contract).enforced_fields] == [
        "recommended_platform",
        "needs_review",
    ]
    assert contract.enforced_fields == ()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"then": {"risk": "lo"}}, "'lo' is not a legal value of risk"),
        ({"then": {"rsk": "low"}}, "unknown field 'rsk'"),
        ({"then": {"risk": "low"}}, "would still break it"),
        (
            {"then": {"recommended_platform": "Databricks app + Salesforce integration"}},
            "would still break it",
        ),
        (
            {"mentions": None, "allow": {"risk": ["low", "medium"]}, "then": {"risk": "high"}},
            "that allow refuses",
        ),
    ],
)
def test_a_correction_that_does_not_correct_is_refused(
    contract: Contract, entry: dict[str, Any], message: str
) -> None:
    rule = {
        "name": "r",
        "when": {"recommended_platform": "Databricks app + Salesforce integration"},
        "mentions": ["x"],
        **entry,
    }
    with pytest.raises(ContractError, match=message):
        enforcing(contract, rules=[{key: value for key, value in rule.items() if value is not None}])
    with pytest.raises(ContractError, match="enforce_rules must be true or false"):
        Contract.from_dict({**contract.raw, "enforce_rules": "yes"})


def test_the_mention_rules_read_what_labellers_wrote(contract: Contract) -> None:
    """No gold answer of the hand-written sets breaks a rule; of the generator's, which misspells names, 1 in 100 at most."""
    denied = 0
    for path in sorted((ROOT / "data").rglob("*.jsonl")):
        for row in load_rows(path, contract, evaluation=True):
            assert contract.violations(row.answer, row.request) == [], row.where
            if (
                path.parent.name == "written"
                and row.facts
                and row.facts["need"] == "build"
                and row.facts["system"] == "none"
            ):
                denied += any(rule.mentioned(row.request) for rule in contract.rules if rule.mentions)
    assert denied <= 5, "denials of a system that the rules take for mentions, of some 100 that people wrote"
    broken = caught = uncaught = 0
    for made in itertools.islice(requests(random.Random(5)), 2000):
        answer = contract.decide(made.facts.as_dict())
        broken += bool(contract.violations(answer, made.text))
        if made.facts.need == "build" and made.facts.system == "none":
            biased = {**answer, "recommended_platform": "Databricks app + Salesforce integration"}
            held = contract.violations(biased, made.text)
            caught, uncaught = caught + bool(held), uncaught + (not held)
    assert broken <= 20 and uncaught <= 0.01 * caught


def test_negation_is_the_contracts_own(contract: Contract) -> None:
    """Without the table every mention counts; another language is another list."""
    denied = ["no Salesforce involved", "Salesforce is not needed", "We left Salesforce for HubSpot"]
    silent = Contract.from_dict({key: raw for key, raw in contract.raw.items() if key != "negation"})
    french = Contract.from_dict(
        {
            **contract.raw,
            "negation": {
                "fr": {"before": ["sans", "pas de"], "after": ["n'est pas"], "harmless": ["pas de doute"]}
            },
        }
    )
    for text in denied:
        assert contract.violations(SALESFORCE, text) == ["salesforce_must_be_mentioned"]
        assert silent.violations(SALESFORCE, text) == french.violations(SALESFORCE, text) == []
    for text, mentioned in [
        ("sans Salesforce", False),
        ("un outil sans aucun Salesforce", False),
        ("Pas de Salesforce ici", False),
        ("Salesforce n'est pas de la partie", False),
        ("Pas de doute: Salesforce", True),
        ("Salesforce, sans HubSpot", True),
        ("d\u00e9passans Salesforce", True),  # within a word
    ]:
        assert bool(french.violations(SALESFORCE, text)) != mentioned, text


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"en": {"befor": ["no"]}}, r"unknown key 'befor' in \[negation.en\] .did you mean 'before'"),
        ({"en": {"before": "no"}}, "must be a list"),
        ({"en": {"before": [""]}}, "is not a phrase of words"),
        ({"en": {"after": ["..."]}}, "is not a phrase of words"),
        ({"en": {"after": ["not ||"]}}, "is not a phrase of words"),
        ({"en": ["no"]}, "must be a table"),
        (["no"], r"\[negation\] must be a table"),
    ],
)
def test_a_wrong_negation_is_refused(contract: Contract, table: Any, message: str) -> None:
    with pytest.raises(ContractError, match=message):
        Contract.from_dict({**contract.raw, "negation": table})


def test_a_homonym_is_the_rules_own_and_corrects_nothing(contract: Contract) -> None:
    """Another contract's word, another language; an answer that only a homonym speaks for goes to a person."""
    rule = {
        "name": "r",
        "when": {"recommended_platform": "Databricks app + Salesforce integration"},
        "mentions": ["Apple", "Box"],
        "homonyms": ["apple pie|tree", "in|of a box"],
    }
    strict = enforcing(contract, rules=[rule])
    for text in ["an apple-tree register", "APPLE  PIE", "kept in a box"]:
        assert strict.violations(SALESFORCE, text) == ["r"], text
    for text in ["a box of screws in a box", "the Apple tree app"]:
        assert strict.violations(SALESFORCE, text) == [], text
    (made,) = strict.rules
    assert made.mention("apple pie") == "denied" and made.mention("pie") == "absent"


@pytest.mark.parametrize("text", ["no Salesforce involved", "Salesforce was retired last year."])
def test_nothing_is_corrected_on_the_strength_of_a_negation(contract: Contract, text: str) -> None:
    """The words may be misread: the answer stays as it is, breaks its rule, and goes to a person."""
    strict = enforcing(contract)
    (rule,) = (rule for rule in strict.rules if rule.name == "salesforce_must_be_mentioned")
    violated = strict.violations(SALESFORCE, text)
    assert violated == [rule.name] and rule.mention(text) == "denied" and rule.mention("An app.") == "absent"
    assert strict.enforce(SALESFORCE, violated, [rule.name]) == (SALESFORCE, ())
    row = ScoredRow(dict(SALESFORCE), {"tier": 1.0}, tuple(violated), denied=(rule.name,))
    (made,) = outcomes([row], strict, Calibration({}, threshold=0.1))
    assert (made.answer, made.applied, made.triage) == (SALESFORCE, (), "human")


@pytest.mark.parametrize(
    ("word", "request_text", "mentioned"),
    [
        ("用友", "请把发票同步到用友系统。", True),
        ("セールスフォース", "顧客データをセールスフォースに登録してください。", True),
        ("Salesforce", "顧客データをSalesforceに登録してください。", True),
        ("Salesforce", "顧客データをMySalesforceに登録してください。", False),
        ("เซลส์ฟอร์ซ", "กรุณาบันทึกในเซลส์ฟอร์ซทุกวัน", True),
        ("세일즈포스", "세일즈포스에 고객을 등록해 주세요.", True),
        ("Sales Cloud", "into the Sales\nCloud record", True),
        ("Sales Cloud", "into Sales\N{NO-BREAK SPACE}Cloud", True),
        ("Sales Cloud", "into Sales  Cloud", True),
        ("Sales Cloud", "into the SalesCloud", False),
        ("Café-Kasse", "in die Cafe\N{COMBINING ACUTE ACCENT}-Kasse", True),
        ("Cafe\N{COMBINING ACUTE ACCENT}", "in das Café", True),
        ("Cafe", "Das Cafe\N{COMBINING ACUTE ACCENT} ist zu.", False),
        ("कर", "यह काम करो", False),
        ("कर", "कर भरना है", True),
        ("Œuvre", "mains-d'Œuvre", True),
        ("SAP", "SAP_2", False),
    ],
)
def test_a_word_is_mentioned_in_whatever_script(
    contract: Contract, word: str, request_text: str, mentioned: bool
) -> None:
    """Chinese, Japanese and Thai put no spaces between words, Korean writes particles behind them; accents come
    in two spellings, and spaces in several."""
    rule = {"name": "r", "when": {"risk": "low"}, "mentions": [word]}
    (made,) = Contract.from_dict({**contract.raw, "rules": [rule]}).rules
    assert made.mentioned(request_text) == mentioned


def test_a_homonym_in_a_script_without_spaces(contract: Contract) -> None:
    rule = {"name": "r", "when": {"risk": "low"}, "mentions": ["苹果"], "homonyms": ["苹果树"]}
    (made,) = Contract.from_dict({**contract.raw, "rules": [rule]}).rules
    assert made.mention("园里有苹果树。") == "denied" and made.mention("用苹果电脑和苹果树") == "meant"


def test_a_whole_set_may_be_allowed() -> None:
    """`allow` lists choices or whole values: a value that is listed breaks nothing."""
    tags = {"name": "tags", "type": "labels", "optional": True, "labels": {"billing": "", "login": ""}}
    team = {"name": "team", "type": "label", "labels": {"crm": "", "other": ""}}
    rule = {"name": "r", "when": {"team": "crm"}, "allow": {"tags": [["billing"]]}}
    raw = {"name": "t", "prompt": {"system": "{fields}"}, "fields": [team, tags], "rules": [rule]}
    made = Contract.from_dict(raw)
    for value, broken in (((), []), (("billing",), []), (("login",), ["r"]), (("billing", "login"), ["r"])):
        assert made.violations({"team": "crm", "tags": value}, "x") == broken
