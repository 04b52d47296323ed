"""No two places of a run are one, whatever they are called; and what cannot be written is refused before any work."""

import contextlib
import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batch.errors import InputError
from batch.storage.location import Location, write_file
from batch.storage.places import check_outlets, check_output, check_writable, refuse_inputs

REFUSED = pytest.raises(InputError, match="would be read with it")


def put(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"id": ["a"], "request": ["find it"]}), path)
    return path


def link(path: Path, target: Path) -> Path:
    path.symlink_to(target)
    return path


def hard(path: Path, target: Path) -> Path:
    os.link(target, path)
    return path


OTHER_NAMES: dict[str, Callable[[Path], Path]] = {
    "itself": lambda file: file,
    "dots": lambda file: file.parent / "x" / ".." / file.name,
    "through a linked folder": lambda file: link(file.parents[1] / "alias", file.parent) / file.name,
    "a hard link": lambda file: hard(file.parents[1] / "hard.parquet", file),
    "a link": lambda file: link(file.parents[1] / "soft.parquet", file),
}


@pytest.mark.parametrize("name", OTHER_NAMES)
def test_the_input_by_another_name_is_no_place_to_write(tmp_path: Path, name: str) -> None:
    source = put(tmp_path / "real/in.parquet")
    (tmp_path / "real/x").mkdir()
    other = OTHER_NAMES[name](source)
    with pytest.raises(InputError):
        check_output(str(source), str(other), {})
    with pytest.raises(InputError):
        check_outlets(str(source), str(tmp_path / "out.parquet"), {"--metrics": other})
    if name not in ("a link",):
        with pytest.raises(InputError, match="one of the input's files"):
            refuse_inputs(str(other), [Location.of(source)])


def test_outlets_are_neither_the_output_nor_one_another(tmp_path: Path) -> None:
    source, output = str(put(tmp_path / "in.parquet")), str(tmp_path / "out.parquet")
    check_outlets(source, output, {"--metrics": tmp_path / "m", "--report": tmp_path / "r"})
    for path in (output, f"{output}.manifest.json", tmp_path / "m"):
        with pytest.raises(InputError, match="as well"):
            check_outlets(source, output, {"--metrics": tmp_path / "m", "--report": Path(path)})
    for folder in (tmp_path / "in.parquet", tmp_path / "out.parquet"):
        with pytest.raises(InputError):
            check_output(source, output, {"--cache": folder})
    with pytest.raises(InputError, match=r"--cache .* is --work-dir as well"):
        check_output(source, output, {"--work-dir": tmp_path / "w", "--cache": f"{tmp_path}/./w/"})


@pytest.mark.parametrize(
    "source", ["night", "night/", "night/*", "night/*.parquet", "n*/", "night/**/*.parquet"]
)
def test_an_output_that_the_next_run_would_read_is_refused(tmp_path: Path, source: str) -> None:
    put(tmp_path / "night/a.parquet")
    (tmp_path / "night/deep").mkdir()
    with pytest.raises(InputError, match="would be read with it"):
        check_output(f"{tmp_path}/{source}".rstrip("/"), str(tmp_path / "night/out.parquet"), {})
    check_output(f"{tmp_path}/night/a*.parquet", str(tmp_path / "night/out.parquet"), {})
    check_output(str(tmp_path / "night"), str(tmp_path / "night/.out.parquet"), {})


def test_an_output_that_is_read_by_way_of_a_link_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "night/a.parquet")
    (tmp_path / "elsewhere/deep").mkdir(parents=True)
    for place in ("more", ".hidden"):
        link(tmp_path / "night" / place, tmp_path / "elsewhere")
        link(tmp_path / "elsewhere" / place, tmp_path / "night")  # round and round
        for output in ("elsewhere/out.parquet", "elsewhere/out", "elsewhere/deep/out.parquet"):
            with contextlib.nullcontext() if place == ".hidden" else REFUSED:
                check_output(str(tmp_path / "night"), str(tmp_path / output), {})
        (tmp_path / "night" / place).unlink()
    link(tmp_path / "night/more", tmp_path / "elsewhere")
    output, work = str(tmp_path / "out.parquet"), tmp_path / "elsewhere/w"
    with REFUSED:
        check_output(str(tmp_path / "night"), output, {"--work-dir": work})
    with REFUSED:
        check_output(f"{tmp_path}/night/m*/**", f"{tmp_path}/elsewhere/deep/out.parquet", {})
    check_output(f"{tmp_path}/night/a*", f"{tmp_path}/elsewhere/deep/out.parquet", {"--work-dir": work})


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts")
def test_an_output_that_is_read_by_way_of_a_second_mount_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "night/deep/a.parquet")
    (tmp_path / "alias").mkdir()
    for mounted in ("night", "night/deep"):
        mount = subprocess.run(["mount", "--bind", tmp_path / mounted, tmp_path / "alias"], check=False)
        if mount.returncode:
            pytest.skip("this machine lets nobody mount")
        try:
            with REFUSED:
                check_output(str(tmp_path / "night"), str(tmp_path / "alias/out.parquet"), {})
        finally:
            subprocess.run(["umount", tmp_path / "alias"], check=True)


@pytest.mark.parametrize("option", ["--metrics", "--report"])
def test_an_outlet_replaces_only_what_an_earlier_run_wrote(option: str, tmp_path: Path) -> None:
    source, output, path = str(put(tmp_path / "in.parquet")), str(tmp_path / "out.parquet"), tmp_path / "it"
    own = {
        "--metrics": b"# HELP batch_route_last_success_timestamp_seconds End of the last run.",
        "--report": b"<!doctype html>\n<title>out.parquet: batch-route report</title>\n<p>",
    }
    others = (b"id,label\n1,x\n", b'{"id": 1}\n', b"PAR1", b"<!doctype html>\n<title>Mine</title>", b"\0")
    for theirs in (*others, *(text for name, text in own.items() if name != option)):
        path.write_bytes(theirs)
        with pytest.raises(InputError, match=f"{option} .* is another program's file and would be written"):
            check_outlets(source, output, {option: path})
        assert path.read_bytes() == theirs
    for free in (own[option], b""):
        path.write_bytes(free)
        check_outlets(source, output, {option: path})


def test_outlets_are_no_files_of_the_outputs_own(tmp_path: Path) -> None:
    source, night = str(put(tmp_path / "in.parquet")), tmp_path / "night"
    night.mkdir()
    for output, names in {
        "out.parquet": (
            ".out.parquet.lock",
            ".out.parquet.work",
            ".out.parquet.work/r",
            ".out.parquet.work.lock",
        ),
        "night": (".night.lock", ".night.work", "night/_SUCCESS", "night/manifest.json", "night/m.parquet"),
    }.items():
        for name in names:
            with pytest.raises(InputError, match="a file of the output's own"):
                check_outlets(source, str(tmp_path / output), {"--report": tmp_path / name})
    check_outlets(
        source, str(night), {"--report": night / "report.html", "--metrics": tmp_path / "m.parquet"}
    )


def test_unfinished_work_is_not_read_as_input(tmp_path: Path) -> None:
    put(tmp_path / "in/a.parquet")
    output = str(tmp_path / "out.parquet")
    for source in ("in", "in/*"):
        with pytest.raises(InputError, match=r"--work-dir .* would be read with it"):
            check_output(f"{tmp_path}/{source}", output, {"--work-dir": tmp_path / "in/work"})
    check_output(f"{tmp_path}/in", output, {"--work-dir": tmp_path / "in/.work"})
    check_output(f"{tmp_path}/in/*.parquet", output, {"--work-dir": tmp_path / "in/work"})


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives a file away")
def test_anothers_file_in_a_sticky_folder_is_refused_before_any_work(tmp_path: Path) -> None:
    """As in /tmp: whoever has no right to rename over it would find out at the very end."""
    folder = tmp_path / "shared"
    folder.mkdir()
    for name in ("out.parquet", "two.parquet.manifest.json"):
        put(folder / name)
        os.chown(folder / name, 4242, 4242)
    folder.chmod(0o1777)
    os.chown(folder, 4243, 4243)
    for each in (*tmp_path.parents, tmp_path):
        if each.stat().st_uid == 0 and not each.stat().st_mode & 0o1:
            each.chmod(each.stat().st_mode | 0o11)
    child = os.fork()
    if not child:
        os.setgid(4244)
        os.setuid(4244)
        refused = 0
        for name in ("out.parquet", "two.parquet", "three.parquet"):
            try:
                check_writable(folder / name, suffix=".manifest.json")
            except InputError as error:
                refused += "another user's file" in str(error)
        os._exit(refused)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
    check_writable(folder / "out.parquet")  # root may


def test_what_cannot_be_an_output(tmp_path: Path) -> None:
    (tmp_path / "folder.parquet").mkdir()
    os.mkfifo(tmp_path / "pipe")
    link(tmp_path / "link.parquet", tmp_path / "elsewhere")
    for name, why in {
        "folder.parquet": "is a directory",
        "scored/": "does not exist; create it first, or leave out the slash",
        "no/scored": "its directory does not exist",
        "scored.parquet/": "would be read as a file",
        "no/out.parquet": "its directory does not exist",
        "pipe": "a device or a pipe",
        "link.parquet": "is a symbolic link",
        "依" * 81 + ".parquet": "longer than 241 bytes",
        "": "holds another Parquet file",
    }.items():
        with pytest.raises(InputError, match=why):
            check_output("in.parquet", f"{tmp_path}/{name}", {})
    with pytest.raises(InputError, match="a device or a pipe"):
        check_writable("/dev/null")
    with pytest.raises(InputError, match=r"caf\\xe9: the name is not valid UTF-8"):
        check_output("in.parquet", os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"), {})


def test_a_folder_that_is_not_there_is_made(tmp_path: Path) -> None:
    check_output("in.parquet", f"{tmp_path}/scored", {})


def test_long_names_file_uris_and_modes(tmp_path: Path) -> None:
    """A name of 241 bytes fits with all that lies beside it; a file keeps its mode."""
    name = "依" * 80 + "a"
    check_output("in.parquet", f"{tmp_path}/{name}", {})
    for each in (name, f"{name}.manifest.json"):
        write_file(tmp_path / each, b"x")
    check_output("in.parquet", f"file://{tmp_path}/a%20b.parquet", {})
    (tmp_path / name).chmod(0o600)
    write_file(tmp_path / name, b"y")
    assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    assert sorted(os.listdir(tmp_path)) == sorted([name, f"{name}.manifest.json"])


def test_a_temporary_name_cannot_be_planted_and_a_live_writer_keeps_its_own(tmp_path: Path) -> None:
    from batch.storage.location import replacing

    target = tmp_path / "a"
    with replacing(Location.of(target)) as one:
        Path(one.path).write_bytes(b"one")
        with replacing(Location.of(target)) as two:
            assert one.path != two.path and os.path.exists(one.path)
            Path(two.path).write_bytes(b"two")
        assert target.read_bytes() == b"two"
    assert target.read_bytes() == b"one"
    assert os.listdir(tmp_path) == ["a"]
