import pytest

from luthier.arguments.parse import parse_command_line, parse_dict
from luthier.errors import ArgumentsError

RUN = {"model_name_or_path": "m", "output_dir": "o", "do_train": True, "dataset": "d"}

BROKEN = [
    ({"stage": "kto", "ref_model_adapters": "adapter"}, "merged into ref_model, which is unset"),
    (
        {"stage": "kto", "precompute_ref": True, "streaming": True, "max_steps": 5},
        "precompute_ref reads all rows before training",
    ),
    ({"stage": "dpo", "pref_loss": "sigmod"}, "Did you mean 'sigmoid'"),
    ({"stage": "dpo", "pref_loss": ""}, "names no loss"),
    ({"stage": "dpo", "pref_loss": "ipo,sft", "pref_loss_weights": "1"}, "has 1 numbers"),
    ({"stage": "dpo", "pref_loss": "ipo", "dpo_label_smoothing": 0.1}, "ipo has none"),
    ({"stage": "dpo", "dpo_label_smoothing": 0.5}, "dpo_label_smoothing"),
    ({"stage": "dpo", "pref_loss": "exo_pair"}, "needs dpo_label_smoothing above 0"),
    (
        {"stage": "dpo", "pref_loss": "nca_pair", "f_divergence_type": "forward_kl"},
        "has reverse_kl alone",
    ),
    ({"stage": "dpo", "pref_loss": "orpo", "ref_model": "r"}, "takes no reference"),
    ({"stage": "dpo", "pref_loss": "simpo", "ref_model_adapters": "r"}, "takes no reference"),
    ({"stage": "dpo", "pref_loss": "sft,orpo", "precompute_ref": True}, "takes no reference"),
    ({"stage": "ppo"}, "not part of this program"),
    ({"use_dft_loss": True, "use_eaft_loss": True}, "different losses"),
    ({"use_dft_loss": True, "use_asft_loss": True}, "different losses"),
    ({"use_asft_loss": True, "stage": "dpo"}, "goes with stage: sft, not dpo"),
    ({"use_dft_loss": True, "stage": "pt"}, "goes with stage: sft, not pt"),
    ({"use_eaft_loss": True, "label_smoothing_factor": 0.1}, "no label_smoothing_factor"),
    ({"finetuning_type": "oft", "oft_block_size": 0}, "are both 0"),
    ({"finetuning_type": "oft", "oft_rank": 4, "oft_block_size": 8}, "in two ways"),
    ({"finetuning_type": "full", "use_llama_pro": True}, "freeze or lora or oft, not full"),
    ({"use_llama_pro": True, "freeze_trainable_layers": -2}, "number of layers that were added"),
    ({"finetuning_type": "oft", "use_dora": True}, "goes with finetuning_type: lora, not oft"),
    ({"val_size": 0.1, "eval_dataset": "e"}, "keep one of them"),
    ({"dataset": None, "do_train": False, "do_eval": True, "val_size": 0.1}, "no dataset is named"),
    ({"val_size": 1.5}, "whole number of rows"),
    ({"max_bad_rows": 2.5}, "whole number of rows"),
    ({"dataset": "a,b", "interleave_probs": "0.5,0.5"}, "mix_strategy"),
    (
        {"dataset": "a,b", "interleave_probs": "1", "mix_strategy": "interleave_over"},
        "1 shares and dataset has 2",
    ),
    (
        {"dataset": "a,b", "interleave_probs": "-1,2", "mix_strategy": "interleave_over"},
        "negative share",
    ),
    (
        {"dataset": "a,b", "interleave_probs": "0.5,0.6", "mix_strategy": "interleave_over"},
        "makes 1.1 together (0.5, 0.6); expected 1",
    ),
    ({"cutoff_len": 1}, "expected at least 2"),
    ({"max_samples": "9000,1000"}, "`num_samples` in dataset_info.json"),
    ({"train_on_prompt": True, "mask_history": True}, "keep one of them"),
    ({"do_eval": True}, "do_eval needs rows"),
    ({"eval_strategy": "epoch"}, "eval_strategy: epoch needs rows"),
    ({"do_predict": True, "val_size": 0.1}, "predict_with_generate: true"),
    ({"metric": "my:scores"}, "metric is about generated answers"),
    ({"limit": 3}, "limit is about generated answers"),
    ({"num_return_sequences": 3, "do_sample": False}, "answers to a prompt are the same one"),
    ({"num_return_sequences": 3, "num_beams": 2}, "a search with 2 beams gives one answer"),
    ({"eval_generate_samples": 2, "val_size": 0.1}, "eval_strategy is no"),
    ({"adapter_name_or_path": "a", "finetuning_type": "full"}, "not full"),
    ({"use_dora": True, "finetuning_type": "freeze"}, "use_dora goes with"),
    ({"pissa_init": True, "finetuning_type": "full"}, "pissa_init goes with"),
    ({"loraplus_lr_ratio": 16, "finetuning_type": "full"}, "loraplus_lr_ratio goes with"),
    ({"use_rslora": True, "finetuning_type": "full"}, "use_rslora goes with"),
    ({"create_new_adapter": True, "finetuning_type": "full"}, "create_new_adapter goes with"),
    ({"pissa_convert": True}, "pissa_init: true"),
    ({"pissa_init": True, "pissa_iter": 0}, "pissa_iter is 0"),
    ({"finetuning_type": "freeze", "freeze_trainable_layers": 0}, "nothing would learn"),
    ({"train_from_scratch": True}, "finetuning_type: full"),
    ({"bf16": True, "fp16": True}, "different precisions"),
    ({"pure_bf16": True, "fp16": True}, "different precisions"),
    ({"bf16_full_eval": True, "fp16_full_eval": True}, "different precisions"),
    (
        {"gradient_checkpointing": True, "disable_gradient_checkpointing": True},
        "the one that you mean",
    ),
    ({"layout": "padded", "prefix_sharing": "off"}, "leave one of them out"),
    ({"layout": "tree", "neftune_noise_alpha": 5}, "leave layout out"),
    ({"load_best_model_at_end": True}, "set both to steps"),
    (
        {
            "load_best_model_at_end": True,
            "val_size": 0.1,
            "eval_strategy": "steps",
            "eval_steps": 3,
            "save_steps": 10,
        },
        "multiple of eval_steps",
    ),
    ({"early_stopping_steps": 2}, "acts on evaluations"),
    ({"save_strategy": "best"}, "acts on evaluations"),
    ({"lr_scheduler_type": "reduce_lr_on_plateau"}, "acts on evaluations"),
    ({"max_steps": 0}, "max_steps is 0"),
    ({"disable_shuffling": True, "group_by_length": True}, "keep one of them"),
    ({"dataloader_prefetch_factor": 2}, "dataloader_num_workers above 0"),
    ({"dataloader_persistent_workers": True}, "dataloader_num_workers above 0"),
]


@pytest.mark.parametrize(("values", "part"), BROKEN)
def test_what_cannot_go_together_is_one_clear_problem(values, part):
    with pytest.raises(ArgumentsError) as caught:
        parse_dict({**RUN, **values})

    assert len(caught.value.problems) == 1
    assert part in caught.value.problems[0]


@pytest.mark.parametrize(
    "values",
    [
        {"val_size": 0.1, "eval_strategy": "steps", "eval_steps": 5, "save_steps": 10},
        {"val_size": 100, "load_best_model_at_end": True, "eval_strategy": "steps"},
        {
            "val_size": 0.1,
            "load_best_model_at_end": True,
            "eval_strategy": "steps",
            "eval_steps": 0.1,
            "save_steps": 0.3,
        },
        {"bf16": True, "pure_bf16": True},
        {"gradient_checkpointing": False, "disable_gradient_checkpointing": True},
        {"gradient_checkpointing": "auto", "disable_gradient_checkpointing": True},
        {"layout": "tree", "prefix_sharing": "off"},
        {"do_train": False, "do_predict": True, "predict_with_generate": True, "eval_dataset": "e"},
        {"dataset": "a,b", "interleave_probs": "0.5,0.5", "mix_strategy": "interleave_over"},
        {"pissa_init": True, "pissa_iter": -1, "pissa_convert": True},
        {"finetuning_type": "freeze", "freeze_trainable_layers": -2},
        {"max_bad_rows": 3},
    ],
)
def test_what_goes_together_is_accepted(values):
    parse_dict({**RUN, **values})


def test_norms_in_float32_beside_bfloat16_layers_are_refused():
    with pytest.raises(ArgumentsError, match=r"upcast_layernorm .* set bf16: true in place"):
        parse_dict({**RUN, "pure_bf16": True, "upcast_layernorm": True})

    parse_dict({**RUN, "bf16": True, "upcast_layernorm": True})


def test_a_broken_rule_says_where_its_names_stand(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(
        "model_name_or_path: m\noutput_dir: o\ndo_train: true\ndataset: d\nbf16: true\n"
    )

    with pytest.raises(ArgumentsError) as caught:
        parse_command_line([str(file), "fp16=true"])

    assert caught.value.problems == [
        f"{file}:5, command line: bf16 and fp16 are different precisions; keep one of them."
    ]


def test_a_run_without_a_task_is_told_what_to_set():
    with pytest.raises(ArgumentsError, match=r"there is nothing to do.*do_train: true"):
        parse_dict({"model_name_or_path": "m", "output_dir": "o", "dataset": "d"})
