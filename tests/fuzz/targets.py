"""What is fuzzed: every reader of the kit, each on a whole document of its own, under the names of this and older kits."""

import dataclasses
import hashlib
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

#: Ids whose logits stand for a model
_IDS = (1, 5, 70, 100, 200, 4, 61)


@dataclass(frozen=True)
class Corpus:
    """Folders that the kit wrote, and texts of tests/data: what is right before it is changed."""

    floats: Path
    w8a8: Path
    numpy: Path
    ascend: Path
    compressed: Path
    run: Path
    texts: Path


@dataclass(frozen=True)
class Target:
    """A reader: what it is given, which of its files are changed, and what it makes of them.

    `read` gives a digest of what was understood. `hashed`: the content says what is computed, so a change of meaning
    must be refused, or be found by the hashes that a run carries.
    """

    name: str
    source: Callable[[Corpus], Path]
    files: tuple[str, ...]
    read: Callable[[Path], str]
    hashed: bool = False


def known(name: str, *modules: str) -> Any:
    """`name` from the first of the modules that has it: it moved between versions."""
    for module in modules:
        try:
            return getattr(importlib.import_module(f"telechat_kit.{module}"), name)
        except (ImportError, AttributeError):
            continue
    raise ImportError(f"no module of the kit has {name}")


def digest(value: Any) -> str:
    """A short hash of anything that prints."""
    return hashlib.sha256(repr(value).encode("utf-8", "backslashreplace")).hexdigest()[:16]


@torch.inference_mode()
def _model(folder: Path, **options: Any) -> str:
    model = known("load_model", "inference.loading", "model.checkpoint", "model")(folder, "cpu", **options)
    logits = model(torch.tensor([_IDS])).logits
    stops = known("stop_ids", "inference.generation", "generation")(model)
    return digest((logits.numpy().tobytes(), stops, model.config.training_seqlen))


def _pair(folder: Path) -> str:
    return _model(folder, model_path=folder / "float")


def _tokenizer(folder: Path) -> str:
    tokenizer = known("load_tokenizer", "model.tokenization")(folder)
    question = known("chat_ids", "token_samples", "texts", "generation", "inference.generation")(
        tokenizer, "天气 how?"
    )
    ids = tokenizer("é <_user>a\n\n1 😀", add_special_tokens=False)["input_ids"]
    return digest((question, ids, tokenizer.decode(ids), tokenizer.decode(list(range(250)))))


def _dictionary(folder: Path) -> str:
    values = known("read_dictionary", "model.unpickling")(folder / "quant_weight.npy")
    return digest(
        {name: (value.dtype, value.shape, value.numpy().tobytes()) for name, value in values.items()}
    )


def _records(folder: Path) -> str:
    run = known("read_run_data", "comparison.run_data", "run_data")(folder)
    return digest(dataclasses.replace(run, name="", folder=None))


def _state(folder: Path) -> str:
    return digest(known("load_state", "runs.state")(folder))


def _page(folder: Path) -> str:
    run = known("read_run_data", "comparison.run_data", "run_data")(folder / "report.html")
    return digest(dataclasses.replace(run, name="", folder=None))


def _journal(folder: Path) -> str:
    questions = [f"问题 {number}?" for number in range(6)]
    return digest(known("_read_journal", "precision.answers")(folder / "answers.part", "key", questions))


def _profile(folder: Path) -> str:
    return digest(known("load_profile", "runs.profile")(folder / "mine.yaml").values)


def _sweep(folder: Path) -> str:
    return digest(known("load_sweep", "runs.sweep")(folder / "sweep.yaml"))


def _rows(folder: Path) -> str:
    load = known("load_text", "texts", "data")
    return digest([load(str(folder / name)).lines for name in ("lines.jsonl", "rows.csv", "list.json")])


def _tasks(folder: Path) -> str:
    return digest(known("load_questions", "precision.tasks")(folder / "tasks.jsonl"))


def _smi(folder: Path) -> str:
    text = (folder / "npu-smi-info.txt").read_bytes().decode("utf-8", "replace")
    return digest(known("parse", "environment.npu_smi")(text))


def _cell(folder: Path) -> str:
    declared = known("declared_parameters", "runs.profile")
    getattr(declared, "cache_clear", lambda: None)()
    return digest({name: str(entry) for name, entry in declared(folder / "01_setup.ipynb").items()})


def _lock(folder: Path) -> str:
    with known("locked", "runs.lock")(folder):
        return "held"


def _floats(corpus: Corpus) -> Path:
    return corpus.floats


def _texts(corpus: Corpus) -> Path:
    return corpus.texts


_CONFIGS = ("config.json", "generation_config.json")
_W8A8 = ("quant_model_weight_w8a8.safetensors", "quant_model_description_w8a8.json")
_ASCEND = ("quant_model_weight_w8a8.safetensors", "quant_model_description.json")
TARGETS = (
    Target("folder", _floats, (*_CONFIGS, "model.safetensors"), _model, True),
    Target("w8a8", lambda corpus: corpus.w8a8, (*_CONFIGS, *_W8A8), _model, True),
    Target("ascendV1", lambda corpus: corpus.ascend, (*_CONFIGS, *_ASCEND), _model, True),
    Target("compressed-tensors", lambda corpus: corpus.compressed, (*_CONFIGS, "model.safetensors"), _model, True),
    Target("tokenizer", _floats, ("tokenizer.json", "tokenizer_config.json"), _tokenizer, True),
    Target("npy", lambda corpus: corpus.numpy, ("quant_weight.npy",), _dictionary, True),
    Target("npy-pair", lambda corpus: corpus.numpy, ("input_scale.npy", "deq_scale.npy", "anti_fp_norm.npy", "quant_bias.npy"), _pair, True),
    Target("records", lambda corpus: corpus.run, ("setup.json", "quantize.json", "precision.json", "performance.json", "samples.jsonl", "run.json"), _records),
    Target("state", lambda corpus: corpus.run, ("run.json",), _state),
    Target("report", lambda corpus: corpus.run, ("report.html",), _page),
    Target("journal", _texts, ("answers.part",), _journal),
    Target("profile", _texts, ("mine.yaml",), _profile),
    Target("sweep", _texts, ("sweep.yaml",), _sweep),
    Target("rows", _texts, ("lines.jsonl", "rows.csv", "list.json"), _rows),
    Target("tasks", _texts, ("tasks.jsonl",), _tasks),
    Target("npu-smi", _texts, ("npu-smi-info.txt",), _smi),
    Target("parameters-cell", _texts, ("01_setup.ipynb",), _cell),
    Target("lock", _texts, (".run.lock",), _lock),
)  # fmt: skip


def run_hashes(folder: Path) -> Iterator[str]:
    """The hashes of a checkpoint folder that a run's records carry."""
    for name in ("weights_hash", "tokenizer_hash", "settings_hash"):
        try:
            compute = known(name, "model.hashes", "model.folder", "model.tokenization", "provenance")
        except ImportError:  # an older kit has none
            continue
        yield compute(folder)
