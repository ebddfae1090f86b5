"""the same words through transformers' HfArgumentParser and through ours: the same values"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from transformers import HfArgumentParser

from luthier.arguments.parse import parse_command_line, parse_known_words
from luthier.errors import ArgumentsError, MissingArguments


@dataclass
class Names:
    """A handful of our names, declared as HfArgumentParser reads them."""

    model_name_or_path: str = field()
    output_dir: str = field()
    dataset: str = field()
    lora_rank: int = 8
    lora_alpha: int | None = None
    lora_dropout: float = 0.0
    learning_rate: float = 5e-5
    finetuning_type: Literal["lora", "freeze", "full"] = "lora"
    do_train: bool = False
    plot_loss: bool = False
    use_kv_cache: bool = True
    dataloader_pin_memory: bool = True
    tf32: bool | None = None
    report_to: list[str] = field(default_factory=list)
    seed: int = 42
    max_steps: int = -1
    top_k: int = 50
    default_system: str | None = None


FIRST = ["--model_name_or_path", "m", "--output_dir", "o", "--dataset", "d", "--do_train"]

SAME = (
    [],
    ["--lora_rank", "16"],
    ["--lora-rank", "16"],
    ["--lora_rank=16"],
    ["--lora-rank=16"],
    ["--lora_rank", "4", "--lora-rank", "5"],
    ["--lora_alpha", "32", "--lora_dropout", ".5", "--learning_rate", "1.0e-4"],
    ["--max_steps", "-1", "--seed=0"],
    ["--learning-rate", "1e-5"],
    ["--plot_loss"],
    ["--plot-loss"],
    ["--plot_loss", "--lora_rank", "2"],
    *(["--plot_loss", word] for word in ("true", "True", "yes", "t", "y", "1", "TRUE")),
    *(["--use_kv_cache", word] for word in ("false", "False", "no", "f", "n", "0")),
    ["--plot_loss=false"],
    ["--use_kv_cache"],
    ["--no_use_kv_cache"],
    ["--no-use-kv-cache"],
    ["--no_use_kv_cache", "--no_dataloader_pin_memory"],
    ["--use_kv_cache", "false", "--use_kv_cache", "true"],
    ["--tf32", "false"],
    ["--tf32=true"],
    ["--report_to", "wandb"],
    ["--report_to", "wandb", "tensorboard"],
    ["--report_to", "wandb", "tensorboard", "--seed", "3"],
    ["--report-to", "wandb", "--report_to", "mlflow", "trackio"],
    ["--finetuning_type", "freeze"],
    ["--finetuning-type=full"],
    ["--default_system", "Be brief, please."],
    ["--default_system=a=b"],
    ["--default_system", ""],
    ["--default_system", "- a dash first"],
)

REFUSED = (
    ["--lora_rank", "sixteen"],
    ["--lora_rank"],
    ["--lora_rank", "--do_train"],
    ["--finetuning_type", "lorra"],
    ["--plot_loss", "perhaps"],
    ["--tf32"],
    ["--report_to"],
    ["--no_use_kv_cache=true"],
    ["--learning_rate", "fast"],
)


def theirs(words: list[str], **options: Any) -> dict[str, Any]:
    (names,) = HfArgumentParser(Names).parse_args_into_dataclasses(words, **options)
    return vars(names)


def ours(words: list[str], **options: Any) -> dict[str, Any]:
    values = parse_command_line(words, **options).flat()
    (dataset,) = values["dataset"]
    return {
        **{name: values[name] for name in Names.__dataclass_fields__},
        "report_to": [name for name in values["report_to"] if name != "none"],
        "lora_alpha": values["lora_alpha"] if "--lora_alpha" in words else None,
        "dataset": dataset,
    }


@pytest.mark.parametrize("words", SAME, ids=" ".join)
def test_the_same_words_give_the_same_values(words: list[str]) -> None:
    assert ours([*FIRST, *words]) == theirs([*FIRST, *words])
    assert ours([*words, *FIRST]) == theirs([*words, *FIRST])


@pytest.mark.parametrize("words", REFUSED, ids=" ".join)
def test_the_same_words_are_refused_with_the_same_exit_code(words: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as their_end:
        theirs([*FIRST, *words])
    with pytest.raises(ArgumentsError) as our_end:
        parse_command_line([*FIRST, *words])

    assert our_end.value.exit_code == their_end.value.code == 2
    assert words[0].lstrip("-").partition("=")[0] in str(our_end.value).replace("-", "_")


def test_what_is_absent_is_listed_in_the_same_words(capsys) -> None:
    with pytest.raises(SystemExit) as their_end:
        theirs(["--do_train"])
    with pytest.raises(MissingArguments) as our_end:
        parse_command_line(["--do_train"])

    listed = capsys.readouterr().err.splitlines()[-1].partition("required: ")[2]
    for flag in listed.split(", "):
        assert flag in str(our_end.value)
    assert our_end.value.exit_code == their_end.value.code == 2


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A script with a file of words beside it, and three more files."""
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "go.py"), *FIRST])
    (tmp_path / "go.args").write_text("--lora_rank 1 --seed 1\n--max_steps 1 --top_k 1 --plot_loss")
    (tmp_path / "a.args").write_text("--seed 2 --max_steps 2\n\n--top_k\t2\n")
    (tmp_path / "b.args").write_text("--max_steps 3 --top_k 3")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ([], {}),
        (["--top_k", "9"], {}),
        (["--top_k", "9"], {"look_for_args_file": False}),
        (["--top_k", "9"], {"args_filename": "a.args"}),
        (["--top_k", "9"], {"args_filename": "absent.args"}),
        (["--top_k", "9"], {"args_filename": "a.args", "look_for_args_file": False}),
        (["--cfg", "a.args"], {"args_file_flag": "--cfg"}),
        (["--cfg", "a.args", "--cfg", "b.args"], {"args_file_flag": "--cfg"}),
        (["--cfg", "b.args", "--top_k", "9", "--cfg=a.args"], {"args_file_flag": "--cfg"}),
        (["--cfg", "b.args"], {"args_file_flag": "--cfg", "args_filename": "a.args"}),
        (["--cfg", "b.args"], {"args_file_flag": "--cfg", "look_for_args_file": False}),
        (["--cfg", "absent.args"], {"args_file_flag": "--cfg"}),
        ([], {"args_file_flag": "--cfg"}),
    ],
)
def test_files_of_words_win_in_the_same_order(
    script: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], options: dict[str, Any]
) -> None:
    monkeypatch.chdir(script)

    assert ours([*FIRST, *words], **options) == theirs([*FIRST, *words], **options)


def test_without_words_those_of_the_program_are_taken(script: Path) -> None:
    assert parse_command_line().flat()["lora_rank"] == theirs(None)["lora_rank"] == 1  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "words", [["--foo", "1"], ["--foo=1"], ["--foo", "--seed", "3"], ["--foo", "a", "b"], ["-x"]]
)
def test_remaining_strings_are_the_same(words: list[str]) -> None:
    parser = HfArgumentParser(Names)
    *_, expected = parser.parse_args_into_dataclasses(
        [*FIRST, *words], return_remaining_strings=True
    )

    _, rest = parse_known_words([*FIRST, *words])

    assert rest == expected
    with pytest.raises(ValueError, match="not used by the HfArgumentParser"):
        theirs([*FIRST, *words])
    with pytest.raises(ArgumentsError, match=r"unknown|stands alone"):
        parse_command_line([*FIRST, *words])
