"Run by test_training.py, and killed by it: trains a small model, and writes what it ends with"
import json, os, sys

os.environ.setdefault('HATENB_QUIET', '1')
from safetensors.torch import save_file

from hatenb.balancing import balancers
from hatenb.training import TrainConfig, Trainer, make_accelerator
from parts import small

folder, tasks = sys.argv[1], ['mini/label', 'mini/rationale', 'mini_mhs/score']
config = TrainConfig(epochs=2, batch_size=16, checkpoint_steps=3, lr=1e-3)
trainer = Trainer(*small(tasks, limit=96, r=4), config, balancer=balancers['famo'](tasks), folder=folder,
                  accelerator=make_accelerator(['tensorboard'], folder, cpu=True))
history = trainer.fit()
save_file({k: p.detach().contiguous() for k, p in trainer.params.items()}, f'{folder}/end.safetensors')
with open(f'{folder}/history.json', 'w') as f: json.dump(history, f)
