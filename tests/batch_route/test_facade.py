"""The Python call: the command's results, on tables of three kinds, in threads and notebooks."""

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import batch_route
from batch.adapter.bundle import Bundle
from tests.batch.test_run import backlog

TEXTS = ["Find the travel policy.", None, "  ", "A dashboard of orders.", "A dashboard of orders."]


@pytest.fixture(scope="module")
def scorer(tiny_bundle: Bundle) -> Any:
    with batch_route.Scorer(str(tiny_bundle.path), engine="replay") as made:
        yield made


def table() -> pa.Table:
    return pa.table({"key": [5, 4, 3, 2, 1], "request": TEXTS})


def test_all_kinds_of_table_get_the_same_columns(scorer: batch_route.Scorer) -> None:
    arrow = scorer.score(table())
    assert arrow["status"].to_pylist() == ["ok", "error", "error", "ok", "ok"]
    assert arrow["error_code"].to_pylist() == [None, "null_text", "empty_text", None, None]
    assert arrow["key"].to_pylist() == [5, 4, 3, 2, 1] and set(arrow["adapter"].to_pylist()) == {
        scorer.adapter
    }
    frame = scorer.score(pl.from_arrow(table()))
    assert isinstance(frame, pl.DataFrame) and frame.equals(pl.from_arrow(arrow))  # type: ignore[arg-type]


def test_pandas_keeps_its_index(scorer: batch_route.Scorer) -> None:
    pandas = pytest.importorskip("pandas")
    frame = table().to_pandas().set_index("key")
    made = scorer.score(frame)
    assert (
        isinstance(made, pandas.DataFrame)
        and list(made.index) == [5, 4, 3, 2, 1]
        and made.index.name == "key"
    )
    assert list(made["tier"][[5, 2]]) == scorer.score(table())["tier"].take([0, 3]).to_pylist()


def test_tables_that_do_not_fit_are_refused(scorer: batch_route.Scorer) -> None:
    for bad, why in (
        (table().rename_columns(["key", "reqest"]), "did you mean 'reqest'"),
        (table().append_column("score", [[1.0] * 5]), "prefix="),
        (pa.table({"request": [1, 2]}), "not texts"),
        ([1, 2], "Arrow, Polars or pandas"),
    ):
        with pytest.raises(batch_route.InputError, match=why):
            scorer.score(bad)
    assert scorer.score(table().slice(0, 0)).num_rows == 0
    assert scorer.score(table(), prefix="p_")["p_status"].to_pylist()[0] == "ok"


def test_what_is_no_text_is_its_rows_error(scorer: batch_route.Scorer) -> None:
    texts = pa.array([b"A dashboard of orders.", b"caf\xe9"]).view(pa.string())  # the bytes of Latin-1
    made = scorer.score(pa.table({"body": texts}), text_column="body")
    assert made["error_code"].to_pylist() == [None, "invalid_utf8"]
    nulls = scorer.score(pa.table({"body": pa.array([None], pa.string())}), text_column="body")
    assert nulls["error_code"].to_pylist() == ["null_text"]


def test_route_is_the_command(tiny_bundle: Bundle, tmp_path: Path) -> None:
    source = backlog(tmp_path / "in.parquet", 300)
    found: list[Any] = []

    def work() -> None:
        try:
            found.append(
                batch_route.route(
                    str(source), str(tmp_path / "out.parquet"), adapter=str(tiny_bundle.path), engine="replay"
                )
            )
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=work)  # where a signal handler cannot be set
    thread.start()
    thread.join()
    assert isinstance(found[0], batch_route.Summary), found
    assert found[0].tally.rows == pq.read_metadata(tmp_path / "out.parquet").num_rows == 300
    with pytest.raises(batch_route.AdapterError, match="no adapter"):
        batch_route.route(str(source), str(tmp_path / "o.parquet"), adapter="nobody")
    with pytest.raises(TypeError, match="colour"):
        batch_route.route(str(source), str(tmp_path / "o.parquet"), colour="red")


@pytest.mark.parametrize(
    "option",
    [
        {"reasons": "al"}, {"limit": -1}, {"limit": "few"}, {"deadline": "soon"}, {"deadline": -5}, {"shard": "2/2"},
        {"shard": (0, 2, 3)}, {"cache_max": "1X"}, {"engine_timeout": 0}, {"adapter": ""}, {"max_error_rate": 5},
        {"max_num_seqs": 0}, {"dtype": "int8"}, {"work_dir": "s3://b/w"}, {"devices": [0]},
        {"deadline": float("nan")}, {"limit": 2.5}, {"limit": True}, {"max_error_rate": float("nan")},
    ],
)  # fmt: skip
def test_what_the_command_refuses_is_refused(
    option: dict[str, object], tiny_bundle: Bundle, tmp_path: Path
) -> None:
    source, output = backlog(tmp_path / "in.parquet", 5), tmp_path / "out.parquet"
    with pytest.raises(batch_route.InputError, match=next(iter(option))):
        batch_route.route(
            str(source), str(output), **{"adapter": str(tiny_bundle.path), "engine": "replay", **option}
        )
    assert not output.exists()


def test_options_are_texts_or_what_they_mean(tiny_bundle: Bundle, tmp_path: Path) -> None:
    source, output = backlog(tmp_path / "in.parquet", 5), tmp_path / "out.parquet"
    given = {
        "devices": 2,
        "deadline": "2h",
        "cache_max": "500M",
        "limit": None,
        "work_dir": str(tmp_path / "w"),
    }
    for more in (given, {"devices": "1", "deadline": 90.5, "cache_max": 1 << 20, "cache": tmp_path / "c"}):
        options: dict[str, Any] = {
            "adapter": str(tiny_bundle.path),
            "engine": "replay",
            "fresh": True,
            **more,
        }
        assert batch_route.route(str(source), str(output), **options).tally.rows == 5
    assert (tmp_path / "c").is_dir()


def test_a_call_after_one_that_was_interrupted(tiny_bundle: Bundle) -> None:
    with batch_route.Scorer(str(tiny_bundle.path), engine="replay", max_num_seqs=8) as scorer:
        frame = pl.DataFrame({"request": [f"Find report {row}." for row in range(3000)]})
        assert scorer.score(frame[:1]).height == 1
        assert scorer._scorer
        poll, polls = scorer._engine.poll, iter(range(5))

        def interrupted() -> Any:
            if next(polls, None) is None:
                raise KeyboardInterrupt
            return poll()

        scorer._engine.poll = interrupted  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            scorer.score(frame)
        assert scorer.score(frame)["status"].to_list() == ["ok"] * 3000


def test_a_script_without_a_main_guard_in_another_folder(tiny_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "work.py").write_text(
        "import batch_route, polars as pl\n"
        f"scorer = batch_route.Scorer({str(tiny_bundle.path)!r}, engine='replay')\n"
        "print(scorer.score(pl.DataFrame({'request': ['Find it.']}))['status'].to_list())\n"
        "scorer.close()\n"
    )
    done = subprocess.run(
        [sys.executable, "work.py"], cwd=tmp_path, env=os.environ, capture_output=True, text=True
    )
    assert done.stdout == "['ok']\n", done.stderr


def test_importing_it_loads_no_model_library() -> None:
    code = "import sys, batch_route; print({'torch', 'vllm', 'transformers', 'polars'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_shards_and_a_commit(tiny_bundle: Bundle, tmp_path: Path) -> None:
    source, output = str(backlog(tmp_path / "in.parquet", rows=1500)), str(tmp_path / "out.parquet")
    options: dict[str, Any] = {"adapter": str(tiny_bundle.path), "engine": "replay"}
    assert batch_route.route(source, output, shard=(0, 2), **options).tally.rows == 1024
    with pytest.raises(batch_route.UnfinishedError, match="1 of 2 units are not scored: 1"):
        batch_route.commit(output)
    assert batch_route.route(source, output, shard=(1, 2), **options).tally.rows == 476
    assert batch_route.commit(output).tally.rows == pq.read_table(output).num_rows == 1500
