"""Draft tokens for speculative decoding, read off the contract: most of an answer is forced.

Between two labels, and inside one as soon as the others are ruled out, only one continuation is legal. vLLM
asks :class:`AnswerDrafter` for it, checks a whole run of such tokens in one step against the model and the
grammar, and keeps what greedy decoding would have chosen anyway: drafts change the speed, never the answer.

    contract ──answer_path──► AnswerPath (chained tries of token ids, one a field) ──► AnswerDrafter (in vLLM)

Inside a free text or a set of labels nothing is forced. There the drafter recalls how those of earlier rows
went on.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, ClassVar

from batch.adapter.renderer import Renderer
from batch.contract.contract import Contract
from batch.contract.fields import Field
from batch.contract.json_text import compact_json

CONTEXT_TOKENS = 3  # of a free text: so many tokens recall what came next
MEMORY_ENTRIES = 1 << 17  # contexts remembered at most
# state after the end of turn, or after a token that no path has: a legal answer in an unusual tokenisation
LOST = -1
ANY = ...  # where it does not matter which value; None is one


@dataclasses.dataclass(frozen=True)
class AnswerPath:
    """A contract's answers as a state machine over token ids; state 0 is the start of an answer.

    `edges[state]` maps a token to the next state. A state in `texts` is inside a free text or a set of
    labels: its edges are the tokens that hold the closing quote or bracket, and any other token stays in it.
    The last edge of every answer is the end of turn.
    """

    edges: tuple[dict[int, int], ...]
    texts: frozenset[int]
    prose: frozenset[int]  # those of the texts that are free: nobody asks what else was likely there
    marker: tuple[int, ...]  # the tokens right in front of every answer

    def step(self, state: int, token: int) -> int:
        if state < 0:
            return LOST
        return self.edges[state].get(token, state if state in self.texts else LOST)

    def forced(self, state: int) -> int | None:
        """The only token that can follow, if there is just one."""
        if state < 0 or state in self.texts or len(self.edges[state]) != 1:
            return None
        return next(iter(self.edges[state]))


def answer_path(contract: Contract, renderer: Renderer) -> AnswerPath:
    """Build the machine from the renderer's own encodings of sample answers; its size is the sum of the
    labels' sizes, not their product."""
    fields = contract.fields
    # state 1 + i: the value of field i starts; the last: the answer is closed
    edges: list[dict[int, int]] = [{} for _ in range(len(fields) + 2)]
    texts = frozenset(1 + i for i, field in enumerate(fields) if field.closer)
    prose = frozenset(1 + i for i, field in enumerate(fields) if field.closer and not field.scored)

    def add(start: int, tokens: Sequence[int], end: int) -> None:
        state = start
        for token in tokens[:-1]:
            if token not in edges[state]:
                edges.append({})
                edges[state][token] = len(edges) - 1
            state = edges[state][token]
        if tokens:
            edges[state].setdefault(tokens[-1], end)

    def following(i: int) -> int:
        return 2 + i  # behind the last field it is the state in which only the end of turn can follow

    for i in range(-1, len(fields)):
        if i >= 0 and fields[i].closer:
            continue
        # A token may reach over the boundary into the next value, so each value is encoded in front of one of
        # each kind of next values.
        values = fields[i].values if i >= 0 else (ANY,)
        known = i + 1 < len(fields) and not fields[i + 1].closer
        kinds: dict[tuple[int, ...], Any] = {}  # one next value each, by the tokens in front of it
        for after in fields[i + 1].values if known else (ANY,):
            kinds.setdefault(tuple(_segment(contract, renderer, i, values[0], after)), after)
        for value in values:
            for after in kinds.values():
                add(1 + i, _segment(contract, renderer, i, value, after), following(i))
    for i, field in enumerate(fields):
        if field.closer:
            literal = _rest(fields, i).encode()  # what follows the closing quote or bracket
            for token, read in _closers(renderer, field.closer.encode(), literal).items():
                rest = renderer.encode_text(literal[read:].decode())
                if rest:
                    edges.append({})
                    edges[1 + i][token] = len(edges) - 1
                    add(len(edges) - 1, rest, following(i))
                else:
                    edges[1 + i][token] = following(i)
    edges[1 + len(fields)][renderer.end_of_turn_id] = LOST
    return AnswerPath(tuple(edges), texts, prose, renderer.suffix_ids)


def _segment(contract: Contract, renderer: Renderer, i: int, value: Any, after: Any) -> list[int]:
    """Tokens of a sample answer that start inside field `i`'s value, or behind it and in front of the next
    value; with `i` = -1 those in front of the first value."""
    answer = {field.name: field.stand_in for field in contract.fields}
    if value is not ANY:
        answer[contract.fields[i].name] = value
    if after is not ANY:
        answer[contract.fields[i + 1].name] = after
    starts, at = [], 1
    for field in contract.fields:
        at += len(compact_json(field.name).encode()) + 1
        starts.append(at + field.quoted)  # behind the opening quote
        at += len(compact_json(answer[field.name]).encode()) + 1
    begin = starts[i] if i >= 0 else 0
    end = starts[i + 1] if i + 1 < len(starts) else at
    tokens = renderer.encode_answer(answer)[:-1]
    offsets = itertools.accumulate((len(renderer.token_bytes(token)) for token in tokens), initial=0)
    return [token for token, offset in zip(tokens, offsets, strict=False) if begin <= offset < end]


def _rest(fields: Sequence[Field], i: int) -> str:
    """What stands between the closing quote or bracket of field `i` and the next value."""
    if i + 1 == len(fields):
        return "}"
    following = fields[i + 1]
    return f',"{following.name}":' + '"' * following.quoted


def _closers(renderer: Renderer, closer: bytes, literal: bytes) -> dict[int, int]:
    """Tokens that hold a value's closing quote or bracket, and how many bytes of the following `literal` each
    has as well.
    """
    found = {}
    for token, text in renderer.vocabulary():
        _, found_closer, behind = text.partition(closer)
        if found_closer and literal.startswith(behind):
            found[token] = len(behind)
    return found


class AnswerDrafter:
    """vLLM's proposer interface (`method="custom_class"`). Paths are shared by the process: vLLM makes the
    instance.
    """

    paths: ClassVar[list[AnswerPath]] = []

    def __init__(self, vllm_config: Any) -> None:
        self._limit: int = vllm_config.speculative_config.num_speculative_tokens
        self._memory: dict[tuple[int, ...], int] = {}

    def load_model(self, *_: Any) -> None:
        """There is no model to load."""

    def propose(self, sampled: list[list[int]], counts: Any, tokens: Any, **_: Any) -> list[list[int]]:
        """Up to `num_speculative_tokens` ids a row.

        `sampled` [rows][new tokens], `counts` [rows] how many tokens each row has with them, `tokens` [rows,
        length] all token ids. A row without new tokens is still reading its prompt.
        """
        return [
            self._draft(tokens[row, : counts[row]], len(new)) if new else []
            for row, new in enumerate(sampled)
        ]

    def _draft(self, tokens: Any, new: int) -> list[int]:
        for path in self.paths:
            answer = _after(tokens, path.marker)
            if answer is None:
                continue
            states = list(itertools.accumulate(answer, path.step, initial=0))
            if states[-1] != LOST:
                self._remember(path, answer, states, new)
                return self._run(path, answer, states[-1])
        return []

    def _run(self, path: AnswerPath, answer: list[int], state: int) -> list[int]:
        context, drafted = answer[-CONTEXT_TOKENS:], 0
        while drafted < self._limit:
            token = path.forced(state)
            if token is None and state in path.texts:
                token = self._memory.get(tuple(context[-CONTEXT_TOKENS:]))
            if token is None:
                break
            context.append(token)
            state = path.step(state, token)
            drafted += 1
        return context[len(context) - drafted :]

    def _remember(self, path: AnswerPath, answer: list[int], states: list[int], new: int) -> None:
        if len(self._memory) > MEMORY_ENTRIES:
            self._memory.clear()
        for i in range(max(CONTEXT_TOKENS, len(answer) - new), len(answer)):
            if states[i] in path.texts:
                self._memory[tuple(answer[i - CONTEXT_TOKENS : i])] = answer[i]


def speculation(tokens: int) -> dict[str, Any] | None:
    """vLLM's setting that has it ask :class:`AnswerDrafter` for `tokens` a step; none for 0."""
    if not tokens:
        return None
    return {
        "method": "custom_class",
        "model": f"{AnswerDrafter.__module__}.{AnswerDrafter.__name__}",
        "num_speculative_tokens": tokens,
    }


def _after(tokens: Any, marker: tuple[int, ...]) -> list[int] | None:
    """What follows the last occurrence of `marker` in the array `tokens`."""
    for at in (tokens == marker[0]).nonzero()[0][::-1]:
        if tuple(tokens[at : at + len(marker)]) == marker:
            return tokens[at + len(marker) :].tolist()  # type: ignore[no-any-return]
    return None
