"""The runner-up of a field: which value came second, and its probability, from the forward passes that chose
the first.

Beside each token of a label the engine tells the likeliest others that were legal there. One that leaves a
single value open carries that value's whole probability, since all that follows it is forced:

    "low   0.7      chosen
    "med   0.2      only `medium` goes on so: P(medium) = 0.2
    "h     0.1      P(high) = 0.1

One that leaves several open ("Trusted Technical" of Analyst and Builder) says what they have together and not
which has it. Then the runner-up is known only where another value has more than all of these; else there is
none. Like a score, a probability is that of the spelling that was seen: other cuts of a value do not count.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from batch.adapter.renderer import Renderer
from batch.contract.contract import Contract
from batch.contract.fields import Field
from batch.contract.json_text import compact_json
from batch.engine import Completion
from batch.scoring.score import cuts_of

ROUNDING = 1e-6  # of a sum of probabilities that are float32 logarithms
KNOWN = 4096  # beginnings of values whose continuations are kept
Second = tuple[Any, float]  # a value and its raw probability


class Place(NamedTuple):
    """A token of a value."""

    number: int  # of the token in the answer
    text: bytes  # of the value, in front of the token
    skip: int  # bytes of the token in front of the value, perhaps all of it


def places(renderer: Renderer, token_ids: Sequence[int], tokens: slice, start: int) -> tuple[Place, ...]:
    """The places of a value whose JSON text begins at byte `start` of the answer."""
    spelt = [renderer.token_bytes(token) for token in token_ids[: tokens.stop]]
    at = sum(map(len, spelt[: tokens.start]))
    found, text = [], b""
    for index in range(tokens.start, tokens.stop):
        skip = max(0, start - at)
        found.append(Place(index, text, skip))
        text += spelt[index][skip:]
        at += len(spelt[index])
    return tuple(found)


class RunnerUp:
    """Finds a field's second value."""

    def __init__(self, field: Field, contract: Contract, renderer: Renderer) -> None:
        end = b"}" if field is contract.fields[-1] else b","  # tells a value from one that begins with it
        spelt = {value: compact_json(value).encode() + end for value in field.values}
        cuts = {value: cuts_of(field, value, contract, renderer) for value in field.values}

        def led_to(text: bytes) -> tuple[Any, ...]:
            """The values that go on behind a token with which their text is `text`: those that cannot be
            meant otherwise, or of several those that the tokenizer cuts there.
            """
            open_to = [v for v, whole in spelt.items() if whole.startswith(text) or text.startswith(whole)]
            return tuple(v for v in open_to if len(open_to) == 1 or text in cuts[v])

        self._led_to = functools.lru_cache(KNOWN)(led_to)
        self._bytes = renderer.token_bytes

    def find(self, chosen: Any, places: Sequence[Place], completion: Completion) -> Second | None:
        """The value that is likeliest but for the `chosen` one; None where the tokens do not tell."""
        masses: dict[Any, float] = {}
        rival = 0.0  # the most that any other value may have
        before = 1.0  # probability of the tokens in front of the place
        for number, text, skip in places:
            likely = math.exp(completion.logprobs[number])
            untold = least = before * (1 - likely)
            for token, logprob in (completion.others or {}).get(number, ()):
                mass = before * math.exp(logprob)
                untold, least = untold - mass, min(least, mass)
                piece = self._bytes(token)
                values = self._led_to(text + piece[skip:]) if len(piece) >= skip else ()
                if len(values) == 1:
                    masses[values[0]] = masses.get(values[0], 0.0) + mass
                elif values:  # else the token is a cut that no tokenizer makes
                    rival = max(rival, mass)
            rival = max(rival, min(untold, least))  # what is not told of was less likely than what is
            before *= likely
        masses.pop(chosen, None)
        second = max(masses, key=lambda value: masses[value], default=None)
        if not masses or masses[second] + ROUNDING < rival:
            return None
        return second, masses[second]
