"""Every claim with its verdict, from the recorded runs: `python bench/claims.py` writes bench/results/claims.md.

The verdicts alone also go into nbs/index.ipynb, and so into README.md.

A claim says that an arm is better than another. Its row holds, for each set, the paired differences of the two arms as the chapters
compute them (`differences` on `recorded` runs): mean, 95 % interval (Student's t; wider where seeds only divide the same photographs
anew), wins/ties/losses of the claim's arm, and the number of pairs. The verdict follows from these alone: on a set the claim holds where the interval lies on its side of zero (or, for
"no worse", below the margin), fails where it lies on the other, and is not decided where it reaches across. Fewer than five pairs decide
nothing.
Nothing is trained here; the scripts that recorded the runs wrote down before what would refute a claim. `--check` writes nothing and
exits with 1 where the page or the front page is not what these runs give.
"""
import argparse
import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from ch5clf.lesson import differences, recorded

OURS_OF = 'chapter, our comparison'
PAGE, SETS = ROOT/'bench'/'results'/'claims.md', ('paper pets', 'Oxford pets', 'clothing')
UNDECIDED, HOLDS, FAILS, FEW, NOT_MEASURED = 'not decided', 'holds', 'does not hold', 'too few seeds', 'not measured'


@dataclass
class Claim:
    "What is said, by whom, where it is tried, and the differences (below zero speaks for it) on each set."
    text: str
    who: str # the chapter that we follow, the notes, or ours
    where: str # notebook, and section
    found: dict = field(default_factory=dict) # set -> Differences
    note: str = '' # what stands in place of a verdict
    plan: dict = field(default_factory=dict) # set -> pairs that its script plans
    words: dict = field(default_factory=dict) # set -> what the reader of its cell must know besides
    loss: dict = field(default_factory=dict) # set -> Differences of the loss, where the error decides
    registered: bool = False # did the script say it before its runs?

    @property
    def early(self): return any(d.n < self.plan.get(name, 0) for name, d in self.found.items())

    def says(self, sets=False):
        "What each set says, named where they differ (or `sets`); 'so far' where a script plans more runs; what the loss says, if that is another thing."
        said, by_loss = said_of(self.found), said_of(self.loss)
        more = f'; by loss: {in_words(by_loss, sets)}' if by_loss and by_loss != said else ''
        return 'so far: '*self.early + in_words(said, sets) + more

    verdict = property(says)


def on(d):
    "The verdict of one set's differences."
    line = d.margin or 0
    if d.n < 5: return FEW
    return HOLDS if d.high < line else FAILS if d.low > line else UNDECIDED


def said_of(found): return {name: on(d) for name, d in found.items()}


def in_words(said, sets=False):
    if len({*said.values()}) == 1 and not sets: return next(iter(said.values()))
    return '; '.join(f'{word} ({", ".join(n for n in said if said[n] == word)})' for word in (HOLDS, FAILS, UNDECIDED, FEW) if word in said.values())


def cell(d, plan=0):
    "Differences in a cell of the table."
    def say(x):
        if d.unit not in ('%', 'points'): return f'{x:+.2g}'
        return f'{x:+.1f}' if abs(x) >= .05 or not x else f'{x:+.2f}' # no "-0.0" beside a verdict
    n = f'n = {d.n}' + f' of {plan}'*(d.n < plan)
    if d.low == d.high: return f'{say(d.mean)}, the same for each of {d.n} seeds'.replace('-', '−')
    spread = f' ({say(d.low)} to {say(d.high)})' if d.n > 1 else ''
    return f'{say(d.mean)}{spread}; {d.wins}/{d.ties}/{d.losses}, {n}'.replace('-', '−')


def redivided(name):
    "Test over training pictures, where seeds divide the same ones anew: photographs, of which each puts a fifth aside."
    return 0. if name == 'paper pets' else .25


def on_sets(runs, treatment, baseline, sets=SETS, **kwargs):
    "Differences on each set of which both arms were run; seeds that only one arm has are left out."
    found = {}
    for name in sets:
        here = runs[runs['set'] == name]
        seeds = [set(here[here.arm == arm].seed) for arm in (treatment, baseline)]
        here = here[here.arm.isin((treatment, baseline)) & here.seed.isin(seeds[0] & seeds[1])]
        if len(here): found[name] = differences(treatment, baseline, here[['arm', 'seed', 'error']], value='error', redivided=redivided(name), **kwargs)
    return found


def by_set(name):
    "Runs whose arms are called 'set: arm', with the set as a column."
    runs = recorded(name)
    parts = runs.arm.str.split(': ', n=1, expand=True)
    return runs.assign(set=parts[0], arm=parts[1])


def yes(holds): return f'**{HOLDS if holds else FAILS}**'


def whole(name):
    "Runs with all the training pictures that a set has."
    runs = recorded(name)
    return runs[runs.per_class == runs.groupby('set').per_class.transform('max')]


def planned(paper, photos=0): return {'paper pets': paper, 'Oxford pets': photos, 'clothing': photos}


# ------------------------------------------------------------------ 00
def data_claims():
    base, where = recorded('baseline'), '[00, section 4](../../nbs/00_data.ipynb)'
    paper = base[base.arm == 'paper pets']
    yield Claim('Five lines of fastai err on 15 to 40 of 100 paper pets, whatever the seed of head and order (one set of pictures)', 'ours', where,
                note=f'{yes(paper.error.between(.15, .4).all())}: {paper.error.min():.0%} to {paper.error.max():.0%} in {len(paper)} seeds', registered=True)
    alike = paper.dropna(subset=['alike']).set_index('seed') if 'alike' in base else paper[:0]
    yield Claim('Look-alikes dominate the confusion: a wrong answer names the look-alike more often than 1 in 11, in share of the wrong answers (one set of pictures)',
                'chapter', where, {'paper pets': differences(1/11 + 0*alike.wrong, alike.alike/alike.wrong)} if len(alike) else {}, 'not recorded yet', planned(20), registered=True)
    where, plan = '[00, section 5](../../nbs/00_data.ipynb)', planned(20, 10)
    runs = by_set('presize')
    runs = runs[runs.groupby(['set', 'seed']).arm.transform('nunique') == 3] # whole triples only, as in the chapter
    yield Claim('Presizing, more pixels until the last step, lowers the error', 'chapter', where, on_sets(runs, 'fastai presizing', 'no margin'), plan=plan, registered=True)
    yield Claim("`pet_dls` (one interpolation, real edges) is no worse than fastai's presizing (margin 1 point)", 'ours', where,
                on_sets(runs, 'one interpolation', 'fastai presizing', margin=1), plan=plan, registered=True)
    runs, where, plan = by_set('cleaning'), '[00, section 6](../../nbs/00_data.ipynb)', planned(10, 10)
    yield Claim('Perfect labels lower the test error of a short training (8 % had been wrong; one set of pictures and wrong labels)', OURS_OF, where,
                {'paper pets': differences('perfect', 'as found', recorded('riddle'), 'error')}, plan=planned(10), registered=True)
    yield Claim("Measured by the first edition's ruler, which takes test pictures for training pictures of the same name, they seem to raise it", 'ours', where,
                {'paper pets': differences('as found', 'perfect', recorded('riddle'), 'error_by_name')}, plan=planned(10), registered=True)
    for kind in ('uniform', 'look-alike'):
        looked = runs[runs.arm == f'{kind} 8%: logistic: cleaned']
        found = {n: differences(g.chance.values, g.precision.values) for n, g in looked.groupby('set')}
        yield Claim(f'Train before you clean: a first model finds wrong labels better than chance, in share of the first 46 pictures looked at, as many as are wrong (8 % wrong, {kind})',
                    'chapter', where, found, plan=plan)
    def gain(kind, share, head, arm='perfect'): return on_sets(runs, f'{kind} {share}%: {head}: {arm}', f'{kind} {share}%: {head}: as found')
    for kind in ('uniform', 'look-alike'):
        for share in (8, 20, 40):
            yield Claim(f'Cleaning lowers the error of logistic regression ({share} % wrong, {kind}; somebody who is never mistaken looks at the {2*share} % most suspicious pictures)',
                        OURS_OF, where, gain(kind, share, 'logistic', 'cleaned'), plan=plan)
    for kind in ('uniform', 'look-alike'):
        for share in (8, 20, 40):
            yield Claim(f'Perfect labels lower the error of logistic regression ({share} % wrong, {kind})', OURS_OF, where, gain(kind, share, 'logistic'), plan=plan, registered=True)
    for kind in ('uniform', 'look-alike'):
        for share in (8, 20, 40):
            yield Claim(f"Perfect labels lower the error of fastai's head after three epochs on features ({share} % wrong, {kind})",
                        OURS_OF, where, gain(kind, share, 'short'), plan=plan, registered=True)
    def gap(one, other): return {n: differences(one[n].values, other[n].values, unit='points') for n in one}
    for kind in ('uniform', 'look-alike'):
        for share in (8, 20, 40):
            yield Claim(f'Perfect labels gain more with the head that fits better: logistic regression against the short training ({share} % wrong, {kind})', 'ours', where,
                        gap(gain(kind, share, 'logistic'), gain(kind, share, 'short')), plan=plan, registered=True)
    for kind in ('uniform', 'look-alike'):
        for less, more in ((8, 20), (20, 40)):
            yield Claim(f'Perfect labels gain more at {more} than at {less} % of wrong labels (logistic regression, {kind})', 'ours', where,
                        gap(gain(kind, more, 'logistic'), gain(kind, less, 'logistic')), plan=plan, registered=True)
    for share in (8, 20, 40):
        yield Claim(f'Perfect labels gain more where wrong labels are those of look-alikes ({share} % wrong, logistic regression)', 'ours', where,
                    gap(gain('look-alike', share, 'logistic'), gain('uniform', share, 'logistic')), plan=plan, registered=True)
    yield Claim('Looking at the most suspicious pictures lowers the error more than looking at as many by chance', 'ours', where)
    yield Claim('All this with a head that was trained for thirty epochs', 'ours', where, registered=True)


# ------------------------------------------------------------------ 01
def loss_claims():
    where, aside = '[01, section 7](../../nbs/01_loss.ipynb)', '[an aside](../../nbs/asides/smoother_training.ipynb)'
    yield Claim('The gradient of cross-entropy is softmax minus target', 'chapter', where, note='**holds**: an identity, checked there to rounding')
    yield Claim('It is linear', 'chapter and notes', where, note='in the probabilities it is, in the logits it is not')
    runs, ce, soft = recorded('smoother'), 'cross-entropy', 'squared error of softmax'
    runs = runs.assign(arm=runs.arm + runs.rate.map(', {:g}'.format))
    for rate in (.1, .5, 1.):
        for other in (soft, 'squared error of raw outputs'):
            yield Claim(f'So training is smoother than with {other}: the gradient changes less from step to step (one small network, rate {rate:g} for both; log units)',
                        'chapter', aside, {'digits': differences(f'{ce}, {rate:g}', f'{other}, {rate:g}', runs, 'change', unit='')}, plan={'digits': 20}, registered=True)
    yield Claim('It is smoother than squared error of softmax at five times the rate (0.1 and 0.5; log units)', 'ours', aside,
                {'digits': differences(f'{ce}, 0.1', f'{soft}, 0.5', runs, 'change', unit='')}, plan={'digits': 20})


# ------------------------------------------------------------------ 02
HEADS = {'paper pets': 'paper pets frozen', 'Oxford pets': 'pets head', 'clothing': 'clothing head'}
UNFROZEN = {'paper pets': 'paper pets unfrozen', 'clothing': 'clothing unfrozen'}
PROBED = {'paper pets': 'paper probe', 'Oxford pets': 'pets probe', 'clothing': 'clothing probe'}
SGD = {'digits': 'digits CNN', 'letters LSTM': 'letters LSTM'}
REGRESSION = {'diabetes': 'diabetes MLP', 'friedman': 'friedman MLP'}
FINDERS = range(11, 16) # seeds of the finders; the k-th meets the k-th recorded curve


def curves(task, value):
    "Rates, and a curve of validation loss or error for each seed; what is not finite counts as the largest finite value of the task."
    sweep = recorded('lr_sweep')
    table = sweep[sweep.arm == task].pivot(index='seed', columns='rate', values=value).dropna(axis=1)
    return table.columns.to_numpy(), table.where(np.isfinite(table), table[np.isfinite(table)].max().max())


def at_rates(task, rates, value='error'):
    "Loss or error of the k-th curve at the k-th rate, read off in log rate."
    x, table = curves(task, value)
    return {seed: float(np.interp(np.log(rate), np.log(x), losses)) for (seed, losses), rate in zip(table.iterrows(), rates)}


def against(text, who, where, tasks, arm, plain, value='error'):
    "The claim that a finder's rates are better than a plain one: each answer meets a recorded curve of its own. A refusal counts as 2e-3."
    answers, found, loss, words = recorded('lr_finder'), {}, {}, {}
    for name, task in tasks.items():
        mine = answers[(answers.arm == arm) & (answers.task == task)].set_index('seed').rate
        if not len(mine) and arm not in {*answers[answers.task == task].arm}: continue # not run there
        x, table = curves(task, value)
        if not .999*x[0] <= plain <= 1.001*x[-1]: continue # no run near that rate
        rates = mine.reindex(FINDERS)[:len(table)]
        if rates.isna().any(): words[name] = f'refused {rates.isna().sum()} of {len(rates)}'
        rates = rates.fillna(2e-3)
        def minus(value, unit): return differences(at_rates(task, rates, value), at_rates(task, [plain]*len(rates), value), unit=unit)
        if value == 'error': found[name] = minus('error', '%')
        (loss if value == 'error' else found)[name] = minus('loss', 'loss')
    return Claim(text, who, where, found, words=words, loss=loss)


def too_high(value, unit):
    "Validation error or loss at a rate near 2e-3 minus that at 0.1."
    return {name: differences(at_rates(task, [2e-3]*9, value), at_rates(task, [.1]*9, value), unit=unit) for name, task in HEADS.items()}


def rate_claims():
    first, where, later = (f'[02, section {i}](../../nbs/02_lr_finder.ipynb)' for i in (1, 5, 7))
    yield Claim('A rate of 0.1 ends worse than 2e-3 (new head)', 'chapter', first, too_high('error', '%'), loss=too_high('loss', 'loss'))
    head, unfrozen, mine = '(new head)', '(unfrozen from the start, 48 px; read between few rates, far apart)', 'find_lr (tuned on these tasks)'
    for arm, who, text in (('fastai: minimum', OURS_OF, 'The minimum divided by ten'), ('ours: last_fall', OURS_OF, 'The last point of a clear fall'),
                           ('fastai: valley', OURS_OF, "fastai's valley")):
        for tasks, at in ((HEADS, head), (UNFROZEN, unfrozen)):
            yield against(f'{text} is a better rate than a plain 2e-3 {at}', who, where, tasks, arm, 2e-3)
    for plain in (1e-3, 2e-3, 3e-3): yield against(f'{mine} is a better rate than a plain {plain:g} {head}', 'ours', where, HEADS, 'ours: best', plain)
    yield against(f'{mine} is a better rate than a plain 2e-3 {unfrozen}', 'ours', where, UNFROZEN, 'ours: best', 2e-3)
    for plain in (2e-3, .01, .03, .1, .3, 1., 3.):
        yield against(f'find_lr is a better rate than a plain {plain:g} (SGD; tuned on digits, not on letters)', 'ours', where, SGD, 'ours: best', plain)
    for plain in (2e-3, .01, .03, .1):
        yield against(f'find_lr is a better rate than a plain {plain:g} (SGD, squared error; tuned on diabetes, not on friedman)', 'ours', where, REGRESSION, 'ours: best', plain, 'loss')
    probed = '(everything unfrozen after a linear probe, 96 px, slice(r/10, r); three curves are all that was planned)'
    for arm, text, who in (('race: race', 'A race', 'ours'), ('ours: best', 'find_lr', 'ours'), ('fastai: valley', "fastai's valley", OURS_OF)):
        for plain in (2e-3, 3e-3): yield against(f'{text} names a better rate than a plain {plain:g} {probed}', who, later, PROBED, arm, plain)
    yield from finder_goals('[02, section 5](../../nbs/02_lr_finder.ipynb), [table](lr_finder.md)')


def finder_goals(where):
    "What bench/lr_tasks.py wrote down before the finders ran on the held-out half, judged on that half."
    import lr_finder
    raw = lr_finder.load()
    table = lr_finder.answers(raw)
    table = table[table.task.isin(lr_finder.HELD_OUT)]
    medians, n = table.groupby(['arm', 'task']).regret.median().unstack(), table.task.nunique()
    median, worst, refused = medians.median(axis=1), table.groupby('arm').regret.max(), table[table.rate.isna()].groupby('arm').size()
    rivals = [a for a in median.index if not a.startswith(('race', 'ours'))]
    race, ours, tests = 'race: race', 'ours: best', [a for a in rivals if not a.startswith('plain')]
    lowest = median[rivals].idxmin(), worst[rivals].idxmin()
    yield Claim(f'A race has the lowest median and the lowest worst regret of all rivals ({n} held-out tasks)', 'ours', where, registered=True,
                note=f'{yes(median[race] < median[lowest[0]] and worst[race] < worst[lowest[1]])}: median {median[race]:.3f}, worst {worst[race]:.1f}; lowest of the rivals '
                     f'{median[lowest[0]]:.3f} ({lowest[0]}, which refused {refused.get(lowest[0], 0)} of {5*n}) and {worst[lowest[1]]:.1f} ({lowest[1]})')
    errors = {t: g.error.mean()/lr_finder.noise_of(raw, t, 'error') for t, g in table[table.arm == race].groupby('task') if g.error.notna().all()}
    yield Claim('In the median task its error exceeds the lowest of the sweep by at most one standard error', 'ours', where, registered=True,
                note=f'{yes(np.median([*errors.values()]) <= 1)}: {np.median([*errors.values()]):.1f} standard errors in the median of {len(errors)} tasks with an error')
    share = table.groupby(['arm', 'task']).share.median().unstack()
    yield Claim('It costs at most half the time of one training', 'ours', where, registered=True,
                note=f'{yes(share.loc[race].median() <= .5)}: {share.loc[race].median():.2f} of its processor seconds in the median task')
    constant = lr_finder.best_constant(raw, lr_finder.HELD_OUT)
    behind = medians.loc[ours] - [lr_finder.regret(raw, t, constant) for t in medians.columns]
    spread = table.dropna(subset=['rate']).groupby(['arm', 'task']).rate.agg(lambda r: r.max()/r.min()).groupby('arm').max()
    calm = min(tests, key=spread.get)
    yield Claim('find_lr is in no task, in the median, worse than the best constant in hindsight by more than 0.03, and has the lowest worst regret and spread of all tests',
                'ours', where, registered=True, note=f'{yes(behind.max() <= .03 and worst[ours] < worst[tests].min() and spread[ours] < spread[calm])}: behind by up to {behind.max():.1f} '
                f'({behind.idxmax()}); worst regret {worst[ours]:.0f} against {worst[tests].min():.1f}; spread {spread[ours]:.1f} times against {spread[calm]:.1f} ({calm})')
    cpu = table.groupby(['arm', 'task']).cpu.median().unstack()
    times = cpu.loc[ours]/cpu.loc['fastai: valley']
    yield Claim("find_lr takes at most half the time of fastai's test (registered)", 'ours', where,
                note=f'{yes(times.max() <= .5)}: {times.min():.2f} to {times.max():.2f} of its processor seconds, median {times.median():.2f}')
    yield Claim("On features it takes at most a fifteenth of the time of fastai's test", 'ours', where, registered=True)
    share, pairs = lr_finder.coverage(raw)
    halves = [lr_finder.coverage(dict(raw, finders=[r for r in raw['finders'] if r['task'] in half])) for half in (lr_finder.TUNING, lr_finder.HELD_OUT)]
    yield Claim('90 % of the answers of other seeds lie within the interval that find_lr names (both halves)', 'ours', where, registered=True,
                note=f'{yes(share >= .9)}: {share:.0%} of {pairs} pairs ({halves[0][0]:.0%} on the seen half, {halves[1][0]:.0%} held out; the share itself decides, without an interval)')


# ------------------------------------------------------------------ 03
CHANGES = (('A trained head to start from', OURS_OF, 'start', 'trained'), ('A linear head on features of length 1', 'ours', 'head', 'linear'),
           ("Ten times fine_tune's rate for the body", 'ours', 'rate', 'ten times'), ('Batch-norm held (statistics and weights)', 'ours', 'batchnorm', 'held'))
FIRST = dict(head='fastai', start='random', rate='low', batchnorm='moving')


def fine_tuning_claims():
    arc, where, plan = whole('finetune_arc'), '[03, section {}](../../nbs/03_finetune.ipynb)', planned(10, 5)
    paper = arc[arc['set'] == 'paper pets'].pivot(index='seed', columns='arm', values='error')
    strong = recorded('finetune_factorial').query("arm == 'fine_tune at 2e-2' and set == 'paper pets'").set_index('seed').error
    for rival, theirs in (('fine_tune(3)', paper.fine_tune), ('fine_tune(3, 2e-2), the strongest of three epochs that we recorded', strong)):
        recipe, theirs = paper.recipe.dropna().align(theirs.dropna(), join='inner')
        yield Claim(f'The recipe makes at most half of the errors of {rival} (its errors minus half of theirs)', 'ours', where.format(8),
                    {'paper pets': differences(recipe, theirs/2)}, plan=planned(10), words={'paper pets': f'{recipe.mean()/theirs.mean():.2f} of them'}, registered=rival == 'fine_tune(3)')
    for text, who, section, treatment, baseline, more in (
            ('The recipe (probe, then all layers; its rates come from a first look at other paper pets and at one division of the same photographs) beats fine_tune(3) as it is', 'ours', 1, 'recipe', 'fine_tune', {}),
            ('The recipe beats fine_tune(3) with batch-norm held', 'ours', 8, 'recipe', 'fine_tune, batch-norm held', {}),
            ('The linear probe alone is no worse than fine_tune(3) (margin 2 points)', 'ours', 8, 'linear probe', 'fine_tune', dict(margin=2)),
            ("The linear probe beats fastai's head, both on the frozen body", 'ours', 6, 'linear probe', 'head on features', {}),
            ('Unfreezing pays: a trained head, then four epochs of everything at slice(1e-5, 1e-3), batch-norm held, beats the head alone', OURS_OF, 8, 'features, then unfrozen', 'head on features', {}),
            ('Unfreezing pays: the recipe beats its own probe', OURS_OF, 6, 'recipe', 'linear probe', {}),
            ('fine_tune(3) beats a head trained for twenty epochs on the frozen body', OURS_OF, 2, 'fine_tune', 'head on features', {}),
            ('fine_tune(3) is better with batch-norm held (statistics and weights)', 'ours', 5, 'fine_tune, batch-norm held', 'fine_tune', {})):
        before = (treatment, baseline) in (('recipe', 'fine_tune, batch-norm held'), ('linear probe', 'fine_tune'))
        yield Claim(text, who, where.format(section), on_sets(arc, treatment, baseline, **more), plan=plan, registered=before)
    order = [on_sets(arc, 'recipe', 'linear probe')[of] for of in ('paper pets', 'clothing', 'Oxford pets')]
    means = all(a.mean < b.mean for a, b in zip(order, order[1:]))
    apart = all(a.high < b.low for a, b in zip(order, order[1:]))
    yield Claim('The less a set is like ImageNet, the more unfreezing pays: most on paper pets, then clothing, then Oxford pets', 'ours', where.format(8), registered=True,
                note=f'**so far: {FAILS if not means else HOLDS if apart else UNDECIDED}**: ' + ', '.join(f'{d.mean:+.1f}' for d in order).replace('-', '−')
                + f' points, intervals {"apart" if apart else "not apart"}')
    yield from suspects(arc, where.format(5))
    yield from many_claims("[an aside](../../nbs/asides/after_the_case.ipynb)")
    runs = pd.concat([arc[arc.arm == 'recipe'], whole('finetune_rates')])
    for rate in ('0.001', '0.003'):
        yield Claim(f'A slice beats one rate of {rate} for all layers (in the recipe)', OURS_OF, where.format(6), on_sets(runs, 'recipe', f'one rate of {rate}'), plan=planned(10, 5), registered=True)
    yield from epoch_claims(where.format(7))
    yield from statistics_claims("[an aside](../../nbs/asides/sixteen_cells.ipynb)")


def suspects(arc, where):
    "One change at a time from the cell that is nearest to fine_tune, all four, and each taken back; the chapter's own claim about the first two steps."
    grid, plan = recorded('finetune_factorial').dropna(subset=['head']), planned(10, 5)
    grid = grid[grid.rate != 'recipe']
    def errors(**cell): return grid[(grid[list(cell)] == list(cell.values())).all(axis=1)].set_index(['set', 'seed']).error
    def pair(new, old):
        both = new.index.intersection(old.index)
        return {of: differences(new[both][of], old[both][of], redivided=redivided(of)) for of in SETS if of in both}
    together = FIRST | {factor: new for *_, factor, new in CHANGES}
    fast = FIRST | dict(rate='ten times')
    for text, who, factor, new in CHANGES:
        yield Claim(f'{text}: changed alone, from near fine_tune, lowers the error', who, where, pair(errors(**FIRST | {factor: new}), errors(**FIRST)), plan=plan)
    yield Claim('All four together lower it', 'ours', where, pair(errors(**together), errors(**FIRST)), plan=plan)
    for text, who, factor, new in CHANGES:
        yield Claim(f'{text}: taken back from all four, the error rises', who, where, pair(errors(**together), errors(**together | {factor: FIRST[factor]})), plan=plan)
    for start in ('random', 'trained'):
        yield Claim(f"Batch-norm held lowers the error where the body learns ten times as fast too (fastai's head, {start} at the start)", 'ours', where,
                    pair(errors(**fast | dict(start=start, batchnorm='held')), errors(**fast | dict(start=start))), plan=plan)
    for text, who, factor, new in CHANGES:
        average = grid.groupby(['set', 'seed', factor]).error.mean().unstack()
        yield Claim(f'{text} lowers the error on average over the eight pairs of cells (the pairs disagree, see above)', who, where,
                    pair(average[new], average[FIRST[factor]]), plan=plan, registered=True)
    head = arc[arc.arm == 'head on features'].set_index(['set', 'seed']).error
    yield Claim('Unfreezing pays with batch-norm training too: a trained head, then four epochs of everything at slice(1e-5, 1e-3), beats the head alone '
                "(ten times the chapter's rates for a third of its epochs)", OURS_OF, where, pair(errors(**FIRST | dict(start='trained')), head), plan=plan)


def many_claims(where):
    lots = recorded('finetune_many')
    for text, treatment, baseline, before in (
            ('the recipe beats fine_tune(3)', 'recipe', 'fine_tune', True),
            ('fine_tune(3) is better with batch-norm held', 'fine_tune, batch-norm held', 'fine_tune', True),
            ('the recipe beats fine_tune(3) with batch-norm held', 'recipe', 'fine_tune, batch-norm held', False),
            ('unfreezing pays: the recipe beats its own probe', 'recipe', 'linear probe', False),
            ('fine_tune(3) beats a head trained for twenty epochs on the frozen body', 'fine_tune', 'head on features', False)):
        yield Claim(f'With 300 training pictures a class, 3,600 in all: {text}', 'ours', where, on_sets(lots, treatment, baseline), plan=planned(5), registered=before)


def epoch_claims(where):
    runs, plan = recorded('finetune_epochs'), planned(10)
    watched = runs[runs.arm == 'recipe, 8 epochs'].set_index('seed')
    at = lambda epochs: pd.Series({s: watched.test_wrong[s][int(e) - 1]/watched.total[s] for s, e in epochs.items()})
    lowest = watched.valid_losses.map(lambda v: int(np.argmin(v)) + 1)
    later = lowest < 8 # in the other seeds nothing came after it
    again = runs[runs.arm == 'recipe, 2 epochs'].set_index('seed').error
    both = watched.index.intersection(again.index)
    recipe = whole('finetune_arc').query("arm == 'recipe' and set == 'paper pets'").set_index('seed').error
    four = watched.index.intersection(recipe.index)
    stops = ', '.join(str(int(e)) for e in sorted(watched.stopped))
    for text, who, better, worse, before in (
            (f'The whole cycle of 8 epochs beats one stopped at the first rise of the validation loss (after {stops} epochs)', 'chapter', watched.error, at(watched.stopped), True),
            ('The test error goes on falling after the validation loss was lowest (only seeds in which something came after)', 'chapter', watched.error[later], at(lowest)[later], False),
            (f'A short whole cycle (2 epochs) beats a long one stopped early (after {stops} epochs: not the same number)', 'chapter', again[both], at(watched.stopped)[both], False),
            ('A whole cycle of 4 epochs beats the first 4 of 8 (thought of after the runs)', OURS_OF, recipe[four], at(pd.Series(4, four)), False)):
        yield Claim(text, who, where, {'paper pets': differences(better, worse)} if len(better) else {}, plan=plan, registered=before)


def statistics_claims(where):
    still, plan = recorded('finetune_statistics'), planned(10)
    for arm, text in (('rate 0, fastai head', "fastai's head"), ('rate 0, linear head', 'a linear head')):
        g = still[still.arm == arm].set_index('seed')
        if len(g): yield Claim(f'One epoch at rate 0 spoils {text}: batch-norm\'s statistics alone raise its error', 'ours', where,
                               {'paper pets': differences(g.wrong_after.str[0]/g.total, g.wrong_after.str[5]/g.total)}, plan=plan, registered=True)
    bodies = recorded('finetune_bodies')
    bodies = bodies.assign(worse=(bodies.wrong_moved/bodies.total - bodies.error)*100)
    for body in ('lite0', 'lite1', 'lite2'):
        found = {}
        for of in SETS if body != 'lite0' else SETS[1:]: # paper pets: the row above
            g = bodies[(bodies.arm == body) & (bodies['set'] == of)]
            if len(g): found[of] = differences([0.]*len(g), g.worse.values, unit='points', redivided=redivided(of))
        yield Claim(f'The same with a probe on the body {body}', 'ours', where, found, plan=planned(5, 5), registered=True)
    small, ours = (bodies[(bodies.arm == arm) & (bodies['set'] == 'paper pets')].set_index('seed').worse for arm in ('resnet10t', 'lite0'))
    yield Claim('It spoils the probe of a small residual network less than that of lite0 (the network was trained on other paper pets, so that body and home are not told apart)',
                'ours', where, {'paper pets': differences(small, ours, unit='points')}, plan=planned(5), registered=True)


# ------------------------------------------------------------------ 04
def deeper_claims():
    grown, where = recorded('deeper_grow'), '[04, section {}](../../nbs/04_deeper.ipynb)'
    for text, who, arm, baseline in (
            ('At equal processor time, deeper is better: lite1 beats lite0 in 8 seconds (96 px)', OURS_OF, 'lite1, 96 px, 8 s', 'lite0, 96 px, 8 s'),
            ('At equal processor time, deeper and wider is better: lite2 beats lite0 in 8 seconds (96 px)', OURS_OF, 'lite2, 96 px, 8 s', 'lite0, 96 px, 8 s'),
            ('At equal processor time, deeper and wider is better: lite2 beats lite0 in 24 seconds (96 px)', OURS_OF, 'lite2, 96 px, 24 s', 'lite0, 96 px, 24 s'),
            ('128 px beat 96 px in 8 seconds', 'ours', 'lite0, 128 px, 8 s', 'lite0, 96 px, 8 s'),
            ('96 px beat 64 px in 8 seconds', 'ours', 'lite0, 96 px, 8 s', 'lite0, 64 px, 8 s'),
            ('Pictures that grow from 64 to 96 px beat 96 px throughout (8 seconds)', 'ours', 'lite0, 64 then 96 px, 8 s', 'lite0, 96 px, 8 s')):
        yield Claim(text, who, where.format(7), {'paper pets': differences(arm, baseline, grown, 'error')}, plan=planned(10), registered=True)
    errors = grown.pivot(index='seed', columns='arm', values='error')
    behind = {t: errors[f'lite2, 96 px, {t} s'] - errors[f'lite0, 96 px, {t} s'] for t in (8, 24)}
    yield Claim('Three times the seconds change the difference of lite2 and lite0 in favour of lite2', 'ours', where.format(7),
                {'paper pets': differences(behind[24], behind[8])}, plan=planned(10), registered=True)
    runs, photos = recorded('deeper'), recorded('deeper_photos')
    fixed, plan = ' (heads on 64 numbers a picture; one set of pictures, one division)', dict(planned(20), **{'Oxford pets': 10})
    by_heart = runs.pivot(index='seed', columns='arm', values='memorised')
    yield Claim('The large head repeats more of the wrong labels than the small one, in share of them' + fixed, 'chapter', where.format(4),
                {'paper pets': differences(by_heart['small, many'], by_heart['large, many'])}, plan=plan, registered=True)
    yield Claim('With ten pictures of each breed the small head makes fewer errors than the large one' + fixed, OURS_OF, where.format(4),
                {'paper pets': differences('small, few', 'large, few', runs, 'test_error')}, plan=plan)
    for text, who, arm, baseline in (('A small head makes fewer errors than a large one where a tenth of the labels is wrong', OURS_OF, 'small, many', 'large, many'),
                                     ('Dropout lowers the error of the large head', OURS_OF, 'large, many: dropout', 'large, many'),
                                     ('Weight decay lowers it', OURS_OF, 'large, many: weight decay', 'large, many'),
                                     ('Augmentation lowers it', OURS_OF, 'large, many: augmentation', 'large, many'),
                                     ('All three at full strength raise it', 'ours', 'large, many', 'large, many: all three')):
        found = {'paper pets': differences(arm, baseline, runs, 'test_error')}
        if {arm, baseline} <= {*photos.arm}: found['Oxford pets'] = differences(arm, baseline, photos, 'error')
        yield Claim(text + fixed, who, where.format(4), found, plan=plan, registered=True)
    gains = {}
    for size in ('large', 'small'):
        arm = f'{size}, many: without the wrong labels'
        gains[size] = {'paper pets': differences(arm, f'{size}, many', runs, 'test_error'), 'Oxford pets': differences(arm, f'{size}, many', photos, 'error')}
        yield Claim(f'Without the pictures whose labels are wrong the {size} head makes fewer errors' + fixed, 'ours', where.format(4), gains[size], plan=plan, registered=size == 'large')
    yield Claim('The large head, which knew them by heart, gains more by that than the small one' + fixed, 'ours', where.format(4),
                {of: differences(gains['large'][of].values, gains['small'][of].values, unit='points') for of in gains['large']}, plan=plan, registered=True)
    precise, where, plan = recorded('precision'), where.format(6), planned(10)
    units = 'without' if 'units: none' in precise.attrs['about'] else 'with'
    yield Claim('Half precision (bfloat16) is no worse (margin 2 points; 96 px, batches of 16, one epoch of everything)', 'chapter', where,
                {'paper pets': differences('bfloat16', 'float32', precise, 'error', margin=2)}, plan=plan, registered=True)
    yield Claim(f'Half precision is quicker on a CPU {units} units for it (one thread, this very training)', 'ours', where,
                {'paper pets': differences('bfloat16', 'float32', precise, 'seconds', unit='s')}, plan=plan)
    yield Claim('Half precision is quicker on a GPU that is built for it', 'chapter', where)
    kept = precise.groupby('arm').activations_MB.first()
    yield Claim('Half precision takes less memory for activations (batches of 16, 96 px)', 'chapter', where,
                note=f'{yes(kept.bfloat16 < kept.float32)}: {kept.bfloat16:.0f} instead of {kept.float32:.0f} MB, counted once')


INTRO = """# Every claim, and whether it holds here

Made by `python bench/claims.py` from the recorded runs in `ch5clf/runs`; edit neither by hand. *Who*: the chapter of the book that this
course follows, somebody's notes on it, or ours; "chapter, our comparison" is a rule of the chapter that we put against a rival of our
own. A cell holds the mean difference between the claim's arm and the other one, its 95 % interval (Student's t over seeds), wins/ties/losses
of the claim's arm, and the number of pairs, with the number that its script plans where that is not reached. Cells are in
percentage points of error unless the row names another share or unit; below zero speaks for the claim.

A claim *holds* on a set where the interval lies below zero (for "no worse": below the margin), *does not hold* where it lies above, and is
*not decided* where it reaches across. Fewer than five pairs decide nothing. *So far*: more runs are planned, and a verdict may still change.

- Paper pets are drawn anew for each seed, unless a row says "one set of pictures". Photographs are not: each seed divides the same 1,110
  pets or 800 clothes anew. Their intervals are widened for that (Nadeau and Bengio, 2003), and still speak of these photographs. "One
  division": not even that; such a row speaks of labels, weights and order alone.
- Finders are read off recorded curves of error against rate, on one set of pictures for each task. Each of five answers meets a curve of its
  own, so that the interval holds the chance of both. A finder that refuses counts as 2e-3. The error decides; where the loss says something
  else, the verdict says so. *Regret* is validation loss above the lowest of such a sweep.
- *Registered*: the script said it before its runs, and it stands here whatever came out. Some scripts were stricter and called a claim
  refuted where its interval only reaches zero; here that is *not decided*.
- Most runs were made on a CPU. A GPU (NVIDIA H100, float32) made seeds 6 to 10 of the six arms of 03 on paper pets, the sixteen cells of
  photographs, and all runs with 300 pictures a class; their rows or files name it. The means of seeds 1 to 5 and 6 to 10 of those
  six arms differ by at most 1.2 points.
- {n} differences stand here, {few} of them of fewer than five pairs, and nothing is corrected for their number. Where nothing is true, about
  one in twenty is decided by chance. Trust those with few pairs, and with a bound near zero, least.
- A verdict is about these sets and this body (EfficientNet-Lite0 at 128 pixels unless the row says otherwise), not about all.
"""
CHAPTERS = {'Data': data_claims, 'Loss': loss_claims, 'Rates': rate_claims, 'Fine-tuning': fine_tuning_claims, 'Deeper': deeper_claims}


def row(claim):
    unit = ''.join({f', in {d.measure}' for d in claim.found.values() if d.unit not in ('%', '', 'points')}) # the same on all sets
    def filled(n): return cell(claim.found[n], claim.plan.get(n, 0)) + (f'; {claim.words[n]}' if n in claim.words else '')
    cells = [filled(n) if n in claim.found else f'0 of {claim.plan[n]}' if claim.plan.get(n) else '' for n in SETS]
    cells.append('; '.join(f'{n}: {filled(n)}' for n in claim.found if n not in SETS))
    return f'| {" | ".join([claim.text + unit, claim.who + ", registered"*claim.registered, claim.where, *cells, f"**{claim.verdict}**" if claim.found else claim.note or NOT_MEASURED])} |'


def page():
    "The whole page, as Markdown."
    told = {title: [*claims()] for title, claims in CHAPTERS.items()}
    pairs = [d.n for of in told.values() for c in of for d in c.found.values()]
    lines = [INTRO.format(n=len(pairs), few=sum(n < 5 for n in pairs))]
    for title, of in told.items():
        lines += [f'## {title}', '', f'| claim | who | tried in | {" | ".join(SETS)} | elsewhere | verdict |', '| --- | --- | --- |' + ' --- |'*5, *map(row, of), '']
    return '\n'.join(lines)


FRONT, MARKS = ROOT/'nbs'/'index.ipynb', ('<!-- verdicts: made by bench/claims.py -->', '<!-- end of verdicts -->')


def verdicts():
    "The verdicts alone, as Markdown for the front page."
    claims = [c for of in CHAPTERS.values() for c in of()]
    def where(c): return c.where.split(', [table]')[0].replace('../../nbs/', '')
    rows = [f'| {c.text} | {where(c)} | {f"**{c.says(sets=True)}**" if c.found else c.note or NOT_MEASURED} |' for c in claims]
    return '\n'.join([MARKS[0], '<details>', f'<summary>All {len(claims)} claims and their verdicts</summary>', '',
                      '| claim | tried in | verdict |', '| --- | --- | --- |', *rows, '', '</details>', MARKS[1]])


def front():
    "nbs/index.ipynb with the verdicts of these runs, as text."
    book = json.loads(FRONT.read_text(encoding='utf-8'))
    cell, = (c for c in book['cells'] if MARKS[0] in ''.join(c['source']))
    source = ''.join(cell['source'])
    before, after = source.split(MARKS[0])[0], source.split(MARKS[1])[1]
    cell['source'] = (before + verdicts() + after).splitlines(keepends=True)
    return json.dumps(book, indent=1, ensure_ascii=False, sort_keys=True) + '\n'


def main():
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument('--check', action='store_true')
    made = {PAGE: page(), FRONT: front()}
    if ask.parse_args().check: sys.exit(any(text != file.read_text(encoding='utf-8') for file, text in made.items()))
    for file, text in made.items(): file.write_text(text, encoding='utf-8', newline='\n')
    print(made[PAGE])
    subprocess.run([sys.executable, ROOT/'.ci'/'readme.py'], check=True)


if __name__ == '__main__': main()
