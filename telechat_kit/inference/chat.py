"""A question in, an answer out: the chat format of the model around the greedy run of `generation`."""

from collections.abc import Callable

from transformers import PreTrainedTokenizerBase

from telechat_kit.inference import generation
from telechat_kit.model.network import TelechatForCausalLM
from telechat_kit.token_samples import chat_ids


def generate(
    model: TelechatForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    question: str,
    max_new_tokens: int = 64,
    *,
    repetition_penalty: float = 1.0,
    on_text: Callable[[str], None] | None = None,
) -> str:
    """The greedy answer of `model` to `question`, asked in the model's chat format.

    Args:
        model, tokenizer: of one folder, from `load_model` and `load_tokenizer`.
        max_new_tokens: the answer ends here, or earlier with a stop id of the model.
        repetition_penalty: above 1 makes repeated tokens less likely.
        on_text: gets every piece of the answer as soon as it is there; all pieces together are the answer.

    Raises:
        DataError: tokenizer and weights do not belong together, or `max_new_tokens` is smaller than 1.
        DeviceError: the device ran out of memory.

    Example:
        >>> pieces = []
        >>> answer = generate(model, tokenizer, "What is 1 + 1?", 8, on_text=pieces.append)
        >>> answer == "".join(pieces)
        True
    """
    ids: list[int] = []
    told = ""

    def answer() -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=True)).strip()

    def tell(token: int) -> None:
        nonlocal told
        ids.append(token)
        text = answer()
        # a character may take several tokens: until the last one it reads as a replacement character
        if on_text and len(text) > len(told) and not text.endswith("\N{REPLACEMENT CHARACTER}"):
            on_text(text[len(told) :])
            told = text

    generation.generate(
        model,
        chat_ids(tokenizer, question),
        max_new_tokens,
        repetition_penalty=repetition_penalty,
        stop_ids=generation.stop_ids(model),
        on_token=tell,
    )
    text = answer()
    if on_text and len(text) > len(told):
        on_text(text[len(told) :])
    return text
