"""What a run tells the outside: JSON lines, metrics and report, however it ends, and never a request's text."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from prometheus_client.parser import text_string_to_metric_families

from batch import run
from batch.adapter.bundle import Bundle
from batch.cli import main
from batch.errors import Interrupted, StorageError, one_line
from batch.job import Options
from batch.launch import part_writer
from batch.reporting.html import lowest, write_report
from batch.reporting.observer import Observer, Outlets
from batch.reporting.summary import PACE_POINTS, Pace
from batch.storage.location import Location
from tests.batch.storage.examples import edited
from tests.batch.test_run import HOSTILE, backlog, route, stop_behind_a_shard

LAST_SUCCESS = "batch_route_last_success_timestamp_seconds"
SECRET = "Zanzibar-4711"


def samples(path: Path) -> dict[tuple[str, str], float]:
    """(name, the label that tells samples apart) → value, read by Prometheus' own client."""
    text = path.read_text()
    assert text.endswith("\n")
    found = {}
    for family in text_string_to_metric_families(text):
        assert family.type == "gauge" and family.documentation
        for sample in family.samples:
            assert sample.labels.pop("task") == "nightly"
            found[sample.name, ",".join(sample.labels.values())] = sample.value
    return found


def events(errors: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in errors.splitlines()]


def test_metrics_of_a_good_and_a_failed_run(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """The last success outlives a failure, and a failure is told too."""
    source, output, path = (
        backlog(tmp_path / "in.parquet", texts=[*HOSTILE, "a", "b"]),
        tmp_path / "out.parquet",
        tmp_path / "nightly.prom",
    )
    options = ["--metrics", str(path), "--max-error-rate", "0.9"]
    assert route(tiny_bundle, source, output, *options).exit_code == 0
    good = samples(path)
    assert good["batch_route_exit_code", ""] == 0 and good["batch_route_rows", ""] == 9
    assert (
        good["batch_route_error_rows", "empty_text"] == 2
        and good["batch_route_error_rows", "engine_failure"] == 0
    )
    assert good["batch_route_rows_per_second", ""] > 0 and good["batch_route_seconds", ""] > 0
    assert [
        value
        for (name, labels), value in good.items()
        if name == "batch_route_engine_info" and labels == "replay,1024"
    ] == [1]
    assert good["batch_route_engine_restarts", ""] == 0
    assert good[LAST_SUCCESS, ""] == good["batch_route_last_run_timestamp_seconds", ""] > 1.7e9
    refused = route(tiny_bundle, source, tmp_path / "other.parquet", *options, "--id-column", "nope")
    assert refused.exit_code == 2
    failed = samples(path)
    assert failed["batch_route_exit_code", ""] == 2 and failed["batch_route_rows", ""] == 0
    assert (
        failed[LAST_SUCCESS, ""]
        == good[LAST_SUCCESS, ""]
        < failed["batch_route_last_run_timestamp_seconds", ""]
    )
    # finished, but too many errors
    assert route(tiny_bundle, source, output, "--metrics", str(path)).exit_code == 3
    assert (
        samples(path)["batch_route_exit_code", ""] == 3
        and samples(path)[LAST_SUCCESS, ""] == good[LAST_SUCCESS, ""]
    )
    assert route(tiny_bundle, source, output, *options).exit_code == 0  # finished before: a success
    assert samples(path)[LAST_SUCCESS, ""] > good[LAST_SUCCESS, ""]
    assert not list(tmp_path.glob(".*")), "nothing temporary is left beside the textfile"


def test_metrics_of_a_first_failure(tiny_bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "nightly.prom"
    assert (
        route(
            tiny_bundle, tmp_path / "none.parquet", tmp_path / "out.parquet", "--metrics", str(path)
        ).exit_code
        == 2
    )
    assert samples(path)[LAST_SUCCESS, ""] == 0


def test_metrics_of_an_interrupted_run(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was finished until then is told, and the next run says that it resumed."""
    source, output, path = (
        backlog(tmp_path / "in.parquet", rows=700),
        tmp_path / "out.parquet",
        tmp_path / "nightly.prom",
    )
    monkeypatch.setattr(part_writer, "SHARD_SECONDS", -1.0)
    options = Options(
        str(source), str(output), adapter=str(tiny_bundle.path), engine="replay", max_num_seqs=16
    )

    with pytest.raises(Interrupted):
        run.run(
            options, Observer(Outlets(metrics=path, report=tmp_path / "r.html"), stop_behind_a_shard(output))
        )
    told = samples(path)
    assert (
        told["batch_route_exit_code", ""] == 143
        and told[LAST_SUCCESS, ""] == 0
        and not (tmp_path / "r.html").exists()
    )
    assert 0 < told["batch_route_rows", ""] < 700
    run.run(options, Observer(Outlets(metrics=path)))
    assert samples(path)["batch_route_rows", ""] == 700
    assert samples(path)["batch_route_resumed_rows", ""] == told["batch_route_rows", ""]


def test_label_values_are_escaped(tiny_bundle: Bundle, tmp_path: Path) -> None:
    from batch.reporting.prometheus import write_metrics
    from batch.reporting.summary import Summary

    summary = Summary(engine={"device": 'a "quoted"\\name\nof two lines'})
    write_metrics(tmp_path / "nightly.prom", summary, 0, 1.0)
    assert ("batch_route_engine_info", 'a "quoted"\\name\nof two lines') in samples(tmp_path / "nightly.prom")


def test_json_lines(tiny_bundle: Bundle, tmp_path: Path) -> None:
    source, output = backlog(tmp_path / "in.parquet"), tmp_path / "out.parquet"
    lines = events(route(tiny_bundle, source, output, "--log-json").stderr)
    assert [line["event"] for line in lines] == [
        "start",
        "checked",
        "engine ready",
        "rows saved",
        "assembled",
        "done",
    ]
    assert len({line["run"] for line in lines}) == 1 and all({"time", "level"} <= set(line) for line in lines)
    assert lines[0]["run"] == json.loads((tmp_path / "out.parquet.manifest.json").read_text())["run"]["id"]
    assert lines[3]["done_rows"] == 40 == lines[-1]["rows"] and lines[-1]["exit_code"] == 0


@pytest.mark.parametrize(
    ("options", "code"),
    [(["--id-column", "nope"], 2), (["--adapter", "nope"], 2), (["--report", "no/such/folder/r.html"], 2)],
)
def test_an_error_is_a_json_line_too(
    tiny_bundle: Bundle, tmp_path: Path, options: list[str], code: int
) -> None:
    result = route(
        tiny_bundle, backlog(tmp_path / "in.parquet"), tmp_path / "out.parquet", "--log-json", *options
    )
    assert result.exit_code == code and not result.stdout
    last = events(result.stderr)[-1]
    assert (last["event"], last["level"], last["exit_code"]) == ("error", "error", code) and options[
        1
    ] in str(last["message"])


def test_too_many_errors_with_json_lines(tiny_bundle: Bundle, tmp_path: Path) -> None:
    result = route(
        tiny_bundle, backlog(tmp_path / "in.parquet", texts=HOSTILE), tmp_path / "out.parquet", "--log-json"
    )
    assert result.exit_code == 3 and events(result.stderr)[-1]["exit_code"] == 3


class Page(HTMLParser):
    """The tags, attributes and text of a page; complains of a tag that is not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text.replace("<wbr>", ""))  # where a name may be broken
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += f" {data}"


def test_report_is_one_file_that_loads_nothing(tiny_bundle: Bundle, tmp_path: Path) -> None:
    source, output, path = (
        backlog(tmp_path / "in.parquet", texts=HOSTILE),
        tmp_path / "out.parquet",
        tmp_path / "r.html",
    )
    assert route(tiny_bundle, source, output, "--report", str(path), "--max-error-rate", "1").exit_code == 0
    text = path.read_text()
    page = Page(text)
    assert {tag for tag, _ in page.tags}.isdisjoint(
        {"script", "link", "img", "iframe", "object", "a", "form"}
    )
    assert not [
        attr
        for _, attrs in page.tags
        for attr in attrs
        if attr in ("src", "href", "xlink:href") or attr.startswith("on")
    ]
    assert not re.search(r"https?://|url\(|@import", text)
    words = " ".join(page.text.split())
    assert "7 rows" in words and "4 errors, 57.1%" in words and "empty_text 2" in words
    assert "r00000" in words and "r00003" not in words, (
        "answered rows are listed by id, error rows have no score"
    )
    assert (
        "servicenow_must_be_mentioned" in words or "salesforce_must_be_mentioned" in words or "None." in words
    )
    assert "made these answers up" in words and "No earlier run" in words


@pytest.mark.parametrize(
    "evil", ["\x1b[31m[bold]<img src=x onerror=y>\nlog", "\x9b2J\u202e'\"]]-->{{ 7 * 7 }}\x07"]
)
def test_no_name_is_obeyed_anywhere(tiny_bundle: Bundle, tmp_path: Path, evil: str) -> None:
    """Of a file that is read or skipped, of a column, of an id, of the output: on the terminal, in the log, the
    metrics and the report, of a run, its rehearsal and a refusal.
    """
    folder, out = tmp_path / "in", tmp_path / "out"
    for each in (folder, out):
        each.mkdir()
    table = pa.table({"id": [f"{evil}{row}" for row in range(5)], "request": ["find it"] * 5, evil: [1] * 5})
    with (folder / "in.parquet").open("wb") as file:
        pq.write_table(table, file)
    name = evil.replace("/", "|")
    (folder / f"{name}.txt").write_text("no Parquet")
    output, page, metrics = out / f"{name}.parquet", out / "r.html", out / f"{name}.prom"
    outlets = ("--report", str(page), "--metrics", str(metrics))
    shown = [
        route(tiny_bundle, folder, output, *outlets),
        route(tiny_bundle, folder, out / f"{name}2.parquet", "--log-json"),
        route(tiny_bundle, folder, output, "--dry-run"),
        route(tiny_bundle, folder, output, "--id-column", f"no {evil}"),
        route(tiny_bundle, folder / f"{name}*", output),
    ]
    assert [each.exit_code for each in shown] == [0, 0, 0, 2, 2]
    for text in (page.read_text(), *(f"{each.stdout}\n{each.stderr}" for each in shown)):
        assert not set(text) & set("\x1b\x9b\x07\u202e")
        assert not any(line.strip() in ("log", "log.txt: not Parquet") for line in text.splitlines())
    found = Page(page.read_text())
    assert not [tag for tag, _ in found.tags if tag in ("img", "script")] and "49" not in found.text.split()
    assert f"{one_line(evil)}3" in page.read_text().replace("&#39;", "'").replace("&#34;", '"').replace(
        "&lt;", "<"
    ).replace("&gt;", ">")
    assert {sample.labels["task"] for family in text_string_to_metric_families(metrics.read_text())
            for sample in family.samples} == {name.split(".")[0]}  # fmt: skip


def test_report_of_a_finished_run_and_of_nothing(tiny_bundle: Bundle, tmp_path: Path) -> None:
    source, output, path = backlog(tmp_path / "in.parquet"), tmp_path / "out.parquet", tmp_path / "r.html"
    route(tiny_bundle, source, output, "--report", str(path))
    first = path.read_text()
    path.unlink()
    assert route(tiny_bundle, source, output, "--report", str(path)).exit_code == 0
    assert path.read_text() == first, "a finished run's report is made again from its manifest"
    empty = tmp_path / "empty.parquet"
    assert (
        route(
            tiny_bundle, backlog(tmp_path / "none.parquet", texts=[]), empty, "--report", str(path)
        ).exit_code
        == 0
    )
    assert "No row was answered" in Page(path.read_text()).text


def test_users_files_stay_and_a_runs_own_are_replaced(tiny_bundle: Bundle, tmp_path: Path) -> None:
    source, output = backlog(tmp_path / "in.parquet"), tmp_path / "out.parquet"
    for option in ("--report", "--metrics"):
        labels = tmp_path / "labels.csv"
        labels.write_text("id,label\n1,x\n")
        refused = route(tiny_bundle, source, output, option, str(labels))
        assert refused.exit_code == 2 and f"{option} {labels} is another program's file" in refused.output
        assert labels.read_text() == "id,label\n1,x\n" and not output.exists()
        labels.unlink()
    outlets = ["--report", str(tmp_path / "r.html"), "--metrics", str(tmp_path / "m.prom")]
    for _ in range(2):
        assert route(tiny_bundle, source, output, *outlets).exit_code == 0


def test_throughput_over_time(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """A run of ten seconds: 100 rows/s in the first half, 300 in the second."""
    output, path = tmp_path / "out.parquet", tmp_path / "r.html"
    route(tiny_bundle, backlog(tmp_path / "in.parquet"), output)
    manifest = tmp_path / "out.parquet.manifest.json"
    edited(manifest, "run", "pace", value={"0.0": 0, "5.0": 500, "10.0": 2000}, seal=True)
    write_report(path, str(output))
    page = Page(path.read_text())
    assert "Highest: 300." in page.text and "10 s" in page.text
    (area,) = [attrs["d"] for tag, attrs in page.tags if tag == "path"]
    assert area == "M0 100 L0.00 66.67 L50.00 66.67 L50.00 0.00 L100.00 0.00 L100 100Z"


def test_pace_is_thinned_out() -> None:
    pace = Pace()
    for second in range(10_000):
        pace.note(float(second), second * 10)
    seconds = [at for at, _ in pace.points]
    assert (
        len(seconds) <= PACE_POINTS
        and seconds[0] == 0
        and seconds[-1] > 9000
        and seconds == sorted(set(seconds))
    )
    assert all(rows == at * 10 for at, rows in pace.points)


def test_lowest_scores_come_first_and_by_id(tmp_path: Path) -> None:
    ids = pa.array(["a", "b<i>", "c", "d"]).dictionary_encode()
    scores = pa.array([0.5, 0.25, None, 0.25], pa.float32())
    columns = {
        "id": ids,
        "credit_score": [1.0] * 4,
        "x_tier": ["t"] * 4,
        "x_tier_score": scores,
        "x_score": scores,
    }
    pq.write_table(pa.table(columns), tmp_path / "out.parquet", row_group_size=2)
    found = lowest(
        [Location.of(tmp_path / "out.parquet")],
        {"prefix": "x_", "id_column": "id"},
        ["tier_score", "score"],
        count=2,
    )
    assert found.to_dict(as_series=False) == {
        "id": ["b<i>", "d"],
        "score": [0.25, 0.25],
        "tier": [0.25, 0.25],
    }


@pytest.mark.parametrize(
    ("ids", "listed"),
    [
        (pa.array([b"\xff1", b"a2"]), ["ff31", "a2"]),
        (pa.array([b"\xff1", b"a2"], pa.binary(2)), ["ff31", "a2"]),
        (pa.array([10**60, 2], pa.decimal256(70, 0)), [str(10**60), "2"]),
        (pa.ExtensionArray.from_storage(pa.json_(), pa.array(["1", "2"])), ["1", "2"]),
    ],
    ids=["bytes", "bytes of one length", "decimals", "json"],
)
def test_ids_that_polars_cannot_read(ids: pa.Array, listed: list[str], tmp_path: Path) -> None:
    scores = pa.array([0.5, 0.75], pa.float32())
    pq.write_table(pa.table({"id": ids, "score": scores}), tmp_path / "out.parquet")
    found = lowest([Location.of(tmp_path / "out.parquet")], {"prefix": "", "id_column": "id"}, ["score"])
    assert found["id"].to_list() == listed


def test_drift_against_last_nights_output(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """Two nights under one name, then a third beside them: each is compared with the one before, and told of."""
    output, path, textfile = tmp_path / "out.parquet", tmp_path / "r.html", tmp_path / "nightly.prom"
    texts: list[str | None] = [f"Please build dashboard number {i}." for i in range(400)]
    route(tiny_bundle, backlog(tmp_path / "one.parquet", texts=texts), output)
    told = {"--report": path, "--metrics": textfile}
    options = [word for option, place in told.items() for word in (option, str(place))]
    assert (
        route(
            tiny_bundle,
            backlog(tmp_path / "two.parquet", texts=texts[:200] + ["the same"] * 200),
            output,
            *options,
        ).exit_code
        == 0
    )
    manifest = json.loads((tmp_path / "out.parquet.manifest.json").read_text())
    assert (
        manifest["drift"]["previous"]["output"] == "out.parquet"
        and manifest["drift"]["previous"]["tally"]["rows"] == 400
    )
    measured = {(m["field"], m["of"]): m for m in manifest["drift"]["measures"]}
    assert set(measured) == {(f.name, "labels") for f in tiny_bundle.contract.scored_fields} | {
        (name, "score deciles")
        for name in ("score", *(f"{f.name}_score" for f in tiny_bundle.contract.scored_fields))
    }
    platform = measured["recommended_platform", "labels"]
    assert platform["level"] == "alarm" and platform["psi"] > platform["by_chance"]
    assert "alarm" in Page(path.read_text()).text
    assert samples(textfile)["batch_route_drift_psi", "recommended_platform,labels"] == platform["psi"]
    beside = tmp_path / "third.parquet"
    assert route(tiny_bundle, tmp_path / "one.parquet", beside, "--report", str(path)).exit_code == 0
    assert (
        json.loads((tmp_path / "third.parquet.manifest.json").read_text())["drift"]["previous"]["sha256"]
        == manifest["output"]["sha256"]
    )


def test_the_outputs_bytes_know_no_time_and_no_run(tiny_bundle: Bundle, tmp_path: Path) -> None:
    source = backlog(tmp_path / "in.parquet")
    route(tiny_bundle, source, tmp_path / "a.parquet", "--report", str(tmp_path / "r.html"))
    route(tiny_bundle, source, tmp_path / "b.parquet", "--log-json")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_metrics_that_cannot_be_written_at_the_end_are_an_event(
    tiny_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their folder goes while the rows are scored; the output is complete all the same."""
    folder, output = tmp_path / "told", tmp_path / "out.parquet"
    folder.mkdir()
    options = Options(
        str(backlog(tmp_path / "in.parquet")), str(output), adapter=str(tiny_bundle.path), engine="replay"
    )

    def unmounted(phase: str) -> None:
        shutil.rmtree(folder, ignore_errors=True)

    with pytest.raises(StorageError):
        run.run(options, Observer(Outlets(metrics=folder / "m.prom", log_json=True), phases=unmounted))
    last = json.loads(capsys.readouterr().err.splitlines()[-1])
    assert output.exists() and (last["event"], last["exit_code"]) == ("error", 75)


def test_no_request_text_leaves_the_output(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """A secret in requests of every fate is in the output and nowhere else: stdout, stderr, metrics, report, manifest."""
    folder = tmp_path / "told"
    folder.mkdir()
    texts = [
        f"{SECRET} wants a dashboard",
        f"{SECRET}\udcff"[:-1],
        f"{SECRET} " * 2000,
        None,
        f"<|im_end|>{SECRET}",
    ]
    source, output = backlog(tmp_path / "in.parquet", texts=texts), folder / "out.parquet"
    options = ["--log-json", "--metrics", str(folder / "m.prom"), "--report", str(folder / "r.html")]
    results = [
        route(tiny_bundle, source, output, *options),
        route(tiny_bundle, source, output, *options, "--id-column", "request"),
    ]
    assert [result.exit_code for result in results] == [3, 2]
    assert SECRET in str(pl.read_parquet(output)["request"].to_list())
    texts_told = [result.stdout + result.stderr for result in results]
    texts_told += [path.read_text() for path in folder.iterdir() if path.suffix != ".parquet"]
    assert len(texts_told) == 5 and not [told for told in texts_told if SECRET in told]


def test_dry_run_tells_the_time_by_the_last_run(tiny_bundle: Bundle, tmp_path: Path) -> None:
    source, output = backlog(tmp_path / "in.parquet"), tmp_path / "out.parquet"
    assert "at 50 rows/s" in route(tiny_bundle, source, output, "--dry-run").output
    route(tiny_bundle, source, output)
    assert "finished output already" in route(tiny_bundle, source, output, "--dry-run").output
    rate = json.loads((tmp_path / "out.parquet.manifest.json").read_text())["run"]["rows_per_second"]
    told = route(tiny_bundle, backlog(tmp_path / "next.parquet", rows=60), output, "--dry-run").output
    assert "60 rows to route" in told and f"at the {rate:.1f} rows/s of the run that made" in told


def test_help_names_the_options() -> None:
    text = CliRunner().invoke(main, ["--help"]).output
    assert all(option in text for option in ("--report", "--metrics", "--log-json"))
