"""Functions that are not modelled. In: their names. Out: C that does nothing, and succeeds where it can."""

import re
from collections.abc import Iterable

FUNCTIONS = {
    "cudart": r"(__)?cuda[A-Z]",
    "cublasLt": "cublasLt",
    "cublas": "cublas",
    "cudnn": "cudnn",
    "cufft": "cufft",
    "curand": "curand",
    "cusolver": "cusolver",
    "cusparseLt": "cusparseLt",
    "cusparse": "cusparse",
    "nccl": "p?nccl",
    "nvrtc": "nvrtc",
    "nvJitLink": "nvJitLink",
    "cupti": "cupti",
    "cufile": "cuFile",
    "nvshmem_host": "nvshmem",
    "nvidia-ml": "nvml",
    "cuda": "cu[A-Z]",
}
"""How the names of a library's functions begin; the first that fits counts."""
SONAME = re.compile(rf"lib({'|'.join(map(re.escape, FUNCTIONS))})\.so\.\d+")

UNSUPPORTED = {"nvml": 3, "cufft": 16, "cudnnGet": 3000, "cusolver": 9, "cusparse": 10}
"""What such a function answers where it would have to give something back, by the library's own numbers."""
GIVES = re.compile("[sS]ize|Get")


def library_of(soname: str) -> str:
    """Return "cudart" for "libcudart.so.13"."""
    found = SONAME.fullmatch(soname)
    assert found is not None, soname
    return found[1]


def stub_source(names: Iterable[str]) -> str:
    """Return a C file of stubs."""
    return '#include "null.h"\n' + "".join(_stub(name) for name in sorted(names))


def _stub(name: str) -> str:
    if "Create" in name and not name.startswith(("nccl", "cufft")):  # its first argument is where the new handle goes
        return f'long {name}(void **out) {{ *out = null_handle(); null_called("{name}"); return 0; }}\n'
    start = next((start for start in UNSUPPORTED if name.startswith(start)), None)
    must_give = start in ("nvml", "cufft", "cudnnGet") or GIVES.search(name)
    answer = UNSUPPORTED[start] if start and must_give else 0
    return f'long {name}(void) {{ null_called("{name}"); return {answer}; }}\n'
