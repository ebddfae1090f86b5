import sys

import pytest

from luthier.arguments.parse import parse_command_line, parse_dict, parse_known_words
from luthier.errors import ArgumentsError, MissingArguments

RUN = {"model_name_or_path": "m", "output_dir": "o", "do_train": True, "dataset": "d"}
FLAGS = ["--model_name_or_path", "m", "--output_dir", "o", "--do_train", "--dataset", "d"]
YAML = "model_name_or_path: m\noutput_dir: o\ndo_train: true\ndataset: d\n"

SEED = """
--model_name_or_path ../model/qwen/Qwen2-7B-Instruct --stage sft --do_train --finetuning_type lora
--lora_target all --dataset user --template qwen --cutoff_len 8192 --overwrite_cache true
--preprocessing_num_workers 16 --output_dir saves/qwen2-7b/lora/sft --logging_steps 10
--save_steps 500 --plot_loss true --overwrite_output_dir true --per_device_train_batch_size 1
--gradient_accumulation_steps 8 --learning_rate 1.0e-4 --num_train_epochs 3.0
--lr_scheduler_type cosine --warmup_ratio 0.1 --bf16 true --ddp_timeout 180000000 --val_size 0.1
--per_device_eval_batch_size 1 --eval_strategy steps --eval_steps 500
--ddp_find_unused_parameters false
""".split()


@pytest.fixture
def config(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(YAML)
    return file


def test_the_long_command_is_taken_as_written():
    arguments = parse_command_line(["--local_rank=0", *SEED])

    assert arguments.model.model_name_or_path == "../model/qwen/Qwen2-7B-Instruct"
    assert arguments.finetuning.lora_target == ("all",)
    assert arguments.data.dataset == ("user",)
    assert arguments.data.cutoff_len == 8192
    assert arguments.data.val_size == 0.1
    assert arguments.training.learning_rate == 1e-4
    assert arguments.training.bf16 is True
    assert arguments.training.ddp_timeout == 1800
    assert arguments.training.ddp_find_unused_parameters is False
    assert arguments.training.warmup_ratio == 0.1
    assert arguments.training.overwrite_output_dir is True
    assert arguments.training.local_rank == 0
    assert arguments.training.do_eval is True


def test_all_forms_of_the_same_settings_agree(tmp_path, config):
    json_file = tmp_path / "run.json"
    json_file.write_text(
        '{"model_name_or_path": "m", "output_dir": "o", "do_train": true, "dataset": ["d"]}'
    )

    flats = [
        parse.flat()
        for parse in (
            parse_dict(RUN),
            parse_command_line([str(config)]),
            parse_command_line([str(json_file)]),
            parse_command_line(FLAGS),
            parse_command_line([str(config)]),
            parse_command_line([f"{name}={value}" for name, value in RUN.items()]),
        )
    ]

    assert all(flat == flats[0] for flat in flats)


def test_overrides_of_both_kinds_win_over_the_file(config):
    arguments = parse_command_line(
        [str(config), "lora_rank=16", "--dataset", "a,b", "lora_alpha=null", "report_to=[wandb]"]
    )

    assert arguments.finetuning.lora_rank == 16
    assert arguments.finetuning.lora_alpha == 32
    assert arguments.data.dataset == ("a", "b")
    assert arguments.training.report_to == ("wandb",)
    assert arguments.origins["lora_rank"] == "command line"
    assert arguments.origins["output_dir"] == f"{config}:2"


def test_a_file_after_the_flags_of_a_launcher_is_found(config, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["src/train.py", "--local_rank=3"])
    sys.argv.append(str(config))

    arguments = parse_command_line()

    assert arguments.training.local_rank == 3
    assert arguments.data.dataset == ("d",)


def test_a_later_word_wins():
    assert parse_command_line([*FLAGS, "lora_rank=4", "--lora-rank", "5"]).finetuning.lora_rank == 5


def test_a_new_name_in_an_override_wins_over_the_old_one_in_the_file(config):
    config.write_text(YAML + "evaluation_strategy: steps\nval_size: 0.1\n")

    arguments = parse_command_line([str(config), "eval_strategy=no"])

    assert arguments.training.eval_strategy == "no"


def test_two_files_are_one_too_many(config):
    with pytest.raises(ArgumentsError, match="a second configuration file"):
        parse_command_line([str(config), str(config)])


def test_an_unreadable_file_is_the_only_problem(tmp_path):
    with pytest.raises(ArgumentsError) as caught:
        parse_command_line([str(tmp_path / "absent.yaml")])

    assert len(caught.value.problems) == 1


def test_lists_are_spelled_in_four_ways(config):
    for words in (
        ["--lora_target", "q_proj", "v_proj"],
        ["--lora_target=q_proj,v_proj"],
        ["lora_target=[q_proj, v_proj]"],
        ["--lora_target", "q_proj,", "v_proj"],
    ):
        arguments = parse_command_line([str(config), *words])
        assert arguments.finetuning.lora_target == ("q_proj", "v_proj")


def test_absent_arguments_are_listed_in_both_spellings():
    with pytest.raises(MissingArguments) as caught:
        parse_command_line(["--do_train"])

    message = str(caught.value)
    assert (
        "the following arguments are required: --model_name_or_path/--model-name-or-path, "
        "--output_dir/--output-dir, --dataset/--dataset" in message
    )
    assert "usage: " in message
    assert caught.value.exit_code == 2


def test_an_empty_command_line_misses_arguments():
    with pytest.raises(MissingArguments, match="nothing to do"):
        parse_command_line([])


def test_absent_arguments_of_a_dict_are_listed_plainly():
    with pytest.raises(MissingArguments, match=r"required: model_name_or_path, output_dir$"):
        parse_dict({"do_eval": True, "eval_dataset": "d"})


def test_a_chat_needs_only_a_model():
    arguments = parse_command_line(["--model_name_or_path", "m"], purpose="chat")

    assert arguments.model.model_name_or_path == "m"


def test_remaining_strings_are_returned_when_asked_for():
    words = [*FLAGS, "--foo", "1", "stray"]

    arguments, rest = parse_known_words(words)

    assert rest == ["--foo", "1", "stray"]
    assert arguments.data.dataset == ("d",)
    with pytest.raises(ArgumentsError, match="--foo is unknown"):
        parse_command_line(words)


def test_shortened_flags_are_refused():
    with pytest.raises(ArgumentsError, match=r"--lora_r is shortened.*--lora_rank"):
        parse_command_line([*FLAGS, "--lora_r", "8"])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "auto"),
        (["--gradient_checkpointing"], True),
        (["--gradient_checkpointing", "auto"], "auto"),
        (["--no_gradient_checkpointing"], False),
        (["gradient_checkpointing=true"], True),
        (["gradient_checkpointing=False"], False),
        (["--disable_gradient_checkpointing"], False),
    ],
)
def test_a_switch_may_be_left_to_the_program(words, expected):
    needed = ["model_name_or_path=m", "output_dir=o", "do_train=true", "dataset=d"]

    assert parse_command_line([*needed, *words]).training.gradient_checkpointing == expected


@pytest.mark.parametrize("value", ["off", False])
def test_off_is_a_word_and_what_yaml_makes_of_it(value):
    values = {"model_name_or_path": "m", "output_dir": "o", "do_train": True, "dataset": "d"}

    assert parse_dict(values | {"prefix_sharing": value}).training.prefix_sharing == "off"


def test_switches_whose_default_is_open_want_a_value():
    with pytest.raises(ArgumentsError, match="--tf32 expects a value"):
        parse_command_line([*FLAGS, "--tf32"])


def test_the_args_file_beside_the_script_comes_before_the_command_line(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "train.py")])
    (tmp_path / "train.args").write_text("--lora_rank 4\n--seed 7\n")

    arguments = parse_command_line([*FLAGS, "--seed", "8"])
    without = parse_command_line(FLAGS, look_for_args_file=False)

    assert (arguments.finetuning.lora_rank, arguments.training.seed) == (4, 8)
    assert arguments.origins["lora_rank"] == "train.args"
    assert without.finetuning.lora_rank == 8


def test_a_named_args_file_replaces_the_one_beside_the_script(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "train.py")])
    (tmp_path / "train.args").write_text("--lora_rank 4")
    (tmp_path / "other.args").write_text("--seed 7")

    arguments = parse_command_line(FLAGS, args_filename=tmp_path / "other.args")

    assert (arguments.finetuning.lora_rank, arguments.training.seed) == (8, 7)


def test_files_named_by_flags_win_in_their_order(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "train.py")])
    (tmp_path / "train.args").write_text("--lora_rank 1 --seed 1 --max_steps 1 --top_k 1")
    (tmp_path / "a.args").write_text("--seed 2 --max_steps 2 --top_k 2")
    (tmp_path / "b.args").write_text("--max_steps 3 --top_k 3")

    arguments = parse_command_line(
        ["--cfg", str(tmp_path / "a.args"), *FLAGS, "--top_k", "4", f"--cfg={tmp_path}/b.args"],
        args_file_flag="--cfg",
    )

    assert arguments.finetuning.lora_rank == 1
    assert arguments.training.seed == 2
    assert arguments.training.max_steps == 3
    assert arguments.generating.top_k == 4


def test_an_absent_args_file_is_passed_over_and_said(tmp_path):
    arguments = parse_command_line(FLAGS, args_filename=tmp_path / "absent.args")

    assert "absent.args" in arguments.notes[0]


def test_names_of_the_library_alone_pass_through():
    arguments = parse_command_line([*FLAGS, "--dataloader_in_order", "false"])

    assert arguments.passed_through == {"dataloader_in_order": False}
    assert arguments.given("dataloader_in_order")


def test_passed_names_are_checked_where_their_type_is_plain():
    with pytest.raises(ArgumentsError, match="dataloader_in_order is 'perhaps'; expected true"):
        parse_dict({**RUN, "dataloader_in_order": "perhaps"})
