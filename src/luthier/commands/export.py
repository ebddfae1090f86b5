"""luthier export: a trained model as a folder that other programs load."""

from __future__ import annotations

from luthier.commands.chat import read_arguments

SUMMARY = "merge, prove and publish what a run trained, as a folder that other programs load"

USAGE = """\
usage: luthier export RUN_FOLDER export_dir=FOLDER [name=value ...]
       luthier export ADAPTER export_dir=FOLDER
       luthier export CONFIG.yaml

RUN_FOLDER is the output_dir of a finished run, or a checkpoint in it; ADAPTER any folder with an
adapter; CONFIG.yaml names model_name_or_path, adapter_name_or_path, template and export_dir.

Adapters are merged into the weights, the merged model is held against base and adapter, written,
read back from the disk and held against itself. Only then does FOLDER get its name.

--gguf q8_0 writes a file for llama.cpp and Ollama beside them (f32, f16, bf16, q8_0, q5_1, q5_0,
q4_1, q4_0; q4_k_m with llama-quantize), which is read back and held against the model as well.
--ollama writes a Modelfile: the template in Ollama's language, every stop, the whole context.
--adapter merges nothing: it is the adapter as vLLM's --lora-modules loads it.
export_dtype, export_size, export_device and export_hub_model_id are explained in docs/export.md."""


def run(argv: list[str]) -> int:
    """Exports what the words name."""
    from luthier.training.preflight import find_problems_of_an_export

    arguments = read_arguments(
        argv,
        check=find_problems_of_an_export,
        purpose="export",
        absent=f"luthier export needs to know which model leaves.\n{USAGE}",
    )

    from luthier.exporting.run import export

    print(export(arguments))
    return 0
