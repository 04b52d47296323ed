"""`batch-train export`: an adapter for a model hub, or merged for another server."""

from pathlib import Path

import click

from batch.adapter.registry import Registry
from batch.completion import adapters
from batch.errors import InputError
from train.commands.options import PATH, base_option
from train.exporting import DTYPES, check_new, export_for_hub, export_merged


@click.command()
@click.argument("adapter", shell_complete=adapters)
@click.argument("folder", type=PATH)
@click.option("--merge", is_flag=True, help="One model of base and adapter, for servers without LoRA.")
@base_option
@click.option(
    "--dtype", type=click.Choice(DTYPES), help="Number format of the merged weights.  [default: the base's]"
)
def export(adapter: str, folder: Path, merge: bool, base_model: str | None, dtype: str | None) -> None:
    """Write ADAPTER into FOLDER for a hub or another server.

    Without --merge the files are the bundle's, with its card as README.md: upload them as they are, and what
    is downloaded again is a bundle. With --merge they are a model in safetensors, whose answers to eight
    requests are compared with those of base plus adapter.
    """
    bundle = Registry().open(adapter)
    check_new(folder)  # before the base is made that serves, if it is not there
    if not merge:
        if dtype or base_model:
            raise InputError("--dtype and --base-model go with --merge")
        export_for_hub(bundle, folder)
        click.echo(f"{folder}: adapter {bundle.digest[:12]}, to be uploaded as it is")
        return
    merged = export_merged(bundle, bundle.resolve_base(base_model), folder, dtype)
    click.echo(f"{folder}: {merged}")
