"Explanations: derivatives, Captum, ERASER's definitions by hand, every strategy, the cache, hostile input"

from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from sklearn.metrics import auc, precision_recall_curve

from hatenb.asking import explanations as E
from hatenb.batches import Posts, collate, encoded_corpus
from hatenb.core import HatenbError
from hatenb.corpora import load_corpus
from hatenb.kinds import count_answers, rationale_table
from hatenb.regularisers import perturb, real_tokens
from hatenb.making import make_run as run, run_corpora, run_encoder
from hatenb.runs import RunConfig, run_model
from hatenb.asking import explain_run
from hatenb.model import Model
from hatenb.training import TrainConfig, predict

TASKS = 'mini/label', 'mini/rationale'


def parts_of(adapter='lora', options=None, strategy='shared', strategy_options={}, tasks=TASKS, max_length=128, **more):
    "A model with random adapters and a head whose answers differ, and the marked posts of the mini corpus"
    config = RunConfig(
        tasks,
        adapter,
        options if options is not None else dict(r=2),
        strategy,
        strategy_options,
        max_length=max_length,
        **more,
    )
    encoder = run_encoder(config)
    corpora = run_corpora(config, encoder.tokenizer)
    model = run_model(config, encoder, {c: count_answers(d['train'], c) for c, d in corpora.items()})
    g = torch.Generator().manual_seed(0)
    for k, p in model.trainable().items():
        p.data += (0.5 if k.startswith('heads.') else 0.03) * torch.randn(p.shape, generator=g)
    return model.eval(), Posts(
        E.posts_with_marks(corpora['mini']['test'], 'mini').select(range(8)), 'mini', encoder.tokenizer.pad_token_id
    )


@pytest.fixture(scope='module')
def made():
    return parts_of()


@pytest.fixture(scope='module')
def batch(made):
    return collate({'mini': made[1]}, {'mini': np.arange(4)})


def probability(model, batch):
    "p(ŷ) as a function of a shift of the embeddings, ŷ, and the embeddings of the words"
    key = E.task_of(model, 'multiclass')
    view, t = model.with_heads(key), batch['mini']
    x = (model.encoder.model.get_input_embeddings()(t['input_ids']) * real_tokens(t)).detach()
    with torch.no_grad():
        given = view(batch)[key].argmax(-1)
    return (
        lambda shift: view(perturb(batch, {'mini': shift}))[key].softmax(-1)[torch.arange(len(given)), given],
        given,
        x,
    )


def test_the_gradient_is_the_derivative(made, batch):
    "p(ŷ) when one word's embedding is made a little longer and shorter"
    model, _ = made
    p, _, x = probability(model, batch)
    found, by_hand, e = E.gradient_times_input(model, batch), torch.zeros(x.shape[:2]), 0.02
    with torch.no_grad():
        for j in range(x.shape[1]):
            one = torch.zeros_like(x)
            one[:, j] = e * x[:, j]
            by_hand[:, j] = (p(one) - p(-one)) / (2 * e)
    assert found.abs().max() > 0.01
    torch.testing.assert_close(found, by_hand, atol=3e-4, rtol=0.02)


def test_integrated_gradients_are_complete(made, batch):
    model, _ = made
    p, _, x = probability(model, batch)
    with torch.no_grad():
        fall = p(torch.zeros_like(x)) - p(-x)
    gaps = [(E.integrated_gradients(model, batch, steps=n).sum(1) - fall).abs().mean() for n in (2, 24)]
    assert gaps[1] < 0.1 * fall.abs().mean() and gaps[1] < gaps[0]


def test_gradients_agree_with_captum(made, batch):
    captum = pytest.importorskip('captum.attr')
    model, _ = made
    key = E.task_of(model, 'multiclass')
    _, given, x = probability(model, batch)

    def forward(embeddings):  # Captum hands over all points of all posts at once
        n = len(embeddings) // len(x)
        t = {k: v.repeat(n, *[1] * (v.dim() - 1)) for k, v in batch['mini'].items()}
        return model.with_heads(key)(perturb({'mini': t}, {'mini': embeddings - x.repeat(n, 1, 1)}))[key].softmax(-1)

    theirs = captum.IntegratedGradients(forward).attribute(x, target=given, n_steps=10, method='gausslegendre').sum(-1)
    torch.testing.assert_close(E.integrated_gradients(model, batch, steps=10), theirs.float(), atol=2e-4, rtol=0.01)
    theirs = captum.InputXGradient(forward).attribute(x.clone().requires_grad_(), target=given).sum(-1)
    torch.testing.assert_close(E.gradient_times_input(model, batch), theirs, atol=1e-5, rtol=1e-3)


def test_attention_is_what_the_encoder_attends(made, batch):
    model, _ = made
    t = batch['mini']
    with torch.no_grad():
        theirs = model.encoder.model(
            input_ids=t['input_ids'], attention_mask=t['attention_mask'], output_attentions=True
        ).attentions[-1]
    torch.testing.assert_close(E.attention(model, batch), theirs[:, :, 0].mean(1))
    words = t['token_word'] >= 0
    by_hand = torch.stack([a.mean(0)[w].mean(0) for a, w in zip(theirs, words)])
    torch.testing.assert_close(E.pooled_attention(model, batch), by_hand)
    assert (E.attention(model, batch)[t['attention_mask'] == 0] < 1e-6).all() and not model.encoder.attends


def test_a_post_is_explained_alike_in_any_batch(made):
    model, posts = made
    for name in E.explainers:
        a, b = (E.explain(model, posts, name, n, **(dict(steps=1) if name == 'integrated' else {})) for n in (32, 3))
        assert list(a.id) == posts.ids
        for x, y, n in zip(a['values'], b['values'], posts.lengths):
            assert len(x) == n - 2
            np.testing.assert_allclose(x, y, atol=1e-4)


WAYS = [
    dict(strategy='parallel'),
    dict(strategy='branch', strategy_options=dict(layer=3)),
    dict(strategy='mtl_lora', options={}, strategy_options=dict(r=4)),
    dict(adapter='seq_bn', options={}),
]


@pytest.mark.parametrize('config', WAYS)
def test_every_way_of_sharing(config):
    model, posts = parts_of(**config)
    whole, label = predict(model, {'mini': posts}), predict(model.with_heads('mini/label'), {'mini': posts})
    np.testing.assert_allclose(np.stack(whole.label_prob), np.stack(label.label_prob), atol=1e-5)
    for name in E.explainers:
        v = E.explain(model, posts, name, **(dict(steps=1) if name == 'integrated' else {}))['values']
        assert max(np.ptp(x) for x in v) > 1e-5
    for got, p in zip(E.explain(model, posts, 'rationale')['values'], whole.rationale_token_prob):
        np.testing.assert_allclose(got, p, atol=1e-5)


@pytest.mark.parametrize('quantization', ['nf4', 'int8'])
def test_quantized_encoders(quantization):
    model, posts = parts_of(quantization=quantization)
    batch = collate({'mini': posts}, {'mini': np.arange(2)})
    p, _, x = probability(model, batch)
    with torch.no_grad():
        fall = p(torch.zeros_like(x)) - p(-x)
    assert (E.integrated_gradients(model, batch, steps=10).sum(1) - fall).abs().mean() < 0.2 * fall.abs().mean()


# ERASER by hand: a model whose probability of a class is a sum over the sub-tokens it reads

WEIGHTS = {10: 0.30, 11: 0.05, 12: 0.20, 13: -0.10, 14: 0.15}  # by id; 1 and 2 are the special tokens


def sums(model, posts):
    p = [0.2 + sum(WEIGHTS.get(i, 0.0) for i in posts['mini'].lists['input_ids'][n]) for n in range(len(posts['mini']))]
    return pd.DataFrame(
        dict(corpus='mini', id=posts['mini'].ids, label_prob=[np.array([0.5 * (1 - x), 0.5 * (1 - x), x]) for x in p])
    )


def hand_posts():
    "Two posts: five words of which the first has two sub-tokens, and one word"
    return Posts(
        Dataset.from_dict(
            dict(
                id=['a', 'b'],
                input_ids=[[1, 10, 11, 12, 13, 14, 2], [1, 12, 2]],
                token_word=[[-1, 0, 0, 1, 2, 3, -1], [-1, 0, -1]],
            )
        ),
        'mini',
    )


def test_faithfulness_by_hand(made):
    model, posts = made[0], hand_posts()
    said = pd.DataFrame(
        dict(
            id=['a', 'b'],
            values=[np.array([0.9, -0.5, 0.6, 0.8, 0.1]), np.array([1.0])],
            token_word=[np.array([0, 0, 1, 2, 3]), np.array([0])],
        )
    )
    with patch.object(E, 'predict', sums):
        f = E.faithfulness(model, posts, said, k=2).set_index('id')
    # a: p = .2 + .3 + .05 + .2 − .1 + .15 = .8; of the sub-tokens 10 and 13 are highest (.9, .8), of th
    # e words 2 and 1 (.8, .6; the first has .2)
    assert f.loc['a', 'chosen'] == 2 and f.p['a'] == pytest.approx(0.8)
    assert f.p_without_token['a'] == pytest.approx(0.8 - 0.3 + 0.1) and f.p_only_token['a'] == pytest.approx(
        0.2 + 0.3 - 0.1
    )
    assert f.p_without_word['a'] == pytest.approx(0.8 + 0.1 - 0.2) and f.p_only_word['a'] == pytest.approx(
        0.2 - 0.1 + 0.2
    )
    # b: p(2) = .4, the highest; without its one word .2
    assert (
        f.p['b'] == pytest.approx(0.4)
        and f.p_without_word['b'] == pytest.approx(0.2)
        and f.p_only_word['b'] == pytest.approx(0.4)
    )
    got = E.faithfulness_metrics(f, 'token', n_boot=0)
    assert got['comprehensiveness']['value'] == pytest.approx(((0.8 - 0.6) + (0.4 - 0.2)) / 2) and got['sufficiency'][
        'value'
    ] == pytest.approx(((0.8 - 0.4) + 0) / 2)
    got = E.faithfulness_metrics(f, 'word', n_boot=50)['comprehensiveness']
    assert (
        got['value'] == pytest.approx(((0.8 - 0.7) + (0.4 - 0.2)) / 2)
        and got['low'] <= got['value'] <= got['high']
        and got['n'] == 2
    )


def test_plausibility_by_hand():
    "Gold over words 1 1 0 0 1 0 0, values such that the five highest are words 0, 2, 3, 5, 6"
    v = np.array([0.9, -0.2, 0.5, 0.4, -0.3, 0.25, 0.2])
    said = pd.DataFrame(dict(id=['a'], values=[v], token_word=[np.arange(7)]))
    gold = pd.DataFrame(dict(corpus='mini', id=['a'], label=1, rationale_any=[np.array([1, 1, 0, 0, 1, 0, 0])]))
    got = E.plausibility(said, gold, n_boot=0)
    assert got['token_f1']['value'] == pytest.approx(2 * 1 / (3 + 5))
    assert got['iou_f1']['value'] == pytest.approx(
        2 * (1 / 5) * (1 / 2) / (1 / 5 + 1 / 2)
    )  # word 0 is half of the span 0–1; two spans are gold
    precision, recall, _ = precision_recall_curve([1, 1, 0, 0, 1, 0, 0], v)
    assert got['auprc']['value'] == pytest.approx(auc(recall, precision))
    assert got['token_f1_thresholded']['value'] == pytest.approx(
        2 * 1 / (3 + 3)
    )  # the upper half of −.3 to .9 is .3 and more: 0, 2, 3
    # the same words in two sub-tokens each: gold marks both, the five highest are 0 0 2 2 3
    said = pd.DataFrame(dict(id=['a'], values=[np.repeat(v, 2)], token_word=[np.repeat(np.arange(7), 2)]))
    token = E.plausibility(said, gold, 'token', n_boot=0)
    assert token['token_f1']['value'] == pytest.approx(2 * 2 / (6 + 5)) and token['iou_f1']['value'] == 0
    assert E.plausibility(said, gold, n_boot=0)['token_f1']['value'] == got['token_f1']['value']


def test_removing_all_and_nothing(made):
    model, posts = made
    given = E.explain(model, posts, 'random')
    nothing, all_ = (E.faithfulness(model, posts, given, k) for k in (0, 1000))
    for l in E.levels:
        np.testing.assert_allclose(nothing[f'p_without_{l}'], nothing.p, atol=1e-5)
        np.testing.assert_allclose(all_[f'p_only_{l}'], all_.p, atol=1e-5)
        np.testing.assert_allclose(all_[f'p_without_{l}'], nothing[f'p_only_{l}'], atol=1e-5)
    for _, same in all_.groupby('chosen'):
        assert np.ptp(same.p_without_word) < 1e-5  # [CLS] [SEP] is all that is left
    whole = predict(model.with_heads('mini/label'), {'mini': posts})
    np.testing.assert_allclose(all_.p, np.stack(whole.label_prob).max(1), atol=1e-5)


def test_words_that_were_cut_off():
    "With 8 sub-tokens a post, six are left: what was cut off is not preferred, and cannot be removed"
    model, posts = parts_of(max_length=8)
    gold = posts.ds.select_columns(['id', 'label', 'rationale_any']).to_pandas().assign(corpus='mini')
    assert max(posts.ds['words_cut']) > 0
    for name in ('integrated', 'attention'):
        t = E.explained_posts(model, posts, name)
        for v, w, r in zip(t['values'], t.token_word, gold.rationale_any):
            words = E.word_values(v, w, len(r))
            assert len(words) == len(r) and (words[max(w) + 1 :] <= words.min()).all()
        for l in E.levels:
            assert 0 <= E.plausibility(t, gold, l, n_boot=0)['token_f1']['value'] <= 1


def test_the_second_time_comes_from_the_cache(made, tmp_path, monkeypatch):
    monkeypatch.setenv('HATENB_CACHE', str(tmp_path))
    model, posts = made
    names = ['attention', 'integrated']
    first = E.evaluate_explainers(model, posts, names, key='a', options={'integrated': dict(steps=2)}, n_boot=20)
    with patch.object(Model, 'forward', side_effect=AssertionError('the model was asked')):
        assert (
            E.evaluate_explainers(model, posts, names, key='a', options={'integrated': dict(steps=2)}, n_boot=20)
            == first
        )
        for other in (
            dict(key='b', options={'integrated': dict(steps=2)}),
            dict(key='a', options={'integrated': dict(steps=3)}),
        ):
            with pytest.raises(AssertionError, match='was asked'):
                E.evaluate_explainers(model, posts, names, **other, n_boot=20)
        fewer = Posts(posts.ds.select(range(5)), 'mini')
        with pytest.raises(AssertionError, match='was asked'):
            E.evaluate_explainers(model, fewer, names, key='a', n_boot=20)
    files = sorted((tmp_path / 'explanations').iterdir())
    assert len(files) == 2
    files[0].write_bytes(files[0].read_bytes()[:100])  # cut off
    assert (
        E.evaluate_explainers(model, posts, names, key='a', options={'integrated': dict(steps=2)}, n_boot=20) == first
    )


def test_what_is_refused(made):
    model, posts = made
    with pytest.raises(HatenbError, match='did you mean'):
        E.explain(model, posts, 'atention')
    with pytest.raises(HatenbError, match='these options'):
        E.explain(model, posts, 'attention', steps=2)
    with pytest.raises(HatenbError, match='0 steps'):
        E.explain(model, posts, 'integrated', steps=0)
    with pytest.raises(HatenbError, match='no tokens head') as e:
        E.evaluate_explainers(model.with_heads('mini/label'), posts, ['rationale'])
    assert 'mini/label' in str(e.value)
    with pytest.raises(HatenbError, match='no multiclass head'):
        E.evaluate_explainers(model.with_heads('mini/rationale'), posts)
    with pytest.raises(HatenbError, match='no multiclass head for hatexplain'):
        E.evaluate_explainers(model, Posts(posts.ds, 'hatexplain'))
    with pytest.raises(HatenbError, match='not asked for'):
        E.evaluate_explainers(model, posts, ['attention'], options={'integrated': {}})
    with pytest.raises(HatenbError, match='no posts'):
        E.evaluate_explainers(
            model, Posts(posts.ds.select(range(1)).filter(lambda p: False, load_from_cache_file=False), 'mini')
        )
    normal = encoded_corpus('mini', model.encoder.tokenizer)['test']
    with pytest.raises(HatenbError, match='normal posts'):
        E.evaluate_explainers(model, Posts(normal, 'mini'))
    with pytest.raises(HatenbError, match='no rationales'):
        E.posts_with_marks(load_corpus('mini_mhs')['test'], 'mini_mhs')
    given = E.explain(model, posts, 'random')
    gold = posts.ds.select_columns(['id', 'label', 'rationale_any']).to_pandas().assign(corpus='mini')
    with pytest.raises(HatenbError, match='not of these posts'):
        E.faithfulness(model, posts, given.iloc[::-1])
    with pytest.raises(HatenbError, match='not of the same posts'):
        E.plausibility(given.iloc[1:], gold)
    with pytest.raises(HatenbError, match='no level'):
        E.plausibility(given, gold, 'letter')


def test_a_model_that_broke_is_named_with_the_post(made):
    model, posts = made
    weight = model.heads['mini/rationale'].net[-1].weight
    kept = weight.data.clone()
    try:
        weight.data[:] = float('nan')
        with pytest.raises(HatenbError, match='not finite') as e:
            E.explain(model, posts, 'rationale')
        assert 'mini/' in e.value.place
    finally:
        weight.data[:] = kept


def test_a_head_with_a_lexicon(tmp_path):
    (tmp_path / 'terms.csv').write_text('term,category\nslur1,a\n')
    model, posts = parts_of(lexicon=str(tmp_path / 'terms.csv'))
    given = E.explain(model, posts, 'gradient')
    with pytest.raises(HatenbError, match='lexicon'):
        E.faithfulness(model, posts, given)


def test_a_finished_run(tmp_path, monkeypatch):
    monkeypatch.setenv('HATENB_CACHE', str(tmp_path / 'cache'))
    config = RunConfig(TASKS, adapter_options=dict(r=2), limit=32, train=TrainConfig(epochs=1))
    folder = tmp_path / 'runs' / run(config, tmp_path / 'runs')['name']
    names = ['rationale', 'attention', 'random']
    record = explain_run(folder, names, limit=8, n_boot=20)
    assert record['id'] == config.id and record['posts'] <= 8 and list(record['explainers']) == names
    with patch.object(Model, 'forward', side_effect=AssertionError):
        again = explain_run(folder, names, limit=8, n_boot=20)
    assert again['explainers'] == record['explainers']
    with pytest.raises(HatenbError, match='no split'):
        explain_run(folder, names, split='tset')
    (folder / 'heads.safetensors').write_bytes(b'')
    with pytest.raises(HatenbError, match='damaged'):
        explain_run(folder, names)
    plain = tmp_path / 'runs' / run(RunConfig(('mini/label',), baseline='tfidf', limit=32), tmp_path / 'runs')['name']
    with pytest.raises(HatenbError, match='no model to load'):
        explain_run(plain)


def test_ceilings_of_the_real_corpus(corpora_folder):
    "PROTOCOL: with the gold itself as the explanation, five words cannot do better; one annotator against the others"
    posts = [
        (p['rationale_any'], p['rationale_votes'])
        for p in load_corpus('hatexplain')['test'].select_columns(['label', 'rationale_any', 'rationale_votes'])
        if p['label']
    ]
    assert len(posts) == 1142

    def iou(t):
        p, r = t.precision.mean(), t.recall.mean()
        return 2 * p * r / (p + r)

    golds = [np.array(g) for g, _ in posts]
    t = rationale_table(golds, golds)
    assert t.token_f1.mean() == pytest.approx(0.605, abs=0.0005) and iou(t) == pytest.approx(
        0.261, abs=0.0005
    )  # of equal ones the earlier
    assert iou(rationale_table(golds, [g + 1e-6 * np.arange(len(g)) for g in golds])) == pytest.approx(
        0.241, abs=0.0005
    )  # the later
    pairs = [(np.array(v[i]), np.array(v[:i] + v[i + 1 :]).any(0)) for _, v in posts for i in range(len(v))]
    assert np.mean([2 * (a & o).sum() / max(a.sum() + o.sum(), 1) for a, o in pairs]) == pytest.approx(
        0.640, abs=0.0005
    )
