"""Commands on checkpoint folders."""

import sys
from pathlib import Path

import click

from telechat_kit.cli.terminal import say
from telechat_kit.files import relative
from telechat_kit.installed import require_version
from telechat_kit.messages import gettext as _
from telechat_kit.messages import shown

#: Those of `quantization.formats.conversion`, which is imported when one is written
FORMATS = ("safetensors", "ascendV1", "numpy", "compressed-tensors", "float")
NAMES = ("own", "llama")


@click.command(short_help="Write weights in the format of another tool.")
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("target", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "form",
    type=click.Choice(FORMATS),
    required=True,
    help="File format to write; safetensors and ascendV1 are msModelSlim's, numpy its dictionaries of 2024.",
)
@click.option(
    "--names",
    type=click.Choice(NAMES),
    default="own",
    show_default=True,
    help="Whose names the tensors get; llama is for engines: ascendV1, compressed-tensors, and float of a float FOLDER.",
)
@click.option(
    "--max-length",
    type=click.IntRange(min=1),
    help="With --names llama: the longest sequence to be served, in tokens. Default: the trained length.",
)
@click.option(
    "--model-path",
    type=click.Path(path_type=Path),
    help="The float checkpoint that was quantized (numpy), or the one beside .npy dictionaries.",
)
@click.option(
    "--overwrite", is_flag=True, help="Whatever TARGET holds may go, also what the kit did not write."
)
def export(
    folder: Path,
    target: Path,
    form: str,
    names: str,
    max_length: int | None,
    model_path: Path | None,
    overwrite: bool,
) -> None:
    """Write FOLDER in another file format into the new folder TARGET; its logits stay the same.

    With --names llama any engine that knows Llama can serve it: docs/serving.md.

    \b
    Examples:
      telechat-kit export build/demo-w8a8 build/demo-ascend --format ascendV1
      telechat-kit export build/demo-w8a8 build/demo-npy --format numpy --model-path build/demo
      telechat-kit export build/demo-w8a8 build/demo-llama --format compressed-tensors --names llama
    """
    from telechat_kit.quantization.formats.conversion import export as export_folder

    float_folder = model_path and model_path.absolute()
    record = export_folder(
        folder.absolute(), target.absolute(), form, float_folder,
        names=names, max_length=max_length, overwrite=overwrite,
    )  # fmt: skip
    told = _("{folder}: {format}, {count} int8 linears")
    say(told.format(folder=relative(target.absolute()), format=record.format, count=record.int8_linears))
    for note in record.notes:
        say(f"    {shown(note)}")


@click.command(
    "lm-eval",
    short_help="lm-evaluation-harness with TeleChat known to it.",
    context_settings={
        "ignore_unknown_options": True,
        "allow_interspersed_args": False,
        "help_option_names": ["--help"],
    },
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def lm_eval(arguments: tuple[str, ...]) -> None:
    """lm-evaluation-harness with TeleChat known to it: ARGUMENTS are those of its own command, all passed on.

    Its model "hf" takes the kit's folders, float and W8A8. Needs telechat-kit[tasks].

    \b
    Examples:
      telechat-kit lm-eval --model hf --model_args pretrained=build/demo-w8a8 --tasks hellaswag
      telechat-kit lm-eval -h     # the harness's own help
    """
    require_version("lm_eval", "tasks")
    from lm_eval.__main__ import cli_evaluate
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    from telechat_kit.model import Telechat3ForCausalLM, TelechatForCausalLM, register

    register()
    for network in (TelechatForCausalLM, Telechat3ForCausalLM):  # else the harness warns that it guesses
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[network.config_class.model_type] = network.__name__
    sys.argv = ["lm_eval", *arguments]
    cli_evaluate()
