"""Check 11: the 4-bit base that training saw against the base that serves, field by field.

vLLM does not serve a 4-bit bitsandbytes base, so an adapter trained on one acts on other weights. Along each
served answer, the 4-bit model's probabilities under the same grammar are compared with the served ones.
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from batch.adapter.bundle import Bundle
from batch.scoring.score import span_scores, token_spans
from train.config import Quantisation
from train.doctor.check import Check, judge
from train.doctor.grammar import ServedGrammar
from train.doctor.served import Served
from train.fit.model import load_trained

AGREE = 0.8  # share of rows in which the 4-bit model would choose the served value, in every field
DIVERGE = 0.15  # mean difference of the chosen value's probability


def check_skew(served: Served, bundle: Bundle, base: Path, grammar: ServedGrammar) -> Check:
    """Agreement: the 4-bit model would have chosen each token of the value. Divergence: mean |P(4-bit) -
    P(served)|.
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
    model = load_trained(base, quantisation, bundle.path)
    agree, diverge = defaultdict(list), defaultdict(list)
    for row, completion in answers:
        prompt = bundle.renderer.encode_prompt(row.request)
        logprobs = masked_logprobs(model, prompt, completion.token_ids, grammar)
        _, spans = bundle.contract.parse(bundle.renderer.decode(completion.token_ids))
        chosen = logprobs[np.arange(len(completion.token_ids)), completion.token_ids]
        tokens = token_spans(bundle.renderer, completion.token_ids, spans)
        ours, theirs = span_scores(tokens, chosen.tolist()), span_scores(tokens, completion.logprobs)
        same = logprobs.argmax(axis=1) == np.asarray(completion.token_ids)
        for name, span in tokens.items():
            agree[name].append(bool(same[span].all()))
            diverge[name].append(abs(ours[name] - theirs[name]))
    told = ", ".join(
        f"{name} {sum(agree[name])}/{len(answers)} (|ΔP| {np.mean(diverge[name]):.3f})" for name in agree
    )
    apart = [name for name in agree if np.mean(agree[name]) < AGREE or np.mean(diverge[name]) > DIVERGE]
    problems = (
        [f"4-bit and served base part in {', '.join(apart)}: {told}; train on a base that 4 bits can hold"]
        if apart
        else []
    )
    return judge("4-bit skew", problems, f"the 4-bit base would choose the same: {told}")


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
