from luthier import cli
from luthier.arguments.record import Arguments
from luthier.commands import train


def test_help_explains_every_section(capsys):
    assert train.run(["--help"]) == 0

    shown = capsys.readouterr().out
    for title in ("Model", "Data", "Method", "Training", "Generation", "Not yet"):
        assert f"\n{title}" in shown
    assert "--lora_rank  a whole number of at least 1" in shown


def test_help_of_a_command_is_reached_by_help(capsys):
    cli.main(["train", "-h"])
    direct = capsys.readouterr().out

    assert cli.main(["help", "train"]) == 0
    assert capsys.readouterr().out == direct


def test_the_run_gets_the_checked_arguments(monkeypatch, llama_folder):
    from luthier.training import run

    got = []
    monkeypatch.setattr(run, "run", lambda arguments, owns_process: got.append(arguments))

    words = ["output_dir=o", "do_eval=true", "eval_dataset=identity_eval"]
    assert train.run([f"model_name_or_path={llama_folder}", *words]) == 0
    assert isinstance(got[0], Arguments)
    assert got[0].data.eval_dataset == ("identity_eval",)
