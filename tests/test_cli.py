import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from luthier import cli
from luthier.errors import DataError

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "transformers", "datasets", "peft", "accelerate"}


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_help_lists_every_command(words, capsys):
    assert cli.main(words) == 0

    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in cli.commands())


def test_the_promised_commands_are_there():
    assert {"train", "schema", "env", "version", "help"} <= set(cli.commands())


def test_an_unknown_command_is_answered_with_the_nearest(capsys):
    assert cli.main(["trian"]) == 2

    assert "Did you mean 'train'?" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["webchat", "webui"])
def test_commands_that_are_elsewhere_say_what_there_is_instead(word, capsys):
    assert cli.main([word, "run.yaml"]) == 2
    said = capsys.readouterr().err
    assert f"there is no command '{word}': " in said
    assert "Did you mean" not in said


def test_a_config_without_a_command_is_answered_with_the_command(capsys):
    assert cli.main(["run.yaml"]) == 2

    assert "luthier train run.yaml" in capsys.readouterr().err


def test_what_the_user_can_mend_is_said_without_a_traceback(monkeypatch, capsys):
    from luthier.commands import version

    def fail(_argv):
        raise DataError("data/user.json, row 17: no answer found.")

    monkeypatch.setattr(version, "run", fail)

    assert cli.main(["version"]) == 2
    assert capsys.readouterr().err == "error: data/user.json, row 17: no answer found.\n"


def test_an_interrupt_is_one_line(monkeypatch, capsys):
    from luthier.commands import version

    def interrupt(_argv):
        raise KeyboardInterrupt

    monkeypatch.setattr(version, "run", interrupt)

    assert cli.main(["version"]) == 130
    assert capsys.readouterr().err.count("\n") == 1


class Dying:
    """Is interrupted while it is destroyed, where Python drops exceptions."""

    def __del__(self):
        signal.raise_signal(signal.SIGINT)


def test_an_interrupt_that_python_drops_comes_again(monkeypatch, capsys):
    from luthier.commands import version

    def work(_argv):
        dying = Dying()
        del dying
        time.sleep(5)

    monkeypatch.setattr(version, "run", work)
    begun = time.monotonic()

    assert cli.main(["version"]) == 130
    assert time.monotonic() - begun < 4
    assert capsys.readouterr().err == "error: interrupted\n"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_breaks_by_itself_has_a_code_and_a_traceback(monkeypatch, capsys):
    from luthier.commands import version

    def fail(_argv):
        raise ZeroDivisionError("a fault")

    monkeypatch.setattr(version, "run", fail)

    assert cli.main(["version"]) == 70
    said = capsys.readouterr().err
    assert said.startswith("Traceback")
    assert said.endswith("ZeroDivisionError: a fault\n")


def test_an_interrupt_that_a_library_catches_comes_again(monkeypatch, capsys):
    def look(_argv):
        try:
            signal.raise_signal(signal.SIGINT)
        except BaseException:  # as a library does that asks for a device
            pass
        time.sleep(60)

    monkeypatch.setattr(cli, "STILL_HERE_S", 0.1)
    from luthier.commands import train

    monkeypatch.setattr(train, "run", look)

    assert cli.main(["train"]) == 130
    assert capsys.readouterr().err == "error: interrupted\n"


def test_an_interrupt_that_is_on_its_way_is_not_overtaken(monkeypatch, capsys):
    def work(_argv):
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            time.sleep(0.5)
            print("done")

    monkeypatch.setattr(cli, "STILL_HERE_S", 0.1)
    from luthier.commands import train

    monkeypatch.setattr(train, "run", work)

    assert cli.main(["train"]) == 130
    assert capsys.readouterr().out == "done\n"


def test_what_breaks_by_an_interrupt_is_an_interrupt(monkeypatch, capsys):
    from luthier.commands import version

    def work(_argv):
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise RuntimeError("a worker exited unexpectedly") from None

    monkeypatch.setattr(version, "run", work)

    assert cli.main(["version"]) == 130
    assert capsys.readouterr().err == "error: interrupted\n"


@pytest.mark.parametrize(
    "code",
    [
        "import luthier.cli",
        "from luthier import cli; cli.main(['--help'])",
        "from luthier import cli; cli.main(['train', '--help'])",
        "from luthier import cli; cli.main(['env'])",
        "from luthier import cli; cli.main(['schema'])",
        "from luthier.arguments.parse import parse_dict; parse_dict({'model_name_or_path': 'm',"
        "'do_train': True, 'output_dir': 'o', 'dataset': 'd', 'dataloader_in_order': True})",
    ],
)
def test_nothing_heavy_is_imported(code):
    check = f"{code}\nimport sys\nprint(sorted({HEAVY!r} & set(sys.modules)), file=sys.stderr)"

    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)

    assert done.stderr.strip() == "[]"


def test_a_reader_that_leaves_early_is_no_error():
    done = subprocess.run(
        f"{sys.executable} -m luthier schema | head -1",
        shell=True,
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stderr == ""


@pytest.mark.parametrize("start", [["-m", "luthier", "train"], [str(ROOT / "src" / "train.py")]])
def test_wrong_arguments_end_with_exit_code_2(start, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("lora_rnak: 8\n")

    done = subprocess.run(
        [sys.executable, *start, str(config)], capture_output=True, text=True, check=False
    )

    assert done.returncode == 2
    assert f"{config}:1: the argument lora_rnak is unknown" in done.stderr
    assert "required: model_name_or_path" in done.stderr
    assert "Traceback" not in done.stderr
