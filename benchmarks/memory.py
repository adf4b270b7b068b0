"Peak resident memory of a LoRA training run on an nf4 encoder, batch 32, all of HateXplain's training posts for one epoch"
import argparse, tempfile

from common import keep
from hatenb.core import resolve_dtype
from hatenb.making import peak_memory, make_run as run
from hatenb.runs import RunConfig
from hatenb.training import TrainConfig

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--quantization', default='nf4')
    parser.add_argument('--positions', type=int, default=TrainConfig.max_positions, help='most sub-tokens at once (`max_positions`)')
    a = parser.parse_args()
    dtype = str(resolve_dtype('auto')).removeprefix('torch.')
    with tempfile.TemporaryDirectory() as folder:
        record = run(RunConfig(('label', 'target', 'rationale'), quantization=a.quantization, dtype=dtype, train=TrainConfig(epochs=1, batch_size=32, max_positions=a.positions)),
                     folder)
    keep('memory', dict(quantization=a.quantization, dtype=dtype, batch_size=32, max_positions=a.positions, peak_gib=peak_memory()/2**30,
                        **{k: record['cost'][k] for k in ('encoder_bytes', 'adapter_bytes', 'trainable_parameters', 'steps')}))
