"""Makes an installed CUDA build of PyTorch importable without NVIDIA's libraries.

PyPI carries no CPU build of PyTorch for Linux on x86-64: the wheel there names some 3 GB of CUDA libraries as its
dependencies and does not load without them. The peer checks use the CPU only, so this writes, for every such library
that is missing, a stub of the same name whose functions all return 100 (`cudaErrorNoDevice`). With them
`torch.cuda.is_available()` is False and the rest of PyTorch works as in a CPU build.

Usage: cuda_stubs.py SITE_PACKAGES/torch/lib
"""

import pathlib
import re
import subprocess
import sys
import tempfile

CUDA = re.compile(r"lib(cu|nv|nccl)\w*\.so\.\d+$")
CUDA_SYMBOL = re.compile(r"_{0,2}(cu|nccl|nv)")


def output(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def main(folder):
    libraries = sorted(path for path in folder.glob("*.so") if not CUDA.match(path.name))
    needed, version_file, undefined = set(), {}, set()
    for library in libraries:
        needed.update(name for name in re.findall(r"NEEDED.*\[(.+)\]", output("readelf", "-d", library)) if CUDA.match(name))
        file = None
        for line in output("readelf", "-V", library).splitlines():
            if found := re.search(r"File: (\S+)", line):
                file = found[1]
            elif file and (found := re.search(r"Name: (\S+)", line)):
                version_file[found[1]] = file
        for line in output("nm", "-D", "--undefined-only", library).splitlines():
            undefined.add(line.split()[-1])
    symbols = {}  # (library, version) -> names; symbols without a version go to every library without versions
    for symbol in undefined:
        name, _, version = symbol.partition("@")
        if version_file.get(version, "") in needed:
            symbols.setdefault(version_file[version], {}).setdefault(version, []).append(name)
        elif not version and CUDA_SYMBOL.match(name):
            symbols.setdefault("", {}).setdefault("", []).append(name)
    for library in sorted(needed):
        versions = symbols.get(library) or symbols.get("", {})
        names = [name for group in versions.values() for name in group]
        with tempfile.TemporaryDirectory() as work:
            source, script = pathlib.Path(work, "stub.c"), pathlib.Path(work, "stub.map")
            source.write_text("".join(f"long {name}(void) {{ return 100; }}\n" for name in names))
            script.write_text(
                "".join(f"{version} {{ {' '.join(f'{n};' for n in group)} }};\n" for version, group in versions.items() if version)
            )
            command = ["cc", "-shared", "-fPIC", "-w", "-fno-builtin", "-nostdlib", f"-Wl,-soname,{library}"]
            command += [f"-Wl,--version-script={script}"] if any(versions) else []
            subprocess.run([*command, "-o", folder / library, source], check=True)
    print(f"{len(needed)} stubs for CUDA libraries written to {folder}")


main(pathlib.Path(sys.argv[1]))
