"""What the shell completes: names of adapters."""

import click

DIGITS = 12  # of a digest; shorter starts name an adapter as well


def adapters(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Aliases and digests of the registry that begin with what is typed, after the last comma."""
    from batch.adapter.registry import DIGEST, Registry

    before, comma, begun = incomplete.rpartition(",")
    registry = Registry()
    digests = sorted(path.name[:DIGITS] for path in registry.root.glob("*") if DIGEST.fullmatch(path.name))
    return [before + comma + name for name in (*registry.aliases(), *digests) if name.startswith(begun)]
