"""The model as it was when the run began, which a loss holds the trained one against."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import xxhash
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from transformers.integrations import is_deepspeed_zero3_enabled

from luthier import console
from luthier.arguments.choices import ADAPTERS
from luthier.arguments.record import Arguments
from luthier.errors import ModelError
from luthier.modeling.dtypes import Autocast
from luthier.modeling.loader import load_model
from luthier.modeling.sharded import held_part
from luthier.modeling.tokenizer import load_tokenizer, new_tokens


class Reference:
    """Gives the first weights back for as long as they are read.

    Beside a new adapter nothing is held: it is left out. Of other runs a copy of the tensors that
    learn is (of an adapter that is trained on those of the adapter), and put in their place.

    Args:
        model: as the run begins with it, before it learns or reads a checkpoint.
        is_new: whether what learns is an adapter that was no change when it began.
        other: a model that is read in its place, frozen.
        autocast: the context that the run computes in.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        is_new: bool,
        other: nn.Module | None = None,
        autocast: Autocast = nullcontext,
    ) -> None:
        self.other, self.autocast = other, autocast
        self.leaves_out = is_new and isinstance(model, PeftModel)
        self._copies: dict[int, Tensor] = {}

    def hold(self, model: nn.Module) -> str:
        """Copies what has to be held beside a model that will learn, and says it."""
        if self.other is not None:
            return "another model, in memory beside the one that learns"
        if self.leaves_out:
            return "the model without its adapter, no memory needed"
        learned = [each for each in model.parameters() if each.requires_grad]
        self._copies = {id(each): nn.Parameter(each.detach().clone(), False) for each in learned}
        size = console.gibibytes(sum(each.nbytes for each in learned))
        return f"a copy of what learns, as it is now ({size})"

    @property
    def num_bytes(self) -> int:
        """What it holds in memory beside the model that learns."""
        held = self._copies.values() if self.other is None else self.other.parameters()
        return sum(each.nbytes for each in held)

    @contextmanager
    def reading(self, model: Any) -> Iterator[Any]:
        """The model as it was at first, in evaluation mode and without gradient."""
        if self.other is not None:
            with torch.no_grad(), self.autocast():
                yield self.other
            return
        was_training = model.training
        left_out = model.disable_adapter() if self.leaves_out else nullcontext()
        places = [
            (module._parameters, name, tensor)
            for module in (model.modules() if self._copies else ())
            for name, tensor in module._parameters.items()
            if id(tensor) in self._copies
        ]
        try:
            model.eval()
            for table, name, tensor in places:
                table[name] = self._copies[id(tensor)].to(tensor)
            with torch.no_grad(), self.autocast(), left_out:
                yield model
        finally:
            for table, name, tensor in places:
                table[name] = tensor
            model.train(was_training)

    def content(self, model: nn.Module) -> str:
        """A hash of all numbers that the reference computes with, on this rank.

        Args:
            model: as it was given at first.
        """
        digest = xxhash.xxh3_128()
        read = model if self.other is None else self.other
        for name, tensor in (*read.named_parameters(), *read.named_buffers()):
            if not (self.leaves_out and self.other is None and tensor.requires_grad):
                part = held_part(tensor).detach()
                digest.update(f"{name} {part.dtype} {tuple(part.shape)}".encode())
                flat = part.cpu().contiguous().reshape(-1).view(torch.uint8)
                digest.update(memoryview(flat.numpy()))  # type: ignore[arg-type]
        return digest.hexdigest()


def load_other(arguments: Arguments, tokenizer: PreTrainedTokenizerBase) -> Any:
    """The model that `ref_model` names, with `ref_model_adapters` merged; None without.

    Raises:
        ModelError: when its vocabulary is another, beside everything that a model is refused for.
    """
    name = arguments.finetuning.ref_model
    if name is None:
        return None
    if is_deepspeed_zero3_enabled():
        raise ModelError(
            "ref_model: DeepSpeed ZeRO stage 3 would hold it in parts without an engine that "
            "gathers them. Use stage 2 or FSDP, or leave ref_model out."
        )
    console.info(f"reference: {name}")
    training = arguments.training
    merges = next(name for name in ADAPTERS.names() if ADAPTERS.get(name).keeps_apart)
    is_bfloat16 = training.bf16 or arguments.finetuning.pure_bf16
    asked = arguments.changed(
        infer_dtype="bfloat16" if is_bfloat16 else "float16" if training.fp16 else "float32",
        model_name_or_path=name,
        adapter_name_or_path=arguments.finetuning.ref_model_adapters,
        finetuning_type=merges,
        additional_target=(),
    )
    theirs, ours = load_tokenizer(asked.model).get_vocab(), tokenizer.get_vocab()
    added = ours.keys() - theirs.keys() - {*new_tokens(tokenizer)}
    differing = sorted(token for token, number in theirs.items() if ours.get(token) != number)
    if differing or added:
        token = (differing or sorted(added))[0]
        raise ModelError(
            f"ref_model: {name} has another vocabulary than the model: the token {token!r} is "
            f"{theirs.get(token, 'none')} there and {ours.get(token, 'none')} here "
            f"({len(differing) + len(added):,} differ). Its log-probabilities would be those of "
            "other texts; name a model of the same tokenizer."
        )
    return load_model(asked, tokenizer, is_trainable=False)
