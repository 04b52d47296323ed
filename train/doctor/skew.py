"""Check 11: the base that training saw against the base that serves, field by field.

vLLM does not load 4-bit bitsandbytes weights. Where they are served expanded, only rounding may lie between
the two; where the original base serves, other weights do. Along each served answer, the trained model's
probabilities under the same grammar are compared with the served ones.
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from batch.adapter.bundle import Bundle
from batch.scoring.score import span_scores, token_spans
from train.config import Quantisation
from train.doctor.check import Check, judge
from train.doctor.grammar import ServedGrammar
from train.doctor.served import Served
from train.fit.model import load_trained


class Bound(NamedTuple):
    """`agree`: least share of rows in which the trained model would choose the served value, in every field;
    `mean` and `most`: largest difference of the chosen value's probability.
    """

    agree: float
    mean: float
    most: float


# Rounding alone, and ties that it decides: trained in float32 and served in bfloat16, a probability moved by
# 0.002 at most on the mini base, by 0.043 on SmolLM2 (thirty layers, an adapter of eight steps; 0.079 with
# one of four, whose values are nearly as likely as each other).
SAME_WEIGHTS = Bound(agree=0.8, mean=0.05, most=0.15)
OTHER_WEIGHTS = Bound(agree=0.8, mean=0.15, most=1.0)
TIE = 0.02  # two tokens whose probabilities differ by no more are as likely; rounding chooses between them


def check_skew(served: Served, bundle: Bundle, original: Path, grammar: ServedGrammar) -> Check:
    """Agreement: the trained model would have chosen each token of the value, or finds it as likely.
    Divergence: |P(trained) - P(served)|. `original` is the base as it was before training quantised it.
    """
    if served.refused:
        return Check("4-bit skew", False, served.refused)
    end = bundle.renderer.end_of_turn_id
    answers = [
        (r, c)
        for r, c in zip(served.rows, served.arms["guided"][2:], strict=True)
        if grammar.refuses([*c.token_ids, end]) is None
    ]
    if not answers:
        return Check("4-bit skew", False, "no served answer is legal, so there is none to compare with")
    quantisation = Quantisation(**bundle.manifest.get("recipe", {}).get("quantisation", {}))
    model = load_trained(original, quantisation, bundle.path)
    agree, diverge = defaultdict(list), defaultdict(list)
    for row, completion in answers:
        prompt = bundle.renderer.encode_prompt(row.request)
        logprobs = masked_logprobs(model, prompt, completion.token_ids, grammar)
        _, spans = bundle.contract.parse(bundle.renderer.decode(completion.token_ids))
        chosen = logprobs[np.arange(len(completion.token_ids)), completion.token_ids]
        tokens = token_spans(bundle.renderer, completion.token_ids, spans)
        ours, theirs = span_scores(tokens, chosen.tolist()), span_scores(tokens, completion.logprobs)
        same = np.exp(logprobs.max(axis=1)) - np.exp(chosen) <= TIE
        for name, span in tokens.items():
            agree[name].append(bool(same[span].all()))
            diverge[name].append(abs(ours[name] - theirs[name]))
    told = ", ".join(
        f"{name} {sum(agree[name])}/{len(answers)} (|ΔP| {np.mean(diverge[name]):.3f}, at most "
        f"{max(diverge[name]):.3f})"
        for name in agree
    )
    expanded = bundle.expansion is not None
    bound = SAME_WEIGHTS if expanded or quantisation.type == "none" else OTHER_WEIGHTS
    apart = [
        name
        for name in agree
        if np.mean(agree[name]) < bound.agree
        or np.mean(diverge[name]) > bound.mean
        or max(diverge[name]) > bound.most
    ]
    remedy = (
        "if --dtype float32 closes the gap it is rounding, serve with that (not on a GPU, whose adapters are "
        "computed in 16 bits); otherwise check the vLLM version"
        if bound is SAME_WEIGHTS
        else 'train with [quantisation] serve = "expanded"'
    )
    problems = [f"trained and served base part in {', '.join(apart)}: {told}; {remedy}"] if apart else []
    serves = "its 4-bit weights, expanded" if expanded else "the original base"
    return judge(
        "4-bit skew", problems, f"served on {serves}; what was trained would choose the same: {told}"
    )


def masked_logprobs(
    model: torch.nn.Module, prompt: Sequence[int], answer: Sequence[int], grammar: ServedGrammar
) -> np.ndarray:
    """``[len(answer), vocabulary]``: log P(token | legal, what came before) at each token of the answer, in
    nats.
    """
    device = next(model.parameters()).device
    with torch.inference_mode():
        logits = (
            model(torch.tensor([[*prompt, *answer]], device=device))
            .logits[0, len(prompt) - 1 : -1]
            .float()
            .cpu()
        )
    allowed = torch.from_numpy(grammar.masks(answer))
    logits = logits[:, : allowed.shape[1]].masked_fill(~allowed, -torch.inf)
    return torch.log_softmax(logits, dim=-1).numpy()  # type: ignore[no-any-return]
