"""One answer, as a row: what is not a number is no score."""

import math

from batch.adapter.bundle import Bundle
from batch.engine import Completion
from batch.scoring.adapters import lane_of


def test_a_log_probability_that_is_not_a_number_is_its_rows_error(tiny_bundle: Bundle) -> None:
    """`min(nan, 0.0)` is NaN: a row of status ok had it as its score."""
    lane, renderer = lane_of(tiny_bundle), tiny_bundle.renderer
    ids = renderer.encode_answer(tiny_bundle.contract.sample_answers()[0])[:-1]
    sound = lane.score(Completion(0, ids, [-0.1] * len(ids), "stop"), "x")
    assert sound.error_code is None and sound.scores and all(0 < p <= 1 for p in sound.scores.values())
    tier = (
        next(place for place in range(len(ids)) if renderer.decode(ids[: place + 1]).endswith('"tier":"')) + 1
    )
    for broken in (math.nan, math.inf):
        logprobs = [-0.1] * len(ids)
        logprobs[tier] = broken - math.inf
        row = lane.score(Completion(0, ids, logprobs, "stop"), "x")
        assert row.error_code == "engine_failure" and row.scores is None
