"""Which of the family's networks a `config.json` describes: told by its keys, for the class names changed their meaning.

`TeleChatForCausalLM` has been put on TeleChat2 and on 52B, `TelechatForCausalLM` on 7B, 12B and TeleChat2-115B. What
the kit has no network for is refused by name.
"""

from collections.abc import Mapping
from typing import Any

from telechat_kit.messages import Message, marked

#: Keys of TeleChat-52B, which is built like GPT-2
_KEYS_OF_52B = ("n_embd", "use_mup")
#: Keys of the unpublished small TeleChat3, whose embedding is narrower than the network and whose layers share weights
_KEYS_OF_SMALL_3 = ("embedding_size", "num_hidden_layer_groups")
#: Numbers of TeleChat3's `rope_scaling`, those it must have and others that have a meaning
_YARN_NEEDED = ("factor", "original_max_position_embeddings")
_YARN_MORE = ("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim")
#: Keys by which configs of mixtures of experts are known
_EXPERTS = ("num_experts", "n_routed_experts", "num_local_experts", "moe_config", "expert_num")

_MIXTURE = marked("it is a mixture of experts, and the kit quantizes and runs dense models only")
_REFUSED_TYPES = {
    "deepseek_v3": Message(
        "TeleChat3-105B-A4.7B and other models of DeepSeek-V3's form cannot be read: {mixture}",
        mixture=_MIXTURE,
    ),
    "xing4_0": Message("Xing4.0 (TeleChat4) cannot be read: {mixture}", mixture=_MIXTURE),
}


def refusal(values: Mapping[str, Any]) -> str | None:
    """Why the kit cannot read the model of a config, in one sentence; None where it may."""
    name = str(values.get("model_type", ""))
    if name in _REFUSED_TYPES:
        return _REFUSED_TYPES[name]
    if name in ("telechat", "telechat3") and any(values.get(key) for key in _EXPERTS):
        model = "TeleChat2-39B-A12B" if name == "telechat" else marked("TeleChat3 with experts")
        return Message("{model} cannot be read: {mixture}", model=model, mixture=_MIXTURE)
    if name == "telechat3" and (found := [key for key in _KEYS_OF_SMALL_3 if key in values]):
        return Message(
            "TeleChat3 of the unpublished 1.8B form ({found}) cannot be read: its layers share weights and "
            "its embedding is narrower than the network, which no published checkpoint has",
            found=found[0],
        )
    if name == "telechat" and _is_52b(values) and values.get("num_key_value_heads") is None:
        return marked(
            "TeleChat-52B cannot be read: its network is GPT-2's, with other weights, norms and rotary base"
        )
    return None


def _is_52b(values: Mapping[str, Any]) -> bool:
    return all(key in values for key in _KEYS_OF_52B)


def is_telechat2(values: Mapping[str, Any]) -> bool:
    """Whether a config of model type "telechat" is TeleChat2's form; else it is that of 7B and 12B.

    Raises:
        ValueError: the config is of another form, fits two, or lacks the key that decides.
    """
    if (reason := refusal({"model_type": "telechat", **values})) is not None:
        raise ValueError(reason)
    if _is_52b(values):
        raise ValueError(
            marked(
                "the config fits two forms: n_embd and use_mup are TeleChat-52B's, num_key_value_heads is TeleChat2's"
            )
        )
    names = _names(values)
    named = "telechat2" in names.lower()
    if not named and values.get("num_key_value_heads") is None:
        if "TeleChatForCausalLM" in names:
            raise ValueError(
                marked(
                    "TeleChatForCausalLM is the class of TeleChat2 and of TeleChat-52B, and num_key_value_heads, which every "
                    "TeleChat2 has, is missing"
                )
            )
        return False
    if values.get("base_seqlen") is None:
        raise ValueError(marked("base_seqlen is missing: the rotary base of TeleChat2 follows from it"))
    return True


def _names(values: Mapping[str, Any]) -> str:
    """The class names that a config gives, and those of its remote code."""
    remote = values.get("auto_map") or {}
    return " ".join([*(values.get("architectures") or []), *map(str, remote.values())])


def check_yarn(scaling: Mapping[str, Any] | None) -> dict[str, Any]:
    """`rope_scaling` of a TeleChat3.

    Raises:
        ValueError: it is missing or of another kind, or a field is missing or no number above 0.
    """
    if scaling is None:
        raise ValueError(marked("rope_scaling is missing: TeleChat3's rotary tables follow from it"))
    kind = scaling.get("rope_type") or scaling.get("type")
    if kind != "telechat3-yarn":
        raise ValueError(
            Message('rope_scaling is of type "{kind}", TeleChat3 has "telechat3-yarn"', kind=kind)
        )
    if missing := [key for key in _YARN_NEEDED if scaling.get(key) is None]:
        raise ValueError(Message("rope_scaling lacks {missing}", missing=missing[0]))
    for key, value in scaling.items():
        if key not in (*_YARN_NEEDED, *_YARN_MORE) or (key in _YARN_MORE and not value):
            continue  # where these are 0 they are as if not given
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise ValueError(
                Message("rope_scaling.{key} is {value}, it must be a number above 0", key=key, value=value)
            )
    return dict(scaling)
