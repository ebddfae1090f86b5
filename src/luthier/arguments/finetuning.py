"""What is learned, and which weights learn it."""

from __future__ import annotations

from typing import Literal

from luthier.arguments.choices import Method, Stage
from luthier.arguments.knob import CommaList, FloatList, Section, free, knob


class FinetuningArguments(Section):
    """Knobs of the stage and the method."""

    stage: Stage = knob("sft", on_card=True)
    """What is learned: the answers of conversations (`sft`, the default), raw texts (`pt`), which
    of two answers is the better one (`dpo`), a score that says so (`rm`), or which answers are
    wanted (`kto`)."""
    finetuning_type: Method = knob("lora", resume="fixed", on_card=True)
    """Which weights learn: `lora` trains low-rank adapters (the default), `oft` rotations of what
    layers read, `freeze` some layers of the model, `full` the whole model."""
    pure_bf16: bool = knob(False, resume="half", half="bfloat16")
    """Whether trained weights, too, are bfloat16, without a float32 copy: half the memory, less
    exact updates. By default trained weights are float32."""
    freeze_trainable_layers: int = knob(2, resume="fixed", methods=("freeze",), on_card=True)
    """For `freeze`: how many layers learn, the last ones, or the first ones when negative. By
    default the last 2."""
    freeze_trainable_modules: CommaList = knob(
        ("all",), resume="fixed", methods=("freeze",), on_card=True
    )
    """For `freeze`: the modules inside those layers that learn, a comma list. By default all."""
    freeze_extra_modules: CommaList = knob((), resume="fixed", methods=("freeze",), on_card=True)
    """For `freeze`: modules outside the layers that learn too, a comma list. None by default."""
    use_llama_pro: bool = knob(
        False, resume="fixed", methods=("freeze", "lora", "oft"), is_strict=True, on_card=True
    )
    """Whether what learns lies in the layers that `luthier model expand` has added, which are
    `freeze_trainable_layers` many, spread evenly (LLaMA Pro). By default not."""
    additional_target: CommaList = knob(
        (), resume="fixed", in_peft="modules_to_save", methods=("lora", "oft"), on_card=True
    )
    """For `lora` and `oft`: modules that are trained whole and saved with the adapter, a comma
    list. By default none, and the embeddings when the vocabulary grows."""
    lora_alpha: int | None = knob(None, in_peft="lora_alpha", methods=("lora",), on_card=True, ge=1)
    """The scale of LoRA: updates count alpha / rank. By default twice `lora_rank`."""
    lora_dropout: float = knob(
        0.0, in_peft="lora_dropout", methods=("lora",), on_card=True, ge=0.0, lt=1.0
    )
    """The share of LoRA's inputs set to zero in training. By default none."""
    lora_rank: int = knob(8, resume="fixed", in_peft="r", methods=("lora",), on_card=True, ge=1)
    """The rank of LoRA's matrices: more learns more and costs more. By default 8."""
    lora_target: CommaList = knob(
        ("all",), resume="fixed", in_peft="target_modules", methods=("lora",), on_card=True
    )
    """The modules that get LoRA, a comma list of their last names. By default all linear ones but
    the output head, experts among them."""
    loraplus_lr_ratio: float | None = knob(
        None, resume="groups", methods=("lora",), is_strict=True, gt=0.0
    )
    """LoRA+: how many times faster the B matrices learn than the A matrices (16 is usual). By
    default both learn alike."""
    loraplus_lr_embedding: float = knob(1e-06, methods=("lora",), ge=0.0)
    """LoRA+: the learning rate of LoRA on embeddings. By default 1e-6."""
    use_rslora: bool = knob(False, in_peft="use_rslora", methods=("lora",), is_strict=True)
    """Whether LoRA is scaled by alpha / sqrt(rank), steadier at high ranks. By default by alpha /
    rank."""
    use_dora: bool = knob(
        False, resume="fixed", in_peft="use_dora", methods=("lora",), is_strict=True
    )
    """Whether LoRA learns size and direction of the weights apart (DoRA): better at low ranks,
    slower. By default it does not."""
    pissa_init: bool = knob(False, resume="fixed", methods=("lora",), is_strict=True)
    """Whether LoRA starts from the largest singular values of the weights (PiSSA). What is saved is
    a plain LoRA of twice the rank. By default it starts at zero change."""
    pissa_iter: int = knob(16, resume="fixed", methods=("lora",), ge=-1)
    """Iterations of PiSSA's fast decomposition; -1 is the exact one, which is slow. By default
    16."""
    pissa_convert: bool = free(False, methods=("lora",))
    """Whether the adapter of a PiSSA run, which is a plain LoRA, is copied to `pissa_converted` as
    well. By default it is not."""
    oft_block_size: int = knob(
        32, resume="fixed", in_peft="oft_block_size", methods=("oft",), on_card=True, ge=0
    )
    """For `oft`: how many neighbouring inputs of a layer are rotated together: larger learns more
    and costs more. It divides what every layer reads. By default 32; 0 where `oft_rank` is set."""
    oft_rank: int = knob(0, resume="fixed", in_peft="r", methods=("oft",), on_card=True, ge=0)
    """For `oft`, in place of `oft_block_size`: into how many blocks the inputs of every layer are
    parted. By default 0: by their size."""
    oft_target: CommaList = knob(
        ("all",), resume="fixed", in_peft="target_modules", methods=("oft",), on_card=True
    )
    """The modules that get OFT, a comma list of their last names. By default all linear ones but
    the output head."""
    module_dropout: float = knob(
        0.0, in_peft="module_dropout", methods=("oft",), on_card=True, ge=0.0, lt=1.0
    )
    """For `oft`: the share of blocks that a step of training does not rotate. By default none."""
    create_new_adapter: bool = knob(False, resume="fixed", methods=("lora", "oft"), is_strict=True)
    """Whether the given adapters are merged and a new one is trained. By default the last given one
    is trained on."""
    pref_loss: CommaList = knob(("sigmoid",), stages=("dpo",), on_card=True)
    """For stage dpo: the loss of a pair of answers, or several that are added, a comma list. By
    default sigmoid, that of the DPO paper."""
    pref_loss_weights: FloatList = knob((), stages=("dpo",), on_card=True)
    """For stage dpo: the weight of each loss of `pref_loss`. By default all count once."""
    pref_beta: float = knob(0.1, stages=("dpo", "kto"), on_card=True, gt=0.0)
    """For stages dpo and kto: how strongly the model is held to its reference; the smaller, the
    further it may go. By default 0.1."""
    pref_ftx: float = knob(0.0, stages=("dpo", "kto"), on_card=True, ge=0.0)
    """For stages dpo and kto: the weight of the supervised loss of wanted answers, which is added.
    By default 0, none."""
    pref_bco_weight: float = knob(0.0, stages=("dpo",), on_card=True, ge=0.0)
    """For stage dpo: the weight w of the BCO loss beside that of `pref_loss`, which counts once;
    their sum is divided by 1 + w. By default 0, none."""
    dpo_label_smoothing: float = knob(0.0, stages=("dpo",), on_card=True, ge=0.0, lt=0.5)
    """For stage dpo: the share of pairs that are taken to be marked the wrong way round (cDPO),
    below 0.5. By default 0."""
    simpo_gamma: float = knob(0.5, stages=("dpo",), on_card=True)
    """For `pref_loss: simpo`: the margin of the averaged log-probabilities that is aimed at. By
    default 0.5."""
    discopop_tau: float = knob(0.05, stages=("dpo",), gt=0.0)
    """For `pref_loss: discopop`: the temperature that its two parts are mixed by. By default
    0.05."""
    f_divergence_type: Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"] = (
        knob("reverse_kl", stages=("dpo",), on_card=True)
    )
    """For stage dpo: the divergence by which the model is held to its reference. By default
    reverse_kl, that of the DPO paper."""
    f_alpha_divergence_coef: float = knob(0.5, stages=("dpo",), gt=0.0)
    """For `f_divergence_type: alpha_divergence`: its alpha. By default 0.5."""
    ld_alpha: float | None = knob(None, stages=("dpo",), on_card=True, ge=0.0, le=1.0)
    """For stage dpo: the weight of those tokens of an answer that lie beyond the length of the
    shorter one (LD-DPO), 0 to 1. By default all tokens count once."""
    kto_loss: Literal["kto", "apo_zero_unpaired"] = knob("kto", stages=("kto",), on_card=True)
    """For stage kto: its loss. By default that of the KTO paper."""
    kto_chosen_weight: float = knob(1.0, stages=("kto",), on_card=True, gt=0.0)
    """For stage kto: the weight of wanted answers. By default 1."""
    kto_rejected_weight: float = knob(1.0, stages=("kto",), on_card=True, gt=0.0)
    """For stage kto: the weight of unwanted answers. By default 1."""
    center_rewards_coefficient: float | None = knob(None, stages=("rm",), on_card=True, ge=0.0)
    """For stage rm: the weight of the squared sum of both scores, which keeps them near 0. By
    default they are where they are."""
    ref_model: str | None = knob(
        None, stages=("dpo", "kto", "sft"), on_card=True, reads=True, resume="path"
    )
    """For stages dpo and kto, and sft with `use_asft_loss`: the reference, a folder or hub name of
    a model of the same vocabulary. By default the model as it was when the run began."""
    ref_model_adapters: CommaList = knob(
        (), stages=("dpo", "kto", "sft"), reads=True, resume="path"
    )
    """Adapters that are merged into `ref_model`, a comma list. None by default."""
    precompute_ref: bool | Literal["auto"] = free("auto", stages=("dpo", "kto"))
    """For stages dpo and kto: whether the reference is read once before training and kept in the
    data cache, so that no step pays for it. By default (auto) where rows are kept, and not where
    they are streamed."""
    use_dft_loss: bool = knob(False, stages=("sft",), on_card=True)
    """For stage sft: whether the loss of a token is multiplied by the probability that the model
    gives it (DFT). By default each counts once."""
    use_asft_loss: bool = knob(False, stages=("sft",), on_card=True)
    """For stage sft: whether it is that of `use_dft_loss` and the model is held to its reference by
    a KL divergence over the vocabulary (ASFT). By default each counts once."""
    asft_alpha: float = knob(0.1, stages=("sft",), on_card=True, ge=0.0)
    """For `use_asft_loss`: the weight of the divergence; the larger, the nearer the model stays. By
    default 0.1."""
    use_eaft_loss: bool = knob(False, stages=("sft",), on_card=True)
    """For stage sft: whether it is multiplied by how uncertain the model is, by the entropy of the
    20 likeliest tokens (EAFT). By default each counts once."""
    eaft_alpha: float = knob(1.0, stages=("sft",), ge=0.0)
    """For `use_eaft_loss`: the power of that entropy. By default 1."""
    compute_accuracy: bool = free(False, stages=("sft", "pt"))
    """Whether evaluation counts how many learned tokens are predicted right. By default only the
    loss is taken."""
    disable_shuffling: bool = knob(False)
    """Whether examples come in the order of the data. By default they are shuffled."""
    early_stopping_steps: int | None = free(None, ge=1)
    """Evaluations without a better result after which the run ends. By default it goes to its
    end."""
    plot_loss: bool = free(False)
    """Whether the curves are drawn to `training_loss.png` and its like. By default they are not."""
    include_effective_tokens_per_second: bool = free(False)
    """Whether the result of training says how many tokens a second were learned from, padding left
    out. By default it does not."""
