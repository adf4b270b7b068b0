"A pretrained transformer, quantized or not, and the adapters added to it"
from .loading import ByteDropout, Encoder, check_finite, find_encoder, load_encoder, quantizations
from .adapters import (AdapterMethods, Composite, StochasticDepth, adapter_methods, count_parameters, interface_of,
                       interfaces, lora_factors, method_options, peft_factors)
from .storage import convert_adapter, encoder_digest, tensor_digest
