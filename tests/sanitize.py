"""`make sanitize`: kernels.c under the address and undefined-behavior sanitizers, on the tests of kernels and engine.

Two faults are planted in a copy first, and must be found: a sanitizer that finds nothing may not be at work.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from telechat_kit.backends.cpu_kernels.build import SOURCE

ROOT = Path(__file__).resolve().parents[1]
TESTS = (
    "tests/backends/test_kernels.py",
    "tests/backends/test_cpu.py",
    "tests/backends/test_cpu_dynamic.py",
    "tests/inference/test_engine.py",
)
FLAGS = "-g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all"
#: Statements at the begin of `silu_product(gate, up, count, out, threads)`, and what is said of each
FAULTS = {
    "out[count] = 0;": "AddressSanitizer: heap-buffer-overflow",
    "volatile int64_t large = INT64_MAX; large += count;": "signed integer overflow",
}
_FUNCTION = "void silu_product("
#: Runs with the source that is named; the tensors come from the allocator that the sanitizer watches
_CALL = """
import sys
from pathlib import Path
import torch
from telechat_kit.backends.cpu_kernels import build
build.SOURCE = Path(sys.argv[1])
from telechat_kit.backends.cpu_kernels.library import description, library
found, gate, out = library(), torch.ones(64), torch.empty(64)
assert found is not None, description()
found.silu_product(gate.data_ptr(), gate.data_ptr(), 64, out.data_ptr(), 1)
print("silu_product ended well")
"""


def environment(cache: str) -> dict[str, str]:
    """Where a compiler builds with the sanitizers, and Python starts with the library of the first."""
    # that of C++ stands beside it, for what Python imports may throw before it comes with them
    asked = [["gcc", f"-print-file-name={name}"] for name in ("libasan.so", "libstdc++.so.6")]
    found = [
        subprocess.run(each, capture_output=True, check=True, text=True).stdout.strip() for each in asked
    ]
    return {
        **os.environ,
        "CC": f"env -u LD_PRELOAD gcc {FLAGS}",
        "LD_PRELOAD": " ".join(found),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python and torch keep what they hold until they end
        "XDG_CACHE_HOME": cache,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "2",
    }


def planted(fault: str) -> str:
    """The source with `fault` as the first statement of its simplest function."""
    text = SOURCE.read_text(encoding="utf-8")
    begin = text.index("{", text.index(_FUNCTION)) + 1
    return f"{text[:begin]} {fault} {text[begin:]}"


def call(source: Path, cache: str) -> subprocess.CompletedProcess[str]:
    """One call of that function, built from `source`."""
    command = [sys.executable, "-c", _CALL, str(source)]
    return subprocess.run(
        command, capture_output=True, check=False, text=True, env=environment(cache), cwd=ROOT
    )


def main() -> int:
    """0 if the planted faults are found and the tests end well without a report."""
    with tempfile.TemporaryDirectory() as cache:
        ended = call(SOURCE, cache)
        if ended.returncode or "ended well" not in ended.stdout:
            print(f"the kernel as it is does not run under the sanitizers:\n{ended.stdout}{ended.stderr}")
            return 1
        for number, (fault, expected) in enumerate(FAULTS.items()):
            copy = Path(cache) / f"fault-{number}.c"
            copy.write_text(planted(fault), encoding="utf-8")
            ended = call(copy, cache)
            if ended.returncode == 0 or expected not in ended.stderr:
                print(f"not found: {fault}\n{ended.stdout}{ended.stderr}")
                return 1
            print(f"found as it must be: {expected} ({fault})")
        tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS]
        return subprocess.run(tests, check=False, env=environment(cache), cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())
