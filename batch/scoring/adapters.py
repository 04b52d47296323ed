"""Which adapter each row goes to: one for the whole run, or with `--adapter-column` the one that the row
names.
"""

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from batch.adapter.bundle import Bundle
from batch.adapter.calibration import product
from batch.adapter.registry import Registry
from batch.adapter.renderer import TOKENIZER_FILES, Renderer
from batch.contract.fields import Field
from batch.contract.labels_first import labels_first
from batch.engine import DEFAULT_ENGINE, AdapterSpec, EngineSpec, adapter_spec
from batch.errors import LASTING, AdapterError, ContractError, InputError, nearest
from batch.scoring.lane import Lane, ScoredRow
from batch.storage.backlog import Backlog
from batch.storage.digest import file_digest
from batch.storage.schema import is_text, plain

MAX_NAMES = 1000  # different ones in the column; more are ids or texts rather than adapters


@dataclasses.dataclass(frozen=True)
class Adapters:
    """The bundles of a run, all on one base. Names are resolved once, so a run serves what they meant when it
    began.
    """

    default: Bundle
    column: str | None = None  # null in it means the default
    # None: cannot be served
    named: Mapping[str | None, Bundle | None] = dataclasses.field(default_factory=dict)
    reasons: str = "all"  # the rows whose texts are asked for, see `--reasons`
    notes: tuple[str, ...] = ()  # on those that are there and cannot be served

    @classmethod
    def of(cls, registry: Registry, reference: str, column: str | None, backlog: Backlog) -> "Adapters":
        """Open the default and every bundle that the column names. A bad name is its rows' error, not the
        run's.

        Raises `AdapterError` for the default, `InputError` for the column.
        """
        default = registry.open(reference)
        if column is None:
            return cls(default)
        named: dict[str | None, Bundle | None] = {}
        for name in _names(backlog, column):
            try:
                bundle = default if name is None else registry.open(name, entries_only=True)
            except (AdapterError, ContractError):
                bundle = None
            except OSError as error:  # files that this user may not read
                if error.errno not in LASTING:
                    raise
                bundle = None
            named[name] = bundle if bundle and _same_base(bundle, default) else None
        return cls(default, column, named)

    def together(self, base: Path, reasons: str, check: Callable[["Answers"], None]) -> "Adapters":
        """Those that one run can serve: their weights fit `base`, and their contracts go with `reasons`, with
        the default's where a row asks for it, and with those of more rows; `check` raises for columns that
        cannot be. Rows that name another get an error; for the default, which was found to fit, raises
        `ContractError`, `InputError`.
        """
        named, served, notes = dict(self.named), list[Bundle](), list[str]()

        def serve(bundle: Bundle) -> None:
            labels_first(bundle.contract, reasons)
            check(Answers.of([*served, bundle]))
            served.append(bundle)

        if self.column is None or self.default in self.served:
            serve(self.default)
        for name, bundle in self.named.items():
            if bundle and bundle is not self.default:
                try:
                    if not bundle.fits(base):
                        raise AdapterError("its weights are for another base model")
                    serve(bundle)
                except (AdapterError, ContractError, InputError) as error:
                    named[name] = None
                    notes.append(f"rows for adapter {name} are errors: {error}")
        if not served:
            serve(self.default)
        return dataclasses.replace(self, named=named, reasons=reasons, notes=tuple(notes))

    @property
    def served(self) -> tuple[Bundle, ...]:
        """Each bundle once, the first one first."""
        bundles = (
            [self.default] if self.column is None else [bundle for bundle in self.named.values() if bundle]
        )
        return tuple({bundle.digest: bundle for bundle in bundles or [self.default]}.values())

    @functools.cached_property
    def answers(self) -> "Answers":
        return Answers.of(self.served)

    def facts(self) -> dict[str, Any]:
        """What makes a resumed run another, as JSON values."""
        facts: dict[str, Any] = {
            "adapter": self.default.digest,
            "contract": self.default.contract.fingerprint,
            "renderer": self.default.renderer.fingerprint,
            "base": dict(self.default.base),
        }
        if self.column is not None:
            digests = {str(name): bundle and bundle.digest for name, bundle in self.named.items()}
            facts |= {"adapter_column": self.column, "adapters": digests}
        return facts

    def rows(self, batch: pa.RecordBatch) -> list[Bundle | None]:
        """The bundle of each row of a batch of input."""
        if self.column is None:
            return [self.default] * batch.num_rows
        return [self.named[name] for name in _strings(batch.column(self.column))]


@dataclasses.dataclass(frozen=True)
class Answers:
    """What the bundles of a run answer, as one set of columns; a row has those of its own contract."""

    fields: tuple[Field, ...]
    enforced_fields: tuple[Field, ...]
    enforce_rules: bool
    triage: bool  # whether a bundle has a threshold for it

    @classmethod
    def of(cls, bundles: Sequence[Bundle]) -> "Answers":
        """Raises `ContractError` where a name is a boolean in one contract and a text in another."""
        fields: dict[str, Field] = {}
        for field in (field for bundle in bundles for field in bundle.contract.fields):
            known = fields.setdefault(field.name, field)
            if (known.arrow, known.scored) != (field.arrow, field.scored):
                raise ContractError(
                    f"field {field.name!r} is a {known.type} in one adapter's contract and a "
                    f"{field.type} in another's"
                )
        enforced = {field.name for bundle in bundles for field in bundle.contract.enforced_fields}
        return cls(
            fields=tuple(fields.values()),
            enforced_fields=tuple(field for field in fields.values() if field.name in enforced),
            enforce_rules=any(bundle.contract.enforce_rules for bundle in bundles),
            triage=any(bundle.calibration.threshold is not None for bundle in bundles),
        )

    @property
    def scored_fields(self) -> tuple[Field, ...]:
        return tuple(field for field in self.fields if field.scored)


def spec_of(bundle: Bundle, reasons: str = "all") -> AdapterSpec:
    first = labels_first(bundle.contract, reasons)
    return adapter_spec(bundle.digest, str(bundle.path), bundle.contract, bundle.renderer, first)


def lane_of(bundle: Bundle, reasons: str = "all") -> Lane:
    """`reasons`: the rows whose texts are asked for, see `--reasons`."""

    def wants_texts(row: ScoredRow) -> bool:
        if reasons != "human" or row.answer is None or row.scores is None:
            return False
        (scores,) = bundle.calibration.apply([row.scores], [row.answer])
        return bundle.calibration.triage(product(scores), row.violations) == "human"

    first = labels_first(bundle.contract, reasons)
    return Lane(spec_of(bundle, reasons), bundle.contract, bundle.renderer, first, wants_texts)


def _names(backlog: Backlog, column: str) -> list[str | None]:
    """The different values of a column, those of most rows first."""
    if column not in backlog.schema.names:
        raise InputError(
            f"{backlog.source} has no column {column!r}{nearest(column, backlog.schema.names)}; "
            "name one with --adapter-column"
        )
    kind = backlog.schema.field(column).type
    if not is_text(kind) and not pa.types.is_null(kind):
        raise InputError(
            f"{backlog.source}: column {column!r} holds {kind}, not adapter names; name another "
            "with --adapter-column"
        )
    names: Counter[str | None] = Counter()
    for batch in backlog.batches(columns=[column]):
        values, rows = plain(batch.column(0)).value_counts().flatten()
        names.update(dict(zip(_strings(values), rows.to_pylist(), strict=True)))
        if len(names) > MAX_NAMES:
            raise InputError(
                f"{backlog.source}: column {column!r} names more than {MAX_NAMES} adapters; is it "
                "the right column?"
            )
    return [name for name, _ in names.most_common()]


def _strings(column: pa.Array) -> list[str | None]:
    """Names as strings; bytes that are not UTF-8 are escaped, so that they name no adapter."""
    values = plain(column).cast(pa.large_binary()).to_pylist()
    return [None if value is None else value.decode(errors="backslashreplace") for value in values]


def _same_base(bundle: Bundle, default: Bundle) -> bool:
    """Whether one engine can serve both: the same weights, and the same vocabulary for its grammars."""
    tokenizer = "tokenizer.json"
    return bundle.base == default.base and bundle.manifest["files"].get(tokenizer) == default.manifest[
        "files"
    ].get(tokenizer)


def engine_spec(
    base: Path,
    bundles: Sequence[Bundle],
    bare: Sequence[Renderer] = (),
    kind: str = DEFAULT_ENGINE,
    at_once: int | None = None,
    **choices: Any,
) -> EngineSpec:
    """An engine that serves these bundles, and for the renderers in `bare` their base alone.

    `at_once` is how many different adapters one batch may mix, by default all. `choices` are other fields of
    the spec; None leaves each to the engine.
    """
    modules = [bundle.lora_modules for bundle in bundles]
    return EngineSpec(
        kind,
        base=str(base),
        tokenizer=str(_tokenizer(base, bundles)),
        max_model_len=max(each.max_model_len for each in (*(bundle.renderer for bundle in bundles), *bare)),
        max_lora_rank=max((bundle.rank for bundle in bundles), default=1),
        lora_modules=None
        if None in modules
        else tuple(sorted({name for names in modules if names for name in names})) or None,
        max_loras=at_once or max(1, len(bundles)),
        **choices,
    )


def _tokenizer(base: Path, bundles: Sequence[Bundle]) -> Path:
    """The base's folder where its tokenizer is the one trained with, as it should be: in a bundle vLLM looks
    for a config.json, twice and two seconds apart.
    """
    kept = bundles[0].manifest["files"] if bundles else {}
    same = all(
        (base / name).is_file() and file_digest(base / name) == kept[name]
        for name in TOKENIZER_FILES
        if name in kept
    )
    return base if same else bundles[0].path
