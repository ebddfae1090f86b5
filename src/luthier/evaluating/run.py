"""`luthier eval`: how many questions of a benchmark a model answers right."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy

from luthier import console
from luthier.arguments.record import Arguments
from luthier.checkpoints.files import write_json
from luthier.checkpoints.fingerprint import versions
from luthier.data.encode import Encoder, EncodingOptions
from luthier.errors import DataError, TemplateError
from luthier.evaluating.likelihood import Likelihood
from luthier.evaluating.questions import (
    BENCHMARKS,
    Question,
    Subject,
    categories,
    read_subjects,
)
from luthier.example import Example
from luthier.generating.generator import context_length
from luthier.records import IGNORE_INDEX, Conversation, Message
from luthier.serving.engine import Engine, load_engine

FILE_NAME = "results.json"

WORDS = {
    "en": (
        "The following are multiple choice questions (with answers) about {subject}.\n\n",
        "\nAnswer:",
    ),
    "zh": (
        "以下是中国关于{subject}考试的单项选择题，请选出其中的正确答案。\n\n",
        "\n答案：",
    ),
}
"""What stands before the first question, and behind each: MMLU's and C-Eval's own words."""


@dataclass(frozen=True)
class Marked:
    """What became of one question."""

    chosen: int
    chosen_by_length: int  # the likeliest for each of its characters
    question: Question


def evaluate(arguments: Arguments) -> dict[str, Any]:
    """Asks every question of a benchmark, prints what was right, and writes it down.

    Returns:
        What `results.json` holds.

    Raises:
        DataError: if the benchmark's files are not as they should be, or results are there.
    """
    asked = arguments.evaluating
    folder = None if asked.save_dir is None else Path(asked.save_dir).expanduser()
    if folder is not None and (folder / FILE_NAME).exists():
        raise DataError(f"save_dir: {folder} holds results already; name another folder.")
    if str(asked.task).partition("_")[0] not in BENCHMARKS:
        from luthier.evaluating.harness import evaluate_tasks

        return evaluate_tasks(arguments, folder)
    subjects = read_subjects(str(asked.task), asked.task_dir, asked.n_shot)
    num_questions = sum(len(each.questions) for each in subjects)
    console.info(
        f"{asked.task}: {num_questions:,} questions of {len(subjects)} subjects, {asked.n_shot} "
        f"shown before each, read by {asked.reading}"
    )
    asker = Asker(load_engine(arguments), arguments)
    begun = time.monotonic()
    marked: dict[str, list[Marked]] = {}
    for subject in subjects:
        marked[subject.name] = list(asker.answers(subject))
        right = sum(each.chosen == each.question.answer for each in marked[subject.name])
        console.info(f"{subject.title}: {right} of {len(subject.questions)}")
    seconds = time.monotonic() - begun
    asker.tell()
    results = _results(arguments, subjects, marked) | {
        "seconds": round(seconds, 1),
        "questions_per_second": round(num_questions / max(seconds, 1e-9), 3),
    }
    for line in table(results):
        print(line)
    if folder is not None:
        console.info(f"written: {write_json(folder / FILE_NAME, results)}")
    return results


class Asker:
    """Asks questions as the template has them, and reads which option is likeliest."""

    def __init__(self, engine: Engine, arguments: Arguments) -> None:
        self.engine, self.arguments, self.asked = engine, arguments, arguments.evaluating
        options = EncodingOptions(sys.maxsize, split_special_tokens=engine.split_special_tokens)
        self.encoder = Encoder(engine.tokenizer, engine.template, options)
        self.room = context_length(engine.model) or sys.maxsize
        self.likelihood: Likelihood | None = None
        self.num_shortened = 0

    def answers(self, subject: Subject) -> Iterator[Marked]:
        """What is chosen for each question of a subject, in order."""
        examples = [*self.examples(subject)]
        if self.likelihood is None:
            pad = self.engine.tokenizer.pad_token_id or 0
            self.likelihood = Likelihood(self.engine.model, self.arguments, pad, examples)
        read = self.likelihood.read(examples)
        for question, said in zip(subject.questions, read, strict=True):
            found = [each.logp for each in said]
            by_length = [
                each / max(len(text), 1) for each, text in zip(found, question.options, strict=True)
            ]
            yield Marked(_largest(found), _largest(by_length), question)

    def examples(self, subject: Subject) -> Iterator[Example]:
        """Each question with its options as sequences; what tells them apart is read."""
        is_text = self.asked.reading == "text"
        rows = [self._row(subject, each, subject.shots) for each in subject.questions]
        for question, outcome in zip(subject.questions, self.encoder.judge(rows), strict=True):
            shots = subject.shots
            while isinstance(outcome, list) and shots and self._is_long(outcome[0]):
                shots = shots[1:]
                self.num_shortened += len(shots) == len(subject.shots) - 1
                (outcome,) = self.encoder.judge([self._row(subject, question, shots)])
            if not isinstance(outcome, list):
                raise TemplateError(f"{question.origin}: {outcome}")
            if self._is_long(outcome[0]):
                raise DataError(
                    f"{question.origin}: the question has {max(outcome[0].sequence_lengths):,} "
                    f"tokens, and the model reads {self.room:,}."
                )
            yield outcome[0] if is_text else first_difference(outcome[0])

    def tell(self) -> None:
        """Says what was shortened, and what was computed once."""
        if self.num_shortened:
            console.warn(
                f"{self.num_shortened:,} questions were asked with fewer than "
                f"{self.asked.n_shot} before them: the model reads {self.room:,} tokens"
            )
        if self.likelihood is not None:
            share = self.likelihood.num_computed / max(self.likelihood.num_tokens, 1)
            console.info(
                f"{self.likelihood.num_tokens:,} tokens, {share:.0%} of them computed (layout "
                f"{self.likelihood.layout.name})"
            )

    def _row(
        self, subject: Subject, question: Question, shots: Sequence[Question]
    ) -> tuple[Conversation, list[Message]]:
        before, behind = WORDS[self.asked.lang]
        messages: list[Message] = []
        for each in (*shots, question):
            text = each.text
            if self.asked.reading == "letter":
                options = zip(each.letters, each.options, strict=True)
                text += "".join(f"\n{letter}. {option}" for letter, option in options)
            said = self._said(each)[each.answer]
            messages += [Message("user", text + behind), Message("assistant", said)]
        messages[0] = replace(
            messages[0], content=before.format(subject=subject.title) + messages[0].content
        )
        answers = [Message("assistant", each) for each in self._said(question)]
        return Conversation(tuple(messages[:-1]), origin=None), answers

    def _said(self, question: Question) -> Sequence[str]:
        return question.options if self.asked.reading == "text" else question.letters

    def _is_long(self, example: Example) -> bool:
        return max(example.sequence_lengths) > self.room


def first_difference(example: Example) -> Example:
    """The same sequences up to the first token in which they all differ, which alone is read.

    Sequences that begin alike beyond one token, as no letters do, are left as they are.
    """
    sequences = [numpy.asarray(each) for each in example.sequences()]
    shortest = min(map(len, sequences))
    together = numpy.stack([each[:shortest] for each in sequences])
    differ = (together != together[0]).any(0)
    at = int(differ.argmax()) if differ.any() else -1
    if at < 0 or len({*together[:, at].tolist()}) < len(sequences):
        return example
    cut = [each[: at + 1] for each in sequences]
    labels = numpy.full((len(cut), at + 1), IGNORE_INDEX)
    labels[:, at] = together[:, at]
    return replace(
        example,
        input_ids=numpy.concatenate(cut),
        labels=labels.reshape(-1),
        lengths=(at + 1,) * len(cut),
    )


def _largest(numbers: Sequence[float]) -> int:
    return max(range(len(numbers)), key=numbers.__getitem__)


def _score(marked: Sequence[Marked]) -> dict[str, float]:
    """The share that is right and its standard error, in percent."""
    count = len(marked)
    share = sum(each.chosen == each.question.answer for each in marked) / count
    error = math.sqrt(share * (1 - share) / max(count - 1, 1))
    return {
        "questions": count,
        "accuracy": round(100 * share, 2),
        "standard_error": round(100 * error, 2),
    }


def _results(
    arguments: Arguments, subjects: list[Subject], marked: dict[str, list[Marked]]
) -> dict[str, Any]:
    asked = arguments.evaluating
    together = [each for one in marked.values() for each in one]
    scores = {name: _score(one) for name, one in marked.items()}
    found: dict[str, Any] = {
        "task": asked.task,
        "reading": asked.reading,
        "n_shot": asked.n_shot,
        "lang": asked.lang,
        "model": arguments.model.model_name_or_path,
        "adapters": list(arguments.model.adapter_name_or_path),
        "average": _score(together),
        "mean_of_subjects": round(sum(one["accuracy"] for one in scores.values()) / len(scores), 2),
        "categories": {
            name: _score(
                [each for one in subjects if one.category == name for each in marked[one.name]]
            )
            for name in categories(subjects)
        },
        "subjects": scores,
        "answers": {
            name: {each.question.origin: each.question.letters[each.chosen] for each in one}
            for name, one in marked.items()
        },
        "versions": versions(),
    }
    if asked.reading == "text":
        right = sum(each.chosen_by_length == each.question.answer for each in together)
        found["accuracy_by_length"] = round(100 * right / len(together), 2)
    return found


def table(results: dict[str, Any]) -> Iterator[str]:
    """The numbers, a line each."""
    rows = [*results["subjects"].items(), *results["categories"].items()]
    rows.append(("average", results["average"]))
    width = max(len(name) for name, _ in rows)
    for name, score in rows:
        yield (
            f"{name:<{width}}  {score['accuracy']:6.2f} % +- {score['standard_error']:.2f}  of "
            f"{score['questions']:,}"
        )
    yield f"{'mean of subjects':<{width}}  {results['mean_of_subjects']:6.2f} %"
    if "accuracy_by_length" in results:
        yield f"{'by length':<{width}}  {results['accuracy_by_length']:6.2f} %"
