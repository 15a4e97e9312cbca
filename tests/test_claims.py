"The page of claims says what the recorded runs give, and no more."
import json
import re
import sys
from pathlib import Path

import pytest

from ch5clf.lesson import differences

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT/'bench'))
import claims
import goals


def claim(**values): return claims.Claim('a beats b', 'ours', 'somewhere', {name: differences(v, [0.]*len(v), unit='') for name, v in values.items()})


def test_the_page_is_what_the_runs_give():
    assert claims.PAGE.read_text(encoding='utf-8') == claims.page(), 'python3 start.py bench claims'
    assert claims.FRONT.read_text(encoding='utf-8') == claims.front(), 'python3 start.py bench claims'
    assert claims.verdicts().count('\n| ') == 2 + sum(line.startswith('| ') for line in claims.page().splitlines()) - 2*len(claims.CHAPTERS)


def test_goals_are_what_the_tables_say():
    assert goals.PAGE.read_text(encoding='utf-8') == goals.page(), 'python3 start.py bench goals'
    for script in re.findall(r'\]\((.+?)\)', goals.page()): assert (goals.PAGE.parent/script).exists(), script


def test_a_goal_says_met_missed_and_what_is_not_known():
    verdicts = [goals.Goal('a', 'step', '1', met, 'because').verdict for met in (True, False, None, 'not decided')]
    assert verdicts == ['met', 'missed', 'not measured', 'not decided']
    slow = [dict(arm=arm, size=128, speedup=1.2, low=1., high=1.4) for arm in ('ours', 'channels-last')]
    assert [g.met for g in goals.steps(slow)] == [False] and [g.met for g in goals.steps([dict(r, speedup=1.6) for r in slow])] == [True]


@pytest.mark.parametrize('values, verdict', [
    ([-1., -1.2, -.9, -1.1, -1.], 'holds'), ([1., 1.2, .9, 1.1, 1.], 'does not hold'),
    ([-1., 1.2, -.9, 1.1, -.1], 'not decided'), ([-1., -1.2, -.9, -1.1], 'too few seeds')])
def test_a_verdict_needs_five_pairs_and_an_interval_beside_zero(values, verdict):
    assert claim(one=values).verdict == verdict


def test_no_worse_is_judged_by_its_margin():
    c = claims.Claim('a is no worse', 'ours', 'x', {'one': differences([1., 1.1, .9, 1., 1.], [0.]*5, unit='', margin=2)})
    assert c.verdict == 'holds'
    c.found['one'] = differences([3., 3.1, .9, 3., 3.], [0.]*5, unit='', margin=2)
    assert c.verdict == 'not decided'


def test_sets_that_disagree_are_named():
    assert claim(here=[-1., -1.1, -.9, -1., -1.], there=[1., 1.1, .9, 1., 1.]).verdict == 'holds (here); does not hold (there)'


def test_only_seeds_that_both_arms_have_are_paired():
    import pandas as pd
    runs = pd.DataFrame([dict(set='clothing', arm=arm, seed=s, error=.1*s) for arm, seeds in (('a', (1, 2, 3)), ('b', (2, 3, 4))) for s in seeds])
    found = claims.on_sets(runs, 'a', 'b')
    assert [*found] == ['clothing'] and found['clothing'].n == 2


def test_each_row_has_an_experiment_that_exists_and_a_verdict():
    rows = [line for line in claims.page().splitlines() if line.startswith('| ') and not line.startswith(('| ---', '| claim'))]
    assert len(rows) > 30
    for row in rows:
        *_, verdict = cells = row.strip('| ').split(' | ')
        target = re.search(r'\]\((.+?)\)', row)[1]
        assert (claims.PAGE.parent/target).exists(), row
        assert len(cells) >= 4 and verdict.strip(), row


RUNS = sorted((ROOT/'ch5clf'/'runs').glob('*.json'))


@pytest.mark.parametrize('file', RUNS, ids=lambda f: f.stem)
def test_recorded_runs_say_where_they_come_from(file):
    data = json.loads(file.read_text(encoding='utf-8'))
    assert {'date', 'machine', 'versions', 'script'} <= set(data['made']) and len(data['about']) > 40
    assert (ROOT/'bench'/data['made']['script']).exists()
    key = ['set', 'task', 'picture', 'per_class', 'arm', 'seed'] + ['rate']*(file.stem in ('lr_sweep', 'smoother'))
    runs = [tuple(r.get(k) for k in key) for r in data['rows']]
    assert len(set(runs)) == len(runs) > 0, 'a run is there twice'


@pytest.mark.slow
@pytest.mark.parametrize('name', ['swept', 'found', 'cleaning'])
def test_a_fresh_run_falls_inside_its_cloud(name):
    import fresh
    row = fresh.compared(name)
    assert row['inside'], row


def test_a_run_that_was_measured_wrongly_falls_outside():
    import fresh
    values = fresh.cloud('finetune_arc', dict(set='paper pets', arm='recipe', per_class=48), 'error')
    assert fresh.inside(values.mean(), values) and not fresh.inside(.2, values) and not fresh.inside(.91, values)
