"""The files of a model that `from_pretrained` reads, written again and again as a run goes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import PeftModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from luthier.checkpoints.files import files_below
from luthier.modeling.adapters.file import with_head
from luthier.modeling.adapters.pissa import as_plain_lora
from luthier.modeling.heads import VALUE_HEAD, has_score, value_head


class PretrainedFiles:
    """Writes weights, configuration and tokenizer.

    A tokenizer stays as it is while a run goes, and takes longer to put into words than an adapter:
    its files are made once and kept. No model card is written beside an adapter; it would say
    nothing, and the run writes its own at the end.
    """

    def __init__(self) -> None:
        self._tokenizer: dict[str, bytes] = {}

    def write(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        folder: Path,
        state_dict: dict[str, Tensor] | None = None,
        shard_size: str | None = None,
    ) -> None:
        """Writes all of it to a folder, of an adapter only its own.

        `state_dict` has the weights where the model does not hold them whole; `shard_size` is the
        most of one file, such as `5GB`, by default as transformers has it.
        """
        if isinstance(model, PeftModel):
            weights = model.state_dict() if state_dict is None else state_dict
            with as_plain_lora(model, weights) as weights, _without_card(model):
                weights = with_head(model, weights)
                # peft's default adds the frozen originals of embeddings that have grown
                model.save_pretrained(str(folder), state_dict=weights, save_embedding_layers=False)
        else:
            options = {} if shard_size is None else {"max_shard_size": shard_size}
            model.save_pretrained(str(folder), state_dict=state_dict, **options)
        base = model.get_base_model() if isinstance(model, PeftModel) else model
        if has_score(base):
            weights = model.state_dict() if state_dict is None else state_dict
            save_file(value_head(weights), folder / VALUE_HEAD)
        if not self._tokenizer:
            self._tokenizer = _files_of(tokenizer)
        for name, content in self._tokenizer.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def _files_of(tokenizer: PreTrainedTokenizerBase) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer.save_pretrained(name)
        return {
            path.relative_to(folder).as_posix(): path.read_bytes() for path in files_below(folder)
        }


@contextmanager
def _without_card(model: Any) -> Iterator[None]:
    model.create_or_update_model_card = lambda output_dir: None
    try:
        yield
    finally:
        del model.create_or_update_model_card
