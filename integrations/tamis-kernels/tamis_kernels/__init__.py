"""Parts of encoders and decoders, compiled for CPUs with bfloat16 instructions. Tamis uses them by itself."""

from tamis_kernels.attention import attention
from tamis_kernels.compiled import LEVELS, level, why_not
from tamis_kernels.decoders import gate, rms_norm, rotary
from tamis_kernels.layers import Packed, add_norm, layer

__all__ = [
    "LEVELS",
    "Packed",
    "add_norm",
    "attention",
    "gate",
    "layer",
    "level",
    "rms_norm",
    "rotary",
    "why_not",
]
__version__ = "0.1.0"
