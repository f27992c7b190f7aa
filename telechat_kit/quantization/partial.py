"""The work folder of a quantization under way: what is finished, block by block, so that it can be resumed.

The folder `.NAME.partial` stands beside the target NAME and holds, for each pass, one file a block
and the hidden states after the last finished block. A file is there whole or not at all.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from telechat_kit.files import LOCK, OWNER, atomic_path, write_text, writing
from telechat_kit.quantization.tensor_file import file_metadata


@dataclass(frozen=True)
class Pass:
    """One way through the blocks: a file of tensors and details for each of them, in the order of the network."""

    folder: Path
    name: str

    @property
    def finished(self) -> int:
        """Number of blocks that need not be done again."""
        index = 0
        while self.path(index).is_file():
            index += 1
        return index

    def path(self, index: int) -> Path:
        return self.folder / f"{self.name}-{index:03d}.safetensors"

    def write(
        self, index: int, tensors: Mapping[str, Tensor], details: Any, states: Sequence[Tensor]
    ) -> None:
        """Keep what came of block `index`, and the hidden `states` after it in place of earlier ones.

        The states come first: a block counts as finished when the next one can begin.
        """
        _save(self._states(index), {str(i): state for i, state in enumerate(states)}, None)
        self.keep(index, tensors, details)
        for path in self.folder.glob(f"{self.name}-states-*"):
            if path != self._states(index):
                path.unlink()

    def keep(self, index: int, tensors: Mapping[str, Tensor], details: Any) -> None:
        """Keep what came of block `index`, whose states stand elsewhere or are there already."""
        _save(self.path(index), tensors, details)

    def tensors(self, index: int) -> dict[str, Tensor]:
        """Tensors of block `index`, as written."""
        return load_file(self.path(index))

    def details(self, index: int) -> Any:
        """Details of block `index`, as written."""
        return json.loads(file_metadata(self.path(index))["details"])

    def states(self, index: int) -> list[Tensor]:
        """Hidden states after block `index`, the last one finished.

        They are copies, aligned as computed ones are: the address of a mapped tensor can change its products.
        """
        states = load_file(self._states(index))
        return [states[str(i)].clone() for i in range(len(states))]

    def _states(self, index: int) -> Path:
        return self.folder / f"{self.name}-states-{index:03d}.safetensors"


def partial_folder(target: Path) -> Path:
    """Where the unfinished work on `target` lies."""
    return target.with_name(f".{target.name}.partial")


def open_partial(folder: Path, key: str) -> None:
    """Make `folder`, locked by this process, ready for the work of `key`; what is left of other work is removed."""
    path = folder / "key"
    if path.is_file() and path.read_bytes() == key.encode():
        return
    with writing(folder):
        for left in folder.iterdir():
            if left.is_dir():
                shutil.rmtree(left)
            elif left.name not in (LOCK, OWNER):
                left.unlink()
    write_text(path, key)


def _save(path: Path, tensors: Mapping[str, Tensor], details: Any) -> None:
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(plain, temporary, metadata={"details": json.dumps(details)})
