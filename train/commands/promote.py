"""`batch-train promote` and `rollback`: who serves."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import click

from batch.adapter.bundle import Bundle
from batch.adapter.registry import Registry
from batch.completion import adapters
from batch.errors import InputError, Interrupted, StorageError, one_line, ours
from train.commands.options import PATH
from train.fit.places import check_registry
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
    (exact McNemar), and has a threshold for as small a target error if the champion has one; a label is
    answered in at most 5 % of the probes that do not mention the words that its rule requires. A gate without
    data that fits the contract passes and reports that. A bundle directory from elsewhere is copied into the
    registry.
    """
    registry = Registry()
    bundle = Bundle.open(registry.resolve(adapter))
    check_registry(registry)
    promotions.history(registry)  # a damaged log is refused before the gates, which take minutes
    outside = _outside(mlflow)
    if outside:
        outside.check(bundle)
    data = GateData(regression, against, probes)
    if not (outside and not data.named and _serves(bundle, registry)):  # else it is only to be registered
        bundle = _promoted(bundle, registry, data, force)
    click.echo(f"champion is {bundle.digest}")
    if outside:
        _register(outside, bundle, repeatable=True)


@click.command()
@MLFLOW
def rollback(mlflow: str | None) -> None:
    """Undo the last promotion.

    The champion before it is the champion again; once more goes one further back.
    """
    registry, outside = Registry(), _outside(mlflow)
    was, now = promotions.roll_back(registry, outside.check if outside else None)
    click.echo(f"champion is {now}, no longer {was}")
    if outside:
        _register(outside, Bundle.open(registry.resolve(now)), repeatable=False)


def _promoted(bundle: Bundle, registry: Registry, data: GateData, force: bool) -> Bundle:
    """The champion, as the registry holds it. Raises `AdapterError` at a gate that is not passed."""
    beaten = registry.aliases().get("champion")
    passed = gates(str(bundle.path), registry, data)
    for gate in passed:
        click.echo(one_line(str(gate)))
    if not _kept(bundle, registry):
        bundle = _copied(bundle, registry)
    promotions.promote(bundle, registry, passed, beaten, force)
    return bundle


def _kept(bundle: Bundle, registry: Registry) -> bool:
    return bundle.path.resolve() == (registry.root / bundle.digest).resolve()


def _serves(bundle: Bundle, registry: Registry) -> bool:
    """Whether it is the champion already."""
    return _kept(bundle, registry) and registry.aliases().get("champion") == bundle.digest


def _register(outside: "ModelRegistry", bundle: Bundle, *, repeatable: bool) -> None:
    """In MLflow too, when the champion has moved already. Where the same command may not be repeated, as a
    second rollback goes further back, no error may ask for that.
    """
    try:
        click.echo(f"in MLflow it is {outside.register(bundle)}")
    except Exception as error:
        cause = ours(error)
        if isinstance(cause, Interrupted):
            raise
        passing = repeatable and cause.exit_code == StorageError.exit_code
        why = str(cause).rpartition("; ")[0] or str(cause)
        raise (StorageError if passing else InputError)(
            f"champion is {bundle.digest[:12]}, only MLflow does not have it as such: {why}; when that is "
            f"mended, `batch-train promote champion --mlflow {outside.uri}` registers it and moves nothing"
        ) from None  # a cause would decide the exit code


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
