"""Write README.md from nbs/index.ipynb, or with --check say whether it is in step.

`nbdev-readme` does the same through Quarto; this needs nothing but the notebook.
"""
import json, re, sys
from pathlib import Path

root = Path(__file__).resolve().parent.parent


def output(cell):
    "The first Markdown or text output of a cell"
    for o in cell['outputs']:
        for kind in ('text/markdown', 'text/plain'):
            if kind in o.get('data', {}):
                text = ''.join(o['data'][kind])
                return text if kind == 'text/markdown' else f'```\n{text}\n```'
    return ''


def readme():
    parts = []
    for c in json.loads((root/'nbs'/'index.ipynb').read_text(encoding='utf-8'))['cells']:
        source = ''.join(c['source'])
        if c['cell_type'] == 'markdown': parts.append(source)
        elif '#| hide' not in source:
            if '#| echo: false' not in source: parts.append(f'```python\n{source}\n```')
            parts.append(output(c))
    text = '\n\n'.join(p for p in parts if p)
    text = re.sub(r'\]\(([\w/]+\.(?:ipynb|png))\)', r'](nbs/\1)', text)  # the notebooks and their pictures lie one folder further down
    return f'<!-- made from nbs/index.ipynb by .ci/readme.py: edit the notebook -->\n\n{text}\n'


if __name__ == '__main__':
    path = root/'README.md'
    if '--check' not in sys.argv: path.write_text(readme(), encoding='utf-8')
    elif not path.exists() or path.read_text(encoding='utf-8') != readme(): sys.exit('README.md is out of step: run python .ci/readme.py')
