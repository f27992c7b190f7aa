"""The checkpoint of a run: made if the kit carries it, described as it lies on disk, and its rows of the table."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from telechat_kit.environment.check import Check
from telechat_kit.errors import CheckpointError, ParameterError
from telechat_kit.files import lock_beside, one_at_a_time, relative, resolve
from telechat_kit.messages import Message, marked
from telechat_kit.model.demo import build_demo
from telechat_kit.model.folder import read_config, require_fitting, weight_files
from telechat_kit.model.tiny import build_tiny
from telechat_kit.model.tokenization import load_tokenizer
from telechat_kit.model.weight_shards import Shards

#: Checkpoints that the kit can make by itself, under the name that a profile gives
EMBEDDED_MODELS = {"smollm2-135m": build_demo, "tiny-random": build_tiny}

_NO_TEMPLATE = marked(
    "03_precision asks questions in the chat format, which this tokenizer has not: give the tokenizer of the chat model, "
    "or put its chat_template.jinja into the folder."
)


@dataclass(frozen=True)
class Part:
    """Parameters and bytes of one part of the network."""

    part: str
    parameters: int
    bytes: int


def make_embedded(checkpoint_path: str | Path, embedded_model: str = "") -> Path:
    """Make the embedded model that a profile names, if its folder is not there; a folder with files stays as it is.

    Raises:
        ParameterError: no embedded model has that name.

    Example:
        >>> folder = make_embedded("models/tiny", "tiny-random")
        >>> folder.name
        'tiny'
    """
    folder = resolve(checkpoint_path)
    if embedded_model and embedded_model not in EMBEDDED_MODELS:
        known = ", ".join(EMBEDDED_MODELS)
        raise ParameterError(
            'embedded_model "{embedded_model}" is unknown. Use one of {known}, or leave it empty.',
            embedded_model=embedded_model,
            known=known,
        )
    if embedded_model and (_is_absent(folder) or lock_beside(folder).exists()):
        with one_at_a_time(folder):
            if _is_absent(folder):  # no other process made it meanwhile
                EMBEDDED_MODELS[embedded_model](folder)
    return folder


def prepare_checkpoint(checkpoint_path: str | Path, embedded_model: str = "") -> Path:
    """The float checkpoint folder; if it is not there and an embedded model is named, it is made first.

    Raises:
        CheckpointError: the folder is not there, incomplete or damaged.
        ParameterError: no embedded model has that name.
    """
    folder = make_embedded(checkpoint_path, embedded_model)
    read_config(folder)
    weight_files(folder)
    return folder


def _is_absent(folder: Path) -> bool:
    # a folder with other files is somebody's checkpoint, perhaps half copied: never replaced
    return not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))


def weights_bytes(folder: Path) -> int:
    """Size of the weight files; a `CheckpointError` if they are not all there and whole."""
    return sum(path.stat().st_size for path in weight_files(folder))


def checkpoint_checks(folder: Path, embedded_model: str = "") -> Iterator[Check]:
    """Weights and tokenizer: there, whole, and belonging together."""
    required = marked("all files, none cut short")
    if embedded_model and _is_absent(folder):
        found = Message(
            "not there yet: 01_setup makes {folder} from {embedded_model}",
            folder=relative(folder),
            embedded_model=embedded_model,
        )
        yield Check(marked("weights"), found, required, "ok")
        return
    try:
        config = read_config(folder)
        vocabulary, size = config.vocab_size, weights_bytes(folder)
        require_fitting(folder, config)
    except CheckpointError as error:
        yield Check(
            marked("weights"),
            Message("not whole in {folder}", folder=relative(folder)),
            required,
            "missing",
            str(error),
        )
        return
    yield Check(
        marked("weights"),
        Message("{size:,.1f} MB in {folder}", size=size / 1e6, folder=relative(folder)),
        required,
        "ok",
    )
    yield _tokenizer(folder, vocabulary)


def _tokenizer(folder: Path, vocabulary: int) -> Check:
    try:
        tokenizer = load_tokenizer(folder)
    except CheckpointError as error:
        return Check(
            marked("tokenizer"), marked("not usable"), marked("the model's own"), "missing", str(error)
        )
    found, required = (
        Message("{count:,} tokens", count=len(tokenizer)),
        Message("at most {vocabulary:,}", vocabulary=vocabulary),
    )
    if not tokenizer.chat_template:
        return Check(
            marked("tokenizer"),
            Message("{found}, no chat template", found=found),
            required,
            "warning",
            _NO_TEMPLATE,
        )
    return Check(marked("tokenizer"), found, required, "ok")


def model_parts(folder: Path) -> list[Part]:
    """Parameters and bytes of embedding, attention, feed-forward, head and norms, from the files' own tables."""
    groups = {
        "self_attention": marked("attention"),
        "mlp": marked("feed-forward"),
        "word_embeddings.": marked("embedding"),
        "lm_head": marked("head"),
    }
    totals: dict[str, list[int]] = {}
    for name, stored in Shards(folder).tensors.items():
        part = next((label for key, label in groups.items() if key in name), marked("norms"))
        counts = totals.setdefault(part, [0, 0])
        counts[0] += stored.shape.numel()
        counts[1] += stored.nbytes
    return [Part(part, *counts) for part, counts in totals.items()]
