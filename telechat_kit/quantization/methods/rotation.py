"""The float checkpoint turned, without a change of what it computes, so that no channel stands out.

R1 turns the residual stream: what writes to it (embedding, dense, down_proj) and what reads from it (query,
key_value, gate_proj, up_proj, head). Norm weights stand between, so they are folded into the readers first; a tied
head can then be tied no longer. R2 turns the values of each head against the columns of dense. Both cost nothing at
run time. R4 turns the input of down_proj, where no weight stands before it: the network does it as it runs.

Channels of values, and of down_proj's input before R4, are brought to one size first, so that it does not matter how a
checkpoint shares a channel's size between the two linears. Names and order follow SpinQuant (Liu et al., 2024) and QuaRot (Ashkboos et al., 2024).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from telechat_kit.backends.hadamard import Rotation, plain_rotation, random_rotation
from telechat_kit.errors import CheckpointError, ParameterError
from telechat_kit.model.configuration import Telechat3Config, TelechatConfig
from telechat_kit.model.layout import HEAD
from telechat_kit.model.weight_shards import Shards
from telechat_kit.quantization.blocks import Block


def why_not_r1(config: TelechatConfig) -> str | None:
    """Why the residual stream of this network cannot be turned; None if it can."""
    if config.embed_layernorm:
        return "a norm stands between the embedding and the residual stream, and its weight has no reader to go to"
    if config.apply_residual_connection_post_layernorm:
        return "the residual stream passes through the norms, whose weights would have to stay where they are"
    return None


def open_shards(folder: Path, ingredients: Sequence[str], seed: int) -> Shards:
    """The float checkpoint on the axes of a W8A8 one that was made with these `ingredients` of method best."""
    if "rotation" not in ingredients:
        return Shards(folder)
    return RotatedShards(folder, seed)


class RotatedShards(Shards):
    """A float checkpoint as `Shards` has it, turned by R1 and R2 when it is read.

    Every tensor keeps its dtype. The head is the checkpoint's own or, where it was tied, a turned copy of the
    embedding: `untied_bytes` more.

    Raises:
        ParameterError: this network cannot be turned; `why_not_r1` says why.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        super().__init__(folder)
        if reason := why_not_r1(self.config):
            raise ParameterError(
                "{folder} cannot be rotated: {reason}. Leave the ingredient rotation out.",
                folder=folder,
                reason=reason,
            )
        if biased := [name for name in self.tensors if name.endswith(("norm.bias", "ln_f.bias"))]:
            raise ParameterError(
                "{folder} cannot be rotated: {biased} shifts channels. Leave rotation out.",
                folder=folder,
                biased=biased[0],
            )
        self.layout = self.config.layout
        self.stream = random_rotation(self.config.hidden_size, seed)
        self.values = random_rotation(self.config.head_dim, seed + 1)
        self.untied_bytes = self._untie() if self.config.tie_word_embeddings else 0

    def _untie(self) -> int:
        """Give the network a head of its own; the bytes it takes. What a tied head said of the rotary base stays."""
        if not isinstance(self.config, Telechat3Config):
            self._change(base_seqlen=self.config.ntk_base_context)
        self._change(tie_word_embeddings=False)
        self.tensors[HEAD] = replace(self.tensors[self.layout.embedding])
        return self.tensors[HEAD].nbytes

    def _change(self, **values: object) -> None:
        for key, value in values.items():
            setattr(self.config, key, value)
        self.config_changes |= values

    def read(self, names: Iterable[str], device: torch.device) -> dict[str, Tensor]:
        """Float32 copies of the named tensors on `device`, turned."""
        found = super().read(names, device)
        return {name: self._turned(name, value) for name, value in found.items()}

    def rows(self, name: str, rows: Tensor) -> Tensor:
        """Float32 copy of some rows of a matrix that no rows are mixed of: `rows [...]` -> `[..., columns]`."""
        if name not in (self.layout.embedding, HEAD):
            raise CheckpointError("{name} is not turned row by row.", name=name)
        return self._outer(name, super().rows(name, rows))

    def part(self, name: str, cut: Callable[[Tensor], Tensor], dtype: torch.dtype) -> Tensor:
        """`cut` of a tensor, which may take rows of an embedding, and is given the whole of others."""
        if name in (self.layout.embedding, HEAD):
            return self._outer(name, super().part(name, cut, torch.float32)).to(dtype)
        return cut(self.read([name], torch.device("cpu"))[name]).to(dtype)

    def _parts(self, name: str) -> Iterator[Tensor]:
        stored = self.tensors[name]
        if name in (self.layout.embedding, HEAD):
            for part in super()._parts(name):
                yield self._outer(name, part.float()).to(stored.dtype)
        else:
            yield self.read([name], torch.device("cpu"))[name].to(stored.dtype)

    def _outer(self, name: str, rows: Tensor) -> Tensor:
        """Rows of the embedding or of the head, turned."""
        wide = rows.double()
        if name == HEAD:
            wide = wide * self._plain(self.layout.final_norm, rows.device)
        return self.stream.rows(wide).float()

    def _turned(self, name: str, value: Tensor) -> Tensor:
        if name in (self.layout.embedding, HEAD):
            return self._outer(name, value)
        module, _, part = name.rpartition(".")
        if module.endswith(("norm", "ln_f")):
            return torch.ones_like(value)
        wide = value.double()
        block, local = ".".join(name.split(".")[:3]), ".".join(name.split(".")[3:-1])
        if part == "bias":
            return self.stream.rows(wide).float()
        for norm, readers in zip(self.layout.norms, self.layout.shared_inputs, strict=True):
            if local in readers:
                wide = self.stream.rows(wide * self._plain(f"{block}.{norm}.weight", value.device))
        if local == self.layout.value:
            rows = self._value_sizes(block, value.device).reciprocal()
            wide = turn_values(wide, rows, self.values, self._parts_per_head)
        return self._writer(block, local, wide).float()

    def _writer(self, block: str, local: str, weight: Tensor) -> Tensor:
        """`weight` of a linear that adds to the stream, its columns and rows turned; any other as it is."""
        if local == self.layout.dense:
            sizes = self._value_sizes(block, weight.device).view(-1, self.config.head_dim)
            columns = sizes.repeat_interleave(weight.shape[1] // sizes.numel(), dim=0).flatten()
            return self.stream.columns(turn_head_columns(weight * columns, self.values))
        if local == self.layout.down:
            return self.stream.columns(weight)
        return weight

    def _value_sizes(self, block: str, device: torch.device) -> Tensor:
        """Size `[heads * d]` of each value channel: turned channels are to be alike before, whoever scaled them."""
        weight = self._plain(f"{block}.{self.layout.value}.weight", device)
        norm = self._plain(f"{block}.{self.layout.norms[0]}.weight", device)
        values = (weight * norm).view(-1, self._parts_per_head, self.config.head_dim, weight.shape[1])[:, -1]
        return _nonzero(values.norm(dim=-1).flatten())

    @property
    def _parts_per_head(self) -> int:
        """Of the linear that gives the values: a key and a value for each head, or the value alone."""
        return 2 if self.layout.key == self.layout.value else 1

    def _plain(self, name: str, device: torch.device) -> Tensor:
        """A tensor as the checkpoint has it, float64."""
        return super().read([name], device)[name].double()


def _nonzero(sizes: Tensor) -> Tensor:
    return torch.where(sizes > 0, sizes, torch.ones_like(sizes))


def turn_products(block: Block) -> Rotation:
    """Let down_proj of `block` read its input turned (R4), in place, and say by what; the block computes the same."""
    mlp = block.module.mlp
    mlp.rotation = rotation = plain_rotation(mlp.down_proj.weight.shape[1])
    mlp.down_proj.weight.data = rotation.rows(mlp.down_proj.weight.data.double()).float()
    return rotation


def turn_values(weight: Tensor, scale: Tensor, rotation: Rotation, parts: int) -> Tensor:
    """`weight [heads * parts * d, H]`, the last part of each head its values: scaled by `scale [heads * d]`, turned."""
    per_head = weight.view(-1, parts, rotation.size, weight.shape[1]).clone()
    values = per_head[:, -1] * scale.view(-1, rotation.size, 1)
    per_head[:, -1] = rotation.columns(values.transpose(0, 1)).transpose(0, 1)
    return per_head.view_as(weight)


def turn_head_columns(dense: Tensor, rotation: Rotation) -> Tensor:
    """`dense [H, heads * d]`, the columns of each head turned to read turned values."""
    return rotation.rows(dense.reshape(dense.shape[0], -1, rotation.size)).reshape(dense.shape)
