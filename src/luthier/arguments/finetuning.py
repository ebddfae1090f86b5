"""What is learned, and which weights learn it."""

from __future__ import annotations

from luthier.arguments.choices import Method, Stage
from luthier.arguments.knob import CommaList, Section, free, knob


class FinetuningArguments(Section):
    """Knobs of the stage and the method."""

    stage: Stage = knob(
        "sft",
        "What is learned: the answers of conversations (`sft`, the default), or raw texts (`pt`).",
        on_card=True,
    )
    finetuning_type: Method = knob(
        "lora",
        "Which weights learn: `lora` trains low-rank adapters (the default), `freeze` some layers "
        "of the model, `full` the whole model.",
        resume="fixed",
        on_card=True,
    )
    pure_bf16: bool = knob(
        False,
        "Whether trained weights, too, are bfloat16, without a float32 copy: half the memory, "
        "less exact updates. By default trained weights are float32.",
        resume="half",
        half="bfloat16",
    )
    freeze_trainable_layers: int = knob(
        2,
        "For `freeze`: how many layers learn, the last ones, or the first ones when negative. By "
        "default the last 2.",
        resume="fixed",
        method="freeze",
        on_card=True,
    )
    freeze_trainable_modules: CommaList = knob(
        ("all",),
        "For `freeze`: the modules inside those layers that learn, a comma list. By default all.",
        resume="fixed",
        method="freeze",
        on_card=True,
    )
    freeze_extra_modules: CommaList = knob(
        (),
        "For `freeze`: modules outside the layers that learn too, a comma list. None by default.",
        resume="fixed",
        method="freeze",
        on_card=True,
    )
    additional_target: CommaList = knob(
        (),
        "For `lora`: modules that are trained whole and saved with the adapter, a comma list. By "
        "default none, and the embeddings when the vocabulary grows.",
        resume="fixed",
        in_peft="modules_to_save",
        method="lora",
        on_card=True,
    )
    lora_alpha: int | None = knob(
        None,
        "The scale of LoRA: updates count alpha / rank. By default twice `lora_rank`.",
        in_peft="lora_alpha",
        method="lora",
        on_card=True,
        ge=1,
    )
    lora_dropout: float = knob(
        0.0,
        "The share of LoRA's inputs set to zero in training. By default none.",
        in_peft="lora_dropout",
        method="lora",
        on_card=True,
        ge=0.0,
        lt=1.0,
    )
    lora_rank: int = knob(
        8,
        "The rank of LoRA's matrices: more learns more and costs more. By default 8.",
        resume="fixed",
        in_peft="r",
        method="lora",
        on_card=True,
        ge=1,
    )
    lora_target: CommaList = knob(
        ("all",),
        "The modules that get LoRA, a comma list of their last names. By default all linear ones "
        "but the output head, experts among them.",
        resume="fixed",
        in_peft="target_modules",
        method="lora",
        on_card=True,
    )
    loraplus_lr_ratio: float | None = knob(
        None,
        "LoRA+: how many times faster the B matrices learn than the A matrices (16 is usual). By "
        "default both learn alike.",
        resume="groups",
        method="lora",
        is_strict=True,
        gt=0.0,
    )
    loraplus_lr_embedding: float = knob(
        1e-06,
        "LoRA+: the learning rate of LoRA on embeddings. By default 1e-6.",
        method="lora",
        ge=0.0,
    )
    use_rslora: bool = knob(
        False,
        "Whether LoRA is scaled by alpha / sqrt(rank), steadier at high ranks. By default by "
        "alpha / rank.",
        in_peft="use_rslora",
        method="lora",
        is_strict=True,
    )
    use_dora: bool = knob(
        False,
        "Whether LoRA learns size and direction of the weights apart (DoRA): better at low ranks, "
        "slower. By default it does not.",
        resume="fixed",
        in_peft="use_dora",
        method="lora",
        is_strict=True,
    )
    pissa_init: bool = knob(
        False,
        "Whether LoRA starts from the largest singular values of the weights (PiSSA). What is "
        "saved is a plain LoRA of twice the rank. By default it starts at zero change.",
        resume="fixed",
        method="lora",
        is_strict=True,
    )
    pissa_iter: int = knob(
        16,
        "Iterations of PiSSA's fast decomposition; -1 is the exact one, which is slow. By default "
        "16.",
        resume="fixed",
        method="lora",
        ge=-1,
    )
    pissa_convert: bool = free(
        False,
        "Whether the adapter of a PiSSA run, which is a plain LoRA, is copied to `pissa_converted` "
        "as well. By default it is not.",
        method="lora",
    )
    create_new_adapter: bool = knob(
        False,
        "Whether the given adapters are merged and a new one is trained. By default the last given "
        "one is trained on.",
        resume="fixed",
        method="lora",
        is_strict=True,
    )
    compute_accuracy: bool = free(
        False,
        "Whether evaluation counts how many learned tokens are predicted right. By default only "
        "the loss is taken.",
    )
    disable_shuffling: bool = knob(
        False, "Whether examples come in the order of the data. By default they are shuffled."
    )
    early_stopping_steps: int | None = free(
        None,
        "Evaluations without a better result after which the run ends. By default it goes to its "
        "end.",
        ge=1,
    )
    plot_loss: bool = free(
        False,
        "Whether the curves are drawn to `training_loss.png` and its like. By default they are "
        "not.",
    )
    include_effective_tokens_per_second: bool = free(
        False,
        "Whether the result of training says how many tokens a second were learned from, padding "
        "left out. By default it does not.",
    )
