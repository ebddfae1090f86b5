"""Names that users bring along and that are no fields: renamed, idle, not yet here, refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

Status: TypeAlias = Literal["honoured otherwise", "accepted without effect", "not yet", "refused"]


@dataclass(frozen=True)
class Legacy:
    """What becomes of a name that is no field.

    Attributes:
        status: how the name is treated.
        default: its value where nobody sets it; saying this value is always fine.
        says: what to use instead, or why nothing depends on it.
        becomes: for `honoured otherwise`, the value given -> our names with their values.
        is_fixed: for `accepted without effect`, whether only the default is accepted.
        joins: for `honoured otherwise`, whether its value joins the list that our name is given.
        part_of: for `not yet` and `refused`, the name that turns the feature on; without it the
            value changes nothing, and with it that name's sentence is enough.
    """

    status: Status
    default: Any
    says: str
    becomes: Callable[[Any], dict[str, Any]] | None = None
    is_fixed: bool = False
    joins: bool = False
    part_of: str | None = None

    def is_default(self, value: Any) -> bool:
        """Whether `value`, typed or as text, says what holds anyway."""
        if value == self.default and isinstance(value, bool) == isinstance(self.default, bool):
            return True
        text = str(value).strip().lower()
        if isinstance(self.default, bool):
            return text in (TRUE if self.default else FALSE)
        if self.default is None:
            return text in NULL or (text == "false" and self.becomes is None)
        if isinstance(self.default, int | float):
            try:
                return float(text) == self.default
            except ValueError:
                return False
        return text == str(self.default).lower()


TRUE = ("true", "yes", "on", "t", "y", "1")
FALSE = ("false", "no", "off", "f", "n", "0")
NULL = ("", "none", "null", "~")

LEGACY: dict[str, Legacy] = {}
"""Every such name."""


def _file(
    status: Status,
    says: str,
    *,
    is_fixed: bool = False,
    part_of: str | None = None,
    **defaults: Any,
) -> None:
    for name, default in defaults.items():
        assert name not in LEGACY, name
        LEGACY[name] = Legacy(status, default, says, is_fixed=is_fixed, part_of=part_of)


def _renamed(old: str, new: str, default: Any = None) -> None:
    LEGACY[old] = Legacy(
        "honoured otherwise", default, f"It is now `{new}`.", lambda value: {new: value}
    )


def _switch(old: str, new: str, value: str, *, joins: bool = False) -> None:
    LEGACY[old] = Legacy(
        "honoured otherwise",
        False,
        f"`true` is now `{new}: {value}`.",
        lambda _given: {new: value},
        joins=joins,
    )


_renamed("evaluation_strategy", "eval_strategy")
_renamed("no_cuda", "use_cpu", False)
_renamed("per_gpu_train_batch_size", "per_device_train_batch_size")
_renamed("per_gpu_eval_batch_size", "per_device_eval_batch_size")
_renamed("push_to_hub_model_id", "hub_model_id")
_renamed("push_to_hub_token", "hub_token")
_renamed("torchdynamo", "torch_compile_backend")
_renamed("activation_checkpointing", "gradient_checkpointing")
_renamed("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs")
_renamed("name_module_trainable", "freeze_trainable_modules")
_renamed("generation_num_beams", "eval_num_beams")
_renamed("num_layer_trainable", "freeze_trainable_layers")
_renamed("train_last_turn_only", "mask_history", False)
_renamed("new_special_tokens", "add_special_tokens")
_renamed("swanlab_run_name", "run_name")
_switch("adafactor", "optim", "adafactor")
_switch("use_swanlab", "report_to", "swanlab", joins=True)
_switch("group_by_length", "train_sampling_strategy", "group_by_length")

_file(
    "accepted without effect",
    "Evaluation sums losses and accuracies as it goes and gathers no predictions.",
    prediction_loss_only=False,
    eval_accumulation_steps=None,
    eval_do_concat_batches=True,
    eval_use_gather_object=False,
    batch_eval_metrics=False,
    include_for_metrics=[],
    include_inputs_for_metrics=False,
    use_legacy_prediction_loop=False,
)
_file(
    "accepted without effect",
    "FSDP2 holds a layer at a time, whatever its size.",
    fsdp_min_num_params=0,
)
_file(
    "accepted without effect",
    "Tokens and tokens per second are always counted and stand in every logged line.",
    include_tokens_per_second=False,
    include_num_input_tokens_seen=False,
)
_file(
    "accepted without effect",
    "The loader makes its steps of exactly the columns that it needs, on every rank.",
    remove_unused_columns=True,
    label_names=None,
    length_column_name="length",
    split_batches=None,
    dispatch_batches=None,
)
_file(
    "accepted without effect",
    "A loss that is no number is logged as it is; `on_nonfinite` says what becomes of the step.",
    logging_nan_inf_filter=True,
)
_file(
    "accepted without effect",
    "`max_new_tokens` limits answers, or `max_length` prompt and answer together.",
    generation_max_length=None,
)
_file(
    "accepted without effect",
    "Padding is never learned; leave it out.",
    is_fixed=True,
    ignore_pad_token_for_loss=True,
)
_file(
    "accepted without effect",
    "Encoded data is found by its content in any folder that a machine sees.",
    data_shared_file_system=False,
)
_file(
    "accepted without effect",
    "transformers has one tokenizer for each model, the fast one where it exists.",
    use_fast_tokenizer=True,
)
_file(
    "accepted without effect",
    "transformers always reads weights straight into place.",
    low_cpu_mem_usage=True,
)
_file(
    "accepted without effect",
    "Mixed precision is what torch does natively; `bf16` and `fp16` choose it.",
    fp16_backend="auto",
    half_precision_backend="auto",
    fp16_opt_level="O1",
)
_file(
    "accepted without effect",
    "transformers no longer has it.",
    use_mps_device=False,
    use_ipex=False,
    jit_mode_eval=False,
    past_index=-1,
    mp_parameters="",
    tpu_num_cores=None,
    tpu_metrics_debug=False,
    ray_scope="last",
)
_file(
    "accepted without effect",
    "Training never keeps keys and values; `use_kv_cache` is the knob for generation.",
    use_cache=False,
)
_file(
    "accepted without effect",
    "The engine always fuses the output head with the loss, in chunks, so whole logits never "
    "exist; that is what these kernels save most memory by.",
    enable_liger_kernel=False,
    use_liger_kernel=False,
    liger_kernel_config=None,
)
_file(
    "accepted without effect",
    "The engine computes plain LoRA layers, the output head and the loss in fused form by itself.",
    use_unsloth=False,
)
_file(
    "accepted without effect",
    "`gradient_checkpointing: auto` computes activations again where they do not fit in memory.",
    use_unsloth_gc=False,
)
_file(
    "accepted without effect",
    "Weights are written as safetensors only; leave it out.",
    is_fixed=True,
    save_safetensors=True,
)
_file(
    "accepted without effect",
    "The loss is always divided once by the learned tokens of all devices.",
    average_tokens_across_devices=True,
)
_file(
    "refused",
    'Write the organization into the name: `hub_model_id: "organization/name"`.',
    push_to_hub_organization=None,
)

_file(
    "accepted without effect",
    "Only the text of rows is read.",
    media_dir=None,
    image_max_pixels=768 * 768,
    image_min_pixels=32 * 32,
    image_do_pan_and_scan=False,
    crop_to_patches=False,
    video_max_pixels=256 * 256,
    video_min_pixels=16 * 16,
    video_fps=2.0,
    video_maxlen=128,
    use_audio_in_video=False,
    audio_sampling_rate=16000,
    freeze_vision_tower=True,
    freeze_multi_modal_projector=True,
)
_file(
    "not yet",
    "Images, videos and sounds are not in this version, and nothing else would learn.",
    freeze_language_model=False,
)
_file(
    "not yet",
    "Quantised weights are not in this version; use `bf16: true`, or `pure_bf16: true` to halve "
    "the memory.",
    quantization_bit=None,
)
_file(
    "not yet",
    "Quantised weights are not in this version; use `bf16: true`, or `pure_bf16: true` to halve "
    "the memory.",
    part_of="quantization_bit",
    quantization_method="bnb",
    quantization_type="nf4",
    double_quantization=True,
    quantization_device_map=None,
)
_file(
    "not yet",
    "Exporting is not in this version; peft's `merge_and_unload` merges the adapter in output_dir.",
    export_dir=None,
)
_file(
    "not yet",
    "Exporting is not in this version; peft's `merge_and_unload` merges the adapter in output_dir.",
    part_of="export_dir",
    export_size=5,
    export_device="cpu",
    export_quantization_bit=None,
    export_quantization_dataset=None,
    export_quantization_nsamples=128,
    export_quantization_maxlen=1024,
    export_legacy_format=False,
    export_hub_model_id=None,
)
_file(
    "not yet",
    "Answers are generated by transformers in this version; leave it out, or serve output_dir with "
    "vllm or sglang directly.",
    infer_backend="huggingface",
)
_file(
    "not yet",
    "Answers are generated by transformers in this version; leave it out, or serve output_dir with "
    "vllm or sglang directly.",
    part_of="infer_backend",
    vllm_maxlen=4096,
    vllm_gpu_util=0.7,
    vllm_enforce_eager=False,
    vllm_max_lora_rank=32,
    vllm_config=None,
    sglang_maxlen=4096,
    sglang_mem_fraction=0.7,
    sglang_tp_size=-1,
    sglang_config=None,
    sglang_lora_backend="triton",
)
_file(
    "not yet",
    "Offloading to disk is not in this version; choose a model that fits in memory.",
    offload_folder="offload",
)
_file(
    "not yet",
    "The router's loss is not in this version; leave it out.",
    moe_aux_loss_coef=None,
)
_file(
    "not yet",
    "Other hubs are not in this version; download the model and name its folder.",
    ms_hub_token=None,
    om_hub_token=None,
)
_file(
    "not yet",
    "Layers and sequences split over devices are not in this version; fsdp and deepspeed hold "
    "weights in parts.",
    parallelism_config=None,
)
_file(
    "accepted without effect",
    "A micro-batch that does not fit in memory is cut by itself; `tokens_per_micro_batch` bounds "
    "all.",
    auto_find_batch_size=False,
    torch_empty_cache_steps=None,
)
_file(
    "not yet",
    "It is not in this version; `train_sampling_strategy: group_by_length` orders by length.",
    sortish_sampler=False,
)
_file(
    "not yet",
    "It is not in this version; set `do_sample`, `temperature`, `top_p`, `max_new_tokens` and so "
    "on.",
    generation_config=None,
)
_file(
    "not yet",
    "OFT is not in this version; use `finetuning_type: lora`.",
    part_of="finetuning_type",
    oft_rank=0,
    oft_block_size=32,
    oft_target="all",
    module_dropout=0.0,
)
_file(
    "not yet",
    "Preference training is not in this version; `stage: sft` is.",
    ref_model=None,
    ref_model_adapters=None,
    ref_model_quantization_bit=None,
)
_file(
    "not yet",
    "Preference training is not in this version; `stage: sft` is.",
    part_of="stage",
    pref_beta=0.1,
    pref_ftx=0.0,
    pref_bco_weight=0.0,
    pref_loss="sigmoid",
    dpo_label_smoothing=0.0,
    kto_chosen_weight=1.0,
    kto_rejected_weight=1.0,
    simpo_gamma=0.5,
    ld_alpha=None,
)
_file(
    "refused",
    "PPO is not part of this program; `stage: sft` is, and trl trains by PPO.",
    reward_model=None,
    reward_model_adapters=None,
    reward_model_quantization_bit=None,
    reward_model_type="lora",
)
_file(
    "refused",
    "PPO is not part of this program; `stage: sft` is, and trl trains by PPO.",
    part_of="stage",
    ppo_buffer_size=1,
    ppo_epochs=4,
    ppo_score_norm=False,
    ppo_target=6.0,
    ppo_whiten_rewards=False,
)
_file(
    "not yet",
    "This loss is not in this version; leave it out for plain cross-entropy.",
    use_dft_loss=False,
    use_asft_loss=False,
    use_eaft_loss=False,
)
_file(
    "not yet",
    "This loss is not in this version; leave it out for plain cross-entropy.",
    part_of="use_asft_loss",
    asft_alpha=0.1,
)
_file(
    "not yet",
    "This loss is not in this version; leave it out for plain cross-entropy.",
    part_of="use_eaft_loss",
    eaft_alpha=1.0,
)
_file(
    "not yet",
    "This optimizer is not in this version; choose one by `optim`, such as adafactor or "
    "adamw_8bit.",
    use_galore=False,
    use_apollo=False,
    use_badam=False,
    use_adam_mini=False,
    use_muon=False,
    optim_target_modules=None,
)
_file(
    "not yet",
    "This optimizer is not in this version; choose one by `optim`, such as adafactor or "
    "adamw_8bit.",
    part_of="use_galore",
    galore_target="all",
    galore_rank=16,
    galore_update_interval=200,
    galore_scale=2.0,
    galore_proj_type="std",
    galore_layerwise=False,
)
_file(
    "not yet",
    "This optimizer is not in this version; choose one by `optim`, such as adafactor or "
    "adamw_8bit.",
    part_of="use_apollo",
    apollo_target="all",
    apollo_rank=16,
    apollo_update_interval=200,
    apollo_scale=32.0,
    apollo_proj="random",
    apollo_proj_type="std",
    apollo_scale_type="channel",
    apollo_layerwise=False,
    apollo_scale_front=False,
)
_file(
    "not yet",
    "This optimizer is not in this version; choose one by `optim`, such as adafactor or "
    "adamw_8bit.",
    part_of="use_badam",
    badam_mode="layer",
    badam_start_block=None,
    badam_switch_mode="ascending",
    badam_switch_interval=50,
    badam_update_ratio=0.05,
    badam_mask_mode="adjacent",
    badam_verbose=0,
)
_file(
    "not yet",
    "Layer expansion is not in this version; use `finetuning_type: freeze`.",
    use_llama_pro=False,
)
_file(
    "accepted without effect",
    "SwanLab reads its key from SWANLAB_API_KEY in the environment, or asks `swanlab login`.",
    swanlab_api_key=None,
)
_file(
    "accepted without effect",
    "SwanLab sends no messages to Lark from here.",
    swanlab_lark_webhook_url=None,
    swanlab_lark_secret=None,
)
_file(
    "not yet",
    "The profiler is not in this version; torch.profiler can be started from a callback.",
    enable_torch_profiler=False,
)
_file(
    "not yet",
    "The profiler is not in this version; torch.profiler can be started from a callback.",
    part_of="enable_torch_profiler",
    profiler_output_dir=None,
    profiler_wait_steps=1,
    profiler_warmup_steps=1,
    profiler_active_steps=1,
    profiler_repeat=1,
    profiler_record_shapes=True,
    profiler_profile_memory=True,
    profiler_with_stack=True,
    profile_modules=None,
)
_file(
    "not yet",
    "FP8 is not in this version; use `bf16: true`.",
    fp8=False,
)
_file(
    "not yet",
    "FP8 is not in this version; use `bf16: true`.",
    part_of="fp8",
    fp8_backend="auto",
    fp8_enable_fsdp_float8_all_gather=False,
)
_file(
    "accepted without effect",
    "Ray takes no part; `luthier train` starts a process for each accelerator by itself.",
    ray_num_workers=1,
    ray_init_kwargs=None,
    ray_run_name=None,
    ray_storage_path="./saves",
    ray_storage_filesystem=None,
    placement_strategy="PACK",
    resources_per_worker={"GPU": 1},
)
_file(
    "refused",
    "Launchers set it in the environment, as MASTER_ADDR and MASTER_PORT.",
    master_addr=None,
    master_port=None,
)
_file(
    "refused",
    "KTransformers is not part of this program; use `finetuning_type: lora` on a model that fits.",
    use_kt=False,
)
_file(
    "refused",
    "KTransformers is not part of this program; use `finetuning_type: lora` on a model that fits.",
    part_of="use_kt",
    kt_config=None,
    kt_cpu_activation=None,
    kt_optimize_rule=None,
    cpu_infer=32,
    chunk_size=8192,
    kt_weight_path=None,
    kt_non_expert_weight_path=None,
    kt_expert_checkpoint_path=None,
    kt_use_lora_experts=None,
    kt_lora_expert_num=None,
    kt_lora_expert_intermediate_size=None,
)
_file(
    "refused",
    "Nothing that works today is behind it; `rope_scaling` stretches positions.",
    shift_attn=False,
)
_file(
    "refused",
    "Mixture-of-depths is not part of this program; leave it out.",
    mixture_of_depths=None,
)
_file(
    "accepted without effect",
    "The engine chooses its kernels by itself.",
    use_v1_kernels=False,
)
_file(
    "refused",
    "Megatron and HyperParallel are not part of this program; leave it out.",
    use_mca=False,
    use_megatron_bridge=False,
    use_hyper_parallel=False,
    hyper_parallel_args=None,
    hyper_parallel_cp_size=1,
    tensor_model_parallel_size=1,
    pipeline_model_parallel_size=1,
    expert_model_parallel_size=1,
    context_parallel_size=1,
    virtual_pipeline_model_parallel_size=None,
    sequence_parallel=False,
    recompute_granularity=None,
    recompute_method=None,
    recompute_num_layers=None,
    account_for_embedding_in_pipeline_split=None,
    account_for_loss_in_pipeline_split=None,
    bias_activation_fusion=None,
    apply_rope_fusion=None,
    masked_softmax_fusion=None,
    cross_entropy_loss_fusion=None,
    moe_grouped_gemm=None,
    moe_token_dispatcher_type=None,
    calculate_per_token_loss=None,
    use_distributed_optimizer=True,
    overlap_param_gather=True,
    overlap_grad_reduce=True,
    use_packed_sequences=False,
    mixed_precision="bf16_mixed",
    megatron_pretrained_checkpoint=None,
    export_hf_on_finish=False,
    extra_config=None,
)
_file(
    "refused",
    "Benchmarks are not part of this program: run lm-evaluation-harness on output_dir. The batch "
    "sizes of a run are `per_device_train_batch_size` and `per_device_eval_batch_size`.",
    task=None,
    task_dir="evaluation",
    batch_size=4,
    lang="en",
    n_shot=5,
    save_dir=None,
    download_mode="reuse_dataset_if_exists",
)
_file(
    "refused",
    "It is no input: it follows from the other arguments.",
    compute_dtype=None,
    device_map=None,
    model_max_length=None,
    block_diag_attn=False,
    megatron_bridge_args=None,
    _kt_inference_config=None,
    _kt_config_handle=None,
    _kt_adapter_artifact_path=None,
)

ENVIRONMENT = {
    "USE_OPENMIND_HUB": "Models and data sets that are no folder here come from the Hugging Face "
    "hub. Fetch them from Modelers first, and name the folder.",
    "USE_RAY": "Ray takes no part: `luthier train` starts the processes of this machine.",
    "USE_V1": "There is one trainer here, and it takes the arguments of this configuration.",
    "USE_MCA": "Megatron takes no part; fsdp and deepspeed hold weights in parts.",
    "USE_MEGATRON_BRIDGE": "Megatron takes no part; fsdp and deepspeed hold weights in parts.",
    "USE_KT": "KTransformers takes no part; use finetuning_type: lora on a model that fits.",
}
"""Switches of LLaMA-Factory in the environment that have no effect -> what there is instead."""


def is_switched_on(variable: str) -> bool:
    """Whether the environment sets a switch, as LLaMA-Factory reads it."""
    return os.environ.get(variable, "").lower() in ("true", "y", "1")
