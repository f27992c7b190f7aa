"""Commands on checkpoint folders."""

from pathlib import Path

import click

from telechat_kit.files import relative

#: Those of `quantization.formats.conversion`, which is imported when one is written
FORMATS = ("safetensors", "ascendV1", "numpy", "compressed-tensors")


@click.command()
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
    "--model-path",
    type=click.Path(path_type=Path),
    help="The float checkpoint that was quantized (numpy), or the one beside .npy dictionaries.",
)
@click.option(
    "--overwrite", is_flag=True, help="Whatever TARGET holds may go, also what the kit did not write."
)
def export(folder: Path, target: Path, form: str, model_path: Path | None, overwrite: bool) -> None:
    """Write the quantized FOLDER in another file format into the new folder TARGET; its logits stay the same.

    \b
    Examples:
      telechat-kit export build/demo-w8a8 build/demo-ascend --format ascendV1
      telechat-kit export build/demo-w8a8 build/demo-npy --format numpy --model-path build/demo
    """
    from telechat_kit.quantization.formats.conversion import export as export_folder

    float_folder = model_path and model_path.absolute()
    record = export_folder(folder.absolute(), target.absolute(), form, float_folder, overwrite=overwrite)
    click.echo(f"{relative(target.absolute())}: {record.format}, {record.int8_linears} int8 linears")
    for note in record.notes:
        click.echo(f"    {note}")
