"""`batch-route commit OUTPUT`: prove what shards have scored, and publish it.

Everything that it takes was written down with the plan: no adapter, no base model and no option is needed,
only the input, which must still be what was read.
"""

from pathlib import Path

from batch.adapter.registry import Registry
from batch.contract.json_text import as_json
from batch.errors import InputError, StorageError, UnfinishedError, signals_raise
from batch.launch.part_writer import kept_tally
from batch.publish import publish
from batch.reporting.observer import Observer
from batch.reporting.summary import Summary
from batch.storage import folder
from batch.storage.backlog import Backlog
from batch.storage.folder import job_store, plan_store
from batch.storage.location import Location, is_local
from batch.storage.lock import lock_output
from batch.storage.manifest import finished, manifest_location, own_version, part_names, read_manifest
from batch.storage.places import check_store
from batch.storage.receipts import Receipts
from batch.storage.store import Store
from batch.storage.workdir import WorkDir, changes, fingerprint, job_in, work_dir
from batch.storage.written_plan import WrittenPlan

SHOWN = 20  # ranges of missing units in a message, at most


def commit(output: str, within: Path | None, max_error_rate: float, observer: Observer) -> Summary:
    """Again does nothing. Raises `UnfinishedError` where units are not scored, `InputError` where there is
    nothing to publish, and what a run raises.
    """
    path = work_dir(output, within)
    plans = plan_store(output, path)
    source, adapter = _of(plans)
    kept = {"--work-dir": within, "the registry": Registry().root}
    told = observer.around(source, output, adapter, max_error_rate, kept)
    with told, lock_output(output), signals_raise():
        if not is_local(output):
            check_store(Location.of(output))
        plan, replaces = WrittenPlan.read(plans), own_version(output)
        manifest = read_manifest(manifest_location(output))
        if manifest and finished(output, plan.facts if plan else manifest["job"]):
            if plan is None and job_in(path) not in (None, manifest["job"]):
                what = f"another job's work on {output} is not finished, and it has no plan that can be read"
                raise InputError(f"{what}; run that job or its shards again")
            folder.seal(output, part_names(manifest), fingerprint(manifest["job"]), replaces)
            WorkDir.discard(path)  # killed after the manifest, before this
            return observer.summary.adopt(manifest)
        if plan is None:
            what = f"there is no work of shards on {output} whose plan can be read"
            raise InputError(f"{what}; run batch-route --shard I/N first")
        with WorkDir.open(path, plan.facts) as work:
            backlog = unchanged_input(plan)
            observer.checked(backlog, plan)
            name = fingerprint(plan.facts)
            receipts = Receipts.open(job_store(output, work.path, name), plan.units, name)
            tally = kept_tally(receipts, plan.units, work.shards)
            observer.resumed(tally, plan.rows, False, receipts.engine)
            if missing := receipts.missing:
                what = f"{len(missing)} of {len(plan.units)} units are not scored: {ranges(missing)}"
                raise UnfinishedError(f"{what}; run their shards again, then commit")
            publish(output, plan, receipts, observer, replaces)
            work.finish()
        return observer.summary


def _of(plans: Store) -> tuple[str, str]:
    """Input and adapter of the planned job; nothing where the plan cannot be read, which is told later."""
    try:
        written = WrittenPlan.read(plans)
    except StorageError:
        written = None
    return (written.source, written.facts["adapter"]) if written else ("", "")


def unchanged_input(plan: WrittenPlan) -> Backlog:
    """The plan's input. Raises `InputError` where it is not what was read any more."""
    backlog = Backlog.open(plan.source, plan.facts["id_column"], plan.facts["text_column"])
    if differing := changes(plan.facts["input"], as_json(backlog.identity())):
        raise InputError(
            f"{backlog.source} has changed since it was scored ({differing}); run the shards again"
        )
    return backlog


def ranges(numbers: list[int]) -> str:
    """Rising whole numbers as people write them: ``0-2, 5, 7-9``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    told = [str(first) if first == last else f"{first}-{last}" for first, last in runs[:SHOWN]]
    return ", ".join(told) + (f" and {len(runs) - SHOWN} more ranges" if len(runs) > SHOWN else "")
