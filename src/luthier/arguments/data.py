"""Which rows are learned from, and how they are read, cut and mixed."""

from __future__ import annotations

from typing import Any, Literal

from luthier.arguments.knob import CommaList, FloatList, Section, free, knob


class DataArguments(Section):
    """Knobs of the data sets and the template."""

    template: str | None = knob(None, resume="elsewhere", on_card=True)
    """The name of the template that conversations are rendered with. By default the tokenizer's own
    chat template is used."""
    dataset: CommaList = knob((), resume="elsewhere", reads=True)
    """The data sets to train on, a comma list: names of `dataset_info.json`, or paths of files and
    folders. Required with `do_train`."""
    eval_dataset: CommaList = knob((), resume="elsewhere", reads=True)
    """The data sets to evaluate and predict on, a comma list like `dataset`. By default the part
    that `val_size` cuts off."""
    dataset_dir: str | dict[str, Any] = knob("data", resume="elsewhere", reads=True)
    """The folder with `dataset_info.json`, `ONLINE` to take names from the hub, `REMOTE:NAME` to
    take that file from a data set there, or (from Python) its content. By default `data`."""
    allow_outside: bool = knob(False)
    """Whether `dataset_info.json` may name data that is not in its folder: absolute paths, `..`,
    links that lead out. By default not; a path that is given as `dataset` itself may always be
    anywhere."""
    cutoff_len: int = knob(2048, resume="elsewhere", on_card=True, ge=1)
    """The most tokens of an example; what is longer is cut. By default 2,048."""
    on_overlong: Literal["truncate", "drop", "split", "error"] = knob(
        "truncate", resume="elsewhere"
    )
    """What becomes of a row with more tokens than `cutoff_len`: turns without room are left out and
    one is cut at the ends of its question and answer, where prompts keep system text, tools and
    headers and a cut answer is not taught to end (`truncate`, the default); it is left out
    (`drop`), its turns make several examples (`split`), or the run ends (`error`). Where system
    text, tools and headers alone are longer, a row is left out. Every such row is counted."""
    packing: bool | None = knob(None, resume="elsewhere", of_turns=True)
    """Whether rows share examples of up to `cutoff_len` tokens, so that a step counts those. By
    default only texts do (stage `pt`). Nothing is padded either way."""
    neat_packing: bool | None = knob(None, resume="elsewhere", of_turns=True)
    """Whether packed rows do not see each other, each with positions of its own (the default). With
    `false`, texts are one stream that is cut into blocks, and attention reaches across them;
    conversations never see each other. `true` turns `packing` on."""
    document_overlap: int = knob(0, ge=0)
    """For stage `pt`: tokens before a cut that the next part of the text repeats as context, where
    they are not learned again. By default none."""
    sample_by: Literal["line", "paragraph", "document"] = knob("line", resume="elsewhere")
    """For stage `pt`: what of a .txt file is a text of its own, each line (the default), each
    paragraph up to a blank line, or the whole file (`document`)."""
    train_on_prompt: bool = knob(False, resume="elsewhere", of_turns=True)
    """Whether prompts are learned too. By default only answers are."""
    mask_history: bool = knob(False, resume="elsewhere", of_turns=True)
    """Whether only the last answer is learned. By default every answer is."""
    mix_strategy: Literal["concat", "interleave_under", "interleave_over", "interleave_once"] = (
        knob("concat", draws=True, resume="elsewhere")
    )
    """How several data sets become one: one after the other (the default), or drawn in turn until
    the first is used up (`under`), until all are with repeats (`over`), or until all are without
    repeats (`once`)."""
    interleave_probs: FloatList = knob((), resume="elsewhere", draws=True)
    """The share of each data set in an interleaved mix, a comma list of numbers. By default they
    take turns."""
    streaming: bool = knob(False, resume="fixed")
    """Whether rows to train on are read and encoded as training goes, not before it; needs
    `max_steps`. A checkpoint goes on with the very next row. By default all rows are encoded first
    and kept in the cache."""
    buffer_size: int = knob(16384, ge=1)
    """With `streaming`: rows that are read together and used in random order; long ones end at 128
    MiB. By default 16,384."""
    overwrite_cache: bool = free(False)
    """Whether data is encoded again even when the cache holds it. By default the cache is used; it
    is keyed by content and cannot be stale."""
    preprocessing_batch_size: int = free(1000, ge=1)
    """Rows that are encoded together. By default 1,000."""
    preprocessing_num_workers: int | None = free(None, ge=1)
    """Processes that read and encode data. By default one, the program itself."""
    max_samples: int | None = knob(None, resume="elsewhere", ge=1, draws=True)
    """The most rows taken from each data set, from its start. By default all."""
    eval_num_beams: int | None = free(None, ge=1)
    """Beams of the search when predictions are generated. By default `num_beams`."""
    val_size: float = knob(0.0, resume="elsewhere", ge=0.0, draws=True)
    """The part of the training data kept for evaluation: a share below 1, or a number of rows. By
    default none."""
    eval_on_each_dataset: bool = free(False, draws=True)
    """Whether each evaluation data set gets its own numbers. By default they are evaluated as
    one."""
    tool_format: str | None = knob(None, resume="elsewhere")
    """How tool descriptions and tool calls are written, by the name of a format. By default as the
    template does it."""
    default_system: str | None = knob(None, resume="elsewhere")
    """The system prompt of conversations that have none. By default the template's own."""
    enable_thinking: bool | None = knob(True, resume="elsewhere")
    """For templates that reason: `true` (the default) leaves room for thoughts, `false` learns with
    empty thoughts, null decides row by row."""
    preserve_thinking: bool = knob(False, resume="elsewhere")
    """Whether the thoughts of earlier answers stay in the conversation. By default they are
    dropped, as reasoning models expect."""
    tokenized_path: str | None = knob(None, resume="elsewhere", reads=True)
    """A folder for the encoded data: written when it is absent or empty, read when it is there. One
    that was made with another tokenizer, template, `cutoff_len` or data is refused. By default
    encoded data is only kept in the cache."""
    max_bad_rows: float = knob(0.01, resume="elsewhere", ge=0.0)
    """Rows that may be wrong (they are reported and skipped) before the run stops: a share of the
    data set below 1, or a number of rows. By default 1 %."""
