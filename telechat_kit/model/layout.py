"""What the checkpoints of the family call their modules: TeleChat's own names, and Llama's, which TeleChat3 took."""

from dataclasses import dataclass

#: Head of every model; it stands outside the prefix
HEAD = "lm_head.weight"


@dataclass(frozen=True)
class Layout:
    """Names of the modules. Those from `query` on stand inside a block; what both layouts share is no field."""

    prefix: str
    blocks: str
    embedding: str
    embedding_norm: str
    final_norm: str
    query: str
    #: the linears that keys and values come from: two, or one for both, head after head a key and then a value
    key: str
    value: str
    dense: str

    #: The norms of a block, in the order of `shared_inputs`, and the linears of the feed-forward
    norms = ("input_layernorm", "post_attention_layernorm")
    gate, up, down = "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"

    @property
    def shared_inputs(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Linears of a block that read the same tensor; loaders fuse them and refuse mixed ones."""
        return tuple(dict.fromkeys((self.query, self.key, self.value))), (self.gate, self.up)

    @property
    def exits(self) -> tuple[str, str]:
        """The linears of a block that add to the residual stream."""
        return self.dense, self.down

    def module_name(self, stored: str) -> str:
        """Name in the network of a stored module or tensor: the 7B checkpoints leave out the prefix."""
        return stored if stored == HEAD or stored.startswith(self.prefix) else self.prefix + stored

    def block(self, index: int) -> str:
        """What names of the block number `index` begin with."""
        return f"{self.blocks}.{index}."


TELECHAT = Layout(
    prefix="transformer.",
    blocks="transformer.h",
    embedding="transformer.word_embeddings.weight",
    embedding_norm="transformer.word_embeddings_layernorm.weight",
    final_norm="transformer.ln_f.weight",
    query="self_attention.query",
    key="self_attention.key_value",
    value="self_attention.key_value",
    dense="self_attention.dense",
)
LLAMA = Layout(
    prefix="model.",
    blocks="model.layers",
    embedding="model.embed_tokens.weight",
    embedding_norm="",
    final_norm="model.norm.weight",
    query="self_attn.q_proj",
    key="self_attn.k_proj",
    value="self_attn.v_proj",
    dense="self_attn.o_proj",
)
LAYOUTS = (TELECHAT, LLAMA)

#: Groups of linears of one block that read the same tensor, and the linears that add to the stream, in both layouts
SHARED_INPUTS = tuple(dict.fromkeys(group for layout in LAYOUTS for group in layout.shared_inputs))
EXITS = tuple(dict.fromkeys(name for layout in LAYOUTS for name in layout.exits))


def group_of(name: str) -> tuple[str, tuple[str, ...]] | None:
    """What the `name` of a linear begins with, and the names behind it of all that read the same input.

    None for a linear that reads its input alone.
    """
    for group in SHARED_INPUTS:
        for member in group:
            if name.endswith(member):
                return name.removesuffix(member), group
    return None
