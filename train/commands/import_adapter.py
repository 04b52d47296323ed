"""`batch-train import`: an adapter that was trained by other means, into the registry."""

from pathlib import Path

import click

from batch.adapter.base_model import local_folder
from batch.adapter.registry import Registry
from batch.contract.contract import Contract
from batch.errors import InputError, one_line
from train.commands.options import NAME, PATH
from train.evaluation.ask import check_chosen_alias
from train.importing import another_base, import_folder, proved


@click.command("import")
@click.argument("folder", type=PATH)
@click.option("--contract", type=PATH, required=True, help="The contract of the adapter's answers.")
@click.option(
    "--base",
    "base_model",
    metavar="REF",
    type=NAME,
    required=True,
    help="The adapter's base model: a folder or a hub id.",
)
@click.option("--revision", type=NAME, help="Commit of the base's hub id.")
@click.option(
    "--alias", type=NAME, default="latest", show_default=True, help="Alias of the bundle; not `champion`."
)
def import_adapter(folder: Path, contract: Path, base_model: str, revision: str | None, alias: str) -> None:
    """Make a bundle from a PEFT adapter, and verify it.

    FOLDER is what PEFT wrote. It is checked against its base, sealed with the contract and the base's
    tokenizer, served, and its answers are compared with PEFT's. An adapter that would be served in part
    is refused (exit 2). It has no threshold until `calibrate`, and no record of its training rows, so
    `promote` needs --force.
    """
    check_chosen_alias(alias)
    if revision and local_folder(base_model):
        raise InputError(f"--revision is of a hub id, and {base_model} is a folder; leave it out")
    registry = Registry()
    bundle = import_folder(folder, Contract.load(contract), base_model, revision, registry)
    if warning := another_base(bundle):
        click.echo(one_line(f"Warning: {warning}"), err=True)
    click.echo(f"verified: {proved(bundle, base_model)}")
    registry.set_alias(alias, bundle.digest)
    click.echo(f"{bundle.path}  ({alias})")
