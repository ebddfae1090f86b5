"""The optimizers that transformers makes by their names: a line each, with what it takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from luthier.arguments.choices import OPTIMIZERS, Optimizer
from luthier.arguments.knob import Above, AtLeastZero, Count, Share

DTYPE = Literal["float32", "bfloat16", "float16"]

ADEMAMIX = {
    "beta1": Share,
    "beta2": Share,
    "beta3": Share,
    "alpha": AtLeastZero,
    "eps": AtLeastZero,
    "t_alpha": Count,
    "t_beta3": Count,
}
RMSPROP = {
    "momentum": AtLeastZero,
    "alpha": AtLeastZero,
    "eps": AtLeastZero,
    "weight_decay": AtLeastZero,
    "centered": bool,
}
SGD = {
    "momentum": AtLeastZero,
    "dampening": float,
    "weight_decay": AtLeastZero,
    "nesterov": bool,
}
ADAGRAD = {"lr_decay": AtLeastZero, "weight_decay": AtLeastZero, "eps": AtLeastZero}
ANYPRECISION = {
    "use_kahan_summation": bool,
    "momentum_dtype": DTYPE,
    "variance_dtype": DTYPE,
    "compensation_buffer_dtype": DTYPE,
}
GROKADAMW = {
    "alpha_init": float,
    "lamb": float,
    "gamma": float,
    "grokking_signal_decay_rate": float,
    "gradient_clipping": float,
}
TORCHAO = {"bf16_stochastic_round": bool}
SCHEDULE_FREE = {"weight_lr_power": float, "r": float}
STABLE = {"max_lr": Above, "kahan_sum": bool, "decouple_lr": bool}


def bitsandbytes(
    numbers: float, packed: float | None = None, settings: Mapping[str, Any] = {}
) -> Optimizer:
    """One of that package, which keeps `packed` bytes where its states have 8 bits."""
    return Optimizer(needs="bitsandbytes", numbers=numbers, packed_bytes=packed, settings=settings)


OPTIMIZERS.register("adamw_torch", "adamw_torch_fused")(Optimizer())
OPTIMIZERS.register("adamw_torch_xla")(Optimizer(needs="torch_xla"))
OPTIMIZERS.register("adamw_torch_npu_fused")(Optimizer(needs="torch_npu"))
OPTIMIZERS.register("adafactor")(Optimizer(numbers=0))
OPTIMIZERS.register("sgd")(Optimizer(numbers=1, settings=SGD))
OPTIMIZERS.register("adagrad")(Optimizer(numbers=1, settings=ADAGRAD))
OPTIMIZERS.register("rmsprop")(Optimizer(numbers=1, settings=RMSPROP))

OPTIMIZERS.register("adamw_bnb_8bit", "adamw_8bit", "paged_adamw_8bit")(bitsandbytes(2, 2))
OPTIMIZERS.register("paged_adamw_32bit")(bitsandbytes(2))
OPTIMIZERS.register("ademamix", "paged_ademamix_32bit")(bitsandbytes(3, None, ADEMAMIX))
OPTIMIZERS.register("ademamix_8bit", "paged_ademamix_8bit")(bitsandbytes(3, 4, ADEMAMIX))
OPTIMIZERS.register("lion_32bit", "paged_lion_32bit")(bitsandbytes(1))
OPTIMIZERS.register("lion_8bit", "paged_lion_8bit")(bitsandbytes(1, 1))
OPTIMIZERS.register("rmsprop_bnb", "rmsprop_bnb_32bit")(bitsandbytes(1))
OPTIMIZERS.register("rmsprop_bnb_8bit")(bitsandbytes(1, 1))

OPTIMIZERS.register("adamw_torch_4bit")(
    Optimizer(needs="torchao", packed_bytes=1, settings=TORCHAO)
)
OPTIMIZERS.register("adamw_torch_8bit")(
    Optimizer(needs="torchao", packed_bytes=2, settings=TORCHAO)
)
OPTIMIZERS.register("adamw_anyprecision")(Optimizer(needs="torchdistx", settings=ANYPRECISION))
OPTIMIZERS.register("grokadamw")(Optimizer(needs="grokadamw", numbers=3, settings=GROKADAMW))
# they change weights in the backward pass, gradient by gradient, and keep nothing
OPTIMIZERS.register("lomo", "adalomo")(Optimizer(needs="lomo_optim", numbers=0, is_sharded=False))
OPTIMIZERS.register("schedule_free_radam", "schedule_free_adamw")(
    Optimizer(needs="schedulefree", settings=SCHEDULE_FREE)
)
OPTIMIZERS.register("schedule_free_sgd")(
    Optimizer(needs="schedulefree", numbers=1, settings=SCHEDULE_FREE)
)
OPTIMIZERS.register("stable_adamw")(Optimizer(needs="optimi", settings=STABLE))
