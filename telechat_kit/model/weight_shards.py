"""The weights of a float checkpoint one by one, read from `.bin` or safetensors shards when they are asked for."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from telechat_kit.errors import CheckpointError
from telechat_kit.model.folder import read_bin, read_config, require_fitting, weight_files
from telechat_kit.model.layout import HEAD
from telechat_kit.model.telechat3 import network_of

#: How much of a tensor is read at a time when it is only copied
CHUNK_BYTES = 32 << 20


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies, and what it is there."""

    path: Path
    key: str
    dtype: torch.dtype
    shape: torch.Size

    @property
    def nbytes(self) -> int:
        return self.shape.numel() * self.dtype.itemsize


class Shards:
    """Tensors of a float checkpoint folder under the module names of the network.

    A shard is mapped while something of it is read and no longer, so that nothing of the checkpoint stays in
    memory but the copies that were asked for.

    Attributes:
        tensors: every tensor that the network has, a tied head left out.
        config_changes: keys of `config` that are not as in the folder's config.json; none here.

    Raises:
        CheckpointError: the folder is missing, incomplete, damaged or of another architecture.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.config = folder, read_config(folder)
        require_fitting(folder, self.config)
        self.config_changes: dict[str, object] = {}
        self.tensors = dict(self._stored())
        if self.config.tie_word_embeddings:
            self.tensors.pop(HEAD, None)
        self._check()

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the embedding, which stands for the checkpoint's."""
        return self.tensors[self.config.layout.embedding].dtype

    def read(self, names: Iterable[str], device: torch.device) -> dict[str, Tensor]:
        """Float32 copies of the named tensors on `device`."""
        names, found = list(names), {}
        for path in sorted({self.tensors[name].path for name in names}):
            keys = {name: self.tensors[name].key for name in names if self.tensors[name].path == path}
            with _mapped(path, keys.values()) as values:
                for name, key in keys.items():
                    found[name] = values[key].to(device, torch.float32, copy=True)
        return found

    def part(self, name: str, cut: Callable[[Tensor], Tensor], dtype: torch.dtype) -> Tensor:
        """`cut` of a tensor as it is mapped, in `dtype`: a copy of no more than that."""
        stored = self.tensors[name]
        with _mapped(stored.path, [stored.key]) as values:
            return cut(values[stored.key]).to(dtype, copy=True)

    def rows(self, name: str, rows: Tensor) -> Tensor:
        """Float32 copy of some rows of a matrix: `rows [...]` -> `[..., columns]`."""
        stored = self.tensors[name]
        with _mapped(stored.path, [stored.key]) as values:
            return values[stored.key][rows].float()

    def chunks(self, name: str) -> Iterator[bytes]:
        """The bytes of a tensor as a safetensors file has them, some rows at a time."""
        for part in self._parts(name):
            yield part.contiguous().view(torch.uint8).numpy().tobytes()

    def require_finite(self) -> None:
        """Refuse weights that hold NaN or infinity: a `CheckpointError` names the first tensor. Reads all of them."""
        for name, stored in self.tensors.items():
            for part in self._parts(name):
                if not torch.isfinite(torch.stack(torch.aminmax(part))).all():
                    raise CheckpointError(
                        "{path}: {key} holds NaN or infinite values. Copy the file again, or get the checkpoint from its "
                        "publisher.",
                        path=stored.path,
                        key=stored.key,
                    )

    def _parts(self, name: str) -> Iterator[Tensor]:
        """A tensor as it is stored, some rows at a time."""
        stored = self.tensors[name]
        step = max(1, CHUNK_BYTES * stored.shape[0] // max(stored.nbytes, 1))
        for start in range(0, stored.shape[0], step):
            with _mapped(stored.path, [stored.key]) as values:
                yield values[stored.key][start : start + step]

    def _stored(self) -> Iterator[tuple[str, StoredTensor]]:
        for path in weight_files(self.folder):
            with _mapped(path) as values:
                for key, value in values.items():
                    yield (
                        self.config.layout.module_name(key),
                        StoredTensor(path, key, value.dtype, value.shape),
                    )

    def _check(self) -> None:
        """Refuse a folder whose tensors are not those of its configuration."""
        with torch.device("meta"):
            shapes = {name: p.shape for name, p in network_of(self.config)(self.config).named_parameters()}
        if self.config.tie_word_embeddings:
            shapes.pop(HEAD, None)
        if missing := sorted(shapes.keys() - self.tensors.keys()):
            raise CheckpointError(
                "{folder}: {count} tensors are missing, the first is {missing}. Copy it again.",
                folder=self.folder,
                count=len(missing),
                missing=missing[0],
            )
        for name, stored in self.tensors.items():
            if shapes.get(name) != stored.shape:
                expected = (
                    f"expected {tuple(shapes[name])}" if name in shapes else "the network has none such"
                )
                raise CheckpointError(
                    "{path}: {key} has shape {shape}, {expected}; config.json and weights do not belong together.",
                    path=stored.path,
                    key=stored.key,
                    shape=tuple(stored.shape),
                    expected=expected,
                )


@contextlib.contextmanager
def _mapped(path: Path, keys: Iterable[str] | None = None) -> Iterator[Mapping[str, Tensor]]:
    """The tensors of one shard, at least those of `keys`, mapped and not read, while the context lasts."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                yield {key: file.get_tensor(key) for key in (file.keys() if keys is None else keys)}
        else:
            yield read_bin(path, mmap=True)
    except (SafetensorError, RuntimeError, OSError, EOFError, KeyError) as error:
        raise CheckpointError(
            "{path}: the weights cannot be read ({error}). Copy the file again.", path=path, error=error
        ) from error
