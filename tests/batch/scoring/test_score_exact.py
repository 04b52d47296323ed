"""Scores against brute force: every path of tokens that the grammar lets a real model take, added up.

A score is the probability of the tokens that spell the chosen value, each given the legal alternatives. Over all legal
paths through a field that makes 1. A value may be spelt by several cuts into tokens; the engine takes the likeliest one
step by step, so a score is a lower bound of P(value), short by the mass of the other spellings.
"""

import dataclasses
import itertools
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from batch.adapter.bundle import Bundle
from batch.adapter.renderer import Renderer
from batch.contract.contract import Contract
from batch.contract.fields import LIST, Field
from batch.contract.json_text import compact_json
from batch.engine import Completion, EngineSpec, adapter_spec
from batch.engine.alternatives import COUNT
from batch.engine.process import EngineProcess
from batch.scoring.adapters import lane_of, spec_of
from batch.scoring.lane import Lane
from batch.scoring.score import told_in_front
from tests.batch.scoring.test_score import field_scores
from train.config import Quantisation
from train.doctor.grammar import ServedGrammar
from train.doctor.skew import masked_logprobs
from train.fit.model import load_trained

# Labels of which one begins another, and of which two part in the middle of a word.
SHORT = {
    "name": "short",
    "prompt": {"system": "Choose.\n{fields}"},
    "fields": [
        {"name": "kind", "type": "label", "labels": {"app": "", "app + CRM": "", "apple": "", "ap": ""}},
        {"name": "ok", "type": "boolean"},
        {"name": "size", "type": "label", "labels": {"low": "", "lower": "", "medium": ""}},
    ],
}
# Sets, of which a label begins another; numbers likewise, which only the next byte tells apart; null.
SETS = {
    "name": "sets",
    "prompt": {"system": "Choose.\n{fields}"},
    "fields": [
        {"name": "kinds", "type": "labels", "optional": True, "labels": {"app": "", "apple": "", "low": ""}},
        {"name": "grade", "type": "integer", "labels": {"1": "", "10": "", "2": ""}},
        {"name": "size", "type": "label", "optional": True, "labels": {"low": "", "lower": ""}},
        {"name": "stars", "type": "integer", "optional": True, "labels": {"4": "", "44": ""}},
    ],
}
REQUESTS = ["An app.", "Please build a dashboard of sales.", "Find our travel policy."]


@dataclasses.dataclass
class Walker:
    """Walks every legal path of tokens through one value."""

    model: torch.nn.Module
    renderer: Renderer
    grammar: ServedGrammar
    prompt: list[int]
    least: float  # paths of less probability are left out

    def paths(
        self, before: list[int], start: int, values: dict[Any, bytes]
    ) -> dict[Any, list[tuple[float, list[int]]]]:
        """Value → its spellings ``(probability, tokens)``, going on from the answer's tokens `before`; the value starts at
        byte `start` of the answer."""
        found: dict[Any, list[tuple[float, list[int]]]] = defaultdict(list)
        pending = [(1.0, list(before))]
        while pending:
            chance, ids = pending.pop()
            text = b"".join(map(self.renderer.token_bytes, ids))
            done = [value for value, spelt in values.items() if text[start:].startswith(spelt)]
            if done:
                found[done[0]].append((chance, ids[len(before) :]))
                continue
            logprobs = self.next_logprobs(ids)
            for token in np.flatnonzero(logprobs > -np.inf):
                if chance * np.exp(logprobs[token]) > self.least:
                    pending.append((chance * float(np.exp(logprobs[token])), [*ids, int(token)]))
        return found

    def chance(self, before: list[int], ids: list[int], start: int) -> float:
        """Probability of going on from `before` as the answer `ids` does, up to the end of the value at byte `start`: where
        only one token is legal that has 1, so the rest of a JSON string that nothing else begins like."""
        chance, text = 1.0, b""
        for number in range(len(before), len(ids)):
            text = b"".join(map(self.renderer.token_bytes, ids[:number]))
            if text[start:].count(b'"') >= 2 or text[start:].startswith((b"true", b"false")):
                break
            chance *= float(np.exp(self.next_logprobs(ids[:number])[ids[number]]))
        return chance

    def next_logprobs(self, ids: list[int]) -> np.ndarray:
        """log P(next token | legal, the answer so far), over the vocabulary."""
        with torch.inference_mode():
            logits = self.model(torch.tensor([[*self.prompt, *ids]])).logits[0, -1].float()
        allowed = torch.from_numpy(self.grammar.masks([*ids, 0])[-1])  # in place of any token
        masked = logits[: len(allowed)].double().masked_fill(~allowed, -torch.inf)
        logprobs: np.ndarray[Any, np.dtype[Any]] = torch.log_softmax(masked, dim=-1).numpy()
        return logprobs


def before_value(renderer: Renderer, ids: list[int], start: int) -> list[int]:
    """The tokens in front of the first that reaches behind byte `start`."""
    position = 0
    for index, token in enumerate(ids):
        position += len(renderer.token_bytes(token))
        if position > start:
            return ids[:index]
    raise AssertionError("no such value")


def spellings(field: Field, last: bool) -> dict[Any, bytes]:
    """Each legal value with its JSON text; a number with what follows it, which ends it."""
    values: list[Any] = [*field.values]
    if field.arrow == LIST:
        values = [
            chosen for size in range(len(values) + 1) for chosen in itertools.combinations(values, size)
        ]
    end = (b"}" if last else b",") if field.told_by_next else b""
    return {value: compact_json(value).encode() + end for value in values if field.legal(value)}


@pytest.mark.parametrize("raw", [SHORT, SETS], ids=["labels", "sets"])
def test_every_legal_path_adds_up_to_one_and_the_score_is_its_path(
    tiny_base: Path, raw: dict[str, Any]
) -> None:
    """Random weights, so that nearly every spelling has mass: sums to 1, and vLLM's score is the probability of its path."""
    contract = Contract.from_dict(raw)
    renderer = Renderer.load(tiny_base, contract)
    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32).eval()
    grammar = ServedGrammar(tiny_base, contract.grammar, renderer.end_of_turn_id, 1024)
    spec = EngineSpec(
        "vllm", str(tiny_base), str(tiny_base), renderer.max_model_len, 1, max_num_seqs=4, dtype="float32"
    )
    adapter = adapter_spec("base", None, contract, renderer)
    with EngineProcess(spec) as engine:
        engine.load(adapter)
        engine.submit("base", list(enumerate(renderer.encode_requests(REQUESTS))))
        done: dict[int, Completion] = {}
        while len(done) < len(REQUESTS):
            done.update({completion.key: completion for completion in engine.poll(60)})
    several = 0
    for number, request in enumerate(REQUESTS):
        ids = list(done[number].token_ids)
        answer, spans = contract.parse(renderer.decode(ids))
        in_front = told_in_front(contract, renderer)
        scores = field_scores(renderer, ids, done[number].logprobs, spans, in_front)
        walker = Walker(model, renderer, grammar, renderer.encode_prompt(request), least=0.0)
        assert done[number].others
        for index, listed in (done[number].others or {}).items():
            exact = walker.next_logprobs(ids[:index])
            likeliest = np.sort(exact[np.isfinite(exact)])[::-1][1:COUNT]
            assert [logprob for _, logprob in listed] == pytest.approx(likeliest.tolist(), abs=5e-3)
            assert [exact[token] for token, _ in listed] == pytest.approx(likeliest.tolist(), abs=5e-3)
        for field in contract.scored_fields:
            start, _ = spans[field.name]
            before = before_value(renderer, ids, start - (field.name in in_front))
            found = walker.paths(before, start, spellings(field, field is contract.fields[-1]))
            assert sum(chance for spellings in found.values() for chance, _ in spellings) == pytest.approx(
                1, abs=1e-6
            )
            own = {tuple(tokens): chance for chance, tokens in found[answer[field.name]]}
            taken = next(
                chance for tokens, chance in own.items() if tuple(ids[len(before) :][: len(tokens)]) == tokens
            )
            assert scores[field.name] == pytest.approx(taken, rel=2e-3)
            assert scores[field.name] <= sum(own.values()) + 1e-6
            several += len(own) > 1
        row = Lane(adapter, contract, renderer).score(done[number], request)
        assert row.scores == scores
        for name, (value, second) in (row.seconds or {}).items():
            assert value != answer[name] and 0 < second <= 1 - scores[name] + 1e-6
        for name, parts in (row.label_scores or {}).items():
            assert len(parts) == len(answer[name]) and all(0 < part <= 1 for part in parts)
            assert math.prod(parts) >= scores[name] * (
                1 - 1e-6
            )  # what is left is that no other label follows
    assert several  # labels that are spelt in more than one way were among them


def test_other_spellings_hardly_weigh_after_training_and_the_runner_up_is_second(trained: Bundle) -> None:
    """With v1's adapter: what the score leaves out, per field, over rows that it was not trained on."""
    renderer, contract, base = trained.renderer, trained.contract, trained.original_base()
    model = load_trained(base, Quantisation(), trained.path)
    grammar = ServedGrammar(trained.path, contract.grammar, renderer.end_of_turn_id, 14464)
    spec = dataclasses.replace(spec_of(trained), strict=False)
    requests = ["Update our supplier records when a contract is signed."]
    for request in requests:
        prompt = renderer.encode_prompt(request)
        ids: list[int] = []
        others = {}
        walker = Walker(model, renderer, grammar, prompt, least=1e-3)
        while not ids or ids[-1] != spec.stop_id:
            exact = walker.next_logprobs(ids)
            ranked = np.argsort(-exact)[:COUNT].tolist()
            others[len(ids)] = [(token, float(exact[token])) for token in ranked[1:] if exact[token] > -30]
            ids.append(ranked[0])
        ids.pop()
        answer, spans = contract.parse(renderer.decode(ids))
        logprobs = masked_logprobs(model, prompt, ids, grammar)[range(len(ids)), ids]
        scores = field_scores(renderer, ids, logprobs.tolist(), spans)
        completion = Completion(0, ids, logprobs.tolist(), "stop", others=others)
        seconds = lane_of(trained).score(completion, request).seconds or {}
        assert {"risk", "needs_review"} <= set(seconds)  # whose values begin with tokens of their own
        for field in contract.scored_fields:
            start, _ = spans[field.name]
            before = before_value(renderer, ids, start)
            found = walker.paths(
                before, start, {value: compact_json(value).encode() for value in field.values}
            )
            total = sum(chance for spellings in found.values() for chance, _ in spellings)
            assert 0.95 < total <= 1 + 1e-6
            if field.name in seconds:
                value, second = seconds[field.name]
                rest = {
                    other: walker.chance(before, renderer.encode_answer({**answer, field.name: other}), start)
                    for other in field.values
                    if other != answer[field.name]
                }
                assert value == max(rest, key=lambda other: rest[other])
                # it has the spellings that part from this one behind the deciding token as well, and no more
                # than all of the value's, to which belongs at most what was left out
                spelt = sum(chance for chance, _ in found[value])
                assert rest[value] - 1e-6 <= second <= spelt + 1 - total + 1e-6
            own = sum(chance for chance, _ in found[answer[field.name]])
            assert scores[field.name] <= own + 1e-4 and own - scores[field.name] < 0.02
