"""Code that comes with a model: trusted only by the user's word, which is written down"""

from __future__ import annotations

import json

import pytest

from luthier import console
from luthier.arguments.parse import parse_dict
from luthier.modeling.source import hub_options
from luthier.training.report import write_run_record

RUN = {"do_train": True, "dataset": "d", "output_dir": "o"}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("trusted", "revision", "is_advised"),
    [(False, None, False), (True, None, True), (True, "v2", True), (True, COMMIT, False)],
)
def test_a_branch_that_is_trusted_is_better_a_commit(
    trusted, revision, is_advised, capsys, monkeypatch
):
    monkeypatch.setattr(console, "_said", set())
    given = {**RUN, "model_name_or_path": "owner/name", "trust_remote_code": trusted}
    arguments = parse_dict(given if revision is None else {**given, "model_revision": revision})

    for _ in range(2):
        assert hub_options(arguments.model)["trust_remote_code"] is trusted

    assert capsys.readouterr().err.count("set model_revision to the hash of a commit") == is_advised


def test_a_folder_of_ones_own_needs_no_commit(llama_folder, capsys):
    given = {**RUN, "model_name_or_path": str(llama_folder), "trust_remote_code": True}

    hub_options(parse_dict(given).model)

    assert "trust_remote_code" not in capsys.readouterr().err


@pytest.mark.parametrize("trusted", [None, True])
def test_whether_code_was_trusted_is_written_down(trusted, tmp_path):
    given = {**RUN, "model_name_or_path": "owner/name"}
    given |= {} if trusted is None else {"trust_remote_code": trusted, "model_revision": COMMIT}

    record = json.loads(write_run_record(tmp_path, parse_dict(given)).read_text())

    assert record["settings"]["trust_remote_code"] is bool(trusted)
    assert record["settings"]["model_revision"] == (COMMIT if trusted else "main")
