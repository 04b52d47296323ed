"""The check of `[contrast]`, which only a measure of bias reads, long after the contract is loaded."""

from collections.abc import Mapping
from typing import Any

from batch.contract import validation
from batch.errors import ContractError

SLOT = "{system}"  # in a frame, where the words go


def check_contrast(raw: Any, facts: Mapping[str, tuple[Any, ...]]) -> None:
    """Check the words and frames against the policy's facts with their legal values. Raises
    `ContractError`.
    """
    table = validation.keys(raw, "[contrast]", optional={"generic", "competitors", "frames"})
    validation.texts(table.get("competitors", ()), "[contrast] competitors")
    if not validation.texts(table.get("generic", ("",)), "[contrast] generic"):
        raise ContractError("[contrast] generic is empty; name some words, or leave it out")
    frames = table.get("frames", ())
    if not isinstance(frames, list | tuple):
        raise ContractError(f"[[contrast.frames]] must be a list of tables, not {frames!r}")
    for frame in frames:
        _check_frame(frame, facts)


def _check_frame(entry: Any, known: Mapping[str, tuple[Any, ...]]) -> None:
    frame = validation.keys(entry, "[[contrast.frames]]", required={"text"}, optional={"facts"})
    text = validation.text(frame["text"], "[[contrast.frames]] text")
    if text.count(SLOT) != 1:
        raise ContractError(f"[[contrast.frames]] text must hold {SLOT} once: {text!r}")
    facts = validation.table(frame.get("facts", {}), "[[contrast.frames]] facts")
    for name, value in facts.items():
        if not validation.among(value, known.get(name, ())):
            raise ContractError(
                f"[[contrast.frames]] facts: {name} = {value!r} is not a fact with one of the "
                "values in [policy.facts]"
            )
