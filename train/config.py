"""A training recipe: one TOML file, loaded into frozen dataclasses. Defaults live here and nowhere else.

An unknown key, a wrong type or a value out of range is a `ConfigError` that names the key. Paths in the file
are looked for under the current directory, then under the folders above the config file, the nearest first;
so `data/v1/train.jsonl` in `train/mini.toml` is found from anywhere.
"""

import dataclasses
import importlib.util
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from batch.adapter.references import find_upwards
from batch.errors import EXTRAS, ConfigError, nearest

TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")
MOST_STEPS = 10**9
BOUNDS: Mapping[str, tuple[float, float]] = {  # of [training]'s numbers; beyond them is a slip of the keys
    "batch_size": (1, 65_536),
    "gradient_accumulation": (1, 65_536),
    "eval_every": (1, MOST_STEPS),
    "epochs": (1e-9, 100_000),
    "learning_rate": (1e-9, 1e38),  # a fit says by itself that one is too high
    "max_grad_norm": (1e-9, 1_000_000_000),
    "weight_decay": (0, 100),
    "early_stopping_patience": (0, MOST_STEPS),
    "seed": (0, 2**32 - 1),  # numpy's largest
    "warmup": (0, 0.99),
}
SCHEDULERS = ("linear", "cosine", "constant", "constant_with_warmup")


@dataclasses.dataclass(frozen=True)
class Shape:
    """A base model's shape, for `plan` where the model itself is not here. Names as in its `config.json`."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    tie_word_embeddings: bool


@dataclasses.dataclass(frozen=True)
class Base:
    model: str  # a folder or a hub id
    revision: str | None = None  # commit of a hub id; a branch name would not pin anything
    shape: Shape | None = None


@dataclasses.dataclass(frozen=True)
class Data:
    contract: str  # the contract, a TOML file
    train: str  # labelled rows to train on
    validation: str  # rows that choose the checkpoint
    test: str | None = None  # never trained on; checked against the other splits for leaks
    calibration: str | None = (
        None  # rows to calibrate scores on, at least 200; the validation rows where there is none
    )
    likeness: float = (
        0.6  # similarity from which rows of two splits are refused as nearly equal; 1 refuses equal ones only
    )

    def files(self) -> dict[str, str | None]:
        """The file of each split, as the recipe has it."""
        return {
            "train": self.train,
            "validation": self.validation,
            "test": self.test,
            "calibration": self.calibration,
        }

    def splits(self) -> dict[str, str]:
        """The file of each split that the recipe names."""
        return {split: file for split, file in self.files().items() if file}


@dataclasses.dataclass(frozen=True)
class Lora:
    r: int = 16
    alpha: int = 32  # the update is scaled by alpha / r
    dropout: float = 0.05
    target: str = "all-linear"  # the only value: every linear layer but the output head


@dataclasses.dataclass(frozen=True)
class Quantisation:
    type: str = "nf4"  # nf4, fp4, or none: train on the base in full precision
    # base weights that serve. expanded: the 4-bit weights, dequantised; original: those from before they were
    # quantised; measured: original if, on 200 calibration rows or more, that is not significantly worse
    serve: str = "expanded"
    double: bool = True  # quantise the quantisation constants too
    compute_dtype: str = "auto"  # bfloat16, float32, or auto: bfloat16 on a GPU that has it, else float32


@dataclasses.dataclass(frozen=True)
class Training:
    epochs: float = 3.0
    max_steps: int = -1  # overrides epochs; -1 counts epochs
    batch_size: int = 4  # rows per forward pass
    gradient_accumulation: int = 1  # passes per step
    learning_rate: float = 2e-4  # 5e-3 for data/mini-base
    warmup: float = 0.1  # share of all steps
    scheduler: str = "linear"  # linear, cosine, constant or constant_with_warmup
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0  # gradients are clipped to it
    gradient_checkpointing: bool = False  # recompute activations: less memory, a fifth slower
    eval_every: int = 10  # steps between validations and checkpoints
    early_stopping_patience: int = 0  # validations without a better loss before stopping; 0 never stops early
    seed: int = 0
    report_to: tuple[str, ...] = ()  # any of tensorboard, wandb, mlflow, trackio, each installed separately


@dataclasses.dataclass(frozen=True)
class CalibrationTarget:
    target_error: float = (
        0.02  # share of wrong rows that may go without a person; sets the threshold of `triage`
    )


@dataclasses.dataclass(frozen=True)
class Config:
    """A checked recipe. :meth:`load` is the way to get one."""

    path: Path
    base: Base
    data: Data
    lora: Lora
    quantisation: Quantisation
    training: Training
    calibration: CalibrationTarget

    @classmethod
    def load(cls, path: str | Path) -> "Config":
        path = Path(path)
        try:
            content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
        except FileNotFoundError:
            raise ConfigError(
                f"no config at {path}; give the path of a recipe such as train/mini.toml"
            ) from None
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror}; check the path") from error
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{path}: {error}; correct the file") from error
        try:
            if "path" in content:  # the one value that is not the file's to say
                raise ConfigError("unknown key 'path' in the config")
            config: Config = _build(cls, {**content, "path": path}, "the config")
            _check(config)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None
        except (ValueError, OverflowError) as error:  # a whole number too large to be shown, or for a float
            raise ConfigError(f"{path}: {error}; correct the file") from error
        return config

    def find(self, reference: str) -> Path:
        """The file that the config names by `reference`. Raises `ConfigError`."""
        if path := find_upwards(reference, self.path):
            return path
        raise ConfigError(
            f"{self.path}: no file {reference}, neither from the current directory nor from the "
            "folders above the config; correct the path"
        )

    def with_target_error(self, share: float) -> "Config":
        return dataclasses.replace(self, calibration=CalibrationTarget(share))

    def recipe(self) -> dict[str, Any]:
        """The values that decide what is trained, as plain JSON; where the config lies and who watches are
        left out.
        """
        content = dataclasses.asdict(self)
        del content["path"], content["base"]["shape"], content["training"]["report_to"]
        return content


def _build(cls: type, table: Any, where: str) -> Any:
    """An instance of a dataclass from a TOML table, key by key."""
    if not isinstance(table, Mapping):
        raise ConfigError(f"{where} must be a table")
    hints = typing.get_type_hints(cls)
    required = {
        field.name
        for field in dataclasses.fields(cls)
        if field.default is dataclasses.MISSING and not _all_optional(hints[field.name])
    }
    for key in table:
        if key not in hints:
            raise ConfigError(f"unknown key {key!r} in {where}{nearest(key, sorted(set(hints) - {'path'}))}")
    for key in sorted(required - set(table)):
        raise ConfigError(f"missing key {key!r} in {where}")
    values = {name: _value(hint, table[name], name, where) for name, hint in hints.items() if name in table}
    for name, hint in hints.items():
        if name not in values and _all_optional(hint):
            values[name] = hint()
    return cls(**values)


def _all_optional(hint: Any) -> bool:
    """Whether the hint is a section that may be left out, because each of its keys has a default."""
    return dataclasses.is_dataclass(hint) and all(
        f.default is not dataclasses.MISSING for f in dataclasses.fields(hint)
    )


def _value(hint: Any, value: Any, name: str, where: str) -> Any:
    if isinstance(hint, types.UnionType):  # X | None: TOML has no null, so a value that is there is an X
        hint = typing.get_args(hint)[0]
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _build(hint, value, f"[{name}]" if where == "the config" else f"{where[:-1]}.{name}]")
    if hint == tuple[str, ...] and isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(value)
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is hint or isinstance(value, Path):
        return value
    kinds = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    raise ConfigError(f"{where} {name} must be {kinds.get(hint, 'a list of texts')}, not {value!r}")


def _check(config: Config) -> None:
    lora, quantisation, training = config.lora, config.quantisation, config.training
    _named("[base]", {"model": config.base.model, "revision": config.base.revision})
    _named("[data]", {"contract": config.data.contract, **config.data.files()})
    _among("[lora] target", lora.target, ("all-linear",))
    _among("[quantisation] type", quantisation.type, ("nf4", "fp4", "none"))
    _among("[quantisation] serve", quantisation.serve, ("expanded", "original", "measured"))
    _among("[quantisation] compute_dtype", quantisation.compute_dtype, ("auto", "bfloat16", "float32"))
    _among("[training] scheduler", training.scheduler, SCHEDULERS)
    _within("[lora] r", lora.r, 1, 512)
    _within("[lora] alpha", lora.alpha, 1, 100_000)
    _within("[lora] dropout", lora.dropout, 0, 0.9)
    for name, (low, high) in BOUNDS.items():
        _within(f"[training] {name}", getattr(training, name), low, high)
    _within("[data] likeness", config.data.likeness, 0.1, 1)
    _within("[calibration] target_error", config.calibration.target_error, 1e-4, 0.5)
    if not (1 <= training.max_steps <= MOST_STEPS or training.max_steps == -1):
        raise ConfigError(
            f"[training] max_steps must be at least 1 and at most {MOST_STEPS}, or -1 to count epochs, "
            f"not {training.max_steps}"
        )
    for tracker in training.report_to:
        _among("[training] report_to", tracker, TRACKERS)
        if importlib.util.find_spec(tracker) is None:
            package = f"'batch-route[{EXTRAS[tracker]}]'" if tracker in EXTRAS else tracker
            raise ConfigError(
                f"[training] report_to: no {tracker} here; pip install {package}, or leave it out"
            )


def _among(where: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(
            f"{where} must be one of {', '.join(known)}, not {value!r}{nearest(value, list(known))}"
        )


def _named(where: str, names: Mapping[str, str | None]) -> None:
    for key, name in names.items():
        if name is not None and not name.strip():
            raise ConfigError(f"{where} {key} is empty; write a name, or leave the key out")


def _within(where: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{where} must be between {_plain(low)} and {_plain(high)}, not {value!r}")


def _plain(bound: float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"
