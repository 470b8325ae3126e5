"""Where and how the base runs: device, precision, ways to need less memory, compilation.

The options have the names that diffusers gives them.
"""

from dataclasses import dataclass

import torch
from diffusers import StableDiffusionXLPipeline

from shira_diffusion.errors import SettingError
from shira_diffusion.pipeline import load_base

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Machine:
    """How to run a base; what is None is chosen for the machine at hand.

    Model CPU offload brings one component at a time to the GPU. `compile` compiles the UNet's
    repeated blocks for the GPU when the first picture is made; adapters switch without another
    compilation. Raises `SettingError` for what cannot be.
    """

    device: str | None = None
    dtype: str | None = None
    enable_vae_tiling: bool = False
    enable_vae_slicing: bool = False
    enable_model_cpu_offload: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        if self.dtype is not None and self.dtype not in DTYPES:
            raise SettingError(f"there is no dtype {self.dtype!r}; there are {', '.join(DTYPES)}")
        for flag in ("enable_model_cpu_offload", "compile"):
            if getattr(self, flag) and not self._on_gpu:
                name = flag.replace("_", "-")
                raise SettingError(f"--{name} is for an NVIDIA GPU; leave it out on this device")

    @property
    def _on_gpu(self) -> bool:
        named = self.device or "cuda"
        return named.startswith("cuda") and torch.cuda.is_available()

    def load(self, base: str) -> StableDiffusionXLPipeline:
        """Load a base from a folder, a file or a hub id, as `shira_diffusion.pipeline` does."""
        dtype = None if self.dtype is None else DTYPES[self.dtype]
        if self.enable_model_cpu_offload and dtype is None:
            dtype = torch.bfloat16
        where = "cpu" if self.enable_model_cpu_offload else self.device
        pipe = load_base(base, device=where, dtype=dtype)
        if self.enable_model_cpu_offload:
            pipe.enable_model_cpu_offload(device=self.device or "cuda")
        if self.enable_vae_tiling:
            pipe.vae.enable_tiling()
        if self.enable_vae_slicing:
            pipe.vae.enable_slicing()
        if self.compile:
            pipe.unet.compile_repeated_blocks(fullgraph=True)
        return pipe
