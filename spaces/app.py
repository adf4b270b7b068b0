"A page to try a detector: a post in, its answers out. It needs gradio and the package of a detector (see README.md), and no torch"
import copy

import gradio as gr
import hatenb_detector

MOST = 20_480       # characters of a post, as many as `hatenb serve` takes
ABOUT = '''# hatenb
What a small model says of a post in English: whether it is toxic, which class, which communities it is aimed at, because of which
words, how severe it is. It is a guess that a person checks, and it errs: its card, in the files of this Space, says how often. Posts are not kept.

**Content note.** The examples were made up; one of them is hateful. Slurs are masked unless you ask to see them.'''
EXAMPLES = ['my neighbours made soup. it was very good.', 'Muslims should all be thrown out of our country', 'you are such an idiot, every single day']
POINT = 'From which probability on a post is called toxic: at the best macro F1, or with at most 5 or 10 of 100 normal posts among them'

detector = hatenb_detector.load()
points = {p.name: f'{p.name} ({p.threshold:.2f})' for p in detector.manifest.toxic.points}


def answer(post, point, sentences, reveal):
    "The answers to a post as HTML"
    if len(post) > MOST: raise gr.Error(f'A post has at most {MOST:,} characters.')
    mine = copy.copy(detector)          # the graph is shared; other visitors keep their operating point
    mine.operating_point = point
    said = mine(post, sentences=sentences)
    said.reveal = reveal
    return said._repr_html_()


with gr.Blocks(title='hatenb', analytics_enabled=False) as page:
    gr.Markdown(ABOUT)
    post = gr.Textbox(label='A post', lines=3, max_length=MOST)
    point = gr.Radio([(said, name) for name, said in points.items()], value=next(iter(points)), label='Operating point', info=POINT)
    with gr.Row():
        sentences = gr.Checkbox(label='Also sentence by sentence')
        reveal = gr.Checkbox(label='Show slurs')
    ask = gr.Button('Ask', variant='primary')
    shown = gr.HTML()
    gr.Examples(EXAMPLES, post, cache_examples=False)
    gr.on([ask.click, post.submit], answer, [post, point, sentences, reveal], shown, api_name='answer')

if __name__ == '__main__': page.launch()
