"""A few rows answered at every evaluation, written with their step (`eval_generate_samples`)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainerControl, TrainerState
from transformers import TrainingArguments as LibraryArguments

from luthier import console
from luthier.arguments.record import Arguments
from luthier.checkpoints.files import write_whole
from luthier.example import ExampleSet
from luthier.training.predict import Asking

FILE_NAME = "generated_samples.jsonl"


class SampleCallback(TrainerCallback):
    """Answers the first rows of each evaluation set; training goes on as if it had not.

    Args:
        arguments: of the run.
        tokenizer: of the model.
        sets: prompts with the answers as labels, by the name of the set.
        stop_token_ids: those that end an answer.
    """

    def __init__(
        self,
        arguments: Arguments,
        tokenizer: PreTrainedTokenizerBase,
        sets: Mapping[str, ExampleSet],
        stop_token_ids: Sequence[int],
    ) -> None:
        count = arguments.training.eval_generate_samples
        self.rows = [
            (name, each) for name, one in sets.items() for each in one.take(min(count, len(one)))
        ]
        self._arguments, self._stop_token_ids = arguments, stop_token_ids
        self._skip = arguments.generating.skip_special_tokens
        self._tokenizer = tokenizer
        self._step: int | None = None

    def on_evaluate(
        self, args: LibraryArguments, state: TrainerState, control: TrainerControl, **known: Any
    ) -> None:
        """Asks, once a step however many sets are evaluated in it; every rank its share."""
        if state.global_step == self._step:
            return
        self._step = state.global_step
        asking = Asking(known["model"], self._tokenizer, self._arguments, self._stop_token_ids)
        prompts = [each.input_ids.tolist() for _, each in self.rows]
        answers = asking.answers(prompts)
        if not console.is_main_process():
            return
        path = Path(str(args.output_dir)) / FILE_NAME
        # a run that goes on from a checkpoint makes the evaluations behind it again
        before = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        lines = [line for line in before if json.loads(line)["step"] < state.global_step]
        for (name, example), found in zip(self.rows, answers, strict=True):
            texts = [asking.decode(each, skip=self._skip) for each in found]
            row = {
                "step": state.global_step,
                "prompt": self._tokenizer.decode(example.input_ids),
                "predict": texts[0] if len(texts) == 1 else texts,
                "label": asking.decode(example.labels.tolist(), skip=self._skip),
            }
            lines.append(json.dumps({"set": name} | row if name else row, ensure_ascii=False))
        write_whole(path, (f"{line}\n" for line in lines))
        console.info(f"{len(self.rows)} samples of step {state.global_step}: {path}")
