import json

import pytest

import luthier
from luthier import cli
from luthier.arguments.schema import reference_page


def test_version_is_one_line(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"luthier {luthier.__version__}\n"


def test_schema_is_json(capsys):
    assert cli.main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out)["type"] == "object"


def test_schema_as_markdown_is_the_page(capsys):
    assert cli.main(["schema", "--markdown"]) == 0
    assert capsys.readouterr().out == reference_page()


def test_env_names_the_versions(capsys):
    assert cli.main(["env"]) == 0

    shown = capsys.readouterr().out
    facts = dict(line.split(maxsplit=1) for line in shown.splitlines())
    assert facts["luthier"] == luthier.__version__
    assert "transformers" in facts


@pytest.mark.parametrize("command", ["schema", "env"])
def test_words_that_a_command_does_not_know_are_refused(command, capsys):
    assert cli.main([command, "--markdwon"]) == 2
    assert "--markdwon" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["schema", "env", "help", "version"])
def test_every_small_command_has_help(command, capsys):
    assert cli.main([command, "--help"]) == 0
    assert capsys.readouterr().out


@pytest.mark.parametrize(
    ("word", "said"), [("trian", "'train'"), ("webui", "write a configuration")]
)
def test_help_of_an_unknown_command_is_refused(word, said, capsys):
    assert cli.main(["help", word]) == 2
    assert said in capsys.readouterr().err
