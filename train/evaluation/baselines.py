"""What an adapter has to beat: simple methods that learn from the same rows, each field by itself.

`majority` answers each field's commonest value; `keywords` has a list of words for each value; `tfidf` is
logistic regression on TF-IDF of words and word pairs, `embedding` on sentence vectors. None of them writes
texts.
"""

import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, Self

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer
from threadpoolctl import threadpool_limits

from batch.contract.contract import Contract
from train.dataset import Row
from train.evaluation.statistics import log_odds
from train.likeness import LONG_WORDS, composed, signs, words

KEYWORDS = 15  # words in a value's list at most
WORDS = 50_000  # and pairs that TF-IDF counts at most: for each value of a field there is a number for each
SURE = 1.0  # z-score from which a word goes on a list


class Guess(NamedTuple):
    """A baseline's answer, in the shape that `evaluate` reads."""

    answer: dict[str, Any]
    error_code: None = None


class _Method(Protocol):
    def predict(self, texts: Sequence[str]) -> Sequence[Any]: ...


class Majority:
    """The commonest value, whatever the text."""

    def __init__(self, texts: Sequence[str], values: Sequence[Any]) -> None:
        self._value = Counter(values).most_common(1)[0][0]

    def predict(self, texts: Sequence[str]) -> list[Any]:
        return [self._value] * len(texts)


class Keywords(Majority):
    """The value with the most of its words in the text; the commonest one where none has any.

    A value's words are those most its own in the training rows, by log-odds
    (`train.evaluation.statistics.log_odds`).
    """

    def __init__(self, texts: Sequence[str], values: Sequence[Any]) -> None:
        super().__init__(texts, values)
        seen = [set(words(text)) for text in texts]
        self._lists: dict[Any, frozenset[str]] = {}
        for value in dict.fromkeys(values):
            inside = Counter(word for own, v in zip(seen, values, strict=True) if v == value for word in own)
            outside = Counter(word for own, v in zip(seen, values, strict=True) if v != value for word in own)
            best = sorted(log_odds(inside, outside).items(), key=lambda item: -item[1])[:KEYWORDS]
            self._lists[value] = frozenset(word for word, z in best if z >= SURE)

    def predict(self, texts: Sequence[str]) -> list[Any]:
        return [self._best(set(words(text))) for text in texts]

    def _best(self, seen: set[str]) -> Any:
        hits = {value: len(seen & own) for value, own in self._lists.items()}
        value = max(hits, key=lambda each: (hits[each], each == self._value))
        return value if hits[value] else self._value


class Tfidf(Majority):
    """Logistic regression on TF-IDF; the commonest value where training rows show one value only."""

    def __init__(self, texts: Sequence[str], values: Sequence[Any]) -> None:
        super().__init__(texts, values)
        self.classes = list(dict.fromkeys(values))
        self._model: Pipeline | None = None
        if len(self.classes) > 1:
            numbers = [self.classes.index(value) for value in values]
            self._model = _fitted(self.pipeline(texts), list(texts), numbers)

    def pipeline(self, texts: Sequence[str]) -> Pipeline:
        """The vectoriser and the classifier, unfitted."""
        return make_pipeline(vectoriser(texts, WORDS), _classifier())

    def predict(self, texts: Sequence[str]) -> list[Any]:
        if self._model is None:
            return super().predict(texts)
        return [self.classes[number] for number in self._model.predict(list(texts))]


class Embedding(Tfidf):
    """Logistic regression on sentence vectors of all-MiniLM-L6-v2, which know words that no row holds."""

    def pipeline(self, texts: Sequence[str]) -> Pipeline:
        # torch takes seconds, which no other baseline should wait for
        from train.evaluation.embeddings import vectors  # noqa: PLC0415

        return make_pipeline(FunctionTransformer(lambda given: vectors(tuple(given))), _classifier())


BASELINES: Mapping[str, type[Majority]] = {
    "majority": Majority,
    "keywords": Keywords,
    "tfidf": Tfidf,
    "embedding": Embedding,
}


def vectoriser(texts: Sequence[str], most: int | None = None) -> TfidfVectorizer:
    """TF-IDF of words and word pairs (in scripts without spaces of characters), the `most` frequent ones,
    unfitted. Where no text has a word of two letters, signs count: emoji, digits, symbols.
    """
    wordless = not any(re.search(LONG_WORDS, composed(text)) for text in texts)
    by = {"tokenizer": signs, "token_pattern": None} if wordless else {"token_pattern": LONG_WORDS}
    return TfidfVectorizer(
        ngram_range=(1, 2), sublinear_tf=True, max_features=most, preprocessor=composed, **by
    )


def _classifier() -> LogisticRegression:
    """The classes weigh the same however rare: small sets are uneven."""
    return LogisticRegression(C=10.0, max_iter=1000, class_weight="balanced")


def probabilities(vectors: Any, values: Sequence[Any], judged: Any) -> list[dict[Any, float]]:
    """Of each vector in `judged` (a row of a matrix), the probability of each value that the others show."""
    known = list(dict.fromkeys(values))
    if len(known) == 1:
        return [{known[0]: 1.0}] * judged.shape[0]
    model = _fitted(_classifier(), vectors, [known.index(value) for value in values])
    return [dict(zip(known, line, strict=True)) for line in model.predict_proba(judged).tolist()]


def _fitted(model: Any, inputs: Any, numbers: Sequence[int]) -> Any:
    # Vectors are small here, and BLAS threads wait for one another: four times the processor time on two
    # busy cores.
    with threadpool_limits(1, "blas"), warnings.catch_warnings():
        # many labels do not make it a regression problem
        warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)
        return model.fit(inputs, numbers)


class Baseline:
    """One method for each scored field of a contract. Build it with :meth:`learn`."""

    def __init__(self, methods: Mapping[str, _Method], contract: Contract) -> None:
        self._methods, self._contract = methods, contract

    @classmethod
    def learn(cls, name: str, rows: Sequence[Row], contract: Contract) -> Self:
        texts = [row.request for row in rows]
        values = {field.name: [row.answer[field.name] for row in rows] for field in contract.scored_fields}
        return cls({field: BASELINES[name](texts, own) for field, own in values.items()}, contract)

    def answer(self, texts: Sequence[str]) -> list[Guess]:
        """A value for every scored field of every text."""
        columns = {name: method.predict(texts) for name, method in self._methods.items()}
        return [Guess({name: values[i] for name, values in columns.items()}) for i in range(len(texts))]
