"""Pages as a reader sees them, without Quarto: what nbdev hands to Quarto, in the elements and classes that Quarto gives them, in a
column as wide as its text, with the site's styles"""
import base64, html, io, re

import nbformat, yaml
from nbconvert.filters import ansi2html, markdown2html
from PIL import Image

column = 680           # px: Quarto's column of text on a desk
# of Quarto's theme what decides sizes
theme = '''
*{box-sizing:border-box} body{margin:0;font:17px/1.5 system-ui,"DejaVu Sans",sans-serif;background:#fff;color:#343a40}
main{max-width:%dpx;margin:0 auto} @media(max-width:760px){main{padding:0 12px}}
h1{font-size:2rem} h2{font-size:1.65rem} h3{font-size:1.45rem} p{overflow-wrap:break-word}
img{max-width:100%%;height:auto} figure{margin:0 0 1rem} figcaption{font-size:.875rem}
table{border-collapse:collapse;font-size:.875rem;margin-bottom:1rem} th,td{padding:.25rem;border-bottom:1px solid #8886;text-align:left;vertical-align:top}
pre{font-size:.875rem;white-space:pre-wrap;overflow-wrap:anywhere} code{font-size:.875em;overflow-wrap:anywhere}
body.quarto-dark{background:#222;color:#fff} body.quarto-dark a{color:#00bc8c}
''' % column


def option(source, key):
    found = re.search(rf'^#\| *{key}: *(.+)$', source, re.M)
    return found[1].strip(' "\'') if found else ''


def markdown(text, folder):
    "Divs of pandoc (`:::`) are only their contents, attributes in braces are left out; pictures of the site are put in"
    text = re.sub(r'^:::.*$', '', re.sub(r'(\))\{[^}\n]*\}', r'\1', text), flags=re.M)

    def picture(m):
        if not (file := folder/m[1]).is_file(): return m[0]
        data = base64.b64encode(file.read_bytes()).decode()
        return f'<img data-inches="{inches(data)}" data-points="9" src="data:image/png;base64,{data}"'
    return re.sub(r'<img src="([^":]+\.png)"', picture, markdown2html(text))


def inches(png):
    picture = Image.open(io.BytesIO(base64.b64decode(png)))
    return picture.width/picture.info['dpi'][0]


def figure(source, png):
    "A plot, with its width in inches and the smallest text that its cell asks for, in points"
    points = min([9, *map(float, re.findall(r'(?:font|label)size=([\d.]+)', source))])
    about = f'alt="{html.escape(option(source, "fig-alt"))}" data-inches="{inches(png)}" data-points="{points}"'
    image = f'<img class="img-fluid figure-img" {about} src="data:image/png;base64,{png.strip()}">'
    return f'<figure>{image}<figcaption>{html.escape(option(source, "fig-cap"))}</figcaption></figure>'


def output(source, o, folder):
    "An output of a cell, in the richest form it has"
    if o.output_type == 'stream': return f'<div class="cell-output cell-output-stdout"><pre>{ansi2html(o.text)}</pre></div>'
    data = o.get('data', {})
    if 'text/html' in data: return f'<div class="cell-output cell-output-display">{data["text/html"]}</div>'
    if 'text/markdown' in data:
        return f'<div class="cell-output cell-output-display cell-output-markdown">{markdown(data["text/markdown"], folder)}</div>'
    if 'image/png' in data: return f'<div class="cell-output cell-output-display">{figure(source, data["image/png"])}</div>'
    return f'<div class="cell-output cell-output-display"><pre>{html.escape(data.get("text/plain", ""))}</pre></div>'


def code(source, folded):
    text = re.sub(r'^#\|.*\n?', '', source, flags=re.M)
    shown = f'<div class="sourceCode"><pre>{html.escape(text)}</pre></div>'
    if option(source, 'echo') == 'false' or not text.strip(): return ''
    return f'<details class="code-fold"><summary>Code</summary>{shown}</details>' if folded else shown


def page(path, styles):
    "The HTML of a processed notebook"
    nb = nbformat.read(path, 4)
    first, *cells = nb.cells
    folder = path.parent
    front = yaml.safe_load(first.source.strip().strip('-')) or {}
    title = html.escape(str(front.get('title', '')))
    body = [f'<h1 class="title">{title}</h1><div class="description">{markdown(str(front.get("description", "")), folder)}</div>']
    for c in cells:
        if c.cell_type == 'markdown': body.append(markdown(c.source, folder))
        if c.cell_type == 'code':
            shown = code(c.source, front.get('code-fold') or option(c.source, 'code-fold') == 'true') + ''.join(output(c.source, o, folder) for o in c.get('outputs', ()))
            body.append(f'<div class="cell">{shown}</div>')
    return (f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
            f'<title>{title}</title><style>{theme}{styles}</style></head><body class="quarto-light"><main class="content">{"".join(body)}'
            '</main></body></html>')
