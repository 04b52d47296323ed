"""Writes docs/licences.md from the metadata of the packages that .ci/cpu.lock pins, in an environment that
`make setup` made: `python docs/make_licences.py`. A test keeps the page current.
"""

import re
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = Path(__file__).with_name("licences.md")
HEAD = """# Licences of what is installed

Made by `python docs/make_licences.py` from the packages' own metadata; do not edit. These are the packages
that `make setup` installs on a machine without a GPU (`.ci/cpu.lock`). `batch-route` itself is Apache-2.0.
The packages marked † are proprietary: their own licence files say what is allowed. hadolint (GPL-3.0) is a
program that the tests run, and is linked with nothing.

On a GPU, `.ci/cuda.lock` adds NVIDIA's CUDA libraries (`nvidia-*`), which are proprietary as well: read their
licence files before you pass an image on.

| package | version | licence |
|---|---|---|
"""
KNOWN = {
    "fastokens": "Apache-2.0",
    "oss-harmony": "Apache-2.0",
    "setuptools": "MIT",
}  # their metadata says nothing
SHORT = {  # where a package's metadata has a whole text, or nothing
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD",
    "MIT License": "MIT",
}


def pinned() -> list[tuple[str, str]]:
    lines = (ROOT / ".ci/cpu.lock").read_text(encoding="utf-8").splitlines()
    found = (re.match(r"([\w.-]+)==([\w.+!-]+)", line) for line in lines)
    return sorted((match[1], match[2]) for match in found if match)


def licence(name: str) -> str:
    """The SPDX expression, else the classifiers, else the first line of the licence field."""
    try:
        facts = metadata(name)
    except PackageNotFoundError:
        return "not installed here"
    said = [
        text.rpartition(" :: ")[2] for text in facts.get_all("Classifier") or [] if text.startswith("License")
    ]
    said = [SHORT.get(text, text) for text in said if text != "OSI Approved"]
    text = (
        facts.get("License-Expression")
        or ", ".join(dict.fromkeys(said))
        or (facts.get("License") or "").split("\n")[0]
    )
    return (text.strip()[:80] or KNOWN.get(name, "not said")) + (
        " †" if "propriet" in text.lower() or "intel" in text.lower() else ""
    )


def page() -> str:
    return HEAD + "".join(f"| {name} | {version} | {licence(name)} |\n" for name, version in pinned())


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
