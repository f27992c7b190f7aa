"""One client in a process of its own: `python client_runs.py CLIENT REQUEST.json RESULT.safetensors`.

Each gives the greedy ids behind some prompts and, for some windows of ids, the hidden states behind its final norm:
with the head, which all forms of a model have alike, they are its log-probabilities, and small enough to keep.
"""

import json
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from vllm_states import STATES_FILE, keep_states, write_states


@dataclass(frozen=True)
class Request:
    """What a client is asked: continuations of `prompts` by `tokens` ids each, and states over `windows`."""

    folder: str
    prompts: list[list[int]]
    tokens: int
    windows: list[list[int]]


@dataclass(frozen=True)
class Reply:
    """Ids `[prompts, tokens]`, states `[windows, length, hidden]` and the head `[vocab, hidden]`, all on the CPU."""

    ids: Tensor
    states: Tensor
    head: Tensor


def run_kit(request: Request) -> Reply:
    """The kit's own engine and loader."""
    from telechat_kit.inference.generation import generate  # noqa: PLC0415  (each client imports its own)
    from telechat_kit.inference.loading import load_model  # noqa: PLC0415

    model = load_model(request.folder, "cpu", torch.float32)
    ids = [list(generate(model, prompt, request.tokens).token_ids) for prompt in request.prompts]
    with torch.inference_mode():
        states = [
            model.transformer(torch.tensor([window])).last_hidden_state[0] for window in request.windows
        ]
    return Reply(torch.tensor(ids), stacked(states), model.lm_head.weight.detach())


def run_transformers(request: Request) -> Reply:
    """transformers' Llama; W8A8 through compressed-tensors."""
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    model = AutoModelForCausalLM.from_pretrained(request.folder, dtype=torch.float32).eval()
    ids = [
        model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=request.tokens,
            do_sample=False,
            eos_token_id=None,  # as the others: the end is one more id
            repetition_penalty=1.0,
        )[0, len(prompt) :].tolist()
        for prompt in request.prompts
    ]
    options: dict[str, Any] = {"output_hidden_states": True, "logits_to_keep": 1}
    with (
        torch.inference_mode()
    ):  # through the head: compressed-tensors unpacks the weights at a call of the whole model
        states = [model(torch.tensor([w]), **options).hidden_states[-1][0] for w in request.windows]
    return Reply(torch.tensor(ids), stacked(states), model.lm_head.weight.detach())


def run_vllm(request: Request) -> Reply:
    """vLLM on the CPU, in float32 and without compiling; a window is one request, so its states come in one piece."""
    os.environ |= {
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{(os.cpu_count() or 1) - 1}",
        "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",  # functions go to its worker
        "VLLM_LOGGING_LEVEL": "ERROR",
        "PYTHONPATH": str(Path(__file__).parent),
        STATES_FILE: str(Path(tempfile.gettempdir(), f"telechat-kit-states-{os.getpid()}.safetensors")),
    }
    from vllm import LLM, SamplingParams  # noqa: PLC0415

    longest = max(map(len, [*request.prompts, *request.windows, [0]])) + request.tokens + 1
    engine = LLM(
        request.folder,
        dtype="float32",
        enforce_eager=True,
        max_model_len=longest,
        max_num_batched_tokens=max(longest, 2048),
        enable_prefix_caching=False,
    )

    def greedy(prompt: list[int], count: int) -> list[int]:
        sampling = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True)
        (output,) = engine.generate([{"prompt_token_ids": prompt}], sampling, use_tqdm=False)
        return list(output.outputs[0].token_ids)

    ids = [greedy(prompt, request.tokens) for prompt in request.prompts]
    if not request.windows:
        return Reply(torch.tensor(ids), torch.empty(0), torch.empty(0))
    engine.apply_model(keep_states)
    for window in request.windows:
        greedy(window, 1)
    engine.apply_model(write_states)
    kept = Path(os.environ[STATES_FILE])
    tensors = load_file(kept)
    kept.unlink()
    return Reply(torch.tensor(ids), **tensors)


def stacked(states: list[Tensor]) -> Tensor:
    return torch.stack([state.float() for state in states]) if states else torch.empty(0)


CLIENTS: dict[str, Callable[[Request], Reply]] = {
    "kit": run_kit,
    "transformers": run_transformers,
    "vLLM": run_vllm,
}


def main(client: str, request: str, result: str) -> None:
    """Answer the request of a file into another file."""
    asked = Request(**json.loads(Path(request).read_text(encoding="utf-8")))
    reply = CLIENTS[client](asked)
    save_file({name: value.contiguous().clone() for name, value in vars(reply).items()}, result)


if __name__ == "__main__":
    main(*sys.argv[1:])
