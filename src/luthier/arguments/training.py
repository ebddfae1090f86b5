"""How the run goes: steps, learning rate, precision, evaluation, saving, logging."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, SecretStr

from luthier.arguments.choices import Optim, Scheduler
from luthier.arguments.knob import (
    CommaList,
    Mapping,
    Section,
    free,
    knob,
    ours,
    read_mapping,
    split_commas,
)

CHECKPOINTING = {
    "use_reentrant": bool,
    "preserve_rng_state": bool,
    "determinism_check": Literal["default", "none"],
    "debug": bool,
    "early_stop": bool,
}
"""`gradient_checkpointing_kwargs`, those of torch.utils.checkpoint."""

ACCELERATOR = {
    "split_batches": bool,
    "dispatch_batches": bool | None,
    "even_batches": bool,
    "use_seedable_sampler": bool,
    "non_blocking": bool,
    "gradient_accumulation_kwargs": dict[str, Any] | None,
    "use_configured_state": bool,
}
"""`accelerator_config`, that of transformers."""


LogLevel: TypeAlias = Literal["detail", "debug", "info", "warning", "error", "critical", "passive"]

TRACKERS = {
    "all": "",
    "azure_ml": "azureml",
    "clearml": "clearml",
    "codecarbon": "codecarbon",
    "comet_ml": "comet_ml",
    "dagshub": "dagshub",
    "dvclive": "dvclive",
    "flyte": "flytekit",
    "kubeflow": "",
    "mlflow": "mlflow",
    "neptune": "neptune",
    "swanlab": "swanlab",
    "tensorboard": "tensorboard",
    "trackio": "trackio",
    "wandb": "wandb",
}
"""Values of `report_to` -> the package each needs."""

if TYPE_CHECKING:
    Tracker: TypeAlias = str
else:
    Tracker = Literal[tuple(TRACKERS)]


def _strategy(value: Any) -> Any:
    return "no" if value is False else value


def _sharing(value: Any) -> Any:
    return "off" if value is False else value


def _switch_or_auto(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


def _trackers(value: Any) -> Any:
    names = split_commas(value)
    return () if names == ("none",) else names


def _checkpoint(value: Any) -> Any:
    if value is None or isinstance(value, bool):
        value = {None: "auto", True: "true", False: "false"}[value]
    is_word = isinstance(value, str) and value.lower() in ("auto", "true", "false")
    return value.lower() if is_word else value


def _file_or_mapping(value: Any) -> Any:
    if value is False or (isinstance(value, str) and value.strip().lower() in ("", "false")):
        return None
    if isinstance(value, str) and value.lstrip().startswith("{"):
        return read_mapping(value)
    return value


def _sharding_words(value: Any) -> Any:
    if isinstance(value, str):
        words = value.replace(",", " ").lower().split()
        return {"": False, "true": True, "false": False}.get(" ".join(words), tuple(words))
    return bool(value) and (tuple(value) if isinstance(value, list) else value)


ShardingWord: TypeAlias = Literal[
    "full_shard",
    "shard_grad_op",
    "no_shard",
    "hybrid_shard",
    "hybrid_shard_zero2",
    "offload",
    "auto_wrap",
]

FileOrMapping: TypeAlias = Annotated[str | dict[str, Any] | None, BeforeValidator(_file_or_mapping)]
"""A file's name, or what stands in one."""

Strategy = Annotated[Literal["no", "steps", "epoch"], BeforeValidator(_strategy)]
SaveStrategy = Annotated[Literal["no", "steps", "epoch", "best"], BeforeValidator(_strategy)]


class TrainingArguments(Section):
    """Knobs of the training loop; most carry transformers' names."""

    output_dir: str | None = free(None)
    """The folder for everything the run writes; made when absent. Required to train, evaluate or
    predict."""
    overwrite_output_dir: bool = ours(False, status="honoured otherwise")
    """Whether to start anew in an `output_dir` that holds a run; that run is moved beside it, to
    `<output_dir>.old-<time>`. By default it goes on from the newest checkpoint there."""
    do_train: bool = free(False)
    """Whether to train. By default not."""
    do_eval: bool = free(False)
    """Whether to evaluate (after training, if there is any). By default not."""
    do_predict: bool = free(False)
    """Whether to generate an answer for every evaluation row; goes with `predict_with_generate`.
    Stage rm scores the answers that are there. By default not."""
    predict_with_generate: bool = ours(
        False, needs=("nltk", "jieba", "rouge_chinese"), generates=True
    )
    """Whether predictions are generated texts, scored by BLEU and ROUGE. By default there are
    none."""
    metric: str | None = ours(None)
    """A function of one's own that scores predictions beside BLEU and ROUGE, as MODULE:FUNCTION;
    it gets the predicted and the wanted texts, two lists, and gives a number or several by name. It
    is code: it is taken from what you write, never from a run's folder. By default none."""
    limit: int | None = ours(None, ge=1)
    """The first so many rows of each set are predicted. By default all."""
    eval_generate_samples: int = ours(0, generates=True, ge=0)
    """The first so many rows of each evaluation set are answered at every evaluation, and written
    to `generated_samples.jsonl` with the step. By default none."""
    resume_from_checkpoint: Annotated[
        str, BeforeValidator(_checkpoint, json_schema_input_type=str | bool | None)
    ] = ours("auto", reads=True)
    """Where to go on: `auto` (the default) takes the newest checkpoint in `output_dir` that is as
    it was written, if there is one; `true` the same, and ends where there is none; `false` ends
    where there is one; a `checkpoint-N` folder means that one and no other."""
    resume_allow_changes: bool = ours(False)
    """Whether a run may go on with other data, another batch or other settings than those of its
    checkpoint. By default it ends and lists them."""
    per_device_train_batch_size: int = knob(
        8, resume="elsewhere", on_card=True, ge=1, in_deepspeed="train_micro_batch_size_per_gpu"
    )
    """Examples a device contributes to each of a step's `gradient_accumulation_steps`. Their
    product over all devices makes one update; how it is cut is up to the program. By default 8."""
    per_device_eval_batch_size: int = free(8, ge=1)
    """Examples a device takes at a time in evaluation and prediction. By default 8."""
    gradient_accumulation_steps: int = knob(
        1, resume="elsewhere", on_card=True, ge=1, in_deepspeed="gradient_accumulation_steps"
    )
    """How many such batches make one update of the weights. By default 1."""
    tokens_per_micro_batch: int | None = ours(None, ge=1)
    """The most tokens that go through the model at once, padding counted and shared prefixes once;
    lower it when memory runs out: the result stays the same. By default
    `per_device_train_batch_size` x `cutoff_len`, or less where the device gains nothing from
    more."""
    num_train_epochs: float = knob(3.0, resume="length", on_card=True, gt=0)
    """How often the data is gone through; parts are allowed. By default 3 times."""
    max_steps: int = knob(-1, resume="length", on_card=True, ge=-1)
    """The number of updates after which training ends, whatever `num_train_epochs` says. By default
    -1: the epochs decide."""
    learning_rate: float = knob(
        5e-5,
        resume="schedule",
        on_card=True,
        ge=0,
        in_deepspeed="optimizer.params.lr scheduler.params.warmup_max_lr",
    )
    """The learning rate after warm-up. By default 5e-5; LoRA usually wants 1e-4."""
    weight_decay: float = knob(0.0, ge=0, in_deepspeed="optimizer.params.weight_decay")
    """How strongly weights are pulled to zero, biases and norms apart. By default not."""
    adam_beta1: float = knob(0.9, ge=0, lt=1)
    """Adam's memory of the gradient. By default 0.9."""
    adam_beta2: float = knob(0.999, ge=0, lt=1)
    """Adam's memory of the squared gradient. By default 0.999."""
    adam_epsilon: float = knob(1e-8, ge=0, in_deepspeed="optimizer.params.eps")
    """What Adam adds to the divisor so that it is never zero. By default 1e-8."""
    max_grad_norm: float = knob(1.0, ge=0, in_deepspeed="gradient_clipping")
    """The norm to which larger gradients are cut; 0 cuts nothing. By default 1."""
    on_nonfinite: Literal["stop", "skip"] = ours("stop")
    """What becomes of a step whose loss or gradient is NaN or infinite: by default it ends the run,
    weights unchanged, and names the rows; `skip` leaves its gradient out and goes on, up to 3 times
    in a row. The learning rate of later steps stays what it would be."""
    lr_scheduler_type: Scheduler = knob("linear", resume="schedule", on_card=True)
    """How the learning rate falls after warm-up. By default in a line to zero."""
    lr_scheduler_kwargs: Mapping | None = knob(None, resume="schedule")
    """Settings of the scheduler, a mapping or JSON text. By default its own."""
    warmup_ratio: float = ours(
        0.0, on_card=True, status="honoured otherwise", ge=0.0, le=1.0, resume="learned"
    )
    """The share of all steps in which the learning rate climbs from zero; rounded up. Counts when
    `warmup_steps` is 0. By default none."""
    warmup_steps: float = ours(0, on_card=True, ge=0, resume="learned")
    """The steps in which the learning rate climbs from zero (below 1: their share of all steps).
    Wins over `warmup_ratio`. By default none."""
    optim: Optim = knob("adamw_torch_fused", resume="fixed", on_card=True)
    """The optimizer. By default AdamW in torch's fused form."""
    optim_args: str | None = knob(None, resume="fixed")
    """Settings of the optimizer, as `name=value,name=value`. By default its own."""
    label_smoothing_factor: float = knob(0.0, stages=("sft", "pt"), ge=0.0, lt=1.0)
    """The share of the target that is spread evenly over the vocabulary. By default none."""
    neftune_noise_alpha: float | None = knob(None, ge=0.0)
    """NEFTune: the strength of the noise on the embeddings in training (5 to 15 is usual). By
    default there is none."""
    bf16: bool = knob(
        False, resume="half", on_card=True, in_deepspeed="bf16.enabled", half="bfloat16"
    )
    """Whether the model computes in bfloat16 and holds frozen weights in it, while trained ones
    stay float32; also on a CPU. By default all are float32."""
    fp16: bool = knob(
        False, resume="half", on_card=True, in_deepspeed="fp16.enabled", half="float16"
    )
    """Whether the model computes in float16, with a scaled loss, and holds frozen weights in it
    (for GPUs without bfloat16). By default all are float32."""
    bf16_full_eval: bool = free(False, half="bfloat16")
    """Whether evaluation without training holds the weights in bfloat16. By default not."""
    fp16_full_eval: bool = free(False, half="float16")
    """Whether evaluation without training holds the weights in float16. By default not."""
    tf32: bool | None = free(None)
    """Whether float32 products may use TF32 on NVIDIA GPUs from Ampere on. By default torch
    decides."""
    layout: Literal["auto", "tree", "padded"] = ours("auto")
    """How examples share a micro-batch: `tree` puts them behind one another without padding,
    `padded` side by side. By default the tree, where a probe at the start shows that this model
    computes in it what it computes on each example alone; `tree` ends the run where it does not."""
    prefix_sharing: Annotated[Literal["auto", "off"], BeforeValidator(_sharing)] = ours("auto")
    """Whether what examples of a micro-batch begin with alike goes through the model once. By
    default it does in the tree layout, unless dropout gives every example zeros of its own; `off`
    never does."""
    gradient_checkpointing: Annotated[
        bool | Literal["auto"],
        BeforeValidator(_switch_or_auto, json_schema_input_type=bool | Literal["auto"]),
    ] = ours("auto")
    """Whether activations are computed again in the backward pass instead of kept: less memory,
    slower. By default only where keeping them would not fit in memory, by an estimate that is
    printed; `disable_gradient_checkpointing` is the other way to say `false`."""
    gradient_checkpointing_kwargs: Mapping | None = ours(None)
    """Settings of gradient checkpointing, a mapping or JSON text. By default its own."""
    use_cpu: bool = ours(False)
    """Whether the run stays on the CPU. By default it takes the accelerator it finds."""
    seed: int = knob(42, on_card=True, ge=0, lt=2**32, draws=True)
    """Where every random choice of the run starts. By default 42."""
    data_seed: int | None = knob(None, ge=0)
    """Where the order of the examples starts. By default `seed`."""
    full_determinism: bool = free(False)
    """Whether GPU kernels that give slightly different sums each time are avoided; slower. By
    default they are used."""
    eval_strategy: Strategy = free("no")
    """When training pauses to evaluate: never (the default), each `eval_steps`, or epoch."""
    eval_steps: float | None = free(None, gt=0)
    """Steps between evaluations (below 1: a share of all steps). By default `logging_steps`."""
    eval_delay: float = free(0, ge=0)
    """Steps or epochs (as `eval_strategy` counts) before the first evaluation. By default 0."""
    eval_on_start: bool = free(False)
    """Whether to evaluate once before the first step. By default not."""
    save_strategy: SaveStrategy = free("steps")
    """When a checkpoint is written: each `save_steps` (the default), each epoch, whenever
    evaluation is best, or never."""
    save_steps: float = free(500, gt=0)
    """Steps between checkpoints (below 1: a share of all steps). By default 500."""
    save_total_limit: int | None = free(None, ge=1)
    """The most checkpoints kept; the oldest go first. By default all are kept."""
    max_failed_saves: int = ours(3, ge=1)
    """Checkpoints in a row that may fail to be written, for want of space mostly, before the run
    ends; until then it trains on. By default 3."""
    stop_grace_seconds: float = ours(60.0, gt=0)
    """Seconds from a signal to stop (Ctrl-C, SIGTERM) to the end of the running step, where a
    checkpoint is written; a run whose step takes longer ends without one. Steps of a minute need
    more, if the scheduler gives it. By default 60."""
    save_only_model: bool = free(False)
    """Whether checkpoints hold only weights: smaller, but training cannot go on from them. By
    default they hold all."""
    save_on_each_node: bool = free(False)
    """Whether every machine writes its own checkpoints. By default only the first does."""
    load_best_model_at_end: bool = free(False)
    """Whether the best evaluated checkpoint is the result. By default the last weights are."""
    metric_for_best_model: str | None = knob(None, resume="best")
    """The number that says which checkpoint is best. By default `loss` where it is needed."""
    greater_is_better: bool | None = knob(None, resume="best")
    """Whether more of that number is better. By default yes, except for losses."""
    ignore_data_skip: bool = free(False)
    """Whether a resumed run starts its epoch from the first example. By default it goes on where
    the checkpoint stood."""
    restore_callback_states_from_checkpoint: bool = free(False)
    """Whether callbacks get back the state they had in the checkpoint. By default not."""
    logging_strategy: Strategy = free("steps")
    """When a line is logged: each `logging_steps` (the default), each epoch, or never."""
    logging_steps: float = free(500, gt=0)
    """Steps between logged lines (below 1: a share of all steps). By default 500."""
    logging_first_step: bool = free(False)
    """Whether the first step is logged as well. By default not."""
    logging_dir: str | None = ours(
        None, variable="TENSORBOARD_LOGGING_DIR", status="honoured otherwise"
    )
    """The folder of TensorBoard's files. By default `runs` inside `output_dir`."""
    log_level: LogLevel = free("passive")
    """How much transformers says. By default it is left as it is."""
    log_level_replica: LogLevel = free("warning")
    """How much transformers says on ranks other than the first. By default warnings."""
    log_on_each_node: bool = free(True)
    """Whether the first process of every machine logs. By default it does."""
    disable_tqdm: bool | None = ours(None)
    """Whether progress is not shown. By default it is shown."""
    report_to: Annotated[
        tuple[Tracker, ...],
        BeforeValidator(_trackers, json_schema_input_type=str | list[str] | None),
    ] = free((), needs=TRACKERS)
    """Trackers that get the numbers, a comma list: tensorboard, wandb, mlflow, swanlab, trackio,
    ... or `all` that are installed. By default none."""
    run_name: str | None = free(None)
    """The name of the run in trackers. By default theirs."""
    project: str = free("huggingface")
    """The project of the run in Trackio. By default `huggingface`."""
    trackio_space_id: str | None = free(None)
    """The Space on the hub that shows Trackio's numbers. By default they stay here."""
    trackio_bucket_id: str | None = free(None)
    """The storage bucket of that Space. By default one is made of its name."""
    trackio_static_space_id: str | None = free(None)
    """A read-only Space over that bucket. By default there is none."""
    swanlab_project: str | None = ours(None, variable="SWANLAB_PROJECT")
    """The project of the run in SwanLab. By default SWANLAB_PROJECT, or the folder's name."""
    swanlab_workspace: str | None = ours(None, variable="SWANLAB_WORKSPACE")
    """The workspace of the run in SwanLab. By default one's own."""
    swanlab_mode: Literal["cloud", "local", "offline", "disabled"] | None = ours(
        None, variable="SWANLAB_MODE"
    )
    """Where SwanLab keeps the numbers. By default SWANLAB_MODE, or its cloud."""
    swanlab_logdir: str | None = ours(None, variable="SWANLAB_LOG_DIR")
    """The folder of SwanLab's files. By default `swanlog` in this folder."""
    skip_memory_metrics: bool = free(True)
    """Whether memory is not measured in training, which slows it. By default it is not."""
    debug: str = free("")
    """Checks of transformers: `underflow_overflow` watches activations. By default none."""
    train_sampling_strategy: Literal["random", "sequential", "group_by_length"] = knob("random")
    """The order of examples: shuffled (the default), as they stand, or neighbours of like
    length."""
    dataloader_drop_last: bool = knob(False)
    """Whether the examples that do not fill a last batch on every device are left out. By default
    all are used."""
    dataloader_num_workers: int = free(0, ge=0)
    """Processes that prepare batches. By default none beside the program itself."""
    dataloader_prefetch_factor: int | None = free(None, ge=1)
    """Steps that each of them prepares ahead. By default torch's 2."""
    dataloader_pin_memory: bool = free(True)
    """Whether batches lie in memory that copies faster to a GPU. By default they do."""
    dataloader_persistent_workers: bool = free(False)
    """Whether those processes live on between epochs. By default they are made anew."""
    torch_compile: bool = free(False)
    """Whether torch compiles the model: slow at first, faster later. By default not."""
    torch_compile_backend: str | None = free(None)
    """The compiler's backend; naming one turns compiling on. By default torch's."""
    torch_compile_mode: str | None = free(None)
    """The compiler's mode; naming one turns compiling on. By default torch's."""
    local_rank: int = free(-1)
    """The number of this process on its machine; launchers set it. By default -1: alone."""
    ddp_backend: Literal["nccl", "gloo", "mpi", "ccl", "hccl", "cncl", "mccl", "xccl"] | None = (
        free(None)
    )
    """How processes exchange gradients. By default what fits the device."""
    nproc: int | None = ours(None, resume="elsewhere", ge=1)
    """The processes that `luthier train` starts on this machine. By default one for each
    accelerator it sees, and one where there is none; no launcher that is already at work is asked
    again."""
    max_restarts: int = ours(0, ge=0)
    """How often `luthier train` starts all processes again when one of them fails; they go on from
    the newest checkpoint. By default it does not."""
    ddp_timeout: int = free(1800, status="honoured otherwise", gt=0)
    """Seconds that processes wait for each other before they give up, at most 1,800 unless
    `allow_long_timeout` is set. By default 1,800."""
    allow_long_timeout: bool = ours(False)
    """Whether `ddp_timeout` may be longer than 1,800 seconds: as long as it is, a run whose process
    has died hangs. By default it may not."""
    ddp_find_unused_parameters: bool | None = free(None)
    """Whether processes look in each step for weights that took no part in it. By default only
    where the check at the start has found some."""
    ddp_bucket_cap_mb: int | None = free(None, ge=1)
    """MiB of gradients that processes exchange at once. By default torch's 25."""
    ddp_broadcast_buffers: bool | None = free(None)
    """Whether buffers are sent around at each step. By default they are not: those of language
    models are constants."""
    ddp_static_graph: bool | None = free(None)
    """Whether every step is promised to use the same weights. By default it is not."""
    deepspeed: FileOrMapping = knob(None, resume="elsewhere", reads=True)
    """DeepSpeed's configuration: a JSON file, JSON text or a mapping, such as
    `examples/deepspeed/ds_z3_config.json`; `auto` in it takes the value of the run. The run is then
    started by `deepspeed`, `torchrun` or `luthier train`. By default DeepSpeed takes no part."""
    fsdp: Annotated[
        bool | tuple[ShardingWord, ...],
        BeforeValidator(_sharding_words, json_schema_input_type=bool | str | list[str] | None),
    ] = ours(False, resume="elsewhere", status="honoured otherwise")
    """Whether the processes hold weights, gradients and optimizer states in parts, by torch's
    FSDP2. The older words (`full_shard auto_wrap`, `shard_grad_op`, `offload`) are taken as what
    FSDP2 calls them. By default every process holds all."""
    fsdp_config: FileOrMapping = ours(
        None, resume="elsewhere", reads=True, status="honoured otherwise"
    )
    """Settings of FSDP: a JSON or YAML file, JSON text or a mapping, with transformers' or
    accelerate's names: `reshard_after_forward`, `cpu_offload`, `auto_wrap_policy`,
    `transformer_layer_cls_to_wrap`, `state_dict_type`, ... By default a layer at a time is whole
    and checkpoints hold whole weights."""
    fsdp_transformer_layer_cls_to_wrap: CommaList = ours(
        (), status="honoured otherwise", resume="learned"
    )
    """Classes of layers that FSDP holds for themselves, a comma list. By default those that the
    model names."""
    accelerator_config: Mapping | None = knob(None, resume="elsewhere")
    """Settings for accelerate, a mapping or JSON text. By default its own."""
    push_to_hub: bool = free(False)
    """Whether the result is uploaded to the hub. By default it stays here."""
    hub_model_id: str | None = free(None)
    """Where it is uploaded, as `owner/name`. By default the name of `output_dir`."""
    hub_strategy: Literal["end", "every_save", "checkpoint", "all_checkpoints"] = free("every_save")
    """When it is uploaded. By default at every save."""
    hub_token: SecretStr | None = free(None)
    """The token to upload with; never written to a file. By default the one of the hub's own
    login."""
    hub_private_repo: bool | None = free(None)
    """Whether a new repository there is private. By default as the owner's settings say."""
    hub_always_push: bool = free(False)
    """Whether an upload starts before the last has ended. By default it is skipped."""
    hub_revision: str | None = free(None)
    """The branch that is uploaded to. By default the main one."""

    @property
    def precision(self) -> Literal["bf16", "fp16", "no"]:
        """What the model computes in, by accelerate's word; "no" is float32."""
        return "bf16" if self.bf16 else "fp16" if self.fp16 else "no"
