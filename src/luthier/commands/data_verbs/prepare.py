"""`luthier data prepare`: encodes the data of a configuration ahead of its run."""

from __future__ import annotations

from pathlib import Path

from luthier.errors import ArgumentsError, MissingArguments

SUMMARY = "encode data ahead of a run, without a GPU: luthier data prepare CONFIG.yaml"

USAGE = """\
usage: luthier data prepare CONFIG.yaml [name=value ...] [--clean]
       luthier data prepare --clean

Reads, checks and encodes the data sets of a configuration as `luthier train` does, and says where
they are kept. No weights are read and no GPU is used. The run then finds them, on every machine
that sees the cache, or the folder that tokenized_path names. Preparing that was interrupted goes
on behind the last shard that is whole.

  --clean  removes all other encoded data from the cache; without a configuration, all of it.
           What another process works on stays"""


def run(argv: list[str]) -> int:
    """Prepares what the words name."""
    words = [word for word in argv if word != "--clean"]
    is_cleaning = len(words) < len(argv)
    if not argv:
        raise MissingArguments([f"luthier data prepare needs to know what to encode.\n{USAGE}"])

    from luthier import console
    from luthier.data.cache import cache_root, clean, stored

    folders: list[Path] = []
    root = cache_root(None)
    if words:
        folders, root = _prepare(words)
    if is_cleaning:
        count, size = clean(root, {folder.name for folder in folders})
        console.info(f"{count:,} data sets of {console.gibibytes(size)} are removed from {root}")
    sizes = [size for _, size in stored(root)]
    hint = "; `luthier data prepare --clean` empties it" if sizes and not is_cleaning else ""
    total = console.gibibytes(sum(sizes))
    console.info(f"the cache {root} holds {len(sizes):,} data sets of {total}{hint}")
    return 0


def _prepare(words: list[str]) -> tuple[list[Path], Path]:
    from luthier.arguments.parse import parse_command_line
    from luthier.training.preflight import find_problems_of_the_data

    arguments = parse_command_line(
        words, purpose="data", check=find_problems_of_the_data, look_for_args_file=False
    )
    if not arguments.model.model_name_or_path:
        raise MissingArguments(
            ["model_name_or_path is missing: its tokenizer encodes the data. Weights are not read."]
        )
    if arguments.data.streaming:
        raise ArgumentsError(
            ["streaming encodes rows as training goes: there is nothing to prepare. Leave it out."]
        )
    # a configuration that only evaluates has no training set, others have one
    is_trained = arguments.training.do_train or not (
        arguments.training.do_eval or arguments.training.do_predict
    )
    arguments = arguments.changed(do_train=is_trained and bool(arguments.data.dataset))

    from luthier.data.cache import cache_root
    from luthier.data.pipeline import load_datasets
    from luthier.training.encoder import load_stage

    found = load_datasets(arguments, load_stage(arguments))
    for folder in found.folders:
        print(folder)
    return found.folders, cache_root(arguments.model.cache_dir)
