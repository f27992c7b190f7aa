"""Replay the kit's operator calls through the real shape functions of torch_npu, without an NPU and without CANN.

`make npu-shapes` runs this in an environment of its own that has torch_npu. CANN's libraries are replaced by stubs,
compiled on the fly, whose functions do nothing; the calls are those of tests/data/npu/calls.json on device "meta".
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent / "data" / "npu"
#: They have no shape function: the documentation and the stand-ins are all there is to check them with
WITHOUT_SHAPES = ("npu_format_cast", "get_npu_format")


def compile_stubs(folder: Path) -> None:
    """A shared library for each soname that torch_npu is linked with; every function returns 0."""
    folder.mkdir(parents=True, exist_ok=True)
    for soname, symbols in json.loads((DATA / "stub_symbols.json").read_text(encoding="utf-8")).items():
        names = symbols or [f"empty_{soname.split('.')[0]}"]
        source = folder / f"{soname}.c"
        source.write_text("".join(f"long {name}(void) {{ return 0; }}\n" for name in names), encoding="utf-8")
        command = [
            "gcc",
            "-shared",
            "-fPIC",
            f"-Wl,-soname,{soname}",
            "-o",
            str(folder / soname),
            str(source),
        ]
        subprocess.run(command, check=True)


def restart_with(folder: Path) -> None:
    """Start this interpreter again with the stubs on the library path, which is read only when a process starts."""
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": f"{folder}:{os.environ.get('LD_LIBRARY_PATH', '')}",
        "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
    }
    os.execve(sys.executable, [sys.executable, __file__, "replay"], environment)


def replay() -> int:
    """Call every operator of the list; the number of calls that were refused or gave another shape or dtype."""
    import torch  # noqa: PLC0415  needs the library path
    import torch_npu  # noqa: PLC0415

    calls = json.loads((DATA / "calls.json").read_text(encoding="utf-8"))
    wrong = replayed = 0
    for call in calls:
        name = call["operator"]
        if name in WITHOUT_SHAPES:
            print(f"{call['chip']:<12} no shape function  {name} {_told(call['arguments'])}")
            continue
        problem = _problem(torch, getattr(torch_npu, name), call)
        wrong, replayed = wrong + bool(problem), replayed + 1
        verdict = "WRONG" if problem else "accepted"
        print(f"{call['chip']:<12} {verdict:<18} {name} {_told(call['arguments'])} {problem}")
    print(
        f"torch_npu {torch_npu.__version__}: of {len(calls)} kinds of calls {replayed - wrong} accepted with the shapes and "
        f"dtypes expected, {wrong} refused or of another shape, {len(calls) - replayed} without a shape function"
    )
    return wrong


def _problem(torch: Any, operator: Any, call: dict[str, Any]) -> str:
    schema = getattr(torch.ops.npu, call["operator"]).default._schema.arguments
    given = {name: _value(torch, value) for name, value in call["arguments"].items()}
    args = [given.pop(item.name) for item in schema if not item.kwarg_only and item.name in given]
    try:
        result = operator(*args, **given)
    except Exception as error:  # whatever the shape function raises is the finding
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    parts = result if isinstance(result, tuple) else (result,)
    found = [(str(part.dtype).removeprefix("torch."), list(part.shape)) for part in parts]
    expected = [(part["dtype"], part["shape"]) for part in call["result"]]
    return "" if found == expected else f"gave {found}, the stand-in {expected}"


def _value(torch: Any, value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    shape, dtype = value["shape"], getattr(torch, value["dtype"])
    if value["transposed"]:
        return torch.empty(shape[::-1], dtype=dtype, device="meta").t()
    return torch.empty(shape, dtype=dtype, device="meta")


def _told(arguments: dict[str, Any]) -> str:
    return ", ".join(
        f"{name}={_tensor_told(value) if isinstance(value, dict) else value}"
        for name, value in arguments.items()
    )


def _tensor_told(value: dict[str, Any]) -> str:
    """Dtype, shape, and format unless it is the plain one."""
    shape = " x ".join(map(str, value["shape"]))
    blocked = "" if value["format"] == "ND" else f" {value['format']}"
    return f"{value['dtype']}[{shape}]{blocked}{' transposed' if value['transposed'] else ''}"


if __name__ == "__main__":
    if sys.argv[1:] == ["replay"]:
        sys.exit(1 if replay() else 0)
    stubs = Path(sys.argv[1]).resolve()
    compile_stubs(stubs)
    restart_with(stubs)
