"""`batch-train promote` and `rollback`: who serves."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import click

from batch.adapter.bundle import Bundle
from batch.adapter.registry import Registry
from batch.completion import adapters
from batch.errors import one_line
from train.commands.options import PATH
from train.release import promotions
from train.release.gates import GateData, gates

if TYPE_CHECKING:
    from train.release.mlflow import ModelRegistry

MLFLOW = click.option(
    "--mlflow",
    metavar="URI",
    help="Register the champion there too: http://HOST:PORT of a tracking server, or file:///FOLDER.",
)


@click.command()
@click.argument("adapter", shell_complete=adapters)
@click.option(
    "--regression",
    type=PATH,
    help="Rows that must all be right.  [default: data/regression.jsonl where it fits the contract]",
)
@click.option(
    "--against",
    type=PATH,
    help="Rows on which ADAPTER must not be worse than the champion.  [default: ADAPTER's test split]",
)
@click.option(
    "--probes",
    type=PATH,
    help="Rows that probe for bias.  [default: data/probes.jsonl where it fits the contract]",
)
@click.option("--force", is_flag=True, help="Promote even if a gate fails; the log records it.")
@MLFLOW
def promote(
    adapter: str,
    regression: Path | None,
    against: Path | None,
    probes: Path | None,
    force: bool,
    mlflow: str | None,
) -> None:
    """Make ADAPTER the champion if it passes the gates.

    `batch-route` uses the champion where no adapter is named. The gates: every regression row is right in
    every field; all of the doctor's checks pass; ADAPTER is not significantly worse than the champion
    (exact McNemar); a label is answered in at most 5 % of the probes that do not mention the words that its
    rule requires. A gate without data that fits the contract passes and reports that. A bundle directory from
    elsewhere is copied into the registry.
    """
    registry = Registry()
    bundle = Bundle.open(registry.resolve(adapter))
    outside = _outside(mlflow)
    passed = gates(str(bundle.path), registry, GateData(regression, against, probes))
    for gate in passed:
        click.echo(one_line(str(gate)))
    if bundle.path.resolve() != (registry.root / bundle.digest).resolve():
        bundle = _copied(bundle, registry)
    promotions.promote(bundle, registry, passed, force)
    click.echo(f"champion is {bundle.digest}")
    if outside:
        click.echo(f"in MLflow it is {outside.register(bundle)}")


@click.command()
@MLFLOW
def rollback(mlflow: str | None) -> None:
    """Undo the last promotion.

    The champion before it is the champion again; once more goes one further back.
    """
    registry, outside = Registry(), _outside(mlflow)
    was, now = promotions.roll_back(registry)
    click.echo(f"champion is {now}, no longer {was}")
    if outside:
        click.echo(f"in MLflow it is {outside.register(Bundle.open(registry.resolve(now)))}")


def _copied(bundle: Bundle, registry: Registry) -> Bundle:
    """In the registry, in place of a damaged copy if there is one."""
    staging = registry.staging()
    try:
        shutil.copytree(bundle.path, staging, dirs_exist_ok=True)
        return registry.add(staging)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _outside(uri: str | None) -> "ModelRegistry | None":
    """Before the work: whether it answers."""
    if uri is None:
        return None
    from train.release.mlflow import ModelRegistry  # noqa: PLC0415 — an extra

    return ModelRegistry(uri)
