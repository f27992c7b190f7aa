"""The engines that `peers.py` compares, one class each: greedy decode of given ids, timed from inside the process.

Each engine runs in a process of its own that answers a `Request` on stdin with a `Reply` on stdout, as JSON lines.
Engines whose Python interface gives one step at a time are fed step by step; the others time their own loop.
"""

import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

#: Positions that every engine must offer: the longest context and what is generated behind it
CAPACITY = 4096


@dataclass(frozen=True)
class Request:
    """A prompt, and how many ids to generate after the first one."""

    prompt: list[int]
    tokens: int


@dataclass(frozen=True)
class Reply:
    """Seconds up to the first id, seconds of the others, and all `tokens + 1` ids."""

    prefill_seconds: float
    decode_seconds: float
    ids: list[int]


class Engine(Protocol):
    """A loaded model. `packages` are those whose versions tell what was measured."""

    packages: tuple[str, ...]

    def answer(self, request: Request) -> Reply: ...


def stepwise(feed: Callable[[list[int]], int], request: Request) -> Reply:
    """Time `feed`, which takes the next ids and gives the most likely one after them."""
    start = time.perf_counter()
    ids = [feed(request.prompt)]
    middle = time.perf_counter()
    for _ in range(request.tokens):
        ids.append(feed(ids[-1:]))
    return Reply(middle - start, time.perf_counter() - middle, ids)


class Kit:
    """telechat-kit on a W8A8 folder."""

    packages = ("telechat-kit", "torch")

    def __init__(self, folder: Path, threads: int) -> None:
        import torch  # noqa: PLC0415

        from telechat_kit.inference.loading import load_model  # noqa: PLC0415

        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self.model = load_model(folder, "cpu")

    def answer(self, request: Request) -> Reply:
        from telechat_kit.inference.generation import start_run  # noqa: PLC0415

        return stepwise(start_run(self.model, len(request.prompt) + request.tokens).best, request)


class Transformers:
    """The Llama folder in transformers, without the host work of `generate()`."""

    packages = ("transformers", "torch")

    def __init__(self, folder: Path, threads: int, dtype: str) -> None:
        import torch  # noqa: PLC0415
        from transformers import AutoModelForCausalLM  # noqa: PLC0415

        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()

    def answer(self, request: Request) -> Reply:
        import torch  # noqa: PLC0415
        from transformers import DynamicCache  # noqa: PLC0415

        cache = DynamicCache(config=self.model.config)

        def feed(ids: list[int]) -> int:
            step = torch.tensor([ids])
            return int(self.model(step, past_key_values=cache, logits_to_keep=1).logits[0, -1].argmax())

        return stepwise(feed, request)


class LlamaCpp:
    """llama.cpp through its Python binding, with the binding's defaults."""

    packages = ("llama-cpp-python",)

    def __init__(self, path: Path, threads: int) -> None:
        import llama_cpp  # noqa: PLC0415

        count = {"n_threads": threads, "n_threads_batch": threads}
        self.model = llama_cpp.Llama(str(path), n_ctx=CAPACITY, verbose=False, **count)
        self.logits: Callable[..., Any] = llama_cpp.llama_get_logits_ith

    def answer(self, request: Request) -> Reply:
        self.model.reset()
        return stepwise(self._feed, request)

    def _feed(self, ids: list[int]) -> int:
        self.model.eval(ids)
        row = self.logits(self.model._ctx.ctx, -1)
        return int(np.ctypeslib.as_array(row, (self.model.n_vocab(),)).argmax())


class OpenVino:
    """OpenVINO GenAI's pipeline with its defaults, but without remembering prompts: they would not be read again."""

    packages = ("openvino-genai", "openvino", "optimum-intel")

    def __init__(self, folder: Path, threads: int) -> None:
        import openvino_genai  # noqa: PLC0415

        self.module = openvino_genai
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.enable_prefix_caching = False
        self.pipeline = openvino_genai.LLMPipeline(
            str(folder), "CPU", scheduler_config=scheduler, INFERENCE_NUM_THREADS=threads
        )

    def answer(self, request: Request) -> Reply:
        import openvino  # noqa: PLC0415

        ids = np.array([request.prompt], dtype=np.int64)
        inputs = self.module.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids)))
        options = self.module.GenerationConfig()
        options.max_new_tokens, options.ignore_eos, options.do_sample = request.tokens + 1, True, False
        result = self.pipeline.generate(inputs, options)
        first = result.perf_metrics.raw_metrics.m_times_to_first_token[0] / 1e6
        total = result.perf_metrics.raw_metrics.generate_durations[0] / 1e6
        return Reply(first, total - first, list(result.tokens[0]))


class CTranslate2:
    """CTranslate2 with int8 weights and activations; its own loop, the first token's time by its callback."""

    packages = ("ctranslate2",)

    def __init__(self, folder: Path, threads: int) -> None:
        import ctranslate2  # noqa: PLC0415

        self.tokens = json.loads((folder / "vocabulary.json").read_text(encoding="utf-8"))
        self.model = ctranslate2.Generator(
            str(folder), device="cpu", compute_type="int8", inter_threads=1, intra_threads=threads
        )

    def answer(self, request: Request) -> Reply:
        times: list[float] = []
        count = request.tokens + 1
        start = time.perf_counter()
        result = self.model.generate_batch(
            [[self.tokens[i] for i in request.prompt]],
            max_length=count,
            min_length=count,
            sampling_topk=1,
            include_prompt_in_result=False,
            callback=lambda _: times.append(time.perf_counter()) or False,
        )
        return Reply(times[0] - start, times[-1] - times[0], list(result[0].sequences_ids[0]))


@dataclass(frozen=True)
class Peer:
    """An engine by its name in the tables, the form of its weights (see `peer_weights`), and how to load it."""

    name: str
    form: str | None
    load: Callable[[Path, int], Engine]


KIT = "telechat-kit W8A8"
REFERENCE = "transformers float32"
PEERS = (
    Peer(KIT, None, Kit),
    Peer("llama.cpp Q8_0", "q8_0", LlamaCpp),
    Peer("OpenVINO GenAI int8", "openvino", OpenVino),
    Peer("CTranslate2 int8", "ctranslate2", CTranslate2),
    Peer(REFERENCE, "llama", lambda path, threads: Transformers(path, threads, "float32")),
    Peer("transformers bfloat16", "llama", lambda path, threads: Transformers(path, threads, "bfloat16")),
)


def serve(name: str, path: Path, threads: int) -> None:
    """Say which versions were loaded, then answer each request on stdin until it closes."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what an engine prints goes to stderr
    peer = next(peer for peer in PEERS if peer.name == name)
    engine = peer.load(path, threads)
    print(json.dumps({p: importlib.metadata.version(p) for p in engine.packages}), file=replies, flush=True)
    for line in sys.stdin:
        print(json.dumps(asdict(engine.answer(Request(**json.loads(line))))), file=replies, flush=True)
    os._exit(0)  # some engines abort when Python takes them down


if __name__ == "__main__":
    serve(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
