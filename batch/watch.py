"""`--watch`: a folder in, a folder out; the engine stays warm and routes each file that arrives.

A file is whole once its Parquet footer is there, so one that is still being written is refused and looked at
again when it has changed. Each file is a run of its own: same locks, ledger, proof and manifest. The
adapter's alias is resolved for each anew, so a promoted champion serves from the next file on; a file that an
earlier watch left unfinished is ended by the adapter that began it.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from batch.engine import EngineSpec
from batch.engine.supervisor import Supervisor
from batch.errors import BatchRouteError, EngineError, InputError, StorageError, signals_raise
from batch.job import Job, Options, work_dir_of
from batch.run import EngineFor, start_engine, wanted_engine
from batch.storage.manifest import manifest_location, read_manifest
from batch.storage.workdir import job_in

POLL = 1.0  # seconds between two looks at the folder
PAUSE = 30.0  # seconds after the engine or the machine failed
Route = Callable[[Options, EngineFor], None]  # one file, with a way to get its engine
Stamp = tuple[int, int]  # size in bytes and time of change in ns


class WarmEngine:
    """One engine from file to file; another takes its place only for a job that it cannot serve."""

    def __init__(self) -> None:
        self._engine: Supervisor | None = None
        self._spec: EngineSpec | None = None

    @contextlib.contextmanager
    def __call__(self, job: Job) -> Iterator[Supervisor]:
        wanted = wanted_engine(job)
        if self._engine is None or self._spec is None or not serves(self._spec, wanted):
            self.close()
            self._engine, self._spec = start_engine(job), wanted
        try:
            yield self._engine
        except BaseException:
            self.close()  # what still runs in it is nobody's any more
            raise

    def close(self) -> None:
        if self._engine:
            self._engine.close()
            self._engine = None


def serves(running: EngineSpec, wanted: EngineSpec) -> bool:
    """Whether a running engine can take the adapters that `wanted` was made for."""
    modules = running.lora_modules is None or (
        wanted.lora_modules is not None and set(wanted.lora_modules) <= set(running.lora_modules)
    )
    fits = ("max_model_len", "max_lora_rank", "max_loras")
    same = {name: getattr(running, name) for name in (*fits, "tokenizer", "lora_modules")}
    return (
        modules
        and all(getattr(wanted, name) <= getattr(running, name) for name in fits)
        and _vocabulary(wanted) == _vocabulary(running)
        and dataclasses.replace(wanted, **same) == running
    )


def _vocabulary(spec: EngineSpec) -> bytes:
    return (Path(spec.tokenizer) / "tokenizer.json").read_bytes()


def watch(options: Options, route: Route, say: Callable[[str], None]) -> None:
    """Route every `*.parquet` in the folder `options.input` to one of the same name in `options.output`,
    until a signal.

    Raises `InputError` where either is no folder, `Interrupted` at the end. What else fails is said and does
    not end it: a refused file is left until it changes, the rest is tried again.
    """
    inbox, outbox = Path(options.input), Path(options.output)
    for folder in (inbox, outbox):
        if not folder.is_dir():
            raise InputError(f"--watch: {folder} is no folder; make it first")
    if inbox.resolve() == outbox.resolve():
        raise InputError("--watch: the outputs would be taken for inputs; name another folder for them")
    settled: dict[Path, Stamp] = {}
    warm = WarmEngine()
    with signals_raise(), contextlib.closing(warm):
        while True:
            pause = POLL
            for path, stamp in arrivals(inbox, settled):
                output = outbox / path.name
                settled[path] = stamp
                if done(output, stamp):
                    continue
                try:
                    route(_for_file(options, path, output), warm)
                except (EngineError, StorageError) as error:
                    say(f"{path.name}: {error}")
                    del settled[path]
                    pause = PAUSE
                except BatchRouteError as error:
                    say(f"{path.name}: {error}")
            time.sleep(pause)


def arrivals(inbox: Path, settled: dict[Path, Stamp]) -> list[tuple[Path, Stamp]]:
    """Files that are new or have changed, the oldest first. Hidden ones are somebody's temporary files."""
    found = []
    for path in inbox.glob("*.parquet"):
        with contextlib.suppress(OSError):  # taken away meanwhile
            status = path.stat()
            stamp = (status.st_size, status.st_mtime_ns)
            if not path.name.startswith(".") and settled.get(path) != stamp:
                found.append((path, stamp))
    return sorted(found, key=lambda each: (each[1][1], each[0].name))


def done(output: Path, stamp: Stamp) -> bool:
    """Whether `output` is complete and was made from a file of this size and time, by whatever adapter."""
    manifest = read_manifest(manifest_location(str(output)))
    files = manifest["job"]["input"]["files"] if manifest else []
    return [(file["size"], file["modified_ns"]) for file in files] == [stamp] and output.is_file()


def _for_file(options: Options, path: Path, output: Path) -> Options:
    """One file's own run; one that was begun is ended with the adapter that it was begun with."""
    options = dataclasses.replace(options, input=str(path), output=str(output))
    begun = job_in(work_dir_of(options))
    return dataclasses.replace(options, adapter=begun["adapter"]) if begun else options
