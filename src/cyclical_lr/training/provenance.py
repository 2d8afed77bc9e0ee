"""What produced a result: commit, versions, device."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from cyclical_lr import kernels
from cyclical_lr.records import ConfigError

EVIDENCE = ("results", "paper_figures", "benchmarks/results", "README.md")
"""What a running study, the report and `make gpu-check` write to: changes there do not make the code dirty."""
DIRTY = "-dirty"
PACKAGES = ("torch", "torchvision", "pytorch-lightning", "hydra-core", "numpy", "wandb", "cyclical-lr")


def commit() -> tuple[str, bool]:
    """The commit of the checkout that this package is imported from, and whether files differ from it.

    Where there is no git (a snapshot, a copy on a compute node), `CYCLICAL_LR_COMMIT` names the commit, with "-dirty"
    after it where files differ (as `git describe --dirty` has it); else it is "unknown".

    Raises:
        ConfigError: git and that variable name different ones.
    """
    here, named = Path(__file__).resolve().parent, os.environ.get("CYCLICAL_LR_COMMIT", "")

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=here, check=True, capture_output=True, text=True, errors="surrogateescape"
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", __file__)  # a copy inside somebody else's checkout is not of its commit
        top = git("rev-parse", "--show-toplevel")
        untouched = [f":(exclude,top){path}" for path in EVIDENCE]
        found, dirty = git("rev-parse", "HEAD"), bool(git("-C", top, "status", "--porcelain", "--", ".", *untouched))
    except (OSError, subprocess.CalledProcessError):
        named = named or "unknown"
        return named.removesuffix(DIRTY), named.endswith(DIRTY)
    if named not in ("", found + DIRTY * dirty):
        raise ConfigError(
            f"CYCLICAL_LR_COMMIT={named}: expected what git says of {top}, {found + DIRTY * dirty}; "
            "unset it, or run a copy without a .git (git archive)"
        )
    return found, dirty


def versions() -> dict[str, str]:
    """Versions of what a result depends on, and which layers have run so far (`kernels.kind`)."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "none"
    if torch.cuda.is_available():
        found |= {"cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())}
    return {**found, "kernels": kernels.kind()}


def device_name(device: torch.device) -> str:
    """Model of the device; of a CPU also family, since cloud machines name no model, and vector instructions."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    fields: dict[str, str] = {}
    for line in info.read_text().splitlines() if info.exists() else []:
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())  # the first core's
    model = fields.get("model name") or platform.processor() or platform.machine()
    if "cpu family" in fields:
        model += f" family {fields['cpu family']} model {fields['model']}"
    bf16 = "native bf16" if native_bf16() else "no native bf16"
    return f"{model} ({torch.backends.cpu.get_cpu_capability()}, {bf16})"


def native_bf16() -> bool:
    """Whether this CPU multiplies bf16 itself (AVX-512-BF16 or AMX); without, it is emulated, ten times slower."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
