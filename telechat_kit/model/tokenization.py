"""TeleChat's tokenizers and chat format; the ids are those of the published code, no remote code is run.

Registration with `AutoTokenizer` is here, that of the configuration and the network in `telechat_kit.model`.
"""

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from transformers import (
    AddedToken,
    AutoTokenizer,
    BatchEncoding,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    SentencePieceBackend,
    TokenizersBackend,
)
from transformers.models.auto import tokenization_auto
from transformers.utils import cached_file

from telechat_kit.errors import CheckpointError
from telechat_kit.files import absolute
from telechat_kit.messages import Message as Text
from telechat_kit.model.config_files import read_object, require_config
from telechat_kit.model.tokenizer_files import guarded

USER, BOT, END = "<_user>", "<_bot>", "<_end>"
SYSTEM, THINK = "<_system>", "<think>"
BOT_ROLES = ("assistant", "bot")  # "bot" is the name in the published history

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'user' -%}"
    f"{{{{ '{USER}' + (message['content'] or '') }}}}"
    f"{{%- elif message['role'] in {BOT_ROLES} -%}}"
    f"{{{{ '{BOT}' + (message['content'] or '') + '{END}' }}}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    f"{{%- if add_generation_prompt -%}}{{{{ '{BOT}' }}}}{{%- endif -%}}"
)

#: What TeleChat2 is told where a chat has no system message (facts of the published template of 3B, 7B and 35B)
DEFAULT_SYSTEM = "你是中国电信星辰语义大模型，英文名是TeleChat，你是由中电信人工智能科技有限公司和中国电信人工智能研究院（TeleAI）研发的人工智能助手。"

_SYSTEM_FIRST = "{%- set given = messages | selectattr('role', 'equalto', 'system') | map(attribute='content') | join('\\n') -%}"

#: TeleChat2 (`<_system>` is a control piece): a system text always leads
TELECHAT2_TEMPLATE = (
    _SYSTEM_FIRST + f"{{{{ '{SYSTEM}' + (given or '{DEFAULT_SYSTEM}') + '\\n' }}}}"
) + CHAT_TEMPLATE

#: TeleChat3-36B (its pieces have `<think>` besides): old thinking is dropped, an answer begins with new one
TELECHAT3_TEMPLATE = (
    _SYSTEM_FIRST + f"{{{{ '{SYSTEM}' }}}}{{%- if given -%}}{{{{ given + '\\n' }}}}{{%- endif -%}}"
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'user' -%}"
    f"{{{{ '{USER}' + (message['content'] or '') }}}}"
    f"{{%- elif message['role'] in {BOT_ROLES} -%}}"
    f"{{{{ '{BOT}' + (message['content'] or '').split('</think>')[-1].lstrip('\\n') + '{END}\\n' }}}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    f"{{%- if add_generation_prompt -%}}{{{{ '{BOT}{THINK}\\n' }}}}{{%- endif -%}}"
)

Message = Mapping[str, Any]


class PublishedChat(PreTrainedTokenizerBase):
    """Chat ids as the published code puts them together, for both kinds of tokenizer; padding on the left.

    A prompt is [user] ids [bot], after turns [user] ids and [bot] ids [end]; each content is encoded alone
    and other roles are dropped. Encoding the rendered template instead would be wrong for SentencePiece: its
    dummy prefix would stand before the first token and be missing in the contents.
    """

    chat_template: str | dict[str, str] | None
    padding_side = "left"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # names a module of the published folder, which a folder saved from here does not hold
        kwargs.pop("auto_map", None)
        super().__init__(*args, **kwargs)
        if self.chat_template is None and all(map(self._holds, (USER, BOT, END))):
            self.chat_template = self._published_template()

    def _published_template(self) -> str:
        return CHAT_TEMPLATE

    def apply_chat_template(
        self,
        conversation: Sequence[Message] | Sequence[Sequence[Message]],
        *,
        chat_template: str | None = None,
        tokenize: bool = True,
        **options: Any,
    ) -> str | list[str] | list[int] | list[list[int]] | BatchEncoding:
        """Text or ids of one chat or of a batch; arguments and results are those of transformers.

        Only the ids of `CHAT_TEMPLATE` are put together here. Its text, and all of any other template, come
        from transformers.
        """
        template = self.get_chat_template(chat_template, options.get("tools"))
        if tokenize and template == CHAT_TEMPLATE:
            return self._encode_chats(conversation, **options)
        return super().apply_chat_template(
            conversation, chat_template=chat_template, tokenize=tokenize, **options
        )

    def _encode_chats(
        self,
        conversation: Sequence[Any],
        *,
        add_generation_prompt: bool = False,
        continue_final_message: bool | str = False,
        padding: bool | str = False,
        truncation: bool = False,
        max_length: int | None = None,
        return_tensors: str | None = None,
        return_dict: bool = True,
        tokenizer_kwargs: dict[str, Any] | None = None,
        **template_options: Any,
    ) -> list[int] | list[list[int]] | BatchEncoding:
        """Ids and attention mask of the chats, padded and as tensors if asked for.

        The template has no use for `template_options`, such as tools and documents.
        """
        self._refuse(conversation, add_generation_prompt and continue_final_message, template_options)
        batched = not isinstance(conversation[0], Mapping)
        chats = conversation if batched else [conversation]
        ids = [self._chat_ids(chat, add_generation_prompt, bool(continue_final_message)) for chat in chats]
        if truncation:
            ids = [self._truncate(each, max_length or self.model_max_length) for each in ids]
        encoded = self.pad(
            {"input_ids": ids},
            padding=padding,
            max_length=max_length,
            return_tensors=return_tensors,
            **(tokenizer_kwargs or {}),
        )
        if not batched and not return_tensors:
            encoded = BatchEncoding({key: rows[0] for key, rows in encoded.items()})
        return encoded if return_dict else encoded["input_ids"]

    def _chat_ids(self, chat: Sequence[Message], prompted: bool, continued: bool) -> list[int]:
        """Ids of one chat; `continued` leaves the last bot turn open, `prompted` begins a new one."""
        ids = [token for message in chat for token in self._turn_ids(message)]
        if continued and chat[-1]["role"] in BOT_ROLES:
            ids.pop()
        return [*ids, self.convert_tokens_to_ids(BOT)] if prompted else ids

    def _turn_ids(self, message: Message) -> list[int]:
        """Ids of one message with its marks; none for a role other than user and bot."""
        user, bot, end = self.convert_tokens_to_ids([USER, BOT, END])
        content = message.get("content") or ""
        if message["role"] == "user":
            return [user, *self.encode(content, add_special_tokens=False)]
        if message["role"] in BOT_ROLES:
            return [bot, *self.encode(content, add_special_tokens=False), end]
        return []

    def _truncate(self, ids: list[int], length: int) -> list[int]:
        """The `length` ids that remain when the surplus is cut on `truncation_side`."""
        return ids[max(0, len(ids) - length) :] if self.truncation_side == "left" else ids[:length]

    def _holds(self, token: str) -> bool:
        """Whether `token` is one id of the vocabulary."""
        index = self.convert_tokens_to_ids(token)
        return index is not None and self.convert_ids_to_tokens(index) == token

    @staticmethod
    def _refuse(conversation: Sequence[Any], contradictory: bool | str, options: Mapping[str, Any]) -> None:
        if len(conversation) == 0:
            raise ValueError("The conversation is empty. Give at least one message.")
        if contradictory:
            raise ValueError("add_generation_prompt and continue_final_message exclude each other. Give one.")
        for name in ("return_assistant_tokens_mask", "sanitize_control_tokens"):
            if options.get(name):
                raise ValueError(
                    Text(
                        "TeleChat's chat format has no {name}. Leave it out or give a chat_template.",
                        name=name,
                    )
                )


class TelechatTokenizer(PublishedChat, SentencePieceBackend):
    """SentencePiece tokenizer of TeleChat 12B, 12B-V2, TeleChat2 and TeleChat3 (`tokenizer.model`).

    A plain call adds no bos and no eos, as the published tokenizer_config.json wants it. Special tokens
    keep their `single_word` flag: `<_end>` and `<_pad>` inside a text count as tokens only between spaces.

    The 131072 pieces of TeleChat2 and TeleChat3 hold their marks as control pieces, which SentencePiece never finds in a
    text: texts are split on them first, and each part between gets a dummy prefix of its own. Those of thinking and
    tools are no special tokens here, so that `skip_special_tokens` leaves the thinking apart from the answer.
    """

    def __init__(
        self,
        vocab_file: str,
        bos_token: str | AddedToken = "<_start>",
        eos_token: str | AddedToken = END,
        pad_token: str | AddedToken = "<_pad>",
        unk_token: str | AddedToken = "<_unk>",
        **kwargs: Any,
    ) -> None:
        named = {
            "bos_token": bos_token,
            "eos_token": eos_token,
            "pad_token": pad_token,
            "unk_token": unk_token,
        }
        super().__init__(vocab_file=vocab_file, **named, **kwargs)
        # the base class re-creates them from their text alone and so loses single_word
        self.added_tokens_decoder = {
            self.convert_tokens_to_ids(token.content): token
            for token in named.values()
            if isinstance(token, AddedToken)
        }
        self.add_tokens(
            [token for token in self._control_pieces() if token.content not in self.added_tokens_encoder]
        )

    def _control_pieces(self) -> list[AddedToken]:
        pieces = self.sp_model
        texts = [pieces.IdToPiece(number) for number in range(len(pieces)) if pieces.IsControl(number)]
        return [AddedToken(text, special=text.startswith("<_"), normalized=False) for text in texts]

    def _published_template(self) -> str:
        if not self._is_control(SYSTEM):  # 12B has the piece, but user-defined and without use
            return CHAT_TEMPLATE
        return TELECHAT3_TEMPLATE if self._is_control(THINK) else TELECHAT2_TEMPLATE

    def _is_control(self, piece: str) -> bool:
        number = self.sp_model.PieceToId(piece)
        return bool(self.sp_model.IsControl(number)) and self.sp_model.IdToPiece(number) == piece

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, *args: Any, **kwargs: Any
    ) -> PreTrainedTokenizerBase:
        """Tokenizer of a folder: of this class for a `tokenizer.model`, else a `TelechatTokenizerFast`.

        AutoTokenizer knows one class per model type, so the choice falls here.
        """
        if _has_file(pretrained_model_name_or_path, cls.vocab_files_names["vocab_file"], kwargs):
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        return TelechatTokenizerFast.from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Text of `tokens`: special and added ones as they stand, each run between them decoded by itself.

        A run that a special token follows gets a space in front, as in the published decoding.
        """
        special, added = set(self.all_special_tokens), self.added_tokens_encoder
        runs = [
            (mark, list(run)) for mark, run in groupby(tokens, lambda each: each in special or each in added)
        ]
        texts = ["".join(run) if mark else self.sp_model.decode(run) for mark, run in runs]
        for index in range(len(runs) - 1):
            if not runs[index][0] and runs[index + 1][1][0] in special:
                texts[index] = " " + texts[index]
        return "".join(texts)


class TelechatTokenizerFast(PublishedChat, TokenizersBackend):
    """Tokenizer of TeleChat-7B, and of any folder of the model type that brings a `tokenizer.json`.

    Template, special tokens and padding that the folder gives are kept. There is no `__init__`: with one,
    transformers would rebuild the tokenizer from the vocabulary instead of reading the file.
    """


def register_tokenizers(config_class: type[PreTrainedConfig]) -> None:
    """Make `AutoTokenizer` load folders of `config_class`'s model type without remote code; repeatable."""
    AutoTokenizer.register(config_class, TelechatTokenizer, exist_ok=True)
    _registered_model_types.add(config_class.model_type)
    tokenization_auto.get_tokenizer_config = _read_with_class_of_model_type


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """Tokenizer of a model folder: official, quantized or demo; a relative path is relative to the current folder.

    Raises:
        CheckpointError: the folder, its config.json or its tokenizer file is not there or damaged, or the tokenizer
            has ids that the model has not.

    Example:
        >>> tokenizer = load_tokenizer("models/tiny-w8a8")
        >>> len(tokenizer)
        262
    """
    folder = absolute(folder)
    if not folder.is_dir():
        raise CheckpointError(
            "{folder} is not a folder. Correct the path, or put the checkpoint there.", folder=folder
        )
    for names in (("config.json",), ("tokenizer.model", "tokenizer.json")):
        if not any((folder / name).is_file() for name in names):
            missing = " or ".join(names)
            raise CheckpointError(
                "{folder} holds no {missing}. Copy it there from the published checkpoint.",
                folder=folder,
                missing=missing,
            )
    config = read_object(folder / "config.json")
    require_config(folder / "config.json", config)
    tokenizer = guarded(folder, lambda: AutoTokenizer.from_pretrained(folder, local_files_only=True))
    largest, size = max(tokenizer.get_vocab().values(), default=0), config.get("vocab_size", 160256)
    if largest >= size:
        raise CheckpointError(
            "{folder}: its tokenizer has the id {largest}, the model {size} ids. Copy the tokenizer that "
            "belongs to the weights.",
            folder=folder,
            largest=largest,
            size=size,
        )
    return tokenizer


_read_tokenizer_config = tokenization_auto.get_tokenizer_config
_registered_model_types: set[str] = set()


def _read_with_class_of_model_type(
    pretrained_model_name_or_path: str | Path, **options: Any
) -> dict[str, Any]:
    """tokenizer_config.json; for a registered model type it names `TelechatTokenizer` and no remote code.

    transformers follows the class that the file names. 7B folders name Bloom's, demo folders a generic one;
    both would come out as `TokenizersBackend`, without the chat format, whatever is registered.
    """
    found = _read_tokenizer_config(pretrained_model_name_or_path, **options)
    if _model_type(pretrained_model_name_or_path, options) in _registered_model_types:
        found.pop("auto_map", None)
        found["tokenizer_class"] = TelechatTokenizer.__name__
    return found


def _model_type(name_or_path: str | Path, options: Mapping[str, Any]) -> str | None:
    """Model type in config.json, which AutoTokenizer has read before: no second request goes to the hub."""
    try:
        config, _ = PreTrainedConfig.get_config_dict(name_or_path, **{**options, "local_files_only": True})
    except OSError:
        return None
    return config.get("model_type")


def _has_file(name_or_path: str | Path, file: str, options: Mapping[str, Any]) -> bool:
    """Whether a local folder or a repository of the hub holds `file`."""
    known = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
    try:
        cached_file(name_or_path, file, **{key: options[key] for key in known if key in options})
    except OSError:
        return False
    return True
