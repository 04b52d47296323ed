"""`export`: a bundle for those who serve it elsewhere, as it is for a model hub, or merged into its base.

load base and adapter → keep a few answers → merge and save → load what was saved → compare
"""

import contextlib
import dataclasses
import errno
import gc
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from batch.adapter.bundle import MANIFEST, Bundle
from batch.adapter.files import read_json
from batch.adapter.renderer import TOKENIZER_FILES
from batch.engine.expand import load_base
from batch.errors import AdapterError, InputError
from batch.storage.digest import bundle_digest, file_digest
from batch.storage.location import refused_or_failed
from batch.storage.places import check_folder, check_name
from train.config import Quantisation
from train.doctor.proof import NOISE, REQUESTS
from train.files import write_json
from train.fit.checkpoints import is_full
from train.fit.model import load_trained
from train.fit.qlora import quiet

DTYPES = ("float32", "bfloat16", "float16")


@dataclasses.dataclass(frozen=True)
class Merged:
    """What was written, and how its answers compare with base and adapter apart."""

    sha256: str  # over the files' digests
    dtype: str
    answers: int
    same: int  # of them, those of which every token would be chosen again
    differs: float  # most that the probability of an answer's token differs

    def __str__(self) -> str:
        return (
            f"{self.same} of {self.answers} answers are those of base and adapter apart, the probability of "
            f"a token differs by {self.differs:.2g} at most ({self.dtype})"
        )


class Answer(NamedTuple):
    prompt: list[int]
    ids: list[int]
    probabilities: torch.Tensor  # of each of the ids, without a grammar


def export_for_hub(bundle: Bundle, folder: Path) -> None:
    """The bundle's files, and its card as `README.md`, which hubs show. It is still a bundle. Raises
    `InputError`.
    """
    with _building(folder) as staging:
        for name in (*bundle.manifest["files"], MANIFEST):
            shutil.copyfile(bundle.path / name, staging / name)
        if (staging / "card.md").exists():
            shutil.copyfile(staging / "card.md", staging / "README.md")


def export_merged(bundle: Bundle, base: Path, folder: Path, dtype: str | None = None) -> Merged:
    """One model of base and adapter as safetensors, with tokenizer, template and contract. `base` is what
    serves the bundle; `dtype` is the base's own where it is not given.

    Raises `AdapterError` where the merged model answers otherwise, and leaves nothing then.
    """
    check_new(folder)
    quiet()
    config = read_json(base / "config.json", "a model folder")
    kind = dtype or config.get("dtype") or config.get("torch_dtype") or "float32"
    if kind not in DTYPES:
        raise InputError(f"{base} is of {kind}; name one of {', '.join(DTYPES)} with --dtype")
    model = load_trained(base, Quantisation(type="none", compute_dtype="float32"), bundle.path)
    limit, end = bundle.renderer.max_answer_tokens, bundle.renderer.end_of_turn_id
    before = [_answer(model, bundle.renderer.encode_prompt(text), limit, end) for text in REQUESTS]
    with _building(folder) as staging:
        model.merge_and_unload().to(getattr(torch, kind)).save_pretrained(staging)
        del model
        gc.collect()
        for name in (*TOKENIZER_FILES, "contract.json"):
            if (bundle.path / name).exists():
                shutil.copyfile(bundle.path / name, staging / name)
        saved = load_base(staging, "none", False, getattr(torch, kind))
        merged = _compare(saved, before, _digests(staging), kind)
        if merged.differs > NOISE:
            raise AdapterError(f"merging changes the answers: {merged}; export with --dtype float32")
        facts = {"adapter": bundle.digest, "base": dict(bundle.base), **dataclasses.asdict(merged)}
        write_json(staging / "export.json", {**facts, "files": _digests(staging)})
    return merged


def check_new(folder: Path) -> None:
    """Refuse, before any work, a folder that is there or cannot be made: `InputError`."""
    if os.path.lexists(folder):
        raise InputError(f"{folder} exists; name a new folder")
    check_name(folder.name, str(folder), "")
    check_folder(folder, str(folder), "name a folder elsewhere")


@contextlib.contextmanager
def _building(folder: Path) -> Iterator[Path]:
    """A folder to write in, which takes the name of `folder` once the block ends without an error, and is
    gone otherwise. Raises `InputError`, and `StorageError` where the disk is full.
    """
    check_new(folder)
    staging = folder.with_name(f".{secrets.token_hex(8)}.partial")
    staging.mkdir(parents=True)
    try:
        yield staging
        staging.rename(folder)
    except Exception as error:
        if is_full(error, staging):
            raise refused_or_failed(str(folder), OSError(errno.ENOSPC, ""), "") from error
        raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _answer(model: torch.nn.Module, prompt: list[int], limit: int, end: int) -> Answer:
    """The likeliest token after the other, without a grammar, to the end of the turn."""
    with torch.inference_mode():
        found = model.generate(  # type: ignore[operator]
            torch.tensor([prompt], device=next(model.parameters()).device),
            max_new_tokens=limit,
            do_sample=False,
            use_cache=True,
            eos_token_id=end,
            pad_token_id=end,
        )
    ids = found[0, len(prompt) :].tolist()
    return Answer(prompt, ids, _probabilities(model, prompt, ids)[range(len(ids)), ids])


def _probabilities(model: torch.nn.Module, prompt: Sequence[int], ids: Sequence[int]) -> torch.Tensor:
    """``[len(ids), vocabulary]``: P(token | what came before) at each token of the answer."""
    with torch.inference_mode():
        device = next(model.parameters()).device
        logits = model(torch.tensor([[*prompt, *ids]], device=device)).logits[0, len(prompt) - 1 : -1]
    return torch.softmax(logits.float().cpu(), dim=-1)


def _compare(model: torch.nn.Module, before: Sequence[Answer], digests: dict[str, str], dtype: str) -> Merged:
    same, most = 0, 0.0
    for answer in before:
        now = _probabilities(model, answer.prompt, answer.ids)
        same += now.argmax(dim=-1).tolist() == answer.ids
        moved = now[range(len(answer.ids)), answer.ids] - answer.probabilities
        most = max(most, float(moved.abs().max()))
    return Merged(bundle_digest(digests), dtype, len(before), same, most)


def _digests(folder: Path) -> dict[str, str]:
    return {path.name: file_digest(path) for path in sorted(folder.iterdir()) if path.is_file()}
