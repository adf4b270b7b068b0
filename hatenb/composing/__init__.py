"Strategies: how the tasks of a run share the encoder, from one adapter for all to merged, fused and routed ones."
# ruff: noqa: F401
from .mtl_lora import FullMatrix, MixedLoRA, MultiTaskLoRA
from .fusion import BottleneckFusion, LayerFusion, LoRAFusion, attention_figure, fusion_attention
from .strategies import (Branch, Fused, Merge, Parallel, Shared, SharedLoRA, Stacked, Strategy,
                         adapter_name, make_strategy, strategies, strategy_model)
