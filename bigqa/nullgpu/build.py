"""The null GPU's libraries, built for a torch. In: a Python and its CUDA build of torch. Out: a folder of them, kept.

Which libraries of CUDA torch and the packages beside it link to, and which functions they want, stands in their files.
What has to give something back is written in `src/`; every other function is a stub made here.
"""

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from bigqa.errors import BigqaError
from bigqa.files import atomic_folder
from bigqa.language import tr
from bigqa.nullgpu.python import Interpreter, TorchBuild
from bigqa.nullgpu.stubs import FUNCTIONS, SONAME, library_of, stub_source
from bigqa.nullgpu.torch_build import folder, install_package, locked

SOURCES = Path(__file__).parent / "src"
PARTS = {
    "cuda": ("card.c", "memory.c", "contents.c", "clock.c", "log.c", "end.c", "driver.c"),
    "cudart": ("runtime_devices.c", "runtime_memory.c", "runtime_streams.c", "runtime_kernels.c"),
    "cublas": ("cublas.c",),
    "cublasLt": ("cublasLt.c",),
    "cudnn": ("cudnn.c",),
    "nccl": ("nccl.c",),
    "nvrtc": ("nvrtc.c",),
    "cupti": ("cupti.c",),
    "cusparseLt": ("cusparseLt.c",),
    "nvidia-ml": ("nvml.c",),
}
"""What is written by hand of a library."""
ALWAYS = {"libcuda.so.1", "libnvidia-ml.so.1"}
"""Found by name at run time: nothing links to them."""
HEADERS = "nvidia-cuda-runtime"
TOOLKITS = ("/usr/local/cuda",)
WARNINGS = ("-Wall", "-Wextra", "-Wno-deprecated-declarations")


def libraries_for(python: Interpreter, torch: TorchBuild, *, install: bool = False) -> Path:
    """Return the folder of libraries for a torch; build it where it is missing (some seconds, once).

    Raises: BigqaError where a tool or the headers are missing.
    """
    place = folder() / f"libraries-{torch.version}-{_key(python, torch)}"
    if not place.exists():
        need_tools()
        include = find_headers(python, install=install)
        with locked(place.parent):
            if not place.exists():
                with atomic_folder(place) as fresh:
                    _build(fresh, python, torch, include)
    return place


def _key(python: Interpreter, torch: TorchBuild) -> str:
    """Of all that the libraries depend on: these sources, torch, and the packages that may link to CUDA as well."""
    digest = hashlib.sha256(f"{torch.version} {torch.folder} {sorted(_packages(python))}".encode())
    for file in (*sorted(SOURCES.rglob("*.[ch]")), Path(__file__), Path(__file__).with_name("stubs.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def _packages(python: Interpreter) -> set[str]:
    return {entry.name for path in python.paths if path.is_dir() for entry in path.glob("*.dist-info")}


def need_tools() -> None:
    """Raise a BigqaError where a tool is missing."""
    missing = [tool for tool in ("gcc", "readelf", "nm") if shutil.which(tool) is None]
    if missing:
        raise BigqaError(
            tr(
                "the null GPU is built with gcc and binutils; missing: {missing}; install them",
                missing=", ".join(missing),
            )
        )


def find_headers(python: Interpreter, *, install: bool = False) -> Path:
    """Return the folder of the CUDA 13 headers: of the toolkit, or of the package `nvidia-cuda-runtime`.

    Raises: BigqaError where there are none, and `install` does not ask for them.
    """
    own = folder() / HEADERS
    toolkits = [Path(p) / "include" for p in (os.environ.get("CUDA_HOME"), *TOOLKITS) if p]
    wheels = [path / "nvidia" / "cu13" / "include" for path in (*python.paths, own)]
    for place in (*toolkits, *wheels):
        if _is_cuda_13(place):
            return place
    if not install:
        raise BigqaError(
            tr(
                "the headers of CUDA 13 are not here: install the package {headers} (3 MB) or the CUDA "
                "toolkit, which CUDA_HOME names, or let `bigqa rehearse --install` get the package",
                headers=HEADERS,
            )
        )
    install_package(f"{HEADERS}==13.*", own, python)
    return wheels[-1]


def _is_cuda_13(include: Path) -> bool:
    try:
        text = (include / "cuda.h").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    found = re.search(r"^#define CUDA_VERSION\s+13\d\d\d", text, re.MULTILINE)
    return found is not None and (include / "cuda_runtime_api.h").exists()


def _run(*command: str | Path, given: str | None = None) -> str:
    done = subprocess.run(
        list(map(str, command)), input=given, capture_output=True, text=True, errors="replace", check=False
    )
    if done.returncode:
        wrong = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines() or ["?"]
        raise BigqaError(tr("the null GPU could not be built: {command}: {wrong}", command=command[0], wrong=wrong[0]))
    return done.stdout


def _build(place: Path, python: Interpreter, torch: TorchBuild, include: Path) -> None:
    links = _links(_shared_objects(python, torch))
    sonames = ALWAYS.union(*(names for file, names in links.items() if file.is_relative_to(torch.folder / "torch")))
    files = [file for file, names in links.items() if names <= sonames]
    wanted, versions = _wanted(files, _declared(include) | _looked_up(python, torch))
    flags = (*include_flags(include), f"-DCUDNN_VERSION={cudnn_version(torch)}")
    for soname in sorted(sonames, key=lambda name: name != "libcuda.so.1"):  # the others link to it
        build_library(place, soname, wanted.get(library_of(soname), set()), versions.get(library_of(soname)), flags)


def include_flags(include: Path) -> tuple[str, ...]:
    """Return where a compiler looks for headers."""
    return f"-I{SOURCES}", f"-I{include}"


def build_library(place: Path, soname: str, names: set[str], version: str | None, flags: Sequence[str]) -> None:
    """Build one library: what is written of it by hand, and a stub for every other function of `names`.

    Args:
        place: where it goes; libcuda.so.1, which the others link to, is there already.
        soname: such as libcudart.so.13.
        names: the functions that are wanted.
        version: which the names carry in the real one, if any.
        flags: of the compiler.
    """
    library = library_of(soname)
    work = place / "build" / library
    work.mkdir(parents=True)
    objects = []
    for source in PARTS.get(library, ()):
        objects.append(work / f"{source}.o")
        _run("gcc", "-c", "-O2", "-fPIC", *WARNINGS, *flags, "-o", objects[-1], SOURCES / source)
    written = set(re.findall(r" [TDB] (\w+)$", _run("nm", *objects), re.MULTILINE)) if objects else set()
    stubs, script = work / "stubs.c", work / "versions.map"
    stubs.write_text(stub_source(names - written))
    script.write_text(f"{version or ''} {{ global: *; }};\n")
    base = () if library == "cuda" else (f"-L{place}", "-l:libcuda.so.1")
    linking = ("-shared", "-fPIC", "-w", f"-I{SOURCES}", f"-Wl,-soname,{soname}", f"-Wl,--version-script={script}")
    _run("gcc", *linking, "-o", place / soname, stubs, *objects, *base, "-lpthread", "-ldl")
    shutil.rmtree(place / "build")


def _shared_objects(python: Interpreter, torch: TorchBuild) -> list[Path]:
    """Return the libraries of torch and of all packages beside it, but those of NVIDIA and of another torch."""
    found = set()
    for path in {torch.folder, *(p for p in python.paths if p.name in ("site-packages", "dist-packages"))}:
        skipped = {"nvidia"} if path == torch.folder else {"nvidia", "torch"}
        for folder_, names, files in os.walk(path):
            if Path(folder_) == path:
                names[:] = [name for name in names if name not in skipped]
            found |= {Path(folder_) / name for name in files if ".so" in name}
    return sorted(file for file in found if file.is_file())


def _links(files: Iterable[Path]) -> dict[Path, set[str]]:
    """Return the CUDA libraries that each file links to, by their SONAMEs."""
    done = subprocess.run(
        ["readelf", "-dW", *map(str, files)], capture_output=True, text=True, errors="replace", check=False
    )  # fails for files that are no libraries, and says the rest
    found: dict[Path, set[str]] = {}
    file = Path()
    for line in done.stdout.splitlines():
        if line.startswith("File: "):
            file = Path(line.removeprefix("File: "))
        elif "(NEEDED)" in line and SONAME.fullmatch(name := line.rpartition("[")[2].rstrip("]")):
            found.setdefault(file, set()).add(name)
    return found


def _wanted(files: Iterable[Path], by_name: set[str]) -> tuple[dict[str, set[str]], dict[str, str]]:
    """Return the functions that are wanted of each library, and the version that its symbols carry."""
    names: dict[str, set[str]] = {}
    versions: dict[str, str] = {}

    def want(name: str, version: str = "") -> None:
        library = next((library for library, start in FUNCTIONS.items() if re.match(start, name)), None)
        if library is not None:
            names.setdefault(library, set()).add(name)
            if version:
                versions.setdefault(library, version)

    for name in by_name:
        want(name)
    for file in files:
        for line in _run("nm", "-D", "--undefined-only", "--with-symbol-versions", file).splitlines():
            name, _, version = line.split()[-1].partition("@")
            want(name, version.lstrip("@"))
    return names, versions


def _declared(include: Path) -> set[str]:
    """Return every function of the driver's and the runtime's headers: some are looked up by name."""
    text = _run(
        "gcc",
        "-E",
        "-P",
        f"-I{SOURCES}",
        f"-I{include}",
        "-",
        given="#include <cuda.h>\n#include <cuda_runtime_api.h>\n",
    )
    return set(re.findall(r"\b(?:cudaError_t|CUresult)\s+(\w+)\(", text))


def _looked_up(python: Interpreter, torch: TorchBuild) -> set[str]:
    """Return the functions of NVML that are looked up by name, by torch and by pynvml."""
    files = [path / "pynvml.py" for path in python.paths] + [torch.folder / "torch" / "lib" / "libc10_cuda.so"]
    texts = (file.read_bytes() for file in files if file.is_file())
    return {found.decode() for text in texts for found in re.findall(rb"\bnvml[A-Z]\w+", text)}


def cudnn_version(torch: TorchBuild) -> int:
    """Return the cuDNN that torch was built with, as its package says: 9.24.0.43 is 92400."""
    text = ""
    for file in torch.folder.glob(f"torch-{torch.public}*.dist-info/METADATA"):
        text = file.read_text(encoding="utf-8", errors="replace")
    found = re.search(r"nvidia-cudnn-cu\d+==(\d+)\.(\d+)\.(\d+)", text)
    return int(found[1]) * 10000 + int(found[2]) * 100 + int(found[3]) if found else 91000
