"""What users say of FSDP, in any of its dialects: read, held against the run, and made one."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any, TypeAlias

from luthier.arguments.files import read_settings
from luthier.arguments.record import Arguments
from luthier.errors import ArgumentsError

Said: TypeAlias = dict[str, tuple[Any, str]]
"""A setting -> its value, and where it was said."""

FULL, SHARDED = "FULL_STATE_DICT", "SHARDED_STATE_DICT"
BY_LAYER, BY_SIZE, AT_ONCE = "TRANSFORMER_BASED_WRAP", "SIZE_BASED_WRAP", "NO_WRAP"

SWITCH = "ACCELERATE_USE_FSDP"
"""The variable by which accelerate's launcher says that a run is to use FSDP."""

TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0", "")


@dataclass(frozen=True)
class Sharding:
    """How FSDP2 holds a model; the names are those of transformers' `fsdp_config`."""

    reshard_after_forward: bool = True
    """Whether a layer's weights are given back after its forward and gathered again for its
    backward."""
    cpu_offload: bool = False  # whether the parts lie in the CPU's memory while they rest
    auto_wrap_policy: str = BY_LAYER  # what is whole at a time: a layer, or all
    transformer_layer_cls_to_wrap: tuple[str, ...] = ()
    """Classes of layers; empty for those that the model names."""
    state_dict_type: str = FULL  # whether checkpoints hold the weights whole or in parts
    activation_checkpointing: bool = False  # whether activations are computed again

    def library_config(self) -> dict[str, Any]:
        """What transformers takes as `fsdp_config`; activations are left to the loader."""
        config: dict[str, Any] = {"version": 2} | asdict(self)
        del config["activation_checkpointing"]
        layers = config.pop("transformer_layer_cls_to_wrap")
        if layers:
            config["transformer_layer_cls_to_wrap"] = list(layers)
        return config


@dataclass
class Reading:
    """What was found."""

    sharding: Sharding | None = None  # None where FSDP takes no part, or something is wrong
    notes: list[str] = field(default_factory=list)
    """What was translated or is without effect, a line each."""
    problems: list[str] = field(default_factory=list)  # what a user has to mend, a sentence each


def read_sharding(arguments: Arguments, environment: Mapping[str, str]) -> Reading:
    """The one meaning of `fsdp`, `fsdp_config`, their old companions and accelerate's launcher.

    Settings that contradict each other are problems; what accelerate's launcher says in the
    environment stands behind what the run's own arguments say, because it speaks of all of its
    defaults, too.
    """
    reading = Reading()
    training = arguments.training
    is_launched_so = environment.get(SWITCH, "").lower() in TRUE
    if not training.fsdp and not is_launched_so:
        idle = [name for name in ("fsdp_config", LAYERS) if getattr(training, name)]
        if idle:
            reading.notes.append(f"fsdp is not set: {', '.join(idle)} have no effect")
        return reading
    said: Said = {}
    for source in (_words(training.fsdp), _config(training.fsdp_config), _layers(arguments)):
        try:
            _merge(said, source, reading)
        except ArgumentsError as wrong:
            reading.problems += wrong.problems
    if is_launched_so:
        _add_launcher(said, environment, reading)
    if not reading.problems:
        _settle(said, arguments, reading)
    reading.problems += _contradictions(said, arguments)
    if reading.problems:
        reading.sharding = None
    return reading


def find_problems(arguments: Arguments) -> Iterator[str]:
    """What the settings of FSDP have against them, as far as nothing needs to be loaded."""
    yield from read_sharding(arguments, said_by_launcher()).problems


def is_of_fsdp(variable: str) -> bool:
    """Whether an environment variable is about FSDP."""
    return variable == SWITCH or variable.startswith("FSDP_")


@cache
def said_by_launcher() -> Mapping[str, str]:
    """FSDP's variables as this process found them, before a run has written them anew."""
    return {name: value for name, value in os.environ.items() if is_of_fsdp(name)}


HINT = "Name a JSON or YAML file, or write the settings themselves"

LAYERS = "fsdp_transformer_layer_cls_to_wrap"
"""The argument that names layers, from before there was `fsdp_config`."""


# Sources


def _words(fsdp: Any) -> Iterator[tuple[str, Any, str]]:
    """`full_shard auto_wrap offload`, which transformers had before FSDP2."""
    for word in fsdp if isinstance(fsdp, tuple) else ():
        if word == "offload":
            yield "cpu_offload", True, f"fsdp: {word}"
        elif word != "auto_wrap":
            yield "sharding_strategy", word, f"fsdp: {word}"


def _config(given: str | Mapping[str, Any] | None) -> Iterator[tuple[str, Any, str]]:
    config = read_settings("fsdp_config", given, HINT) if isinstance(given, str) else given or {}
    if isinstance(config.get("fsdp_config"), Mapping):  # a whole file of accelerate
        config = config["fsdp_config"]
    for name, value in config.items():
        if value is not None:
            yield str(name).removeprefix("fsdp_"), value, f"fsdp_config: {name}"


def _layers(arguments: Arguments) -> Iterator[tuple[str, Any, str]]:
    layers = arguments.training.fsdp_transformer_layer_cls_to_wrap
    if layers:
        yield LAYERS.removeprefix("fsdp_"), layers, LAYERS


LAUNCHER_NAMES = {
    "AUTO_WRAP_POLICY": "auto_wrap_policy",
    "OFFLOAD_PARAMS": "cpu_offload",
    "STATE_DICT_TYPE": "state_dict_type",
    "TRANSFORMER_CLS_TO_WRAP": "transformer_layer_cls_to_wrap",
    "ACTIVATION_CHECKPOINTING": "activation_checkpointing",
    "ACTIVATION_CHECKPOINTING_OFFLOAD": "activation_checkpointing_offload",
    "IGNORED_MODULES": "ignored_modules",
}
"""Variables that `accelerate launch` sets, behind FSDP_ -> settings; some depend on others."""


def _launcher(environment: Mapping[str, str]) -> Iterator[tuple[str, Any, str]]:
    version = environment.get("FSDP_VERSION", "1")
    names = dict(LAUNCHER_NAMES)
    if version == "1":
        names |= {"VERSION": "version", "SHARDING_STRATEGY": "sharding_strategy"}
    else:
        names["RESHARD_AFTER_FORWARD"] = "reshard_after_forward"
    for variable, name in names.items():
        value = environment.get(f"FSDP_{variable}", "")
        if value and value != "None":
            yield name, value, "accelerate's configuration"


def _add_launcher(said: Said, environment: Mapping[str, str], reading: Reading) -> None:
    launched: Said = {}
    _merge(launched, _launcher(environment), reading)
    for name, (value, where) in launched.items():
        own = said.setdefault(name, (value, where))
        if own[0] != value:
            reading.notes.append(
                f"fsdp: {name} = {own[0]} ({own[1]}); {where} says {value}, which is put aside"
            )


# Settings


def _merge(said: Said, source: Iterator[tuple[str, Any, str]], reading: Reading) -> None:
    for given, raw, where in source:
        name = ALIASES.get(given, given)
        if name in IDLE:
            if str(raw).lower() not in FALSE:
                reading.notes.append(f"{where} has no effect: {IDLE[name]}")
            continue
        if name in REFUSED:
            if str(raw).lower() not in (*FALSE, "none", "{}"):
                reading.problems.append(f"{where}: {REFUSED[name]}")
            continue
        if name not in READERS:
            near = difflib.get_close_matches(name, [*READERS, *ALIASES], n=1, cutoff=0.6)
            hint = f" Did you mean {near[0]}?" if near else f" Known are {', '.join(READERS)}."
            reading.problems.append(f"{where}: FSDP has no such setting.{hint}")
            continue
        try:
            name, value = READERS[name](name, raw)
        except ValueError as problem:
            reading.problems.append(f"{where} is {raw!r}: {problem}")
            continue
        other = said.setdefault(name, (value, where))
        if other[0] != value:
            reading.problems.append(
                f"{other[1]} and {where} contradict each other ({name} would be {other[0]} and "
                f"{value}); keep one of the two."
            )


def _switch(name: str, value: Any) -> tuple[str, Any]:
    text = str(value).strip().lower()
    if text not in (*TRUE, *FALSE):
        raise ValueError("expected true or false.")
    return name, text in TRUE


def _version(name: str, value: Any) -> tuple[str, Any]:
    if str(value) not in ("1", "2"):
        raise ValueError("expected 2.")
    return name, int(str(value))


STRATEGIES = ("full_shard", "shard_grad_op", "no_shard", "hybrid_shard", "hybrid_shard_zero2")
"""FSDP1's names, in the order in which accelerate numbers them from 1."""


def _strategy(name: str, value: Any) -> tuple[str, Any]:
    text = str(value).strip().lower()
    if text.isdecimal() and 1 <= int(text) <= len(STRATEGIES):
        text = STRATEGIES[int(text) - 1]
    if text in ("full_shard", "shard_grad_op"):
        return "reshard_after_forward", text == "full_shard"
    if text == "no_shard":
        raise ValueError("nothing would be held in parts; leave fsdp out, which is DDP.")
    if text.startswith("hybrid_shard"):
        raise ValueError(
            "groups that each hold a whole copy are not in this version; write full_shard (over "
            "all processes)."
        )
    raise ValueError("expected full_shard or shard_grad_op.")


def _reshard(name: str, value: Any) -> tuple[str, Any]:
    text = str(value).strip().lower()
    return _switch(name, value) if text in (*TRUE, *FALSE) else _strategy(name, value)


def _policy(name: str, value: Any) -> tuple[str, Any]:
    text = str(value).strip().upper()
    if text not in (BY_LAYER, BY_SIZE, AT_ONCE):
        raise ValueError(f"expected {BY_LAYER}, {BY_SIZE} or {AT_ONCE}.")
    return name, text


def _names(name: str, value: Any) -> tuple[str, Any]:
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list | tuple):
        raise ValueError("expected names of classes, such as LlamaDecoderLayer.")
    return name, tuple(sorted(str(part).strip() for part in parts if str(part).strip()))


def _state_dict_type(name: str, value: Any) -> tuple[str, Any]:
    text = str(value).strip().upper()
    text = {"1": FULL, "2": "LOCAL_STATE_DICT", "3": SHARDED}.get(text, text)
    if text not in (FULL, SHARDED):
        raise ValueError(f"expected {FULL} (weights whole) or {SHARDED} (in parts, by DCP).")
    return name, text


READERS: dict[str, Callable[[str, Any], tuple[str, Any]]] = {
    "version": _version,
    "reshard_after_forward": _reshard,
    "sharding_strategy": _strategy,
    "cpu_offload": _switch,
    "auto_wrap_policy": _policy,
    "transformer_layer_cls_to_wrap": _names,
    "state_dict_type": _state_dict_type,
    "activation_checkpointing": _switch,
}
"""A setting -> what reads its value, which may make it another setting."""

ALIASES = {
    "offload_params": "cpu_offload",
    "transformer_cls_names_to_wrap": "transformer_layer_cls_to_wrap",
}

IDLE = dict.fromkeys(
    (
        "backward_prefetch",
        "backward_prefetch_policy",
        "forward_prefetch",
        "limit_all_gathers",
        "sync_module_states",
        "use_orig_params",
    ),
    "FSDP2 needs no such setting",
) | {
    # accelerate 1.15 takes lists of layers for layers; transformers 5.23: github issue 43749
    "min_num_params": "layers are held for themselves, whatever their size",
    "cpu_ram_efficient_loading": "transformers 5 reads the weights on every rank all the same",
}
"""Settings on which no result depends, and why nothing follows from them."""

NOT_IN_PARTS = ("adafactor",)
"""Optimizers that mix whole tensors with parts."""

REFUSED = {
    "activation_checkpointing_offload": "activations kept in the CPU's memory are not in this "
    "version; leave it out.",
    "ignored_modules": "weights outside FSDP would learn differently on each rank; leave it out.",
    "xla": "FSDP on TPUs is not part of this program; leave it out.",
    "xla_fsdp_grad_ckpt": "FSDP on TPUs is not part of this program; leave it out.",
    "xla_fsdp_settings": "FSDP on TPUs is not part of this program; leave it out.",
    "xla_fsdp_v2": "FSDP on TPUs is not part of this program; leave it out.",
}


def _settle(said: Said, arguments: Arguments, reading: Reading) -> None:
    values = {name: value for name, (value, _) in said.items()}
    if values.pop("version", 2) == 1:
        _, where = said["version"]
        reading.notes.append(f"fsdp: FSDP1 ({where}) is taken as FSDP2, which replaces it")
    words = arguments.training.fsdp
    if isinstance(words, tuple):
        meant = {"full_shard": True, "shard_grad_op": False}
        named = [f"reshard_after_forward: {meant[word]}" for word in words if word in meant]
        named += ["cpu_offload: True"] if "offload" in words else []
        reading.notes.append(f"fsdp = true, with {', '.join(named) or 'its defaults'} (FSDP2)")
    if values.get("auto_wrap_policy") == BY_SIZE:
        values["auto_wrap_policy"] = BY_LAYER
        reading.notes.append(
            f"fsdp: auto_wrap_policy = {BY_LAYER} (modules are not held by their size)"
        )
    reading.sharding = Sharding(**values)


def _contradictions(said: Said, arguments: Arguments) -> Iterator[str]:
    training = arguments.training
    values = {name: value for name, (value, _) in said.items()}
    if training.deepspeed is not None:
        yield "fsdp and deepspeed are two ways to the same end; keep one of them."
    policy, layers = values.get("auto_wrap_policy"), values.get("transformer_layer_cls_to_wrap")
    if layers and policy in (BY_SIZE, AT_ONCE):
        yield (
            f"fsdp: auto_wrap_policy: {policy} and transformer_layer_cls_to_wrap exclude each "
            "other; keep one."
        )
    if training.optim in NOT_IN_PARTS:
        yield (
            f"optim: {training.optim} cannot work on weights in parts, as fsdp has them; use "
            "adamw_torch, or deepspeed."
        )
    is_off = (
        training.gradient_checkpointing is False or arguments.model.disable_gradient_checkpointing
    )
    if values.get("activation_checkpointing") and is_off:
        name = "disable_" if arguments.model.disable_gradient_checkpointing else ""
        yield (
            f"{name}gradient_checkpointing says no and fsdp's activation_checkpointing says yes; "
            "keep one of them."
        )
    if training.save_only_model and values.get("state_dict_type") == SHARDED:
        yield (
            f"save_only_model: with fsdp's state_dict_type: {SHARDED} a checkpoint would hold no "
            f"weights that can be used; set it to {FULL}."
        )
    if training.save_only_model and training.load_best_model_at_end:
        yield (
            "save_only_model: with fsdp, load_best_model_at_end needs whole checkpoints; leave one "
            "of the two out."
        )
    if training.do_train:
        for name in arguments.generating_names():
            yield (
                f"{name}: no answers are generated while fsdp holds weights in parts. Predict "
                "afterwards, by `luthier predict` or in a run without do_train."
            )
