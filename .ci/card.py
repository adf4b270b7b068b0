"""Draw nbs/card.png, the picture of an answer that README.md shows: what the detector's cell of nbs/index.ipynb is stored with, in Chromium.

The picture keeps the digest of what it was drawn from, by which `.ci/readme.py` notices an older one.
"""
import hashlib, io, json, tempfile
from pathlib import Path

root = Path(__file__).resolve().parent.parent
picture = root/'nbs'/'card.png'


def card():
    "The first answer of the front page, as HTML"
    cells = json.loads((root/'nbs'/'index.ipynb').read_text(encoding='utf-8'))['cells']
    shown = (o['data'] for c in cells for o in c.get('outputs', ()) if 'text/html' in o.get('data', {}))
    return ''.join(next(shown)['text/html'])


def digest(html): return hashlib.sha256(html.encode()).hexdigest()[:16]


def drawn_from():
    "The digest of what the picture was drawn from"
    from PIL import Image
    return Image.open(picture).text.get('card') if picture.exists() else None


def draw(html):
    from PIL import Image, PngImagePlugin
    from selenium import webdriver
    options = webdriver.ChromeOptions()
    for a in ('--headless=new', '--no-sandbox', '--force-device-scale-factor=2', '--window-size=720,900'): options.add_argument(a)
    with webdriver.Chrome(options) as browser, tempfile.TemporaryDirectory() as folder:
        page = Path(folder)/'card.html'
        page.write_text(f'<!doctype html><meta charset="utf-8"><body style="margin:0;background:#fff;font:16px/1.5 system-ui,sans-serif">'
                        f'<div id="card" style="width:680px;padding:8px">{html}</div>', encoding='utf-8')
        browser.get(page.as_uri())
        shot = Image.open(io.BytesIO(browser.find_element('id', 'card').screenshot_as_png)).convert('P', palette=Image.Palette.ADAPTIVE, colors=64)
    about = PngImagePlugin.PngInfo()
    about.add_text('card', digest(html))
    shot.save(picture, pnginfo=about, optimize=True, dpi=(192, 192))


if __name__ == '__main__': draw(card())
