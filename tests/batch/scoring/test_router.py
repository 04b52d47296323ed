"""The router with a scripted engine: what an engine may do wrong stays with its row, or ends in one clear error."""

from collections.abc import Sequence

from batch.adapter.bundle import Bundle
from batch.engine import AdapterSpec, Asked, Completion
from batch.scoring.adapters import lane_of
from batch.scoring.router import Requests, Router


class Scripted:
    """Answers each request by the next of `finishes`, in reverse order of submission."""

    def __init__(self, bundle: Bundle, finishes: Sequence[str]) -> None:
        self.ids = bundle.renderer.encode_answer(bundle.contract.sample_answers()[0])[:-1]
        self.finishes, self.most = list(finishes), 0
        self.keys: list[int] = []

    def load(self, adapter: AdapterSpec) -> dict[str, object]:
        return {}

    def submit(self, adapter: str, work: Sequence[tuple[int, Asked]]) -> None:
        self.keys += [key for key, _ in work]
        self.most = max(self.most, len(self.keys))

    def poll(self) -> list[Completion]:
        if not self.keys or not self.finishes:
            return []
        key, finish = self.keys.pop(), self.finishes.pop(0)
        ids = self.ids[:-3] if finish == "broken" else self.ids
        return [Completion(key, ids, [-0.5] * len(ids), "stop" if finish == "broken" else finish)]  # type: ignore[arg-type]


def routed(
    bundle: Bundle, finishes: Sequence[str], batches: list[list[str]], window: int = 100
) -> tuple[Scripted, list[list[str | None]]]:
    engine = Scripted(bundle, finishes)
    lane = lane_of(bundle)
    rows = Router(engine, window).route(Requests.to(lane, batch) for batch in batches)
    return engine, [[row.error_code for row in batch] for batch in rows]


def test_each_finish_is_its_rows_own(tiny_bundle: Bundle) -> None:
    """Answers arrive in any order; rows leave in theirs."""
    _, codes = routed(tiny_bundle, ["stop", "length", "error", "broken"], [["a", "b"], ["c", "d"]])
    assert codes == [["invalid_output", "engine_failure"], ["truncated", None]]


def test_the_window_bounds_what_the_engine_holds(tiny_bundle: Bundle) -> None:
    engine, codes = routed(tiny_bundle, ["stop"] * 40, [[f"x {i}"] for i in range(40)], window=5)
    assert engine.most <= 5 and codes == [[None]] * 40


def test_scores_and_violations(tiny_bundle: Bundle) -> None:
    """A score is the exponential of its tokens' sum; the rules are checked against the request's text."""
    engine = Scripted(tiny_bundle, ["stop"])
    ((row,),) = Router(engine).route([Requests.to(lane_of(tiny_bundle), ["text"])])
    assert (
        row.answer
        and row.scores
        and set(row.scores) == {field.name for field in tiny_bundle.contract.scored_fields}
    )
    assert all(0 < score < 1 for score in row.scores.values())
    assert list(row.violations) == tiny_bundle.contract.violations(row.answer, "text")
