"""What may differ between a checkpoint and the run that goes on from it, and what may not.

The table, by the names of arguments:

- FIXED: which weights learn, how they began and what the optimizer keeps of each. Another value
  cannot go on. Neither can what `_is_restored` names: values that live in what is restored, where a
  new one would be announced and not used.
- FREE: where files lie, what is logged, saved and evaluated, how work is cut and moved. The model
  that comes out is the same but for the rounding of sums.
- ELSEWHERE: names that say only a part of what counts; the thing itself is compared. Data by the
  fingerprint of the encoded examples (files may move, be renamed, be converted); the batch by the
  examples of a step, all ranks together; the base model by its folder's name, as folders move.
- max_steps and num_train_epochs: raising them is what one wants of a run that was too short. A
  schedule that does not look at the end goes on as it was; another is drawn anew over all steps,
  and a line says so.
- All others change what is learned: refused, unless `resume_allow_changes`. Those that optimizers
  keep are put into them, see `optimizers/restored.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luthier.checkpoints.folders import deepspeed_parts, holds_states
from luthier.checkpoints.identity import Identity
from luthier.checkpoints.manifest import Manifest

FIXED = frozenset(
    """
    finetuning_type optim optim_args lora_rank lora_target additional_target use_dora
    freeze_trainable_layers freeze_trainable_modules freeze_extra_modules streaming
    pissa_init pissa_iter create_new_adapter train_from_scratch
    resize_vocab add_tokens add_special_tokens new_special_tokens_config init_special_tokens
    """.split()
)

ELSEWHERE = frozenset(
    """
    model_name_or_path adapter_name_or_path
    dataset eval_dataset dataset_dir template cutoff_len on_overlong packing neat_packing sample_by
    train_on_prompt mask_history mix_strategy interleave_probs max_samples val_size tool_format
    default_system enable_thinking preserve_thinking tokenized_path max_bad_rows
    per_device_train_batch_size gradient_accumulation_steps nproc
    max_steps num_train_epochs
    deepspeed fsdp fsdp_config accelerator_config
    """.split()
)

FREE = frozenset(
    """
    adapter_folder cache_dir flash_attn disable_gradient_checkpointing use_reentrant_gc use_kv_cache
    infer_dtype hf_hub_token print_param_status trust_remote_code
    overwrite_cache preprocessing_batch_size preprocessing_num_workers eval_num_beams
    eval_on_each_dataset
    compute_accuracy early_stopping_steps plot_loss include_effective_tokens_per_second
    pissa_convert
    output_dir overwrite_output_dir do_train do_eval do_predict predict_with_generate
    resume_from_checkpoint resume_allow_changes max_failed_saves per_device_eval_batch_size
    tokens_per_micro_batch layout prefix_sharing gradient_checkpointing
    gradient_checkpointing_kwargs use_cpu tf32 full_determinism bf16_full_eval fp16_full_eval
    eval_strategy eval_steps eval_delay eval_on_start save_strategy save_steps save_total_limit
    save_only_model save_on_each_node load_best_model_at_end metric_for_best_model
    greater_is_better ignore_data_skip restore_callback_states_from_checkpoint
    enable_jit_checkpoint logging_strategy logging_steps logging_first_step on_nonfinite
    logging_dir log_level log_level_replica log_on_each_node disable_tqdm report_to run_name project
    swanlab_project swanlab_workspace swanlab_mode swanlab_logdir
    trackio_space_id trackio_bucket_id trackio_static_space_id skip_memory_metrics debug
    dataloader_num_workers dataloader_prefetch_factor dataloader_pin_memory
    dataloader_persistent_workers torch_compile torch_compile_backend torch_compile_mode local_rank
    stop_grace_seconds ddp_backend max_restarts ddp_timeout allow_long_timeout
    ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph
    push_to_hub hub_model_id hub_strategy hub_token hub_private_repo hub_always_push hub_revision
    do_sample temperature top_p top_k num_beams max_length max_new_tokens repetition_penalty
    length_penalty skip_special_tokens
    """.split()
)

ENDLESS = frozenset(
    ("constant", "constant_with_warmup", "inverse_sqrt", "reduce_lr_on_plateau", "greedy")
)
"""Schedules that do not look at the number of steps."""

STATEFUL = frozenset(("reduce_lr_on_plateau", "greedy"))
"""Schedules whose own state holds the learning rate and all of their settings."""

FORMS = {"zero0": 0, "zero1": 2, "zero2": 2, "zero3": 3}
"""The form of DeepSpeed's optimizer states by strategy; all others read each other's."""

PARTED = frozenset(("zero1", "zero2", "zero3"))
"""Strategies whose checkpoints have a part for each rank, read by as many."""


@dataclass
class Changes:
    """How a run differs from a checkpoint.

    Attributes:
        fixed: `name: then, now` for what no run can change.
        learned: the same for what changes what is learned.
        notes: what is as good as it was, but worth a line.
    """

    fixed: list[str] = field(default_factory=list)
    learned: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def problem(self, checkpoint: Path, *, are_allowed: bool) -> str | None:
        """What speaks against going on; None when nothing does.

        Args:
            checkpoint: that the run would go on from.
            are_allowed: `resume_allow_changes`.
        """
        listed = [*self.fixed, *([] if are_allowed else self.learned)]
        if not listed:
            return None
        remedies = ["set them back to go on", "overwrite_output_dir: true for a new run"]
        if not self.fixed:
            remedies.insert(1, "resume_allow_changes: true to go on all the same")
        return "\n".join(
            [
                f"{checkpoint} was made by another run than this one would be:",
                *(f"    {line}" for line in listed),
                f"  Either {', or '.join(remedies)}.",
            ]
        )


def compare_settings(manifest: Manifest, settings: Mapping[str, Any]) -> Changes:
    """How the arguments differ, as far as they say it."""
    before, found = manifest.settings, Changes()
    for name in sorted(before.keys() & settings.keys() - ELSEWHERE):
        if before[name] != settings[name]:
            line = _line(name, before[name], settings[name])
            if name in FIXED or _is_restored(name, manifest, settings):
                found.fixed.append(line)
            elif name not in FREE:
                found.learned.append(line)
    for name in ("model_name_or_path", "adapter_name_or_path"):
        if name in before and _names(before[name]) != _names(settings.get(name)):
            found.learned.append(_line(name, before[name], settings.get(name)))
    _compare_length(before, settings, found)
    return found


def compare(manifest: Manifest, now: Identity) -> Changes:
    """How a run differs from a checkpoint in all that counts."""
    found = compare_settings(manifest, now.settings)
    was = manifest
    if _is_other_data(was.data, now.data):
        found.learned.append(
            f"the encoded training data: {was.data['rows']:,} rows then, {now.data['rows']:,} "
            "now, of other content or in another order"
        )
    if was.examples_per_step != now.examples_per_step:
        found.learned.append(
            _line("examples of a step", was.examples_per_step, now.examples_per_step)
            + " (per_device_train_batch_size x gradient_accumulation_steps x processes)"
        )
    if any(name.startswith("rng_state") for name in was.files):
        _compare_states(was.strategy, was.world_size, now, found)
    if was.world_size != now.world_size and not found.fixed:
        same = was.examples_per_step == now.examples_per_step
        found.notes.append(
            _line("processes", was.world_size, now.world_size)
            + (". The examples of each step are the same; r" if same else ". R")
            + "andom numbers such as those of dropout are others."
        )
    return found


def compare_files(checkpoint: Path, now: Identity) -> Changes:
    """How a run differs from a checkpoint of another program, as far as its files say it."""
    found = Changes()
    if holds_states(checkpoint):
        was = deepspeed_parts(checkpoint) or "ddp"
        _compare_states(was, now.world_size, now, found)
    return Changes(fixed=found.fixed)


def _compare_states(was: str, was_world_size: int, now: Identity, found: Changes) -> None:
    """Whether this run can read the optimizer states of a checkpoint."""
    held = _line("how weights are held", was, now.strategy)
    if FORMS.get(was) != FORMS.get(now.strategy):
        found.fixed.append(f"{held}; neither reads the optimizer states of the other")
    elif _kind(was) != _kind(now.strategy):
        found.learned.append(held)
    elif was in PARTED and was_world_size != now.world_size:
        found.fixed.append(
            _line("processes", was_world_size, now.world_size)
            + "; DeepSpeed keeps a part of the optimizer for each"
        )


def _is_restored(name: str, manifest: Manifest, settings: Mapping[str, Any]) -> bool:
    """Whether an argument lives in what a checkpoint restores, and would come from there."""
    before = manifest.settings
    match name:
        case "learning_rate" | "lr_scheduler_type" | "lr_scheduler_kwargs":
            schedules = {before.get("lr_scheduler_type"), settings["lr_scheduler_type"]}
            return not STATEFUL.isdisjoint(schedules)
        case "loraplus_lr_ratio":  # with it, there are other groups of weights
            return None in (before[name], settings[name])
        case (
            "metric_for_best_model" | "greater_is_better"
        ):  # the best number so far is of the other
            metric = "metric_for_best_model"
            return None not in (before.get(metric), settings[metric])
        case "bf16" | "fp16" | "pure_bf16":
            return manifest.strategy in FORMS
    return False


def _compare_length(before: Mapping[str, Any], now: Mapping[str, Any], found: Changes) -> None:
    names = ("max_steps", "num_train_epochs")
    changed = [name for name in names if name in before and before[name] != now.get(name)]
    if now.get("max_steps", -1) > 0 and before.get("max_steps") == now["max_steps"]:
        return  # the epochs do not count
    schedule = now.get("lr_scheduler_type")
    if changed and (schedule not in ENDLESS or _warms_up_by_share(now)):
        lines = ", ".join(_line(name, before[name], now.get(name)) for name in changed)
        found.notes.append(
            f"{lines}. The learning rate ({schedule}) follows the new number of steps from here "
            "on, so its curve is not that of a run of this length."
        )


def _warms_up_by_share(settings: Mapping[str, Any]) -> bool:
    steps = settings.get("warmup_steps") or 0
    return 0 < steps < 1 or (steps == 0 and bool(settings.get("warmup_ratio")))


def _line(name: str, before: Any, now: Any) -> str:
    return f"{name}: {before!r} then, {now!r} now"


def _names(value: Any) -> list[str]:
    """The last part of each path, which stays when a folder moves."""
    values = value if isinstance(value, list) else [value]
    return [Path(str(each)).name for each in values if each is not None]


def _is_other_data(was: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether examples differ; a stream compares its state itself, and says what is another."""
    is_known = was.get("rows") is not None and now.get("rows") is not None
    return is_known and was["fingerprint"] != now["fingerprint"]


def _kind(strategy: str) -> str:
    kinds = {"single": "whole", "ddp": "whole", "zero1": "zero2"}
    return kinds.get(strategy, strategy)
