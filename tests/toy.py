"A bundle made by hand that answers from a table of words: nothing is trained, and it opens at once without torch"
from pathlib import Path

import numpy as np, onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from hatenb.core import file_sha256, write_json
from hatenb.detector.runtime import AskedQuestion, AskedTask, Graph, Manifest

vocabulary = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', 'slur1', 'insult1', 'melquins', 'ixarics', 'fine', 'day']
columns = ['normal', 'offensive', 'hatespeech', 'Melquin', 'Ixaric', 'rationale', 'score']
questions = [AskedQuestion('label', 'label', ('normal', 'offensive', 'hatespeech'), 'softmax', 'lowest', 'highest', negative='normal'),
             AskedQuestion('target', 'targets', ('Melquin', 'Ixaric'), 'sigmoid', 'highest', 'thresholds'),
             AskedQuestion('rationale', 'rationale', ('rationale',), 'sigmoid', 'mean', 'threshold', 'word'),
             AskedQuestion('score', 'severity', ('score',), 'scaled', 'highest', 'number')]


def word_table():
    "[words, columns]: what each word adds to the logits"
    t = np.zeros((len(vocabulary), len(columns)), np.float32)
    t[vocabulary.index('[CLS]')] = [1, 0, 0, -2, -2, 0, -1]
    t[:, columns.index('rationale')] = -2
    for word, column, weight in (('slur1', 'hatespeech', 4), ('slur1', 'rationale', 4), ('slur1', 'score', 3), ('insult1', 'offensive', 3),
                                 ('insult1', 'rationale', 3), ('melquins', 'Melquin', 4), ('ixarics', 'Ixaric', 4)):
        t[vocabulary.index(word), columns.index(column)] += weight
    return t


def graph():
    "Input ids and mask → the logits of each task: sums over a post's words, or the words' own"
    node, ints, floats = helper.make_node, TensorProto.INT64, TensorProto.FLOAT
    nodes = [node('Gather', ['table', 'input_ids'], ['words']), node('Cast', ['attention_mask'], ['mask'], to=floats),
             node('Unsqueeze', ['mask', 'last'], ['mask3']), node('Mul', ['words', 'mask3'], ['seen']),
             node('ReduceSum', ['seen', 'middle'], ['post'], keepdims=0)]
    held = dict(table=word_table(), last=np.array([2]), middle=np.array([1]))
    for q in questions:
        of, where = ('seen', 2) if q.per == 'word' else ('post', 1)
        at = [columns.index(o) for o in q.outputs]
        held |= {f'{q.name}_at': np.array(at[0] if q.per == 'word' else at)}
        nodes.append(node('Gather', [of, f'{q.name}_at'], [f'toy/{q.name}'], axis=where))
    inputs = [helper.make_tensor_value_info(k, ints, ['posts', 'tokens']) for k in ('input_ids', 'attention_mask')]
    outputs = [helper.make_tensor_value_info(f'toy/{q.name}', floats, None) for q in questions]
    made = helper.make_graph(nodes, 'toy', inputs, outputs, [numpy_helper.from_array(v, k) for k, v in held.items()])
    return helper.make_model(made, opset_imports=[helper.make_opsetid('', 17)], ir_version=9)


def tokenizer():
    t = Tokenizer(models.WordLevel({w: i for i, w in enumerate(vocabulary)}, '[UNK]'))
    t.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    t.post_processor = processors.TemplateProcessing(single='[CLS] $A [SEP]', special_tokens=[('[CLS]', 2), ('[SEP]', 3)])
    return t


def save_toy(folder, id='toy'):
    "Write the bundle; returns its folder"
    folder = Path(folder)
    folder.mkdir(parents=True)
    tokenizer().save(str(folder/'tokenizer.json'))
    onnx.save(graph(), str(folder/'0.onnx'))
    tasks = {f'toy/{q.name}': AskedTask(f'toy/{q.name}', q.name, q.outputs, 'plain') for q in questions}
    files = {f: file_sha256(folder/f) for f in ('tokenizer.json', '0.onnx')}
    m = Manifest(id, {q.name: q for q in questions}, tasks, (Graph(tuple(tasks), 'tokenizer.json', 64, unknown='[UNK]', onnx='0.onnx'),),
                 files=files, onnx='float32')
    write_json(folder/'detector.json', m.to_dict())
    return folder
