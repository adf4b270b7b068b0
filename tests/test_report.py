"The report page in a real browser: on a phone and a desk, in light and in dark"

import copy, json

import pytest
from hatenb.core import HatenbError, read_json
from hatenb.reports import (
    best_of,
    everything,
    metric_columns,
    published_records,
    results_html,
    results_rows,
    run_names,
    tables,
    write_report,
)
from hatenb.runs import RunConfig
from hatenb.studies import results_folder, study_records

# every text with less contrast against what lies behind it than WCAG 2.2 asks for (AA: 4.5, or 3 for large text)
faint = '''
const rgb = c => c.match(/[\\d.]+/g).map(Number), light = c => { const [r,g,b] = c.slice(0,3).map(v => (v /= 255) <= .04045 ? v/12.92 : ((v+.055)/1.055)**2.4); return .2126*r+.7152*g+.0722*b }
const behind = e => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor); if (c.length < 4 || c[3] > 0) return c } return [255,255,255] }
const bad = [], walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT)
while (walk.nextNode()) {
    const e = walk.currentNode.parentElement, s = getComputedStyle(e)
    if (!walk.currentNode.data.trim() || !e.checkVisibility()) continue
    const [a,b] = [light(rgb(s.color)), light(behind(e))], ratio = (Math.max(a,b)+.05)/(Math.min(a,b)+.05)
    if (ratio < (parseFloat(s.fontSize) >= 24 ? 3 : 4.5)) bad.push(walk.currentNode.data.trim().slice(0,40) + ' ' + ratio.toFixed(2))
}
return bad'''  # noqa: E501
# what reaches over the page's edge and does not lie in a box that scrolls by itself
over = '''
const wide = e => { for (; e; e = e.parentElement) if (['auto','scroll'].includes(getComputedStyle(e).overflowX)) return true; return false }
return [...document.querySelectorAll('body *')].filter(e => e.checkVisibility() && e.getBoundingClientRect().right > arguments[0] + 1 && !wide(e)).map(e => e.outerHTML.slice(0,60))'''  # noqa: E501


@pytest.fixture(scope='module')
def records():
    return study_records('first')


@pytest.fixture(scope='module')
def page(records, tmp_path_factory):
    "All records of the first study, published rows, every metric; and a run with a hostile name and metrics of another corpus"  # noqa: E501
    odd = copy.deepcopy(records[0])
    odd['config'].update(encoder='<script>document.title="caught"</script>' + 'x' * 80)
    odd['metrics']['test'] = {'mini/label': odd['metrics']['test']['hatexplain/label']}
    published = read_json(results_folder() / 'published.json')
    return write_report(
        [*records, odd],
        tmp_path_factory.mktemp('report') / 'a report.html',
        published=published['published'] + published['human'],
        every=True,
    )


def seen(browser, page, width, scheme):
    browser.execute_cdp_cmd(
        'Emulation.setDeviceMetricsOverride',
        dict(width=width, height=900, deviceScaleFactor=2 if width < 500 else 1, mobile=width < 500),
    )
    browser.execute_cdp_cmd(
        'Emulation.setEmulatedMedia', dict(features=[dict(name='prefers-color-scheme', value=scheme)])
    )
    browser.get(page.as_uri())
    browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")


@pytest.fixture(autouse=True)
def as_before(request):
    "Other tests' browser is not a phone in the dark"
    yield
    if 'browser' in request.fixturenames:
        request.getfixturevalue('browser').execute_cdp_cmd('Emulation.clearDeviceMetricsOverride', {})
        request.getfixturevalue('browser').execute_cdp_cmd('Emulation.setEmulatedMedia', dict(features=[]))


@pytest.mark.parametrize('scheme', ['light', 'dark'])
@pytest.mark.parametrize('width', [320, 360, 1280])
def test_page_can_be_read(browser, page, width, scheme):
    seen(browser, page, width, scheme)
    assert browser.execute_script(over, width) == []
    assert (
        browser.execute_script('return document.documentElement.scrollWidth') <= width
    )  # a phone's innerWidth grows with what it shows
    assert browser.execute_script(faint) == []
    ground = browser.execute_script('return getComputedStyle(document.body).backgroundColor')
    assert (sum(json.loads(ground.replace('rgb(', '[').replace(')', ']'))) < 150) == (scheme == 'dark')


def test_what_is_on_the_page(browser, page, records):
    seen(browser, page, 1280, 'light')
    title, text = browser.title, browser.find_element('tag name', 'body').text
    assert title == 'hatenb: results' and '<script>' in text  # shown, not run
    pictures = browser.execute_script('return [...document.images].map(i => [i.naturalWidth, i.alt, i.src.slice(0,5)])')
    assert len(pictures) >= 6 and all(w > 100 and alt and src == 'data:' for w, alt, src in pictures)
    rows = browser.execute_script(
        "return [...document.querySelector('table').tBodies[0].rows].map(r => [r.className, ...[...r.cells].map(c => c.innerText)])"  # noqa: E501
    )
    assert len(rows) == len(records) + 1 + 5
    assert [r[1].split('\n')[0] for r in rows if r[0] == 'published'][-1].startswith('human')
    value = records[0]['metrics']['test']['hatexplain/label']['accuracy']
    assert any(f"{value['value']:.3f}\n{value['low']:.3f}–{value['high']:.3f}" in r for r in rows)
    spans = browser.execute_script(
        "return [...document.querySelectorAll('table')].map(t => [...t.rows].slice(t.tHead.rows.length).map(r => r.cells.length).concat([[...t.tHead.rows[0].cells].reduce((n, c) => n + c.colSpan, 0)]))"  # noqa: E501
    )
    assert spans and all(len(set(s)) == 1 for s in spans)  # every row as wide as its head
    asked = browser.execute_script(
        "return performance.getEntriesByType('resource').map(e => e.name).filter(n => !n.startsWith('data:'))"
    )
    assert asked == []
    meant = browser.execute_script("return [...document.querySelectorAll('details li')].map(l => l.innerText)")
    assert all(
        any(m.startswith(f'{h} ') or m.startswith(f'{h}:') for m in meant)
        for h in ('label accuracy ↑', 'rationale AUPRC ↑')
    )


def test_first_column_stays_while_a_table_scrolls(browser, page):
    seen(browser, page, 360, 'light')
    place = "return document.querySelector('.wide th[scope=row]').getBoundingClientRect().x"
    before = browser.execute_script(place)
    browser.execute_script("document.querySelector('.wide').scrollLeft = 400")
    assert (
        browser.execute_script("return document.querySelector('.wide').scrollLeft") == 400
        and browser.execute_script(place) == before
    )


def test_published_rows_are_beside_ours_not_against_them(records):
    perfect = published_records(
        [dict(name='an oracle', source='nowhere', metrics={'hatexplain/label': {'accuracy': 1.0}})]
    )
    rows = results_rows(records + perfect)
    marked = best_of(rows, 'hatexplain/label accuracy')
    assert any(marked) and not marked[-1] and marked[:-1] == best_of(results_rows(records), 'hatexplain/label accuracy')


def test_tables_stay_narrow_however_many_metrics_there_are(records):
    many = copy.deepcopy(records[:1])
    for task in ('hatexplain/label', 'hatexplain/target', 'hatexplain/rationale'):
        many[0]['metrics']['test'][task] = {m: dict(value=0.5, low=0.4, high=0.6, n=9) for m in everything(task)}
    assert all(len(metric_columns(results_rows(many, shown=t))) <= 9 for t in tables.values())
    for t in tables.values():
        results_html(many, shown=t)


def test_a_record_without_the_split_is_named(records):
    with pytest.raises(HatenbError, match=records[0]['id']):
        results_rows(records, 'dev')


def test_runs_whose_pools_differ_are_told_apart():
    def record(pool, *names):
        config = RunConfig((f'{pool}/toxic',), pools={pool: {'toxic': {'corpora': [*names]}}})
        return dict(id=config.id, config=config.to_dict())
    first, second = run_names([record('told', 'dynahate', 'hatemoji'), record('told_less', 'hatemoji')])
    assert first != second and 'dynahate and hatemoji' in first and '[' not in first+second
