"""`batch-train`: a table of commands. Each lives in `train/commands/` and is imported when it is named."""

import importlib
from typing import NamedTuple

import click

from batch import __version__
from batch.cli_errors import ErrorGroup
from batch.events import log_stderr_as_json


class Entry(NamedTuple):
    """Where a command is (module of `train.commands`, name in it), and the first line of its help."""

    module: str
    name: str
    summary: str


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
    "lint": Entry("label", "lint", "Find mistakes in labelled requests."),
    "candidates": Entry("label", "candidates", "Choose the rows most worth labelling next."),
    "review": Entry("review", "review", "Decide the `human` rows on a local page."),
    "agreement": Entry("review", "agreement", "Measure how far two reviewers agree."),
    "apply-reviews": Entry("review", "apply_reviews", "Write people's answers into a copy of SCORED."),
    "audit": Entry("review", "audit", "Count errors among the `auto` rows."),
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
        command: click.Command = getattr(
            importlib.import_module(f"train.commands.{entry.module}"), entry.name
        )
        return command

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
