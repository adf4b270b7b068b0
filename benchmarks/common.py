"What the benchmarks share: posts, metrics, and a place for the figures"
import json, sys
from pathlib import Path

from hatenb.core import provenance, write_json

results = Path(__file__).resolve().parent.parent/'results'/'benchmarks'


def keep(name: str, figures: dict):
    "Print the figures and write them to results/benchmarks/, with the hardware"
    figures = {**figures, 'provenance': provenance()}
    print(json.dumps(figures, indent=1))
    write_json(results/f'{name}.json', figures)
