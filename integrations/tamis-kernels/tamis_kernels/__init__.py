"""Parts of encoders, compiled for CPUs with bfloat16 instructions. Tamis uses them by itself if they are installed."""

from tamis_kernels.attention import attention
from tamis_kernels.compiled import LEVELS, level, why_not
from tamis_kernels.layers import Packed, add_norm, layer

__all__ = ["LEVELS", "Packed", "add_norm", "attention", "layer", "level", "why_not"]
__version__ = "0.1.0"
