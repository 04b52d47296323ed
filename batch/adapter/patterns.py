"""The regular expressions of an adapter's config, tried in a process of its own.

PEFT and vLLM match them against the names of a model's modules. Python's `re` can take for ever over one, and
nothing can stop it but the end of its process. So a child tries each first, on the names that the adapter
changes and on such as they are matched with besides: an expression takes milliseconds for all of them.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from batch.errors import AdapterError, EngineError

ALL = "all-linear"  # PEFT's word for every linear layer, which is no expression
BESIDE = ".post_attention_layernorm"  # a long name that no adapter changes
CPU_SECONDS = 2
TRY = f"""
import json, re, resource, sys
resource.setrlimit(resource.RLIMIT_CPU, ({CPU_SECONDS}, {CPU_SECONDS + 1}))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
asked = json.load(sys.stdin)
for number, expression in enumerate(asked["expressions"]):
    print(number, flush=True)
    try:
        compiled = re.compile(expression)
    except (re.error, RecursionError, OverflowError) as error:
        sys.exit(" ".join(str(error).split()))
    for name in asked["names"]:
        compiled.fullmatch(name)
"""


class Pattern(NamedTuple):
    """An expression as the config has it, and as PEFT matches it against the whole of a name."""

    key: str
    told: str
    matched: str


def patterns(config: dict[str, Any]) -> list[Pattern]:
    """All that PEFT and vLLM match, where the config has values of the right kind."""
    texts = {key: config.get(key) for key in ("target_modules", "exclude_modules")}
    found = [
        Pattern(key, text, text)
        for key, text in texts.items()
        if isinstance(text, str) and text.lower() != ALL
    ]
    for key in ("rank_pattern", "alpha_pattern"):
        found += [Pattern(key, told, rf"(.*\.)?({told})$") for told in config.get(key) or {}]
    layers = config.get("layers_pattern") or []
    for told in [layers] if isinstance(layers, str) else layers:
        found.append(Pattern("layers_pattern", told, rf"(?:^|.*?\.){told}\.(?P<idx>\d+)\..*"))
    return found


def check_patterns(config: dict[str, Any], names: Sequence[str], where: Path | str) -> None:
    """Raises `AdapterError` for an expression that is none, or that takes too long over such names."""
    if not (tried := patterns(config)):
        return
    above = {name[:end] for name in names for end, letter in enumerate(name) if letter == "."}
    all_names = {*names, *above, *(name + BESIDE for name in above)}
    asked = {"expressions": [each.matched for each in tried], "names": sorted(all_names)}
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", TRY], input=json.dumps(asked), capture_output=True, text=True
    )
    if done.returncode == 0:
        return
    numbers = done.stdout.split()
    if not numbers:
        raise EngineError(f"{where}: its expressions could not be tried; run again")
    each = tried[int(numbers[-1])]
    problem = f"{where}: {each.key}: {each.told[:200]!r}"
    if done.returncode == 1:
        raise AdapterError(f"{problem} is not a regular expression: {done.stderr.strip()[:200]}; correct it")
    raise AdapterError(f"{problem} takes too long to match; name the modules instead")
