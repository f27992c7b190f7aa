"""telechat-kit: TeleChat W8A8 inference, measured and written down."""

from telechat_kit.model import load_model, load_tokenizer, register

__all__ = ["load_model", "load_tokenizer"]
__version__ = "0.1.0"

register()
