"""The demo model in the form that each peer reads, converted from one file by the peer's own converter.

Run by `peers.py`, in a process of its own for each form: converters leave gigabytes and threads behind.
"""

import subprocess
import sys
from pathlib import Path

import gguf
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter
from gguf.constants import LlamaFileType

from telechat_kit.files import atomic_folder, atomic_path
from telechat_kit.model.demo import demo_weights

#: Fields that the writer makes itself
OWN_FIELDS = ("GGUF.", "general.architecture", "general.file_type")
BOS, EOS = "<|im_start|>", "<|im_end|>"


def llama(folder: Path) -> Path:
    """The weights widened to float32, as the Llama folder of transformers."""
    import torch  # noqa: PLC0415
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415

    if not (path := folder / "llama").is_dir():
        source = demo_weights()
        with atomic_folder(path) as temporary:
            for kind, options in ((AutoModelForCausalLM, {"dtype": torch.float32}), (AutoTokenizer, {})):
                loaded = kind.from_pretrained(source.parent, gguf_file=source.name, **options)
                loaded.save_pretrained(temporary)
    return path


def q8_0(folder: Path) -> Path:
    """All matrices in Q8_0, what was float32 as it is."""
    if not (path := folder / "q8_0.gguf").is_file():
        reader = GGUFReader(demo_weights())
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            _write_q8_0(reader, temporary)
    return path


def _write_q8_0(reader: GGUFReader, path: Path) -> None:
    writer = GGUFWriter(path, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if not name.startswith(OWN_FIELDS):
            kind, inner = field.types[0], field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), kind, inner)
    writer.add_file_type(LlamaFileType.MOSTLY_Q8_0)
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        kept = tensor.tensor_type == GGMLQuantizationType.F32
        kind = GGMLQuantizationType.F32 if kept else GGMLQuantizationType.Q8_0
        writer.add_tensor(tensor.name, gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def openvino(folder: Path) -> Path:
    """Optimum's export with weights in int8, a scale for each channel."""
    if not (path := folder / "openvino").is_dir():
        with atomic_folder(path) as temporary:
            task = ["--task", "text-generation-with-past", "--weight-format", "int8"]
            command = [str(Path(sys.executable).with_name("optimum-cli")), "export", "openvino"]
            subprocess.run([*command, "-m", str(llama(folder)), *task, str(temporary)], check=True)
    return path


def ctranslate2(folder: Path) -> Path:
    """CTranslate2's own converter for Llama, int8."""
    from ctranslate2.converters import TransformersConverter  # noqa: PLC0415

    if not (path := folder / "ctranslate2").is_dir():
        with atomic_folder(path) as temporary:
            TransformersConverter(str(llama(folder))).convert(str(temporary), quantization="int8", force=True)
    return path


def w8a8_llama(folder: Path) -> Path:
    """The kit's own W8A8 weights under Llama's names, in the compressed-tensors format; made anew each time."""
    from telechat_kit import export  # noqa: PLC0415

    path = folder / "w8a8-llama"
    export(sys.argv[3], path, "compressed-tensors", names="llama", overwrite=True)
    return path


FORMS = {form.__name__: form for form in (llama, q8_0, openvino, ctranslate2, w8a8_llama)}

if __name__ == "__main__":
    print(FORMS[sys.argv[1]](Path(sys.argv[2])))
