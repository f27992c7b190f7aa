"""telechat-kit: TeleChat W8A8 inference, measured and written down."""

import os
import warnings

# torch would import an installed torch_npu by itself and fail as a whole if CANN is missing
os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
# transformers asks tqdm for notebook widgets; the kit's bars are text, which also reads well in a log and a page
warnings.filterwarnings("ignore", message="IProgress not found")

from telechat_kit.backends.npu.torch_npu_guard import guard_torch_npu  # noqa: E402

guard_torch_npu()

from telechat_kit.inference.loading import load_model  # noqa: E402
from telechat_kit.model import load_tokenizer, register  # noqa: E402

__all__ = ["load_model", "load_tokenizer"]
__version__ = "0.1.0"

register()
