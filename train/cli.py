"""`batch-train`: a table of commands. Each lives in `train/commands/` and is imported when it is named."""

import importlib
from typing import Any, NamedTuple

import click

from batch import __version__
from batch.cli_errors import ErrorGroup, translated
from batch.errors import missing
from batch.events import log_stderr_as_json
from batch.imports import uncollected

EXTRAS = f"{__name__}.extras"  # of the command that runs, in click's `meta`


class Entry(NamedTuple):
    """Where a command is (module of `train.commands`, name in it), the first line of its help, and the
    extras that bring what it imports.
    """

    module: str
    name: str
    summary: str
    extras: str = "engine,train"


COMMANDS = {
    "fit": Entry("fit", "fit", "Train the adapter that CONFIG describes."),
    "plan": Entry("plan", "plan", "Print what CONFIG will train, without loading a model."),
    "base": Entry("base", "base", "Make a base model from a GGUF file, or `smollm2`."),
    "eval": Entry("evaluate", "evaluate", "Evaluate adapters and baselines on labelled requests."),
    "diagnose": Entry("diagnose", "diagnose", "Explain ADAPTER's mistakes."),
    "loop": Entry("loop", "loop", "Fit versions of the data and show what changed."),
    "doctor": Entry("doctor", "doctor", "Check that ADAPTER is served as it was trained."),
    "calibrate": Entry("calibrate", "calibrate", "Calibrate ADAPTER's scores on labelled requests."),
    "report": Entry("report", "report", "Write an HTML report on ADAPTER."),
    "adapters": Entry("adapters", "adapters", "List the adapters."),
    "import": Entry("import_adapter", "import_adapter", "Make a bundle from a PEFT adapter, and verify it."),
    "export": Entry("export", "export", "Write ADAPTER into FOLDER for a hub or another server."),
    "promote": Entry("promote", "promote", "Make ADAPTER the champion if it passes the gates."),
    "rollback": Entry("promote", "rollback", "Undo the last promotion."),
    "contract": Entry("contract", "contract", "Make a contract from labelled data."),
    "lint": Entry("label", "lint", "Find mistakes in labelled requests.", "train"),
    "candidates": Entry("label", "candidates", "Choose the rows most worth labelling next.", "train"),
    "review": Entry("review", "review", "Decide the `human` rows on a local page.", "review"),
    "agreement": Entry("review", "agreement", "Measure how far two reviewers agree.", "review"),
    "apply-reviews": Entry(
        "review", "apply_reviews", "Write people's answers into a copy of SCORED.", "review"
    ),
    "audit": Entry("review", "audit", "Count errors among the `auto` rows.", "review"),
    "improve": Entry("improve", "improve", "Fit CONFIG again with the reviewed rows."),
}


class LazyGroup(ErrorGroup):
    """Imports a command when it runs or shows its own help; the list of all needs none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        entry = COMMANDS[cmd_name]
        ctx.meta[EXTRAS] = entry.extras
        with uncollected():
            module = importlib.import_module(f"train.commands.{entry.module}")
        command: click.Command = getattr(module, entry.name)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        with translated():
            try:
                return click.Group.invoke(self, ctx)
            except ModuleNotFoundError as error:
                raise missing(error, ctx.meta.get(EXTRAS)) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="batch-train")
@click.option("--log-json", is_flag=True, help="Write JSON log lines on stderr, and nothing else there.")
def main(log_json: bool) -> None:
    """Train adapter bundles from labelled requests, and evaluate them."""
    if log_json:
        log_stderr_as_json()
