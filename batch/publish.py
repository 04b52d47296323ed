"""Parts that are all there → a proved output, its manifest last."""

from batch.reporting import drift
from batch.reporting.observer import Observer
from batch.storage import folder
from batch.storage.manifest import (
    is_folder,
    manifest_location,
    manifest_version,
    named_parts,
    remove_manifest,
    write_manifest,
)
from batch.storage.object_store import written_meanwhile
from batch.storage.output import assemble
from batch.storage.receipts import Receipts
from batch.storage.written_plan import WrittenPlan


def publish(
    output: str, plan: WrittenPlan, receipts: Receipts, observer: Observer, replaces: str | None
) -> None:
    """Prove that the parts are the input's rows and make them `output`, in the place of the one whose
    manifest has the version `replaces`. The caller has seen that the input is still what was read. Raises
    `StorageError`, and an older output stays.
    """
    # before its manifest is replaced
    earlier, older = drift.earlier_run(output, plan.facts), named_parts(output)
    like = manifest_location(output).status()
    id_column, expect = plan.facts["id_column"], (plan.rows, plan.ids)
    if is_folder(output):
        proof = folder.publish(receipts, output, plan.schema, id_column, expect, older)
    else:
        parts = [receipts.store.location(receipt.part) for receipt in receipts]
        size = sum(receipt.size for receipt in receipts)
        proof = assemble(parts, output, plan.schema, {}, id_column, expect, replaces, size)
        replaces = None  # it has gone already
    compared = drift.compare(earlier, observer.summary.tally)
    told = observer.assembled(proof, compared)
    write_manifest(output, plan.facts, proof, replaces, like, run=told, drift=compared)
    version = manifest_version(output)
    if not folder.still_there(output, proof):
        remove_manifest(output, version)
        raise written_meanwhile(output)
    folder.seal(output, [part.name for part in proof.parts or ()], receipts.job, version, older)
