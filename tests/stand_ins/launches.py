"""What one token of the 7B costs at 2,000 positions on the stand-ins: operators started, bytes read and written, copied.

    python tests/stand_ins/launches.py [CHIP ...]

Models of one and of two blocks with the 7B's widths tell what a block costs and what comes besides; the rest is counting
to thirty. Each is run with its linears of one input joined and apart. Weights are zeros: nothing here looks at them.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from call_list import environment

CHIPS = ("Ascend310P3", "Ascend910B4")
KINDS = ("float", "static", "dynamic")
BLOCKS, POSITIONS = 30, 2000


def count(kind: str, blocks: int) -> dict[str, list[int]]:
    """Launches, bytes and bytes copied of one token, apart and joined."""
    import torch  # noqa: PLC0415  only children import the kit

    from telechat_kit.backends import npu  # noqa: PLC0415
    from telechat_kit.inference.launches import LaunchCounter  # noqa: PLC0415
    from telechat_kit.inference.network_run import NetworkRun  # noqa: PLC0415
    from telechat_kit.model.w8a8 import prepare  # noqa: PLC0415

    class Counter(LaunchCounter):
        bytes = copied = 0

        def started(self, func: Any, args: Any, result: Any) -> None:
            super().started(func, args, result)
            moved = sum(map(_bytes, _tensors(args))) + sum(map(_bytes, _tensors(result)))
            name = func._schema.name
            if name == "aten::embedding":  # of the table one row
                moved = 2 * _bytes(result)
            if name == "npu::npu_incre_flash_attention":  # of the slots what is filled
                moved = 2 * _bytes(args[0]) + 2 * _bytes(args[1]) * POSITIONS // args[1].shape[2]
            self.bytes += moved
            if name in ("aten::copy_", "aten::clone", "aten::_to_copy", "aten::cat"):
                self.copied += moved

    found = {}
    for joined in (False, True):
        npu.joins_linears = joined
        npu.open_device(0)
        model = _model(kind, blocks)
        prepare(model)
        with torch.inference_mode():
            run = NetworkRun(model, POSITIONS + 100)
            run.best([1])
            run.best([1])
            run.cache.length, run.cache.token_ids = POSITIONS - 1, None
            counter = Counter("npu")
            with counter:
                run.best([1])
        found["joined" if joined else "apart"] = [counter.count, counter.bytes, counter.copied]
    return found


def _bytes(tensor: Any) -> int:
    return int(tensor.numel() * tensor.element_size())


def _tensors(values: Any) -> list[Any]:
    from torch import Tensor  # noqa: PLC0415
    from torch.utils import _pytree as tree  # noqa: PLC0415

    return [leaf for leaf in tree.tree_leaves(values) if isinstance(leaf, Tensor)]


def _model(kind: str, blocks: int) -> Any:
    """A model of the 7B's widths on the device, not prepared."""
    import torch  # noqa: PLC0415

    from telechat_kit.inference.memory import TELECHAT  # noqa: PLC0415
    from telechat_kit.model import TelechatConfig, TelechatForCausalLM  # noqa: PLC0415
    from telechat_kit.model.int8_linears import DynamicW8A8Linear, W8A8Linear  # noqa: PLC0415
    from telechat_kit.model.w8a8 import linear_names  # noqa: PLC0415

    shape = TELECHAT["TeleChat-7B"].to_dict()
    names = ("vocab_size", "hidden_size", "ffn_hidden_size", "n_head")
    config = TelechatConfig(**{name: shape[name] for name in names}, n_layer=blocks)
    with torch.device("meta"):
        model = TelechatForCausalLM(config)
    model = model.half().to_empty(device="cpu")
    model.tie_weights()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    for name in linear_names(model) if kind != "float" else []:
        linear = model.get_submodule(name)
        out, size = linear.weight.shape
        tensors = {"weight": torch.zeros(out, size, dtype=torch.int8), "weight_scale": torch.ones(out, 1)}
        if linear.bias is not None:
            tensors["bias"] = torch.zeros(out)
        static = {
            "input_scale": torch.ones(1),
            "input_offset": torch.zeros(1),
            "quant_bias": torch.zeros(out, dtype=torch.int32),
            "deq_scale": torch.ones(out),
        }
        int8 = W8A8Linear({**tensors, **static}) if kind == "static" else DynamicW8A8Linear(tensors)
        model.set_submodule(name, int8)
    return model.to("npu:0").eval()


def main(chips: list[str]) -> None:
    for chip in chips:
        for kind in KINDS:
            one, two = (_child(chip, kind, blocks) for blocks in (1, 2))
            for form in ("apart", "joined"):
                launches, moved, copied = (
                    a + (BLOCKS - 1) * (b - a) for a, b in zip(one[form], two[form], strict=True)
                )
                print(
                    f"{chip:<12} {kind:<8} {form:<7} {launches:>5} launches a token, {moved / 1e9:.2f} GB read and written, "
                    f"{copied / 1e6:.2f} MB of it copied"
                )


def _child(chip: str, kind: str, blocks: int) -> dict[str, list[int]]:
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, __file__, "count", kind, str(blocks)],
            env=environment(chip, Path(folder)),
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(done.stderr)
    found: dict[str, list[int]] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    if sys.argv[1:2] == ["count"]:
        print(json.dumps(count(sys.argv[2], int(sys.argv[3]))))
    else:
        main(sys.argv[1:] or list(CHIPS))
