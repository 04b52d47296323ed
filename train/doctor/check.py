"""One finding of the doctor, and the names of all twelve, in their order."""

import dataclasses

NAMES = (
    "prompt ids",
    "prompt is a prefix",
    "end of turn",
    "nothing cut",
    "loss mask",
    "gold answers",
    "three arms",
    "grammar fires",
    "adapter lint",
    "adapter acts",
    "4-bit skew",
    "decoding settings",
)


@dataclasses.dataclass(frozen=True)
class Check:
    """`detail` says what was seen, and on a failure what to do. It never holds request text."""

    name: str
    ok: bool
    detail: str

    def __str__(self) -> str:
        return f"{'ok  ' if self.ok else 'FAIL'}  {self.name:<18}  {self.detail}"


def judge(name: str, problems: list[str], healthy: str) -> Check:
    """The check fails on the first of `problems`; the number of the others is said."""
    if not problems:
        return Check(name, True, healthy)
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return Check(name, False, problems[0] + more)
