"""Cells of a study: logs that go on."""

import json

import pytest

from flashjax.studies import cells


def key(line):
    return line["name"]


def test_what_is_known_is_not_measured_again_and_a_broken_last_line_is_replaced(tmp_path, capsys):
    log, asked = tmp_path / "new" / "cells.jsonl", []

    def measure(i):
        asked.append(i)
        return {"error": "no luck"} if asked == [0, 1] else {"value": i}

    wanted = [{"name": name} for name in "abc"]
    lines = cells.sweep(wanted, log, key, measure, lambda line: line["name"] + str(line.get("value", "!")))
    assert [line.get("value") for line in lines] == [0, None, 2] and asked == [0, 1, 2]
    assert capsys.readouterr().out.splitlines() == ["1/3  a0", "2/3  b!", "3/3  c2"]
    with log.open("a") as file:
        file.write('{"name": "d", "val')  # the process was killed here
    assert [line["name"] for line in cells.read(log, key)] == ["a", "b", "c"]
    lines = cells.sweep([*wanted, {"name": "d"}], log, key, measure, lambda line: "")
    assert [line["value"] for line in lines] == [0, 1, 2, 3] and asked == [0, 1, 2, 1, 3]
    assert len(log.read_text().splitlines()) == 5 and len(cells.read(log, key)) == 4
    log.write_text("nonsense\n" + log.read_text())
    with pytest.raises(ValueError, match="line 1 is no cell of a study"):
        cells.read(log, key)


def test_nothing_is_read_where_there_is_no_log(tmp_path):
    assert cells.read(tmp_path / "none", key) == []
    (tmp_path / "log").write_text(json.dumps({"name": "a"}) + "\n" + json.dumps({"name": "a", "v": 2}) + "\n")
    assert cells.read(tmp_path / "log", key) == [{"name": "a", "v": 2}]  # the last line counts
