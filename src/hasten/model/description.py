"""What a decoder is, in numbers: everything ``decoder.py`` needs to build any of the supported families. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Family = Literal["llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3", "smollm3"]
GEMMAS: tuple[Family, ...] = ("gemma2", "gemma3")
Activation = Literal["silu", "gelu_tanh"]


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How rotary frequencies are stretched for long contexts. Unused fields keep their defaults.

    ``linear``: divide by ``factor``. ``llama3``: Llama 3.1's smooth ramp between two wavelengths. ``yarn``: YaRN
    (2309.00071); ``attention_factor`` 0 means 0.1 ln(factor) + 1.
    """

    kind: Literal["none", "linear", "llama3", "yarn"] = "none"
    factor: float = 1.0
    original_context: int = 0
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 0.0


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """Shapes and constants of one decoder. Weights are canonical: projections are [outputs, inputs] in the half-rotation
    layout of Hugging Face, norm weights multiply as they stand (Gemma's 1 is already added).

    ``sliding[i]`` says whether layer i sees only the last ``sliding_window`` positions (itself included).
    ``frequency_factors`` divides each of the head_dim / 2 rotary frequencies when present (GGUF's form of llama3 scaling).
    """

    family: Family
    vocabulary_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    context_length: int
    norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling = RopeScaling()
    local_rope_theta: float = 0.0  # rotary base of sliding layers where it differs (Gemma 3), else 0
    frequency_factors: tuple[float, ...] = ()
    activation: Activation = "silu"
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    post_norms: bool = False  # Gemma: norms after attention and after the MLP, before the residual add
    sliding_window: int = 0
    sliding: tuple[bool, ...] = ()
    unrotated: tuple[bool, ...] = ()  # layers whose queries and keys know no position (SmolLM3)
    attention_softcap: float = 0.0
    final_softcap: float = 0.0
    query_scale: float = 0.0  # factor on q.k; 0 means head_dim ** -0.5
    embedding_scale: float = 1.0
    tied_head: bool = False

    @property
    def attention_scale(self) -> float:
        return self.query_scale or self.head_dim**-0.5

    @property
    def query_size(self) -> int:
        return self.heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.kv_heads * self.head_dim

    def rotates(self, layer: int) -> bool:
        """Whether that layer rotates queries and keys by their positions."""
        return not (self.unrotated and self.unrotated[layer])

    def window(self, layer: int) -> int:
        """Positions that layer sees, 0 for all."""
        return self.sliding_window if self.sliding and self.sliding[layer] else 0
