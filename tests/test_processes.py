"""Processes of their own, and what they answer."""

from flashjax.processes import in_process


def test_a_process_answers_by_its_last_line_or_says_why_not():
    answer = in_process("json.tool", "--version-that-is-not-there")
    assert "error" in answer and "unrecognized arguments" in answer["error"]
    assert in_process("timeit", "-h", timeout=1e-9) == {"error": "not done after 0 s"}


def test_the_last_line_of_a_process_is_its_result(tmp_path, monkeypatch):
    (tmp_path / "told.py").write_text(
        "import json, os, sys\nprint('on the way')\nprint(json.dumps([sys.argv[1], os.environ['MINE']]))\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert in_process("told", "request", {"MINE": "yes"}) == ["request", "yes"]
