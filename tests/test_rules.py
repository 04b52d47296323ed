"""Rules: what must hold whatever the model says."""

from typing import Any

import pytest

from batch.contract import Contract
from batch.errors import ContractError

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
        ({"tier": "Trusted Technical Analyst", "recommended_platform": "Databricks + governed dashboarding"}, []),
        ({"recommended_platform": "Glean"}, ["technical_builder_platforms"]),
        ({"recommended_platform": "Databricks + governed dashboarding"}, ["technical_builder_platforms"]),
        (
            {"tier": "Trusted Technical Analyst", "needs_review": False, "recommended_platform": "Databricks app + ServiceNow integration"},
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
    "It creates leads in Salesforce, and email is not involved.",
]
NOT_MENTIONED = [
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
        ("Snowflake tables", False),
        ("snowy roads", False),
        ("the customer service", False),
        ("Salesforce cases", False),
        ("no ServiceNow here", False),
    ],
)
def test_servicenow_aliases_are_whole_words(contract: Contract, request_text: str, mentioned: bool) -> None:
    assert contract.violations(SERVICENOW, request_text) == ([] if mentioned else ["servicenow_must_be_mentioned"])


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"name": "r"}, r"missing key 'when' in \[\[rules\]\]"),
        ("r", r"\[\[rules\]\] must be a table"),
        ({"name": 1, "when": {}, "mentions": ["x"]}, "name must be a text"),
        ({"name": "r", "when": {}, "mention": ["x"]}, "unknown key 'mention' .* .did you mean 'mentions'"),
        ({"name": "r", "when": {}}, "either allow or mentions"),
        ({"name": "r", "when": {}, "mentions": ["x"], "allow": {"risk": ["low"]}}, "either allow or mentions"),
        ({"name": "r", "when": {"rsk": "low"}, "mentions": ["x"]}, "unknown field 'rsk' .did you mean 'risk'"),
        ({"name": "r", "when": {"risk": "lo"}, "mentions": ["x"]}, "'lo' is no legal value of risk"),
        ({"name": "r", "when": {"needs_review": 1}, "mentions": ["x"]}, "1 is no legal value of needs_review"),
        ({"name": "r", "when": {"reason": "x"}, "mentions": ["x"]}, "is no legal value of reason"),
        ({"name": "r", "when": ["risk"], "mentions": ["x"]}, "when must be a table"),
        ({"name": "r", "when": {}, "mentions": "Salesforce"}, "mentions must be a list"),
        ({"name": "r", "when": {}, "mentions": []}, "mentions must be a list that is not empty"),
        ({"name": "r", "when": {}, "mentions": [1]}, "mentions must be a text"),
        ({"name": "r", "when": {}, "mentions": [""]}, "mentions"),
        ({"name": "r", "when": {}, "allow": {"risk": "low"}}, "allow risk must be a list"),
        ({"name": "r", "when": {}, "allow": {"needs_review": True}}, "allow needs_review must be a list"),
        ({"name": "r", "when": {}, "allow": {"risk": []}}, "allow risk must be a list that is not empty"),
        ({"name": "r", "when": {}, "allow": {}}, "allow"),
        ({"name": "high_risk_needs_review", "when": {}, "mentions": ["x"]}, "twice"),
    ],
)
def test_a_wrong_rule_is_refused(contract: Contract, entry: Any, message: str) -> None:
    with pytest.raises(ContractError, match=message):
        Contract.from_dict({**contract.raw, "rules": [*contract.raw["rules"], entry]})
