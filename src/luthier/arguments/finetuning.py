"""What is learned, and which weights learn it."""

from __future__ import annotations

from typing import Literal

from luthier.arguments.choices import Method, Stage
from luthier.arguments.knob import CommaList, FloatList, Section, free, knob


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
    pref_loss: CommaList = knob(
        ("sigmoid",),
        "For stage dpo: the loss of a pair of answers, or several that are added, a comma list. By "
        "default sigmoid, that of the DPO paper.",
        stages=("dpo",),
        on_card=True,
    )
    pref_loss_weights: FloatList = knob(
        (),
        "For stage dpo: the weight of each loss of `pref_loss`. By default all count once.",
        stages=("dpo",),
        on_card=True,
    )
    pref_beta: float = knob(
        0.1,
        "For stages dpo and kto: how strongly the model is held to its reference; the smaller, the "
        "further it may go. By default 0.1.",
        stages=("dpo", "kto"),
        on_card=True,
        gt=0.0,
    )
    pref_ftx: float = knob(
        0.0,
        "For stages dpo and kto: the weight of the supervised loss of wanted answers, which is "
        "added. By default 0, none.",
        stages=("dpo", "kto"),
        on_card=True,
        ge=0.0,
    )
    pref_bco_weight: float = knob(
        0.0,
        "For stage dpo: the weight of the BCO loss that is added. By default 0, none.",
        stages=("dpo",),
        on_card=True,
        ge=0.0,
    )
    dpo_label_smoothing: float = knob(
        0.0,
        "For stage dpo: the share of pairs that are taken to be marked the wrong way round (cDPO), "
        "below 0.5. By default 0.",
        stages=("dpo",),
        on_card=True,
        ge=0.0,
        lt=0.5,
    )
    simpo_gamma: float = knob(
        0.5,
        "For `pref_loss: simpo`: the margin of the averaged log-probabilities that is aimed at. By "
        "default 0.5.",
        stages=("dpo",),
        on_card=True,
    )
    discopop_tau: float = knob(
        0.05,
        "For `pref_loss: discopop`: the temperature that its two parts are mixed by. By default "
        "0.05.",
        stages=("dpo",),
        gt=0.0,
    )
    f_divergence_type: Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"] = (
        knob(
            "reverse_kl",
            "For stage dpo: the divergence by which the model is held to its reference. By default "
            "reverse_kl, that of the DPO paper.",
            stages=("dpo",),
            on_card=True,
        )
    )
    f_alpha_divergence_coef: float = knob(
        0.5,
        "For `f_divergence_type: alpha_divergence`: its alpha. By default 0.5.",
        stages=("dpo",),
        gt=0.0,
    )
    ld_alpha: float | None = knob(
        None,
        "For stage dpo: the weight of those tokens of an answer that lie beyond the length of the "
        "shorter one (LD-DPO), 0 to 1. By default all tokens count once.",
        stages=("dpo",),
        on_card=True,
        ge=0.0,
        le=1.0,
    )
    kto_loss: Literal["kto", "apo_zero_unpaired"] = knob(
        "kto",
        "For stage kto: its loss. By default that of the KTO paper.",
        stages=("kto",),
        on_card=True,
    )
    kto_chosen_weight: float = knob(
        1.0,
        "For stage kto: the weight of wanted answers. By default 1.",
        stages=("kto",),
        on_card=True,
        gt=0.0,
    )
    kto_rejected_weight: float = knob(
        1.0,
        "For stage kto: the weight of unwanted answers. By default 1.",
        stages=("kto",),
        on_card=True,
        gt=0.0,
    )
    center_rewards_coefficient: float | None = knob(
        None,
        "For stage rm: the weight of the squared sum of both scores, which keeps them near 0. By "
        "default they are where they are.",
        stages=("rm",),
        on_card=True,
        ge=0.0,
    )
    ref_model: str | None = knob(
        None,
        "For stages dpo and kto: the reference, a folder or hub name of a model of the same "
        "vocabulary. By default the model as it was when the run began.",
        stages=("dpo", "kto"),
        on_card=True,
        reads=True,
        resume="path",
    )
    ref_model_adapters: CommaList = knob(
        (),
        "For stages dpo and kto: adapters that are merged into `ref_model`, a comma list. None by "
        "default.",
        stages=("dpo", "kto"),
        reads=True,
        resume="path",
    )
    precompute_ref: bool | Literal["auto"] = free(
        "auto",
        "For stages dpo and kto: whether the reference is read once before training and kept in "
        "the data cache, so that no step pays for it. By default (auto) where rows are kept, and "
        "not where they are streamed.",
        stages=("dpo", "kto"),
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
