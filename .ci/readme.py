"""Write README.md from nbs/index.ipynb, or with --check say whether it is in step.

`nbdev-readme` does the same through Quarto; this needs nothing but the notebook.
"""
import json, re, sys
from pathlib import Path

import card

root = Path(__file__).resolve().parent.parent


def output(cell):
    "The first output of a cell as Markdown; of the answer card the picture"
    for o in cell['outputs']:
        data = {k: ''.join(v) for k,v in o.get('data', {}).items()}
        if 'text/markdown' in data: return data['text/markdown']
        if 'text/html' in data: return f'![{alt(cell)}](card.png)'
        if 'text/plain' in data: return f'```\n{data["text/plain"]}\n```'
    return ''


def alt(cell): return re.search(r'^#\| fig-alt: "(.+)"$', ''.join(cell['source']), re.M)[1]
def shown(source): return re.sub(r'^#\|.*\n', '', source, flags=re.M)


def readme():
    parts = []
    for c in json.loads((root/'nbs'/'index.ipynb').read_text(encoding='utf-8'))['cells']:
        source = ''.join(c['source'])
        if c['cell_type'] == 'markdown': parts.append(source)
        elif '#| hide' not in source:
            if '#| echo: false' not in source: parts.append(f'```python\n{shown(source)}\n```')
            parts.append(output(c))
    text = '\n\n'.join(p for p in parts if p)
    text = re.sub(r'\]\(([\w/]+\.(?:ipynb|png))\)', r'](nbs/\1)', text)  # the notebooks and their pictures lie one folder further down
    return f'<!-- made from nbs/index.ipynb by .ci/readme.py: edit the notebook -->\n\n{text}\n'


if __name__ == '__main__':
    path = root/'README.md'
    if card.drawn_from() != card.digest(card.card()): sys.exit('the picture of the answer is an older one: run python .ci/card.py')
    if '--check' not in sys.argv: path.write_text(readme(), encoding='utf-8')
    elif not path.exists() or path.read_text(encoding='utf-8') != readme(): sys.exit('README.md is out of step: run python .ci/readme.py')
