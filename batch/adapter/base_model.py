"""The base model that an adapter stands on: where its folder is, and whether it is the one trained on."""

import os
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from batch.adapter.digests import known_digest
from batch.adapter.files import no_remote_code, read_json
from batch.adapter.fits import linear_shapes
from batch.adapter.made import bases_root, in_a_process, make
from batch.adapter.references import find_upwards
from batch.adapter.renderer import Renderer
from batch.errors import AdapterError, InputError, PositionsError
from batch.storage.digest import bundle_digest

POSITIONS = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length")
MAX_FACTOR = 1 << 20  # by which positions may be stretched
EMBEDDINGS = ("embed_tokens", "wte", "embed_in", "word_embeddings")  # canonical names


def local_folder(ref: str, near: Path | None = None) -> Path | None:
    """The model folder or GGUF file at `ref`, under the current directory or the folders above `near`."""
    return find_upwards(ref, near, _is_model)


def _is_model(path: Path) -> bool:
    try:
        return (path / "config.json").is_file() or _gguf(path) is not None
    except (OSError, ValueError):  # too long for a path, or not one at all
        return False


def resolve_base(ref: str, revision: str | None = None, near: Path | None = None) -> Path:
    """Local folder of a base model named by a folder or a hub id. Raises `AdapterError`.

    A relative folder is looked for under the current directory, then under the folders above `near`. A GGUF
    file, or a folder that holds one, is converted once (:func:`converted`). A hub id is looked up in the
    local hub cache; set `BATCH_ROUTE_ONLINE=1` to let it be downloaded (safetensors only).
    """
    if found := local_folder(ref, near):
        file = _gguf(found)
        return _checked_base(converted(file, bases_root() / known_digest(file)) if file else found)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", ref) or ref.startswith("."):
        raise AdapterError(f"no base model at {ref}; give a model folder or a hub id with --base-model")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    online = os.environ.get("BATCH_ROUTE_ONLINE") == "1"
    wanted = ["*.json", "*.safetensors", "*.jinja", "*.txt"]
    try:
        return _checked_base(
            Path(
                snapshot_download(ref, revision=revision, local_files_only=not online, allow_patterns=wanted)
            )
        )
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        remedy = (
            "check the name and the network, and that HF_HUB_OFFLINE is not set"
            if online
            else "set BATCH_ROUTE_ONLINE=1 to download it once, or give a folder"
        )
        raise AdapterError(
            f"base model {ref} at revision {revision or 'main'} is not here; {remedy}"
        ) from error


def _gguf(path: Path) -> Path | None:
    """The GGUF file that `path` is or holds. Raises `AdapterError` where it holds several."""
    if path.is_file() or (path / "config.json").is_file():
        return path if path.suffix == ".gguf" else None
    files = sorted(path.glob("*.gguf")) if path.is_dir() else []
    if len(files) > 1:
        raise AdapterError(f"{path}: holds {len(files)} GGUF files; name one of them")
    return files[0] if files else None


def converted(file: Path, home: Path) -> Path:
    """`home`, a model folder with the GGUF file's weights as bfloat16 safetensors; made if it is not there.

    Raises `AdapterError` for a file that transformers cannot read.
    """
    return make(home, lambda folder: in_a_process("batch.engine.gguf", file, str(folder)))


def _checked_base(folder: Path) -> Path:
    read_json(folder / "config.json", "a model folder")
    no_remote_code(folder)
    if not any(folder.glob("*.safetensors")):
        raise AdapterError(
            f"{folder}: holds no safetensors; convert the weights, other formats are never loaded"
        )
    return folder


def check_holds(folder: Path, renderer: Renderer) -> None:
    """Refuse a base that has no embedding for a token of the rows, or no position for the longest of them."""
    shapes = linear_shapes(folder)
    rows = next((shapes[name][0] for name in EMBEDDINGS if name in shapes), None)
    if rows is not None and renderer.largest_id >= rows:
        raise AdapterError(
            f"{folder}: its tokenizer has a token {renderer.largest_id}, its embedding only {rows} "
            "rows; use the "
            "tokenizer that the model was trained with"
        )
    room = positions(read_json(folder / "config.json", "a model folder"))
    if room is not None and renderer.max_model_len > room:
        fixed = renderer.max_model_len - renderer.contract.max_tokens
        remedy = "lower [input] max_tokens in the contract"
        if fixed >= room:  # the labels and their meanings are in the prompt
            remedy = f"without a request they take {fixed}: shorten the labels' meanings, use fewer labels"
            remedy += ", or choose a base with more positions"
        raise PositionsError(
            f"{folder}: prompt, longest request and longest answer take {renderer.max_model_len} "
            f"tokens, the base holds {room}; {remedy}"
        )


def check_divides(folder: Path, parts: int) -> None:
    """Refuse a number of devices over which the base's heads and layers cannot be divided evenly."""
    config = _of_text(read_json(folder / "config.json", "a model folder"))
    sizes = {name: value for name, value in config.items() if type(value) is int and value > 0}
    heads = sizes.get("num_attention_heads")
    kept = sizes.get("num_key_value_heads") or heads  # of keys and values: fewer than parts are repeated
    for name, divides in (
        ("num_attention_heads", heads is None or heads % parts == 0),
        ("num_key_value_heads", kept is None or kept % parts == 0 or parts % kept == 0),
        ("intermediate_size", sizes.get("intermediate_size", 0) % parts == 0),
    ):
        if not divides:
            raise InputError(
                f"--tensor-parallel {parts} does not divide the {name} of {folder} ({config[name]}); "
                "give a number that does"
            )


def positions(config: Mapping[str, Any]) -> int | None:
    """Tokens that a base model can read, by its `config.json`; None where it does not say."""
    text = _of_text(config)
    found = next((text[name] for name in POSITIONS if isinstance(text.get(name), int)), None)
    rope = text.get("rope_scaling") or text.get("rope_parameters") or {}
    kind = rope.get("rope_type", rope.get("type")) if isinstance(rope, Mapping) else None
    factor = rope.get("factor") if kind in ("linear", "dynamic", "yarn") else None
    stretched = isinstance(factor, int | float) and 0 < factor < MAX_FACTOR
    return int(found * factor) if found and stretched else found


def _of_text(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a `config.json` says of the part that reads texts, of a model that also sees as well."""
    nested = config.get("text_config")
    return {**config, **nested} if isinstance(nested, Mapping) else config


def base_digest(folder: Path) -> str:
    """sha256 over a base model's config and weights; a file that has not changed is read once."""
    files = [folder / "config.json", *sorted(folder.glob("*.safetensors"))]
    with ThreadPoolExecutor() as pool:  # hashing lets go of the GIL
        digests = pool.map(known_digest, files)
        return bundle_digest({file.name: digest for file, digest in zip(files, digests, strict=True)})
